"""Where the normal patches of a detector come from, and the file that carries their images into the bundle."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.images import decode
from blemish.inference.evidence_store import NAMES, NO_IMAGE, TABLE, image_name
from blemish.types import BlemishError, Sample

QUALITY = 85  # of the JPEGs
_HEADER = 92  # bytes that a .zip adds to a file, with its name in it twice


@dataclass(frozen=True)
class Sources:
    """Where the entries of a memory bank come from: the images, and int32 `table` `(M, 3)`, each entry's image (an
    index into these), row and column of the grid."""

    samples: tuple[Sample, ...]
    table: npt.NDArray[np.int32]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sample.name for sample in self.samples)


def write_evidence(sources: Sources, image_size: tuple[int, int], file: Path, megabytes: float) -> int:
    """Writes the table, and the source images with their names: JPEGs of `image_size` (height, width), those with most
    entries first, as many as fit into `megabytes` (of 10^6 bytes). Returns how many do.

    The same sources give the same bytes. Raises `BlemishError` for a size below zero.
    """
    if megabytes < 0:
        raise BlemishError(f"--evidence-size is a number of megabytes, not {megabytes:g}; with 0 no images are stored.")
    entries = np.bincount(sources.table[:, 0], minlength=len(sources.samples))
    order = np.argsort(-entries, kind="stable")[: int((entries > 0).sum())]
    left = megabytes * 1e6 - len(_npy(sources.table)) - 3 * _HEADER  # the final table has the same size
    kept: list[bytes] = []
    names: list[str] = []
    for index in order:
        jpeg, name = _jpeg(sources.samples[index], image_size), sources.samples[index].name
        left -= len(jpeg) + _HEADER + len(json.dumps(name)) + 2
        if left < 0:
            break
        kept.append(jpeg)
        names.append(name)
    new = np.full(len(sources.samples), NO_IMAGE, np.int32)
    new[order[: len(kept)]] = np.arange(len(kept))
    table = sources.table.copy()
    table[:, 0] = new[table[:, 0]]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # JPEGs do not compress
        archive.writestr(zipfile.ZipInfo(TABLE), _npy(table))
        archive.writestr(zipfile.ZipInfo(NAMES), json.dumps(names))
        for number, jpeg in enumerate(kept):
            archive.writestr(zipfile.ZipInfo(image_name(number)), jpeg)
    return len(kept)


def _npy(table: npt.NDArray[np.int32]) -> bytes:
    content = io.BytesIO()
    np.save(content, table, allow_pickle=False)
    return content.getvalue()


def _jpeg(sample: Sample, image_size: tuple[int, int]) -> bytes:
    """The image resized as for the detector, by the same triangle filter as in the graph."""
    height, width = image_size
    image = Image.fromarray(decode(sample)).resize((width, height), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()
