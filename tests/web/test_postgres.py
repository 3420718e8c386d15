"""The same on a real PostgreSQL: tables, verdicts from several stations at once, one chain."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text

from blemish.station.chain import problems
from blemish.web import database, ledger
from blemish.web.tables import Base, Log, Verdict
from tests.web.support import PRODUCT, client_of, grey, made_site


def test_two_stations_write_one_chain(tmp_path: Path, postgres: Callable[[], str]) -> None:
    url = postgres()
    stations = [made_site(tmp_path, database=url) for _ in range(2)]
    assert [len(station.detectors.versions(PRODUCT)) for station in stations] == [1, 1]
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(
            pool.map(
                lambda i: stations[i % 2].line.inspect(
                    grey(50 + i // 2), f"{i}.png", PRODUCT, by=f"station {i % 2}", source="page", request=f"r{i // 2}"
                ),
                range(40),
            )
        )
    assert len({verdict.id for verdict in verdicts}) == 20
    with stations[0].database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Verdict)) == 20
        assert session.scalar(select(func.max(Log.seq))) == 22
        assert not list(problems(ledger.entries(session)))
        assert not list(ledger.differences(session))
    for station in stations:
        station.database.close()


def test_the_revisions_make_the_tables_of_the_code(tmp_path: Path, postgres: Callable[[], str]) -> None:
    site = made_site(tmp_path, database=postgres())
    with site.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    site.database.close()


def test_a_writer_does_not_wait_for_ever(
    tmp_path: Path, postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another station holds the writers' lock, and its network is gone: all others hung with it."""
    monkeypatch.setattr(database, "WAIT", 0.3)
    site = made_site(tmp_path, database=postgres())
    client = client_of(site)
    with site.database.engine.connect() as other, other.begin():
        other.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": database._LOCK})
        answer = client.post("/api/v1/inspect", content=grey(60))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "lock timeout" in answer.json()["error"]["message"]
    assert client.post("/api/v1/inspect", content=grey(60)).json()[0]["id"] == 1
    site.database.close()


def test_a_connection_finds_out_that_its_other_end_is_gone(postgres: Callable[[], str]) -> None:
    """What the address says itself counts. (The server's own end is asked too, but has none of it for a socket.)"""
    base = database.Database(f"{postgres()}&keepalives_idle=33")
    with base.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        given = raw.info.get_parameters()
    assert (given["connect_timeout"], given["keepalives_idle"], given["keepalives_count"]) == ("10", "33", "4")
    base.close()
