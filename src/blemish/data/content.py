"""What an image is known by where its name is not enough: the SHA-256 of its bytes as they were read.

Another folder may use the same names, and a file can be replaced while a training runs. So samples are given the hash
of what is learned from them when they are first read, and whoever reads them again asks afterwards whether they are the
same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from blemish.images import ImageError, decode, read_size
from blemish.types import BlemishError, Sample

Stamp = tuple[int, int, int, int, int]  # device, inode, bytes; last change of the content and of anything, in ns

FRESH = 2 * 10**9  # nanoseconds within which a file may change again without a new stamp: clocks of file systems tick


def preload(samples: Sequence[Sample], most: int) -> list[Sample]:
    """The samples `identified` and with their pixels, decoded once for all that is to be done with them; without their
    pixels where all of them together take more than `most` bytes. Raises `BlemishError` for a file that cannot be read,
    or that changes meanwhile."""
    sizes = [read_size(sample.path) for sample in samples if sample.pixels is None]
    held = sum(3 * width * height for width, height in sizes) <= most
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_held if held else identified, samples))


def _held(sample: Sample) -> Sample:
    if sample.pixels is not None:
        return identified(sample)
    known = identified(sample)
    pixels = decode(sample)
    refuse_changed([known])
    return replace(known, pixels=pixels)


def identified(sample: Sample) -> Sample:
    """The sample with the hash of its bytes, see `fingerprint`."""
    return sample if sample.sha256 else replace(sample, sha256=fingerprint(sample))


def fingerprint(sample: Sample) -> str:
    """SHA-256 in hex digits: the sample's own where it is `identified`, else of the bytes of its file as they are now,
    or of its pixels if it has some. Raises `ImageError` for a file that cannot be read."""
    if sample.sha256:
        return sample.sha256
    if sample.pixels is not None:
        shape = "x".join(map(str, sample.pixels.shape))
        return hashlib.sha256(f"{shape}:".encode() + np.ascontiguousarray(sample.pixels).tobytes()).hexdigest()
    return _of_file(sample.path)


def refuse_changed(samples: Iterable[Sample]) -> None:
    """Raises `BlemishError` where the file of an `identified` sample no longer holds the bytes that it was identified
    by. Of a sample with its pixels the file does not matter any more."""
    for sample in samples:
        if sample.pixels is None and fingerprint(replace(sample, sha256="")) != sample.sha256:
            raise BlemishError(f"{sample.path} changed during training; leave the images alone and train again.")


def _of_file(path: Path) -> str:
    """Read anew unless the file has the stamp that it had when it was last read."""
    try:
        resolved = path.resolve()
        stamp = _stamp(resolved)
        if time.time_ns() - max(stamp[-2:]) > FRESH:
            return _remembered(resolved, stamp)
        return _read(resolved)
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise ImageError(f"{path} cannot be read ({cause}); leave the images alone and train again.") from error


@lru_cache(maxsize=2**16)
def _remembered(path: Path, stamp: Stamp) -> str:
    """The file's hash; its stamp tells one content from the next."""
    digest = _read(path)
    if _stamp(path) != stamp:  # raised, so that it is not remembered
        raise OSError(0, "it changes while it is read")
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
