"""The support for killing servers, with a small server in the place of `blemish serve`."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support import eventually
from tests.web.kill import Server

# Not ready at the first question; has a process of its own that would outlive it.
SCRIPT = """
import argparse, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

options = argparse.ArgumentParser()
options.add_argument("--data"), options.add_argument("--port", type=int), options.add_argument("--code", type=int)
given = options.parse_args()
if given.code == 2:
    sys.exit("blemish: the data folder is somebody else's")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(given.code))
asked = []

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        self.send_response(503 if len(asked) == 1 else 200)
        self.end_headers()
        self.wfile.write(" ".join(asked).encode())
    def log_message(self, *_):
        pass

child = subprocess.Popen(["sleep", "600"], start_new_session=True)
with HTTPServer(("127.0.0.1", given.port), Handler) as server:
    print("starting", "blemish: http://127.0.0.1:%d" % server.server_port, sep="\\n", flush=True)
    server.serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, Path]:
    script = tmp_path / "serve.py"
    script.write_text(SCRIPT)
    return sys.executable, script


def test_it_is_ready_and_can_be_killed_and_come_back_where_it_was(program: tuple[str, Path], tmp_path: Path) -> None:
    with Server(tmp_path / "data", "--code", 143, program=program) as server:
        with urllib.request.urlopen(server.url) as answer:
            assert answer.read() == b"/readyz /readyz /"
        first, (child,) = server.url, server.children()
        server.kill()
        assert server.process.returncode == -9
        assert server.children() == [child]
        server.start()
        assert server.url == first
        assert len(server.children()) == 2
        server.stop()
        assert server.process.returncode == 143
        assert server.said().count("blemish: http://127.0.0.1:") == 2
    eventually(lambda: not server.children())


def test_a_server_that_does_not_start_or_stop_as_it_should_is_told_with_its_words(
    program: tuple[str, Path], tmp_path: Path
) -> None:
    refused = Server(tmp_path / "data", "--code", 2, program=program)
    with pytest.raises(AssertionError, match="ended with 1: blemish: the data folder"):
        refused.__enter__()
    with (
        Server(tmp_path / "data", "--code", 70, program=program) as server,
        pytest.raises(AssertionError, match="ended with 70: starting"),
    ):
        server.stop()


def test_in_the_end_nothing_lives(program: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Server(tmp_path / "data", "--code", 0, program=program) as server:
        1 / 0  # noqa: B018
    eventually(lambda: not server.children())
    assert server.process.returncode == -9
    assert subprocess.run(["kill", "-0", str(server.process.pid)], capture_output=True, check=False).returncode != 0
