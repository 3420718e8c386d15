"""The verdict log as a chain: what was changed in it afterwards shows.

Each entry has a number, and a hash that covers all of it and the hash of the entry before. The hash is the SHA-256 of
the JSON array `["blemish log 1", previous, seq, time, kind, body]`, without spaces and in ASCII, in which `body` is
the text of the canonical JSON (see `canonical`) of what the entry says. So any program can compute it again. The first
entry has `seq` 1, and for `previous` 64 zeros.

What it proves: an entry that is intact, in a chain without problems up to a head that was kept elsewhere, says what it
said when that head was taken, and neither it nor any entry before it was changed, dropped, moved or inserted since.

What it does not prove:

- Without a head that was kept elsewhere, it proves only that nobody changed the log and left the chain as it was.
  Hashes need no secret: whoever can write the log can change an entry and compute all hashes after it again.
- The end: entries that are cut off there leave an intact, shorter chain. Only a head kept elsewhere tells.
- Nothing of entries after the head that was kept.
- That an entry was true when it was written, or that everything that happened was written. Times are what the clock
  of that computer said.

(The construction is the linking of Haber and Stornetta, "How to Time-Stamp a Digital Document", J. Cryptology 3, 1991,
without their time-stamping service; a kept head takes its place.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple, Self

from blemish.types import BlemishError

GENESIS = "0" * 64  # stands before the first entry
_FORMAT = "blemish log 1"
_HEAD = re.compile(_FORMAT + r" (0|[1-9][0-9]{0,17}) ([0-9a-f]{64})", re.ASCII)


class Entry(NamedTuple):
    """One entry. `body` is canonical JSON; hashes are 64 hexadecimal digits. An empty `hash` means that what stands in
    its place is no entry at all."""

    seq: int  # from 1
    time: str
    kind: str
    body: str
    previous: str
    hash: str


class Head(NamedTuple):
    """An entry's number and hash: all that is to be kept elsewhere of a log that ends there."""

    seq: int
    hash: str

    def to_text(self) -> str:
        return f"{_FORMAT} {self.seq} {self.hash}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Raises `BlemishError` where it is not the text of a head."""
        found = _HEAD.fullmatch(text.strip())
        if not found:
            raise BlemishError(
                f"{text.strip()[:100]!r} is no head of a log; give the line that `blemish log head` printed."
            )
        return cls(int(found[1]), found[2])


START = Head(0, GENESIS)


def canonical(body: Mapping[str, Any]) -> str:
    """JSON in ASCII, keys in order, without spaces: the same text for the same content. Raises ValueError for NaN and
    infinities, which JSON lacks."""
    return json.dumps(dict(body), sort_keys=True, separators=(",", ":"), allow_nan=False)


def link(previous: str, seq: int, time: str, kind: str, body: Mapping[str, Any]) -> Entry:
    """The entry number `seq`, after the one whose hash is `previous`."""
    text = canonical(body)
    return Entry(seq, time, kind, text, previous, _hash(previous, seq, time, kind, text))


def _hash(previous: str, seq: int, time: str, kind: str, body: str) -> str:
    fields = [_FORMAT, previous, seq, time, kind, body]
    return sha256(json.dumps(fields, separators=(",", ":")).encode("ascii")).hexdigest()


def problems(entries: Iterable[Entry], head: Head | None = None, *, before: Head = START) -> Iterator[str]:
    """A sentence for each place where the log is not as it was written; none where it is.

    `head`: one that was kept elsewhere; the log must hold it. `before`: what the first entry was linked to, if that is
    not the beginning of all. Reads the entries once and keeps two of them. After a break it resumes on the hashes that
    are stored, so that one tampered entry is one or two sentences, not one for all that follow.
    """
    walk = _Walk(before, head)
    for entry in entries:
        yield from walk.step(entry)
    yield from walk.end()


@dataclass(frozen=True)
class _Place:
    """An entry that was read: the hashes that the next one may name, and whether its number can be relied on."""

    seq: int
    hashes: tuple[str, ...]
    previous: str = ""
    sure: bool = True


