"""The pages on a phone, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blemish.web import users
from blemish.web.corrections import label
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
