"""A real Chromium, and what goes wrong in its pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, WebError

ABSENT = "no chromium on the PATH: install Debian's package chromium"
# Without those of the network, Chromium looks for its maker's hosts at every start, and these tests need none.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DESKTOP: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}}
TABLET: dict[str, Any] = {"viewport": {"width": 820, "height": 1180}, "has_touch": True}
PATIENCE = 15_000  # ms for what a test waits for; Playwright's own is 30 s


def chromium_path() -> str | None:
    """The program chromium; None where it is not installed."""
    return shutil.which("chromium")


@contextmanager
def launched(program: str) -> Iterator[Browser]:
    """A browser without a window. Playwright's event loop counts as running in this thread as long as it is open: a
    test cannot call `asyncio.run` meanwhile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Visitor:
    """A browser profile of its own (cookies, cache), and the troubles of all its pages, one line each: errors on the
    console, which include what the Content-Security-Policy stopped and answers of 400 and above; uncaught exceptions;
    requests that failed; requests to another machine."""

    context: BrowserContext
    troubles: list[str] = field(default_factory=list)

    def new_page(self) -> Page:
        return self.context.new_page()

    def forgive(self, *words: str) -> list[str]:
        """Takes out the troubles that a test expected, those with one of `words` in their line, and returns them."""
        expected = [line for line in self.troubles if any(word in line for word in words)]
        self.troubles[:] = [line for line in self.troubles if line not in expected]
        return expected


@contextmanager
def visiting(browser: Browser, **options: Any) -> Iterator[Visitor]:
    """A visitor with the options of Playwright's `new_context`. Fails at the end where troubles are left."""
    context = browser.new_context(**{"locale": "en-GB", "timezone_id": "UTC", **options})
    context.set_default_timeout(PATIENCE)
    visitor = Visitor(context)
    _listen(visitor)
    try:
        yield visitor
    finally:
        context.close()
    assert not visitor.troubles, "in the browser: " + "; ".join(visitor.troubles)


def _listen(visitor: Visitor) -> None:
    def console(message: ConsoleMessage) -> None:
        if message.type == "error":
            visitor.troubles.append(f"console: {message.text} ({message.location['url']})")

    def exception(error: WebError) -> None:
        visitor.troubles.append(f"exception: {error.error}")

    def failed(request: Request) -> None:
        # Aborted: the page itself did so, or was left while it loaded or listened.
        if request.failure != "net::ERR_ABORTED":
            visitor.troubles.append(f"request: {request.method} {request.url}: {request.failure}")

    def asked(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname not in ("127.0.0.1", "localhost"):
            visitor.troubles.append(f"another machine is asked: {request.url}")

    visitor.context.on("console", console)
    visitor.context.on("weberror", exception)
    visitor.context.on("requestfailed", failed)
    visitor.context.on("request", asked)
