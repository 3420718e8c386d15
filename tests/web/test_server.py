"""The server as a process: how it begins, and how it ends."""

from __future__ import annotations

import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from blemish.web import users
from blemish.web.config import ServeConfig
from blemish.web.opening import opened
from blemish.web.server import GRACE, UNENCRYPTED, address
from tests import tiny
from tests.support import refused
from tests.web.kill import Server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_and_quietly_while_pages_are_open(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path / "data", tiny.made(tmp_path / "bundle")) as server:
        pages = [urllib.request.urlopen(f"{server.url}/events?after=0", timeout=20) for _ in range(2)]
        for page in pages:
            assert page.readline() == b"event: detector\n"
        begun = time.monotonic()
        server.process.send_signal(number)
        for page in pages:
            assert b"event: promotion" in page.read()  # ended as a whole answer
        assert time.monotonic() - begun < GRACE
        assert server.process.wait(20) == 128 + number
        assert server.said() == f"blemish: {server.url}/\n"


def test_a_taken_port_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sentence = refused("serve", tiny.made(tmp_path / "bundle"), "--data", tmp_path / "page", "--port", port)
    assert sentence == (
        f"127.0.0.1:{port} cannot be listened on (Address already in use); choose another --port or --host."
    )
    assert not (tmp_path / "page").exists()


def test_others_are_told_this_machine_s_name_and_that_nothing_is_encrypted(tmp_path: Path) -> None:
    assert address("0.0.0.0", 80) == address("::", 80) == f"http://{socket.gethostname()}:80/"
    assert address("10.0.0.7", 80) == "http://10.0.0.7:80/"
    with opened(ServeConfig(tmp_path / "data"), make=True) as database:
        users.add(database, "ada", "admin", "a password")
    with Server(tmp_path / "data", tiny.made(tmp_path / "bundle"), "--host", "127.0.0.2") as server:
        assert server.said().splitlines() == [UNENCRYPTED, f"blemish: {server.url}/"]
