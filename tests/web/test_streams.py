"""Streams of events end with their visitor, and never take all that the server has: over real connections."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from blemish.web import streams, users
from blemish.web.access import Inspecting
from blemish.web.app import application
from blemish.web.site import Site, SiteOf
from blemish.web.streams import OneStream, still_there
from tests.web.support import PRODUCT, grey, made_site


@pytest.fixture
def remote(tmp_path: Path) -> Site:
    """Where people log in."""
    site = made_site(tmp_path, host="0.0.0.0")
    users.add(site.database, "ada", "admin", "a password")
    users.add(site.database, "ines", "inspector", "a password")
    return site


@pytest.fixture
def address(remote: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(streams, "LOOK", 0.05)
    monkeypatch.setattr(streams, "MOST", 2)
    app = application(remote)
    app.get("/told", response_class=EventSourceResponse)(told)
    with running(app) as url:
        yield url


async def told(request: Request, site: SiteOf, who: Inspecting, one: OneStream) -> AsyncIterator[ServerSentEvent]:
    async for seq, _, ref in site.hub.listen(0):
        if not await run_in_threadpool(still_there, request):
            return
        yield ServerSentEvent(data={"ref": ref}, id=str(seq))


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def head(site: Site, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {users.new_token(site.database, name)}"}


def happens(site: Site, number: int) -> None:
    site.line.inspect(grey(60, number), "a.png", PRODUCT, by="ada", source="page")


def refs(lines: Iterator[str]) -> Iterator[int]:
    yield from (json.loads(line[6:])["ref"] for line in lines if line.startswith("data: "))


def test_who_was_removed_hears_no_more(remote: Site, address: str) -> None:
    with httpx.stream("GET", f"{address}/told", headers=head(remote, "ines"), timeout=20) as answer:
        heard = refs(answer.iter_lines())
        assert (next(heard), next(heard)) == (1, 1)  # the detector, and that it judges
        happens(remote, 1)
        assert next(heard) == 1
        time.sleep(0.1)
        users.set_role(remote.database, "ada", "admin")
        happens(remote, 2)
        assert next(heard) == 2  # others were changed
        users.remove(remote.database, "ines")
        time.sleep(0.1)
        happens(remote, 3)
        assert list(heard) == []  # it has ended


def test_there_are_so_many_and_no_more(remote: Site, address: str) -> None:
    ada = head(remote, "ada")
    with (
        httpx.stream("GET", f"{address}/told", headers=ada, timeout=20) as one,
        httpx.stream("GET", f"{address}/told", headers=ada, timeout=20) as two,
    ):
        assert (one.status_code, two.status_code) == (200, 200)
        third = httpx.get(f"{address}/told", headers=ada)
        assert (third.status_code, third.headers["retry-after"]) == (503, "1")
        assert "2 pages are told of events already" in third.json()["error"]["message"]
    happens(remote, 1)  # what was closed is noticed when something is told, or after FastAPI's 15 seconds

    def free() -> bool:
        with httpx.stream("GET", f"{address}/told", headers=ada, timeout=20) as answer:
            return answer.status_code == 200

    end = time.monotonic() + 10
    while not free():
        assert time.monotonic() < end
        time.sleep(0.05)
