"""Drops in a real browser where the server cannot take them at once, and choices by keyboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import delete, func, select

from blemish.web import users
from blemish.web.app import assembled
from blemish.web.config import ServeConfig
from blemish.web.site import Site
from blemish.web.tables import Session, Verdict
from tests import tiny
from tests.web.browser import Visitor
from tests.web.desk import judged, opened, picture, served

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

LATER = (408, 502, 504, 507)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return opened(tmp_path)


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    """Served until after the browser has gone."""
    with served(site) as address:
        yield address
    site.database.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[Site, str]]:
    """A site to which people log in, and its address."""
    site = assembled(ServeConfig(tmp_path / "data", (tiny.made(tmp_path / "tiny"),), proxy=True))
    users.add(site.database, "anna", "inspector", "a password")
    with served(site) as address:
        yield site, address
    site.database.close()


def choose(page: Page, *contents: bytes) -> None:
    files: list[Any] = [
        {"name": f"{number}.png", "mimeType": "image/png", "buffer": content} for number, content in enumerate(contents)
    ]
    page.set_input_files("#files", files)


def recorded(site: Site) -> int:
    with site.database.reading() as session:
        return session.scalar(select(func.count()).select_from(Verdict)) or 0


def test_what_cannot_be_taken_now_is_sent_again(site: Site, address: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    sent = Counter[str]()

    def proxy(route: Route) -> None:
        """The first time each image meets another trouble of a proxy or server."""
        (name,) = parse_qs(urlsplit(route.request.url).query)["name"]
        sent[name] += 1
        if sent[name] == 1:
            route.fulfill(status=LATER[int(name[0])], content_type="text/html", body="<html>Bad gateway</html>")
        else:
            route.continue_()

    page.route("**/api/v1/inspect*", proxy)
    page.goto(address)
    choose(page, *(picture(50, number) for number in range(4)), b"")
    page.get_by_text("4 judged, 1 not sent.").wait_for()
    assert page.locator("#failures li").all_inner_texts() == ["4.png: is empty, or a folder; choose the images in it."]
    assert sent == {f"{number}.png": 2 for number in range(4)}
    assert recorded(site) == 4
    assert len(desktop.forgive("Failed to load resource")) == 4


def log_in(page: Page) -> None:
    page.get_by_label("Name").fill("anna")
    page.get_by_label("Password").fill("a password")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Inspect").wait_for()


def test_who_is_logged_out_in_the_middle_loses_no_image(elsewhere: tuple[Site, str], desktop: Visitor) -> None:
    site, address = elsewhere
    page = desktop.new_page()
    page.goto(address)
    log_in(page)
    pages = page.get_by_role("navigation", name="Pages").locator("a").all_inner_texts()
    assert pages == ["Inspect", "Detectors", "History"]  # an inspector may not review
    assert page.get_by_text("They are sent to this server").is_visible()
    with site.database.writing() as session:
        session.execute(delete(Session))
    choose(page, *(picture(50, number) for number in range(3)))
    page.get_by_text("You are logged out. 3 images wait here").wait_for()
    with page.expect_popup() as other:
        page.get_by_role("link", name="Log in").click()
    log_in(other.value)
    page.get_by_text("3 judged.").wait_for()
    page.locator("#verdicts > li >> nth=2").wait_for()
    assert page.get_by_role("link", name="Log in").is_hidden()
    assert recorded(site) == 3
    judged(site, 50, 3)  # by somebody else: the page hears of it again
    page.locator("#verdicts > li >> nth=3").wait_for()
    # Another login ends the session that the page's token belongs to.
    other.value.goto(f"{address}/login")
    log_in(other.value)
    choose(page, picture(50, 4))
    page.get_by_text("1 judged.").wait_for()
    assert recorded(site) == 5
    assert desktop.forgive("401", "403", "/events")


def test_arrow_keys_choose_and_enter_says_when(site: Site, address: str, desktop: Visitor) -> None:
    judged(site, 95)
    page = desktop.new_page()
    page.goto(f"{address}/review")
    label = page.get_by_label("Label")
    label.focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("button", name="Show").wait_for()
    assert page.url == f"{address}/review"
    page.keyboard.press("Enter")
    page.wait_for_url("**label=none**")
    page.get_by_label("Label").select_option("")  # as with the mouse: at once
    page.wait_for_url("**label=&**")
