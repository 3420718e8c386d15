"""The hybrid detector: PatchCore, which knows what is normal, and heads that learn from labelled defects.

Good images fill PatchCore's memory bank, as without defects. The heads learn from the same features, good and
defective, by cross-validation: each is trained without one fold of the images and answers for these, so that what
defects bring is known from images that were not learned from. Where they bring nothing, the detector is PatchCore.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.data.content import fingerprint
from blemish.data.split import kfold
from blemish.detectors.hybrid.combine import Help, Unit, Units, compared, doubtful
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

FEWEST = 3  # items, good and defective each: of fewer, cross-validation says nothing
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
        self._units: Units | None = None  # None where the heads take no part

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
        cache = None
        if self.config.use_defects != "no" and min(_count(good), _count(bad)) >= FEWEST:
            cache = self.cache([*good, *bad], progress)
        self.fit_normal(good, progress, cache)
        if cache is not None and self._fitted().compares:
            self.learn(cache, good, bad, progress)
        else:
            sentence = _unused(good, bad, self.config)
            self.metrics["defects"] = {"images": len(bad), "used": False, "sentence": sentence}
        return self

    def fit_normal(
        self, good: Sequence[Sample], progress: Progress = silent, cache: FeatureCache | None = None
    ) -> None:
        """The first half of `fit`: PatchCore learns from good images. `cache` holds their patches."""
        patches = None if cache is None else partial(_rows, cache)
        self._heads, self._units = [], None
        self._patchcore = PatchCore(self.config, features=self._features, patches=patches).fit(good, progress)
        self.metrics = {**self._patchcore.metrics}

    def learn(
        self, cache: FeatureCache, good: Sequence[Sample], bad: Sequence[Sample], progress: Progress = silent
    ) -> None:
        """The second half of `fit`: trains the heads on the same `good` images and on defective ones, and decides
        whether they take part. `cache` holds the patches of both."""
        samples = [*good, *bad]
        known = self._known(cache, good, bad, progress)
        answers = self._cross_validate(known, samples, progress)
        distances, defective = known.deviations.amax(1), known.defective.numpy()
        units = Units(Unit.of(distances.numpy()[~defective]), Unit.of(answers.numpy()[~defective]))
        # Of a few heads' map the highest cell says little; the detector has that of the mean of all.
        scores = units.apart(known.deviations, answers).numpy()
        items = [sample.item for sample in samples]
        found = compared(distances.numpy(), scores, defective, items, seed=self.config.seed)
        used = found.clear or self.config.use_defects == "yes"
        self._units = units if used else None
        masks = int((known.defective & known.located).sum())
        if not used:
            scores = distances.numpy()
        self.metrics["suspects"] = doubtful(scores, defective, [sample.name for sample in samples])
        self.metrics["defects"] = {
            "images": len(bad),
            "masks": masks,
            "used": used,
            "partial_auroc": {"without": round(found.without, 4), "with": round(found.with_heads, 4)},
            "sure": found.sure,
            "sentence": _sentence(len(bad), masks, found, used=used),
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
        """What the heads are given. Deviations are those without the image's own item, as a new image has them."""
        samples = [*good, *bad]
        rows = cache.rows(good)
        batches = ([cache.tensors[0][part].flatten(0, 1)] for part in torch.split(rows, ROWS))
        ((mean, std),) = mean_and_spread(batches)
        masked = self.config.use_masks
        cells = torch.stack([_cells(sample, self._features.grid, masked=masked) for sample in samples]).flatten(1) > 0
        defective = torch.tensor([sample.label == "anomaly" for sample in samples])
        return Known(
            cache.tensors[0],
            cache.rows(samples),
            self._fitted().left_out_deviations(progress, bad).flatten(1),
            defective,
            cells,
            ~defective | cells.any(1),
            mean.float(),
            std.float().clamp(min=1e-6),
            (
                [(sample.name, fingerprint(sample), sample.label, sample.group) for sample in samples],
                sha256(cells.numpy().tobytes()).hexdigest(),
            ),
        )

    def _cross_validate(self, known: Known, samples: Sequence[Sample], progress: Progress) -> Tensor:
        """Trains heads without each fold, and returns their mean answers `(n,)` for the fold's images."""
        config, self._heads = self.config, []
        answers = torch.zeros(len(samples))
        for learned, others in _folds(samples, config):
            for _ in range(config.heads):
                number = len(self._heads)
                head = untrained(known, config, number)
                train(fabric_on(config.device), head, known, learned, config, number, progress)
                head = head.cpu().eval().requires_grad_(False)
                with torch.inference_mode():
                    for part in torch.split(others, ROWS):
                        answers[part] += head(*known.inputs(part))[1] / config.heads
                self._heads.append(head)
        return answers

    def sources(self) -> Sources:
        """Where each entry of the memory bank comes from. Raises `RuntimeError` before `fit`."""
        return self._fitted().sources()

    def graph(self) -> PatchCoreGraph | HybridGraph:
        """As PatchCore's; scores and maps are in units of the good images' upper tails. It is PatchCore's where
        defects do not help. Raises `RuntimeError` before `fit`."""
        graph = self._fitted().graph()
        return graph if self._units is None else HybridGraph(graph, self._heads, self._units).eval()

    def _fitted(self) -> PatchCore:
        if self._patchcore is None:
            raise RuntimeError("fit the detector before asking what it learned")
        return self._patchcore


