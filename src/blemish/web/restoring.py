"""A backup becomes a data folder and a database again: into new or empty ones only, and only what its card vouches for.

Of the .zip only names that a backup has are taken, none of which can lead out of the folder; no link, no file twice,
nothing compressed, and no more in all than the .zip has bytes; each file must have the size and the SHA-256 that the
card says, the tables before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from blemish.files import kept
from blemish.station.chain import Head, problems
from blemish.types import BlemishError, Progress, silent
from blemish.web import ledger
from blemish.web.backup import ALLOWED, CARD, FORMAT, HASH, Saved, tables_of
from blemish.web.config import DATABASE, KIND, RESTORING, WRITTEN, ServeConfig
from blemish.web.database import Database, revisions, why
from blemish.web.tables import Base

LARGEST_CARD = 1 << 30  # bytes
_ROWS, _BLOCK = 500, 1 << 20


def restore(file: Path, config: ServeConfig, *, progress: Progress = silent) -> Saved:
    """Restores `file` into the folder and the database of `config`, which must be new or empty. The log is verified at
    the end; what it says is among the `problems`. Raises `BlemishError`, and leaves nothing, where the file is no
    backup or damaged."""
    if config.data.exists() and (not config.data.is_dir() or any(config.data.iterdir())):
        raise BlemishError(f"{config.data}: is not empty; restore into a new folder.")
    try:
        with zipfile.ZipFile(file) as packed:
            card = _checked(packed, file)
            with kept(config.data, KIND, WRITTEN, reads=[file]):
                try:
                    (config.data / RESTORING).touch()  # stays where this is killed
                    saved = _restored(packed, card, config, progress)
                    (config.data / RESTORING).unlink()
                    return saved
                except BaseException:
                    _clear(config.data)
                    raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as cause:
        raise BlemishError(f"{file}: is damaged, or no backup ({cause}); give another one.") from None
    except OSError as cause:
        if cause.filename is None or Path(str(cause.filename)) == file:
            raise BlemishError(f"{file}: cannot be read ({cause.strerror or cause}).") from None
        raise


def _checked(packed: zipfile.ZipFile, file: Path) -> dict[str, Any]:
    """The card. Raises `BlemishError` unless all names are those of a backup and as the card says."""
    infos = {info.filename: info for info in packed.infolist()}
    if CARD not in infos or infos[CARD].file_size > LARGEST_CARD:
        raise BlemishError(f"{file}: is no backup, it has no {CARD}; give what `blemish backup` wrote.")
    # Files that overlap in the .zip would become more than it is.
    if sum(max(info.file_size, info.compress_size) for info in infos.values()) > file.stat().st_size:
        raise BlemishError(f"{file}: holds more than its own size, which no backup does; give another one.")
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or not (info.filename == CARD or ALLOWED.fullmatch(info.filename)):
            raise BlemishError(f"{file}: holds {info.filename[:200]!r}, which no backup does; give another one.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise BlemishError(f"{file}: was packed again by another program; give it as `blemish backup` wrote it.")
    if len(infos) != len(packed.infolist()):
        raise BlemishError(f"{file}: holds a file twice, which no backup does; give another one.")
    try:
        card: dict[str, Any] = json.loads(packed.read(CARD))
        names = {f"tables/{name}.jsonl": said for name, said in card["tables"].items()} | card["contents"]
        sizes = {name: int(said["bytes"]) for name, said in names.items()}
        wrong = sizes != {name: info.file_size for name, info in infos.items() if name != CARD}
        newer, revision = int(card["format"]) > FORMAT, str(card["revision"])
        Head.from_text(card["head"])
    except (ValueError, KeyError, TypeError, AttributeError, BlemishError) as cause:
        raise BlemishError(f"{file}: its {CARD} cannot be read ({cause}); give another backup.") from None
    if newer or not _knows(revision):
        raise BlemishError(f"{file}: was written by blemish {card.get('blemish')}, a newer one; update blemish first.")
    if wrong:
        raise BlemishError(f"{file}: does not hold the files that its {CARD} lists; give another backup.")
    return card


def _knows(revision: str) -> bool:
    return revision in {script.revision for script in ScriptDirectory.from_config(revisions()).walk_revisions()}


def _restored(packed: zipfile.ZipFile, card: dict[str, Any], config: ServeConfig, progress: Progress) -> Saved:
    """The tables are checked, then the files written, then the rows that name them, in one transaction."""
    for table, said in card["tables"].items():
        for _ in _blocks(packed, f"tables/{table}.jsonl", said):
            pass
    names = list(card["contents"])
    for name in progress(names, "restoring", len(names)):
        place = config.data / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as out:
            for block in _blocks(packed, name, card["contents"][name]):
                out.write(block)
    unfinished = config.data / f".{DATABASE}"
    database = Database(config.database or f"sqlite:///{unfinished.absolute()}")
    try:
        if database.tables():
            raise BlemishError(f"{database.name}: holds tables already; restore into an empty database.")
        database.upgrade(card["revision"])
        try:
            with database.writing() as session:
                _fill(session, packed, card)
        except BaseException as cause:
            _drop(database)
            if isinstance(cause, DBAPIError):
                raise BlemishError(f"The backup's rows do not fit into {database.name} ({why(cause)}).") from None
            raise
        database.upgrade()
        saved = Saved(card["time"], rows=sum(said["rows"] for said in card["tables"].values()), files=len(names))
        with database.snapshot() as session:
            head = ledger.head(session)
            saved.head = head.to_text()
            saved.problems = [*problems(ledger.entries(session), Head.from_text(card["head"]))]
            saved.problems += ledger.differences(session)
    finally:
        database.close()
    if not config.database:
        unfinished.rename(config.folder.database)
    return saved


def _fill(session: Session, packed: zipfile.ZipFile, card: dict[str, Any]) -> None:
    """Puts the rows into the tables, which are those of the backup's revision, and sets PostgreSQL's counters."""
    postgres = session.get_bind().dialect.name == "postgresql"
    for table in tables_of(session):
        said = card["tables"].get(table.name)
        if said is None:
            raise BlemishError(f"The backup has no table {table.name}; give another one.")
        lines = _rows(packed, table.name, said)
        while rows := list(islice(lines, _ROWS)):
            if any(set(row) != set(table.columns.keys()) for row in rows):
                raise BlemishError(f"The backup's table {table.name} has other columns; give another backup.")
            session.execute(insert(table), rows)
        if table.name == "job":  # whose process and files are not here
            lost = {"state": "cancelled", "error": "It had not ended when the backup was made."}
            session.execute(update(table).where(table.c.state.in_(("queued", "running"))).values(lost))
        if postgres and "id" in table.columns and (last := session.scalar(select(func.max(table.c.id)))):
            counter = text("select setval(pg_get_serial_sequence(:name, 'id'), :last)")
            session.execute(counter, {"name": f'"{table.name}"', "last": last})


def _rows(packed: zipfile.ZipFile, table: str, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rest = b""
    for block in _blocks(packed, f"tables/{table}.jsonl", said):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise BlemishError(f"The backup's table {table} cannot be read; give another backup.")
            yield row


def _blocks(packed: zipfile.ZipFile, name: str, said: dict[str, Any]) -> Iterator[bytes]:
    """The content of a file. Raises `BlemishError` at its end where it is not what the card says."""
    digest = hashlib.sha256()
    with packed.open(name) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            yield block
    named = re.match(rf"images/../({HASH})", name)
    if digest.hexdigest() != said["sha256"] or (named and named[1] != digest.hexdigest()):
        raise BlemishError(f"The backup is damaged: {name} is not what was saved; give another one.")


def _drop(database: Database) -> None:
    """Leaves the database as empty as it was."""
    with database.engine.begin() as connection:
        Base.metadata.drop_all(connection)
        connection.execute(text("drop table if exists alembic_version"))


def _clear(data: Path) -> None:
    for name in (RESTORING, *WRITTEN, *(f".{DATABASE}{end}" for end in ("", "-wal", "-shm"))):
        place = data / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
