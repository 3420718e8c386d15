"""The evidence store: the good images that the patches of the memory bank come from, to be shown to people.

A bundle's `evidence.zip` holds them at the size at which the detector saw them (`000.jpg` ...), their names
(`names.json`), and int32 `sources.npy` `(M, 3)`: of each patch the image (-1 where it was left out), and its row and
column in the feature grid.
"""

from __future__ import annotations

import io
import json
import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.inference.bundle import EVIDENCE, BundleError
from blemish.inference.bundle_files import opened_zip, shown

TABLE, NAMES, NO_IMAGE = "sources.npy", "names.json", -1
MAX_IMAGES = 100_000
DECODED = 128  # images held decoded at once

Pixels = npt.NDArray[np.uint8]


def image_name(number: int) -> str:
    """The file name of an image in evidence.zip."""
    return f"{number:03}.jpg"


@dataclass(frozen=True)
class EvidenceStore:
    """The contents of evidence.zip; see the top of this file. Images are decoded when they are asked for, by several
    threads at once if need be."""

    table: npt.NDArray[np.int32]  # (M, 3)
    names: tuple[str, ...]
    size: tuple[int, int]  # height, width of the images
    jpegs: tuple[bytes, ...]
    _decoded: dict[int, Pixels] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def image(self, number: int) -> Pixels:
        """uint8 `(h, w, 3)`. Raises `BundleError` where it cannot be decoded."""
        pixels = self._decoded.get(number)
        if pixels is None:
            try:
                with Image.open(io.BytesIO(self.jpegs[number]), formats=["JPEG"]) as image:
                    is_of_size = image.size == self.size[::-1]  # before it is decoded
                    pixels = np.asarray(image.convert("RGB")) if is_of_size else None
            except Exception as cause:  # Pillow's decoders raise almost anything on damaged files
                raise _unreadable(f"{image_name(number)}: {cause}") from None
            if pixels is None:
                raise _unreadable(f"{image_name(number)} is not of the card's image size")
            with self._lock:
                if len(self._decoded) >= DECODED:
                    self._decoded.pop(next(iter(self._decoded)))
                self._decoded[number] = pixels
        return pixels

    def origin(self, entry: int) -> tuple[int, int, int] | None:
        """Image, row and column that an entry of the memory bank comes from; None where its image was left out. Raises
        `BundleError` for an entry that the bank does not have."""
        if not 0 <= entry < len(self.table):
            raise _unreadable(f"{TABLE} has {len(self.table)} entries, and the detector names entry {entry}")
        number, row, column = (int(value) for value in self.table[entry])
        return None if number == NO_IMAGE else (number, row, column)


def read_store(content: bytes, size: tuple[int, int]) -> EvidenceStore:
    """From the bytes of evidence.zip; `size` (height, width) is the card's image size. Raises `BundleError` for what is
    no such file."""
    try:
        files = _files(content)
        table = _table(files[TABLE])
        names = json.loads(files[NAMES])
        jpegs = tuple(files[image_name(number)] for number in range(len(names)))
    except KeyError as cause:
        raise _unreadable(f"it has no {cause.args[0]}") from None
    except (BundleError, ValueError, TypeError, RecursionError) as cause:
        raise _unreadable(str(cause)) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _unreadable(f"{NAMES} has the wrong form")
    if len(table) and not (table[:, 0].min() >= NO_IMAGE and table[:, 0].max() < len(names)):
        raise _unreadable(f"{TABLE} names images that are not in it")
    if len(table) and not (table[:, 1:].min() >= 0 and (table[:, 1:] < size).all()):
        raise _unreadable(f"{TABLE} names places that are not in its images")
    return EvidenceStore(table, tuple(names), size, jpegs)


def _files(content: bytes) -> dict[str, bytes]:
    """All files by name. Raises `BundleError`, and ValueError where they are larger than the whole, which is not
    compressed: what is compressed may fill the memory."""
    with opened_zip(io.BytesIO(content), EVIDENCE, MAX_IMAGES) as files:
        if sum(files.sizes.values()) > len(content):
            raise ValueError("its files are larger than itself")
        return {name: files.read(name) for name in files.sizes}


def _table(content: bytes) -> npt.NDArray[np.int32]:
    """What `np.save` wrote of int32 (M, 3). `np.load` would make an array as large as the header says, however short
    the file is. Raises ValueError."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = header(file)
    rest = content[file.tell() :]
    if len(shape) != 2 or shape[1] != 3 or dtype != np.int32 or len(rest) != shape[0] * 12:
        raise ValueError(f"{TABLE} has the wrong form")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if by_column else "C")


def _unreadable(cause: str) -> BundleError:
    return BundleError(
        f"{EVIDENCE} of this bundle cannot be read ({shown(cause)}); train it again, or inspect with --no-evidence."
    )
