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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from blemish.atomic import naming
from blemish.types import BlemishError
from blemish.web.database import Database
from blemish.web.dataset import write_folder
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


def as_csv(database: Database, filters: Filters) -> Iterator[str]:
    """Header, then a line for each verdict, the newest first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    with database.reading() as session:
        for verdict in every(session, filters):
            row = _row(verdict) | {"regions": len(verdict.regions)}
            writer.writerow([_cell(row[column]) for column in COLUMNS])
            if buffer.tell() > BLOCK // 16:
                yield _taken(buffer)
    yield _taken(buffer)


def as_jsonl(database: Database, filters: Filters) -> Iterator[str]:
    """A line for each verdict, the newest first, with the keys of a run's verdicts.jsonl and what is known besides."""
    with database.reading() as session:
        for verdict in every(session, filters):
            image = verdict.image
            line = _row(verdict) | {
                "path": verdict.name,
                "size": [image.width, image.height] if image.width else None,
                "regions": verdict.regions,
            }
            yield json.dumps(line, allow_nan=False) + "\n"


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


def as_zip(store: Store, database: Database, filters: Filters) -> Iterator[bytes]:
    """The labelled images of the verdicts, their masks and splits, as `dataset.write_folder` lays them out. Raises
    `BlemishError` where none is labelled, or the disk is full, before the first byte."""
    with database.reading() as session:
        images = session.scalars(
            select(Image).where(Image.id.in_(matching(select(Verdict.image_id), filters)), Image.label.is_not(None))
        ).all()
    if not images:
        raise BlemishError("None of these images has a label, so there is no folder to write; label some in Review.")
    home = store.folder.jobs  # on the images' own disk, so that links will do
    with naming(home):
        home.mkdir(parents=True, exist_ok=True)
        _tidy(home)
        made = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=home))
    name = "".join(letter if letter.isalnum() else "-" for letter in filters.product) or "images"
    try:
        with naming(made):
            write_folder(store, images, made / name, link=True)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return _zipped(made)


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
