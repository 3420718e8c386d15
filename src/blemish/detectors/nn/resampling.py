"""From raw pixels to the network's input, inside the graph, so that every runtime sees the same pixels.

Both resamplings here are linear and separable, so each is two matrix products: nothing depends on how a runtime
happens to implement "resize", and torch, onnxruntime or a browser agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from blemish.images import load_image
from blemish.types import BlemishError, Sample


def check_device(device: str) -> None:
    """Raises `BlemishError` where PyTorch cannot compute on it."""
    if device != "cpu" and not torch.cuda.is_available():
        raise BlemishError(f"PyTorch finds no CUDA card here, so --device {device} cannot be had; use cpu.")


def resize_weights(size: int, target: int, *, device: torch.device | None = None) -> Tensor:
    """`(target, size)`, rows sum to 1: antialiased linear resampling, a triangle filter as wide as one output pixel
    (Pillow's and torch's `bilinear` with antialiasing; plain interpolation when enlarging)."""
    scale = size / target
    support: Any = torch.sym_max(scale, 1.0)  # `size` is a symbol while the graph is traced
    centres = (torch.arange(target, device=device) + 0.5) * scale
    pixels = torch.arange(size, device=device) + 0.5
    weights: Tensor = (1 - (pixels - centres[:, None]).abs() / support).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


class Resize(nn.Module):
    """uint8 `(N, H, W, 3)` of any size -> float32 `(N, 3, height, width)`, still in 0..255."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        n, height, width, channels = images.shape
        rows = images.reshape(n, height, width * channels).float()
        rows = resize_weights(height, self.height, device=images.device) @ rows
        columns = rows.reshape(n, self.height, width, channels).permute(0, 3, 1, 2)
        return columns @ resize_weights(width, self.width, device=images.device).T


def enlarge_weights(size: int, target: int, sigma: float) -> Tensor:
    """`(target, size)`: linear enlargement followed by a Gaussian of `sigma` target pixels, with mirrored borders."""
    linear = resize_weights(size, target)
    if sigma <= 0:
        return linear
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    positions = (torch.arange(target)[:, None] + offsets) % (2 * target)  # "d c b a | a b c d | d c b a"
    positions = torch.minimum(positions, 2 * target - 1 - positions)
    blur = torch.zeros(target, target).scatter_add_(1, positions, kernel.expand(target, -1))
    return blur @ linear


class Enlarge(nn.Module):
    """Maps `(..., *grid)` -> `(..., *size)`, (h, w) each: `enlarge_weights` down and across."""

    rows: Tensor
    columns: Tensor

    def __init__(self, grid: Sequence[int], size: Sequence[int], sigma: float) -> None:
        super().__init__()
        self.register_buffer("rows", enlarge_weights(grid[0], size[0], sigma))
        self.register_buffer("columns", enlarge_weights(grid[1], size[1], sigma))

    def forward(self, cells: Tensor) -> Tensor:
        return self.rows @ cells @ self.columns.T


def batches(samples: Sequence[Sample], resize: nn.Module, batch: int, device: str = "cpu") -> Iterator[Tensor]:
    """Resized images `(<= batch, 3, H, W)`; files are decoded by threads a little ahead of the network."""

    def read(sample: Sample) -> Tensor:
        with torch.inference_mode():
            resized: Tensor = resize(torch.tensor(load_image(sample.path)).to(device)[None])
        return resized[0].cpu()

    with ThreadPoolExecutor(2) as pool:
        waiting = iter(samples)
        ahead = [pool.submit(read, s) for s in islice(waiting, 2 * batch)]
        while ahead:
            now, ahead = ahead[:batch], ahead[batch:]
            ahead += [pool.submit(read, s) for s in islice(waiting, batch)]
            yield torch.stack([future.result() for future in now])
