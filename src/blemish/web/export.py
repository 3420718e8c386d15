"""Verdicts as CSV and JSON lines, and their labelled images as a .zip of a folder that `blemish data` reads: written as
they are read, so that memory stays flat."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from blemish.atomic import naming
from blemish.types import BlemishError
from blemish.web.database import Database
from blemish.web.dataset import Written, split_of, write_folder
from blemish.web.history import Filters, every, matching
from blemish.web.store import Store
from blemish.web.tables import Image, Verdict

COLUMNS = (
    *("id", "time", "product", "name", "source", "by", "decision", "score", "threshold", "p_value", "probability"),
    *("predicted_defect", "regions", "error", "label", "defect", "version", "bundle", "image"),
)
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # with which a table program begins to calculate
BLOCK = 2**20  # bytes that are sent at once
UNFINISHED = ".export-"
FORGOTTEN = 86400  # seconds, after which nobody is still downloading it
Shape = Literal["split", "no split", "no good", "no label"]  # of a folder of images: what can be written of them
REFUSED: dict[Shape, str] = {
    "no label": "None of these images has a label, so there is no folder to write; label some in Review.",
    "no good": "None of these images is labelled good, and a folder needs good ones; take out a filter or label more.",
}


def as_csv(database: Database, filters: Filters) -> Iterator[str]:
    """Header, then a line for each verdict, the newest first. The database's trouble comes before the first text."""
    return _table(every(database, filters))


def _table(verdicts: Iterable[Verdict]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for verdict in verdicts:
        row = _row(verdict) | {"regions": len(verdict.regions)}
        writer.writerow([_cell(row[column]) for column in COLUMNS])
        if buffer.tell() > BLOCK // 16:
            yield _taken(buffer)
    yield _taken(buffer)


def as_jsonl(database: Database, filters: Filters) -> Iterator[str]:
    """A line for each verdict, the newest first, with the keys of a run's verdicts.jsonl and what is known besides. The
    database's trouble comes before the first text."""
    return map(_line, every(database, filters))


def _line(verdict: Verdict) -> str:
    image = verdict.image
    line = _row(verdict) | {
        "path": verdict.name,
        "size": [image.width, image.height] if image.width else None,
        "regions": verdict.regions,
    }
    return json.dumps(line, allow_nan=False) + "\n"


def _row(verdict: Verdict) -> dict[str, Any]:
    same = ("id", "time", "name", "source", "by", "decision", "score", "threshold", "p_value", "probability", "error")
    return {column: getattr(verdict, column) for column in same} | {
        "product": verdict.image.product,
        "predicted_defect": verdict.defect,
        "label": verdict.image.label,
        "defect": verdict.image.defect,
        "version": verdict.detector.version,
        "bundle": verdict.detector.sha256,
        "image": verdict.image.sha256,
    }


def _cell(value: Any) -> Any:
    """A text that a table program would take for a formula begins with an apostrophe instead."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def shape(session: Session, filters: Filters) -> Shape:
    """What a folder of the verdicts' labelled images would be: "split", into train and test, or "no split", where no
    good image among them is one to learn from, or why there is none."""
    labels = set(session.scalars(select(Image.label).where(*_chosen(filters)).distinct()))
    if "good" not in labels:
        return "no good" if labels else "no label"
    learned = select(Image.id).where(*_chosen(filters), Image.label == "good", Image.split == "train").limit(1)
    return "split" if session.scalar(learned) is not None else "no split"


def _chosen(filters: Filters) -> tuple[ColumnElement[bool], ...]:
    """Of the images that go into a folder."""
    return Image.id.in_(matching(select(Verdict.image_id), filters)), Image.label.is_not(None), Image.ending != ""


def as_zip(store: Store, database: Database, filters: Filters) -> Iterator[bytes]:
    """The labelled images of the verdicts and their masks, as a folder that `blemish data` reads: with their splits, or
    by their labels alone where no good image is one to learn from. Raises `BlemishError` where none is labelled good,
    or the disk is full, before the first byte."""
    with database.reading() as session:
        found = session.scalars(select(Image).where(*_chosen(filters))).all()
    images = [image for image in found if store.image(image.sha256, image.ending).is_file()]
    good = [image for image in images if image.label == "good"]
    if not good:
        raise BlemishError(REFUSED["no good" if images else "no label"])
    home = store.folder.jobs  # on the images' own disk, so that links will do
    with naming(home):
        home.mkdir(parents=True, exist_ok=True)
        _tidy(home)
        made = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=home))
    name = "".join(letter if letter.isalnum() else "-" for letter in filters.product) or "images"
    try:
        with naming(made):
            written = write_folder(store, images, made / name, link=True)
            if not any((image.split or split_of(image.sha256, image.item)) == "train" for image in good):
                _forget_split(written)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return _zipped(made)


def _forget_split(written: Written) -> None:
    """Makes the layout "folders" of it: good, TYPE, and ground_truth/TYPE. Names hold hashes: none is there twice."""
    for split in ("train", "test"):
        for above in (written.folder, written.folder / "ground_truth"):
            for file in sorted((above / split).glob("*/*")):
                kind = file.parent.name
                # A defect of such a name would be taken for a split.
                target = above / (f"{kind}-" if kind.casefold() in ("train", "test") else kind) / file.name
                target.parent.mkdir(exist_ok=True)
                file.rename(target)
            shutil.rmtree(above / split, ignore_errors=True)


def _zipped(folder: Path) -> Iterator[bytes]:
    """The files of `folder` as a .zip, piece by piece; then the folder is deleted. Images are compressed already."""
    sink = _Sink()
    try:
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.rglob("*")):
                name = file.relative_to(folder).as_posix()
                if file.is_dir():
                    archive.mkdir(name)
                    continue
                with file.open("rb") as source, archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target:
                    while block := source.read(BLOCK):
                        target.write(block)
                        yield sink.taken()
        yield sink.taken()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tidy(home: Path) -> None:
    """Deletes what exports left there that were killed."""
    for folder in home.glob(f"{UNFINISHED}*"):
        if folder.stat().st_mtime < time.time() - FORGOTTEN:
            shutil.rmtree(folder, ignore_errors=True)


class _Sink(io.RawIOBase):
    """Where zipfile writes what is sent next; it cannot go back."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._waiting += content
        return len(content)

    def taken(self) -> bytes:
        content = bytes(self._waiting)
        self._waiting.clear()
        return content
