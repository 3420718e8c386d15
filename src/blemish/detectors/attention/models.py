"""The autoencoders: U-Net, convolutional, variational, residual, and the study's own.

Each is an encoder of numbered layers, a latent code, and a decoder. `encoder.21` names the output of layer 21: the
layers up to it are a prefix of the encoder and those after it a suffix, so attention needs no hooks. Normalisation is
by group, or by channel and image, never over the batch: an image's result does not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from blemish.detectors.nn.backbones import load_backbone
from blemish.types import BlemishError

MODELS = ("unet", "autoencoder", "vae", "resnet", "resnet-vae", "study")
NETWORK = "resnet18"


class Autoencoder(nn.Module):
    """`encoder`: standardised images `(N, 3, H, W)` -> features. `code`: features -> latent code `(N, D)`; of a
    variational autoencoder mean and log variance, `(N, 2 D)`. `start`: the code -> the decoder's first features.
    `decoder`: from there to logits `(N, 3, H, W)` of the image in 0..1; after its first blocks the outputs of `skips`
    (layers of the encoder, deepest first) are concatenated."""

    def __init__(
        self,
        encoder: nn.Sequential,
        code: nn.Module,
        start: nn.Module,
        decoder: Sequence[nn.Module],
        *,
        skips: Sequence[int] = (),
        variational: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.code, self.start, self.decoder = encoder, code, start, nn.ModuleList(decoder)
        self.skips, self.variational = tuple(skips), variational

    def encode(self, images: Tensor, layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The code, the outputs of `layers`, and those of the skips, which the decoder takes."""
        needed = {*layers, *self.skips}
        outputs: dict[int, Tensor] = {}
        features = images
        for number, layer in enumerate(self.encoder):
            features = layer(features)
            if number in needed:
                outputs[number] = features
        return self.code(features), [outputs[layer] for layer in layers], [outputs[layer] for layer in self.skips]

    def decode(self, latent: Tensor, skipped: Sequence[Tensor]) -> Tensor:
        """Latent code `(N, D)` -> the image in 0..1, `(N, 3, H, W)`."""
        features: Tensor = self.start(latent)
        for step, block in enumerate(self.decoder):
            features = block(features)
            if step < len(skipped):
                features = torch.cat([features, skipped[step]], 1)
        return features.sigmoid()

    @torch.no_grad()
    def start_from(self, colour: Tensor) -> None:
        """Sets the last layer's bias so that an untrained decoder's output is about `colour` `(3,)`, in 0..1. Training
        is faster from good images' mean."""
        last = [layer for layer in self.decoder.modules() if isinstance(layer, nn.Conv2d)][-1]
        assert last.bias is not None
        last.bias.copy_(colour.clamp(0.01, 0.99).logit())

    def cancels(self, layer: int) -> bool:
        """Whether the gradient at this layer has mean zero in every channel: an instance norm, which follows it,
        subtracts the channel's mean, so the code does not see a shift of a whole channel. What is computed of such a
        mean is rounding noise."""
        after = self.encoder[layer + 1] if layer + 1 < len(self.encoder) else None
        return isinstance(after, nn.GroupNorm) and after.num_groups == after.num_channels

    def latent(self, code: Tensor) -> Tensor:
        """`(N, D)`: the code, of a variational autoencoder its mean."""
        return code.chunk(2, 1)[0] if self.variational else code

    def sampled(self, code: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The latent code to decode in training, drawn with `noise` `(N, D)`, and each image's KL divergence `(N,)`
        from the unit Gaussian (Kingma & Welling 2014, appendix B), zero where the code is no distribution."""
        if not self.variational:
            return code, code.new_zeros(len(code))
        mean, log_variance = code.chunk(2, 1)
        log_variance = log_variance.clamp(-10, 10)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return mean + (log_variance / 2).exp() * noise, divergence

    def tail(self, layer: int) -> nn.Sequential:
        """Features of `layer` -> latent code `(N, D)`."""
        rest = [*self.encoder[layer + 1 :], self.code]
        return nn.Sequential(*rest, Half()) if self.variational else nn.Sequential(*rest)

    def index(self, name: str) -> int:
        """`encoder.21` or `21` -> 21. Raises `BlemishError` where the encoder has no such layer."""
        number = name.removeprefix("encoder.")
        if not number.isdecimal() or int(number) >= len(self.encoder):
            raise BlemishError(
                f"there is no layer '{name}'; the encoder's are encoder.0 ({type(self.encoder[0]).__name__}) to "
                f"encoder.{len(self.encoder) - 1}."
            )
        return int(number)


class Half(nn.Module):
    """Mean and log variance -> mean."""

    def forward(self, code: Tensor) -> Tensor:
        return code.chunk(2, 1)[0]


def build(
    name: str,
    size: tuple[int, int],
    *,
    width: int = 8,
    latent: int = 64,
    seed: int = 0,
    pretrained: bool = False,
    weights: Path | None = None,
) -> Autoencoder:
    """An untrained autoencoder of MODELS for images of `size` (height, width), drawn from `seed`.

    `width`: channels of the first layers, doubled at every halving of the grid. `latent`: numbers in the code; the
    U-Net's is its flattened bottleneck. `pretrained`: the residual encoder starts from ImageNet's weights, those of
    torchvision or of the .safetensors file `weights`. Raises `BlemishError` for an unknown model, for `pretrained`
    weights of another one, and for a size that it cannot halve often enough.
    """
    if name not in MODELS:
        raise BlemishError(f"there is no model '{name}'; take one of {', '.join(MODELS)}.")
    if pretrained and name != "resnet":
        raise BlemishError(f"only --model resnet has an encoder with ImageNet weights, {name} has none.")
    deep = 32 if name in ("resnet", "resnet-vae", "study") else 16
    if size[0] % deep or size[1] % deep:
        raise BlemishError(f"{name} halves the image until {deep} pixels are one: {size[0]}x{size[1]} does not fit.")
    if name == "study" and min(size) < 2 * deep:  # an instance norm of a single cell is nothing
        raise BlemishError(f"study needs images of at least {2 * deep}x{2 * deep}, not {size[0]}x{size[1]}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "unet":
            return _unet(size, width)
        if name == "study":
            return _study(size)
        if name.startswith("resnet"):
            return _resnet(size, width, latent, pretrained, weights, variational=name == "resnet-vae")
        return _plain(size, width, latent, variational=name == "vae")


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)


def _convolved(inward: int, outward: int) -> list[nn.Module]:
    return [nn.Conv2d(inward, outward, 3, padding=1, bias=False), _norm(outward), nn.ReLU()]


def _unet(size: tuple[int, int], width: int) -> Autoencoder:
    """Ronneberger et al. 2015, padded, with four levels of seven layers each (two convolutions with norm and ReLU, then
    pooling), so that encoder.21 is the last level's first convolution."""
    widths = [width * 2**level for level in range(4)]
    layers: list[nn.Module] = []
    for inward, outward in zip([3, *widths], widths, strict=False):
        layers += [*_convolved(inward, outward), *_convolved(outward, outward), nn.MaxPool2d(2)]
    grid = (size[0] // 16, size[1] // 16)
    upward: list[nn.Module] = []
    inward = widths[-1]
    for outward in reversed(widths):
        # The features from below are enlarged and brought to the level's width; the skip then doubles the width.
        enlarged = [*_convolved(inward, outward), nn.Upsample(scale_factor=2), *_convolved(outward, outward)]
        upward.append(nn.Sequential(*enlarged))
        inward = 2 * outward
    upward.append(nn.Sequential(*_convolved(inward, width), nn.Conv2d(width, 3, 1)))
    return Autoencoder(
        nn.Sequential(*layers), nn.Flatten(), nn.Unflatten(1, (widths[-1], *grid)), upward, skips=(26, 19, 12, 5)
    )


def _plain(size: tuple[int, int], width: int, latent: int, *, variational: bool) -> Autoencoder:
    """Four strided convolutions with instance norm and ReLU, a dense code, and a decoder of as many steps."""
    widths = [width * 2**level for level in range(4)]
    layers: list[nn.Module] = []
    for inward, outward in zip([3, *widths], widths, strict=False):
        layers += [nn.Conv2d(inward, outward, 4, 2, 1), nn.GroupNorm(outward, outward), nn.ReLU()]
    start, code = _dense(widths[-1], (size[0] // 16, size[1] // 16), latent, variational)
    return Autoencoder(nn.Sequential(*layers), code, start, _upward(widths[-1], width, 4), variational=variational)


class Affine(nn.Module):
    """A factor and a summand for each channel: a batch norm that never normalises."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight + self.bias


def _study(size: tuple[int, int]) -> Autoencoder:
    """The network of Jiang, Xue & Zou's public code: nine convolutions with instance norm and ReLU, 8 x 8 x 32 numbers
    of an image of 256 x 256, a dense layer to 8 x 8, and a decoder. The code ends before the dense layer, as the
    study's attention is the gradient of the sum of these numbers. Batch norms of the decoder are plain affine maps,
    since the network is in evaluation mode throughout its training."""
    layers: list[nn.Module] = []
    inward = 3
    for kernel, outward in ((4, 32), (4, 32), (4, 32), (3, 32), (4, 64), (3, 64), (4, 128), (3, 64), (3, 32)):
        stride = 2 if kernel == 4 else 1
        layers += [nn.Conv2d(inward, outward, kernel, stride, 1), nn.GroupNorm(outward, outward), nn.ReLU()]
        inward = outward
    grid = (size[0] // 32, size[1] // 32)
    cells = grid[0] * grid[1]

    def block(inward: int, outward: int, kernel: int, stride: int, enlarged: int, last: nn.Module) -> list[nn.Module]:
        convolved = _same(inward, outward, kernel, stride)
        return [*([nn.Upsample(scale_factor=enlarged)] if enlarged > 1 else []), *convolved, Affine(outward), last]

    decoder = [
        *block(1, 32, 3, 1, 1, nn.ReLU()),
        *block(32, 64, 3, 1, 1, nn.ReLU()),
        *block(64, 128, 4, 2, 2, nn.ReLU()),  # enlarged by 2 and halved again: still 8 x 8
        *block(128, 64, 3, 1, 2, nn.ReLU()),
        *block(64, 64, 4, 2, 2, nn.ReLU()),
        *block(64, 32, 3, 1, 2, nn.ReLU()),
        *block(32, 32, 4, 2, 2, nn.LeakyReLU()),
        *block(32, 32, 4, 2, 4, nn.LeakyReLU()),
        *block(32, 32, 4, 1, 2, nn.LeakyReLU()),
        *block(32, 3, 4, 1, 2, nn.Identity()),
    ]
    start = nn.Sequential(nn.Linear(32 * cells, cells), nn.Unflatten(1, (1, *grid)))
    return Autoencoder(nn.Sequential(*layers), nn.Flatten(), start, [nn.Sequential(*decoder)])


def _same(inward: int, outward: int, kernel: int, stride: int) -> list[nn.Module]:
    """A convolution whose output has the input's size divided by the stride; an even kernel at stride 1 is padded by
    one cell more below and to the right."""
    if kernel == 4 and stride == 1:
        return [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(inward, outward, kernel)]
    return [nn.Conv2d(inward, outward, kernel, stride, 1)]


def _dense(
    channels: int, grid: tuple[int, int], latent: int, variational: bool = False
) -> tuple[nn.Sequential, nn.Sequential]:
    """The dense layers from the code to the decoder's first features, and from the encoder's last to the code."""
    cells = channels * grid[0] * grid[1]
    code = nn.Sequential(nn.Flatten(), nn.Linear(cells, latent * (2 if variational else 1)))
    return nn.Sequential(nn.Linear(latent, cells), nn.Unflatten(1, (channels, *grid)), nn.ReLU()), code


def _upward(channels: int, width: int, halvings: int) -> list[nn.Module]:
    """A decoder that doubles the grid `halvings` times."""
    blocks: list[nn.Module] = []
    for step in reversed(range(halvings)):
        outward = max(width, min(channels, width * 2**step))
        blocks.append(nn.Sequential(nn.Upsample(scale_factor=2), *_convolved(channels, outward)))
        channels = outward
    return [*blocks, nn.Conv2d(channels, 3, 3, padding=1)]


def _resnet(
    size: tuple[int, int], width: int, latent: int, pretrained: bool, weights: Path | None, *, variational: bool
) -> Autoencoder:
    """torchvision's ResNet-18 (He et al. 2016) as the encoder, its residual blocks as layers. From scratch it
    normalises by groups; ImageNet's weights come with batch norm, whose statistics stay fixed."""
    from torchvision import models
    from torchvision.ops import FrozenBatchNorm2d

    net = models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d if pretrained else _norm)
    if pretrained:
        backbone = load_backbone(f"torchvision/{NETWORK}", layers=("layer4",), image_size=size, weights=weights)
        net.fc = nn.Identity()
        net.load_state_dict(backbone.net.state_dict())
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    layers = [net.conv1, net.bn1, nn.ReLU(), net.maxpool, *(block for stage in stages for block in stage)]
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # it would overwrite the input of a skip or of the attention
    start, code = _dense(512, (size[0] // 32, size[1] // 32), latent, variational)
    return Autoencoder(nn.Sequential(*layers), code, start, _upward(512, width, 5), variational=variational)
