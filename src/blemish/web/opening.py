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
from blemish.web.config import KIND, WRITTEN, ServeConfig
from blemish.web.database import Database


@contextmanager
def opened(config: ServeConfig) -> Iterator[Database]:
    """The database with today's tables, to be written; a data folder that is not there yet is made. Raises
    `BlemishError` where the folder is not ours."""
    if not config.database:
        mark = mark_of(config.data)
        if mark is None or mark.kind != KIND:  # it is made now, or refused
            with kept(config.data, KIND, WRITTEN, resume=True):
                _upgraded(config).close()
    database = _upgraded(config)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def as_it_is(config: ServeConfig) -> Iterator[Database]:
    """The database with the tables that it has, only to be read. Raises `BlemishError` where there is none."""
    if not config.database and not config.folder.database.is_file():
        raise BlemishError(f"{config.data}: is no folder of `blemish serve`; give the one of its --data.")
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
