"""Augmentations: changes of an image that keep its label.

Of `rotate` (quarter turns, half turns where images are not square) and `flip` there are finitely many variants, so a
frozen trunk can be run on each of them once. `shift` (by up to 5 % of the side, the border repeated) and `brighten` (by
up to 15 %) are drawn at random every time, and so is `tilt` (by up to half a degree, black where nothing is).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blemish.types import BlemishError

FINITE = ("rotate", "flip")
AUGMENTATIONS = (*FINITE, "shift", "brighten", "tilt")
SHIFT, BRIGHTEN = 0.05, 0.15
TILT = math.pi / 6  # degrees: Jiang, Xue & Zou's code gives radians for thirty degrees where degrees are meant


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
    """`(N, 3, H, W)` in 0..255, each changed by its own row of `random` `(N, 4)` in -1..1: the shift down, the shift to
    the right, the brightness, and the tilt."""
    height, width = images.shape[-2:]
    changed = []
    for image, (down, right, light, turned) in zip(images, random.tolist(), strict=True):
        new = image
        if "shift" in augmentations:
            y, x = round(down * SHIFT * height), round(right * SHIFT * width)
            padded = F.pad(new, [max(x, 0), max(-x, 0), max(y, 0), max(-y, 0)], mode="replicate")
            new = padded[:, max(-y, 0) :, max(-x, 0) :][:, :height, :width]
        if "brighten" in augmentations:
            new = (new * (1 + light * BRIGHTEN)).clamp(0, 255)
        if "tilt" in augmentations:
            new = _tilt(new, turned)
        changed.append(new)
    return torch.stack(changed)


def _tilt(image: Tensor, share: float) -> Tensor:
    """`(3, H, W)` turned about its centre by `share` (-1..1) of TILT degrees; every pixel takes the nearest one, or
    black where there is none."""
    height, width = image.shape[-2:]
    angle = math.radians(share * TILT)
    cosine, sine = math.cos(angle), math.sin(angle)
    # affine_grid's coordinates run from -1 to 1 along either side, so an oblong image's axes have different units.
    rows = [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]
    grid = F.affine_grid(torch.tensor([rows]).to(image), [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, mode="nearest", align_corners=False)[0]
