"""Folders that a camera writes into, beside the page: each complete file is judged once, over restarts as well.

The files are found as `blemish watch` finds them (`station/arrivals.py`). What has been judged is known by its request,
`folder HASH`: the same file of the same folder is the same request, and so the same verdict. Trouble that passes, of
the machine, the disk or the database, is tried again at growing intervals.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from blemish.atomic import open_regular
from blemish.images import ImageError, load_image
from blemish.station.arrivals import Arrivals
from blemish.station.journal import identity
from blemish.station.scan import File, is_unchanged
from blemish.station.trouble import passing
from blemish.types import BlemishError
from blemish.web.config import Limits
from blemish.web.database import Database, why
from blemish.web.detectors import Detectors
from blemish.web.inspection import Line
from blemish.web.tables import Verdict

SETTLE, GIVE_UP, POLL = 1.0, 10.0, 0.5  # seconds, as `blemish watch` has them
BY = "watch"  # who asks for these verdicts
_BLOCK = 1 << 20


class Folders:
    """The threads that watch; one for each folder, from `start` to `stop`."""

    def __init__(
        self, folders: tuple[Path, ...], line: Line, database: Database, detectors: Detectors, limits: Limits
    ) -> None:
        """Raises `BlemishError` for a folder whose product nobody could tell."""
        for folder in folders:
            if detectors.products():  # without one, the first may come later
                product_of(folder, detectors)
        self._watchers = [_Watcher(folder, line, database, detectors, limits) for folder in folders]

    def start(self) -> None:
        for watcher in self._watchers:
            watcher.thread.start()

    def stop(self) -> None:
        """Returns when no image of theirs is being judged any more."""
        for watcher in self._watchers:
            watcher.stop.set()
        for watcher in self._watchers:
            if watcher.thread.ident is not None:
                watcher.thread.join()

    def said(self) -> list[str]:
        """Each folder's state, a sentence."""
        return [watcher.sentence() for watcher in self._watchers]


class _Watcher:
    """One folder. `trouble` is why it cannot be watched now, "" where it is."""

    def __init__(self, folder: Path, line: Line, database: Database, detectors: Detectors, limits: Limits) -> None:
        self.folder, self.line, self.database, self.detectors, self.limits = folder, line, database, detectors, limits
        self.stop = threading.Event()
        self.trouble = ""
        self.judged = self.left_out = 0
        self._known: set[int] = set()  # hashes of the files that need no more attention
        self._arrivals = Arrivals(folder, self._is_known, settle=SETTLE, give_up=GIVE_UP)
        self.thread = threading.Thread(target=self._run, name=f"watch {folder}", daemon=True)

    def sentence(self) -> str:
        if self.trouble:
            return self.trouble
        counts = {"judged": self.judged, "waiting": self._arrivals.waiting, "too large": self.left_out}
        said = [f"{count:,} {what}" for what, count in counts.items() if count or what == "judged"]
        return f"{self.folder}: watched, {', '.join(said)}."

    def _is_known(self, file: File) -> bool:
        return hash(file) in self._known

    def _run(self) -> None:
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                batch = self._arrivals.complete()
                self.trouble = ""
            except OSError as cause:
                batch = []
                self.trouble = f"{self.folder}: cannot be listed ({cause.strerror}); waiting until it can be."
            for file in batch:
                if self.stop.is_set():
                    return
                self._take(file)
            # A folder so large that listing it takes long is listed for at most half of the time.
            self.stop.wait(max(0.0 if batch else POLL, time.monotonic() - begun))

    def _take(self, file: File) -> None:
        """Judges a file, or leaves it for later."""
        try:
            done = self._judge(file)
        except Exception as cause:  # the thread must live on whatever one file does
            reason = _reason(cause)
            if not reason:
                logging.getLogger("blemish").error("%s", self.folder / file.name, exc_info=cause)
            if self._arrivals.troubled(file):
                logging.getLogger("blemish").warning("%s: is tried again (%s).", file.name, reason or cause)
            return
        if done:
            self._arrivals.done(file)
            self._known.add(hash(file))

    def _judge(self, file: File) -> bool:
        """Whether the file needs no more attention. Raises what keeps it from being judged now."""
        path = self.folder / file.name
        if file.size > self.limits.megabytes * 1e6:
            logging.getLogger("blemish").warning(
                "%s: is larger than %g MB and left out; make it smaller.", path, self.limits.megabytes
            )
            self.left_out += 1
            return True
        try:
            with open_regular(path) as stream:
                content = stream.read(file.size + 1)
        except FileNotFoundError:
            return True
        if len(content) != file.size or not is_unchanged(self.folder, file):
            return False  # the next listing has it as it is then
        number = identity(file, hashlib.sha256(content).hexdigest())
        # Folders of one name, of two cameras, are told apart by where they are.
        request = f"folder {hashlib.sha256(f'{self.folder.resolve()} {number}'.encode()).hexdigest()[:64]}"
        if not self._is_recorded(request):
            if not self._is_whole(path) and not self._arrivals.failed(file):
                return False  # it may be half of a file that is still written
            if not is_unchanged(self.folder, file):
                return False
            source = f"folder {self.folder.name}"[:255]
            product = product_of(self.folder, self.detectors)
            self.line.inspect(content, file.name, product, by=BY, source=source, request=request)
            self.judged += 1
        return True

    def _is_recorded(self, request: str) -> bool:
        with self.database.reading() as session:
            return session.scalar(select(Verdict.id).where(Verdict.request == request)) is not None

    def _is_whole(self, path: Path) -> bool:
        """Whether it can be decoded. Raises the cause where that is trouble that passes."""
        try:
            load_image(path, max_pixels=self.limits.pixels)
        except ImageError as cause:
            if passing(cause):
                raise
            return False
        return True


def _reason(cause: Exception) -> str:
    """Why it is tried again, in words; "" for a fault of ours."""
    if isinstance(cause, DBAPIError):
        return why(cause)
    if isinstance(cause, PoolTimeoutError):
        return "all connections to the database are in use"
    if isinstance(cause, BlemishError):
        return str(cause)
    return passing(cause) or (cause.strerror or "" if isinstance(cause, OSError) else "")


def product_of(folder: Path, detectors: Detectors) -> str:
    """The product that a folder is named after, else the only one. Raises `BlemishError` where there is no such one."""
    names = [product.name for product in detectors.products()]
    named = folder.absolute().name
    if named in names or len(names) == 1:
        return named if named in names else names[0]
    if not names:
        raise BlemishError("no product has a detector yet")
    raise BlemishError(f"--watch {folder}: is named after none of the products {', '.join(names)}; name it after one.")


def check(folders: tuple[Path, ...], data: Path) -> None:
    """Raises `BlemishError` for a folder that cannot be watched."""
    for folder in folders:
        if not folder.is_dir():
            if folder.exists():
                raise BlemishError(f"--watch {folder}: is a file, not a folder; give the one that the camera writes.")
            raise BlemishError(f"--watch {folder}: does not exist; make it, or mount it, before it is watched.")
        if data.resolve().is_relative_to(folder.resolve()):
            raise BlemishError(
                f"--watch {folder}: holds --data, whose images would be inspected again; choose another --data."
            )
