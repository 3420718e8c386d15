"""Gradient attention: how much each cell of an encoder contributes to the latent code, as a map (Liu et al. 2020, Eq. 3
to 5; Jiang, Xue & Zou 2023, section III). The gradient is autograd's in training, and a forward operation in the
exported graph (nn/gradient_graph.py)."""

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
from blemish.detectors.nn.moments import mean_and_spread
from blemish.detectors.nn.resampling import Enlarge, Resize

BLUR = 3.0  # standard deviation in pixels, of --corruption blur
Images = Callable[[str], Iterator[Tensor]]


def attention(features: Tensor, gradient: Tensor, *, published: bool = False) -> Tensor:
    """M = mean_k |alpha_k A_k| with alpha_k = mean_ij(G_k / rms(G)): `(N, h, w)`, never negative.

    `features` A: `(N, K, h, w)`; `gradient` G of the latent code's sum, the same size; or `(N, D, K, h, w)`, of each
    latent number by itself, whose D maps are averaged. G is normalised by each image's own root mean square, so that an
    image's map does not depend on the rest of its batch. `published`: by the batch's, as Liu et al. and Jiang et al.
    do, and as constants through which nothing is differentiated.
    """
    if published:
        gradient = gradient.detach()
    size = gradient.square().mean(None if published else (-3, -2, -1), keepdim=True)
    weights = (gradient / (size + 1e-12).sqrt()).mean((-2, -1), keepdim=True)  # the derivative of sqrt(0) is infinite
    if gradient.ndim == 5:
        return (weights * features[:, None]).abs().mean((1, 2))
    return (weights * features).abs().mean(1)


def attention_loss(maps: Tensor, spared: Tensor, kind: str) -> Tensor:
    """Maps `(N, h, w)` -> `(N,)`: the mean over the cells, weighted by `spared` `(N, h, w)`, each cell's share of
    uncorrupted content; "mean-std" subtracts half their standard deviation, which tolerates peaks."""
    total = spared.sum((1, 2)).clamp(min=1e-6)
    mean = (maps * spared).sum((1, 2)) / total
    if kind == "mean":
        return mean
    variance = ((maps - mean[:, None, None]).square() * spared).sum((1, 2)) / total
    return mean - (variance + 1e-12).sqrt() / 2


def gradients(latent: Tensor, features: Sequence[Tensor], *, each: bool) -> Sequence[Tensor]:
    """Gradients of the code `(N, D)` at each of `features`, themselves differentiable: of the code's sum, in the size
    of the features, or of `each` of its numbers, `(N, D, K, h, w)`."""
    if not each:
        return torch.autograd.grad(latent.sum(), list(features), create_graph=True)
    one = torch.eye(latent.shape[1], dtype=latent.dtype, device=latent.device)
    outward = one[:, None].expand(-1, len(latent), -1)  # (D, N, D)
    by_number = torch.autograd.grad(latent, list(features), outward, create_graph=True, is_grads_batched=True)
    return [gradient.transpose(0, 1) for gradient in by_number]


