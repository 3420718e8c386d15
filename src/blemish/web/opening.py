"""The database of a data folder, for commands beside a server that may be running or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blemish.files import kept
from blemish.ownership import mark_of
from blemish.station.chain import START
from blemish.station.lines import Log
from blemish.types import BlemishError
from blemish.web import ledger
from blemish.web.config import DATABASE, KIND, RESTORING, WRITTEN, ServeConfig
from blemish.web.database import Database


@contextmanager
def opened(config: ServeConfig, *, make: bool = True) -> Iterator[Database]:
    """The database with today's tables, to be written. With `make`, a data folder that is not there yet is made, and
    stays if the block does not raise. Raises `BlemishError` where the folder is not ours."""
    check_whole(config)
    missing = not (config.database or config.folder.database.is_file())
    if missing and not make:
        raise _no_page(config)
    mark = mark_of(config.data)
    if missing or not (config.database or (mark and mark.kind == KIND)):
        with kept(config.data, KIND, WRITTEN, resume=True):  # it is made now, or refused
            database = _upgraded(config)
            try:
                yield database
            except BaseException:
                database.close()
                for ending in ("", "-wal", "-shm") if missing else ():
                    config.folder.database.with_name(DATABASE + ending).unlink(missing_ok=True)
                raise
            database.close()
        return
    database = _upgraded(config)
    try:
        yield database
    finally:
        database.close()


def check_whole(config: ServeConfig) -> None:
    """Raises `BlemishError` where a restore into the folder was killed: it would look like an empty page."""
    if (config.data / RESTORING).exists() or (config.data / f".{DATABASE}").exists():
        also = ", empty the database," if config.database else ""
        raise BlemishError(f"{config.data}: a restore into it did not end; delete the folder{also} and restore again.")


def _no_page(config: ServeConfig) -> BlemishError:
    return BlemishError(f"{config.data}: is no folder of `blemish serve`; give the one of its --data.")


@contextmanager
def as_it_is(config: ServeConfig) -> Iterator[Database]:
    """The database with the tables that it has, only to be read. Raises `BlemishError` where there is none."""
    check_whole(config)
    if not config.database and not config.folder.database.is_file():
        raise _no_page(config)
    database = Database(config.url)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def logged(config: ServeConfig) -> Iterator[tuple[Log, Iterator[str]]]:
    """The log of a page, and a sentence for each row that is not what its log says, both of one moment."""
    with as_it_is(config) as database, database.snapshot() as session:
        yield Log(START, ledger.entries(session)), ledger.differences(session)


def _upgraded(config: ServeConfig) -> Database:
    database = Database(config.url)
    database.upgrade()
    return database