class HybridGraph(nn.Module):
    """The fitted detector as one module: uint8 `(N, H, W, 3)` of any size -> the tensors named in `outputs`."""

    outputs = ("scores", "maps", "neighbours", "distances")
    gated = False

    def __init__(self, patchcore: PatchCoreGraph, heads: Sequence[Head], units: Units) -> None:
        super().__init__()
        self.patchcore, self.heads, self.units = patchcore, nn.ModuleList(heads), units

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
        by_head = [head(patches, deviations) for head in self.heads]
        cells, answers = (torch.stack(part).mean(0) for part in zip(*by_head, strict=True))
        return self.units.join(deviations, cells, answers)


def _count(samples: Sequence[Sample]) -> int:
    return len({sample.item for sample in samples})


def _folds(samples: Sequence[Sample], config: HybridConfig) -> list[tuple[Tensor, Tensor]]:
    """For each head the rows of the images that it learns from, and of those that it is asked about, int64. Items stay
    together, and defect types are spread evenly; but where this leaves a head nothing to learn, as some types have one
    image, only the labels are."""
    defective = torch.tensor([sample.label == "anomaly" for sample in samples])
    good, bad = ([s for s in samples if (s.label == "anomaly") == kind] for kind in (False, True))
    pairs: list[tuple[Tensor, Tensor]] = []
    for types in (True, False):
        # Numbered, as two folders may use the same names.
        rows = [
            replace(s, name=f"{row:09}", group=s.item, defect=(types and s.defect) or "defect" if d else "", split="")
            for row, (s, d) in enumerate(zip(samples, defective.tolist(), strict=True))
        ]
        found = kfold(rows, min(config.head_folds, _count(good), _count(bad)), seed=config.seed)
        pairs = [tuple(torch.tensor([int(s.name) for s in part]) for part in pair) for pair in found]  # type: ignore[misc]
        if all(0 < int(defective[learned].sum()) < len(learned) for learned, _ in pairs):
            break
    return pairs


def _rows(cache: FeatureCache, samples: Sequence[Sample]) -> Iterator[Tensor]:
    """The cached patches `(P, C)` of each sample."""
    for row in cache.rows(samples).tolist():
        yield cache.tensors[0][row]


def _cells(sample: Sample, grid: tuple[int, int], *, masked: bool = True) -> Tensor:
    """`(gh, gw)`: 1 in cells where any pixel of the mask is defective; 0 without a mask."""
    if sample.mask is None or not masked:
        return torch.zeros(grid)
    width, height = read_size(sample.path) if sample.pixels is None else sample.pixels.shape[1::-1]
    mask = torch.from_numpy(load_mask(sample.mask, (height, width)).astype(np.float32))
    return F.adaptive_max_pool2d(mask[None], grid)[0]


def _unused(good: Sequence[Sample], bad: Sequence[Sample], config: HybridConfig) -> str:
    if not bad:
        return "There is no defective training image, so the detector is PatchCore."
    if config.use_defects == "no":
        return "With --use-defects no the detector is PatchCore."
    counts = {"good": _count(good), "defective": _count(bad)}
    kind = min(counts, key=lambda kind: counts[kind])
    if counts[kind] >= FEWEST:
        return (
            "All patches in the memory bank are of one item, so nothing can be compared, and the detector is PatchCore."
        )
    return (
        f"Whether the defects help cannot be checked on {counts[kind]} {kind} items (fewer than {FEWEST}), so the "
        "detector is PatchCore; add some."
    )


def _sentence(count: int, masks: int, found: Help, *, used: bool) -> str:
    what = f"{count} defective training images" + (f" ({masks} with masks)" if masks else "")
    areas = f"the partial AUROC on held-out training images is {found.with_heads:.3f} with heads that learned from them"
    sure = f"and {found.without:.3f} without (higher in {found.sure:.0%} of bootstrap draws)"
    so = "so heads and distances decide together" if used else "so the detector is PatchCore"
    helps = "help" if found.clear else "do not clearly help"
    return f"The {what} {helps}: {areas} {sure}, {so}."
