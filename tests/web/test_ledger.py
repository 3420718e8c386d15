"""The log notices every row that is changed, deleted or slipped in behind its back."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import select, text

from blemish.station.chain import problems
from blemish.web import ledger
from blemish.web.site import Site
from blemish.web.tables import Log
from tests.web.support import PRODUCT, grey, made_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = made_site(tmp_path)
    for value in (60, 95, 130):
        site.line.inspect(grey(value), f"{value}.png", PRODUCT, by="ann", source="page")
    return site


def found(site: Site) -> list[str]:
    with site.database.reading() as session:
        return [*problems(ledger.entries(session)), *ledger.differences(session)]


def tamper(site: Site, sql: str) -> None:
    with site.database.engine.begin() as connection:
        connection.execute(text(sql))


def test_an_untouched_log_has_no_problems(site: Site) -> None:
    assert found(site) == []
    with site.database.reading() as session:
        kinds = [log.kind for log in session.scalars(select(Log).order_by(Log.seq))]
    assert kinds == ["detector", "promotion", "verdict", "verdict", "verdict"]


def test_a_hash_covers_row_image_bundle_and_the_entry_before(site: Site) -> None:
    with site.database.reading() as session:
        before, log = session.scalars(select(Log).where(Log.seq.in_((3, 4))).order_by(Log.seq)).all()
        body = json.loads(log.body)
        fields = ["blemish log 1", before.hash, 4, log.time, "verdict", log.body]
    assert log.hash == sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()
    assert body["image"] == sha256(grey(95)).hexdigest()
    assert body["bundle"] == site.detectors.judging(PRODUCT).sha256
    assert (body["decision"], body["name"], body["by"]) == ("review", "95.png", "ann")


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("update verdict set decision = 'good' where id = 3", "Entry 5: verdict 3 has been changed."),
        ("update verdict set score = score + 0.0001 where id = 1", "Entry 3: verdict 1 has been changed."),
        ("update image set sha256 = replace(sha256, 'a', 'b') where id = 2", "Entry 4: verdict 2 has been changed."),
        ("update promotion set by = 'eve'", "Entry 2: promotion 1 has been changed."),
        ("delete from verdict where id = 2", "Entry 4: verdict 2 has been deleted."),
        (
            "insert into verdict select 9, image_id, detector_id, time, name, source, by, 'x', decision, score, "
            "threshold, p_value, probability, defect, regions, error from verdict where id = 1",
            "Verdict 9 is not in the log.",
        ),
    ],
)
def test_a_row_that_is_not_as_it_was_is_named(site: Site, sql: str, sentence: str) -> None:
    with site.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    tamper(site, sql)
    assert sentence in found(site)


@pytest.mark.parametrize(
    "sql",
    [
        "delete from log where seq = 4",
        "update log set body = replace(body, 'review', 'good') where seq = 4",
        "update log set time = '2020' where seq = 3",
        "update log set previous = 'x' where seq = 5",
    ],
)
def test_an_entry_that_is_not_as_it_was_is_found(site: Site, sql: str) -> None:
    tamper(site, sql)
    assert found(site)


def test_a_row_whose_transaction_failed_is_in_neither(site: Site) -> None:
    def fail() -> None:
        with site.database.writing() as session:
            ledger.append(session, site.detectors.judging(PRODUCT), "2026")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert found(site) == []
