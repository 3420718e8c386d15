"""From raw pixels to the network's input, and from its cells to maps, inside the graph.

Resizing, enlarging and blurring are linear and separable, so each is two matrix products. Nothing depends on how a
runtime implements "resize": torch, onnxruntime and a browser agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from blemish.images import decode
from blemish.types import BlemishError, Sample


def check_device(device: str) -> None:
    """Raises `BlemishError` where PyTorch cannot compute on `device`."""
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
    return blur_weights(target, gaussian(int(4 * sigma + 0.5), sigma)) @ linear if sigma > 0 else linear


def gaussian(radius: int, sigma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """`(2 radius + 1,)`: a Gaussian window of standard deviation `sigma`, in cells, that sums to 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=dtype)
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return window / window.sum()


def blur_weights(size: int, window: Tensor, *, repeat_edge: bool = True) -> Tensor:
    """`(size, size)`: the mean weighted by `window` `(2 radius + 1,)` around each cell, borders mirrored: with
    `repeat_edge` as "c b a | a b c", else as "c b | a b c"."""
    radius, edge = len(window) // 2, 1 if repeat_edge else 2
    positions = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    positions = positions % (2 * size - 2 * (edge - 1))
    positions = torch.minimum(positions, 2 * size - edge - positions)
    return torch.zeros(size, size, dtype=window.dtype).scatter_add_(1, positions, window.expand(size, -1))


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
    """Resized images `(<= batch, 3, H, W)`; two threads decode files one or two batches ahead of the network."""

    def read(sample: Sample) -> Tensor:
        with torch.inference_mode():
            resized: Tensor = resize(torch.tensor(decode(sample)).to(device)[None])
        return resized[0].cpu()

    with ThreadPoolExecutor(2) as pool:
        waiting = iter(samples)
        ahead = [pool.submit(read, s) for s in islice(waiting, 2 * batch)]
        while ahead:
            now, ahead = ahead[:batch], ahead[batch:]
            ahead += [pool.submit(read, s) for s in islice(waiting, batch)]
            yield torch.stack([future.result() for future in now])
