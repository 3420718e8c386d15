"""Trains the autoencoder by gradient: one process's share of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.attention.config import LAYERS, AttentionConfig, epochs_for
from blemish.detectors.attention.corruption import corrupted_images, pixels_of
from blemish.detectors.attention.graph import BLUR, Learner, attention_loss
from blemish.detectors.attention.losses import loss as reconstruction_loss
from blemish.detectors.attention.losses import parse
from blemish.detectors.attention.models import build
from blemish.detectors.nn import augment
from blemish.detectors.nn.feature_cache import FeatureCache
from blemish.detectors.nn.loop import Plan, Records, Step, Terms
from blemish.detectors.nn.resampling import Enlarge
from blemish.detectors.nn.runs import descend_run
from blemish.types import Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FOREIGN = 32  # images that foreign patches are cut from


@dataclass(frozen=True)
class Job:
    """What a training process is given."""

    config: AttentionConfig
    cache: FeatureCache  # of images in 0..1
    images: tuple[tuple[str, str], ...]  # of the samples: names, and hashes of their contents
    rows: Tensor  # (n,) of the cache
    mean: Tensor  # (3, 1, 1), of the images
    std: Tensor
    run: str

    def learner(self, untrained: Learner) -> Learner:
        """A copy that standardises by the images' mean and deviation, and whose output starts at their mean."""
        learner = deepcopy(untrained)
        learner.mean.copy_(self.mean)
        learner.std.copy_(self.std)
        learner.net.start_from(self.mean.flatten())
        return learner


def untrained(config: AttentionConfig) -> Learner:
    """The network of `config`, drawn from its seed. Raises `BlemishError` for a layer that it has not."""
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


def foreign_images(cache: FeatureCache, rows: Tensor) -> list[npt.NDArray[np.uint8]]:
    """The training images that foreign patches are cut from."""
    return [pixels_of(image) for image in cache.tensors[0][rows[:FOREIGN]]]


def train(fabric: Fabric, learner: Learner, job: Job, progress: Progress = silent) -> Records:
    """Trains `learner` in place. Every process has the whole network and a share of each batch."""
    config = job.config
    foreign = foreign_images(job.cache, job.rows)
    has_attention_loss = config.attention_loss != "none"

    def losses(model: nn.Module, chosen: Tensor, epoch: int, *, attend: bool) -> _Losses:
        batch = _Batch(*(tensor.to(fabric.device) for tensor in _draw(job, foreign, chosen, epoch)))
        return _losses(model, batch, config, attend=attend)

    def reconstruct(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        attend = has_attention_loss and not config.alternate
        reconstruction, attention = losses(model, chosen, epoch, attend=attend)
        counts = {"reconstruction": reconstruction.detach().sum()}
        if attend:
            counts["attention"] = attention.detach().sum()
        total = (reconstruction + config.attention_weight * attention).sum()
        return Terms(total, reconstruction.new_tensor(float(len(reconstruction))), counts)

    def lower_attention(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        reconstruction, attention = losses(model, chosen, epoch, attend=True)
        # Every parameter has to take part, or processes would wait for each other.
        total = (attention + 0 * reconstruction).sum()
        return Terms(total, reconstruction.new_tensor(float(len(reconstruction))), {})

    def adam(rate: float) -> torch.optim.Optimizer:
        parameters = [p for p in learner.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.decay)

    steps = [Step(adam(config.learning_rate), reconstruct)]
    if has_attention_loss and config.alternate:
        # Adam's steps do not depend on a loss's scale, so the weight is applied to the learning rate.
        steps.append(Step(adam(config.learning_rate * config.attention_weight), lower_attention, "attention"))
    return descend_run(
        job.run,
        config,
        (job.images, job.mean.tolist(), job.std.tolist()),
        learner,
        steps,
        len(job.rows),
        Plan(epochs=config.epochs or epochs_for(len(job.rows)), batch=config.batch, seed=config.seed, one_cycle=True),
        fabric=fabric,
        progress=progress,
    )


def train_in_process(fabric: Fabric, job: Job) -> tuple[Records, dict[str, Tensor]]:
    """One of several training processes."""
    learner = job.learner(untrained(job.config))
    records = train(fabric, learner, job)
    return records, learner.state_dict()


class _Batch(NamedTuple):
    images: Tensor  # (n, 3, H, W) in 0..1
    corrupted: Tensor
    spared: Tensor  # (n, 1, H, W), 1 where nothing was corrupted
    noise: Tensor  # (n, D), for a variational code


class _Losses(NamedTuple):
    reconstruction: Tensor  # (n,), with the code's divergence
    attention: Tensor  # (n,), 0 where it is not asked for


def _draw(job: Job, foreign: Sequence[npt.NDArray[np.uint8]], chosen: Tensor, epoch: int) -> _Batch:
    """The chosen samples, augmented and corrupted. All randomness follows from seed, epoch and sample."""
    config = job.config
    variants = augment.variants(config.augmentations, config.image_size)
    keys = [(config.seed, epoch, int(index)) for index in chosen]
    generators = [np.random.default_rng((*key, 1)) for key in keys]
    images = job.cache.tensors[0][job.rows[chosen.cpu()]]
    if config.augmentations:
        turned = [
            augment.turn(image, variants[int(random.integers(len(variants)))])
            for image, random in zip(images, generators, strict=True)
        ]
        jitter = torch.from_numpy(np.stack([random.uniform(-1, 1, 3) for random in generators]))
        images = augment.jitter(torch.stack(turned) * 255, config.augmentations, jitter) / 255
    corrupted, spared = corrupted_images(images, config.corruption, keys, foreign)
    noise = torch.from_numpy(np.stack([random.standard_normal(config.latent, np.float32) for random in generators]))
    return _Batch(images, corrupted, spared, noise)


def _losses(model: nn.Module, batch: _Batch, config: AttentionConfig, *, attend: bool) -> _Losses:
    output, divergence, attentions = model(batch.corrupted, batch.noise, attend)
    reconstruction = reconstruction_loss(parse(config.loss), output, batch.images)
    reconstruction = reconstruction + config.beta * divergence / config.latent
    attention = reconstruction.new_zeros(len(batch.images))
    for maps in attentions:
        spared = F.adaptive_avg_pool2d(batch.spared, maps.shape[1:])[:, 0]  # each cell's share
        attention = attention + attention_loss(maps, spared, config.attention_loss) / len(attentions)
    return _Losses(reconstruction, attention)
