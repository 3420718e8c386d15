"""The database is opened, upgraded with its data, refused in words, and written by one at a time."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, text

from blemish.types import BlemishError
from blemish.web.database import Database, shown
from blemish.web.tables import Base, Product

WRITER = """
import sys
from blemish.web.database import Database, shown
from blemish.web.tables import Product
database = Database(sys.argv[1])
for _ in range(20):
    with database.writing() as session:
        row = session.get_one(Product, "a")
        row.detector_id += 1
"""


def test_the_revisions_make_the_tables_of_the_code(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    database.upgrade()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    database.close()


def test_an_upgrade_keeps_what_is_there(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    database.upgrade("0001")  # as the first release left it
    with database.engine.begin() as connection:
        connection.execute(text("insert into product (name, detector_id) values ('flange', 3)"))
    database.upgrade()
    database.upgrade()
    with database.reading() as session:
        assert [(row.name, row.detector_id) for row in session.scalars(select(Product))] == [("flange", 3)]
    database.close()


def test_a_writer_that_fails_writes_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    database.upgrade()

    def fail() -> None:
        with database.writing() as session:
            session.add(Product(name="a", detector_id=None))
            session.flush()
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.reading() as session:
        assert session.get(Product, "a") is None
    database.close()


def test_writers_of_several_processes_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.sqlite'}"
    database = Database(url)
    database.upgrade()
    with database.writing() as session:
        session.add(Product(name="a", detector_id=0))
    running = [subprocess.Popen([sys.executable, "-c", WRITER, url]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    with database.reading() as session:
        assert session.get_one(Product, "a").detector_id == 60
    database.close()


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "nosuch://x/y",
        "mysql://ada:secret@h/n",
        "postgresql+psycopg://ada:secret@h:port/n",  # was an error of ours
        "postgresql+nosuch://ada:sec@ret@h/n",
        "postgresql+psycopg://ada@h:port/n?password=secret",
    ],
)
def test_what_is_no_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BlemishError, match="write postgresql") as refused:
        Database(url)
    assert not re.search("sec|ret", str(refused.value))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg://ada:secret@h:5432/n", "postgresql+psycopg://ada:***@h:5432/n"),
        (
            "postgresql+psycopg://ada@h/n?password=secret&sslmode=require",
            "postgresql+psycopg://ada@h/n?password=***&sslmode=require",
        ),
        ("postgresql+psycopg://h:5432/n", "postgresql+psycopg://h:5432/n"),
        ("sqlite:////a/b:c@d.sqlite", "sqlite:////a/b:c@d.sqlite"),
    ],
)
def test_a_password_is_not_shown(url: str, said: str) -> None:
    assert shown(url) == said


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"this is no database at all, but some text of a user")
    with pytest.raises(BlemishError, match=r"a\.sqlite: is no database of blemish's"):
        Database(f"sqlite:///{tmp_path / 'a.sqlite'}").upgrade()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    database.upgrade()
    database.close()
    with sqlite3.connect(tmp_path / "a.sqlite") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    with pytest.raises(BlemishError, match="was written by a newer blemish"):
        Database(f"sqlite:///{tmp_path / 'a.sqlite'}").upgrade()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match="cannot be opened"):
        Database(f"sqlite:///{tmp_path / 'none' / 'a.sqlite'}").upgrade()
