"""`verdicts.jsonl` as a journal: an image that has a line in it has been inspected, whatever happens to the process.

A line is one JSON object. It is written with one system call and synchronised to the disk (fsync) before any receiver
gets it. So neither a kill nor a power cut loses a line, if the disk does what it confirms; an image that was begun and
has no line is inspected again. An incomplete last line, as a kill may leave it, is cut off at the next start.

Each line carries its place in the verdict log, see `lines.py` and `chain.py`: what is changed in the journal later
shows.

The journal itself is locked, so that there is one writer whatever happens to other files. Before each line it is
checked that it is still the file that stands under its name, as long as we left it: nothing is written into a file that
somebody has deleted, moved away or replaced.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import blake2b, sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blemish.atomic import open_regular
from blemish.inference.results import VERDICTS
from blemish.station.chain import Head
from blemish.station.lines import BEGIN, Tail, chained, is_torn, parsed
from blemish.station.scan import File
from blemish.types import BlemishError

LOCK = ".watch.lock"
_HALF = (1 << 64) - 1


class Journal:
    """The journal of one folder, locked for one process. `read` is called with every row that is already in it.

    It keeps two numbers of 128 bits in memory for each file name, which identify the file recorded last. Raises
    `BlemishError` where another process has locked it, or `blemish watch` did not write the file.
    """

    def __init__(self, folder: Path, read: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.file = folder / VERDICTS
        self._last: dict[int, int] = {}  # hash of the name -> hash of size and times, and of the content
        self._open = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._open as opened:
                opened.callback(os.close, locked(folder / LOCK, folder))  # older versions of blemish lock this one
                self._descriptor = locked(self.file, folder)
                opened.callback(os.close, self._descriptor)
                self.end, self.head = self._recover(read)  # bytes of it that are on the disk, and its end as a log
                os.ftruncate(self._descriptor, self.end)
                os.fsync(self._descriptor)
                _sync_folder(folder)
                self._open = opened.pop_all()
        except OSError as cause:
            raise BlemishError(f"{folder}: cannot be written to ({cause.strerror}); choose another --out.") from None

    def knows(self, file: File) -> bool:
        """Whether this file has been recorded, with the same name, size and times."""
        number = _number(file.name)
        last = self._last.get(number)
        if last is None:
            return False
        now = _state(file.size, file.modified, file.changed)
        if last >> 64 == now:
            return True
        if last >> 64 != _state(file.size, file.modified, None):
            return False
        # Recorded by a version that did not record the time of change: what it is now counts from here on.
        self._last[number] = now << 64 | last & _HALF
        return True

    def has(self, name: str) -> bool:
        """Whether any file of that name has been recorded."""
        return _number(name) in self._last

    def same_content(self, file: File, content: str) -> bool:
        """Whether the last file recorded under that name has the same bytes, whose SHA-256 is `content`. Then only its
        time of change is new, and it is known from now on."""
        key = _number(file.name)
        if key not in self._last or self._last[key] & _HALF != int(content[:16], 16):
            return False
        self._last[key] = _value(_state(file.size, file.modified, file.changed), content)
        return True

    def check(self) -> None:
        """Raises `BlemishError` where the file is no longer the one that stands under its name, as we left it."""
        try:
            there = self.file.stat()
        except OSError as cause:
            if cause.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise BlemishError(f"{self.file}: cannot be reached ({cause.strerror}); mend that.") from None
            raise self._changed("was deleted or moved away") from None
        ours = os.fstat(self._descriptor)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise self._changed("was replaced by another file")
        if there.st_size != self.end:
            raise self._changed("was cut off" if there.st_size < self.end else "was written to by another program")

    def add(self, row: dict[str, Any]) -> bytes:
        """Writes a row, with `time`, `name`, `bytes`, `modified` and `sha256` among its fields, and returns the line,
        which also has its place in the log. Raises `BlemishError` where it cannot be written, and as `check` does."""
        line, head = chained(row, self.head)
        rest = memoryview(line)
        self.check()
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as cause:
            raise BlemishError(f"{self.file}: cannot be written to ({cause.strerror}); mend that.") from None
        self.end, self.head = self.end + len(line), head
        self._remember(row)
        return line

    def _changed(self, what: str) -> BlemishError:
        return BlemishError(
            f"{self.file}: {what} while `blemish watch` wrote it, so it ends; put it back, or start a new one."
        )

    def _remember(self, row: dict[str, Any]) -> None:
        state = _state(row["bytes"], row["modified"], row.get("changed"))
        self._last[_number(row["name"])] = _value(state, row["sha256"])

    def _recover(self, read: Callable[[dict[str, Any]], None]) -> tuple[int, Head]:
        """Reads what is in the file; returns where the last complete line ends, and the head there. Raises
        `BlemishError` for a line that is not from `blemish watch`."""
        end, torn, tail = 0, b"", Tail()
        with open(os.dup(self._descriptor), "rb") as lines:  # noqa: PTH123 - the file that is locked
            for number, line in enumerate(lines, 1):
                row = parsed(line)
                if torn or (row is not None and "id" not in row):
                    raise self._foreign(number - bool(torn))
                if row is None:
                    torn = line  # allowed for the last line only
                    if not is_torn(line, number == 1):
                        raise self._foreign(number)
                    continue
                try:
                    self._remember(row)
                except (KeyError, TypeError, ValueError):
                    raise self._foreign(number) from None
                read(row)
                tail.read(line, row)
                end += len(line)
        return end, tail.head

    def _foreign(self, number: int) -> BlemishError:
        return BlemishError(
            f"{self.file}: line {number} was not written by `blemish watch`; choose another --out, or mend that line."
        )

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_foreign(folder: Path) -> bool:
    """Whether `blemish watch` did not write this folder, which has no mark: versions before marks wrote some."""
    if (folder / LOCK).is_file():
        return False
    try:
        with open_regular(folder / VERDICTS) as lines:
            return lines.read(len(BEGIN)) != BEGIN
    except OSError:
        return True


def identity(file: File, content: str) -> str:
    """32 hexadecimal digits, always the same for one file and different for any other. `content`: its SHA-256."""
    return sha256(os.fsencode(f"{file.name}\0{file.size}\0{file.modified}\0{content}")).hexdigest()[:32]


def _number(name: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(name), digest_size=16).digest())


def _state(size: int, modified: int, changed: int | None) -> int:
    return hash((size, modified, changed)) & _HALF  # need only be the same within this process


def _value(state: int, content: str) -> int:
    return state << 64 | int(content[:16] or "0", 16)


def locked(path: Path, folder: Path) -> int:
    """A descriptor of the file `path`, which is made where it is missing, locked for this process; the kernel unlocks
    it, however the process ends. Raises `BlemishError` where another process has locked it."""
    try:
        import fcntl
    except ModuleNotFoundError:
        raise BlemishError("`blemish watch` needs Linux or macOS; on Windows run it in WSL.") from None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BlemishError(f"{path}: is a pipe or a device; remove it, or choose another --out.")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(status, path.stat()):
                return descriptor
        except OSError as cause:
            os.close(descriptor)
            if isinstance(cause, BlockingIOError):
                raise BlemishError(
                    f"{folder}: another `blemish watch` writes there; stop that one, or choose another --out."
                ) from None
            if cause.errno != errno.ENOENT:
                raise BlemishError(
                    f"{folder}: its file system has no locks ({cause.strerror}); choose an --out on a local disk."
                ) from None
        except BaseException:
            os.close(descriptor)
            raise
        else:  # somebody deleted it between opening and locking
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Makes sure that a new file's name is on the disk as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(descriptor)
