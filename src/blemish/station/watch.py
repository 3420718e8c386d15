"""Inspects a folder that a camera writes into: every image once, in order, over restarts and half-written files.

`arrivals.py` says which files are complete, `journal.py` which have been inspected, `deliver.py` tells others.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from blemish.inference.evidence import NONE
from blemish.inference.inspector import Inspection, Inspector
from blemish.inference.results import Done, Drawer
from blemish.station.arrivals import Arrivals, File, now_is
from blemish.station.journal import Journal, identity
from blemish.types import BlemishError, Verdict

Said = Callable[[str], None]


@dataclass(frozen=True)
class Watch:
    """What is watched, and how. Times in seconds. Raises `BlemishError` for what cannot be."""

    folder: Path
    out: Path
    settle: float = 1.0  # a file that has not changed for so long is complete
    give_up: float = 10.0  # a file that has not changed for so long and cannot be decoded is broken
    poll: float = 0.5  # between two looks into the folder that find nothing, at least
    once: bool = False  # stop when nothing is left
    evidence: bool = True

    def __post_init__(self) -> None:
        if self.give_up < self.settle:
            raise BlemishError(
                f"--give-up ({self.give_up:g} s) comes after --settle ({self.settle:g} s); make it longer."
            )
        if not self.folder.is_dir():
            raise BlemishError(f"{self.folder}: is no folder; make it, or mount it, before it is watched.")
        folder, out = self.folder.resolve(), self.out.resolve()
        drawn = [out / kind for kind in ("overlays", "evidence", "inpainted", "reconstruction")]
        if out.is_relative_to(folder) or any(folder.is_relative_to(place) for place in drawn):
            raise BlemishError(
                f"{self.out}: what is drawn there would be inspected itself; choose an --out outside {self.folder}."
            )


def watch(
    inspector: Inspector,
    asked: Watch,
    journal: Journal,
    stop: Event,
    tell: Callable[[Verdict, bytes], None],
    say: Said,
) -> Counter[str]:
    """Inspects what comes until `stop` is set, or nothing is left where that is asked for. `tell` gets each verdict and
    its line once it is on the disk, `say` what a person should know. The answer counts the decisions.

    Raises OSError where the results cannot be written, `BlemishError` where the folder is gone and `once` is asked for.
    """
    arrivals = Arrivals(asked.folder, journal.knows, settle=asked.settle, give_up=asked.give_up)
    drawn = Drawer(asked.out, inspector, evidence=asked.evidence)
    if asked.evidence and drawn.store is None:
        say(NONE)
    counts: Counter[str] = Counter()
    gone, troubles = False, set[str]()
    while not stop.is_set():
        begun = time.monotonic()
        try:
            batch = arrivals.complete()
        except OSError as cause:
            if asked.once:
                raise BlemishError(f"{asked.folder}: cannot be listed ({cause.strerror}); mount it again.") from None
            if not gone:
                say(f"{asked.folder}: cannot be listed ({cause.strerror}); waiting until it is back.")
            gone = True
            stop.wait(asked.poll)
            continue
        if gone:
            say(f"{asked.folder}: is back.")
        gone = False
        for name in sorted(arrivals.troubles - troubles):
            say(f"{asked.folder / name}: cannot be listed and is left out until it can be; check its permissions.")
        troubles = set(arrivals.troubles)
        took = time.monotonic() - begun
        for look, file, content in _looks(inspector, asked.folder, batch, arrivals, journal, stop):
            unchanged = now_is(asked.folder, file)
            if unchanged is None and look.verdict.error:
                arrivals.done(file)
                say(f"{file.name}: was taken away before it could be inspected.")
                continue
            if unchanged is False or (look.verdict.error and not arrivals.failed(file)):
                continue  # it is still being written
            # A second image of this name gets a name of its own; one that a kill undid, the same again.
            place = f"{file.name}-{identity(file, content)[:8]}" if journal.has(file.name) else file.name
            done = drawn.draw(look, place)
            line = journal.add(_row(file, content, done, inspector.card.sha256))
            arrivals.done(file)
            counts[look.verdict.decision] += 1
            tell(look.verdict, line)
        if not batch and not arrivals.waiting and asked.once:
            break
        # A folder so full that looking takes long is looked at half of the time, at most.
        stop.wait(took if batch else max(asked.poll, took))
    return counts


def _looks(
    inspector: Inspector, folder: Path, batch: list[File], arrivals: Arrivals, journal: Journal, stop: Event
) -> Iterator[tuple[Inspection, File, str]]:
    """Looks at files that are still as they were listed, with their SHA-256; after `stop` only at what was begun."""
    handed: deque[tuple[File, str]] = deque()

    def paths() -> Iterator[Path]:
        for file in batch:
            if stop.is_set():
                return
            content = _sha256(folder / file.name)
            if not now_is(folder, file):
                continue  # the next look into the folder sees what has become of it
            if content and journal.same(file, content):
                arrivals.done(file)
                continue
            handed.append((file, content))
            yield folder / file.name

    for look in inspector.look_many(paths()):
        yield look, *handed.popleft()


def _sha256(path: Path) -> str:
    """Of the file's bytes; "" where it cannot be read, about which the verdict will say more."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _row(file: File, content: str, done: Done, bundle: str) -> dict[str, Any]:
    """A line of the journal: what `blemish inspect --out` writes, and which file it is about, when, by which bundle."""
    return {
        "id": identity(file, content),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "name": file.name,
        **done.row(),
        "bytes": file.size,
        "modified": file.modified,
        "sha256": content,
        "bundle": bundle,
    }
