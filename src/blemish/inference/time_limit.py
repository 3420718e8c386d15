"""A time limit for each run of a graph, and for each message to a receiver. A graph may hold loops, and nothing says
that they end; a receiver may answer byte by byte.

One thread watches all runs of this process: a thread for each would cost more than a small graph does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 60.0  # by default, for an image or four of its tiles

_watched: dict[object, tuple[float, Callable[[], None]]] = {}  # running: when its time is up, and what to do then
_changed = threading.Condition()
_thread: threading.Thread | None = None
_wakes = 0.0  # when the thread will look again


@contextmanager
def time_limit(seconds: float, end: Callable[[], None]) -> Iterator[None]:
    """Calls `end`, which must neither raise nor wait, from another thread if the block takes longer than `seconds`."""
    global _thread
    due, key = time.monotonic() + seconds, object()
    with _changed:
        _watched[key] = due, end
        if _thread is None or not _thread.is_alive():  # also after a fork, which copies no threads
            _thread = threading.Thread(target=_watch, name="blemish-time-limit", daemon=True)
            _thread.start()
        elif due < _wakes:
            _changed.notify()
    try:
        yield
    finally:
        with _changed:
            _watched.pop(key, None)


def _watch() -> None:
    global _wakes
    with _changed:
        while True:
            now = time.monotonic()
            for key in [key for key, (due, _) in _watched.items() if due <= now]:
                _watched.pop(key)[1]()
            _wakes = min((due for due, _ in _watched.values()), default=now + SECONDS)
            _changed.wait(max(0.0, min(_wakes - now, threading.TIMEOUT_MAX)))
