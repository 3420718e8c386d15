"""Gradient attention: what an encoder's latent code responds to, as a map; in training by autograd, in the exported
graph in closed form (backward.py). Liu et al. 2020, Eq. 3 to 5; Jiang, Xue & Zou 2023, section III."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.attention.losses import Residual
from blemish.detectors.attention.models import Autoencoder
from blemish.detectors.nn.gradient_graph import with_gradient
from blemish.detectors.nn.memory_bank import NormalPatches
from blemish.detectors.nn.resampling import Enlarge, Resize

BLUR = 3.0  # deviation in pixels, of --corruption blur
Images = Callable[[str], Iterator[Tensor]]


def attention(features: Tensor, gradient: Tensor) -> Tensor:
    """M = mean_k |alpha_k A_k| with alpha_k = mean_ij(G_k / rms(G)): `(N, h, w)`, never negative.

    `features` A: `(N, K, h, w)`; `gradient` G of the latent code's sum, the same size; or `(N, D, K, h, w)`, of each
    latent number by itself, whose D maps are averaged. G is normalised by each image's own root mean square (Liu et
    al. take the batch's), so that an image's map does not depend on its neighbours.
    """
    size = gradient.square().mean((-3, -2, -1), keepdim=True)
    weights = (gradient / (size + 1e-12).sqrt()).mean((-2, -1), keepdim=True)  # the derivative of sqrt(0) is infinite
    if gradient.ndim == 5:
        return (weights * features[:, None]).abs().mean((1, 2))
    return (weights * features).abs().mean(1)


def attention_loss(found: Tensor, spared: Tensor, kind: str) -> Tensor:
    """Maps `(N, h, w)` -> `(N,)`: the mean over the cells that show good content, `spared` `(N, h, w)` being each
    cell's share of it; "mean-std" takes half their standard deviation off, so that peaks are let be."""
    total = spared.sum((1, 2)).clamp(min=1e-6)
    mean = (found * spared).sum((1, 2)) / total
    if kind == "mean":
        return mean
    variance = ((found - mean[:, None, None]).square() * spared).sum((1, 2)) / total
    return mean - (variance + 1e-12).sqrt() / 2


def gradients(latent: Tensor, features: Sequence[Tensor], *, each: bool) -> Sequence[Tensor]:
    """Of the code `(N, D)` at each of `features`, differentiable in turn: of its sum, the size of the features, or of
    `each` of its numbers, `(N, D, K, h, w)`."""
    if not each:
        return torch.autograd.grad(latent.sum(), list(features), create_graph=True)
    one = torch.eye(latent.shape[1], dtype=latent.dtype, device=latent.device)
    outward = one[:, None].expand(-1, len(latent), -1)  # (D, N, D)
    found = torch.autograd.grad(latent, list(features), outward, create_graph=True, is_grads_batched=True)
    return [gradient.transpose(0, 1) for gradient in found]


