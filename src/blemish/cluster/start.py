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
ANSWER = 10.0  # seconds in which a cluster must answer
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def connected(address: str = "", cpus: int = 0, objects: int = 0) -> Iterator[None]:
    """Ray at `address` ("auto": the cluster that this machine is a node of), or one of this machine alone, with `cpus`
    processors (0 = all) and room for `objects` bytes that are shared, which ends when the block does. Where this
    process is connected already, that is used.

    Raises `BlemishError` where there is no cluster, or one with another version of Ray or Python.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        raise BlemishError(
            f"{address}: Ray Data does not run through a Ray client; run this on a node of the cluster with --address "
            "auto, or send it there with `ray job submit`."
        )
    if address not in ("", "auto"):
        _check(address)
    before = {number: signal.getsignal(number) for number in _signals()}
    try:
        with _without_stderr():
            _init(address, cpus, objects)
    except (ConnectionError, RuntimeError, ValueError) as cause:
        first = str(cause).strip().partition("\n")[0]
        where = f"there is no Ray cluster to use at {address}" if address else "Ray cannot be started on this machine"
        remedy = "start one with `ray start --head`, or omit --address" if address else "see docs/cluster.md"
        raise BlemishError(f"{where} ({first}); {remedy}.") from None
    finally:
        for number, handler in before.items():  # Ray sets its own, which end the program without a word
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Raises `BlemishError` where nobody answers at HOST:PORT, for which Ray would wait for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise BlemishError(f"--address {address} is none; give auto, or HOST:PORT as `ray start --head` says it.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as cause:
        raise BlemishError(
            f"there is no Ray cluster to use at {address} ({cause}); start one with `ray start --head`, or omit "
            "--address."
        ) from None


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
