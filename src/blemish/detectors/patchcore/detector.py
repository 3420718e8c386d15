"""PatchCore: a memory bank of normal patches (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly
Detection").

A patch is the mean of p x p cells of a pretrained network's feature map. The patches of good images are subsampled to a
coreset, the memory bank; a new patch is as anomalous as it is far from the bank. How far is normal may depend on the
place (`place`), which the paper does not ask; its weight of the score, Eq. 7, is not used (docs/patchcore.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from blemish.detectors.interface import Origin
from blemish.detectors.nn.memory_bank import IMAGES, greedy_coreset, places, project, replacements
from blemish.detectors.nn.nearest import Nearest
from blemish.detectors.nn.provenance import Sources
from blemish.detectors.nn.resampling import Enlarge, batches, check_device
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.features import Features
from blemish.detectors.patchcore.left_out import Memory, left_out_distances
from blemish.detectors.patchcore.place import (
    FEWEST,
    LIES_STILL,
    Normal,
    eased,
    foreseen,
    left_out_deviations,
    normal,
    varying,
)
from blemish.options import check
from blemish.types import BlemishError, Prediction, Progress, Sample, silent


class PatchCore:
    """The detector. `fit` collects patches, selects the coreset and finds out which distances are normal; `graph` is
    then the whole detector in one module. `patches`, if given, are those of each sample (P, C), computed already."""

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        config: PatchCoreConfig | None = None,
        *,
        features: Features | None = None,
        patches: Callable[[Sequence[Sample]], Iterator[Tensor]] | None = None,
    ) -> None:
        self.config = config or PatchCoreConfig()
        self.metrics: dict[str, Any] = {}
        check(self.config)
        self._memory: Memory | None = None
        self._sources: Sources | None = None
        self._distances = dict[int, Tensor]()  # by the number of the training image, without its item
        self._features = features or Features(self.config)
        self._cached = patches
        self._instead: dict[int, Tensor] | None = None

    def _patches(self, samples: Sequence[Sample], device: str) -> Iterator[Tensor]:
        """The patches `(P, C)` of each sample, computed on the `device` where they are not known."""
        if self._cached:
            yield from self._cached(samples)
            return
        features = self._features.to(device)
        for images in batches(samples, features.resize, self.config.batch, device):
            with torch.inference_mode():
                by_image = features(images.to(device)).cpu()
            yield from by_image

    @property
    def origin(self) -> Origin:
        backbone = self._features.backbone
        return Origin(self.config.backbone, backbone.source, backbone.licence)

    def fit(
        self,
        samples: Sequence[Sample],
        progress: Progress = silent,
        *,
        held_out: Sequence[Sample] = (),  # of classifiers
    ) -> Self:
        """Learns from good images; those with the same `group` show one item. Peak memory is `config.memory` plus a
        constant, however many there are.

        Raises `BlemishError` when there is no image, or one that cannot be read.
        """
        if not samples:
            raise BlemishError("PatchCore needs at least one good image to learn from.")
        config = self.config
        check_device(config.device)
        patches, cells = self._collect(samples, progress)
        grid = self._features.grid
        size = max(1, min(config.max_bank, round(config.coreset * len(samples) * grid[0] * grid[1]), len(patches)))
        points = project(patches.to(config.device), config.projection, config.seed)
        kept = greedy_coreset(points, size, seed=config.seed, progress=progress).cpu()
        self._sources = Sources(tuple(samples), places(kept, cells, grid[1]))
        self._number_of = {key: number for number, key in enumerate(sorted(set(map(_item, samples))))}
        self._items = torch.tensor([self._number_of[_item(sample)] for sample in samples])
        self._instead = None
        self._memory = Memory(patches, points.cpu(), self._items.repeat_interleave(cells.shape[1]), kept)
        self._distances = {}
        self._normal, self._by_place = self._what_is_normal(progress)
        return self

    def _what_is_normal(self, progress: Progress) -> tuple[Normal, bool]:
        """What is normal, and whether it is so by place. One image, or one item, cannot be compared with others: then
        distances stay as they are."""
        # At random: a fixed step might always meet the same tile, or the same view, of every item.
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(self._items), generator=generator)[:IMAGES].sort().values
        self._reference = torch.zeros(len(self._items), dtype=torch.bool).index_fill_(0, chosen, True)
        items = self._items[chosen]
        count = len(set(items.tolist()))
        if not self.compares:
            as_they_are = torch.zeros(self._features.grid)
            return Normal(as_they_are, as_they_are + 1), False
        maps = self._smoothed(chosen, progress)
        cells = varying(maps)
        share, ease = foreseen(cells, items), eased(cells, items)
        helps = share > LIES_STILL and ease < 1
        asked = self.config.place
        by_place = (helps if asked == "auto" else asked == "yes") and count >= FEWEST
        self.metrics["place"] = {
            "asked": asked,
            "used": by_place,
            "foreseen": round(share, 4),
            "eased": round(ease, 4),
        }
        return normal(maps, by_place=by_place), by_place

    def _smoothed(self, chosen: Tensor, progress: Progress) -> Tensor:
        """Smoothed distances `(n, gh, gw)` of the `chosen` training images, each without its own item."""
        sources = self.sources()
        new = [index for index in chosen.tolist() if index not in self._distances]
        if new:
            samples = [sources.samples[index] for index in new]
            found = self._left_out_distances(samples, self._items[new], progress)
            self._distances.update(zip(new, found, strict=True))
        smoothed: Tensor = smoothing(self._features.grid, self.config)(
            torch.stack([self._distances[index] for index in chosen.tolist()])
        )
        return smoothed

    def _left_out_distances(self, samples: Sequence[Sample], items: Tensor, progress: Progress) -> Tensor:
        memory = self._fitted()
        if self._instead is None:
            self._instead = replacements(memory.points, memory.kept, memory.items, progress)
        patches = self._patches(samples, "cpu")  # as the graph computes them
        return left_out_distances(memory, patches, items, self._instead, self._features.grid, progress)

    @property
    def compares(self) -> bool:
        """Whether images can be compared with other items than their own: there are two in the memory bank."""
        memory = self._fitted()
        return len(set(memory.items[memory.kept].tolist())) > 1

    def _fitted(self) -> Memory:
        if self._memory is None:
            raise RuntimeError("fit the detector before asking what it learned")
        return self._memory

    def _collect(self, samples: Sequence[Sample], progress: Progress) -> tuple[Tensor, Tensor]:
        """Patches `(images * each, channels)`, and the cells int32 `(images, each)` that they come from. Every image
        contributes the same number, chosen at random where not all of its patches fit into `config.memory`."""
        config, features = self.config, self._features
        generator = torch.Generator().manual_seed(config.seed)
        cells, channels = features.grid[0] * features.grid[1], features.channels
        budget = int(config.memory * 2**30) // (4 * (channels + config.projection))
        each = min(cells, budget // len(samples))
        if each < 1:
            raise BlemishError(
                f"{len(samples)} images do not fit into {config.memory} GiB of patch memory; raise --memory."
            )
        patches = torch.empty(len(samples) * each, channels)
        origins = torch.arange(each, dtype=torch.int32).repeat(len(samples), 1)
        for number, rows in enumerate(progress(self._patches(samples, config.device), "patches", len(samples))):
            if each < cells:
                chosen = torch.randperm(cells, generator=generator)[:each]
                origins[number], rows = chosen, rows[chosen]
            patches[number * each : (number + 1) * each] = rows
        return patches, origins

    def sources(self) -> Sources:
        """Where each entry of the memory bank comes from. Raises `RuntimeError` before `fit`."""
        if self._sources is None:
            raise RuntimeError("fit the detector before asking for its sources")
        return self._sources

    def graph(self) -> PatchCoreGraph:
        """uint8 `(N, H, W, 3)` of any size -> float32 scores `(N,)` and maps `(N, *image_size)`, both in deviations of
        good images from their mean, and for each cell of the feature grid, `(N, gh, gw)`, the index of the nearest
        entry of the memory bank (`neighbours`), int32, and the distance to it, float32; on the CPU.

        Raises `RuntimeError` before `fit`.
        """
        return PatchCoreGraph(self._features.cpu(), self._fitted().bank, self._normal, self.config).eval()

    def left_out(self, progress: Progress = silent) -> Callable[[int], Prediction]:
        """Gives the prediction of each training image, by its number, as if its item had not been seen: it is left
        out of the memory bank and of what is normal. (What the other images' distances were, and whether places are
        used, may still depend on it a little.)

        Raises `BlemishError` where nothing is left to compare with, `RuntimeError` before `fit`.
        """
        deviations = self.left_out_deviations(progress)
        enlarge = Enlarge(self._features.grid, self.config.image_size, self.config.sigma)

        def of(number: int) -> Prediction:
            one = deviations[number][None]
            distances = self._distances[number][None].numpy()
            return Prediction(scores=one.flatten(1).amax(1).numpy(), maps=enlarge(one).numpy(), distances=distances)

        return of

    def left_out_deviations(self, progress: Progress = silent, others: Sequence[Sample] = ()) -> Tensor:
        """Deviations `(n + m, gh, gw)` of the n training images, each as in `left_out`, and of m others, without those
        training images that show the same item: a defective part may have good images too."""
        smoothed = self._smoothed(torch.arange(len(self.sources().samples)), progress)
        items, reference = self._items, self._reference
        if others:
            for sample in others:
                self._number_of.setdefault(_item(sample), len(self._number_of))
            new = torch.tensor([self._number_of[_item(sample)] for sample in others])
            distances = self._left_out_distances(others, new, progress)
            smoothed = torch.cat([smoothed, smoothing(self._features.grid, self.config)(distances)])
            items = torch.cat([items, new])
            reference = torch.cat([reference, torch.zeros(len(others), dtype=torch.bool)])
        return left_out_deviations(smoothed, items, by_place=self._by_place, reference=reference)[0]


def _item(sample: Sample) -> tuple[str, str]:
    """What tells a sample's item from others."""
    return ("item", sample.group) if sample.group else ("", sample.name)


