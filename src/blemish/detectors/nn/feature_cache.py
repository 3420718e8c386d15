"""What a frozen trunk says of each image, computed once and kept: in memory, or in a file where it is too large."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from blemish.detectors.nn.augment import turn
from blemish.detectors.nn.resampling import batches
from blemish.types import Progress, Sample, silent

Variant = tuple[int, bool]


class Kept:
    """For each sample and variant one row of each of the trunk's outputs. Rows of sample i are i * variants ..."""

    def __init__(self, names: Sequence[str], variants: int, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)  # each (samples * variants, ...)
        self.variants = variants
        self._rows = {name: index * variants for index, name in enumerate(names)}

    def __contains__(self, sample: Sample) -> bool:
        return sample.name in self._rows

    def rows(self, samples: Sequence[Sample]) -> Tensor:
        """`(n,)` int64: where each sample's unchanged image is; its variants follow."""
        return torch.tensor([self._rows[sample.name] for sample in samples], dtype=torch.long)


def keep(
    samples: Sequence[Sample],
    resize: nn.Module,
    trunk: Callable[[Tensor], Sequence[Tensor]],
    variants: Sequence[Variant],
    *,
    memory: float,
    batch: int = 8,
    device: str = "cpu",
    progress: Progress = silent,
) -> Kept:
    """Runs the trunk over every sample in each of its variants. Above `memory` GiB the rows go to a file that the
    system removes with the process. Raises `BlemishError` for an image that cannot be read."""
    tensors: list[Tensor] = []
    row = 0
    for images in progress(batches(samples, resize, batch), "features", -(-len(samples) // batch)):
        with torch.inference_mode():
            seen = [trunk(turn(images, variant).to(device)) for variant in variants]
        for index, outputs in enumerate(zip(*seen, strict=True)):
            together = torch.stack(outputs, 1).flatten(0, 1).cpu()  # the variants of one image side by side
            if row == 0:
                size = (len(samples) * len(variants), *together.shape[1:])
                tensors.append(_room(size, memory / len(seen[0])))
            tensors[index][row : row + len(together)] = together
        row += len(images) * len(variants)
    return Kept([sample.name for sample in samples], len(variants), tensors)


def _room(size: tuple[int, ...], memory: float) -> Tensor:
    if 4 * prod(size) <= memory * 2**30:
        return torch.empty(size)
    with tempfile.NamedTemporaryFile(prefix="blemish-", delete=False) as file:
        path = Path(file.name)
    try:
        return torch.from_file(str(path), shared=True, size=prod(size)).view(size)
    finally:
        path.unlink()  # its blocks stay until nobody maps them
