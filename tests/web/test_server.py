"""The server as a process: how it begins, and how it ends."""

from __future__ import annotations

import signal
import time
import urllib.request
from pathlib import Path

import pytest

from tests import tiny
from tests.web.kill import Server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_and_quietly_while_pages_are_open(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path / "data", tiny.made(tmp_path / "bundle")) as server:
        pages = [urllib.request.urlopen(f"{server.url}/events?after=0", timeout=20) for _ in range(2)]
        for page in pages:
            assert page.readline() == b"event: detector\n"
        begun = time.monotonic()
        server.process.send_signal(number)
        code = server.process.wait(20)
        took = time.monotonic() - begun
        for page in pages:
            assert b"event: promotion" in page.read()  # ended as a whole answer
        assert server.said() == f"blemish: {server.url}/\n"
    assert code == 128 + number
    assert took < 2  # 0.5 s where nothing else runs; after GRACE it would be 3 s
