"""The hybrid detector: PatchCore, which knows what is normal, and heads that learn from labelled defects.

Good images fill PatchCore's memory bank, as without defects. The heads learn from the same features, good and
defective, by cross-validation: each is trained without one fold of the images and answers for these, so that what
defects bring is known from images that were not learned from. Where they bring nothing, the detector is PatchCore.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.data.content import fingerprint
from blemish.data.split import kfold
from blemish.detectors.hybrid.combine import Combination, combined, doubtful
from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.hybrid.head import Head, Known, train, untrained
from blemish.detectors.interface import Origin
from blemish.detectors.nn.feature_cache import FeatureCache, cache_features
from blemish.detectors.nn.loggers import check as check_log
from blemish.detectors.nn.loop import fabric_on
from blemish.detectors.nn.moments import mean_and_spread
from blemish.detectors.nn.provenance import Sources
from blemish.detectors.nn.resampling import check_device
from blemish.detectors.patchcore.detector import PatchCore, PatchCoreGraph
from blemish.detectors.patchcore.features import Features
from blemish.images import load_mask, read_size
from blemish.options import check
from blemish.types import BlemishError, Progress, Sample, silent

FEWEST = 3  # defective items: of fewer, cross-validation says nothing
ROWS = 16  # images at a time, where nothing is trained


class Hybrid:
    """The detector. `fit` takes good images and any number of defective ones, with or without masks."""

    classes: tuple[str, ...] = ()

    def __init__(self, config: HybridConfig | None = None) -> None:
        self.config = config = config or HybridConfig()
        check(config)
        check_log(config.log, config.checkpoint)
        check_device(config.device)
        self.metrics: dict[str, Any] = {}
        self._features = Features(config)
        self._patchcore: PatchCore | None = None
        self._heads: list[Head] = []
        self._combination: Combination | None = None

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
        """Learns from good images, and from defective ones (`label` "anomaly") where they help. Images with the same
        `group` show one item.

        Raises `BlemishError` when there is no good image, or one that cannot be read.
        """
        good = [sample for sample in samples if sample.label != "anomaly"]
        bad = [sample for sample in samples if sample.label == "anomaly"]
        if not good:
            raise BlemishError("The hybrid detector needs at least one good image to learn from.")
        folds = min(self.config.heads, _items(good), _items(bad))
        if self.config.use_defects != "no" and folds >= min(FEWEST, self.config.heads):
            cache = self.cache([*good, *bad], progress)
            self.fit_normal(good, progress, cache)
            self.learn(cache, good, bad, progress)
        else:
            self.fit_normal(good, progress)
            self.metrics["defects"] = {"images": len(bad), "used": False, "sentence": _unused(len(bad), self.config)}
        return self

    def fit_normal(
        self, good: Sequence[Sample], progress: Progress = silent, cache: FeatureCache | None = None
    ) -> None:
        """The first half of `fit`: PatchCore learns from good images. `cache` holds their patches."""
        patches = None if cache is None else partial(_rows, cache)
        self._heads, self._combination = [], None
        self._patchcore = PatchCore(self.config, features=self._features, patches=patches).fit(good, progress)
        self.metrics = {**self._patchcore.metrics}

    def learn(
        self, cache: FeatureCache, good: Sequence[Sample], bad: Sequence[Sample], progress: Progress = silent
    ) -> None:
        """The second half of `fit`: trains the heads on the same `good` images and on defective ones, and decides
        whether they take part. `cache` holds the patches of both."""
        known, samples = self._known(cache, good, bad, progress), [*good, *bad]
        folds = min(self.config.heads, _items(good), _items(bad))
        left_out = self._cross_validate(known, samples, folds, progress)
        distances, defective = known.deviations.amax(1).numpy(), known.defective.numpy()
        self._combination = found = combined(distances, left_out, defective, forced=self.config.use_defects == "yes")
        scores = found.distance(distances) + found.weight * found.heads(left_out)
        masks = int((known.defective & known.located).sum())
        self.metrics["suspects"] = doubtful(scores, defective, [sample.name for sample in samples])
        self.metrics["defects"] = {
            "images": len(bad),
            "masks": masks,
            "used": found.weight > 0,
            "weight": found.weight,
            "partial_auroc": {f"{weight:g}": round(area, 4) for weight, area in found.areas.items()},
            "sentence": _sentence(len(bad), masks, found),
        }

    def cache(self, samples: Sequence[Sample], progress: Progress = silent) -> FeatureCache:
        """The patches of every image, computed once."""
        config, features = self.config, self._features.to(self.config.device)
        return cache_features(
            samples,
            features.resize,
            lambda images: [features(images)],
            [(0, False)],
            memory=config.cache,
            batch=config.batch,
            device=config.device,
            progress=progress,
        )

    def _known(self, cache: FeatureCache, good: Sequence[Sample], bad: Sequence[Sample], progress: Progress) -> Known:
        """What the heads are given: of good images the deviations without their own item, as a new image has them."""
        patchcore, samples = self._fitted(), [*good, *bad]
        graph = patchcore.graph()
        with torch.inference_mode():
            new = [graph.compare(rows[None]).deviations for rows in _rows(cache, bad)]
        deviations = torch.cat([patchcore.left_out_deviations(progress), *new]).flatten(1)
        rows = cache.rows(good)
        batches = ([cache.tensors[0][part].flatten(0, 1)] for part in torch.split(rows, ROWS))
        ((mean, std),) = mean_and_spread(batches)
        grid = self._features.grid
        located = [sample.label != "anomaly" or bool(self.config.use_masks and sample.mask) for sample in samples]
        cells = [
            _cells(sample, grid) if where else torch.zeros(grid) for sample, where in zip(samples, located, strict=True)
        ]
        return Known(
            cache.tensors[0],
            cache.rows(samples),
            deviations,
            torch.tensor([sample.label == "anomaly" for sample in samples]),
            torch.stack(cells).flatten(1) > 0,
            torch.tensor(located),
            mean.float(),
            std.float().clamp(min=1e-6),
            ([(sample.name, fingerprint(sample), sample.label) for sample in samples],),
        )

    def _cross_validate(
        self, known: Known, samples: Sequence[Sample], folds: int, progress: Progress
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Trains a head without each fold, and returns its scores `(n,)` of the fold's images."""
        self._heads = []
        row_of = {sample.name: row for row, sample in enumerate(samples)}
        scores = np.zeros(len(samples), np.float32)
        for number, (learned, tested) in enumerate(kfold(samples, folds, seed=self.config.seed)):
            rows, others = (torch.tensor([row_of[sample.name] for sample in part]) for part in (learned, tested))
            head = untrained(known, self.config, number)
            train(fabric_on(self.config.device), head, known, rows, self.config, f"head-{number + 1}", progress)
            head = head.cpu().eval().requires_grad_(False)
            with torch.inference_mode():
                answers = [head(*known.inputs(part))[1] for part in torch.split(others, ROWS)]
            scores[others.numpy()] = torch.cat(answers).numpy()
            self._heads.append(head)
        return scores

    def sources(self) -> Sources:
        """Where each entry of the memory bank comes from. Raises `RuntimeError` before `fit`."""
        return self._fitted().sources()

    def graph(self) -> PatchCoreGraph | HybridGraph:
        """As PatchCore's; scores and maps are in units of the good images' upper tails. It is PatchCore's where
        defects do not help. Raises `RuntimeError` before `fit`."""
        graph, found = self._fitted().graph(), self._combination
        if found is None or not found.weight:
            return graph
        return HybridGraph(graph, self._heads, found).eval()

    def _fitted(self) -> PatchCore:
        if self._patchcore is None:
            raise RuntimeError("fit the detector before asking what it learned")
        return self._patchcore


