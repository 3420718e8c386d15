"""What decoding an image may take: how many bytes of its file, and how much memory with all other threads together.

A file may say that its header is 2 GB long, or be 8 GB of nothing on no disk. And an image of 100 million pixels takes
1.6 GB until its verdict is known, in each thread: so threads wait for each other where the images are large.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

HEADER = 32 * 2**20  # bytes of a file that may be read before the image's size is known
BESIDES = 256 * 2**20  # bytes that may be read besides 16 for each pixel
WHOLE = 256 * 2**20  # bytes of a file that a decoder reads as a whole, as that of WebP does
CALL = 64  # bytes that each reading counts at least: some decoders read a byte at a time
PER_PIXEL = 16  # bytes of memory until the verdict is known, most of it in the graph, which computes in float32
SMALL = 1_000_000  # pixels of an image that never waits
LEAST = 2 * 2**30  # bytes of the budget at least
_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Metered:
    """A file of which no more than `left` bytes are read; then it raises OSError. Else it is like the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.left = file, HEADER

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            here = self._file.tell()
            size = self._file.seek(0, os.SEEK_END) - here
            self._file.seek(here)
            if size > WHOLE:
                raise OSError(f"{size:,} bytes, more than the {WHOLE:,} that are read of such a file")
        elif size > self.left:
            raise OSError("it is far longer than an image of its size can be")
        data = self._file.read(size)
        self.left -= max(CALL, len(data))
        return data

    def allow(self, pixels: int) -> None:
        """Sets what may be read from now on, for an image of so many pixels."""
        self.left = BESIDES + 16 * pixels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@cache
def budget() -> int:
    """Bytes that all threads together may take for large images: half of the memory that this process may use."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return LEAST
    for group in _GROUPS:
        try:
            text = Path(group).read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal():
            memory = min(memory, int(text))
    return max(LEAST, memory // 2)


class _Turn:
    """What one thread has taken; `least` pixels, however few its image has."""

    def __init__(self, least: int) -> None:
        self.least, self.taken = least, 0


_here = threading.local()  # `turn`
_changed = threading.Condition()
_waiting: deque[_Turn] = deque()  # first come, first served, so that a large image is not passed by for ever
_taken = 0


@contextmanager
def turn(least: int = 0) -> Iterator[None]:
    """While this lasts, this thread keeps the memory that `take` has given it. Inside another turn it is part of that:
    a thread that has memory never waits for more, so none waits for ever."""
    if getattr(_here, "turn", None) is not None:
        yield
        return
    _here.turn = _Turn(least)
    try:
        yield
    finally:
        _release(_here.turn)
        _here.turn = None


def take(pixels: int) -> None:
    """Waits, in this thread's turn, until there is memory for an image of so many pixels; one that is larger than the
    whole budget waits until it is alone. Gives nothing more to a turn that has some, and to small images."""
    global _taken
    mine: _Turn = _here.turn
    pixels = max(pixels, mine.least)
    if mine.taken or pixels <= SMALL:
        return
    size = min(PER_PIXEL * pixels, budget())
    with _changed:
        _waiting.append(mine)
        try:
            while _waiting[0] is not mine or _taken + size > budget():
                _changed.wait()
            mine.taken, _taken = size, _taken + size
        finally:
            _waiting.remove(mine)
            _changed.notify_all()


def _release(mine: _Turn) -> None:
    global _taken
    if mine.taken:
        with _changed:
            _taken -= mine.taken
            _changed.notify_all()
