"""What every answer says to the browser, and how large a request may be: with real bodies, streamed too."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from starlette.types import Message

from blemish.web.app import application
from blemish.web.headers import HEADERS, LARGEST, POLICY
from blemish.web.site import Site
from tests.web.support import client_of, csrf_in, grey, made_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = made_site(tmp_path_factory.mktemp("site"))
    yield site
    site.database.close()


INLINE = r"<script(?![^>]*\ssrc=)(?! type=.application/json)|<style|\sstyle=|\son[a-z]+=.|javascript:"
ALL = ["/", "/static/app.js", "/static/base.css", "/nothing", "/api/v1/verdicts/99", "/healthz", "/login", "/users"]


@pytest.mark.parametrize("path", ALL)
def test_every_answer_has_them(site: Site, path: str) -> None:
    answer = client_of(site).get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value, name
    assert answer.headers["cache-control"] == "no-cache"
    assert "server" not in answer.headers


def test_also_what_is_refused_before_any_route(site: Site) -> None:
    answer = client_of(site).get("/", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.headers["content-security-policy"]) == (403, POLICY)


def test_nothing_inline_in_any_template() -> None:
    """The policy forbids it, so that it would not work. Data for a script is no script."""
    import blemish.web

    for file in Path(str(blemish.web.__path__[0])).glob("templates/*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(INLINE, text), file.name


def test_a_route_may_have_a_policy_of_its_own(site: Site) -> None:
    client = client_of(site)

    def own() -> Response:
        return Response("", headers={"Content-Security-Policy": "default-src 'self'"})

    client.app.add_api_route("/own", own)  # type: ignore[attr-defined]
    assert client.get("/own").headers["content-security-policy"] == "default-src 'self'"


def test_what_others_saw_is_not_kept_where_people_log_in(tmp_path: Path) -> None:
    site = made_site(tmp_path, host="0.0.0.0")
    client = client_of(site)
    assert client.get("/login").headers["cache-control"] == "no-store"
    assert client.get("/static/app.js").headers["cache-control"] == "no-cache"
    site.database.close()


def test_a_request_without_images_is_small(site: Site) -> None:
    client = client_of(site)

    def streamed(size: int) -> Iterator[bytes]:
        for _ in range(size // 100_000):
            yield bytes(100_000)

    for content in (bytes(LARGEST + 1), streamed(LARGEST + 200_000)):
        answer = client.post("/users", content=content, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.status_code == 413
        assert "1 MB" in answer.json()["error"]["message"]
    csrf = csrf_in(client.get("/users").text)
    form = {"csrf": csrf, "name": "x" * (LARGEST - 1000), "role": "admin", "password": "a password"}
    assert client.post("/users", data=form).status_code == 422  # it came to the route
    assert client.post("/users", data=form | {"name": "x" * LARGEST}).status_code == 413
    image = grey(60) + bytes(2 * LARGEST)
    headers = {"X-CSRF-Token": csrf}
    assert client.post("/api/v1/inspect", content=image, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/users", b"application/x-www-form-urlencoded"), ("/api/v1/inspect", b"application/octet-stream")],
)
@pytest.mark.parametrize("pause", [60.0, 0.03])
def test_a_body_that_does_not_go_on_is_not_waited_for(
    site: Site, path: str, kind: bytes, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one whose every byte comes just in time."""
    monkeypatch.setattr("blemish.web.headers.PATIENCE", 0.1)
    headers = [(b"host", b"127.0.0.1:8477"), (b"content-type", kind)]
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
    }
    scope |= {"query_string": b"", "headers": headers, "scheme": "http", "server": ("127.0.0.1", 8477), "client": None}
    said: list[Message] = []
    parts = 0

    async def receive() -> Message:
        nonlocal parts
        if parts:
            await asyncio.sleep(pause)
        parts += 1
        return {"type": "http.request", "body": b"a part", "more_body": True}

    async def send(message: Message) -> None:
        said.append(message)

    asyncio.run(asyncio.wait_for(application(site)(scope, receive, send), 20))
    assert parts < 10
    assert [message["status"] for message in said if "status" in message] == [408]
    assert b"send it again" in said[1]["body"]


def test_a_slow_body_has_the_time_that_its_size_takes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blemish.web.headers.PATIENCE", 0.5)
    monkeypatch.setattr("blemish.web.headers.PACE", 1000)
    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/api/v1/inspect"}
    scope |= {"raw_path": b"/api/v1/inspect", "query_string": b"", "scheme": "http", "client": None}
    scope |= {"server": ("127.0.0.1", 8477), "headers": [(b"host", b"127.0.0.1:8477"), (b"content-type", b"image/png")]}
    blocks, said = [grey(60)] + [bytes(100)] * 8, list[Message]()

    async def receive() -> Message:
        await asyncio.sleep(0.08)
        block = blocks.pop(0)
        return {"type": "http.request", "body": block, "more_body": bool(blocks)}

    async def send(message: Message) -> None:
        said.append(message)

    asyncio.run(application(site)(scope, receive, send))
    assert [message["status"] for message in said if "status" in message] == [200]
