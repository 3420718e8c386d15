"""How far a reconstruction is from its image: losses for training, and residual maps.

Images and reconstructions are float32 `(N, 3, H, W)` in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.nn.resampling import blur_weights, gaussian
from blemish.types import BlemishError

LOSSES = ("mse", "l1", "bce", "ssim")
RESIDUALS = ("l1", "ssim")

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window, in pixels (Wang et al. 2004, section III-C)
C1, C2 = 0.01**2, 0.03**2  # (K L)^2 with the paper's K and L = 1, the range of the pixels

Terms = Sequence[tuple[float, str]]


def parse(text: str) -> tuple[tuple[float, str], ...]:
    """Weights and names of losses: `"mse"` -> ((1.0, "mse"),), `"0.8*mse+0.2*ssim"` -> ((0.8, "mse"), (0.2, "ssim")).

    Raises `BlemishError` for an unknown or repeated name, and for a weight that is no number above 0.
    """
    terms: list[tuple[float, str]] = []
    for term in text.split("+"):
        factor, star, name = (part.strip() for part in term.rpartition("*"))
        if name not in LOSSES:
            raise BlemishError(
                f"The loss '{text}' has a term '{name}'; terms are {', '.join(LOSSES)}, as in mse or 0.8*mse+0.2*ssim."
            )
        if name in (known for _, known in terms):
            raise BlemishError(f"The loss '{text}' names {name} twice; give it once, with one weight.")
        weight = _number(factor) if star else 1.0
        if not 0 < weight < math.inf:  # NaN too
            raise BlemishError(f"The loss '{text}' weighs {name} with '{factor}'; a weight is a number above 0.")
        terms.append((weight, name))
    return tuple(terms)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def loss(terms: Terms, reconstruction: Tensor, images: Tensor) -> Tensor:
    """Weighted sum of losses, `(N,)`: one value per image, each a mean over its pixels and channels.

    `bce` is the binary cross-entropy, its logarithms no lower than -100, so finite at 0 and 1. Where the two are equal
    it is least, but not 0. `ssim` is the mean of the residual map below: 1 - SSIM.
    """
    return torch.stack([weight * _term(name, reconstruction, images) for weight, name in terms]).sum(0)


def _term(name: str, reconstruction: Tensor, images: Tensor) -> Tensor:
    if name == "ssim":
        height, width = images.shape[2:]
        residual: Tensor = _ssim(height, width).to(images.device)(reconstruction, images)
        return residual.mean((1, 2))
    if name == "mse":
        by_pixel = F.mse_loss(reconstruction, images, reduction="none")
    elif name == "l1":
        by_pixel = F.l1_loss(reconstruction, images, reduction="none")
    else:
        by_pixel = F.binary_cross_entropy(reconstruction, images, reduction="none")
    return by_pixel.mean((1, 2, 3))


class Residual(nn.Module):
    """`(reconstruction, images)` -> float32 `(N, H, W)`, at least 0 and exactly 0 where they are equal.

    `l1`: mean over the channels of |difference|, in 0..1. `ssim`: 1 - SSIM of each pixel's window (Wang et al. 2004,
    Eq. 13), mean over the channels, in 0..2; borders are mirrored, so images must have at least 6x6 pixels.
    `size`: their height and width. Raises `BlemishError` for another `kind`.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, kind: str, size: tuple[int, int]) -> None:
        super().__init__()
        if kind not in RESIDUALS:
            raise BlemishError(f"There is no residual map '{kind}'; take one of {', '.join(RESIDUALS)}.")
        self.kind = kind
        # Two matrix products: in PyTorch several times faster than a convolution with one channel.
        self.register_buffer("rows", _window_means(size[0]))
        self.register_buffer("columns", _window_means(size[1]).T.contiguous())

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        difference = reconstruction - images
        if self.kind == "l1":
            return difference.abs().mean(1)
        # Eq. 13 in terms of the difference d = x - y: as 2 cov(x, y) = var(x) + var(y) - var(d), SSIM is
        # (1 - luminance) (1 - structure) below. So nothing cancels where x and y are alike, as it would in 1 - SSIM.
        mean_x, mean_y, mean_d = self._mean(reconstruction), self._mean(images), self._mean(difference)
        variances = self._mean(reconstruction**2 + images**2) - mean_x**2 - mean_y**2
        variance_d = self._mean(difference**2) - mean_d**2
        luminance = mean_d**2 / (mean_x**2 + mean_y**2 + C1)
        structure = variance_d.clamp(min=0) / (variances.clamp(min=0) + C2)
        return (luminance + structure - luminance * structure).mean(1)

    def _mean(self, values: Tensor) -> Tensor:
        """Gaussian mean over each pixel's window, like `values` `(N, C, H, W)`."""
        means: Tensor = self.rows @ values @ self.columns
        return means


def _window_means(length: int) -> Tensor:
    """`(length, length)`: the mean over SSIM's window around each pixel of a row or column, mirrored at its ends."""
    if length <= WINDOW // 2:
        raise BlemishError(f"SSIM needs images of at least {WINDOW // 2 + 1} pixels a side, not {length}.")
    return blur_weights(length, gaussian(WINDOW // 2, SIGMA, torch.float64), repeat_edge=False).float()


@cache
@torch.inference_mode(False)  # whatever mode the first caller is in: the next one may train
def _ssim(height: int, width: int) -> Residual:
    return Residual("ssim", (height, width))
