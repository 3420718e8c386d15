"""The database: SQLite beside the images, or PostgreSQL. Opened, brought to today's tables, and written by one at a
time, so that the log's chain cannot fork and a verdict is there whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from blemish.types import BlemishError

WAIT = 10.0  # seconds that a writer waits for another one, and whoever connects for an answer
UPGRADE = 300.0  # seconds that an upgrade waits for another station's
_LOCK = 0x626C656D697368  # "blemish": PostgreSQL's advisory lock of the writers
# A connection whose other end is gone ends within two minutes, at the server too, with its transaction and its lock.
_ALIVE = {"keepalives_idle": 60, "keepalives_interval": 15, "keepalives_count": 4}


class Database:
    """`url` as SQLAlchemy has it. Raises `BlemishError` where it cannot be opened, or is of a newer blemish."""

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        try:
            self.engine = _engine(url)
        except (ArgumentError, NoSuchModuleError, ValueError):  # whose words may hold the password
            raise BlemishError(
                f"--database {self.name}: is no address of a database that can be used; write "
                "postgresql+psycopg://USER@HOST/NAME."
            ) from None

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads; what it gave can be used after it."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A session in which everything is as it was at one moment, however long it reads. Raises `BlemishError` where
        the database cannot be read."""
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}  # SQLite always reads like that
        try:
            with self.engine.connect().execution_options(**level) as connection, Session(connection) as session:
                yield session
        except DatabaseError as cause:
            raise BlemishError(f"{self.name}: cannot be read ({why(cause)}).") from None

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction of the only writer: committed when the block ends, or undone where it raises."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            connection = session.connection(execution_options={"blemish_writes": True})
            self._take_turn(connection, WAIT)
            yield session

    def _take_turn(self, connection: Connection, seconds: float) -> None:
        """Makes the transaction that of the only writer. Raises `OperationalError` where it has to wait too long."""
        if not self.is_sqlite:  # which begins with it, see `_engine`
            connection.execute(text(f"set local lock_timeout = {round(1000 * seconds)}"))
            connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})

    def upgrade(self, revision: str = "head") -> None:
        """Brings the tables to today's, in one transaction; what is in them is kept."""
        config = revisions()
        try:
            with self.engine.connect() as connection, connection.begin():
                self._take_turn(connection, UPGRADE)
                config.attributes["connection"] = connection
                command.upgrade(config, revision)
        except OperationalError as cause:
            raise BlemishError(
                f"{self.name}: cannot be opened ({why(cause)}); check that it is there and may be written."
            ) from None
        except DatabaseError as cause:
            raise BlemishError(
                f"{self.name}: is no database of blemish's ({why(cause)}); choose another one."
            ) from None
        except CommandError as cause:
            raise BlemishError(
                f"{self.name}: was written by a newer blemish ({cause}); update blemish, or restore a backup."
            ) from None

    def tables(self) -> list[str]:
        """The names of its tables. Raises `BlemishError` where it cannot be opened."""
        try:
            with self.engine.connect() as connection:
                return inspect(connection).get_table_names()
        except DatabaseError as cause:
            raise BlemishError(f"{self.name}: cannot be opened ({why(cause)}).") from None

    def close(self) -> None:
        self.engine.dispose()


def revisions() -> Config:
    """Where Alembic finds the revisions of the tables."""
    config = Config()
    config.set_main_option("script_location", "blemish.web:migrations")
    config.set_main_option("version_locations", "blemish.web:revisions")
    config.set_main_option("path_separator", "newline")
    return config


def shown(url: str) -> str:
    """A database's address without its password, also where it is none."""
    return re.sub(r"(?i)(\bpassword=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


def why(cause: DBAPIError) -> str:
    """What the database said, in one line."""
    return " ".join(str(cause.orig or cause).split())


def is_unavailable(cause: BaseException) -> bool:
    """Whether the database could not be used now: locked, full, or gone."""
    return isinstance(cause, OperationalError)


def is_full(cause: DBAPIError) -> bool:
    """Whether the disk of the database is full."""
    names = getattr(cause.orig, "sqlite_errorname", ""), getattr(cause.orig, "sqlstate", "")
    return bool({"SQLITE_FULL", "53100"} & set(names))


def _engine(url: str) -> Engine:
    makers = {"sqlite": _sqlite, "postgresql": _server}
    kind = make_url(url).get_backend_name()
    if kind not in makers:
        raise NoSuchModuleError(kind)
    return makers[kind](url)


def _server(url: str) -> Engine:
    """Of PostgreSQL. What the address itself says of the connection counts."""
    own = {"connect_timeout": round(WAIT), **_ALIVE}
    given = {name: value for name, value in own.items() if name not in make_url(url).query}
    engine = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args=given)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            for name, value in _ALIVE.items():  # of the server's end
                cursor.execute(f"set tcp_{name} = {value}")
        connection.commit()

    return engine


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": WAIT, "check_same_thread": False}, pool_size=10)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # or sqlite3 would begin transactions by itself, too late
        cursor = connection.cursor()
        # Synchronised to the disk with each commit: a verdict that was given is not lost with the power.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A writer takes its turn at once: one that read first could not become a writer any more.
        writes = connection.get_execution_options().get("blemish_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
