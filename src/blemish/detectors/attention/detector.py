"""The autoencoder that attends (Jiang, Xue & Zou 2023, "Interpretability-Aware Industrial Anomaly Detection Using
Autoencoders"; after Liu et al. 2020, "Towards Visually Explaining Variational Autoencoders").

An autoencoder learns from good images only. What its latent code responds to, traced back to the encoder's cells by
the code's gradient, is its attention; in training it is pushed down on good images, so that it rises where a new one
departs from them. What the decoder paints is the reconstruction, and how far it is from the one seen a second map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from blemish.data.corrupt import corrupt
from blemish.data.split import kfold
from blemish.detectors.attention.config import LAYERS, AttentionConfig, check, epochs_for
from blemish.detectors.attention.corruption import corrupted_images, pixels_of
from blemish.detectors.attention.graph import BLUR, AttentionGraph, Learner, attention_loss, channels, patch_layer
from blemish.detectors.attention.losses import loss as reconstruction_loss
from blemish.detectors.attention.losses import parse
from blemish.detectors.attention.models import build
from blemish.detectors.interface import Origin
from blemish.detectors.nn import augment
from blemish.detectors.nn.feature_cache import Kept, keep
from blemish.detectors.nn.loggers import check as check_log
from blemish.detectors.nn.loggers import logger
from blemish.detectors.nn.loop import Plan, Records, Step, Terms, descend, fabric_on, identity, in_processes, unlogged
from blemish.detectors.nn.memory_bank import NormalPatches, some
from blemish.detectors.nn.provenance import Sources
from blemish.detectors.nn.resampling import Enlarge, Resize, check_device
from blemish.evaluation.detection import auroc
from blemish.options import check as check_settings
from blemish.types import BlemishError, Progress, Sample, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SHARES = (0.0, 0.001, 0.01, 0.1)  # of the map's pixels whose mean may be the score; 0 = the highest alone
COPIES = 4  # synthetic defects for each good image that was held out
CHOOSING = 100  # images at most that choose the score
FOREIGN = 32  # images that foreign patches are cut from


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
        self._start = _untrained(config)  # refuses layers that there are not
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
        return {"training": self.records, "score": {"share": self.graph().share, "validation": self.validation}}

    def fit(
        self,
        samples: Sequence[Sample],
        progress: Progress = silent,
        *,
        held_out: Sequence[Sample] = (),
        run: str = "attention",
    ) -> Self:
        """Learns from good images. `run` names its checkpoint among others in the folder.

        Raises `BlemishError` when there is no image, one that cannot be read, or a training that diverges.
        """
        if not samples:
            raise BlemishError("an autoencoder needs at least one good image to learn from.")
        config = self.config
        learned, held_out = _held_out(samples, config)
        kept = keep(
            [*learned, *held_out],
            self.resize,
            lambda images: (images / 255,),
            [(0, False)],
            memory=config.memory,
            progress=progress,
        )
        rows = kept.rows(learned)
        mean, std = channels(kept.tensors[0][chosen] for chosen in torch.split(rows, 64))
        names = tuple(sample.name for sample in learned)
        job = _Job(config, kept, names, rows, mean, std.clamp(min=1 / 255), run)
        learner = job.learner(self._start)
        if config.processes > 1:
            self.records, state = in_processes(_in_process, job, device=config.device, processes=config.processes)
            learner.load_state_dict(state)
        else:
            self.records = _train(fabric_on(config.device), learner, job, progress)
        self._learner, self._kept = learner.cpu().eval().requires_grad_(False), kept
        self._rows, self._held_out = rows, kept.rows(held_out)
        self._remember(learned)
        self._look(progress)
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
        return Sources.of(self._good, self._normal.table)

    def shown_as(self, progress: Progress = silent, **changes: str) -> Attention:
        """The same trained network read otherwise: another `map`, `residual`, `input`, `score` or `standardise`."""
        if unknown := set(changes) - {"map", "residual", "input", "score", "standardise"}:
            raise ValueError(f"{', '.join(unknown)} is not a way to read a trained network")
        self.graph()  # refuses before `fit`
        other = copy(self)
        other.config = replace(self.config, **changes)  # type: ignore[arg-type]
        check(other.config)
        other._look(progress)
        return other

    @torch.no_grad()
    def _remember(self, learned: Sequence[Sample]) -> None:
        """Chooses normal patches from what the encoder says of the images that were learned from."""
        self._good, chosen = learned, some(len(learned))
        net = self._learner.net
        layer = patch_layer(net, self.config.image_size)
        images = (self._kept.tensors[0][rows] for rows in torch.split(self._rows[chosen], 16))
        features = (net.encode(self._learner.standard(seen), [layer])[1][0] for seen in images)
        self._normal = NormalPatches.of(features, chosen, seed=self.config.seed)

    @torch.inference_mode(False)  # whatever the caller is about: the attention is a gradient
    def _look(self, progress: Progress) -> None:
        """Builds the graph, and sets in it what depends on good images: standards, and the score's statistic."""
        graph = AttentionGraph(self.config, self.resize, self._learner, self._normal).eval()
        with torch.inference_mode():
            chunks = torch.split(self._rows, 16)
            graph.refer_to(lambda what: (self._kept.tensors[0][rows] for rows in progress(chunks, what, len(chunks))))
        self.validation = {}
        if self.config.score == "top":
            graph.share = 0.01
        elif self.config.score == "auto" and len(self._held_out):
            graph.share, self.validation = self._choose(graph)
        self._graph = graph

    def _choose(self, graph: AttentionGraph) -> tuple[float, dict[str, float]]:
        """The share of SHARES whose score best tells held-out good images from the same with synthetic defects."""
        good = self._kept.tensors[0][self._held_out[:CHOOSING]]
        others = _foreign(self._kept, self._rows)
        maps, labels = [], []
        with torch.inference_mode():
            for number, image in enumerate(good):
                pixels = pixels_of(image)
                bad = [
                    corrupt(pixels, np.random.default_rng((self.config.seed, number, i)), others=others).image
                    for i in range(COPIES)
                ]
                both = torch.from_numpy(np.stack([pixels, *bad])).permute(0, 3, 1, 2) / 255
                maps.append(graph.maps(both)[0])
                labels += [False] + [True] * COPIES
        together, is_bad = torch.cat(maps), np.array(labels)
        found: dict[float, tuple[float, float]] = {}
        for share in SHARES:
            scores = graph.scores(together, share).numpy().astype(np.float64)
            away = scores[is_bad].mean() - scores[~is_bad].mean()
            # Where several tell all apart, the one that does it by the widest margin.
            found[share] = (round(float(auroc(scores, is_bad)), 3), away / (scores[~is_bad].std() + 1e-12))
        best = max(found, key=lambda share: found[share])
        return best, {f"{share:g}": value for share, (value, _) in found.items()}


