"""Standard input, output and error as they really are: closed, full, without a reader, or not UTF-8.

Writing to them never raises. A reader that stops early (`| head -1`), a full disk and a terminal that is gone end the
printing, not the work: what is written to files is complete. How it went is asked at the end, with `trouble`.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blemish.cli.words import ERRORS

WINDOWS = os.name == "nt"
WIDEST = 10_000  # columns that are believed


class _Unfailing(io.RawIOBase):
    """The raw end of a stream. The first error is kept, and from then on what is written is dropped."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.trouble: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        size = len(rest)
        while len(rest) and self.trouble is None:
            try:
                written = self._raw.write(rest)
                if written is None:  # whoever shares the pipe made it non-blocking, and it is full
                    select.select([], [self._raw], [])
                rest = rest[written or 0 :]
            except OSError as cause:
                self.trouble = cause
        return size


@contextmanager
def unfailing() -> Iterator[None]:
    """In the block, `sys.stdout` and `sys.stderr` take every text and raise nothing; a closed one is the null device.
    `sys.stdin` stays None where it is closed."""
    _fill_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_replaced, before)
    columns = os.environ.get("COLUMNS", "80")
    if not columns.isdecimal() or not columns.isascii() or not 0 < int(columns) <= WIDEST:
        del os.environ["COLUMNS"]  # 0 is what a terminal without a size says
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _replaced(stream: Any) -> Any:
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(raw, io.RawIOBase):
        return stream  # somebody's own, such as a test's
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unfailing(raw)),
        encoding=stream.encoding,
        errors=ERRORS,
        line_buffering=stream.line_buffering,
    )


def _fill_closed() -> None:
    """Opens the null device in the place of closed descriptors: the next file that is opened would take it, and get
    what is meant for the terminal."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def trouble() -> OSError | None:
    """Why standard output takes nothing any more; None where it does."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.trouble if isinstance(raw, _Unfailing) else None


def reader_gone() -> bool:
    """Whether whoever read standard output has stopped."""
    cause = trouble()
    return cause is not None and cause.errno in (errno.EPIPE, errno.ECONNRESET, *([errno.EINVAL] if WINDOWS else []))
