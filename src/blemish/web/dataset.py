"""The labelled images of a product: which are held out, and all of them as a folder that `blemish train` reads.

An image gets its split when it is first labelled, and keeps it: what was held out stays held out over all versions,
unless a version turns out to have learned from it. Images of one item get the same split.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as Pixels
from sqlalchemy import and_

from blemish.data.audit import UNTYPED
from blemish.data.mask_names import STRONG, WEAK, words
from blemish.data.reading import GOOD
from blemish.listing import is_hidden, is_litter
from blemish.web.store import Store
from blemish.web.tables import Image

HELD_OUT = 5  # one of so many items is only tested
LONGEST = 40  # characters of a name that are kept
PIXELS = "pixels:"  # begins the item of an image that came without one


def split_of(digest: str, item: str = "") -> Literal["train", "test"]:
    """The split of an image that is labelled for the first time, by its SHA-256 or, where it shows an item that has a
    name, by that name: one of `HELD_OUT` is "test".

    >>> split_of("0" * 64), split_of("0" * 63 + "1")
    ('test', 'train')
    """
    text = hashlib.sha256(item.encode("utf-8", "surrogateescape")).hexdigest() if item else digest
    return "test" if int(text, 16) % HELD_OUT == 0 else "train"


def item_of(pixels: npt.NDArray[np.uint8]) -> str:
    """The item of an image that came without one: what its decoded pixels, uint8 (height, width, 3), are, so that the
    same picture saved in two formats, or with other metadata, lies on one side of the split."""
    content = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels, np.uint8).tobytes())
    return f"{PIXELS}{content.hexdigest()}"


def is_imported(item: str) -> bool:
    """Whether the first label of an image of this item came from a folder (`imports.py`), and not from a person who
    saw a verdict."""
    return bool(item) and not item.startswith(PIXELS)


IMPORTED = and_(Image.item != "", ~Image.item.startswith(PIXELS))  # the same for a query


@dataclass(frozen=True)
class Written:
    """A folder that was written: its images by their names in it, and those whose file is gone from the store."""

    folder: Path
    images: dict[str, Image] = field(default_factory=dict)
    missing: tuple[Image, ...] = ()


def write_folder(store: Store, images: Iterable[Image], out: Path, *, link: bool = False) -> Written:
    """Writes the labelled ones of `images`, all of one product, into the new folder `out`: train/good, train/TYPE,
    test/good, test/TYPE, and the masks in ground_truth/train/TYPE/NAME_mask.png and ground_truth/test/TYPE.

    Names are made of the image's name and its hash, and such that images of one item are read as such. With `link`
    the files are links to those of the store, for a reader that changes nothing.
    """
    labelled = [image for image in images if image.label and image.ending]
    shown = Counter(image.item for image in labelled)
    folders = _folders({image.defect for image in labelled if image.label == "anomaly"})
    for split in ("train", "test"):
        (out / split / "good").mkdir(parents=True)  # the layout is known by them, also where nothing is held out
    names: dict[str, Image] = {}
    missing = []
    for image in labelled:
        split = image.split or split_of(image.sha256, image.item)
        kind = "good" if image.label == "good" else folders[image.defect]
        stem = _stem(image, several=shown[image.item] > 1)
        name = f"{split}/{kind}/{stem}{image.ending}"
        source, target = store.image(image.sha256, image.ending), out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not source.is_file():
            missing.append(image)
            continue
        _put(source, target, link=link)
        names[name] = image
        if image.label == "anomaly":
            _put_mask(store, image, out / "ground_truth" / split / kind / f"{stem}_mask.png", link=link)
    return Written(out, names, tuple(missing))


def _put(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            pass
        else:
            return
    shutil.copyfile(source, target)


def _put_mask(store: Store, image: Image, target: Path, *, link: bool) -> None:
    """The mask of a defective image, where it has one: what a person drew, else what came with it."""
    stored = store.image(image.mask, ".png") if image.mask else None
    drawn = mask_of(image.shapes, (image.height or 0, image.width or 0)) if image.shapes else None
    if drawn is None and not (stored and stored.is_file()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if drawn is not None:
        Pixels.fromarray(drawn.astype(np.uint8) * np.uint8(255)).save(target, compress_level=1)
    elif stored:
        _put(stored, target, link=link)


def mask_of(shapes: Sequence[dict[str, Any]], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Polygons in pixels of the image, [{"points": [[x, y], ...]}], as a mask, bool (height, width) of `size`: all
    pixels whose centre lies in one of them (by the even-odd rule). So the box (left, top, right, bottom) is half-open.
    A polygon between the centres marks the pixels of its corners.
    """
    mask = np.zeros(size, bool)
    for shape in shapes:
        points = np.array(shape["points"], np.float64).reshape(-1, 2)
        mask |= _filled(points, size)
    return mask


def _filled(points: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Pillow's polygons hold the pixels of their outlines too, so that a box is one pixel too wide."""
    height, width = size
    filled = np.zeros(size, bool)
    ends = np.roll(points, -1, axis=0)
    first, last = np.floor(points[:, 1].min()), np.ceil(points[:, 1].max())
    for row in range(max(0, int(first)), min(height, int(last))):
        centre = row + 0.5
        crossing = (points[:, 1] <= centre) != (ends[:, 1] <= centre)
        start, end = points[crossing], ends[crossing]
        along = (centre - start[:, 1]) / (end[:, 1] - start[:, 1])
        crossings = np.sort(start[:, 0] + along * (end[:, 0] - start[:, 0]))
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
        for left, right in zip(columns[::2], columns[1::2], strict=True):
            filled[row, left:right] = True
    if not filled.any() and height and width:
        columns = np.clip(points[:, 0].astype(int), 0, width - 1)
        filled[np.clip(points[:, 1].astype(int), 0, height - 1), columns] = True
    return filled


def _stem(image: Image, *, several: bool) -> str:
    """A file's name without its ending: readable, and unique by the image's hash. KolektorSDD's NAME_Part2 is how a
    layout tells that images show the same item."""
    name = _safe(image.name.rpartition("/")[2].rpartition("\\")[2].rpartition(".")[0])
    if image.item and several:
        item = hashlib.sha256(image.item.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        stem = f"{name}-{item}_Part{int(image.sha256[:16], 16)}"
    else:
        stem = f"{name}-{image.sha256[:16]}"
    return stem.lstrip("-") if not is_litter(f"{stem}.png") else stem.removeprefix(f"{name}-")


def _folders(defects: Iterable[str]) -> dict[str, str]:
    """A folder's name for each defect type: none that means good, masks, or something else to a reader."""
    names: dict[str, str] = {}
    for defect in sorted(defects):
        name = _safe(defect) if defect else UNTYPED
        misread = not name or name.casefold() in GOOD or is_hidden(name) or is_litter(name)
        if misread or set(words(name)) & (STRONG | WEAK) or name.casefold() in map(str.casefold, names.values()):
            name = f"{UNTYPED}-{hashlib.sha256(defect.encode()).hexdigest()[:8]}"
        names[defect] = name
    return names


def _safe(name: str) -> str:
    """What of a name may stand in a file's name."""
    return re.sub(r"[^\w.-]+", "-", name.encode("utf-8", "ignore").decode())[:LONGEST].strip(".-_ ")
