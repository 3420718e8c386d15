"""Distances of the training images as if each had never been seen: to the memory bank without its own item.

They say how far a new good image is from the bank, so they tell what is normal at each place, and they can calibrate
(leave-one-out). Where an item's entries are left out, the entries that the coreset would have chosen in their place
move in (`memory_bank.replacements`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from blemish.detectors.nn.memory_bank import ROWS
from blemish.types import BlemishError, Progress, silent


@dataclass(frozen=True)
class Memory:
    """The patches of good images: `patches` (n, C), the same in fewer dimensions, `points` (n, k), the number of each
    patch's item, `items` (n,) int64, and the rows `kept` (M,) that are the memory bank."""

    patches: Tensor
    points: Tensor
    items: Tensor
    kept: Tensor

    @property
    def bank(self) -> Tensor:
        return self.patches[self.kept]


def left_out_distances(
    memory: Memory,
    patches: Iterable[Tensor],
    items: Tensor,
    instead: Mapping[int, Tensor],
    grid: tuple[int, int],
    progress: Progress = silent,
) -> Tensor:
    """Distances float32 `(N, *grid)` of images, whose `patches` are (P, C) each and whose items are `items` (N,), each
    to the bank without its item. `instead`: the rows that take the place of each item's (`memory_bank.replacements`).

    Raises `BlemishError` where the whole bank comes from one item.
    """
    bank, bank_items = memory.bank, memory.items[memory.kept]
    if (bank_items == bank_items[0]).all():
        raise BlemishError(
            "The whole memory bank comes from one item, so without it nothing would be left to compare with; "
            "add images of other items, raise --coreset, or hold good images out."
        )
    result = torch.empty(len(items), *grid)
    for number, rows in enumerate(progress(patches, "leave one out", len(items))):
        own = bank_items == items[number]
        nearest = _nearest(rows, bank, torch.where(own, torch.inf, 0.0))
        fill = instead.get(int(items[number]))
        if fill is not None and len(fill):
            nearest = torch.minimum(nearest, _nearest(rows, memory.patches[fill]))
        result[number] = nearest.view(grid)
    return result


def _nearest(rows: Tensor, others: Tensor, penalty: Tensor | float = 0.0) -> Tensor:
    """Distances `(P,)` of `rows` (P, C) to the nearest of `others` (M, C), without those with an infinite `penalty`
    (M,). A product finds the nearest, and its distance is then measured: the product's own would be rounded."""
    norms = others.square().sum(1) + penalty
    at = torch.cat([torch.addmm(norms, part, others.T, alpha=-2).argmin(1) for part in torch.split(rows, ROWS)])
    return (rows - others[at]).square().sum(1).sqrt()
