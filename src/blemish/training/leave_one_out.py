"""Scores of the very images that taught, as if each one's item had not: for calibrating without holding out.

Each image is judged by PatchCore's graph with the bank entries of its own item masked, everywhere an entry counts:
in the search for the nearest (Eq. 6), and among the neighbours of m* in Eq. 7, where the next nearest entries move up
so that there are b again. That is the graph of the bank without those entries.

It is not quite the detector that would have been learned without the item: the coreset was chosen with it. Where one of
its patches was kept, similar patches of other items were not, and masking it leaves a hole. So these scores are rather
too high than too low, and a threshold made from them is rather too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blemish.detectors.patchcore.detector import PatchCore, PatchCoreGraph
from blemish.inference.framing import Framing
from blemish.training.export import Pixels, in_torch, predict
from blemish.types import BlemishError, Prediction, Progress, Sample, silent


def left_out(
    detector: PatchCore,
    samples: Sequence[Sample],
    groups: Sequence[str],
    progress: Progress = silent,
    *,
    framing: Framing | None = None,
    training_samples: Mapping[str, Sequence[Sample]] | None = None,
) -> Prediction:
    """What the fitted `detector` says of the images `samples` that it learned from, each without its own item.

    `groups` names each one's item, as for `calibration.item_weights` ("" = an item of its own). Where it learned from
    what a `framing` made of them, `lessons` are those by the images' names, and all of an item's are left out.
    `neighbours` in the answer count in the whole bank. Raises `BlemishError` where all images are of one item,
    `ValueError` where `samples` are not those that taught, and `RuntimeError` before `fit`.
    """
    sources = detector.sources()
    items = {s.name: ("item", group) if group else ("", s.name) for s, group in zip(samples, groups, strict=True)}
    images = {s.name: s.name for s in samples}
    if training_samples is not None:
        images = {training_sample.name: name for name in images for training_sample in training_samples[name]}
    if set(images) != set(sources.names):
        raise ValueError("expected the images that the detector was fitted on, all of them")
    places = {item: number for number, item in enumerate(sorted(set(items.values())))}
    if len(places) < 2:
        raise BlemishError(
            f"All {len(samples)} good images are of one item, so without it nothing would be left to compare with; "
            "add images of other items, or hold some out."
        )
    of_entry = np.array([places[items[images[name]]] for name in sources.names])[sources.table[:, 0]]
    graph = _WithoutOwn(detector, of_entry)
    torch_says, turn = in_torch(graph), iter(samples)
    if framing is not None:
        torch_says = framing.wrap(torch_says, batch=1)

    def run(image: Pixels) -> Prediction:
        graph.leave_out(places[items[next(turn).name]])
        return torch_says(image)

    return predict(run, samples, progress, "leave one out")


class _WithoutOwn(torch.nn.Module):
    """PatchCore's graph for one image `(1, H, W, 3)` with some entries of its bank masked."""

    outputs = PatchCoreGraph.outputs

    def __init__(self, detector: PatchCore, items: npt.NDArray[np.integer]) -> None:
        """`items` `(M,)` numbers the item that each entry of the bank comes from."""
        super().__init__()
        graph = detector.graph()
        assert isinstance(graph, PatchCoreGraph)
        self.graph, self.items = graph, torch.from_numpy(items)
        self.half_norms = graph.bank.square().sum(1) / 2
        self.most = detector.config.neighbours  # b of Eq. 7

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
