from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from blemish.cluster import start
from blemish.cluster.start import connected
from blemish.types import BlemishError

pytest.importorskip("ray")


def refusal(address: str) -> str:
    with pytest.raises(BlemishError) as refused, connected(address):
        pass
    return str(refused.value)


def test_no_cluster_there_is_said_at_once() -> None:
    """Ray itself would wait for more than ten minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert refusal(f"127.0.0.1:{port}") == (
        f"there is no Ray cluster to use at 127.0.0.1:{port} ([Errno 111] Connection refused); start one with `ray "
        "start --head`, or omit --address."
    )
    for wrong in ("127.0.0.1", "somewhere", ":6379", "host:port"):
        assert refusal(wrong) == (f"--address {wrong} is none; give auto, or HOST:PORT as `ray start --head` says it.")
    assert refusal("ray://127.0.0.1:10001").startswith("ray://127.0.0.1:10001: Ray Data does not run through a Ray cl")


@contextmanager
def answering(handler: type[BaseRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine."""
    with ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Web(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


class Redis(BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(b"-ERR unknown command 'PRI', with args beginning with: '*' 'HTTP/2.0'\r\n")


class Closed(BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1024)


class Silent(BaseRequestHandler):
    def handle(self) -> None:
        while self.request.recv(1024):
            pass


@pytest.mark.parametrize(
    ("handler", "why"),
    [(handler, "something else answers there") for handler in (Web, Redis, Closed)] + [(Silent, "timed out")],
)
def test_what_is_no_ray_is_said_at_once(
    handler: type[BaseRequestHandler], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would try again for minutes, deaf to signals."""
    monkeypatch.setattr(start, "ANSWER", 1.0)
    with answering(handler) as address:
        assert refusal(address).startswith(f"there is no Ray cluster to use at {address} ({why}); start one")


def test_auto_is_the_cluster_that_this_machine_was_started_as_a_node_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert refusal("auto") == (
        "--address auto: this machine is no node of a Ray cluster; start one with `ray start --head`, or give its "
        "HOST:PORT."
    )
    (tmp_path / "ray").mkdir()
    with answering(Closed) as address:
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)  # as `ray start` does
        assert f"at {address} (something else" in refusal("auto")
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        assert "at 127.0.0.1:1 (" in refusal("auto")
