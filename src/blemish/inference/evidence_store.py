"""The evidence store: the good images that the patches of the memory bank come from, to be shown to people.

A bundle's `evidence.zip` holds them at the size at which the detector saw them (`000.jpg` ...), their names
(`names.json`), and int32 `sources.npy` `(M, 3)`: of each patch the image (-1 where it was left out), and its row and
column in the feature grid.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.inference.bundle import EVIDENCE, BundleError

TABLE, NAMES, NO_IMAGE = "sources.npy", "names.json", -1
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
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, Image.DecompressionBombError) as cause:
                raise _unreadable(f"{image_name(number)}: {cause}") from None
            if pixels.shape[:2] != self.size:
                raise _unreadable(f"{image_name(number)} is not of the card's image size")
            with self._lock:
                if len(self._decoded) >= DECODED:
                    self._decoded.pop(next(iter(self._decoded)))
                self._decoded[number] = pixels
        return pixels

    def origin(self, entry: int) -> tuple[int, int, int] | None:
        """Image, row and column that an entry of the memory bank comes from; None where its image was left out."""
        number, row, column = (int(value) for value in self.table[entry])
        return None if number == NO_IMAGE else (number, row, column)


def read_store(content: bytes, size: tuple[int, int]) -> EvidenceStore:
    """From the bytes of evidence.zip; `size` (height, width) is the card's image size. Raises `BundleError` for what is
    no such file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        table = np.load(io.BytesIO(files[TABLE]), allow_pickle=False)
        names = json.loads(files[NAMES])
        jpegs = tuple(files[image_name(number)] for number in range(len(names)))
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, TypeError) as cause:
        raise _unreadable(str(cause)) from None
    except KeyError as cause:
        raise _unreadable(f"it has no {cause.args[0]}") from None
    is_table = isinstance(table, np.ndarray) and table.ndim == 2 and table.shape[1] == 3 and table.dtype == np.int32
    if not is_table or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _unreadable(f"{TABLE} or {NAMES} has the wrong form")
    if len(table) and not (table[:, 0].min() >= NO_IMAGE and table[:, 0].max() < len(names)):
        raise _unreadable(f"{TABLE} names images that are not in it")
    return EvidenceStore(table, tuple(names), size, jpegs)


def _unreadable(cause: str) -> BundleError:
    return BundleError(
        f"{EVIDENCE} of this bundle cannot be read ({cause}); train it again, or inspect with --no-evidence."
    )
