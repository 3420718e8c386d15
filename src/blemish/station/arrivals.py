"""Which images of a folder are new and complete, found by looking again and again, on network shares too.

A file is complete

- at once, where its last bytes are the end that JPEG, PNG, GIF and WebP have (TIFF and BMP have none: a copy that was
  given its full length first looks like the whole), and
- else when size and time of change have stayed the same for `settle` seconds.

What is complete by that and cannot be decoded all the same waits until it has not changed for `give_up` seconds, and is
tried again, for good.

The order: of what is complete at one look, the oldest time of change first, then natural order of names. What becomes
complete later comes later, however old it is: no file waits for another.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from blemish.images import DEPTH, has_suffix, natural

BATCH = 1000  # files handed out at one look, so that a folder of a million takes no more memory than one of a thousand


class File(NamedTuple):
    """An image as it was when it was listed; `name` is relative to the folder, with forward slashes."""

    name: str
    size: int  # bytes
    modified: int  # ns since 1970
    inode: int  # another one after a file was renamed into its place


class _Waiting(NamedTuple):
    file: File
    since: float  # when it was first seen like this, on the monotonic clock
    tried: bool  # it could not be decoded


class Arrivals:
    """What has come into the folder `root` and is not `known`."""

    def __init__(self, root: Path, known: Callable[[File], bool], *, settle: float, give_up: float) -> None:
        self.root, self.settle, self.give_up = root, settle, give_up
        self._known = known
        self._waiting: dict[str, _Waiting] = {}
        self.troubles: set[str] = set()  # folders below the root that could not be listed at the last look

    def complete(self, now: float | None = None) -> list[File]:
        """Looks into the folder: at most `BATCH` complete files, in order. Raises OSError where it cannot be listed."""
        now = time.monotonic() if now is None else now
        self.troubles.clear()
        new = (file for file in self._listed(self.root, "", DEPTH) if not self._known(file))
        # Those that wait do not stand in the way of as many others.
        first = heapq.nsmallest(BATCH + len(self._waiting), new, key=lambda f: (f.modified, natural(f.name)))
        before, self._waiting = self._waiting, {}
        for file in first:
            was = before.get(file.name)
            self._waiting[file.name] = was if was and was.file == file else _Waiting(file, now, False)
        return [file for file in first if self._is_complete(self._waiting[file.name], now)][:BATCH]

    @property
    def waiting(self) -> int:
        """How many files were new at the last look and have not been `done`; of a large backlog, only the next."""
        return len(self._waiting)

    def done(self, file: File) -> None:
        self._waiting.pop(file.name, None)

    def failed(self, file: File, now: float | None = None) -> bool:
        """Call when it could not be decoded: whether that is final, because it is no longer being written."""
        now = time.monotonic() if now is None else now
        was = self._waiting.get(file.name)
        if was is None or was.file != file:
            return False
        if now - was.since >= self.give_up:
            return True
        self._waiting[file.name] = was._replace(tried=True)
        return False

    def _is_complete(self, waiting: _Waiting, now: float) -> bool:
        unchanged = now - waiting.since
        if waiting.tried:
            return unchanged >= self.give_up
        return unchanged >= self.settle or has_end(self.root / waiting.file.name, waiting.file.size)

    def _listed(self, folder: Path, prefix: str, depth: int) -> Iterator[File]:
        """As `images.list_images` finds them, but one after the other, with size and time."""
        below = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_dir():
                        below.append(entry.name)
                    elif has_suffix(entry.name):
                        found = entry.stat()
                        yield File(prefix + entry.name, found.st_size, found.st_mtime_ns, found.st_ino)
                except OSError:  # gone since it was listed, or a link to nowhere
                    continue
        for name in below if depth else []:
            try:
                yield from self._listed(folder / name, f"{prefix}{name}/", depth - 1)
            except OSError:
                self.troubles.add(f"{prefix}{name}")


def now_is(root: Path, file: File) -> bool | None:
    """Whether the file is still as it was listed; None where it is gone."""
    try:
        found = (root / file.name).stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) == file[1:]


def has_end(path: Path, size: int) -> bool:
    """Whether a file of `size` bytes begins and ends as a whole JPEG, PNG, GIF or WebP does."""
    try:
        with path.open("rb") as file:
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
        # RIFF says its own length, which a copy may have been given first: its end has no mark, but is seldom zeros.
        return int.from_bytes(start[4:8], "little") + 8 == size and any(end)
    return False
