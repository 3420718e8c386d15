"""PatchCore's graph without the memory bank's entries of one item: what a bank that never saw the item would say.

The entries are masked everywhere they count: in the search for the nearest (Eq. 6), and among the neighbours of m* in
Eq. 7, where the next nearest entries move up so that there are b again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blemish.detectors.patchcore.detector import PatchCoreGraph
from blemish.types import BlemishError


class WithoutItem(torch.nn.Module):
    """PatchCore's graph for one image `(1, H, W, 3)` with some entries of its bank masked."""

    outputs = PatchCoreGraph.outputs
    gated = PatchCoreGraph.gated

    def __init__(self, graph: PatchCoreGraph, items: Sequence[int], num_neighbours: int) -> None:
        """`items` `(M,)` numbers the item that each entry of the bank comes from; `num_neighbours` is b of Eq. 7."""
        super().__init__()
        self.graph, self.items = graph, torch.from_numpy(np.asarray(items))
        self.half_norms = graph.bank.square().sum(1) / 2
        self.most = num_neighbours

    def leave_out(self, item: int) -> None:
        self.own = self.items == item
        if self.own.all():
            raise BlemishError(
                "The whole memory comes from one item, so without it nothing would be left to compare with; "
                "raise --coreset, or hold good images out."
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        graph, bank = self.graph, self.graph.bank
        patches = graph.features(graph.features.resize(images))[0]  # (P, C)
        nearness = patches @ bank.T - self.half_norms  # see Nearest, which finds the same but for rounding
        nearest = nearness.argmax(1)
        again = self.own[nearest].nonzero()[:, 0]  # few, so that the mask need not be laid over all
        nearest[again] = nearness[again].masked_fill(self.own, -torch.inf).argmax(1)
        distances = (patches - bank[nearest]).square().sum(1).sqrt()
        peak, at = distances.max(0)  # Eq. 6: s*, and m_test,*
        score = peak * self.reweight(patches[at], nearest[at])
        height, width = graph.features.grid
        grid = distances.view(1, height, width)
        return score[None], graph.enlarge(grid), nearest.view(1, height, width).to(torch.int32), grid

    def reweight(self, test: Tensor, star: Tensor) -> Tensor:
        """Eq. 7 with the b nearest of m* (`star`) among the entries that are left, or all of these if they are fewer.

        The graph's own table of neighbours would not do: those of them that are masked leave gaps.
        """
        count = min(self.most, int((~self.own).sum()))
        if count < 2:
            return test.new_ones(())
        bank = self.graph.bank
        apart = torch.cdist(bank[star][None], bank)[0].masked_fill(self.own, torch.inf)
        apart[star] = -1  # itself first, also among identical entries
        around = bank[apart.topk(count, largest=False, sorted=True).indices]  # (b, C)
        return 1 - (test - around).square().sum(1).sqrt().softmax(0)[0]
