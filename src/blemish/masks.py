"""Which values of a defect mask mean a defect.

Masks are drawn in black and white, or number their defects (1, 2, 3), or give each kind of defect a grey of its own.
Soft edges, from resizing or JPEG, look like greys of their own and are none: they are cut at half of white. A grey of
its own fills areas, so it has squares of 2 × 2 pixels of exactly its value, or it lies apart from everything brighter;
an edge's ramp changes with every pixel, beside what it is the edge of.
Measured: none of the 392 masks of the magnetic tiles, softened by JPEG, has such a grey below half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    import numpy.typing as npt

_NOISE = 1 / 16  # of white: JPEG's ripples beside an edge stay below
_EXACT = 4  # a mask with no more different values has no ripples
_SHARE = 0.01  # of the mask's area above half: smaller patches of one value are a JPEG's
_COLOURS = 8  # of a drawing, at most
_PICTURE = 1 / 5  # of the image in middle greys: no soft edges are so large
_REACH = 7  # pixels: side of the square in which an edge's ramp meets what is above half
_CLEAR = 1 / 5  # of white: JPEG's ripples farther away stay below


def greys(values: npt.NDArray[Any], white: float) -> list[float]:
    """The values up to half of `white` that mean something in a mask (H, W) with values above half: kinds of defects
    that a cut at half would lose. Ascending; [] for black and white masks, soft edges or not."""
    bright = values > white / 2
    low = (values > 0) & ~bright
    if not bright.any() or not low.any():
        return []
    few = len(np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values))
    low &= values >= (0 if few <= _EXACT else white * _NOISE)
    least = _SHARE * np.count_nonzero(bright)
    corner = values[:-1, :-1]
    square = low[:-1, :-1] & (values[1:, :-1] == corner) & (values[:-1, 1:] == corner) & (values[1:, 1:] == corner)
    found, counts = np.unique(corner[square], return_counts=True)
    kinds = {float(value) for value, count in zip(found, counts, strict=True) if count >= least}
    near = np.asarray(Image.fromarray(bright.astype(np.uint8)).filter(ImageFilter.MaxFilter(_REACH))) > 0
    apart = values[low & ~near & ~np.isin(values, list(kinds)) & (values >= (0 if few <= _EXACT else white * _CLEAR))]
    if len(apart) > least:
        kinds.add(float(np.median(apart)))
    return sorted(kinds)


def defective(values: npt.NDArray[Any], white: float) -> npt.NDArray[np.bool_]:
    """`values` (H, W) of a mask -> `bool (H, W)`.

    What is above half of `white` is defective. Where no value is, as in masks that number their defects, and where some
    grey below half fills areas, everything above 0 is; but of such greys with soft edges, what is above half of the
    lowest.
    """
    if values.size == 0 or values.max() <= white / 2:
        return np.asarray(values > 0)
    lowest = min(greys(values, white), default=white)
    return np.asarray(values > lowest / 2)


def is_picture(values: npt.NDArray[Any], white: float) -> bool:
    """Whether a mask's values (H, W) are those of a picture: many, and a fifth of them between dark and bright."""
    middle = (values > white * _CLEAR) & (values < white * (1 - _CLEAR))
    return bool(middle.mean() > _PICTURE and len(np.unique(values[middle])) > 4 * _COLOURS)


def looks_drawn(pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether an image `uint8 (H, W, 3)` looks like a mask, not like a picture: it has two to eight colours, or at
    least half of it is black and nearly all of the rest is white."""
    coarse = max(1, int((pixels.shape[0] * pixels.shape[1] / 10_000) ** 0.5))
    for step in (coarse, 1):  # a few pixels are enough to know most pictures
        some = pixels[::step, ::step]
        colours = _colours(some)
        value = some.max(axis=2)
        black, white = value <= 2, value >= 0.95 * value.max()
        if colours > _COLOURS and (black.mean() < 0.5 or (black | white).mean() < 0.97):
            return False
    return colours > 1


def _colours(pixels: npt.NDArray[np.uint8]) -> int:
    packed = pixels.astype(np.uint32)
    return len(np.unique(packed[..., 0] << 16 | packed[..., 1] << 8 | packed[..., 2]))