class HybridGraph(nn.Module):
    """The fitted detector as one module: uint8 `(N, H, W, 3)` of any size -> the tensors named in `outputs`."""

    outputs = ("scores", "maps", "neighbours", "distances")
    gated = False

    def __init__(self, patchcore: PatchCoreGraph, heads: Sequence[Head], combination: Combination) -> None:
        super().__init__()
        self.patchcore, self.heads, self.combination = patchcore, nn.ModuleList(heads), combination

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        patchcore = self.patchcore
        patches = patchcore.features(patchcore.features.resize(images))
        compared = patchcore.compare(patches)
        scores, cells = self.combine(patches, compared.deviations.flatten(1))
        maps = patchcore.enlarge(cells.view_as(compared.deviations))
        return scores, maps, compared.neighbours, compared.distances

    def combine(self, patches: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
        """Patches `(N, P, C)` and their deviations from normal `(N, P)` -> scores `(N,)` and cells `(N, P)` of the
        map."""
        found = self.combination
        answers = [head(patches, deviations) for head in self.heads]
        cells, scores = (torch.stack(part).mean(0) for part in zip(*answers, strict=True))
        joint = found.distance(deviations) + found.weight * found.heads(cells)
        apart = found.distance(deviations.amax(1)) + found.weight * found.heads(scores)
        # Half what both say, wherever in the image they say it, and half where they agree.
        return (apart + joint.amax(1)) / 2, joint


def _items(samples: Sequence[Sample]) -> int:
    return len({sample.group or sample.name for sample in samples})


def _rows(cache: FeatureCache, samples: Sequence[Sample]) -> Iterator[Tensor]:
    """The cached patches `(P, C)` of each sample."""
    for row in cache.rows(samples).tolist():
        yield cache.tensors[0][row]


def _cells(sample: Sample, grid: tuple[int, int]) -> Tensor:
    """`(gh, gw)`: 1 in cells where any pixel of the mask is defective."""
    if sample.mask is None:
        return torch.zeros(grid)
    width, height = read_size(sample.path)
    mask = torch.from_numpy(load_mask(sample.mask, (height, width)).astype(np.float32))
    return F.adaptive_max_pool2d(mask[None], grid)[0]


def _unused(count: int, config: HybridConfig) -> str:
    if not count:
        return "There is no defective training image, so the detector is PatchCore."
    if config.use_defects == "no":
        return "With --use-defects no the detector is PatchCore."
    return (
        f"{count} defective training image{'s' if count > 1 else ''} cannot be checked for whether they help, as they "
        f"show fewer than {FEWEST} items, so the detector is PatchCore; label more."
    )


def _sentence(count: int, masks: int, found: Combination) -> str:
    without, best = found.areas[0.0], max(area for weight, area in found.areas.items() if weight)
    what = f"The {count} defective training images" + (f" ({masks} with masks)" if masks else "")
    if found.weight:
        return (
            f"{what} help: on held-out training images the partial AUROC rises from {without:.3f} to {best:.3f}, so "
            "the detector uses both the distance to normal patches and the heads that learned from defects."
        )
    return (
        f"{what} do not help: on held-out training images the partial AUROC is {without:.3f} without them and at most "
        f"{best:.3f} with them, so the detector is PatchCore."
    )
