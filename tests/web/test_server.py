"""The server as a process: how it begins, and how it ends."""

from __future__ import annotations

import signal
import socket
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from blemish.web.server import GRACE
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


def test_what_it_is_given_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    data, none, file = tmp_path / "page", tmp_path / "none", tmp_path / "file"
    bundle = tiny.made(tmp_path / "runs/one/bundle")
    file.write_text("x")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.write(bundle / "card.json", "bundle/card.json")

    def sentence(*arguments: object) -> str:
        said = refused("serve", *arguments, "--data", data, "--port", 0)
        assert not data.exists()
        return said

    assert sentence(none).startswith(f"{none}: does not exist; give a run of `blemish train`")
    assert sentence(file).startswith(f"{file}: not a readable .zip")
    assert sentence(tmp_path / "runs").endswith(f"is no bundle, but holds some; give them one by one: {bundle}")
    assert sentence(tmp_path / "packed.zip").endswith(
        "it has no card.json at its top, only bundle/card.json; pack the bundle with `blemish bundle --zip`."
    )
    assert sentence(bundle, "--images", none).startswith(f"--images {none}: does not exist;")
    assert sentence(bundle, "--images", file).startswith(f"--images {file}: is a file, not a folder;")
    (tmp_path / "other").mkdir()
    assert sentence(bundle, "--images", tmp_path / "other").endswith("learned from a folder other; give its run too.")
    assert sentence("--database", "mysql://a/b").startswith("--database mysql://a/b: is neither SQLite nor PostgreSQL;")
    gone = "postgresql+psycopg://127.0.0.1:1/page"
    assert sentence("--database", gone).startswith(f"{gone}: cannot be opened (")
    assert sentence(bundle, "--watch", none).startswith(f"--watch {none}: does not exist;")
    assert sentence(bundle, "--watch", file).startswith(f"--watch {file}: is a file, not a folder;")
    assert sentence(bundle, "--host", "0.0.0.0").endswith(f"blemish user NAME --role admin --data {data}.")
    taken = refused("serve", bundle, "--data", file, "--port", 0)
    assert taken == f"{file} exists and is no folder; choose another one."
    assert file.read_text() == "x"
