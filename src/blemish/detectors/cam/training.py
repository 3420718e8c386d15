"""Trains the classifier by gradient, on the cached outputs of the frozen trunk: one process's share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.cam.classifier import Classifier
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.nn import augment
from blemish.detectors.nn.feature_cache import FeatureCache
from blemish.detectors.nn.loop import Plan, Records, Step, Terms
from blemish.detectors.nn.runs import descend_run
from blemish.types import Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Inputs(Protocol):
    """The detector, as far as the training needs it."""

    def inputs(
        self, cache: FeatureCache, rows: Tensor, change: Callable[[Tensor], Tensor] = ...
    ) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class Job:
    """What a training process is given."""

    config: CamConfig
    cache: FeatureCache
    images: tuple[tuple[str, str], ...]  # of the samples: names, and hashes of their contents
    rows: Tensor  # (n,) of the cache
    targets: Tensor  # (n,)
    weights: Tensor  # (classes,)
    run: str


def train(fabric: Fabric, detector: Inputs, classifier: Classifier, job: Job, progress: Progress = silent) -> Records:
    """Trains `classifier` in place. Every process has the whole classifier and a share of each batch."""
    config = job.config
    random_changes = tuple(set(config.augmentations) - set(augment.FINITE))

    def loss(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        # Drawn for all samples at once, so that a sample's change depends on seed and epoch, not on who has it.
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        variant = torch.randint(job.cache.variants, (len(job.rows),), generator=random)
        drawn = [torch.rand(len(job.rows), count, generator=random) for count in (3, 1)]
        jitter = torch.cat(drawn, 1) * 2 - 1
        chosen = chosen.cpu()
        rows = job.rows[chosen] + variant[chosen]
        inputs = detector.inputs(job.cache, rows, lambda images: augment.jitter(images, random_changes, jitter[chosen]))
        targets = job.targets[chosen].to(fabric.device)
        logits = model(*inputs)
        weights = job.weights.to(fabric.device)
        return Terms(
            F.cross_entropy(logits, targets, weights, reduction="sum"),
            weights[targets].sum(),
            {"right": (logits.detach().argmax(1) == targets).sum().float()},
        )

    adam = torch.optim.AdamW if config.decay else torch.optim.Adam
    classifier.train(False)  # batches are too small to estimate the norms' statistics, so the pretrained ones are used
    return descend_run(
        job.run,
        config,
        (job.images, job.targets.tolist(), job.weights.tolist()),
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
        progress=progress,
    )
