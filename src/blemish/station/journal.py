"""`verdicts.jsonl` as a journal: what stands in it has been inspected, whatever happened to the process.

A line is one JSON object. It is written with one system call and pushed to the disk (fsync) before anything else is
told of it. So a killed process loses no line, and neither does a power cut, as far as the disk keeps its word; what was
begun and is not in the journal is done again. What a kill left of a last line is cut off at the next start.
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
    """The journal of one folder, held by one process. `read` is called with every row that is there already.

    In memory it keeps two numbers of 128 bits for each name: which file of that name was recorded last.
    Raises `BlemishError` where another process holds it, or the file is none that `blemish watch` wrote.
    """

    def __init__(self, folder: Path, read: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.file = folder / VERDICTS
        self._last: dict[int, int] = {}  # name -> state of the file, and content
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("a+")
        except OSError as cause:
            raise BlemishError(f"{folder}: cannot be written to ({cause.strerror}); choose another --out.") from None
        try:
            _hold(self._lock, folder)
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self.end = self._recover(read)  # bytes that are on the disk
            os.ftruncate(self._descriptor, self.end)
            os.fsync(self._descriptor)
            _sync_folder(folder)
        except BaseException:
            self._lock.close()
            raise

    def knows(self, file: File) -> bool:
        """Whether this very file has been recorded: name, size and time of change."""
        last = self._last.get(_number(file.name))
        return last is not None and last >> 64 == _state(file.size, file.modified)

    def has(self, name: str) -> bool:
        """Whether some file of that name has been recorded."""
        return _number(name) in self._last

    def same(self, file: File, content: str) -> bool:
        """Whether the last file recorded under that name had the same bytes: then it has only been touched, and is
        known from now on. `content` is their SHA-256."""
        key = _number(file.name)
        if key not in self._last or self._last[key] & _HALF != int(content[:16], 16):
            return False
        self._last[key] = _value(file.size, file.modified, content)
        return True

    def add(self, row: dict[str, Any]) -> bytes:
        """Writes a row, with `name`, `bytes`, `modified` and `sha256` among its fields; gives back the line."""
        line = json.dumps(row).encode() + b"\n"
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
        """Reads what is there; where the last whole line ends."""
        end, torn = 0, b""
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = _row(line)
                if torn or (row is not None and "id" not in row):
                    raise self._foreign(number - bool(torn))
                if row is None:
                    torn = line  # only the last one may be
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
            f"{self.file}: line {number} is none that `blemish watch` wrote; choose another --out, or mend that line."
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
    """32 hexadecimal digits: the same whenever this file is inspected, another for any other. `content`: see `same`."""
    return sha256(os.fsencode(f"{file.name}\0{file.size}\0{file.modified}\0{content}")).hexdigest()[:32]


def _row(line: bytes) -> dict[str, Any] | None:
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
    return hash((size, modified)) & _HALF  # the same within a process, and it is kept nowhere else


def _value(size: int, modified: int, content: str) -> int:
    return _state(size, modified) << 64 | int(content[:16] or "0", 16)


def _hold(lock: IO[str], folder: Path) -> None:
    """Locks the file for this process; the kernel gives it back, however the process ends."""
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
    """So that a new file's name is on the disk as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(descriptor)
