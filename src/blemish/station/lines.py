"""A line of `verdicts.jsonl` and its place in the verdict log, see `chain.py`; and a whole journal read as such a log.

A line has, beside what it says, the fields `seq`, `previous` and `hash`. Of its entry, `time` is the line's `time`,
`kind` is "verdict", and `body` is all other fields; `seq` is the number of the line in the file.

Lines that an older blemish wrote have no such fields. What follows them covers them all the same: the `previous` of the
first new line is the SHA-256 of all bytes before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from blemish.atomic import open_regular
from blemish.inference.results import VERDICTS
from blemish.station.chain import START, Entry, Head, canonical, link
from blemish.types import BlemishError

BEGIN = b'{"id": "'  # of each of our lines
KIND = "verdict"
_HASH = re.compile("[0-9a-f]{64}")
_MOST = 10**18  # more entries than any log has; a head's text has no room for more


class Log(NamedTuple):
    """A log to verify: what its first entry was linked to, and its entries, from first to last."""

    before: Head
    entries: Iterator[Entry]


class Tail:
    """Where the chain of a journal ends, after the lines that were read so far."""

    def __init__(self) -> None:
        self.head = START
        self.begun = False  # a line with a place in the chain was read
        self._older = sha256()

    def read(self, line: bytes, row: dict[str, Any] | None) -> None:
        place = _place(row)
        if place:
            self.head, self.begun = place, True
        elif not self.begun:
            self._older.update(line)
            self.head = Head(self.head.seq + 1, self._older.hexdigest())


def chained(row: dict[str, Any], head: Head) -> tuple[bytes, Head]:
    """The line of a row, as the next entry after `head`, and the head that it makes. `row` has a `time`. Raises
    ValueError for NaN and infinities."""
    row = json.loads(json.dumps(row, allow_nan=False))  # as whoever reads it will have it
    entry = link(head.hash, head.seq + 1, row["time"], KIND, _body(row))
    row |= {"seq": entry.seq, "previous": entry.previous, "hash": entry.hash}
    return _line(row), Head(entry.seq, entry.hash)


def parsed(line: bytes) -> dict[str, Any] | None:
    """None where the line is incomplete or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def is_torn(line: bytes, first: bool) -> bool:
    """Whether this may be what a kill or a power cut left of our line: its beginning, or zeros where blocks were given
    to the file and not written. After a whole line of ours, anything without an end is."""
    if not first and not line.endswith(b"\n"):
        return True
    start = line.partition(b"\0")[0].rstrip(b"\n")
    return start.startswith(BEGIN) or BEGIN.startswith(start)


def read(path: Path) -> Log:
    """The journal `path`, or the one in that folder, as a log. It may be written meanwhile; a last line that is not
    complete, as a kill leaves it, is no entry. Raises `BlemishError` where it cannot be read, and where `blemish watch`
    did not write it."""
    file = path / VERDICTS if path.is_dir() else path
    tail, end, first = Tail(), 0, b""
    for line, row in _complete(file, 0):
        first = first or line
        if _place(row):
            break
        tail.read(line, row)
        end += len(line)
    else:
        if first and not first.startswith(BEGIN):
            raise BlemishError(f"{file}: was not written by `blemish watch`; give the --out of a watch.")
    return Log(tail.head, (_entry(line, row) for line, row in _complete(file, end)))


def _complete(file: Path, start: int) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Every complete line from byte `start` on, with its row, None where it is damaged."""
    held, first = b"", False  # a damaged line, which a kill explains if it is the last one
    try:
        with open_regular(file) as lines:
            lines.seek(start)
            for number, line in enumerate(lines, 1):
                if held:
                    yield held, None
                row = parsed(line)
                if row is None:
                    held, first = line, start == 0 and number == 1
                else:
                    held = b""
                    yield line, row
    except OSError as cause:
        raise BlemishError(
            f"{file}: cannot be read ({cause.strerror}); give the --out of a `blemish watch`, or its {VERDICTS}."
        ) from None
    if held and not is_torn(held, first):
        yield held, None


def _entry(line: bytes, row: dict[str, Any] | None) -> Entry:
    place = _place(row)
    if row is None or place is None:
        return Entry(0, "", "", line.decode("utf-8", "backslashreplace"), "", "")
    # Other spaces, or a field twice, are a change: programs may read that differently.
    body = canonical(_body(row)) if _line(row) == line else line.decode("utf-8", "backslashreplace")
    return Entry(place.seq, row["time"], KIND, body, row["previous"], place.hash)


def _place(row: dict[str, Any] | None) -> Head | None:
    """The number and the hash of a row; None where it has no whole place in the chain."""
    if row is None:
        return None
    seq, hashes = row.get("seq"), (row.get("previous"), row.get("hash"))
    whole = type(seq) is int and 0 < seq < _MOST and all(isinstance(h, str) and _HASH.fullmatch(h) for h in hashes)
    return Head(row["seq"], row["hash"]) if whole and isinstance(row.get("time"), str) else None


def _body(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("time", "seq", "previous", "hash")}


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"