@dataclass
class _Walk:
    before: Head
    head: Head | None
    last: _Place = field(init=False)  # the one that was read last
    top: _Place = field(init=False)  # the one that the chain has come up to: another one after something misplaced
    begun: bool = False
    strangers: int = 0  # what is no entry, since the last one
    rival: bool = False  # an entry with the number of the head and another hash was read
    found: bool = field(init=False)  # the head was

    def __post_init__(self) -> None:
        self.last = self.top = _Place(self.before.seq, (self.before.hash,))
        self.found = self.head in (None, START, self.before)

    def step(self, entry: Entry) -> Iterator[str]:
        if not entry.hash:
            self.strangers += 1
            return
        yield from self._strangers()
        self._meet(entry)
        computed = _hash(entry.previous, entry.seq, entry.time, entry.kind, entry.body)
        intact = entry.hash == computed
        hashes = (entry.hash,) if intact else (entry.hash, computed)
        base = next((place for place in (self.top, self.last) if entry.previous in place.hashes), None)
        seq = entry.seq if intact or base is None or not base.sure else base.seq + 1
        place = _Place(seq, hashes, entry.previous, intact or base is not None or seq == self.top.seq + 1)
        if not intact:
            yield f"Entry {seq} was changed: what it says and its hash do not belong together."
        if base is not None:
            yield from self._linked(place, base)
        elif intact and entry.hash in self.top.hashes + self.last.hashes:
            yield f"Entry {seq} stands there twice."
            return
        else:
            yield from self._unlinked(place, intact)
        self.last, self.begun = place, True

    def _linked(self, place: _Place, base: _Place) -> Iterator[str]:
        """`place` names the hash of `base`, which is the last or the topmost entry."""
        if base.sure and place.seq != base.seq + 1:
            yield f"Entry {place.seq} follows entry {base.seq}, so its number is wrong."
        elif not base.sure and place.seq > self.top.seq + 2:
            yield self._missing(place.seq - 1)
        if base is self.top or not base.sure or place.seq > self.top.seq:
            self.top = place

    def _unlinked(self, place: _Place, intact: bool) -> Iterator[str]:
        """`place` names a hash that neither the last nor the topmost entry has."""
        top = self.top
        if not intact and place.seq != top.seq + 1:
            return  # its number says nothing; the next entry will tell what is missing
        if not intact:
            pass  # it stands in its place, and was reported
        elif not self.begun and top.seq:
            yield (
                f"What stands before entry {place.seq} is not what it was linked to: something there was changed, "
                "dropped or inserted."
            )
        elif place.seq > top.seq + 1:
            yield self._missing(place.seq)
        elif place.seq == top.seq + 1:
            yield (
                f"Entry {place.seq} was linked to another entry {top.seq} than the one before it: one of the two was "
                "replaced, and its hash computed again."
            )
        elif place.seq == top.seq and place.previous == top.previous:
            yield f"There are two different entries {place.seq}: one of them was inserted."
            return
        else:
            yield f"Entry {place.seq} stands after entry {self.last.seq}: it was moved or copied there."
            return
        self.top = place

    def _missing(self, seq: int) -> str:
        """What is missing between the topmost entry and `seq`."""
        first, final = self.top.seq + 1, seq - 1
        which = f"Entry {first} is" if first == final else f"Entries {first} to {final} are"
        return f"{which} missing before entry {seq}."

    def _strangers(self) -> Iterator[str]:
        if self.strangers:
            many = "something" if self.strangers == 1 else f"{self.strangers} times something"
            yield (
                f"After entry {self.last.seq} stands {many} that is no entry: it was inserted, or an entry was made "
                "unreadable."
            )
        self.strangers = 0

    def _meet(self, entry: Entry) -> None:
        if self.head and entry.seq == self.head.seq:
            self.found |= entry.hash == self.head.hash
            self.rival = True

    def end(self) -> Iterator[str]:
        yield from self._strangers()
        if self.found or not self.head:
            return
        seq, end = self.head.seq, self.top.seq
        if end < seq:
            yield f"The log ends with entry {end}, and the kept head is entry {seq}: its end was cut off."
        elif self.rival:
            yield (
                f"Entry {seq} is not the one of the kept head: it, or something before it, was changed, and the chain "
                "built again."
            )
        else:
            yield f"Entry {seq}, the kept head, is not in the log."