class Learner(nn.Module):
    """The trained module: images `(N, 3, H, W)` in 0..1, noise `(N, D)` -> the reconstructions, the code's divergence
    `(N,)`, and with `attend` the attention `(N, h, w)` at each of `layers`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: Autoencoder,
        layers: Sequence[int],
        blur: Enlarge | None = None,
        *,
        image: tuple[int, int] | None = None,
        published: bool = False,
    ) -> None:
        """With `image`, (height, width), the mean is that of good images at every pixel, and nothing is divided.
        `published`: see `attention`."""
        super().__init__()
        self.net, self.layers, self.blur, self.published = net, tuple(layers), blur, published
        self.by_pixel = image is not None
        self.register_buffer("mean", torch.zeros(1, 3, *(image or (1, 1))))  # of good images
        self.register_buffer("std", torch.ones(1, 3, 1, 1))

    def forward(
        self, images: Tensor, noise: Tensor, attend: bool, decode: bool = True
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        code, features, skipped = self.net.encode(self.standard(images), self.layers)
        latent, divergence = self.net.sampled(code, noise)
        attentions: list[Tensor] = []
        if attend:
            slopes = gradients(self.net.latent(code), features, each=self.net.variational)
            pairs = zip(features, slopes, strict=True)
            attentions = [attention(*pair, published=self.published) for pair in pairs]
        return self.net.decode(latent, skipped) if decode else images, divergence, attentions

    def standard(self, images: Tensor) -> Tensor:
        """The encoder's input: the images, blurred with --corruption blur, in good images' standard deviations, or less
        the mean good image."""
        blurred: Tensor = images if self.blur is None else self.blur(images)
        return (blurred - self.mean) / self.std


class LayerAttention(nn.Module):
    """Features `(N, K, h, w)` of a layer -> attention `(N, h, w)`, in forward operations alone.

    Where the gradient cancels (see `Autoencoder.cancels`) all channels weigh the same, M = mean_k |A_k|: weights that
    are zero but for rounding would give another map in every runtime. `shape`: of the features. Raises `BlemishError`
    where the gradient has no such form (see `with_gradient`).
    """

    def __init__(self, net: Autoencoder, layer: int, shape: Sequence[int], latent: int) -> None:
        super().__init__()
        self.numbers = latent if net.variational else 0
        self.cancels = net.cancels(layer)
        if self.cancels:
            return
        example = torch.zeros(2, *([latent] if self.numbers else []), *shape[1:])
        tail = net.tail(layer)
        self.tail = with_gradient(Each(tail, latent) if self.numbers else tail, example)

    def forward(self, features: Tensor) -> Tensor:
        if self.cancels:
            return features.abs().mean(1)
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
    `normal`, the memory bank of layer `patch_layer`, neighbours and distances."""

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
        self.gated = self.kind != "residual"  # the map is made from a gradient, see export.prove_parity
        self.share = 0.0  # the score is the mean of this share of the map's highest pixels; 0 = its maximum
        size = (resize.height, resize.width)
        self.resize, self.learner = resize, learner
        self.residual = Residual(config.residual, size)
        self.smooth = Enlarge(size, size, config.sigma)
        self.spread_smooth = Enlarge(size, size, 4.0)
        self.attentions, self.enlarge = nn.ModuleList(), nn.ModuleList()
        if self.gated:
            with torch.no_grad():
                code, outputs, _ = learner.net.encode(torch.zeros(1, 3, *size), learner.layers)
            latent = learner.net.latent(code).shape[1]
            for layer, features in zip(learner.layers, outputs, strict=True):
                self.attentions.append(LayerAttention(learner.net, layer, features.shape, latent))
                self.enlarge.append(Enlarge(features.shape[2:], size, config.sigma))
        self.register_buffer("average", torch.zeros(3, *size))  # of good images
        self.register_buffer("probe_mean", torch.zeros(3, 1, 1))
        self.register_buffer("probe_std", torch.ones(3, 1, 1))
        for name in ("attention", "residual"):
            self.register_buffer(f"typical_{name}", torch.zeros(size))
            self.register_buffer(f"spread_{name}", torch.ones(size))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps, reconstruction, features = self.maps(self.resize(images) / 255)
        pixels = (reconstruction * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return self.scores(maps, self.share), maps, pixels, *(self.normal(features) if self.normal else ())

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images `(N, 3, H, W)` in 0..1 -> maps `(N, H, W)` in good images' standard deviations (of the combined
        one: the product of two), the reconstructions like `images`, and the features of `patch_layer`."""
        raw, reconstruction, features = self.raw(images)
        standard = {
            name: (values - self.get_buffer(f"typical_{name}")) / self.get_buffer(f"spread_{name}")
            for name, values in raw.items()
        }
        if self.kind != "combined":
            return standard[self.kind], reconstruction, features
        # Softplus keeps both factors positive: a typical value in one map damps the other and does not turn its sign.
        return F.softplus(standard["attention"]) * F.softplus(standard["residual"]), reconstruction, features

    def raw(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The maps `(N, H, W)` that `kind` needs, before they are standardised, the reconstructions, and the features
        of `patch_layer`."""
        net, maps = self.learner.net, {}
        layers = (*self.learner.layers, self.patch_layer)
        code, (*attended, features), skipped = net.encode(self.learner.standard(images), layers)
        reconstruction = net.decode(net.latent(code), skipped)
        if self.gated:
            if self.input != "image":
                probe = self.probe(images, reconstruction) - self.get_buffer("probe_mean")
                attended = net.encode(probe / self.get_buffer("probe_std"), self.learner.layers)[1]
            by_layer = [
                enlarge(attention_of(activations))
                for attention_of, enlarge, activations in zip(self.attentions, self.enlarge, attended, strict=True)
            ]
            maps["attention"] = torch.stack(by_layer).mean(0)
        if self.kind != "attention":
            maps["residual"] = self.smooth(self.residual(reconstruction, images))
        return maps, reconstruction, features

    def probe(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """The encoder's input for the attention, where that is not the image, before it is standardised: as published
        a function of the difference to the average good image, or the difference to the reconstruction."""
        if self.input == "difference":
            return ((self.get_buffer("average") - images) ** 3).exp()
        return images - reconstruction

    def scores(self, maps: Tensor, share: float) -> Tensor:
        """`(N,)`: the mean of each map's highest `share`, or with 0 its maximum."""
        flat = maps.flatten(1)
        if share == 0:
            return flat.amax(1)
        return flat.topk(max(1, round(share * flat.shape[1])), 1, sorted=False).values.mean(1)

    def fit_reference(self, good: Images) -> None:
        """Sets the average image and the maps' mean and spread; `good(what)` iterates over all good images in batches,
        `what` being shown as progress."""
        if self.gated and self.input == "difference":
            self.get_buffer("average").copy_(mean_image(good("average image")))
        raw = self.input == "image" or (self.input == "residual" and self.learner.by_pixel)  # as published
        if self.gated and not raw:
            mean, spread = channels(self._probe(images) for images in good("input"))
            self.get_buffer("probe_mean").copy_(mean)
            self.get_buffer("probe_std").copy_(spread.clamp(min=1e-6))
        names = [name for name in ("attention", "residual") if self.kind in (name, "combined")]
        maps = (self.raw(images)[0] for images in good("standards"))
        means, spreads = _moments(torch.stack([of_images[name] for name in names], 1) for of_images in maps)
        for name, mean, spread in zip(names, means, spreads, strict=True):
            if self.whole:
                overall = (spread.square().mean() + mean.var(correction=0)).sqrt()
                mean, spread = mean.mean().expand_as(mean), overall.expand_as(spread)
            else:  # half the mean spread is added: a few images can agree at a place by chance
                spread = self.spread_smooth(spread)
                spread = spread + spread.mean() / 2
            self.get_buffer(f"typical_{name}").copy_(mean)
            self.get_buffer(f"spread_{name}").copy_(spread + 1e-9)

    def _probe(self, images: Tensor) -> Tensor:
        """`probe` of images that are not reconstructed yet."""
        net = self.learner.net
        code, _, skipped = net.encode(self.learner.standard(images))
        return self.probe(images, net.decode(net.latent(code), skipped))


def patch_layer(net: Autoencoder, size: tuple[int, int]) -> int:
    """The last of the encoder's layers whose stride is nearest to 8, for images of `size` (height, width)."""
    with torch.no_grad():
        outputs = net.encode(torch.zeros(1, 3, *size), range(len(net.encoder)))[1]
    strides = [size[0] / features.shape[2] for features in outputs]
    return min(reversed(range(len(strides))), key=lambda layer: abs(math.log(strides[layer] / 8)))


def channels(images: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Each channel's mean and standard deviation over all pixels of all images, `(C, 1, 1)` each."""
    mean, spread = _moments(images)
    overall = mean.mean((1, 2), keepdim=True)
    return overall, (spread.square() + (mean - overall).square()).mean((1, 2), keepdim=True).sqrt()


def mean_image(images: Iterator[Tensor]) -> Tensor:
    """`(C, H, W)`: the mean of all images at every pixel."""
    return _moments(images)[0]


def _moments(batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the first axis of all batches, in float32."""
    ((mean, spread),) = mean_and_spread((batch,) for batch in batches)
    return mean.float(), spread.float()
