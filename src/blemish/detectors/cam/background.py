"""An empty background: one colour that surrounds the part in every good image. Its cells say nothing of the part, but
global pooling would let the head use them, and the map would then show heat where there is nothing.

What is empty is decided image by image, against the colour and the tolerance that were found in good images. So
whatever lies on the background, and differs from it, is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST = 16.0  # grey levels that an empty background may differ from its colour: noise, and no texture
MOST = 1_000_000  # cells at most, to find the tolerance with
LEAST = 0.05  # of the cells that must be empty, and that the part must have, in most good images


def extremes(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """The least and the greatest value of each channel in each cell of a grid (h, w): float32 images `(N, C, H, W)` ->
    `(N, 2 C, h, w)`. Where H is no multiple of h, a cell has H / h pixels, rounded, and the last rows are cut off or
    repeated."""
    steps = [max(1, round(size / cells)) for size, cells in zip(images.shape[2:], grid, strict=True)]
    lacking = [cells * step - size for size, cells, step in zip(images.shape[2:], grid, steps, strict=True)]
    cut = images[:, :, : grid[0] * steps[0], : grid[1] * steps[1]]
    whole = F.pad(cut, (0, max(0, lacking[1]), 0, max(0, lacking[0])), mode="replicate") if max(lacking) > 0 else cut
    return torch.cat([-F.max_pool2d(-whole, steps), F.max_pool2d(whole, steps)], 1)


def find(good: Tensor) -> tuple[Tensor, float] | None:
    """Colour `(C,)` and tolerance, in grey levels, of the empty background of good images, from their `extremes`
    `(n, 2 C, h, w)`; None where there is none.

    The colour is the median of the outermost ring of cells. Three quarters of these cells must lie close to it: a ring
    with a pattern, with light that changes, or with parts that reach the border has no one colour. And a surface
    without a part on it is no background."""
    ring = torch.ones(good.shape[2:], dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    low, high = good[:, :, ring].chunk(2, 1)
    colour = ((low + high) / 2).movedim(1, 2).flatten(0, 1).median(0).values
    away = distance(good, colour)
    seen = away[:, 0, ring].flatten()
    tolerance = 1.5 * float(seen[:: -(-len(seen) // MOST)].quantile(0.75)) + 4
    if tolerance > WIDEST:
        return None
    shares = (away > tolerance).float().mean((1, 2, 3))
    usual = float(shares.quantile(0.1)) >= LEAST and float(shares.quantile(0.9)) <= 1 - LEAST
    return (colour, tolerance) if usual else None


def distance(found: Tensor, colour: Tensor) -> Tensor:
    """How far a cell's pixels are from the colour at most, in any channel: `(N, 1, h, w)` grey levels."""
    low, high = found.chunk(2, 1)
    colour = colour[:, None, None]
    return torch.maximum(high - colour, colour - low).amax(1, keepdim=True)


def content(found: Tensor, colour: Tensor, tolerance: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """For each grid (h, w), `(N, 1, h, w)`: 1 where a cell, or a cell of the `extremes` beside it, is not empty, so
    that a part's outline and what has broken off it belong to it; else 0. All are 1 where an image is empty."""
    seen = (distance(found, colour) > tolerance).to(found.dtype)
    seen = torch.maximum(seen, 1 - seen.amax((2, 3), keepdim=True))
    masks = []
    for grid in grids:
        down, across = (_touched(seen.shape[2 + axis], grid[axis]).to(seen) for axis in (0, 1))
        masks.append((down @ seen @ across.T).clamp(max=1))
    return masks


def _touched(fine: int, coarse: int) -> Tensor:
    """`(coarse, fine)`: 1 where a cell of the finer axis overlaps one of the coarser, or lies beside it."""
    cell, wide = torch.arange(fine)[None], torch.arange(coarse)[:, None]  # in units of 1 / (fine * coarse), exactly
    return (((cell + 2) * coarse > wide * fine) & ((cell - 1) * coarse < (wide + 1) * fine)).float()