class Learner(nn.Module):
    """What is trained: images `(N, 3, H, W)` in 0..1, noise `(N, D)` -> the reconstructions, the code's divergence
    `(N,)`, and where `attend` the attention `(N, h, w)` at each of `layers`."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Autoencoder, layers: Sequence[int], blur: Enlarge | None = None) -> None:
        super().__init__()
        self.net, self.layers, self.blur = net, tuple(layers), blur
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))  # of good images
        self.register_buffer("std", torch.ones(1, 3, 1, 1))

    def forward(self, images: Tensor, noise: Tensor, attend: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        code, said, skipped = self.net.encode(self.standard(images), self.layers)
        latent, divergence = self.net.sampled(code, noise)
        found: list[Tensor] = []
        if attend:
            slopes = gradients(self.net.latent(code), said, each=self.net.variational)
            found = [attention(features, slope) for features, slope in zip(said, slopes, strict=True)]
        return self.net.decode(latent, skipped), divergence, found

    def standard(self, images: Tensor) -> Tensor:
        """What the encoder takes."""
        seen: Tensor = images if self.blur is None else self.blur(images)
        return (seen - self.mean) / self.std


class LayerAttention(nn.Module):
    """Features `(N, K, h, w)` of a layer -> attention `(N, h, w)`, in forward operations alone.

    `shape`: of the features. Raises `BlemishError` where the gradient cannot be written so (see `with_gradient`).
    """

    def __init__(self, net: Autoencoder, layer: int, shape: Sequence[int], latent: int) -> None:
        super().__init__()
        self.numbers = latent if net.variational else 0
        example = torch.zeros(2, *([latent] if self.numbers else []), *shape[1:])
        tail = net.tail(layer)
        self.tail = with_gradient(Each(tail, latent) if self.numbers else tail, example)

    def forward(self, features: Tensor) -> Tensor:
        features = features.contiguous()  # as they were when the gradient was traced
        if not self.numbers:
            return attention(features, self.tail(features)[1])
        repeated = features[:, None].expand(-1, self.numbers, -1, -1, -1)
        return attention(features, self.tail(repeated)[1])


class Each(nn.Module):
    """Features `(N, D, K, h, w)`, the same D times -> `(N, D)` of the code: number d of the d-th, so that the sum's
    gradient at the d-th is that of number d alone."""

    one: Tensor

    def __init__(self, tail: nn.Module, latent: int) -> None:
        super().__init__()
        self.tail = tail
        self.register_buffer("one", torch.eye(latent))

    def forward(self, features: Tensor) -> Tensor:
        code: Tensor = self.tail(features.flatten(0, 1))
        return (code.reshape(-1, *self.one.shape) * self.one).sum(2)


class AttentionGraph(nn.Module):
    """The fitted detector as one module: uint8 `(N, H, W, 3)` of any size -> scores, maps, reconstructions, and with
    `normal`, patches of what layer `patch_layer` says of good images, neighbours and distances."""

    def __init__(
        self,
        config: AttentionConfig,
        resize: Resize,
        learner: Learner,
        normal: NormalPatches | None = None,
    ) -> None:
        super().__init__()
        self.outputs: Sequence[str] = (
            "scores",
            "maps",
            "reconstruction",
            *(["neighbours", "distances"] if normal else []),
        )
        self.normal = normal
        self.patch_layer = patch_layer(learner.net, (resize.height, resize.width))
        self.kind, self.input, self.whole = config.map, config.input, config.standardise == "whole"
        self.gated = self.kind != "residual"  # made of a gradient, see export.prove_parity
        self.share = 0.0  # of the map's pixels whose mean is the score; 0 = the highest alone
        size = (resize.height, resize.width)
        self.resize, self.learner = resize, learner
        self.residual = Residual(config.residual, size)
        self.smooth = Enlarge(size, size, config.sigma)
        self.spread_smooth = Enlarge(size, size, 4.0)
        self.attentions, self.enlarge = nn.ModuleList(), nn.ModuleList()
        if self.gated:
            with torch.no_grad():
                code, said, _ = learner.net.encode(torch.zeros(1, 3, *size), learner.layers)
            latent = learner.net.latent(code).shape[1]
            for layer, features in zip(learner.layers, said, strict=True):
                self.attentions.append(LayerAttention(learner.net, layer, features.shape, latent))
                self.enlarge.append(Enlarge(features.shape[2:], size, config.sigma))
        self.register_buffer("average", torch.zeros(3, *size))  # good image
        self.register_buffer("probe_mean", torch.zeros(3, 1, 1))
        self.register_buffer("probe_std", torch.ones(3, 1, 1))
        for name in ("attention", "residual"):
            self.register_buffer(f"typical_{name}", torch.zeros(size))
            self.register_buffer(f"spread_{name}", torch.ones(size))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps, reconstruction, features = self.maps(self.resize(images) / 255)
        painted = (reconstruction * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return self.scores(maps, self.share), maps, painted, *(self.normal(features) if self.normal else ())

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images `(N, 3, H, W)` in 0..1 -> maps `(N, H, W)` in good images' standard deviations (of the combined
        one: the product of two), the reconstructions like `images`, and the features of `patch_layer`."""
        found, reconstruction, features = self.raw(images)
        standard = {
            name: (values - self.get_buffer(f"typical_{name}")) / self.get_buffer(f"spread_{name}")
            for name, values in found.items()
        }
        if self.kind != "combined":
            return standard[self.kind], reconstruction, features
        # Softened at zero, so that what is usual in one map damps the other and does not turn its sign.
        return F.softplus(standard["attention"]) * F.softplus(standard["residual"]), reconstruction, features

    def raw(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The maps `(N, H, W)` that are needed, before they are standardised, the reconstructions, and the features
        of `patch_layer`."""
        net, found = self.learner.net, {}
        layers = (*self.learner.layers, self.patch_layer)
        code, (*said, features), skipped = net.encode(self.learner.standard(images), layers)
        reconstruction = net.decode(net.latent(code), skipped)
        if self.gated:
            if self.input != "image":
                probe = (self.probe(images, reconstruction) - self.get_buffer("probe_mean")) / self.get_buffer(
                    "probe_std"
                )
                said = net.encode(probe, self.learner.layers)[1]
            each = [
                enlarge(attend(features))
                for attend, enlarge, features in zip(self.attentions, self.enlarge, said, strict=True)
            ]
            found["attention"] = torch.stack(each).mean(0)
        if self.kind != "attention":
            found["residual"] = self.smooth(self.residual(reconstruction, images))
        return found, reconstruction, features

    def probe(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """What the encoder attends to instead of the image, before it is standardised: as published a feature of the
        difference to the average good image, or what the repair took away."""
        if self.input == "difference":
            return ((self.get_buffer("average") - images) ** 3).exp()
        return images - reconstruction

    def scores(self, maps: Tensor, share: float) -> Tensor:
        """`(N,)`: the mean of each map's highest `share`, or with 0 its maximum."""
        flat = maps.flatten(1)
        if share == 0:
            return flat.amax(1)
        return flat.topk(max(1, round(share * flat.shape[1])), 1, sorted=False).values.mean(1)

    def refer_to(self, good: Images) -> None:
        """Sets the average image and the standards; `good(what)` goes through all good images, in batches."""
        if self.gated and self.input == "difference":
            self.get_buffer("average").copy_(_moments(good("average image"))[0])
        if self.gated and self.input != "image":
            learner = self.learner
            code = ((*learner.net.encode(learner.standard(p)), p) for p in good("input"))
            probes = (self.probe(p, learner.net.decode(learner.net.latent(c), skipped)) for c, _, skipped, p in code)
            level, spread = channels(probes)
            self.get_buffer("probe_mean").copy_(level)
            self.get_buffer("probe_std").copy_(spread.clamp(min=1e-6))
        names = [name for name in ("attention", "residual") if self.kind in (name, "combined")]
        mean, spread = _moments(torch.stack([self.raw(p)[0][name] for name in names], 1) for p in good("standards"))
        for name, typical, here in zip(names, mean, spread, strict=True):
            if self.whole:
                overall = (here.square().mean() + typical.var(correction=0)).sqrt()
                typical, here = typical.mean().expand_as(typical), overall.expand_as(here)
            else:  # softened by the usual spread: a few images can agree on a place by chance
                here = self.spread_smooth(here)
                here = here + here.mean() / 2
            self.get_buffer(f"typical_{name}").copy_(typical)
            self.get_buffer(f"spread_{name}").copy_(here + 1e-9)


def patch_layer(net: Autoencoder, size: tuple[int, int]) -> int:
    """The last of the encoder's layers whose stride is nearest to 8, for images of `size` (height, width)."""
    with torch.no_grad():
        said = net.encode(torch.zeros(1, 3, *size), range(len(net.encoder)))[1]
    strides = [size[0] / features.shape[2] for features in said]
    return min(reversed(range(len(strides))), key=lambda layer: abs(math.log(strides[layer] / 8)))


def channels(images: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Each channel's mean and deviation over all places of all images, `(C, 1, 1)` each."""
    mean, spread = _moments(images)
    level = mean.mean((1, 2), keepdim=True)
    return level, (spread.square() + (mean - level).square()).mean((1, 2), keepdim=True).sqrt()


def _moments(batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the first axis of all batches, in float64."""
    count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in batches:
        count += len(batch)
        total = total + batch.double().sum(0)
        squares = squares + batch.double().square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()
