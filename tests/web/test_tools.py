"""The tools of these tests do find what they are to find."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text

from tests.web import browser as tools
from tests.web.accessibility import serious
from tests.web.browser import Visitor, visiting
from tests.web.programs import CI, absent

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGE = "<!doctype html><html lang='en'><head><title>Tiny</title><link rel=icon href=data:,><body>{}</body></html>"
PAGES = {
    "/good": PAGE.format("<main><h1>Parts</h1><img src=/dot.svg alt='a dot'></main><script src=/script.js></script>"),
    "/no-alt": PAGE.format("<main><h1>Parts</h1><img src=/dot.svg><img src=/dot.svg></main>"),
    "/pale": PAGE.format("<main><h1>Parts</h1><p class=pale>hard to read</p></main><link rel=stylesheet href=/p.css>"),
    "/logs": PAGE.format("<script src=/logs.js></script>"),
    "/throws": PAGE.format("<script src=/throws.js></script>"),
    "/inline": PAGE.format("<script>document.title = 'changed'</script>"),
    "/missing": PAGE.format("<script src=/nowhere.js></script>"),
    "/foreign": PAGE.format("<img src='http://192.0.2.1/a.png' alt='from elsewhere'>"),
    "/gone": PAGE.format("<script src=/gone.js></script>"),
    "/script.js": "document.title = 'Tiny, by script'",
    "/logs.js": "console.warn('a warning'); console.error('an error')",
    "/throws.js": "throw new Error('thrown')",
    "/p.css": ".pale { color: #ccc; background: #fff }",
    "/dot.svg": "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><circle r='4' cx='4' cy='4'/></svg>",
}
TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


class Handler(BaseHTTPRequestHandler):
    """The pages above, under a Content-Security-Policy as strict as ours."""

    def do_GET(self) -> None:
        if self.path == "/gone.js":  # hangs up without an answer
            self.close_connection = True
            return
        content = PAGES.get(self.path, "").encode()
        self.send_response(200 if content else 404)
        self.send_header("Content-Type", TYPES.get(self.path.rpartition(".")[2], "text/html"))
        self.send_header("Content-Length", str(len(content)))
        policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: http://192.0.2.1"
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_good_page_gives_no_trouble_on_a_desktop(site: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    page.goto(f"{site}/good")
    assert page.title() == "Tiny, by script"
    assert page.evaluate("[innerWidth, innerHeight, navigator.maxTouchPoints]") == [1440, 900, 0]
    assert serious(page) == []


def test_a_tablet_is_tall_and_has_fingers(site: str, tablet: Visitor) -> None:
    page = tablet.new_page()
    page.goto(f"{site}/good")
    assert page.evaluate("[innerWidth, innerHeight, navigator.maxTouchPoints > 0]") == [820, 1180, True]
    assert serious(page) == []


def test_an_image_without_alt_and_pale_words_are_serious(site: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    page.goto(f"{site}/no-alt")
    (found,) = serious(page)
    assert found.startswith("image-alt (critical)")
    assert '<img src="/dot.svg"> at img:nth-child(2), ' in found
    assert " at img:nth-child(3), " in found
    page.goto(f"{site}/pale")
    (found,) = serious(page)
    assert found.startswith("color-contrast (serious)")
    assert '<p class="pale">hard to read</p>' in found
    assert "contrast of 1.6 " in found  # #ccc on white: (1.05) / (0.6038 + 0.05)


@pytest.mark.parametrize(
    ("path", "trouble"),
    [
        ("/logs", "console: an error"),
        ("/throws", "exception: thrown"),
        ("/inline", "Content Security Policy"),
        ("/missing", "404"),
        ("/gone", "net::ERR_EMPTY_RESPONSE"),
        ("/foreign", "another machine is asked: http://192.0.2.1/a.png"),
    ],
)
def test_what_goes_wrong_in_a_page_is_collected_and_fails_the_test(
    path: str, trouble: str, site: str, browser: Browser
) -> None:
    def visit() -> None:
        with visiting(browser) as visitor:
            visitor.context.route("http://192.0.2.1/**", lambda route: route.abort())  # nothing leaves this machine
            visitor.new_page().goto(site + path)

    with pytest.raises(AssertionError, match=f"in the browser: .*{re.escape(trouble)}"):
        visit()


def test_what_a_test_expected_is_forgiven(site: str, desktop: Visitor) -> None:
    desktop.new_page().goto(f"{site}/logs")
    assert len(desktop.forgive("an error", "nothing")) == 1
    assert desktop.troubles == []


def test_each_visitor_has_cookies_of_its_own(site: str, browser: Browser, desktop: Visitor) -> None:
    desktop.context.add_cookies([{"name": "session", "value": "1", "url": site}])
    with visiting(browser) as other:
        assert other.context.cookies() == []


def test_each_database_of_postgres_is_a_new_one(postgres: Callable[[], str]) -> None:
    urls = [postgres(), postgres()]
    assert all(url.startswith("postgresql+psycopg://") for url in urls)
    for url in urls:
        engine = create_engine(url)
        with engine.begin() as connection:
            assert connection.scalar(text("select 1")) == 1
            assert "PostgreSQL" in str(connection.scalar(text("select version()")))
            connection.execute(text("create table only_here (word text)"))
            connection.execute(text("insert into only_here values ('straße')"))
            assert connection.scalar(text("select word from only_here")) == "straße"
        engine.dispose()


def test_without_the_program_a_test_is_skipped_but_fails_in_the_continuous_integration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert tools.chromium_path() is None
    monkeypatch.delenv(CI, raising=False)
    with pytest.raises(pytest.skip.Exception, match="install Debian's package chromium"):
        absent(tools.ABSENT)
    monkeypatch.setenv(CI, "1")
    with pytest.raises(pytest.fail.Exception, match="install Debian's package chromium"):
        absent(tools.ABSENT)
