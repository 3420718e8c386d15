"""A browser and a database for the tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.web import postgres as database
from tests.web.browser import ABSENT, DESKTOP, TABLET, Visitor, chromium_path, launched, visiting
from tests.web.programs import absent

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For a module, not longer: what other tests do with asyncio does not work while it is open."""
    program = chromium_path()
    if not program:
        absent(ABSENT)
    with launched(program) as browser:
        yield browser


@pytest.fixture
def desktop(browser: Browser) -> Iterator[Visitor]:
    """Somebody at a screen of 1440 x 900. The test fails at its end where something went wrong in a page."""
    with visiting(browser, **DESKTOP) as visitor:
        yield visitor


@pytest.fixture
def tablet(browser: Browser) -> Iterator[Visitor]:
    """Somebody with a tablet held upright, 820 x 1180, and fingers. As `desktop`, the test fails at its end."""
    with visiting(browser, **TABLET) as visitor:
        yield visitor


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """A function that makes an empty PostgreSQL database and returns its URL."""
    programs = database.postgres_bin()
    if not programs:
        absent(database.ABSENT)
    with database.served(programs) as fresh:
        yield fresh
