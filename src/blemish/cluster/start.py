"""A Ray cluster to work on: one that runs already, or one that is started on this machine and ends with the command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from blemish import __version__
from blemish.types import BlemishError

OBJECTS = 200 * 2**20  # bytes of shared memory of a Ray that is started here: images never pass through it
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def connected(address: str = "", cpus: int = 0) -> Iterator[None]:
    """Ray at `address` ("auto": the cluster that this machine is a node of), or one of this machine alone, with `cpus`
    processors (0 = all), which ends when the block does. Where this process is connected already, that is used.

    Raises `BlemishError` where there is no cluster, or one with another version of Ray or Python.
    """
    # Nothing is told to anybody; and nodes without a GPU are not warned of.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        raise BlemishError(
            f"{address}: Ray Data does not run through a Ray client; run this on a node of the cluster with --address "
            "auto, or send it there with `ray job submit`."
        )
    before = {name: signal.getsignal(name) for name in _signals()}
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init("local", num_cpus=cpus or None, include_dashboard=False, object_store_memory=OBJECTS, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as cause:
        first = str(cause).strip().partition("\n")[0]
        where = f"there is no Ray cluster to use at {address}" if address else "Ray cannot be started on this machine"
        remedy = "start one with `ray start --head`, or omit --address" if address else "see docs/cluster.md"
        raise BlemishError(f"{where} ({first}); {remedy}.") from None
    finally:
        for name, handler in before.items():  # Ray sets its own, which end the program without a word
            signal.signal(name, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _signals() -> list[signal.Signals]:
    import threading

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
