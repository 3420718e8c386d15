"""How the classifier is trained by gradient: one process's share, on what the frozen trunk made of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.cam.classifier import Classifier
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.nn import augment
from blemish.detectors.nn.feature_cache import Kept
from blemish.detectors.nn.loggers import logger
from blemish.detectors.nn.loop import Log, Plan, Records, Step, Terms, descend, identity, unlogged
from blemish.types import Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Inputs(Protocol):
    """What the training asks of the detector."""

    def inputs(self, kept: Kept, rows: Tensor, change: Callable[[Tensor], Tensor] = ...) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class Job:
    """What a training process is given."""

    config: CamConfig
    kept: Kept
    names: tuple[str, ...]  # of the samples
    rows: Tensor  # (n,) into what was kept
    targets: Tensor  # (n,)
    weights: Tensor  # (classes,)
    run: str

    @property
    def checkpoint(self) -> Path | None:
        return self.config.checkpoint / f"{self.run}.safetensors" if self.config.checkpoint else None

    def log(self) -> Log:
        folder = self.config.checkpoint
        return logger(self.config.log, folder / "log" / self.run, self.run) if folder else unlogged


def train(fabric: Fabric, detector: Inputs, classifier: Classifier, job: Job, progress: Progress = silent) -> Records:
    """One process's share of the training: every process has the whole classifier, and a part of each batch."""
    config = job.config
    augmentations = tuple(set(config.augmentations) - set(augment.FINITE))

    def loss(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        # Drawn for all samples at once, so that a sample's change depends on seed and epoch, not on who sees it.
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        variant = torch.randint(job.kept.variants, (len(job.rows),), generator=random)
        moved = torch.rand(len(job.rows), 3, generator=random) * 2 - 1
        chosen = chosen.cpu()
        rows = job.rows[chosen] + variant[chosen]
        inputs = detector.inputs(job.kept, rows, lambda images: augment.jitter(images, augmentations, moved[chosen]))
        targets = job.targets[chosen].to(fabric.device)
        logits = model(*inputs)
        weights = job.weights.to(fabric.device)
        return Terms(
            F.cross_entropy(logits, targets, weights, reduction="sum"),
            weights[targets].sum(),
            {"right": (logits.detach().argmax(1) == targets).sum().float()},
        )

    adam = torch.optim.AdamW if config.decay else torch.optim.Adam
    classifier.train(False)  # a batch is too small to estimate its norms; those of the pretraining stay
    return descend(
        classifier,
        [Step(adam(classifier.parameters(), lr=config.learning_rate, weight_decay=config.decay), loss)],
        len(job.rows),
        Plan(
            epochs=config.epochs,
            batch=config.batch,
            seed=config.seed,
            one_cycle=config.one_cycle,
            stop=lambda record: record["right"] >= config.stop_at,
        ),
        fabric=fabric,
        checkpoint=job.checkpoint,
        resume=config.resume,
        identity=identity(config, job.names, job.targets.tolist(), job.weights.tolist()),
        log=job.log() if fabric.is_global_zero else unlogged,
        progress=progress,
    )
