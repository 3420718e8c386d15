"""A classifier with class activation maps (Zhou et al. 2016, "Learning Deep Features for Discriminative
Localization").

A pretrained network ends in global average pooling and one dense layer, and learns from images labelled good or
anomaly, without masks. The dense layer's weights, applied to every cell before the pooling, give each cell's share of
the score: the class activation map (Eq. 2), whose mean is the image's score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blemish.data.content import fingerprint
from blemish.detectors.cam.background import extremes
from blemish.detectors.cam.classifier import CamGraph, Classifier, Score, fit_head
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.cam.layers import Layers, chosen_layers
from blemish.detectors.cam.maps import GradientMap
from blemish.detectors.cam.training import Job, train
from blemish.detectors.interface import Origin
from blemish.detectors.nn import augment, graph_cut
from blemish.detectors.nn.backbones import Backbone, load_backbone
from blemish.detectors.nn.feature_cache import FeatureCache, cache_features
from blemish.detectors.nn.loggers import check
from blemish.detectors.nn.loop import Records, fabric_on, in_processes
from blemish.detectors.nn.memory_bank import NormalPatches, some
from blemish.detectors.nn.provenance import Sources
from blemish.detectors.nn.resampling import Resize, batches, check_device
from blemish.evaluation.evaluate import targets as class_of
from blemish.evaluation.reliability import class_weights, temperature
from blemish.options import check as check_settings
from blemish.types import BlemishError, Progress, Sample, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

State = dict[str, npt.NDArray[np.float32]]
GOOD = "good"


class Cam:
    """The detector. The trunk's outputs are cached, so that fitting again, on other samples, costs the tail alone."""

    def __init__(self, config: CamConfig | None = None) -> None:
        self.config = config = config or CamConfig()
        check_settings(config)
        augment.check(config.augmentations)
        if config.background == "auto" and {"brighten", "tilt"} & set(config.augmentations):
            raise BlemishError(
                "--background auto knows the background by its colour, which brighten and tilt change; omit them, or "
                "--background auto."
            )
        check(config.log, config.checkpoint)
        check_device(config.device)
        chosen = chosen_layers(config)
        self.backbone: Backbone = load_backbone(
            config.backbone,
            layers=chosen.loaded(),
            image_size=config.image_size,
            weights=config.weights,
            random=config.random_weights,
            seed=config.seed,
        )
        self.resize = Resize(*config.image_size)
        self._net = graph_cut.trace(self.backbone, config.image_size, config.padding)
        nodes = dict(zip((tap.layer for tap in self.backbone.taps), graph_cut.outputs(self._net), strict=True))
        self._nodes = {layer: nodes[layer] for layer in sorted(nodes, key=chosen.order.index)}
        self._layers = {layer: nodes[layer] for layer in chosen.pooled}
        self._channels = [tap.channels for layer in chosen.pooled for tap in self.backbone.taps if tap.layer == layer]
        self._grids = [tuple(node.meta["val"].shape[2:]) for node in self._layers.values()]
        self._looks = config.background == "auto"
        self._cut(chosen)
        # Where images change at random, the images themselves are cached, and the trunk runs every time.
        self._caches_images = bool(set(config.augmentations) - set(augment.FINITE))
        self._cache: FeatureCache | None = None
        self._temperature = 1.0
        self.classes: tuple[str, ...] = ()
        self.records: Records = []  # of the training, one an epoch
        self._classifier: Classifier | None = None
        self._normal: NormalPatches | None = None

    def _cut(self, chosen: Layers) -> None:
        """Cuts the network after the last frozen stage, or before the first: `trunk`, and the tail that is trained."""
        images = graph_cut.source(self._net)
        border = self._nodes[chosen.frozen] if chosen.frozen else images
        if chosen.frozen not in chosen.pooled:
            border = graph_cut.past_pooling(border)
        pooled = list(self._layers.values())
        inputs = graph_cut.frontier(border, pooled)
        self.trunk = graph_cut.piece(self._net, [images], inputs).requires_grad_(False)
        self._tail = graph_cut.piece(self._net, inputs, pooled).requires_grad_(True)
        if self.config.unfreeze and not any(True for _ in self._tail.parameters()):
            raise BlemishError(f"{self.config.backbone} learns nothing in its last stages; unfreeze more of them.")
        self._start = {key: value.clone() for key, value in self._tail.state_dict().items()}

    def cache(self, samples: Sequence[Sample], progress: Progress = silent) -> None:
        """Runs the frozen trunk over `samples`, so that `fit`, `scale_temperature` and `cells` need not read them."""
        config = self.config
        self._cache = cache_features(
            samples,
            self.resize,
            (lambda images: (images,)) if self._caches_images else self._before_tail,
            augment.variants(config.augmentations, config.image_size),
            memory=config.memory,
            device=config.device,
            progress=progress,
        )

    def _before_tail(self, images: Tensor) -> Sequence[Tensor]:
        """The classifier's inputs: the frozen trunk's outputs and, where it looks for a background, what finds it."""
        outputs: Sequence[Tensor] = self.trunk.to(self.config.device)(images)
        return (*outputs, extremes(images, self._grids[0])) if self._looks else outputs

    @property
    def origin(self) -> Origin:
        """Of the backbone's weights."""
        return Origin(self.config.backbone, self.backbone.source, self.backbone.licence)

    @property
    def metrics(self) -> dict[str, Any]:
        """For metrics.json."""
        return {"training": self.records}

    def fit(
        self,
        samples: Sequence[Sample],
        progress: Progress = silent,
        *,
        held_out: Sequence[Sample] = (),
        run: str = "classifier",
    ) -> Self:
        """Learns from images called good or anomaly, each time from the pretrained weights. `run` names its checkpoint
        and its log; the temperature is scaled on `held_out`. Raises `BlemishError` where good or defective images are
        missing."""
        config = self.config
        self.classes = self._classes(samples)
        targets = torch.from_numpy(class_of(samples, self.classes))
        weights = self._weights(targets)
        cache = self._cached([*samples, *held_out], progress)
        rows = cache.rows(samples)
        self._tail.load_state_dict(self._start)
        self._classifier = classifier = self.classifier(len(self.classes))
        good = rows[targets == 0]
        if self._looks:
            classifier.find_background(torch.cat([self.inputs(cache, part)[-1] for part in torch.split(good, 32)]))
        if config.deviations:
            with torch.inference_mode():
                chunks = (self.inputs(cache, part) for part in torch.split(good, 32))
                classifier.fit_reference(classifier.layers(*inputs) for inputs in chunks)
        if config.head_first or not config.unfreeze:
            self._fit_head(classifier, self._pooled(classifier, cache, rows), targets, weights)
        self.records, self._temperature, self._normal = [], 1.0, None
        self._good = [sample for sample in samples if self._kind(sample) == GOOD]
        if config.unfreeze:
            classifier.requires_grad_(True)
            images = tuple((sample.name, fingerprint(sample)) for sample in samples)
            self._train(classifier, Job(config, cache, images, rows, targets, weights, run), progress)
        classifier.requires_grad_(False)
        if classifier.skips:
            with torch.no_grad():
                logits = [classifier(*self.inputs(cache, part)) for part in torch.split(good, 32)]
                classifier.normal.copy_(torch.cat(logits).mean(0))
        if held_out:
            self.scale_temperature(held_out, progress)
        return self

    def _fit_head(self, classifier: Classifier, pooled: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Fits the head alone to the pooled features `(n, K)`, standardised."""
        classifier.mean.copy_(pooled.mean(0))
        classifier.std.copy_(pooled.std(0, correction=0).clamp(min=1e-6))
        pooled = (pooled - classifier.mean) / classifier.std
        weight, bias = fit_head(pooled, targets, weights, outputs=classifier.head.out_features)
        classifier.head.load_state_dict({"weight": weight, "bias": bias})

    def _train(self, classifier: Classifier, job: Job, progress: Progress) -> None:
        """Trains head and tail, here or in several processes."""
        device, processes = self.config.device, self.config.processes
        if processes > 1:
            start = {key: value.cpu().numpy() for key, value in classifier.state_dict().items()}
            self.records, state = in_processes(_in_process, job, start, device=device, processes=processes)
            classifier.load_state_dict(state)
        else:
            self.records = train(fabric_on(device), self, classifier, job, progress)

    def classifier(self, classes: int) -> Classifier:
        """The tail with an untrained head, drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            classifier = Classifier(
                self._tail,
                self._channels,
                classes,
                self.config.outputs,
                self.config.moments,
                self._grids if self.config.deviations else (),
                self._looks,
            )
        return classifier.to(self.config.device).eval()

    def scale_temperature(self, samples: Sequence[Sample], progress: Progress = silent) -> float:
        """Temperature scaling of the probabilities on images that were not learned from (Guo et al. 2017). Returns the
        temperature, which stays 1 where a class is missing among them."""
        samples = [sample for sample in samples if self._kind(sample) in self.classes]
        targets = class_of(samples, self.classes)
        counts = np.bincount(targets, minlength=len(self.classes))
        if counts.all():
            logits, _ = self.cells(samples, progress)
            weights = class_weights(counts) if self.config.head_weights == "auto" else None
            self._temperature = temperature(logits.astype(np.float64), targets, weights)
        return self._temperature

    def cells(
        self, samples: Sequence[Sample], progress: Progress = silent
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits `(n, classes)` and maps `(n, h, w)` before they are enlarged. A plain CAM reads the cache."""
        classifier = self._fitted()
        logits: list[Tensor] = []
        maps: list[Tensor] = []
        with torch.inference_mode():
            if self.config.map == "cam":
                classifier.to(self.config.device)  # `graph` takes it to the CPU
                cache = self._cached(samples, progress)
                for rows in torch.split(cache.rows(samples), 32):
                    features, content = classifier.seen(*self.inputs(cache, rows))
                    logits.append(classifier.logits(features, content).cpu())
                    maps.append(classifier.log_odds_cells(features, self.config.contrast, content).cpu())
            else:
                graph = self._graph(None)
                for images in progress(batches(samples, self.resize, 8), "maps", -(-len(samples) // 8)):
                    logits_of, maps_of, *_ = graph.cells(images)
                    logits.append(logits_of)
                    maps.append(maps_of)
        return torch.cat(logits).numpy(), torch.cat(maps).numpy()

    def graph(self) -> CamGraph:
        """uint8 `(N, H, W, 3)` of any size -> float32 scores `(N,)` (log-odds of "not good"), maps `(N, *image_size)`
        in the same units, probabilities `(N, classes)`, with types a map for each, and for the last pooled layer's
        cells, `(N, gh, gw)`, the nearest normal patch, int32, and its distance; on the CPU.

        Raises `RuntimeError` before `fit`, `BlemishError` where the map's gradient cannot be had at its layer.
        """
        return self._graph(self._normal_patches())

    def sources(self) -> Sources:
        """Where each of the normal patches comes from. Raises `RuntimeError` before `fit`."""
        table = self._normal_patches().table
        return Sources(tuple(self._good), table)

    def _normal_patches(self) -> NormalPatches:
        """The memory bank of the good images that were learned from, chosen at the first call."""
        if self._normal is None:
            classifier, cache = self._fitted().to(self.config.device), self._cached(self._good, silent)
            chosen = some(len(self._good))
            with torch.inference_mode(False), torch.no_grad():
                chunks = torch.split(cache.rows(self._good)[chosen], 8)
                features = (classifier.layers(*self.inputs(cache, rows))[-1] for rows in chunks)
                self._normal = NormalPatches.of(features, chosen, seed=self.config.seed)
        return self._normal

    @torch.inference_mode(False)  # whatever mode the caller is in: a map by gradient is differentiated
    def _graph(self, normal: NormalPatches | None) -> CamGraph:
        classifier = self._fitted().cpu()
        pooled = list(self._layers)
        layer = pooled[0] if self.config.map == "cam" else self.config.map_layer or pooled[-1]
        targets = [self._nodes[layer], *self._layers.values()]
        whole = graph_cut.piece(self._net, [graph_cut.source(self._net)], targets).cpu().requires_grad_(False)
        with torch.inference_mode():
            activations = whole(torch.zeros(2, 3, *self.config.image_size))[0]
        fine = None if self.config.map == "cam" else self._gradient_map(classifier, layer, activations.shape)
        return CamGraph(
            self.resize,
            whole,
            classifier.requires_grad_(False),
            (activations.shape[2], activations.shape[3]),
            fine=fine,
            sigma=self.config.sigma,
            contrast=self.config.contrast,
            temperature=self._temperature,
            types=self.config.classes == "types",
            normal=normal,
        ).eval()

    def _gradient_map(self, classifier: Classifier, layer: str, shape: torch.Size) -> GradientMap:
        """The map by gradient at `layer`, whose activations have this shape, of the pooled layers from there on."""
        if len(self.classes) > 2:
            raise BlemishError("a gradient's map needs two classes; with --classes types take --map cam.")
        order = list(self._nodes)
        after = [node for name, node in self._layers.items() if order.index(name) >= order.index(layer)]
        rest = graph_cut.piece(self._net, [self._nodes[layer]], after).cpu().requires_grad_(False)
        score = Score(rest, classifier.requires_grad_(False), len(after))
        return GradientMap(score, torch.zeros(shape), self.config.map)

    def with_map(self, method: str, layer: str = "") -> Cam:
        """The same fitted classifier with another kind of map; `layer` is one that this one was built with."""
        other = copy(self)
        other.config = replace(self.config, map=method, map_layer=layer)
        return other

    def _fitted(self) -> Classifier:
        if self._classifier is None:
            raise RuntimeError("fit the detector first")
        return self._classifier

    def _cached(self, samples: Sequence[Sample], progress: Progress) -> FeatureCache:
        """The cache, made anew where one of `samples` is not in it."""
        if self._cache is None or not all(sample in self._cache for sample in samples):
            self.cache(samples, progress)
        assert self._cache is not None
        return self._cache

    def inputs(
        self, cache: FeatureCache, rows: Tensor, change: Callable[[Tensor], Tensor] = lambda images: images
    ) -> Sequence[Tensor]:
        """The tail's inputs for these rows: from the cache or, where images are cached, from the trunk after
        `change`."""
        cached = [tensor[rows].to(self.config.device) for tensor in cache.tensors]
        if not self._caches_images:
            return cached
        with torch.no_grad():
            return self._before_tail(change(cached[0]))

    def _pooled(self, classifier: Classifier, cache: FeatureCache, rows: Tensor) -> Tensor:
        """The pooled features `(n, K)` of the unchanged images."""
        with torch.inference_mode():
            chunks = (self.inputs(cache, chosen) for chosen in torch.split(rows, 32))
            pooled = [classifier.pooled(*classifier.seen(*inputs)) for inputs in chunks]
        return torch.cat(pooled).cpu().clone()

    def _kind(self, sample: Sample) -> str:
        """The name of its class; images without a label count as good."""
        if sample.label != "anomaly":
            return GOOD
        return (sample.defect or "anomaly") if self.config.classes == "types" else "anomaly"

    def _classes(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """The classes' names, good first. Raises `BlemishError` where there is only one."""
        kinds = {self._kind(sample) for sample in samples}
        if GOOD not in kinds or len(kinds) < 2:
            lacking = "good" if GOOD not in kinds else "defective"
            raise BlemishError(
                f"the classifier learns from good and defective images, and among {len(samples)} there is no "
                f"{lacking} one; add some, or use --detector patchcore, which needs good ones only."
            )
        return (GOOD, *sorted(kinds - {GOOD}))

    def _weights(self, targets: Tensor) -> Tensor:
        """The classes' weights in the loss, `(classes,)` float32."""
        given = self.config.head_weights
        counts = np.bincount(targets, minlength=len(self.classes))
        if isinstance(given, str):
            return torch.from_numpy(class_weights(counts)).float()
        if len(given) != len(counts) or min(given) <= 0:
            raise BlemishError(
                f"--head-weights takes {len(counts)} numbers above 0, one for each of {', '.join(self.classes)}; "
                f"got {', '.join(map(str, given))}."
            )
        return torch.tensor(given, dtype=torch.float32)


def _in_process(fabric: Fabric, job: Job, start: State) -> tuple[Records, dict[str, Tensor]]:
    """One of several training processes. It builds a detector of its own, as a traced network cannot be pickled."""
    detector = Cam(job.config)
    classifier = detector.classifier(len(job.weights))
    classifier.load_state_dict({key: torch.from_numpy(value) for key, value in start.items()})
    classifier.settle()
    return train(fabric, detector, classifier, job), classifier.state_dict()
