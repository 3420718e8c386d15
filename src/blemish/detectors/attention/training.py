"""Trains the autoencoder by gradient: one process's share of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.attention.config import LAYERS, AttentionConfig, batch_for, epochs_for
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
    mean: Tensor  # (3, 1, 1), of the images, or with `center` = "image" (3, H, W)
    std: Tensor  # (3, 1, 1)
    run: str

    def learner(self, untrained: Learner) -> Learner:
        """A copy that standardises by the images' mean and deviation and whose output starts at their mean; as
        published, with `center` = "image", it subtracts the mean image and starts anywhere."""
        learner = deepcopy(untrained)
        learner.mean.copy_(self.mean)
        if not learner.by_pixel:
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
    image = config.image_size if config.center == "image" else None
    return Learner(net, layers, blur, image=image, published=config.fixed_weights)


def foreign_images(cache: FeatureCache, rows: Tensor) -> list[npt.NDArray[np.uint8]]:
    """The training images that foreign patches are cut from."""
    return [pixels_of(image) for image in cache.tensors[0][rows[:FOREIGN]]]


def train(fabric: Fabric, learner: Learner, job: Job, progress: Progress = silent) -> Records:
    """Trains `learner` in place. Every process has the whole network and a share of each batch."""
    config = job.config
    foreign = foreign_images(job.cache, job.rows)
    has_attention_loss = config.attention_loss != "none"

    def losses(model: nn.Module, chosen: Tensor, epoch: int, *, attend: bool, decode: bool = True) -> _Losses:
        batch = _Batch(*(tensor.to(fabric.device) for tensor in _draw(job, foreign, chosen, epoch)))
        return _losses(model, batch, config, attend=attend, decode=decode)

    def reconstruct(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        attend = has_attention_loss and config.alternate == "no"
        reconstruction, attention = losses(model, chosen, epoch, attend=attend)
        counts = {"reconstruction": reconstruction.detach().sum()}
        if attend:
            counts["attention"] = attention.detach().sum()
        total = (reconstruction + config.attention_weight * attention).sum()
        return Terms(total, reconstruction.new_tensor(float(len(reconstruction))), counts)

    def lower_attention(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        # Every parameter has to take part, or processes would wait for each other, and weight decay would pass some by.
        decode = fabric.world_size > 1 or config.decay > 0
        reconstruction, attention = losses(model, chosen, epoch, attend=True, decode=decode)
        total = (attention + 0 * reconstruction).sum()
        return Terms(total, reconstruction.new_tensor(float(len(reconstruction))), {})

    def adam(rate: float) -> torch.optim.Optimizer:
        parameters = [p for p in learner.parameters() if p.requires_grad]
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=config.decay)

    apart = config.alternate == "last"
    steps = [Step(adam(config.learning_rate), reconstruct, batches="full" if apart else "all")]
    if has_attention_loss and config.alternate != "no":
        # Adam's steps do not depend on a loss's scale, so the weight is applied to the learning rate.
        rate = config.learning_rate * config.attention_weight
        steps.append(Step(adam(rate), lower_attention, "attention", "remainder" if apart else "all"))
    return descend_run(
        job.run,
        replace(config, cycles=1),  # a run of more cycles begins like one of fewer, so it can be resumed from it
        (job.images, job.mean.mean((1, 2)).tolist(), job.std.tolist()),
        learner,
        steps,
        len(job.rows),
        Plan(
            epochs=config.epochs or epochs_for(len(job.rows)),
            batch=batch_for(config, len(job.rows)),
            seed=config.seed,
            one_cycle=config.schedule == "one-cycle",
            cycles=config.cycles,
            remainder=apart,
        ),
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
        jitter = torch.from_numpy(np.stack([random.uniform(-1, 1, 4) for random in generators]))
        images = augment.jitter(torch.stack(turned) * 255, config.augmentations, jitter) / 255
    corrupted, spared = corrupted_images(images, config.corruption, keys, foreign)
    noise = torch.from_numpy(np.stack([random.standard_normal(config.latent, np.float32) for random in generators]))
    return _Batch(images, corrupted, spared, noise)


def _losses(model: nn.Module, batch: _Batch, config: AttentionConfig, *, attend: bool, decode: bool) -> _Losses:
    output, divergence, attentions = model(batch.corrupted, batch.noise, attend, decode)
    reconstruction = config.beta * divergence / config.latent
    if decode:
        reconstruction = reconstruction + reconstruction_loss(parse(config.loss), output, batch.images)
    attention = reconstruction.new_zeros(len(batch.images))
    for maps in attentions:
        spared = F.adaptive_avg_pool2d(batch.spared, maps.shape[1:])[:, 0]  # each cell's share
        attention = attention + attention_loss(maps, spared, config.attention_loss) / len(attentions)
    return _Losses(reconstruction, attention)
