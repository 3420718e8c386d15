"""What `inspect` and `watch` share: paths from standard input, verdicts as lines, and the drift test's file."""

from __future__ import annotations

import codecs
import os
import select
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from blemish.cli.words import say, say_json
from blemish.types import DECISIONS, BlemishError

if TYPE_CHECKING:
    from blemish.inference.bundle import Card
    from blemish.inference.inspector import Inspection, Inspector
    from blemish.types import Verdict

T = TypeVar("T")
STDIN = "-"
INCOMPLETE = 3  # exit code: done, but there were errors
CHUNK = 65536  # bytes read at once: no more of a list of paths is held in memory
LONGEST = 1 << 20  # bytes of a path


def each_of_stdin(
    inspector: Inspector, null: bool, unique: Callable[[str], str], do: Callable[[Inspection, str], T]
) -> Iterator[T]:
    """`Inspector.each` of the paths on standard input, each with `unique` of its name. No verdict waits for a path that
    has not been written yet."""
    paths = _stdin_paths(b"\0" if null else b"\n")

    def burst(path: Path | None) -> Iterator[tuple[Path, str]]:
        while path is not None:
            yield path, unique(path.name)
            path = next(paths, None)

    for first in paths:
        yield from inspector.each(burst(first), do)


def check_stdin() -> None:
    """Raises `BlemishError` where there is no standard input that could be read."""
    if sys.stdin is None:
        raise BlemishError("- reads paths from standard input, which is closed; pipe a list into it, or give paths.")


def _stdin_paths(separator: bytes) -> Iterator[Path | None]:
    """Paths as they come, without empty lines; None where the next has not been written yet."""
    descriptor, rest, at_start = sys.stdin.fileno(), b"", True
    while chunk := _chunk(descriptor):
        if at_start:
            chunk, at_start = _without_mark(chunk), False
        *whole, rest = (rest + chunk).split(separator)
        for line in whole:
            if name := line.rstrip(b"\r\n"):
                yield Path(os.fsdecode(name))
        if len(rest) > LONGEST:
            raise BlemishError("standard input is no list of paths; write one path in each line, or end each with NUL.")
        if not _more(descriptor):
            yield None
    if name := rest.rstrip(b"\r\n"):
        yield Path(os.fsdecode(name))


def _chunk(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:  # whoever shares it made it non-blocking, and nothing is there yet
            select.select([descriptor], [], [])
        except OSError as cause:
            raise BlemishError(
                f"standard input cannot be read ({cause.strerror}); pipe a list of paths into it."
            ) from None


def _without_mark(start: bytes) -> bytes:
    """The start of a list without its byte order mark."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BlemishError("the list of paths on standard input is UTF-16; write it as UTF-8.")
    return start.removeprefix(codecs.BOM_UTF8)


def _more(descriptor: int) -> bool:
    """Whether something can be read without waiting, be it the end."""
    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    except OSError:  # Windows cannot tell for a pipe: there a verdict may wait for the next path
        return True


def print_verdict(verdict: Verdict, as_json: bool) -> None:
    """One line, for people or for programs."""
    if as_json:
        say_json(verdict.to_json())
    elif verdict.decision == "error":
        say(f"error    {verdict.error}")
    else:
        boxes = " ".join(f"({','.join(map(str, r.box))})" for r in verdict.regions[:3])
        more = f" +{len(verdict.regions) - 3}" if len(verdict.regions) > 3 else ""
        p_value = "" if verdict.p_value is None else f" p {verdict.p_value:.3f}"
        probability = "" if verdict.probability is None else f" probability {verdict.probability:.3f}"
        defect = f"  {verdict.defect}" if verdict.defect else ""
        say(
            f"{verdict.decision:<8} score {verdict.score:.4g} (threshold {verdict.threshold:.4g}){p_value}{probability}"
            f"  {verdict.path}{defect}  {boxes}{more}".rstrip()
        )


def summary(counts: Counter[str]) -> str:
    """How many images got each decision, as a sentence."""
    listed = ", ".join(f"{counts[kind]} {kind}" for kind in DECISIONS if counts[kind])
    return f"{counts.total()} images{': ' if listed else ''}{listed}."


class DriftFile:
    """The drift test of `--drift FILE`. It resumes the test in the file and is saved there. With `anew` it starts from
    the calibration scores instead, and is given every score again; `check_complete` checks that."""

    def __init__(self, file: Path, card: Card, *, anew: bool = False) -> None:
        from blemish.files import writable
        from blemish.inference.drift import Drift, drift_of

        rule = card.decision
        fresh = drift_of(rule)
        if fresh is None:
            raise BlemishError(
                "--drift compares with the good images that set the threshold, each of another part, and this bundle "
                "has none; train with --decide guarantee, on one image of each part."
            )
        writable(file)
        if not file.parent.is_dir():  # checked now, not after hours of inspection
            raise BlemishError(f"{file}: there is no folder {file.parent} to keep it in; make it, or name another.")
        self.file = file
        try:
            saved = Drift.from_json(file.read_text("utf-8")) if file.exists() else None
        except (OSError, UnicodeDecodeError) as cause:
            raise BlemishError(f"{file}: cannot be read ({cause}); name another file, or mend that.") from None
        except BlemishError:
            raise BlemishError(
                f"{file}: is no drift test that blemish saved; name another file to begin anew."
            ) from None
        if saved and saved.threshold != rule.threshold:
            raise BlemishError(f"{file}: is of another bundle; name another file to begin anew.")
        self.test: Drift = fresh if anew or saved is None else saved
        self._saved = saved.state if saved else fresh.state

    def see(self, score: float | None) -> bool:
        """Adds the next part's score, if it has one. True where that raised the alarm."""
        before = self.test.state.alarm
        return score is not None and self.test.see(score).alarm and not before

    def check_complete(self, source: Path) -> None:
        """Raises `BlemishError` where the file's test had seen more scores than there were in `source`."""
        saved, now = (state.seen + state.left_out for state in (self._saved, self.test.state))
        if saved > now:
            raise BlemishError(
                f"{self.file}: has seen {saved} parts, and only {now} are in {source}; name another file to begin anew."
            )

    def save(self) -> str:
        """Writes the file; returns the state of the test in words."""
        from blemish.files import write_text

        write_text(self.file, self.test.to_json() + "\n")
        return self.test.sentence()
