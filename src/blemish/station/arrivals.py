"""Which images of a folder are new and complete, found by listing it again and again, so on network shares as well.

A file is complete

- at once, where it ends in the bytes with which JPEG, PNG, GIF and WebP end (TIFF and BMP have no such end: a copy that
  is given its full length first cannot be told from the whole file), and
- otherwise when its size and time of change have stayed the same for `settle` seconds.

A complete file that cannot be decoded is tried once more when it has not changed for `give_up` seconds. One that meets
trouble of the machine's, see `trouble.py`, is tried again and again, at growing intervals.

The order: of the files that are complete in one listing, the oldest time of change first, then natural order of names.
A file that becomes complete later comes later, however old it is: no file waits for another.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blemish.atomic import open_regular
from blemish.listing import natural
from blemish.station import trouble
from blemish.station.scan import File, Scan

BATCH = 1000  # files given at once, so that a folder of a million takes no more memory than one of a thousand


class _Waiting(NamedTuple):
    file: File
    since: float  # when it was first listed like this, on the monotonic clock
    failed: bool = False  # it could not be decoded
    tries: int = 0  # that met trouble which passes
    again: float = 0.0  # when it is tried again after that


class Arrivals:
    """The files in the folder `root` that are not `known`, and not in the folder `out`."""

    def __init__(
        self, root: Path, known: Callable[[File], bool], *, settle: float, give_up: float, out: Path | None = None
    ) -> None:
        self.root, self.settle, self.give_up = root, settle, give_up
        self.scan = Scan(root, out)
        self._known = known
        self._waiting: dict[str, _Waiting] = {}

    def complete(self, now: float | None = None) -> list[File]:
        """Lists the folder: at most `BATCH` complete files, in order. Raises OSError where it cannot be listed."""
        now = time.monotonic() if now is None else now
        new = (file for file in self.scan.files() if not self._known(file))
        # So many more than a batch, so that files that wait never fill it.
        first = heapq.nsmallest(BATCH + len(self._waiting), new, key=lambda f: (f.modified, natural(f.name)))
        before, self._waiting = self._waiting, {}
        for file in first:
            earlier = before.get(file.name)
            unchanged = earlier is not None and earlier.file == file
            self._waiting[file.name] = earlier if earlier and unchanged else _Waiting(file, now)
        return [file for file in first if self._is_complete(self._waiting[file.name], now)][:BATCH]

    @property
    def waiting(self) -> int:
        """How many files were new in the last listing and are not `done`; of a large backlog, only the next ones."""
        return len(self._waiting)

    def stuck(self, now: float | None = None) -> bool:
        """Whether all files that wait have met nothing but trouble for at least `give_up` seconds."""
        now = time.monotonic() if now is None else now
        return all(one.tries and now - one.since >= self.give_up for one in self._waiting.values())

    def done(self, file: File) -> None:
        """To be called when the file needs no more attention."""
        self._waiting.pop(file.name, None)

    def failed(self, file: File, now: float | None = None) -> bool:
        """To be called when a file could not be decoded. True where that is final, because it is no longer written
        to."""
        now = time.monotonic() if now is None else now
        waiting = self._waiting.get(file.name)
        if waiting is None or waiting.file != file:
            return False
        if now - waiting.since >= self.give_up:
            return True
        self._waiting[file.name] = waiting._replace(failed=True, tries=0)
        return False

    def troubled(self, file: File, now: float | None = None) -> bool:
        """To be called when a file met trouble that passes: it is complete again after a while. True the first time."""
        now = time.monotonic() if now is None else now
        waiting = self._waiting.get(file.name)
        if waiting is None or waiting.file != file:
            return False
        tries = waiting.tries + 1
        self._waiting[file.name] = waiting._replace(tries=tries, again=now + trouble.wait(tries))
        return tries == 1

    def _is_complete(self, waiting: _Waiting, now: float) -> bool:
        unchanged = now - waiting.since
        if waiting.tries:
            return now >= waiting.again
        if waiting.failed:
            return unchanged >= self.give_up
        return unchanged >= self.settle or has_end(self.root / waiting.file.name, waiting.file.size)


def has_end(path: Path, size: int) -> bool:
    """Whether a file of `size` bytes begins and ends as a complete JPEG, PNG, GIF or WebP does."""
    try:
        with open_regular(path) as file:
            start = file.read(12)
            file.seek(max(0, size - 12))
            end = file.read(13)
    except OSError:
        return False
    if len(end) != min(size, 12):  # it has grown
        return False
    if start.startswith(b"\xff\xd8\xff"):
        return end.endswith(b"\xff\xd9")
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return end == b"\0\0\0\0IEND\xaeB`\x82"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return end.endswith(b"\0;")
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        # RIFF has no end mark, but states its length. A copy that is given its full length first ends in zeros.
        return int.from_bytes(start[4:8], "little") + 8 == size and any(end)
    return False
