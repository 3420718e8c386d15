"""How large a form may be: real requests, of which the server says at once that they are too large."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from blemish.web import uploads
from blemish.web.config import Limits
from blemish.web.inspection import UnavailableError
from blemish.web.uploads import Room
from tests.web.desk import served
from tests.web.support import client_of, grey, made_site

PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
ENDLESS = (
    "POST /api/v1/inspect HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    site = made_site(tmp_path, limits=Limits(megabytes=2, form_megabytes=5))
    with served(site) as address:
        yield int(address.rpartition(":")[2])


def chunk(content: bytes) -> bytes:
    return b"%x\r\n" % len(content) + content + b"\r\n"


@pytest.mark.parametrize(("part", "words"), [(10**9, "a.png: is larger than 2 MB"), (10**6, "larger than 5 MB")])
def test_a_form_without_an_end_is_refused_while_it_comes(port: int, part: int, words: str) -> None:
    """600 MB of one part were spooled to the disk before, and nothing was said."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sender:
        sender.sendall(ENDLESS.format(port=port).encode())
        sent, block = 0, 100_000
        try:
            while sent < 60_000_000:
                sender.sendall(chunk(PART if sent % part == 0 else bytes(block)))
                sent += block
                if sent % part == 0:
                    sender.sendall(chunk(b"\r\n"))
        except OSError:  # the server has closed it
            pass
        assert sent < 60_000_000
        answer = b""
        try:
            while block_of := sender.recv(65536):
                answer += block_of
        except ConnectionResetError:
            pass
    assert not answer or (b" 413 " in answer and words.encode() in answer)


@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(megabytes=0.001), "0.png: is larger than 0.001 MB"), (Limits(form_megabytes=0.002), "larger than 0.002")],
)
@pytest.mark.parametrize("announced", [True, False])
def test_what_is_too_large_is_said(tmp_path: Path, limits: Limits, words: str, announced: bool) -> None:
    site = made_site(tmp_path, limits=limits)
    parts = [PART.replace(b"a.png", b"%d.png" % i) + grey(60) + bytes(1500) + b"\r\n" for i in range(3)]
    body = [*parts, b"--b--\r\n"]
    content = b"".join(body) if announced else iter(body)
    answer = client_of(site).post("/api/v1/inspect", content=content, headers=FORM)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert words in answer.json()["error"]["message"]
    site.database.close()


def test_who_goes_away_is_no_fault_of_ours(port: int, caplog: pytest.LogCaptureFixture) -> None:
    for begin in (chunk(PART) + chunk(bytes(1_500_000)), chunk(PART)):
        with socket.create_connection(("127.0.0.1", port)) as sender:
            sender.sendall(ENDLESS.format(port=port).encode() + begin)
            time.sleep(0.2)
    time.sleep(0.3)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_uploads_that_are_on_their_way_share_a_room() -> None:
    room = Room(100)
    with room.entered() as first, room.entered() as second:
        first(70)
        with pytest.raises(UnavailableError, match="Too many uploads"):
            second(40)
        second(30)
        first(-70)  # spooled to the disk
        second(60)
        assert room.taken == 90
    assert room.taken == 0


def test_how_many_uploads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight that had not ended took 499 MB of memory, and a ninth was let in."""
    monkeypatch.setattr(uploads, "MEMORY", 3_000_000)
    site = made_site(tmp_path, limits=Limits(megabytes=0.7, form_megabytes=1.5))
    raw = (
        "POST /api/v1/inspect HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/octet-stream\r\n"
        "Content-Length: 690000\r\n\r\n"
    )
    with served(site) as address, ExitStack() as open_still:
        port = int(address.rpartition(":")[2])
        for _ in range(4):
            waiting = open_still.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            waiting.sendall(raw.format(port=port).encode() + bytes(680_000))
        time.sleep(0.5)
        headers = {"Content-Type": "application/octet-stream"}
        image = grey(60)
        wide = image + bytes(400_000)
        with httpx.Client(base_url=address, headers=headers) as client:
            refused = client.post("/api/v1/inspect", content=wide)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "Too many uploads" in refused.json()["error"]["message"]
            form = [("images", (f"{number}.png", wide)) for number in range(3)]
            assert httpx.post(f"{address}/api/v1/inspect", files=form).status_code == 503
            assert client.post("/api/v1/inspect", content=image).status_code == 200  # a small one finds its place
            waiting.close()
            time.sleep(0.3)
            assert client.post("/api/v1/inspect", content=wide).status_code == 200
