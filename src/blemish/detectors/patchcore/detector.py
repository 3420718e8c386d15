"""PatchCore: a memory bank of normal patches (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly
Detection").

A patch is the mean of p x p cells of a pretrained network's feature map. The patches of good images are subsampled to a
coreset, the memory bank; a new patch is as anomalous as it is far from the bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.interface import Origin
from blemish.detectors.nn.backbones import load_backbone
from blemish.detectors.nn.memory_bank import as_rows, aware, greedy_coreset, places
from blemish.detectors.nn.nearest import Nearest
from blemish.detectors.nn.provenance import Sources
from blemish.detectors.nn.resampling import Enlarge, Resize, batches, check_device
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.options import check
from blemish.types import BlemishError, Progress, Sample, silent

if TYPE_CHECKING:
    from blemish.detectors.patchcore.leave_one_out import WithoutItem


class PatchCore:
    """The detector. `fit` collects patches and selects the coreset; `graph` is then the whole detector in one
    module."""

    classes: tuple[str, ...] = ()

    def __init__(self, config: PatchCoreConfig | None = None) -> None:
        self.config = config or PatchCoreConfig()
        self.metrics: dict[str, Any] = {}
        check(self.config)
        self._bank: Tensor | None = None
        self._sources: Sources | None = None
        self._features = Features(self.config)

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
        """Learns from good images. Peak memory is `config.memory` plus a constant, however many there are.

        Raises `BlemishError` when there is no image, or one that cannot be read.
        """
        if not samples:
            raise BlemishError("PatchCore needs at least one good image to learn from.")
        config = self.config
        check_device(config.device)
        patches, cells = self._collect(samples, progress)
        grid = self._features.grid
        size = max(1, min(config.max_bank, round(config.coreset * len(samples) * grid[0] * grid[1]), len(patches)))
        kept = greedy_coreset(
            patches.to(config.device), size, projection=config.projection, seed=config.seed, progress=progress
        )
        self._bank = patches[kept.cpu()]
        self._sources = Sources(tuple(samples), places(kept, cells, grid[1]))
        return self

    def _collect(self, samples: Sequence[Sample], progress: Progress) -> tuple[Tensor, Tensor]:
        """Patches `(images * each, channels)`, and the cells int32 `(images, each)` that they come from. Every image
        contributes the same number, chosen at random where not all of its patches fit into `config.memory`."""
        config, features = self.config, self._features.to(self.config.device)
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
        done = 0
        images = batches(samples, features.resize, config.batch, config.device)
        for batch in progress(images, "patches", -(-len(samples) // config.batch)):
            with torch.inference_mode():
                by_image = features(batch.to(config.device)).cpu()
            for rows in by_image:
                if each < cells:
                    chosen = torch.randperm(cells, generator=generator)[:each]
                    origins[done], rows = chosen, rows[chosen]
                patches[done * each : (done + 1) * each] = rows
                done += 1
        return patches, origins

    def sources(self) -> Sources:
        """Where each entry of the memory bank comes from. Raises `RuntimeError` before `fit`."""
        if self._sources is None:
            raise RuntimeError("fit the detector before asking for its sources")
        return self._sources

    def graph(self) -> PatchCoreGraph:
        """uint8 `(N, H, W, 3)` of any size -> float32 scores `(N,)` and maps `(N, *image_size)`, and for each cell of
        the feature grid, `(N, gh, gw)`, the index of the nearest entry of the memory bank (`neighbours`), int32, and
        the distance to it, float32; on the CPU.

        Raises `RuntimeError` before `fit`.
        """
        if self._bank is None:
            raise RuntimeError("fit the detector before asking for its graph")
        return PatchCoreGraph(self._features.cpu(), self._bank, self.config).eval()

    def without(self, items: Sequence[int]) -> WithoutItem:
        """The fitted detector with the bank entries of one item left out at a time; `items` (M,) numbers the item that
        each entry comes from."""
        from blemish.detectors.patchcore.leave_one_out import WithoutItem

        return WithoutItem(self.graph(), items, self.config.num_neighbours)


class Features(nn.Module):
    """Resized float32 images `(N, 3, H, W)` -> locally aware patch features `(N, cells, channels)`, row by row."""

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__()
        height, width = config.image_size
        self.resize = Resize(height, width)
        self.backbone = load_backbone(
            config.backbone,
            layers=config.layers,
            image_size=config.image_size,
            weights=config.weights,
            random=config.random_weights,
            seed=config.seed,
        )
        self.patch_size = config.patch_size
        self.channels = sum(tap.channels for tap in self.backbone.taps)
        with torch.inference_mode():
            first = self.backbone(torch.zeros(1, 3, height, width))[0]
        self.grid: tuple[int, int] = (first.shape[2], first.shape[3])

    def forward(self, images: Tensor) -> Tensor:
        maps = []
        for features in self.backbone(images):
            patches = aware(features, self.patch_size)
            if patches.shape[2:] != self.grid:  # deeper taps are enlarged to the finest grid (section 3.1)
                patches = F.interpolate(patches, self.grid, mode="bilinear", align_corners=False)
            maps.append(patches)
        return as_rows(torch.cat(maps, 1))


class PatchCoreGraph(nn.Module):
    """The fitted detector as one module of plain tensor operations: what torch runs and what becomes ONNX."""

    support: Tensor
    outputs = ("scores", "maps", "neighbours", "distances")
    gated = False

    def __init__(self, features: Features, bank: Tensor, config: PatchCoreConfig) -> None:
        super().__init__()
        self.features = features
        self.nearest = Nearest(bank)
        self.register_buffer("support", nearest_in_bank(bank, min(config.num_neighbours, len(bank))))  # (M, b)
        self.enlarge = Enlarge(features.grid, config.image_size, config.sigma)

    @property
    def bank(self) -> Tensor:
        """`(M, C)`."""
        return self.nearest.bank

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        patches = self.features(self.features.resize(images))  # (N, P, C)
        nearest, distances = self.nearest(patches)  # (N, P)
        peak, at = distances.max(1)  # Eq. 6: s*, and m_test,*
        scores = peak * self.reweight(patches, nearest, at)
        grid = distances.unflatten(1, self.features.grid)
        return scores, self.enlarge(grid), nearest.unflatten(1, self.features.grid).to(torch.int32), grid

    def reweight(self, patches: Tensor, nearest: Tensor, at: Tensor) -> Tensor:
        """Eq. 7: the score is lower where m* itself is a rare patch, far from its `num_neighbours` nearest entries."""
        if self.support.shape[1] < 2:
            return torch.ones_like(at, dtype=patches.dtype)
        test = patches.gather(1, at[:, None, None].expand(-1, 1, patches.shape[2]))  # (N, 1, C)
        around = self.bank[self.support[nearest.gather(1, at[:, None]).squeeze(1)]]  # (N, num_neighbours, C), m* first
        return 1 - (test - around).square().sum(-1).sqrt().softmax(1)[:, 0]


def nearest_in_bank(bank: Tensor, num_neighbours: int) -> Tensor:
    """`(M, num_neighbours)`: N_b of Eq. 7, the indices of each bank entry's nearest entries, itself first."""
    table = torch.empty(len(bank), num_neighbours, dtype=torch.long)
    for start in range(0, len(bank), 1024):
        distances = torch.cdist(bank[start : start + 1024], bank)
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = -1  # itself first, also among identical entries
        table[start : start + 1024] = distances.topk(num_neighbours, largest=False, sorted=True).indices
    return table
