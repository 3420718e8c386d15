"""The classifier that shows where it looked (Zhou et al. 2016, "Learning Deep Features for Discriminative
Localization").

A pretrained network ends in global average pooling and one dense layer, and learns from images that are only called
good or anomaly. The dense layer's weights, applied to every cell before the pooling, then say how much each place
spoke for the anomaly: the class activation map (Eq. 2), whose mean is the image's score.
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

from blemish.detectors.cam.classifier import CamGraph, Classifier, Score, fit_head
from blemish.detectors.cam.config import CamConfig, pooled_by_default
from blemish.detectors.cam.maps import METHODS, GradientMap
from blemish.detectors.cam.training import Job, train
from blemish.detectors.interface import Origin
from blemish.detectors.nn import augment, graph_cut
from blemish.detectors.nn.backbones import Backbone, load_backbone, stages
from blemish.detectors.nn.feature_cache import Kept, keep
from blemish.detectors.nn.loggers import check
from blemish.detectors.nn.loop import (
    Records,
    fabric_on,
    in_processes,
)
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
    """The detector. Trunk outputs are kept by sample, so that fitting again, on other samples, costs the tail alone."""

    def __init__(self, config: CamConfig | None = None) -> None:
        self.config = config = config or CamConfig()
        check_settings(config)
        augment.check(config.augmentations)
        check(config.log, config.checkpoint)
        if config.map not in METHODS:
            raise BlemishError(f"there is no map called '{config.map}'; take one of {', '.join(METHODS)}.")
        check_device(config.device)
        found = stages(config.backbone, config.image_size)
        names = [tap.layer for tap in found]
        layers = config.layers or pooled_by_default(found)
        if unknown := [layer for layer in (*layers, config.map_layer) if layer and layer not in names]:
            raise BlemishError(f"{config.backbone} has no stage {unknown[0]}; its stages are {', '.join(names)}.")
        layers = tuple(sorted(layers, key=names.index))
        last = names.index(layers[-1])
        map_layer = layers[0] if config.map == "cam" else config.map_layer or layers[-1]
        if names.index(map_layer) > last:
            raise BlemishError(
                f"--map-layer {map_layer} comes after the last pooled layer, {layers[-1]}; see --layers."
            )
        if config.map_layer and config.map == "cam":
            raise BlemishError(
                "a plain CAM shows the pooled layers, see --layers; for --map-layer take --map layercam."
            )
        frozen = names[last - config.unfreeze] if config.unfreeze <= last else ""
        self.backbone: Backbone = load_backbone(
            config.backbone,
            layers=tuple(dict.fromkeys(filter(None, (frozen, map_layer, *layers)))),
            image_size=config.image_size,
            weights=config.weights,
            random=config.random_weights,
            seed=config.seed,
        )
        self.resize = Resize(*config.image_size)
        self._net = graph_cut.trace(self.backbone, config.image_size)
        nodes = dict(zip((tap.layer for tap in self.backbone.taps), graph_cut.outputs(self._net), strict=True))
        self._nodes = {layer: nodes[layer] for layer in sorted(nodes, key=names.index)}
        self._layers = {layer: nodes[layer] for layer in layers}
        self._channels = [tap.channels for layer in layers for tap in self.backbone.taps if tap.layer == layer]
        self._grids = [tuple(node.meta["val"].shape[2:]) for node in self._layers.values()]
        # Where images change without end, the images themselves are kept, and the trunk runs every time.
        self._endless = bool(set(config.augmentations) - set(augment.FINITE))
        first = graph_cut.source(self._net)
        border = nodes[frozen] if frozen else first
        inputs = graph_cut.frontier(
            border if frozen in layers else graph_cut.past_pooling(border), list(self._layers.values())
        )
        self.trunk = graph_cut.piece(self._net, [first], inputs).requires_grad_(False)
        self._tail = graph_cut.piece(self._net, inputs, list(self._layers.values())).requires_grad_(True)
        if config.unfreeze and not any(True for _ in self._tail.parameters()):
            raise BlemishError(f"{config.backbone} learns nothing in its last stages; unfreeze more of them.")
        self._start = {key: value.clone() for key, value in self._tail.state_dict().items()}
        self._kept: Kept | None = None
        self._temperature = 1.0
        self.classes: tuple[str, ...] = ()
        self.records: Records = []  # of the training, one an epoch
        self._classifier: Classifier | None = None
        self._normal: NormalPatches | None = None

    def keep(self, samples: Sequence[Sample], progress: Progress = silent) -> None:
        """Runs the frozen trunk over `samples`, once; `fit`, `calibrate` and `cells` then need no image of these."""
        config = self.config
        trunk = self.trunk.to(config.device)
        self._kept = keep(
            samples,
            self.resize,
            (lambda images: (images,)) if self._endless else trunk,
            augment.variants(config.augmentations, config.image_size),
            memory=config.memory,
            device=config.device,
            progress=progress,
        )

    @property
    def origin(self) -> Origin:
        return Origin(self.config.backbone, self.backbone.source, self.backbone.licence)

    @property
    def metrics(self) -> dict[str, Any]:
        return {"training": self.records}

    def fit(
        self,
        samples: Sequence[Sample],
        progress: Progress = silent,
        *,
        held_out: Sequence[Sample] = (),
        run: str = "classifier",
    ) -> Self:
        """Learns from images called good or anomaly, from the pretrained weights on each time. `run` names its
        checkpoint among others in the folder. Raises `BlemishError` where good or defective images are missing."""
        config = self.config
        self.classes = self._classes(samples)
        targets = torch.from_numpy(class_of(samples, self.classes))
        weights = self._weights(targets)
        kept = self._seen([*samples, *held_out], progress)
        rows = kept.rows(samples)
        self._tail.load_state_dict(self._start)
        self._classifier = classifier = self.classifier(len(self.classes))
        if config.deviations:
            good = torch.split(rows[targets == 0], 32)
            with torch.inference_mode():
                classifier.refer_to(self._tail(*self.inputs(kept, some)) for some in good)
        if config.head_first or not config.unfreeze:
            pooled = self._pooled(classifier, kept, rows)
            classifier.mean.copy_(pooled.mean(0))
            classifier.std.copy_(pooled.std(0, correction=0).clamp(min=1e-6))
            pooled = (pooled - classifier.mean) / classifier.std
            weight, bias = fit_head(pooled, targets, weights, outputs=classifier.head.out_features)
            classifier.head.load_state_dict({"weight": weight, "bias": bias})
        self.records, self._temperature, self._normal = [], 1.0, None
        self._good = [sample for sample in samples if self._kind(sample) == GOOD]
        if config.unfreeze:
            classifier.requires_grad_(True)
            names = tuple(sample.name for sample in samples)
            job = Job(config, kept, names, rows, targets, weights, run)
            if config.processes > 1:
                start = {key: value.cpu().numpy() for key, value in classifier.state_dict().items()}
                self.records, state = in_processes(
                    _in_process, job, start, device=config.device, processes=config.processes
                )
                classifier.load_state_dict(state)
            else:
                self.records = train(fabric_on(config.device), self, classifier, job, progress)
        classifier.requires_grad_(False)
        if held_out:
            self.calibrate(held_out, progress)
        return self

    def classifier(self, classes: int) -> Classifier:
        """The tail with an untrained head, drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            found = Classifier(
                self._tail,
                self._channels,
                classes,
                self.config.outputs,
                self.config.moments,
                self._grids if self.config.deviations else (),
            )
        return found.to(self.config.device).eval()

    def calibrate(self, samples: Sequence[Sample], progress: Progress = silent) -> float:
        """Temperature scaling on images that were not learned from (Guo et al. 2017); returns the temperature.

        It stays 1 where a class is missing among them.
        """
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
        """Logits `(n, classes)` and maps `(n, h, w)` before they are enlarged. A plain CAM takes what was kept."""
        classifier = self._fitted()
        logits: list[Tensor] = []
        maps: list[Tensor] = []
        with torch.inference_mode():
            if self.config.map == "cam":
                classifier.to(self.config.device)  # `graph` takes it to the CPU
                kept = self._seen(samples, progress)
                for rows in torch.split(kept.rows(samples), 32):
                    features = classifier.features(*self.inputs(kept, rows))
                    logits.append(classifier.logits(features).cpu())
                    maps.append(classifier.log_odds_cells(features, self.config.contrast).cpu())
            else:
                graph = self._graph(None)
                for images in progress(batches(samples, self.resize, 8), "maps", -(-len(samples) // 8)):
                    found = graph.cells(images)
                    logits.append(found[0])
                    maps.append(found[1])
        return torch.cat(logits).numpy(), torch.cat(maps).numpy()

    def graph(self) -> CamGraph:
        """uint8 `(N, H, W, 3)` of any size -> float32 scores `(N,)` (log-odds of "not good"), maps `(N, *image_size)`
        in the same units, probabilities `(N, classes)`, with types a map for each, and for the last pooled layer's
        cells, `(N, gh, gw)`, the nearest normal patch, int32, and its distance; on the CPU.

        Raises `RuntimeError` before `fit`, `BlemishError` where the map's gradient cannot be had at its layer.
        """
        return self._graph(self._remembered())

    def sources(self) -> Sources:
        """Where each of the normal patches comes from. Raises `RuntimeError` before `fit`."""
        return Sources.of(self._good, self._remembered().table)

    def _remembered(self) -> NormalPatches:
        """Patches of the good images that were learned from, chosen when first asked for."""
        if self._normal is None:
            classifier, kept = self._fitted().to(self.config.device), self._seen(self._good, silent)
            chosen = some(len(self._good))
            with torch.inference_mode(False), torch.no_grad():
                rows = torch.split(kept.rows(self._good)[chosen], 8)
                features = (classifier.tail(*self.inputs(kept, few))[-1] for few in rows)
                self._normal = NormalPatches.of(features, chosen, seed=self.config.seed)
        return self._normal

    @torch.inference_mode(False)  # whatever the caller is about: a gradient's map is differentiated
    def _graph(self, normal: NormalPatches | None) -> CamGraph:
        classifier = self._fitted().cpu()
        pooled = list(self._layers)
        layer = pooled[0] if self.config.map == "cam" else self.config.map_layer or pooled[-1]
        wanted = [self._nodes[layer], *self._layers.values()]
        whole = graph_cut.piece(self._net, [graph_cut.source(self._net)], wanted).cpu().requires_grad_(False)
        with torch.inference_mode():
            activations = whole(torch.zeros(2, 3, *self.config.image_size))[0]
        fine = None
        if self.config.map != "cam":
            if len(self.classes) > 2:
                raise BlemishError("a gradient's map needs two classes; with --classes types take --map cam.")
            order = list(self._nodes)
            after = [node for name, node in self._layers.items() if order.index(name) >= order.index(layer)]
            rest = graph_cut.piece(self._net, [self._nodes[layer]], after).cpu().requires_grad_(False)
            score = Score(rest, classifier.requires_grad_(False), len(after))
            fine = GradientMap(score, torch.zeros(activations.shape), self.config.map)
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

    def with_map(self, method: str, layer: str = "") -> Cam:
        """The same fitted classifier, showing another map: of a layer that this one was built with."""
        other = copy(self)
        other.config = replace(self.config, map=method, map_layer=layer)
        return other

    def _fitted(self) -> Classifier:
        if self._classifier is None:
            raise RuntimeError("fit the detector before asking it")
        return self._classifier

    def _seen(self, samples: Sequence[Sample], progress: Progress) -> Kept:
        if self._kept is None or not all(sample in self._kept for sample in samples):
            self.keep(samples, progress)
        assert self._kept is not None
        return self._kept

    def inputs(self, kept: Kept, rows: Tensor, change: Callable[[Tensor], Tensor] = lambda x: x) -> Sequence[Tensor]:
        """What the tail takes of these rows: what was kept, or, of kept images, what the trunk makes of them after
        `change`."""
        found = [tensor[rows].to(self.config.device) for tensor in kept.tensors]
        if not self._endless:
            return found
        with torch.no_grad():
            inputs: Sequence[Tensor] = self.trunk.to(self.config.device)(change(found[0]))
        return inputs

    def _pooled(self, classifier: Classifier, kept: Kept, rows: Tensor) -> Tensor:
        """`(n, K)` of each image as it is."""
        with torch.inference_mode():
            parts = [
                classifier.pooled(classifier.features(*self.inputs(kept, chosen))) for chosen in torch.split(rows, 32)
            ]
        return torch.cat(parts).cpu().clone()

    def _kind(self, sample: Sample) -> str:
        """The name of its class; images without a label count as good."""
        if sample.label != "anomaly":
            return GOOD
        return (sample.defect or "anomaly") if self.config.classes == "types" else "anomaly"

    def _classes(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """Their names, good first."""
        kinds = {self._kind(sample) for sample in samples}
        if GOOD not in kinds or len(kinds) < 2:
            lacking = "good" if GOOD not in kinds else "defective"
            raise BlemishError(
                f"the classifier learns from good and defective images, and among {len(samples)} there is no "
                f"{lacking} one; add some, or use --detector patchcore, which needs good ones only."
            )
        return (GOOD, *sorted(kinds - {GOOD}))

    def _weights(self, targets: Tensor) -> Tensor:
        """Of each class in the loss `(classes,)` float32."""
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
    """What each of several processes runs: a traced network does not travel between them, so each builds its own."""
    detector = Cam(job.config)
    classifier = detector.classifier(len(job.weights))
    classifier.load_state_dict({key: torch.from_numpy(value) for key, value in start.items()})
    return train(fabric, detector, classifier, job), classifier.state_dict()
