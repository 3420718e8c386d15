"""The filters against a search by hand, pages, counts; on SQLite and PostgreSQL alike."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from sqlalchemy import event

from blemish.types import BlemishError
from blemish.web import history
from blemish.web.history import Filters
from blemish.web.site import Site
from blemish.web.tables import Verdict
from blemish.web.times import utc
from tests.web.rows import image_row, verdict_row
from tests.web.support import PRODUCT, client_of, made_site

NAMES = ("a_b.png", "axb.png", "100%.png", "100 of.png", "back\\slash.png", "sl/ash.png", "Über.png", "plain.PNG")
SOURCES = ("page", "api", "folder line_3", "folder line 3")


def filled(site: Site, count: int = 120) -> list[Verdict]:
    """Verdicts of two versions, with every decision and label; every tenth is of another product."""
    draw = random.Random(0)
    first, second = (detector.id for detector in reversed(site.detectors.versions(PRODUCT)))
    with site.database.writing() as session:
        from blemish.web.tables import Detector, Product

        session.add(Product(name="other"))
        session.flush()
        alien = Detector(sha256="f" * 64, product="other", version=1, kind="imported", created="", by="", metrics={})
        session.add(alien)
        session.flush()
        made = []
        for number in range(count):
            product = "other" if number % 10 == 9 else PRODUCT
            image = image_row(session, product, number, label=draw.choice(["good", "anomaly", None]))
            decision = draw.choice(["good", "anomaly", "review", "error"])
            judged = decision != "error"
            made.append(
                verdict_row(
                    session,
                    image,
                    alien.id if product == "other" else draw.choice([first, second]),
                    time=f"2026-11-{1 + number // 8:02}T{3 * (number % 8):02}:30:00.000+00:00",
                    name=draw.choice(NAMES),
                    source=draw.choice(SOURCES),
                    decision=decision,
                    score=draw.uniform(0, 100) if judged else None,
                    p_value=round(draw.random(), 2) if judged else None,
                    error=None if judged else "broken",
                )
            )
            session.refresh(made[-1])
    return made


def matches(verdict: Verdict, filters: Filters) -> bool:
    """What `conditions` asks of a verdict, in Python."""
    p, label = verdict.p_value, verdict.image.label
    return (
        verdict.image.product == filters.product
        and (not filters.start or verdict.time >= utc(filters.start))
        and (not filters.end or verdict.time < utc(filters.end, end=True))
        and (not filters.decision or verdict.decision == filters.decision)
        and (filters.p_low is None or (p is not None and p >= filters.p_low))
        and (filters.p_high is None or (p is not None and p <= filters.p_high))
        and (filters.version is None or verdict.detector.version == filters.version)
        and filters.source.lower() in verdict.source.lower()
        and filters.name.lower() in verdict.name.lower()
        and (not filters.label or label == (None if filters.label == "none" else filters.label))
    )


CHOICES: dict[str, tuple[Any, ...]] = {
    "start": ("", "2026-11-05", "2026-11-05T09:30+00:00", "2026-11-05T09:31+00:00"),
    "end": ("", "2026-11-10", "2026-11-10T12:30+00:00", "2026-11-10T12:29+00:00"),
    "decision": ("", "good", "anomaly", "review", "error"),
    "p_low": (None, 0.0, 0.25, 0.9),
    "p_high": (None, 1.0, 0.75, 0.05),
    "version": (None, 1, 2, 3),
    "source": ("", "page", "line_3", "FOLDER"),
    "name": ("", "_", "%", "\\", "/", "100", "Über", "png", "a_b", "nothing"),
    "label": ("", "good", "anomaly", "none"),
}


def asked() -> list[Filters]:
    """Every value of every filter alone, and some hundred mixtures."""
    alone = [replace(Filters(PRODUCT), **{key: value}) for key, values in CHOICES.items() for value in values]
    draw = random.Random(1)
    mixed = [
        replace(Filters(PRODUCT), **{key: draw.choice(CHOICES[key]) for key in draw.sample(list(CHOICES), 3)})
        for _ in range(150)
    ]
    return [*alone, *mixed]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_filters_find_what_a_search_by_hand_finds(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = ""
    if kind == "postgresql":
        fresh: Callable[[], str] = request.getfixturevalue("postgres")
        url = fresh()
    site = made_site(tmp_path, bundles=2, database=url)
    verdicts = filled(site)
    found_some = 0
    with site.database.reading() as session:
        for filters in asked():
            expected = [verdict.id for verdict in reversed(verdicts) if matches(verdict, filters)]
            assert [row.id for row in history.found(session, filters, limit=1000)] == expected, filters
            assert [row.id for row in history.every(site.database, filters)] == expected
            by_hand = Counter(verdict.decision for verdict in verdicts if matches(verdict, filters))
            assert history.counts(session, filters) == by_hand
            hours = history.per_hour(session, filters)
            assert sum(sum(counts.values()) for _, counts in hours) <= len(expected)
            found_some += bool(expected)
        assert found_some > 60
        assert history.sources(session, PRODUCT) == sorted(SOURCES)
    site.database.close()


def test_pages_give_every_row_once(tmp_path: Path) -> None:
    site = made_site(tmp_path, bundles=2)
    verdicts = filled(site)
    mine = [verdict.id for verdict in reversed(verdicts) if verdict.image.product == PRODUCT]
    client = client_of(site)
    seen, address = [], f"/api/v1/verdicts?product={PRODUCT}&limit=7"
    while address:
        answer = client.get(address).json()
        seen += [row["id"] for row in answer["verdicts"]]
        address = answer["next"]
    assert seen == mine
    good = client.get(f"/api/v1/verdicts?product={PRODUCT}&decision=good&limit=200").json()
    assert good["next"] is None
    assert [row["id"] for row in good["verdicts"]] == [i for i in mine if verdicts[i - 1].decision == "good"]
    newest = client.get(f"/history?product={PRODUCT}")
    assert newest.text.count('class="verdict ') == 60
    assert f"before={mine[59]}" in newest.text
    older = client.get(f"/history?product={PRODUCT}&before={mine[59]}")
    assert older.text.count('class="verdict ') == len(mine) - 60
    assert "These are the oldest." in older.text


def test_hours_are_counted_by_hand(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    (detector,) = site.detectors.versions(PRODUCT)
    with site.database.writing() as session:
        image = image_row(session, PRODUCT, 1)
        for time, decision in (
            ("01T23:59:59.999", "good"),
            ("03T00:00:00.000", "good"),
            ("03T00:30:00.000", "anomaly"),
        ):
            verdict_row(session, image, detector.id, time=f"2026-11-{time}+00:00", decision=decision)
    with site.database.reading() as session:
        hours = history.per_hour(session, Filters(PRODUCT))
        assert len(hours) == 48
        assert hours[-1] == ("2026-11-03T00:00:00.000+00:00", {"good": 1, "anomaly": 1})
        assert hours[-2] == ("2026-11-02T23:00:00.000+00:00", {})
        assert dict(hours)["2026-11-01T23:00:00.000+00:00"] == {"good": 1}
        assert history.per_hour(session, Filters(PRODUCT, decision="review")) == []
        assert [dot.id for dot in history.latest(session, Filters(PRODUCT), 2)] == [2, 3]


def test_a_query_says_all_filters_again() -> None:
    filters = Filters("a&b", "2026-11-01", "", "good", 0.0, None, 2, "", "100 %", "none")
    expected = {"product": "a&b", "from": "2026-11-01", "decision": "good", "p_from": "0.0", "version": "2"}
    expected |= {"name": "100 %", "label": "none", "before": "7"}
    assert {key: values[0] for key, values in parse_qs(filters.query(before=7)).items()} == expected


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("from=yesterday", "'yesterday' is no time; write it as 2026-11-30 or 2026-11-30T13:44."),
        ("p_to=7", "A p-value lies between 0 and 1, and '7' does not"),
        ("p_from=nan", "A p-value lies between 0 and 1"),
        ("decision=maybe", "query.decision"),
        ("version=x", "query.version"),
        ("before=0", "query.before"),
    ],
)
def test_a_wrong_filter_is_told(tmp_path: Path, query: str, words: str) -> None:
    answer = client_of(made_site(tmp_path)).get(f"/api/v1/verdicts?{query}")
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]


def test_times_have_ends_by_how_exactly_they_are_written() -> None:
    assert utc("2026-11-30T00:00Z") == "2026-11-30T00:00:00.000+00:00"
    assert utc("2026-11-30T13:44+01:00", end=True) == "2026-11-30T12:45:00.000+00:00"
    assert utc("2026-11-30T13:44:10Z", end=True) == "2026-11-30T13:44:11.000+00:00"
    assert utc("2026-11-30T13:44:10.5Z", end=True) == "2026-11-30T13:44:10.501+00:00"
    with pytest.raises(BlemishError, match="is no time"):
        utc("0001-01-01T00:00+14:00")


def test_the_page_says_what_there_is(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    client = client_of(site)
    empty = client.get("/history").text
    assert "Nothing has been inspected yet." in empty
    assert "<svg" not in empty
    site.line.inspect(b"no image", "a<b>.png", PRODUCT, by="me", source="page")
    page = client.get("/history").text
    assert "1 verdict:" in page
    assert "a&lt;b&gt;.png" in page
    nothing = client.get("/history?decision=good").text
    assert "No verdict matches." in nothing
    assert f"From ({datetime.now().astimezone():%Z})" in nothing
    assert 'value="2026-11-30T23:59"' in client.get("/history?to=2026-11-30").text
    assert "style=" not in page


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_all_verdicts_are_counted_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """And those that are new are added, each to its product."""
    address = request.getfixturevalue("postgres")() if kind == "postgresql" else ""
    site = made_site(tmp_path, bundles=2, database=address)
    made, asked = filled(site), list[str]()
    event.listen(site.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    def expected(product: str) -> tuple[Counter[str], list[str]]:
        mine = [verdict for verdict in made if verdict.image.product == product]
        return Counter(verdict.decision for verdict in mine), sorted({verdict.source for verdict in mine})

    for _ in range(3):
        with site.database.reading() as session:
            for product in (PRODUCT, "other"):
                found = history.counts(session, Filters(product)), list(history.sources(session, product))
                assert found == expected(product)
            asked.clear()
            history.counts(session, Filters(PRODUCT))
        assert [statement for statement in asked if "GROUP BY" in statement] == []
        with site.database.writing() as session:
            image = image_row(session, PRODUCT, 1000 + len(made))
            made.append(verdict_row(session, image, made[0].detector_id, source=f"new {len(made)}", decision="review"))
            session.refresh(made[-1])
    with site.database.reading() as session:
        assert history.counts(session, Filters("nothing")) == {}
        assert history.counts(session, Filters(PRODUCT, name="no such")) == {}
    site.database.close()
