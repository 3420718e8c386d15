"""The database of a data folder, for commands beside a server that may be running or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blemish.files import kept
from blemish.ownership import mark_of
from blemish.types import BlemishError
from blemish.web.config import KIND, WRITTEN, ServeConfig
from blemish.web.database import Database


@contextmanager
def opened(config: ServeConfig, *, make: bool = True) -> Iterator[Database]:
    """The database, with today's tables. With `make`, a data folder that is not there yet is made; without, it must be
    there. Raises `BlemishError` where the folder is not ours."""
    if not config.database:
        mark = mark_of(config.data)
        if mark is None and not make:
            raise BlemishError(f"{config.data}: is no folder of `blemish serve`; give the one of its --data.")
        if mark is None or mark.kind != KIND:  # made now, or refused
            with kept(config.data, KIND, WRITTEN, resume=True):
                _upgraded(config).close()
    database = _upgraded(config)
    try:
        yield database
    finally:
        database.close()


def _upgraded(config: ServeConfig) -> Database:
    database = Database(config.url)
    database.upgrade()
    return database
