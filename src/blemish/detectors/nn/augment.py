"""What a part may do without becoming another part: changes of a picture that keep its label.

`rotate` (quarter turns, half turns where pictures are not square) and `flip` are finitely many, so that a frozen trunk
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
MAY = (*FINITE, "shift", "brighten")
SHIFT, BRIGHTEN = 0.05, 0.15


def check(may: Sequence[str]) -> None:
    """Raises `BlemishError` for a change that is not known."""
    for change in may:
        if change not in MAY:
            raise BlemishError(f"a part may {', '.join(MAY)}, but not '{change}'; see --may.")


def variants(may: Sequence[str], size: tuple[int, int]) -> list[tuple[int, bool]]:
    """All (quarter turns, flipped) that pictures of `size` may be seen in; (0, False), the picture itself, is first."""
    turns = range(0, 4, 1 if size[0] == size[1] else 2) if "rotate" in may else [0]
    found = [(turn, flipped) for turn in turns for flipped in ([False, True] if "flip" in may else [False])]
    if "flip" in may and (2, False) not in found:  # upside down: flipped the other way
        found += [(2, True), (2, False)]
    return found


def turn(pictures: Tensor, variant: tuple[int, bool]) -> Tensor:
    """`(..., H, W)` turned by quarters, then mirrored left to right."""
    turned = torch.rot90(pictures, variant[0], (-2, -1)) if variant[0] else pictures
    return turned.flip(-1) if variant[1] else turned


def jitter(pictures: Tensor, may: Sequence[str], random: Tensor) -> Tensor:
    """`(N, 3, H, W)` in 0..255, each moved and brightened by its own row of `random` `(N, 3)` in -1..1."""
    height, width = pictures.shape[-2:]
    changed = []
    for picture, (down, right, light) in zip(pictures, random.tolist(), strict=True):
        one = picture
        if "shift" in may:
            y, x = round(down * SHIFT * height), round(right * SHIFT * width)
            padded = F.pad(one, [max(x, 0), max(-x, 0), max(y, 0), max(-y, 0)], mode="replicate")
            one = padded[:, max(-y, 0) :, max(-x, 0) :][:, :height, :width]
        if "brighten" in may:
            one = (one * (1 + light * BRIGHTEN)).clamp(0, 255)
        changed.append(one)
    return torch.stack(changed)
