"""Images, maps and masks at another size, and masks grown by a cell: written once for all of inference.

A size is (width, height), an array's shape (height, width, ...).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

V = TypeVar("V", np.uint8, np.float32)
Mask = npt.NDArray[np.bool_]


def size_of(values: npt.NDArray[Any]) -> tuple[int, int]:
    """Width and height of an array (H, W, ...)."""
    return values.shape[1], values.shape[0]


def resized(values: npt.NDArray[V], size: tuple[int, int]) -> npt.NDArray[V]:
    """An image uint8 (H, W, 3) or (H, W), or a map float32 (H, W), at `size`: bilinear, with antialiasing where it
    becomes smaller. The same array where it has that size already."""
    if size_of(values) == size:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def resized_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask (H, W) at `size`: each new pixel is the old one that its centre lies in. The same array where it has that
    size already."""
    if size_of(mask) == size:
        return mask
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size[::-1], mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def grown(mask: Mask) -> Mask:
    """A mask (H, W) with the eight neighbours of each of its cells."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
