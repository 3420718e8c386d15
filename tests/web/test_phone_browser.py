"""The pages on a phone, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blemish.web import users
from blemish.web.corrections import label
from blemish.web.tables import Job, now
from tests.web.accessibility import serious
from tests.web.browser import Visitor, visiting
from tests.web.desk import judged, opened, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH = 390
PAGES = (
    *("/", "/review", "/review/1", "/review/1?show=second", "/review/agreement", "/verdicts/1", "/verdicts/7"),
    *("/history", "/detectors", "/detectors/1", "/account", "/users"),
)


@pytest.fixture
def phone(browser: Browser) -> Iterator[Visitor]:
    with visiting(browser, viewport={"width": WIDTH, "height": 844}, has_touch=True, is_mobile=True) as visitor:
        yield visitor


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    site = opened(tmp_path)
    for number in range(6):
        judged(site, 95, number)
    site.line.inspect(b"no image", "a-very-long-name-" * 14 + ".png", "tiny", by="anna", source="api")
    label(site, 1, "ben", "anomaly", defect="dent")
    users.add(site.database, "a-very-long-name-of-somebody", "admin", "a password")
    with served(site) as address:
        yield address


def test_no_page_is_wider_than_a_phone(address: str, phone: Visitor) -> None:
    page = phone.new_page()
    for path in PAGES:
        page.goto(f"{address}{path}")
        assert (path, page.evaluate("document.documentElement.scrollWidth")) == (path, WIDTH)
        assert page.get_by_role("link", name="History", exact=True).bounding_box()["x"] < WIDTH - 50  # type: ignore[index]
    page.goto(f"{address}/review")
    assert serious(page) == []


def test_the_comparison_shows_its_answer_and_the_histogram_its_words(tmp_path: Path, phone: Visitor) -> None:
    site = opened(tmp_path)
    figure = {"value": 0.5, "low": 0.2, "high": 0.8}
    figures = {"auroc": figure, "recall": figure, "false_alarm_rate": figure}
    test = {"only_first_right": 1, "only_second_right": 3, "p_value": 0.625}
    job = Job(product="tiny", state="done", by="ada", created=now(), ended=now(), settings={}, before_id=1)
    job.detector_id, job.stage, job.error = 1, "", ""
    job.comparison = {"images": 8, "good": 4, "anomalies": 4, "words": [], "changed": [], "audit": []}
    job.comparison |= {"runs": [{"review": 1, **figures}] * 2, "differences": [{**figures, "mcnemar": test}]}
    job.comparison["corrected"] = {"images": 3, "right": [0, 2], "review": [1, 0], "wrong": [2, 1]}
    with site.database.writing() as session:
        session.add(job)
    with served(site) as address:
        page = phone.new_page()
        page.goto(f"{address}/jobs/1")
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == WIDTH
        scrollers = "[...document.querySelectorAll('.scroll')].map(place => place.scrollWidth - place.clientWidth)"
        assert page.evaluate(scrollers) == [0, 0]
        first, second = (page.locator(".panel").nth(number).bounding_box() for number in (0, 1))
        assert first
        assert second
        assert second["y"] - first["y"] - first["height"] >= 12
        page.goto(f"{address}/detectors/1")
        drawing = page.locator(".histogram").bounding_box()
        assert drawing
        assert drawing["height"] == 294
        assert page.locator(".names li").first.evaluate("name => getComputedStyle(name).fontSize") == "13px"
        page.close()
