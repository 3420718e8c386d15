"""A Ray cluster to work on: one that runs already, or one that is started on this machine and ends with the command."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blemish import __version__
from blemish.types import BlemishError

OBJECTS = 200 * 2**20  # bytes of shared memory of a Ray that is started here: images never pass through it
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning of nodes without a GPU
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # nor does its core write into standard error
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it would print what workers die of on standard output; its logs have it
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a thread that still asks it for something starts it once more at the end
}
TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
ANSWER = 10.0  # seconds in which a cluster must answer
# A client's first words in HTTP/2, which gRPC and so Ray speaks (RFC 9113, 3.4): its preface, and settings without any.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEAD, KIND = 9, 3  # bytes of the head of each part that is sent, and which of them says what it is
SETTINGS = 4  # what a server's first part must be
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def connected(address: str = "", cpus: int = 0, objects: int = 0) -> Iterator[None]:
    """Ray at `address` ("auto": the cluster that this machine is a node of, by `RAY_ADDRESS` or `ray start`), or one of
    this machine alone, with `cpus` processors (0 = all) and room for `objects` bytes that are shared, which ends when
    the block does. Where this process is connected already, that is used.

    Raises `BlemishError` where there is no cluster, or one with another version of Ray or Python.
    """
    _set_environment(address)
    import ray

    if ray.is_initialized():
        yield
        return
    address = located(address) if address else ""
    before = {number: signal.getsignal(number) for number in _signals()}
    try:
        with _without_stderr():
            _init(address, cpus, objects)
    except (ConnectionError, RuntimeError, ValueError) as cause:
        first = str(cause).strip().partition("\n")[0]
        where = f"there is no Ray cluster to use at {address}" if address else "Ray cannot be started on this machine"
        remedy = (  # `_check` has found what speaks like Ray
            "check that it is the address that `ray start --head` said, and RAY_AUTH_MODE and RAY_AUTH_TOKEN"
            if address
            else "see docs/cluster.md"
        )
        raise BlemishError(f"{where} ({first}); {remedy}.") from None
    finally:
        for number, handler in before.items():  # Ray sets its own, which end the program without a word
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def located(address: str) -> str:
    """HOST:PORT of the Ray cluster at `address`. Raises `BlemishError` where none answers within seconds."""
    _set_environment(address)
    if address == "auto":
        address = _own_cluster()
    if address.startswith("ray://"):
        raise BlemishError(
            f"{address}: Ray Data does not run through a Ray client; run this on a node of the cluster with --address "
            "auto, or send it there with `ray job submit`."
        )
    _check(address)
    return address


def _set_environment(address: str) -> None:
    """What Ray reads when it is loaded."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    found = TOKENS & os.environ.keys() or (Path.home() / ".ray/auth_token").exists()
    if address == "auto" and found and "ray" not in sys.modules:  # it reads this once
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` and Ray's own "auto" do


def _own_cluster() -> str:
    """HOST:PORT of the cluster that this machine is a node of. Ray's own "auto" would also take a Ray that another
    program started for itself, such as that of another `blemish`, which ends with it."""
    from ray._private.services import find_bootstrap_address

    address: str = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        address = find_bootstrap_address(None) or ""
    if not address:
        raise BlemishError(
            "--address auto: this machine is no node of a Ray cluster; start one with `ray start --head`, or give its "
            "HOST:PORT."
        )
    return address


def _check(address: str) -> None:
    """Raises `BlemishError` where nobody or something else than Ray answers at HOST:PORT: Ray would try again for
    minutes, and not hear a signal meanwhile."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise BlemishError(f"--address {address} is none; give auto, or HOST:PORT as `ray start --head` says it.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER) as connection:
            why = "" if _encrypted() or _speaks_http2(connection) else "something else answers there"
    except (OSError, OverflowError) as cause:
        why = str(cause)
    if why:
        raise BlemishError(
            f"there is no Ray cluster to use at {address} ({why}); start one with `ray start --head`, or omit "
            "--address."
        )


def _encrypted() -> bool:
    """Whether Ray is to speak TLS here, which hides everything else."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _speaks_http2(connection: socket.socket) -> bool:
    connection.sendall(HELLO)
    with connection.makefile("rb") as answer:
        head = answer.read(HEAD)
    return len(head) == HEAD and head[KIND] == SETTINGS


def _init(address: str, cpus: int, objects: int) -> None:
    import ray

    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address:
        ray.init(address=address, **quiet)
    else:
        ray.init(
            "local",
            num_cpus=cpus or None,
            include_dashboard=False,
            object_store_memory=OBJECTS + objects,
            **quiet,
        )


@contextmanager
def _without_stderr() -> Iterator[None]:
    """What Ray's core writes into standard error while it starts goes nowhere; what is wrong comes as an exception."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def silence() -> None:
    """Ray Data says nothing on the terminal: the driver tells what people need to know, and Ray's own logs the rest."""
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def _signals() -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []
    return [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


def versions() -> dict[str, str]:
    """What must be the same on every node, so that its verdicts are."""
    import numpy as np
    import onnxruntime
    import PIL

    return {
        "Python": ".".join(map(str, sys.version_info[:2])),
        "blemish": __version__,
        "onnxruntime": onnxruntime.__version__,
        "Pillow": PIL.__version__,
        "numpy": np.__version__,
    }
