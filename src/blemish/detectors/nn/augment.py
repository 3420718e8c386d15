"""What a part may do without becoming another part: changes of an image that keep its label.

`rotate` (quarter turns, half turns where images are not square) and `flip` are finitely many, so that a frozen trunk
can be run on each of them once. `shift` (by up to 5 % of the side, the border repeated) and `brighten` (by up to 15 %)
are drawn anew every time.
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
    """Raises `BlemishError` for a change that is not known."""
    for change in augmentations:
        if change not in AUGMENTATIONS:
            raise BlemishError(f"a part may {', '.join(AUGMENTATIONS)}, but not '{change}'; see --augmentations.")


def variants(augmentations: Sequence[str], size: tuple[int, int]) -> list[tuple[int, bool]]:
    """All (quarter turns, flipped) that images of `size` may be seen in; (0, False), the image itself, is first."""
    turns = range(0, 4, 1 if size[0] == size[1] else 2) if "rotate" in augmentations else [0]
    found = [(turn, flipped) for turn in turns for flipped in ([False, True] if "flip" in augmentations else [False])]
    if "flip" in augmentations and (2, False) not in found:  # upside down: flipped the other way
        found += [(2, True), (2, False)]
    return found


def turn(images: Tensor, variant: tuple[int, bool]) -> Tensor:
    """`(..., H, W)` turned by quarters, then mirrored left to right."""
    turned = torch.rot90(images, variant[0], (-2, -1)) if variant[0] else images
    return turned.flip(-1) if variant[1] else turned


def jitter(images: Tensor, augmentations: Sequence[str], random: Tensor) -> Tensor:
    """`(N, 3, H, W)` in 0..255, each moved and brightened by its own row of `random` `(N, 3)` in -1..1."""
    height, width = images.shape[-2:]
    changed = []
    for image, (down, right, light) in zip(images, random.tolist(), strict=True):
        one = image
        if "shift" in augmentations:
            y, x = round(down * SHIFT * height), round(right * SHIFT * width)
            padded = F.pad(one, [max(x, 0), max(-x, 0), max(y, 0), max(-y, 0)], mode="replicate")
            one = padded[:, max(-y, 0) :, max(-x, 0) :][:, :height, :width]
        if "brighten" in augmentations:
            one = (one * (1 + light * BRIGHTEN)).clamp(0, 255)
        changed.append(one)
    return torch.stack(changed)
