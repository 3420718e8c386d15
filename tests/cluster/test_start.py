from __future__ import annotations

import socket

import pytest

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
