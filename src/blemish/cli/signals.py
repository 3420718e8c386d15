"""Signals that end the program while it works: it removes what is unfinished, as after Ctrl-C, and then ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, `kill` and service managers, a terminal that is closed
GRACE = 1.0  # seconds in which further signals are the same request, such as a shell's SIGHUP and then SIGTERM


@contextmanager
def ending() -> Iterator[None]:
    """In the block, a signal raises SystemExit with 128 and its number, so that every `finally` runs. One more after a
    second ends the process at once. Ignored signals, as under nohup, stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[float] = []

    def end(number: int, _frame: object) -> None:
        if not asked:
            asked.append(time.monotonic())
            raise SystemExit(128 + number)
        if time.monotonic() - asked[0] > GRACE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {}
    for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
        # Where something else handles a signal already, it goes on doing so.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
