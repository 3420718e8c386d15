"""Augmentations: changes of an image that keep its label.

Of `rotate` (quarter turns, half turns where images are not square) and `flip` there are finitely many variants, so a
frozen trunk can be run on each of them once. `shift` (by up to 5 % of the side, the border repeated) and `brighten` (by
up to 15 %) are drawn at random every time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blemish.types import BlemishError

FINITE = ("rotate", "flip")
AUGMENTATIONS = (*FINITE, "shift", "brighten")
SHIFT, BRIGHTEN = 0.05, 0.15


def check(augmentations: Sequence[str]) -> None:
    """Raises `BlemishError` for an unknown augmentation."""
    for name in augmentations:
        if name not in AUGMENTATIONS:
            raise BlemishError(f"--augmentations takes {', '.join(AUGMENTATIONS)}, not '{name}'.")


def variants(augmentations: Sequence[str], size: tuple[int, int]) -> list[tuple[int, bool]]:
    """All variants (quarter turns, flipped) of images of `size`; (0, False), the image itself, is first."""
    turns = range(0, 4, 1 if size[0] == size[1] else 2) if "rotate" in augmentations else [0]
    pairs = [(turn, flipped) for turn in turns for flipped in ([False, True] if "flip" in augmentations else [False])]
    if "flip" in augmentations and (2, False) not in pairs:  # top to bottom is a half turn and left to right
        pairs += [(2, True), (2, False)]
    return pairs


def turn(images: Tensor, variant: tuple[int, bool]) -> Tensor:
    """`(..., H, W)` turned by quarters, then mirrored left to right."""
    turned = torch.rot90(images, variant[0], (-2, -1)) if variant[0] else images
    return turned.flip(-1) if variant[1] else turned


def jitter(images: Tensor, augmentations: Sequence[str], random: Tensor) -> Tensor:
    """`(N, 3, H, W)` in 0..255, each shifted and brightened by its own row of `random` `(N, 3)` in -1..1: the shift
    down, the shift to the right, and the brightness."""
    height, width = images.shape[-2:]
    changed = []
    for image, (down, right, light) in zip(images, random.tolist(), strict=True):
        new = image
        if "shift" in augmentations:
            y, x = round(down * SHIFT * height), round(right * SHIFT * width)
            padded = F.pad(new, [max(x, 0), max(-x, 0), max(y, 0), max(-y, 0)], mode="replicate")
            new = padded[:, max(-y, 0) :, max(-x, 0) :][:, :height, :width]
        if "brighten" in augmentations:
            new = (new * (1 + light * BRIGHTEN)).clamp(0, 255)
        changed.append(new)
    return torch.stack(changed)
