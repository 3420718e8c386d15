"""`verdicts.jsonl` as a journal: an image that has a line in it has been inspected, whatever happens to the process.

A line is one JSON object. It is written with one system call and synchronised to the disk (fsync) before any receiver
gets it. So neither a kill nor a power cut loses a line, if the disk does what it confirms; an image that was begun and
has no line is inspected again. An incomplete last line, as a kill may leave it, is cut off at the next start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import blake2b, sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from blemish.inference.results import VERDICTS
from blemish.station.arrivals import File
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
        self._last: dict[int, int] = {}  # hash of the name -> hash of size and time of change, and of the content
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("a+")
        except OSError as cause:
            raise BlemishError(f"{folder}: cannot be written to ({cause.strerror}); choose another --out.") from None
        try:
            _acquire(self._lock, folder)
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self.end = self._recover(read)  # bytes of it that are on the disk
            os.ftruncate(self._descriptor, self.end)
            os.fsync(self._descriptor)
            _sync_folder(folder)
        except BaseException:
            self._lock.close()
            raise

    def knows(self, file: File) -> bool:
        """Whether this file has been recorded, with the same name, size and time of change."""
        last = self._last.get(_number(file.name))
        return last is not None and last >> 64 == _state(file.size, file.modified)

    def has(self, name: str) -> bool:
        """Whether any file of that name has been recorded."""
        return _number(name) in self._last

    def same_content(self, file: File, content: str) -> bool:
        """Whether the last file recorded under that name has the same bytes, whose SHA-256 is `content`. Then only its
        time of change is new, and it is known from now on."""
        key = _number(file.name)
        if key not in self._last or self._last[key] & _HALF != int(content[:16], 16):
            return False
        self._last[key] = _value(file.size, file.modified, content)
        return True

    def add(self, row: dict[str, Any]) -> bytes:
        """Writes a row, with `name`, `bytes`, `modified` and `sha256` among its fields, and returns the line."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)
        self.end += len(line)
        self._remember(row)
        return line

    def _remember(self, row: dict[str, Any]) -> None:
        self._last[_number(row["name"])] = _value(row["bytes"], row["modified"], row["sha256"])

    def _recover(self, read: Callable[[dict[str, Any]], None]) -> int:
        """Reads what is in the file; returns where the last complete line ends. Raises `BlemishError` for a line that
        is not from `blemish watch`."""
        end, torn = 0, b""
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = _row(line)
                if torn or (row is not None and "id" not in row):
                    raise self._foreign(number - bool(torn))
                if row is None:
                    torn = line  # allowed for the last line only
                    if line.strip(b"\0") and not line.startswith(b'{"'):
                        raise self._foreign(number)
                    continue
                try:
                    self._remember(row)
                except (KeyError, TypeError, ValueError):
                    raise self._foreign(number) from None
                read(row)
                end += len(line)
        return end

    def _foreign(self, number: int) -> BlemishError:
        return BlemishError(
            f"{self.file}: line {number} was not written by `blemish watch`; choose another --out, or mend that line."
        )

    def close(self) -> None:
        os.close(self._descriptor)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def identity(file: File, content: str) -> str:
    """32 hexadecimal digits, always the same for one file and different for any other. `content`: its SHA-256."""
    return sha256(os.fsencode(f"{file.name}\0{file.size}\0{file.modified}\0{content}")).hexdigest()[:32]


def _row(line: bytes) -> dict[str, Any] | None:
    """None where the line is incomplete or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _number(name: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(name), digest_size=16).digest())


def _state(size: int, modified: int) -> int:
    return hash((size, modified)) & _HALF  # need only be the same within this process


def _value(size: int, modified: int, content: str) -> int:
    return _state(size, modified) << 64 | int(content[:16] or "0", 16)


def _acquire(lock: IO[str], folder: Path) -> None:
    """Locks the file for this process; the kernel unlocks it, however the process ends."""
    try:
        import fcntl
    except ModuleNotFoundError:
        raise BlemishError("`blemish watch` needs Linux or macOS; on Windows run it in WSL.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise BlemishError(
            f"{folder}: another `blemish watch` writes there; stop that one, or choose another --out."
        ) from None


def _sync_folder(folder: Path) -> None:
    """Makes sure that a new file's name is on the disk as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(descriptor)
