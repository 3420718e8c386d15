"""Caches a frozen trunk's outputs, computed once per image: in memory, or in a file where they are too large."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from blemish.detectors.nn.augment import turn
from blemish.detectors.nn.resampling import batches
from blemish.types import BlemishError, Progress, Sample, silent

Variant = tuple[int, bool]
FileKey = tuple[Path, int, int]  # resolved path, bytes, time of the last change in ns


class FeatureCache:
    """One row of each of the trunk's outputs for each image and variant; an image's variants stand side by side.

    An image is known by its file and not by its sample's name, which another data set may use as well: a file that was
    moved or changed since is not in the cache.
    """

    def __init__(self, files: Sequence[FileKey | None], variants: int, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)  # each (images * variants, ...)
        self.variants = variants
        self._rows: dict[FileKey | None, int] = {
            file: index * variants for index, file in enumerate(files) if file is not None
        }

    def __contains__(self, sample: Sample) -> bool:
        return file_key(sample) in self._rows

    def rows(self, samples: Sequence[Sample]) -> Tensor:
        """`(n,)` int64: the row of each sample's unchanged image, which its other variants follow. Raises
        `BlemishError` for an image that is not in the cache, so was changed or moved after it was read."""
        rows = [self._rows.get(file_key(sample), -1) for sample in samples]
        if -1 in rows:
            path = samples[rows.index(-1)].path
            raise BlemishError(f"{path} was changed or moved during training; leave the images alone and train again.")
        return torch.tensor(rows, dtype=torch.long)


def file_key(sample: Sample) -> FileKey | None:
    """What identifies the content of a sample's file without reading it, or its pixels; None where there is no file."""
    if sample.pixels is not None and not sample.path.exists():
        digest = hashlib.sha256(np.ascontiguousarray(sample.pixels).tobytes()).hexdigest()
        return Path(digest), sample.pixels.nbytes, sample.pixels.shape[1]
    try:
        resolved = sample.path.resolve()
        status = resolved.stat()
    except OSError:
        return None
    return resolved, status.st_size, status.st_mtime_ns


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
    system removes with the process. Raises `BlemishError` for an image that cannot be read."""
    files = [file_key(sample) for sample in samples]  # before the files are read
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
    return FeatureCache(files, len(variants), tensors)


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
