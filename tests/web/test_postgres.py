"""The same on a real PostgreSQL: tables, verdicts from several stations at once, one chain."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select

from blemish.station.chain import problems
from blemish.web import ledger
from blemish.web.tables import Base, Log, Verdict
from tests.web.support import PRODUCT, grey, made_site


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
