"""Caches a frozen trunk's outputs, computed once per image: in memory, or in a file where they are too large."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from blemish.data.content import fingerprint, identified, refuse_changed
from blemish.detectors.nn.augment import turn
from blemish.detectors.nn.resampling import batches
from blemish.types import BlemishError, Progress, Sample, silent

Variant = tuple[int, bool]


class FeatureCache:
    """One row of each of the trunk's outputs for each image and variant; an image's variants stand side by side.

    An image is known by its content (`data.content.fingerprint`) and not by its sample's name, which another data set
    may use as well, nor by its file's size and time, which a copy may keep.
    """

    def __init__(self, contents: Sequence[str], variants: int, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)  # each (images * variants, ...)
        self.variants = variants
        self._rows = {content: index * variants for index, content in enumerate(contents)}

    def __contains__(self, sample: Sample) -> bool:
        """Raises `ImageError` for a file that cannot be read."""
        return fingerprint(sample) in self._rows

    def rows(self, samples: Sequence[Sample]) -> Tensor:
        """`(n,)` int64: the row of each sample's unchanged image, which its other variants follow. Raises
        `BlemishError` for an image that is not in the cache, so was changed after it was read."""
        rows = [self._rows.get(fingerprint(sample), -1) for sample in samples]
        if -1 in rows:
            path = samples[rows.index(-1)].path
            raise BlemishError(f"{path} changed during training; leave the images alone and train again.")
        return torch.tensor(rows, dtype=torch.long)


def cache_features(
    samples: Sequence[Sample],
    resize: nn.Module,
    trunk: Callable[[Tensor], Sequence[Tensor]],
    variants: Sequence[Variant],
    *,
    memory: float,
    batch: int = 8,
    device: str = "cpu",
    progress: Progress = silent,
) -> FeatureCache:
    """Runs the trunk over every sample in each of its variants. Above `memory` GiB the rows go to a file that the
    system removes with the process. Raises `BlemishError` for an image that cannot be read, or that changes
    meanwhile."""
    known = [identified(sample) for sample in samples]
    tensors: list[Tensor] = []
    row = 0
    for images in progress(batches(samples, resize, batch), "features", -(-len(samples) // batch)):
        with torch.inference_mode():
            by_variant = [trunk(turn(images, variant).to(device)) for variant in variants]
        for index, outputs in enumerate(zip(*by_variant, strict=True)):
            rows = torch.stack(outputs, 1).flatten(0, 1).cpu()
            if row == 0:
                size = (len(samples) * len(variants), *rows.shape[1:])
                tensors.append(_allocate(size, memory / len(by_variant[0])))
            tensors[index][row : row + len(rows)] = rows
        row += len(images) * len(variants)
    refuse_changed(known)
    return FeatureCache([fingerprint(sample) for sample in known], len(variants), tensors)


def _allocate(size: tuple[int, ...], memory: float) -> Tensor:
    """An uninitialised float32 tensor, in a file where it is larger than `memory` GiB."""
    if 4 * prod(size) <= memory * 2**30:
        return torch.empty(size)
    with tempfile.NamedTemporaryFile(prefix="blemish-", delete=False) as file:
        path = Path(file.name)
    try:
        return torch.from_file(str(path), shared=True, size=prod(size)).view(size)
    finally:
        path.unlink()  # its blocks are freed when nothing maps them any more
