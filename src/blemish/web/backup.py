"""A backup: one .zip with all that a server keeps, as it was at one moment, made while the server runs.

- `tables/NAME.jsonl`: every table but the sessions, a row a line, in the order of its key. The same for SQLite and
  PostgreSQL, so that a backup of one can be restored into the other.
- `images/`, `detectors/`: the files that those rows name, from the data folder. Thumbnails are drawn again.
- `backup.json`, the last: what the others are, with the SHA-256 of each.

Nothing is compressed (images are already), so no file in it can be larger than the .zip.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from alembic.migration import MigrationContext
from sqlalchemy import MetaData, Table, select
from sqlalchemy.orm import Session

from blemish import __version__
from blemish.atomic import open_regular
from blemish.files import replacing, writable
from blemish.ownership import LITTER, MARK
from blemish.types import BlemishError, Progress, readable, silent
from blemish.web import ledger
from blemish.web.config import Folder, ServeConfig
from blemish.web.opening import as_it_is
from blemish.web.store import MEDIA
from blemish.web.tables import now

FORMAT = 1
CARD = "backup.json"
LEFT_OUT = ("session", "alembic_version")  # who is logged in now is nobody's later
HASH = "[0-9a-f]{64}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}"  # no dot at its beginning, so neither `..`
# What a backup holds besides its card: all that `restore` takes.
ALLOWED = re.compile(
    rf"tables/[a-z_]+\.jsonl|images/[0-9a-f]{{2}}/{HASH}\.[a-z]{{2,5}}"
    rf"|detectors/{HASH}(?:\.learned|/(?:{_NAME}/){{0,3}}(?:{_NAME}|{re.escape(MARK)}))"
)
_BLOCK = 1 << 20
_ROWS = 500  # read at once


@dataclass
class Saved:
    """What a backup holds: how much, of when, the log's head, and what could not be saved, a sentence each."""

    time: str
    head: str = ""
    rows: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)


def save(config: ServeConfig, target: Path, *, overwrite: bool = False, progress: Progress = silent) -> Saved:
    """Writes the backup, whole or not at all. Files that are missing or damaged are left out and named. Raises
    `BlemishError` where there is nothing to save, or `target` may not be written."""
    writable(target, [config.data])
    if target.exists() and not (overwrite and is_backup(target)):
        words = "replace it with --overwrite" if is_backup(target) else "it is no backup, so it stays"
        raise BlemishError(f"{target}: exists already; choose another name, or {words}.")
    with as_it_is(config) as database, replacing(target) as temporary:
        temporary.chmod(0o600)  # it holds the hashes of passwords
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed, database.snapshot() as session:
            saved = Saved(now())
            revision = MigrationContext.configure(session.connection()).get_current_revision()
            if revision is None:
                raise BlemishError(f"{database.name}: has no tables of `blemish serve`; there is nothing to save.")
            saved.head = ledger.head(session).to_text()
            card = {"blemish": __version__, "format": FORMAT, "revision": revision} | vars(saved)
            tables: dict[str, Any] = {}
            for table in tables_of(session):
                tables[table.name] = _write_table(packed, session, table)
                saved.rows += tables[table.name]["rows"]
            listed = list(_files(config.folder, session, saved.problems))
            files: dict[str, Any] = {}
            for name, digest in progress(listed, "saving", len(listed)):
                written = _write_file(packed, config.data, name, digest, saved.problems)
                files |= {name: written} if written else {}
            saved.files = len(files)
            card |= vars(saved) | {"tables": tables, "contents": files}
            packed.writestr(CARD, json.dumps(card, indent=1))
    return saved


def is_backup(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as packed:
            return CARD in packed.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def tables_of(session: Session) -> list[Table]:
    """The tables as they are in this database, each after those that it refers to."""
    metadata = MetaData()
    metadata.reflect(session.connection())
    return [table for table in metadata.sorted_tables if table.name not in LEFT_OUT]


def _write_table(packed: zipfile.ZipFile, session: Session, table: Table) -> dict[str, Any]:
    rows = session.execute(select(table).order_by(*table.primary_key.columns), execution_options={"yield_per": _ROWS})
    lines = (json.dumps(dict(row._mapping), allow_nan=False).encode() + b"\n" for row in rows)
    return _write(packed, f"tables/{table.name}.jsonl", lines, count="rows")


def _files(folder: Folder, session: Session, problems: list[str]) -> Iterator[tuple[str, str]]:
    """The files that the tables name, relative to the data folder, each with its SHA-256 where that is its name."""
    tables = {table.name: table for table in tables_of(session)}
    image, detector = tables["image"].columns, tables["detector"].columns
    named = {
        f"images/{row.sha256[:2]}/{row.sha256}{row.ending}": row.sha256
        for row in session.execute(select(image.sha256, image.ending).where(image.ending != ""))
    }
    for (mask,) in session.execute(select(image.mask).where(image.mask != "").distinct()):
        places = [f"images/{mask[:2]}/{mask}{ending}" for ending in MEDIA]
        found = [place for place in places if (folder.path / place).is_file()]
        named |= dict.fromkeys(found, mask)
        if not found:
            problems.append(f"The mask {mask} is missing in {folder.images}; it is not in the backup.")
    yield from sorted(named.items())
    for (sha256,) in session.execute(select(detector.sha256).order_by(detector.id)):
        place = folder.detectors / sha256
        inner = [file for file in sorted(place.rglob("*")) if file.is_file() and not file.is_symlink()]
        if not inner:
            problems.append(f"{place}: is missing, so this version is not in the backup.")
        for file in (*inner, *filter(Path.is_file, [folder.learned(sha256)])):
            name = file.relative_to(folder.path).as_posix()
            if ALLOWED.fullmatch(name):
                yield name, ""
            elif file.name not in LITTER:
                problems.append(f"{readable(str(file))}: is no file of a version; it is not in the backup.")


def _write_file(
    packed: zipfile.ZipFile, data: Path, name: str, digest: str, problems: list[str]
) -> dict[str, Any] | None:
    """What the card says of a file; None where it is missing or damaged."""
    try:
        file = open_regular(data / name)
    except OSError as cause:
        problems.append(f"{data / name}: cannot be read ({cause.strerror}); it is not in the backup.")
        return None
    with file:
        try:  # whole, before a part of it is in the .zip; what the disk says names no file
            whole = hashlib.sha256()
            while block := file.read(_BLOCK):
                whole.update(block)
            file.seek(0)
        except OSError as cause:
            problems.append(f"{data / name}: cannot be read ({cause.strerror}); it is not in the backup.")
            return None
        if digest and whole.hexdigest() != digest:
            problems.append(f"{data / name}: is damaged; it is not in the backup.")
            return None
        return _write(packed, name, iter(lambda: file.read(_BLOCK), b""))


def _write(packed: zipfile.ZipFile, name: str, blocks: Iterable[bytes], count: str = "") -> dict[str, Any]:
    """Adds a file; returns its bytes, SHA-256 and, under the name `count`, its number of blocks."""
    digest, size, number = hashlib.sha256(), 0, 0
    file: IO[bytes]
    with packed.open(name, "w", force_zip64=True) as file:
        for block in blocks:
            file.write(block)
            digest.update(block)
            size, number = size + len(block), number + 1
    return {"bytes": size, "sha256": digest.hexdigest()} | ({count: number} if count else {})
