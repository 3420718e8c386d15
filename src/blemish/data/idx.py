"""The idx files of MNIST and its relatives (Fashion-MNIST, KMNIST): arrays of bytes behind a short header.

Format (LeCun's page of MNIST): two zero bytes, the type of the values (8 = unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the values, last dimension fastest. Often compressed with gzip.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from blemish.types import BlemishError

if TYPE_CHECKING:
    import numpy.typing as npt

LARGEST = 1 << 30  # bytes of values in one file; the largest published set of this kind (EMNIST) has 0.55e9
_UNSIGNED_BYTE = 8
_PARTS = {"train": "train", "test": "t10k"}  # ours, and as the files call them


@dataclass(frozen=True)
class Digits:
    """One part of such a data set: `images` uint8 (N, H, W), grey, and `labels` uint8 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def holds_idx(folder: Path) -> bool:
    """Whether a folder holds any of the four files under one of their usual names."""
    return any(_find(folder, part, what) for part in _PARTS for what in ("images", "labels"))


def read_part(folder: Path, part: str) -> Digits:
    """The "train" or "test" part in `folder`. Raises BlemishError where a file is missing or does not fit."""
    files = {}
    for what in ("images", "labels"):
        found = _find(folder, part, what)
        if found is None:
            raise BlemishError(f"{folder / _names(part, what)[0]} (or its .gz) is missing; put it beside the others.")
        files[what] = found
    images, labels = read_idx(files["images"]), read_idx(files["labels"])
    if images.ndim != 3 or labels.ndim != 1:
        wrong, has, wants = (files["images"], images.ndim, 3) if images.ndim != 3 else (files["labels"], labels.ndim, 1)
        raise BlemishError(f"{wrong} has {has} dimensions where {wants} belong; it is another file: fetch it again.")
    if len(images) != len(labels):
        raise BlemishError(
            f"{files['labels']} has {len(labels)} labels for the {len(images)} images of {files['images'].name}; "
            "take both from the same data set."
        )
    return Digits(images, labels)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The values of one file of unsigned bytes, plain or compressed, in the shape that its header says.

    Never more than the header promises is decompressed. Raises BlemishError where the file is cut short, longer than
    promised, of another type, or promises nothing or more than LARGEST bytes.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not packed:
                return _values(plain, path)
            with gzip.GzipFile(fileobj=plain) as unpacked:
                return _values(unpacked, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as cause:
        raise BlemishError(f"{path} is damaged or cut short ({cause}); fetch it again.") from cause
    except OSError as cause:
        raise BlemishError(f"{path} cannot be read ({cause.strerror or cause}); check the file.") from cause


def _values(file: IO[bytes] | gzip.GzipFile, path: Path) -> npt.NDArray[np.uint8]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise BlemishError(f"{path} is no idx file (it begins with {start.hex(' ') or 'nothing'}); fetch it again.")
    kind, dimensions = start[2], start[3]
    if kind != _UNSIGNED_BYTE:
        raise BlemishError(f"{path} holds values of type {kind}, not unsigned bytes (8); only those are read.")
    lengths = file.read(4 * dimensions)
    if not 1 <= dimensions <= 3 or len(lengths) < 4 * dimensions:
        raise BlemishError(f"{path} has no whole idx header of 1 to 3 dimensions; fetch it again.")
    shape = struct.unpack(f">{dimensions}I", lengths)
    promised = math.prod(shape)
    if not 0 < promised <= LARGEST:
        sizes = " × ".join(map(str, shape))
        raise BlemishError(f"{path} says that it holds {sizes} values; that is nothing, or absurd: fetch it again.")
    values = file.read(promised)
    if len(values) < promised:
        raise BlemishError(f"{path} is cut short: {len(values):,} of {promised:,} values; fetch it again.")
    if file.read(1):  # also reaches the end of a gzip stream, where its checksum is compared
        raise BlemishError(f"{path} goes on after the {promised:,} values of its header; fetch it again.")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _find(folder: Path, part: str, what: str) -> Path | None:
    return next((folder / name for name in _names(part, what) if (folder / name).is_file()), None)


def _names(part: str, what: str) -> list[str]:
    dimensions = 3 if what == "images" else 1
    stems = [f"{_PARTS[part]}-{what}{mark}idx{dimensions}-ubyte" for mark in "-."]
    return [stem + ending for stem in stems for ending in ("", ".gz")]
