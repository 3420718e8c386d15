"""Inspects a folder that a camera writes into: every image once, in order, over restarts and half-written files.

`arrivals.py` finds the files that are complete, `journal.py` records which have been inspected, and `deliveries.py`
sends the verdicts to receivers.
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

from blemish.inference.evidence import NO_EVIDENCE
from blemish.inference.inspector import Inspection, Inspector
from blemish.inference.results import ImageWriter, Result
from blemish.station.arrivals import Arrivals, File, is_unchanged
from blemish.station.journal import Journal, identity
from blemish.types import BlemishError, Verdict

Notify = Callable[[str], None]


@dataclass(frozen=True)
class WatchConfig:
    """What is watched, and how. Times are in seconds. Raises `BlemishError` for what cannot be watched."""

    folder: Path
    out: Path
    settle: float = 1.0  # a file that has not changed for so long is complete
    give_up: float = 10.0  # a file that has not changed for so long and cannot be decoded is broken
    poll: float = 0.5  # between two listings of the folder that find nothing, at least
    once: bool = False  # stop when nothing is left
    evidence: bool = True

    def __post_init__(self) -> None:
        if self.give_up < self.settle:
            raise BlemishError(
                f"--give-up ({self.give_up:g} s) is shorter than --settle ({self.settle:g} s); make it longer."
            )
        if not self.folder.is_dir():
            raise BlemishError(f"{self.folder}: is not a folder; make it, or mount it, before it is watched.")
        folder, out = self.folder.resolve(), self.out.resolve()
        written = [out / kind for kind in ("overlays", "evidence", "inpainted", "reconstruction")]
        if out.is_relative_to(folder) or any(folder.is_relative_to(place) for place in written):
            raise BlemishError(
                f"{self.out}: the images written there would be inspected themselves; choose an --out outside "
                f"{self.folder}."
            )


def watch(
    inspector: Inspector,
    config: WatchConfig,
    journal: Journal,
    stop: Event,
    deliver: Callable[[Verdict, bytes], None],
    notify: Notify,
) -> Counter[str]:
    """Inspects what arrives until `stop` is set or, with `config.once`, until nothing is left. `deliver` gets each
    verdict and its line once it is on the disk, `notify` what a person should know. Returns how many images got each
    decision.

    Raises OSError where the results cannot be written and, with `once`, `BlemishError` where the folder is gone.
    """
    arrivals = Arrivals(config.folder, journal.knows, settle=config.settle, give_up=config.give_up)
    listing = _Listing(config, arrivals, notify)
    writer = ImageWriter(config.out, inspector, evidence=config.evidence)
    if config.evidence and writer.store is None:
        notify(NO_EVIDENCE)
    counts: Counter[str] = Counter()
    while not stop.is_set():
        begun = time.monotonic()
        batch = listing.batch()
        if batch is None:
            stop.wait(config.poll)
            continue
        seconds = time.monotonic() - begun
        for inspection, file, content in _inspections(inspector, config.folder, batch, arrivals, journal, stop):
            if not _is_final(inspection, file, config.folder, arrivals, notify):
                continue
            # A second image of this name gets a name of its own; one whose line a kill prevented gets the same again.
            name = f"{file.name}-{identity(file, content)[:8]}" if journal.has(file.name) else file.name
            result = writer.write(inspection, name)
            line = journal.add(_row(file, content, result, inspector.card.sha256))
            arrivals.done(file)
            counts[inspection.verdict.decision] += 1
            deliver(inspection.verdict, line)
        if not batch and not arrivals.waiting and config.once:
            break
        # A folder so large that listing it takes long is listed for at most half of the time.
        stop.wait(seconds if batch else max(config.poll, seconds))
    return counts


class _Listing:
    """The listings of the watched folder. A person is notified once of what cannot be listed, and when it is back."""

    def __init__(self, config: WatchConfig, arrivals: Arrivals, notify: Notify) -> None:
        self._config, self._arrivals, self._notify = config, arrivals, notify
        self._gone, self._unlisted = False, set[str]()

    def batch(self) -> list[File] | None:
        """The next complete files; None where the folder cannot be listed. Raises `BlemishError` for that with
        `once`."""
        folder = self._config.folder
        try:
            batch = self._arrivals.complete()
        except OSError as cause:
            if self._config.once:
                raise BlemishError(f"{folder}: cannot be listed ({cause.strerror}); mount it again.") from None
            if not self._gone:
                self._notify(f"{folder}: cannot be listed ({cause.strerror}); waiting until it is back.")
            self._gone = True
            return None
        if self._gone:
            self._notify(f"{folder}: is back.")
        self._gone = False
        for name in sorted(self._arrivals.unlisted - self._unlisted):
            self._notify(f"{folder / name}: cannot be listed and is left out until it can be; check its permissions.")
        self._unlisted = set(self._arrivals.unlisted)
        return batch


def _inspections(
    inspector: Inspector, folder: Path, batch: list[File], arrivals: Arrivals, journal: Journal, stop: Event
) -> Iterator[tuple[Inspection, File, str]]:
    """The inspections of the files that are still as they were listed, with their SHA-256. Begins no other after
    `stop`."""
    begun: deque[tuple[File, str]] = deque()

    def paths() -> Iterator[Path]:
        for file in batch:
            if stop.is_set():
                return
            content = _sha256(folder / file.name)
            if not is_unchanged(folder, file):
                continue  # the next listing has it as it is then
            if content and journal.same_content(file, content):
                arrivals.done(file)
                continue
            begun.append((file, content))
            yield folder / file.name

    for inspection in inspector.look_many(paths()):
        yield inspection, *begun.popleft()


def _is_final(inspection: Inspection, file: File, folder: Path, arrivals: Arrivals, notify: Notify) -> bool:
    """Whether the inspection counts: not where the file has changed meanwhile, is still written to, or is gone."""
    unchanged = is_unchanged(folder, file)
    if unchanged is None and inspection.verdict.error:
        arrivals.done(file)
        notify(f"{file.name}: was removed before it could be inspected.")
        return False
    return unchanged is not False and (inspection.verdict.error is None or arrivals.failed(file))


def _sha256(path: Path) -> str:
    """Of the file's bytes; "" where it cannot be read, for which the verdict has the reason."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _row(file: File, content: str, result: Result, bundle: str) -> dict[str, Any]:
    """A line of the journal: what `blemish inspect --out` writes, and of which file, when, and by which bundle."""
    return {
        "id": identity(file, content),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "name": file.name,
        **result.row(),
        "bytes": file.size,
        "modified": file.modified,
        "sha256": content,
        "bundle": bundle,
    }
