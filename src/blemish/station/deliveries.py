"""Delivers the journal to receivers: every line, in order, at least once, over restarts on either side.

An outbox keeps, in a file beside the journal, how many bytes of it have been delivered. A message is delivered when the
receiver has confirmed it; only then does that position move. While a receiver does not answer, the outbox tries again
at growing intervals, and the inspection continues. After a kill the last message may come twice, with the same `id`.

A message that a receiver refuses again and again is put aside into a file of its own, so that the next ones are
delivered.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from blemish.files import write_text
from blemish.station.journal import Journal
from blemish.station.receivers import RefusedError, Target, cause_of
from blemish.station.trouble import LONGEST, wait
from blemish.types import BlemishError

TRIES = 5  # that a receiver may refuse a message before it is put aside
HURRIED = 0.2  # seconds between these tries at the end
_BLOCK = 1 << 16  # bytes read at once


class Outbox:
    """Delivers the journal's lines to one target, on a thread of its own."""

    def __init__(
        self, journal: Journal, target: Target, say: Callable[[str], None], *, longest: float = LONGEST
    ) -> None:
        self.position_file = journal.file.with_name(f".delivered-{target.kind}")
        self.refused_file = journal.file.with_name(f".refused-{target.kind}.jsonl")
        self._journal, self._target, self._say, self._longest = journal, target, say, longest
        self._woken, self._closing = threading.Event(), threading.Event()
        self._failing, self._refusals = False, 0
        # One descriptor for good, so that what is on the disk is delivered although somebody deletes the file.
        self._lines = journal.file.open("rb")
        self.delivered = self._read_position()
        self._thread = threading.Thread(target=self._run, name=f"to {target.kind}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """To be called when the journal has a new line."""
        self._woken.set()

    def close(self, grace: float = 5.0) -> None:
        """Delivers what is left, unless the target does not answer or `grace` seconds have passed."""
        if self._lines.closed:
            return
        self._closing.set()
        self._woken.set()
        self._thread.join(grace)
        left, place = 0, self.delivered
        while block := os.pread(self._lines.fileno(), _BLOCK, place):
            left, place = left + block.count(b"\n"), place + len(block)
        if left:
            self._say(f"{self._target.shown}: {left} verdicts are not delivered; the next run delivers them.")
        if not self._thread.is_alive():
            self._lines.close()

    def _run(self) -> None:
        tries = 0
        while True:
            self._woken.clear()
            if self._deliver():
                tries = 0
                if self._closing.is_set():
                    break
                self._woken.wait()
            elif not self._closing.is_set():
                tries += 1
                self._closing.wait(wait(tries, self._longest))
            elif 0 < self._refusals < TRIES:  # else a refused message would block every short run that ends before
                time.sleep(HURRIED)
            else:
                break
        self._target.close()

    def _deliver(self) -> bool:
        """Sends every line that is on the disk and not delivered. False where the target did not take one."""
        while self.delivered < self._journal.end:
            line = self._line()
            if not line:  # somebody has cut the journal off; the watch notices that itself
                return False
            try:
                self._target.send(line.rstrip(b"\n"))
            except RefusedError as cause:
                self._target.close()
                self._refusals += 1
                if self._refusals < TRIES or not self._put_aside(line, str(cause)):
                    return False
            except Exception as cause:  # whatever it is: a thread that ends would deliver nothing more
                self._target.close()
                self._refusals = 0
                if not self._failing:
                    self._say(
                        f"{self._target.shown}: does not take verdicts ({cause_of(cause)}). They are kept, and sent "
                        "when it does."
                    )
                self._failing = True
                return False
            else:
                if self._failing:
                    self._say(f"{self._target.shown}: takes verdicts again.")
                self._failing = False
            self._refusals = 0
            self.delivered += len(line)
            # A full disk ends the inspection itself; until then, and where the file cannot be written, the position is
            # in memory.
            with suppress(OSError, BlemishError):
                write_text(self.position_file, f"{self.delivered}\n")
        return True

    def _put_aside(self, line: bytes, why: str) -> bool:
        """Keeps a line that the target refuses. False where it cannot be written, and so must be sent again."""
        try:
            with self.refused_file.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return False
        self._say(
            f"{self._target.shown}: refused a verdict {TRIES} times ({why}). It is kept in {self.refused_file.name}, "
            "and the next ones are sent."
        )
        return True

    def _line(self) -> bytes:
        """The next line to deliver."""
        line = b""
        while block := os.pread(self._lines.fileno(), _BLOCK, self.delivered + len(line)):
            head, end, _ = block.partition(b"\n")
            line += head + end
            if end:
                return line
        return b""

    def _read_position(self) -> int:
        """Where the last run stopped; 0 where nothing has been delivered, or the file holds no end of a line."""
        try:
            position = int(self.position_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            position = -1
        if 0 < position <= self._journal.end and os.pread(self._lines.fileno(), 1, position - 1) == b"\n":
            return position
        if position:
            self._say(
                f"{self.position_file}: is no position in {self._journal.file.name}; all of it is delivered again."
            )
        return 0
