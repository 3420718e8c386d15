"""Inspects a folder that a camera writes into: every image once, in order, over restarts and half-written files.

`scan.py` lists what is there, `arrivals.py` finds the files that are complete, `trouble.py` tells errors that pass,
`journal.py` records which have been inspected, and `deliveries.py` sends the verdicts to `receivers.py`.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from blemish.atomic import open_regular
from blemish.inference.evidence import NO_EVIDENCE
from blemish.inference.inspector import Inspection, Inspector
from blemish.inference.results import ImageWriter, Result, write_images
from blemish.station.arrivals import Arrivals
from blemish.station.journal import Journal, identity
from blemish.station.scan import File, is_unchanged
from blemish.station.trouble import passing
from blemish.types import BlemishError, Verdict

Notify = Callable[[str], None]
UNJUDGED = "unjudged"  # what `watch` counts beside the decisions
_FULL = {errno.ENOSPC, errno.EDQUOT}


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
    decision and, with `once`, how many trouble that did not pass left `UNJUDGED`.

    Raises `BlemishError` where the journal cannot be written or is not ours any more, where the disk is full and, with
    `once`, where the folder is gone.
    """
    arrivals = Arrivals(config.folder, journal.knows, settle=config.settle, give_up=config.give_up, out=config.out)
    listing = _Listing(config, arrivals, notify)
    writer = ImageWriter(config.out, inspector, evidence=config.evidence)
    if config.evidence and writer.store is None:
        notify(NO_EVIDENCE)
    counts: Counter[str] = Counter()
    while not stop.is_set():
        begun = time.monotonic()
        journal.check()
        batch = listing.batch()
        if batch is None:
            stop.wait(config.poll)
            continue
        seconds = time.monotonic() - begun
        for found, file, content in _found(inspector, config.folder, batch, arrivals, journal, stop):
            if isinstance(found, str):
                if arrivals.troubled(file):
                    notify(f"{file.name}: cannot be inspected now ({found}); it is tried again until it can be.")
                continue
            if not _is_final(found, file, config.folder, arrivals, notify):
                continue
            journal.check()  # or the images would make a folder again that somebody took away
            # A second image of this name gets a name of its own; one whose line a kill prevented gets the same again.
            name = f"{file.name}-{identity(file, content)[:8]}" if journal.has(file.name) else file.name
            line = journal.add(_row(file, content, _drawn(writer, found, name, notify), inspector.card.sha256))
            arrivals.done(file)
            counts[found.verdict.decision] += 1
            deliver(found.verdict, line)
        if config.once and not batch and arrivals.stuck():
            counts.update([UNJUDGED] * (arrivals.waiting + len(arrivals.scan.unlisted)))
            break
        # A folder so large that listing it takes long is listed for at most half of the time.
        stop.wait(seconds if batch else max(config.poll, seconds))
    return counts


class _Listing:
    """The listings of the watched folder. A person is notified once of what cannot be listed or is left out, and when
    the folder is back."""

    def __init__(self, config: WatchConfig, arrivals: Arrivals, notify: Notify) -> None:
        self._config, self._arrivals, self._notify = config, arrivals, notify
        self._gone, self._told = False, set[str]()

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
        scan = self._arrivals.scan
        sentences = {
            f"{folder / name}: cannot be listed ({cause}) and is left out until it can be; check its permissions."
            for name, cause in scan.unlisted.items()
        } | {f"{folder / name}: {reason}; it is left out." for name, reason in scan.skipped.items()}
        for sentence in sorted(sentences - self._told):
            self._notify(sentence)
        self._told = sentences
        return batch


Found = Inspection | str  # or why the image cannot be inspected now


def _found(
    inspector: Inspector, folder: Path, batch: list[File], arrivals: Arrivals, journal: Journal, stop: Event
) -> Iterator[tuple[Found, File, str]]:
    """The inspections of the files that are still as they were listed, with their SHA-256. Begins no other after
    `stop`."""
    begun: deque[tuple[File, str]] = deque()
    troubled: deque[tuple[str, File]] = deque()

    def paths() -> Iterator[Path]:
        for file in batch:
            try:
                content, why = _sha256(folder / file.name, stop), ""
            except (OSError, MemoryError) as cause:
                content, why = "", passing(cause) or str(cause)
            if stop.is_set():
                return
            if not is_unchanged(folder, file):
                continue  # the next listing has it as it is then
            if not content:
                troubled.append((why, file))
            elif journal.same_content(file, content):
                arrivals.done(file)
            else:
                begun.append((file, content))
                yield folder / file.name

    def look(path: Path) -> Found | None:
        """None after `stop`."""
        return None if stop.is_set() else _look(inspector, path)

    try:
        for found in inspector.in_threads(paths(), look):
            if found is None:
                return
            yield found, *begun.popleft()
    except Exception as cause:  # such as no memory for another thread
        why = passing(cause)
        if not why:
            raise
        troubled.extend((why, file) for file in [file for file, _ in begun] or batch)
    yield from ((why, file, "") for why, file in troubled)


def _look(inspector: Inspector, path: Path) -> Found:
    try:
        inspection = inspector.look(path)
    except Exception as cause:  # of the runtime, of memory
        sentence = f"{path}: could not be inspected ({type(cause).__name__}: {cause}); please report this."
        return passing(cause) or Inspection(Verdict(path=str(path), decision="error", error=" ".join(sentence.split())))
    return passing(inspection.cause) or inspection


def _is_final(inspection: Inspection, file: File, folder: Path, arrivals: Arrivals, notify: Notify) -> bool:
    """Whether the inspection counts: not where the file has changed meanwhile, is still written to, or is gone."""
    unchanged = is_unchanged(folder, file)
    if unchanged is None and inspection.verdict.error:
        arrivals.done(file)
        notify(f"{file.name}: was removed before it could be inspected.")
        return False
    return unchanged is not False and (inspection.verdict.error is None or arrivals.failed(file))


def _drawn(writer: ImageWriter, inspection: Inspection, name: str, notify: Notify) -> Result:
    """The inspection with the images that could be written of it: its verdict counts without them as well. Raises
    `BlemishError` where the disk is full: then no line has room either."""
    try:
        return writer.write(inspection, name)
    except Exception as cause:  # of a folder without permission, of memory, of a damaged evidence store
        _raise_where_full(cause)
        why, without = cause, "evidence"
    try:
        color_range = writer.inspector.card.decision.color_range
        result = Result(inspection, write_images(writer.path, name, inspection, color_range))
    except Exception as cause:
        _raise_where_full(cause)
        why, without, result = cause, "images", Result(inspection)
    reason = (passing(why) or str(why)).removesuffix(".")
    notify(f"{name}: the verdict is recorded without {without}, which could not be made: {reason}.")
    return result


def _raise_where_full(cause: Exception) -> None:
    inner = cause if isinstance(cause, OSError) else cause.__cause__
    if isinstance(inner, OSError) and inner.errno in _FULL:
        raise cause


def _sha256(path: Path, stop: Event) -> str:
    """Of the file's bytes, or of some of them after `stop`. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while (block := file.read(1 << 20)) and not stop.is_set():
            digest.update(block)
    return digest.hexdigest()


def _row(file: File, content: str, result: Result, bundle: str) -> dict[str, Any]:
    """A line of the journal: what `blemish inspect --out` writes, and of which file, when, and by which bundle."""
    return {
        "id": identity(file, content),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "name": file.name,
        **result.row(),
        "bytes": file.size,
        "modified": file.modified,
        "changed": file.changed,
        "sha256": content,
        "bundle": bundle,
    }
