"""PatchCore's graph without the memory bank's entries of one item: what a bank that never saw the item would say.

The entries are left out everywhere they count: in the search for the nearest (Eq. 6), and among the neighbours of m* in
Eq. 7, where the next nearest entries move up so that there are b again. Which entries they are is an input of the
graph, so that one exported graph serves all items, with the search in integers that inference uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blemish.detectors.patchcore.detector import PatchCoreGraph
from blemish.types import BlemishError


class WithoutItem(torch.nn.Module):
    """Images uint8 `(N, H, W, 3)`, and what `left_out` gives of one item -> the outputs of `PatchCoreGraph`."""

    outputs = PatchCoreGraph.outputs
    inputs = ("codes", "penalty")
    gated = PatchCoreGraph.gated

    def __init__(self, graph: PatchCoreGraph, items: Sequence[int], num_neighbours: int) -> None:
        """`items` `(M,)` numbers the item that each entry of the bank comes from; `num_neighbours` is b of Eq. 7."""
        super().__init__()
        self.fitted, self.items = graph, torch.from_numpy(np.asarray(items))
        self.num_neighbours = min(num_neighbours, len(graph.bank))

    def left_out(self, item: int) -> tuple[Tensor, Tensor]:
        """The bank's codes without the item's entries, int8 `(K, M)`, and the entries' penalties, float32 `(M,)`."""
        own = self.items == item
        if own.all():
            raise BlemishError(
                "The whole memory bank comes from one item, so without it nothing would be left to compare with; "
                "raise --coreset, or hold good images out."
            )
        return self.fitted.nearest.without(own)

    def forward(self, images: Tensor, codes: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        graph = self.fitted  # a traced module has a `graph` of its own
        patches = graph.features(graph.features.resize(images))  # (N, P, C)
        nearest, distances = graph.nearest.search(patches, codes, penalty)  # (N, P)
        peak, at = distances.max(1)  # Eq. 6: s*, and m_test,*
        scores = peak * self.reweight(patches, nearest, at, penalty)
        grid = distances.reshape(-1, *graph.features.grid)
        return scores, graph.enlarge(grid), nearest.reshape(-1, *graph.features.grid).to(torch.int32), grid

    def reweight(self, patches: Tensor, nearest: Tensor, at: Tensor, penalty: Tensor) -> Tensor:
        """Eq. 7 with the b nearest of m* among the entries that are left, or all of these if they are fewer; 1 where
        m* is the only one."""
        if self.num_neighbours < 2:
            return torch.ones_like(at, dtype=patches.dtype)
        bank = self.fitted.bank
        test = patches.gather(1, at[:, None, None].expand(-1, 1, patches.shape[2]))  # (N, 1, C)
        star = nearest.gather(1, at[:, None])  # (N, 1)
        apart = (bank[star] - bank).square().sum(-1) + penalty  # (N, M)
        apart = torch.where(torch.arange(len(bank)) == star, -1.0, apart)  # itself first, also among identical entries
        nearness, around = apart.topk(self.num_neighbours, largest=False, sorted=True)  # (N, b)
        distances = (test - bank[around]).square().sum(-1).sqrt()
        weights = 1 - torch.where(nearness.isinf(), -torch.inf, distances).softmax(1)[:, 0]
        return torch.where(nearness[:, 1].isinf(), 1.0, weights)