def smoothing(grid: tuple[int, int], config: PatchCoreConfig) -> Enlarge:
    """Blurs distances `(..., gh, gw)` by `config.smoothing` cells, at the same size."""
    return Enlarge(grid, grid, config.smoothing)


class Compared(NamedTuple):
    """Patches against the memory bank, `(N, gh, gw)` each: deviations from what is normal, the index of the nearest
    entry, int32, and the distance to it."""

    deviations: Tensor
    neighbours: Tensor
    distances: Tensor


class PatchCoreGraph(nn.Module):
    """The fitted detector as one module of plain tensor operations: what torch runs and what becomes ONNX."""

    centre: Tensor
    spread: Tensor
    outputs = ("scores", "maps", "neighbours", "distances")
    gated = False

    def __init__(self, features: Features, bank: Tensor, normal: Normal, config: PatchCoreConfig) -> None:
        super().__init__()
        self.features = features
        self.nearest = Nearest(bank)
        self.smooth = smoothing(features.grid, config)
        self.register_buffer("centre", normal.centre)
        self.register_buffer("spread", normal.spread)
        self.enlarge = Enlarge(features.grid, config.image_size, config.sigma)

    @property
    def bank(self) -> Tensor:
        """`(M, C)`."""
        return self.nearest.bank

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        compared = self.compare(self.features(self.features.resize(images)))
        scores = compared.deviations.flatten(1).amax(1)  # Eq. 6, in deviations
        return scores, self.enlarge(compared.deviations), compared.neighbours, compared.distances

    def compare(self, patches: Tensor) -> Compared:
        """Patches `(N, P, C)` with the memory bank."""
        nearest, distances = self.nearest(patches)  # (N, P)
        grid = distances.unflatten(1, self.features.grid)
        deviations = Normal(self.centre, self.spread).deviations(self.smooth(grid))
        return Compared(deviations, nearest.unflatten(1, self.features.grid).to(torch.int32), grid)
