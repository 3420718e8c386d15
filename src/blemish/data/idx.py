"""The idx files of MNIST and its relatives (Fashion-MNIST, KMNIST): arrays of bytes behind a short header.

Format (LeCun's MNIST page): two zero bytes, the type of the values (8 = unsigned byte), the number of dimensions,
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

LARGEST = 1 << 30  # bytes of values in one file; the largest published data set in this format (EMNIST) has 0.55e9
_UNSIGNED_BYTE = 8
_SPLITS = {"train": "train", "test": "t10k"}  # our names, and those in the file names


@dataclass(frozen=True)
class Digits:
    """One split of such a data set: `images` uint8 (N, H, W), grey, and `labels` uint8 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def holds_idx(folder: Path) -> bool:
    """Whether a folder holds any of the four files under one of their common names."""
    return any(_find(folder, split, what) for split in _SPLITS for what in ("images", "labels"))


def read_split(folder: Path, split: str) -> Digits:
    """The split "train" or "test" in `folder`. Raises BlemishError where a file is missing or does not fit."""
    files = {}
    for what in ("images", "labels"):
        file = _find(folder, split, what)
        if file is None:
            raise BlemishError(f"{folder / _names(split, what)[0]} (or its .gz) is missing; put it beside the others.")
        files[what] = file
    images, labels = read_idx(files["images"]), read_idx(files["labels"])
    if images.ndim != 3 or labels.ndim != 1:
        wrong, has, wants = (files["images"], images.ndim, 3) if images.ndim != 3 else (files["labels"], labels.ndim, 1)
        raise BlemishError(f"{wrong} has {has} dimensions instead of {wants}; it is another file: download it again.")
    if len(images) != len(labels):
        raise BlemishError(
            f"{files['labels']} has {len(labels)} labels for the {len(images)} images of {files['images'].name}; "
            "take both from the same data set."
        )
    return Digits(images, labels)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The values of one file of unsigned bytes, plain or compressed, in the shape that its header gives.

    Never more than the header announces is decompressed. Raises BlemishError where the file is cut short, longer than
    announced, of another type, or announces nothing or more than LARGEST bytes.
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
        raise BlemishError(f"{path} is damaged or cut short ({cause}); download it again.") from cause
    except OSError as cause:
        raise BlemishError(f"{path} cannot be read ({cause.strerror or cause}); check the file.") from cause


def _values(file: IO[bytes] | gzip.GzipFile, path: Path) -> npt.NDArray[np.uint8]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise BlemishError(f"{path} is no idx file (it begins with {start.hex(' ') or 'nothing'}); download it again.")
    kind, dimensions = start[2], start[3]
    if kind != _UNSIGNED_BYTE:
        raise BlemishError(f"{path} holds values of type {kind}, not unsigned bytes (8); only those are read.")
    lengths = file.read(4 * dimensions)
    if not 1 <= dimensions <= 3 or len(lengths) < 4 * dimensions:
        raise BlemishError(f"{path} has no complete idx header of 1 to 3 dimensions; download it again.")
    shape = struct.unpack(f">{dimensions}I", lengths)
    count = math.prod(shape)
    if not 0 < count <= LARGEST:
        sizes = " × ".join(map(str, shape))
        raise BlemishError(f"{path} announces {sizes} values, which is none or too many; download it again.")
    values = file.read(count)
    if len(values) < count:
        raise BlemishError(f"{path} is cut short: {len(values):,} of {count:,} values; download it again.")
    if file.read(1):  # also reaches the end of a gzip stream, where its checksum is compared
        raise BlemishError(f"{path} holds more than the {count:,} values of its header; download it again.")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _find(folder: Path, split: str, what: str) -> Path | None:
    return next((folder / name for name in _names(split, what) if (folder / name).is_file()), None)


def _names(split: str, what: str) -> list[str]:
    dimensions = 3 if what == "images" else 1
    stems = [f"{_SPLITS[split]}-{what}{mark}idx{dimensions}-ubyte" for mark in "-."]
    return [stem + ending for stem in stems for ending in ("", ".gz")]
