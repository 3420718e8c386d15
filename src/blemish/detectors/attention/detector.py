"""An autoencoder with gradient attention (Jiang, Xue & Zou 2023, "Interpretability-Aware Industrial Anomaly Detection
Using Autoencoders"; after Liu et al. 2020, "Towards Visually Explaining Variational Autoencoders").

The autoencoder learns from good images only. Its attention is how much each cell of the encoder contributes to the
latent code, by the code's gradient. Training can push it down on good images, so that it rises where a new image
deviates from them. The decoder gives the reconstruction, whose residual is a second map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from blemish.data.content import fingerprint
from blemish.data.corrupt import corrupt
from blemish.data.split import kfold
from blemish.detectors.attention.config import AttentionConfig, check
from blemish.detectors.attention.corruption import pixels_of
from blemish.detectors.attention.graph import AttentionGraph, channels, mean_image, patch_layer
from blemish.detectors.attention.losses import parse
from blemish.detectors.attention.training import Job, foreign_images, train, train_in_process, untrained
from blemish.detectors.interface import Origin
from blemish.detectors.nn import augment
from blemish.detectors.nn.feature_cache import cache_features
from blemish.detectors.nn.loggers import check as check_log
from blemish.detectors.nn.loop import Records, fabric_on, in_processes
from blemish.detectors.nn.memory_bank import NormalPatches, some
from blemish.detectors.nn.provenance import Sources
from blemish.detectors.nn.resampling import Resize, check_device
from blemish.evaluation.detection import auroc
from blemish.options import check as check_settings
from blemish.types import BlemishError, Progress, Sample, silent

SHARES = (0.0, 0.001, 0.01, 0.1)  # candidates: the score is the mean of this share of the map's highest pixels; 0 = max
COPIES = 4  # synthetic defects for each held-out good image
CHOOSING = 100  # held-out images at most, to choose the score with


class Attention:
    """The detector. `fit` trains the autoencoder; `graph` is then the whole detector as one module."""

    def __init__(self, config: AttentionConfig | None = None) -> None:
        self.config = config = config or AttentionConfig()
        check_settings(config)
        check(config)
        augment.check(config.augmentations)
        parse(config.loss)
        check_log(config.log, config.checkpoint)
        check_device(config.device)
        self.resize = Resize(*config.image_size)
        self._start = untrained(config)
        self.origin = Origin(
            f"{config.model}, {'from ImageNet' if config.pretrained else 'from scratch'}",
            (config.weights.name if config.weights else "torchvision ImageNet weights")
            if config.pretrained
            else "learned from these images alone",
            "BSD-3-Clause (torchvision); ImageNet's images have their own terms"
            if config.pretrained
            else "whose images these are",
        )
        self.classes: tuple[str, ...] = ()
        self.records: Records = []  # of the training, one an epoch
        self.validation: dict[str, float] = {}  # image AUROC of each candidate score on synthetic defects
        self._graph: AttentionGraph | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """For metrics.json."""
        return {"training": self.records, "score": {"share": self.graph().share, "validation": self.validation}}

    def fit(
        self,
        samples: Sequence[Sample],
        progress: Progress = silent,
        *,
        held_out: Sequence[Sample] = (),
        run: str = "attention",
    ) -> Self:
        """Learns from good images. `run` names its checkpoint and its log.

        Raises `BlemishError` when there is no image, one that cannot be read, or when the training diverges.
        """
        if not samples:
            raise BlemishError("an autoencoder needs at least one good image to learn from.")
        config = self.config
        learned, held_out = _split(samples, config)
        cache = cache_features(
            [*learned, *held_out],
            self.resize,
            lambda images: (images / 255,),
            [(0, False)],
            memory=config.memory,
            progress=progress,
        )
        rows = cache.rows(learned)
        mean, std = channels(cache.tensors[0][chosen] for chosen in torch.split(rows, 64))
        if config.center == "image":
            mean = mean_image(cache.tensors[0][chosen] for chosen in torch.split(rows, 64))
            variants = augment.variants(config.augmentations, config.image_size)
            mean = torch.stack([augment.turn(mean, variant) for variant in variants]).mean(0)
        images = tuple((sample.name, fingerprint(sample)) for sample in learned)
        job = Job(config, cache, images, rows, mean, std.clamp(min=1 / 255), run)
        learner = job.learner(self._start)
        if config.untrained:
            self.records = []
        elif config.processes > 1:
            self.records, state = in_processes(train_in_process, job, device=config.device, processes=config.processes)
            learner.load_state_dict(state)
        else:
            self.records = train(fabric_on(config.device), learner, job, progress)
        self._learner, self._cache = learner.cpu().eval().requires_grad_(False), cache
        self._rows, self._held_out = rows, cache.rows(held_out)
        self._choose_normal_patches(learned)
        self._build_graph(progress)
        return self

    def graph(self) -> AttentionGraph:
        """uint8 `(N, H, W, 3)` of any size -> float32 scores `(N,)`, maps `(N, *image_size)` and the reconstructions,
        uint8 `(N, *image_size, 3)`; and for the encoder's cells at about stride 8, `(N, gh, gw)`, the nearest normal
        patch, int32, and its distance; on the CPU. Raises `RuntimeError` before `fit`."""
        if self._graph is None:
            raise RuntimeError("fit the detector before asking for its graph")
        return self._graph

    def sources(self) -> Sources:
        """Where each of the normal patches comes from. Raises `RuntimeError` before `fit`."""
        self.graph()  # refuses before `fit`
        return Sources(tuple(self._good), self._normal.table)

    def shown_as(self, progress: Progress = silent, **changes: str) -> Attention:
        """The same trained network with another `map`, `residual`, `input`, `score` or `standardise`."""
        if unknown := set(changes) - {"map", "residual", "input", "score", "standardise"}:
            raise ValueError(f"{', '.join(unknown)} cannot be changed without training again")
        self.graph()  # refuses before `fit`
        other = copy(self)
        other.config = replace(self.config, **changes)  # type: ignore[arg-type]
        check_settings(other.config)
        check(other.config)
        other._build_graph(progress)
        return other

    @torch.no_grad()
    def _choose_normal_patches(self, learned: Sequence[Sample]) -> None:
        """Builds the memory bank from the encoder's features of the images that were learned from."""
        self._good, chosen = learned, some(len(learned))
        net = self._learner.net
        layer = patch_layer(net, self.config.image_size)
        batches = (self._cache.tensors[0][rows] for rows in torch.split(self._rows[chosen], 16))
        features = (net.encode(self._learner.standard(images), [layer])[1][0] for images in batches)
        self._normal = NormalPatches.of(features, chosen, seed=self.config.seed)

    @torch.inference_mode(False)  # whatever mode the caller is in: the attention is a gradient
    def _build_graph(self, progress: Progress) -> None:
        """Builds the graph, fits its reference to good images, and chooses which share of a map is the score."""
        graph = AttentionGraph(self.config, self.resize, self._learner, self._normal).eval()
        with torch.inference_mode():
            chunks, images = torch.split(self._rows, 16), self._cache.tensors[0]
            graph.fit_reference(lambda what: (images[rows] for rows in progress(chunks, what, len(chunks))))
        self.validation = {}
        if self.config.score == "top":
            graph.share = 0.01
        elif self.config.score == "auto" and len(self._held_out):
            graph.share, self.validation = self._choose(graph)
        self._graph = graph

    def _choose(self, graph: AttentionGraph) -> tuple[float, dict[str, float]]:
        """The share of SHARES whose score best separates held-out good images from copies with synthetic defects, and
        each share's image AUROC."""
        with torch.inference_mode():
            maps = torch.cat([graph.maps(images)[0] for images in self._with_defects()])
        defective = np.tile([False] + [True] * COPIES, len(maps) // (1 + COPIES))
        quality: dict[float, tuple[float, float]] = {}
        for share in SHARES:
            scores = graph.scores(maps, share).numpy().astype(np.float64)
            distance = scores[defective].mean() - scores[~defective].mean()
            # Where several separate all of them, the one that does so by the widest margin.
            margin = distance / (scores[~defective].std() + 1e-12)
            quality[share] = (round(float(auroc(scores, defective)), 3), margin)
        best = max(quality, key=lambda share: quality[share])
        return best, {f"{share:g}": area for share, (area, _) in quality.items()}

    def _with_defects(self) -> Iterator[Tensor]:
        """Of each held-out image `(1 + COPIES, 3, H, W)`: itself, and its copies with synthetic defects."""
        foreign = foreign_images(self._cache, self._rows)
        for number, image in enumerate(self._cache.tensors[0][self._held_out[:CHOOSING]]):
            pixels = pixels_of(image)
            defective = [
                corrupt(pixels, np.random.default_rng((self.config.seed, number, i)), others=foreign).image
                for i in range(COPIES)
            ]
            yield torch.from_numpy(np.stack([pixels, *defective])).permute(0, 3, 1, 2) / 255


def _split(samples: Sequence[Sample], config: AttentionConfig) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The images to learn from, and those of whole items to choose the score with; none where there are too few."""
    folds = round(1 / config.validation) if config.validation > 0 else 0
    items = {sample.item for sample in samples}
    if folds < 2 or len(items) < 2 * folds:
        return tuple(samples), ()
    return kfold([replace(sample, split="") for sample in samples], folds, seed=config.seed)[0]