def _held_out(samples: Sequence[Sample], config: AttentionConfig) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Images to learn from, and whole items to choose the score on; none where there are too few."""
    folds = round(1 / config.validation) if config.validation > 0 else 0
    items = {sample.group or sample.name for sample in samples}
    if folds < 2 or len(items) < 2 * folds:
        return tuple(samples), ()
    return kfold([replace(sample, split="") for sample in samples], folds, seed=config.seed)[0]


def _foreign(kept: Kept, rows: Tensor) -> list[npt.NDArray[np.uint8]]:
    """Training images that foreign patches are cut from."""
    return [pixels_of(image) for image in kept.tensors[0][rows[:FOREIGN]]]


def _untrained(config: AttentionConfig) -> Learner:
    net = build(
        config.model,
        config.image_size,
        width=config.width,
        latent=config.latent,
        seed=config.seed,
        pretrained=config.pretrained,
        weights=config.weights,
    )
    layers = [net.index(name) for name in config.layers or (LAYERS[config.model],)]
    blur = Enlarge(config.image_size, config.image_size, BLUR) if config.corruption == "blur" else None
    return Learner(net, layers, blur)


@dataclass(frozen=True)
class _Job:
    """What a training process is given."""

    config: AttentionConfig
    kept: Kept
    names: tuple[str, ...]  # of the samples
    rows: Tensor  # (n,) into what was kept
    mean: Tensor  # (3, 1, 1), of the images in 0..1
    std: Tensor
    run: str

    def learner(self, untrained: Learner) -> Learner:
        learner = deepcopy(untrained)
        learner.mean.copy_(self.mean)
        learner.std.copy_(self.std)
        learner.net.paint(self.mean.flatten())
        return learner


def _train(fabric: Fabric, learner: Learner, job: _Job, progress: Progress = silent) -> Records:
    """One process's share of the training: every process has the whole network, and a part of each batch."""
    config = job.config
    terms = parse(config.loss)
    variants = augment.variants(config.augmentations, config.image_size)
    foreign = _foreign(job.kept, job.rows)

    def drawn(chosen: Tensor, epoch: int) -> Iterator[Tensor]:
        """Images, the same corrupted, where they were left alone, and noise for a variational code."""
        keys = [(config.seed, epoch, int(index)) for index in chosen]
        rng = [np.random.default_rng((*key, 1)) for key in keys]
        images = job.kept.tensors[0][job.rows[chosen.cpu()]]
        if config.augmentations:
            turned = [
                augment.turn(image, variants[int(r.integers(len(variants)))])
                for image, r in zip(images, rng, strict=True)
            ]
            moved = torch.from_numpy(np.stack([r.uniform(-1, 1, 3) for r in rng]))
            images = augment.jitter(torch.stack(turned) * 255, config.augmentations, moved) / 255
        corrupted, spared = corrupted_images(images, config.corruption, keys, foreign)
        noise = torch.from_numpy(np.stack([r.standard_normal(config.latent, np.float32) for r in rng]))
        return (tensor.to(fabric.device) for tensor in (images, corrupted, spared, noise))

    def said(model: nn.Module, chosen: Tensor, epoch: int, *, attend: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Of each image: its reconstruction's loss, its code's divergence included, and its attention's."""
        images, corrupted, spared, noise = drawn(chosen, epoch)
        reconstruction, divergence, attentions = model(corrupted, noise, attend)
        rebuilt = reconstruction_loss(terms, reconstruction, images) + config.beta * divergence / config.latent
        attention = rebuilt.new_zeros(len(images))
        for found in attentions:
            share = torch.nn.functional.adaptive_avg_pool2d(spared, found.shape[1:])[:, 0]
            attention = attention + attention_loss(found, share, config.attention_loss) / len(attentions)
        return rebuilt, attention, rebuilt.new_tensor(float(len(images)))

    def rebuild(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        attend = not config.alternate and config.attention_loss != "none"
        rebuilt, attention, count = said(model, chosen, epoch, attend=attend)
        counts = {"reconstruction": rebuilt.detach().sum()}
        if attend:
            counts["attention"] = attention.detach().sum()
        return Terms((rebuilt + config.attention_weight * attention).sum(), count, counts)

    def calm(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        rebuilt, attention, count = said(model, chosen, epoch, attend=True)
        # Every parameter has to take part, or processes would wait for each other.
        return Terms((attention + 0 * rebuilt).sum(), count, {})

    def adam(rate: float) -> torch.optim.Optimizer:
        parameters = [p for p in learner.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.decay)

    steps = [Step(adam(config.learning_rate), rebuild)]
    if config.alternate and config.attention_loss != "none":
        # Adam does not care how large a loss is, so its weight is one of the step.
        steps.append(Step(adam(config.learning_rate * config.attention_weight), calm, "attention"))
    first = config.checkpoint if fabric.is_global_zero else None
    log = logger(config.log, first / "log" / job.run, job.run) if first else unlogged
    return descend(
        learner,
        steps,
        len(job.rows),
        Plan(epochs=config.epochs or epochs_for(len(job.rows)), batch=config.batch, seed=config.seed, one_cycle=True),
        fabric=fabric,
        checkpoint=config.checkpoint / f"{job.run}.safetensors" if config.checkpoint else None,
        resume=config.resume,
        identity=identity(config, job.names, job.mean.tolist(), job.std.tolist()),
        log=log,
        progress=progress,
    )


def _in_process(fabric: Fabric, job: _Job) -> tuple[Records, dict[str, Tensor]]:
    """What each of several processes runs."""
    learner = job.learner(_untrained(job.config))
    records = _train(fabric, learner, job)
    return records, learner.state_dict()
