"""The process that learns again: `python -m blemish.web.job DATA JOB`, started by `learning.start`.

It takes the lock, writes the labelled images as a folder, trains as `blemish train` does, compares what it trained with
the version that judged on the images that are held out, and brings the new version in at last. Its row in the database
says how far it is and how it ended; what it prints is its log. SIGTERM cancels it. It is niced, so that inspection goes
on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Container, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from blemish.atomic import Lock, lock_file
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.inference import bundle
from blemish.options import options
from blemish.types import BlemishError
from blemish.web.comparison import as_they_came, compared, named
from blemish.web.config import Folder
from blemish.web.database import Database
from blemish.web.dataset import Written, write_folder
from blemish.web.detectors import Detectors
from blemish.web.learning import DATABASE, LOCK, brought, clear, here, in_page_words, labelled, limits_of
from blemish.web.store import Store
from blemish.web.tables import Job, now

T = TypeVar("T")
NICE = 15  # of 19
EVERY = 1.0  # seconds between two writings of the progress
LOG = logging.getLogger("blemish.job")
TRIES = 100  # to take the lock, a tenth of a second apart: who looks whether it is free holds it for a moment
FAMILY = ("patchcore", "hybrid")  # detectors that share settings


class Cancelled(BaseException):
    """Somebody cancelled the job: no error, and nothing may catch it as one."""


def main(data: str, job_id: int) -> None:
    """Runs a job to its end. The state that it ends in is in its row."""
    signal.signal(signal.SIGTERM, _cancel)
    with suppress(OSError, AttributeError):
        os.nice(NICE)
    folder, database = Folder(Path(data)), Database(os.environ[DATABASE])
    try:
        with closing(_lock(folder, job_id)):
            end = _ended(folder, database, job_id)
            if end is None:  # cancelled before it began
                return
            state, error, comparison = end
            # A second signal must not keep the end from being written.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            clear(folder, job_id)
            _say(state if not error else f"{state}: {error}")
            with database.writing() as session:
                row = session.get_one(Job, job_id)
                row.detector_id = brought(session, job_id)
                if row.detector_id:  # it is done, whatever came after; the comparison is there
                    state, error, comparison = "done", "", comparison or row.comparison
                row.state, row.error, row.ended, row.stage = state, error, now(), ""
                row.comparison = comparison
    finally:
        database.close()


def _cancel(*_: object) -> None:
    raise Cancelled


def _lock(folder: Folder, job_id: int) -> Lock:
    folder.jobs.mkdir(parents=True, exist_ok=True)
    for tries in range(TRIES):
        try:
            lock = lock_file(folder.jobs / LOCK, folder.jobs / LOCK)
        except BlemishError:
            if tries == TRIES - 1:
                raise
            time.sleep(0.1)
        else:
            lock.write(here(job_id).content())
            return lock
    raise AssertionError


def _claim(database: Database, job_id: int) -> Job | None:
    with database.writing() as session:
        job = session.get(Job, job_id)
        if job is None or job.state != "queued":
            return None
        job.state, job.started, job.stage = "running", now(), "collecting the labelled images"
    return job


def _ended(folder: Folder, database: Database, job_id: int) -> tuple[str, str, dict[str, Any]] | None:
    """Runs the job; returns the state that it ends in, why it failed, and the comparison. None where it was cancelled
    before it began."""
    try:
        # Claimed in here: it can be cancelled as soon as it is.
        job = _claim(database, job_id)
        return ("done", "", learn(folder, database, job)) if job else None
    except Cancelled:
        return "cancelled", "", {}
    except BlemishError as cause:
        return "failed", str(cause), {}
    except ModuleNotFoundError as cause:
        return "failed", f"Learning needs {cause.name}, which is not installed; run: pip install 'blemish[learn]'.", {}
    except MemoryError:
        return "failed", "There was not enough memory to learn; end other programs, or learn on a larger machine.", {}
    except OSError as cause:
        where = f"{cause.filename}: " if cause.filename else ""
        return "failed", f"{where}{cause.strerror or cause}; make room or check the permissions, and learn again.", {}
    except DBAPIError:
        traceback.print_exc()
        return "failed", "The database could not be used; the log says why. Learn again when it is back.", {}
    except Exception:
        traceback.print_exc()
        return "failed", "This is a fault of blemish, not of yours. It is in the log; report it.", {}


def learn(folder: Folder, database: Database, job: Job) -> dict[str, Any]:
    """The job's work. Returns the comparison of the version that judged and the new one."""
    from blemish.training.config import configure
    from blemish.training.pipeline import train

    store, detectors = Store(folder), Detectors(folder, database, limits_of(job))
    told = Told(database, job.id)
    before = detectors.version(int(job.before_id or 0))
    place = folder.jobs / str(job.id)
    clear(folder, job.id)
    with database.reading() as session:
        images = labelled(session, job.product)
        came = as_they_came(session, images)
    told.tell("collecting the labelled images", 0, 0)
    written = write_folder(store, images, place / _named(job.product), link=True)
    if written.missing:
        _say(f"{len(written.missing)} labelled images are not in the store any more, and are left out.")
    asked = taken_over(detectors.place(before) / "bundle") | _rates(job)
    detector = str(job.settings.get("detector", ""))
    config = configure(written.folder, place / "run", detector=detector, **asked)
    _say(in_page_words(config.why) or f"The detector is {config.detector}.")
    run = train(config, told)
    for warning in run.warnings:
        _say(warning)
    _name_images(run.folder / "verdicts.jsonl", written)
    _count_picked(run.folder / "metrics.json", written, came)
    told.tell("comparing with the version that judged", 0, 0)
    found = compared(detectors.place(before), written, place, told, came)
    remarks = [remark(sentence, written) for sentence in run.warnings]
    comparison = named({**found.told, "audit": remarks}, f"version {before.version}", "the new version")
    _keep(database, job.id, comparison)
    # The new version comes last: until here a cancelled or killed job has changed nothing, from here on it is done.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    new = detectors.bring(
        run.folder, by=job.by, kind="learned", product=job.product, parent_id=before.id, job_id=job.id
    )
    _say(f"Version {new.version} has been learned.")
    for digest, thumbnails in found.thumbnails.items():
        for thumbnail, version in zip(thumbnails, (before, new), strict=True):
            store.put_thumbnail(thumbnail, digest, version.id)
    return named(comparison, f"version {before.version}", f"version {new.version}")


def _keep(database: Database, job_id: int, comparison: dict[str, Any]) -> None:
    """Writes the comparison before the version comes, so that a kill in between loses none."""
    with database.writing() as session:
        session.get_one(Job, job_id).comparison = comparison


def _name_images(file: Path, written: Written) -> None:
    """Writes the images' hashes into the run's verdicts, by which the page finds their scores again."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**row, "image": written.images[row["path"]].sha256}) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")


def _count_picked(file: Path, written: Written, came: Container[int]) -> None:
    """Writes into the run's figures how many of its test images people picked by a verdict: they are in the figures."""
    metrics = json.loads(file.read_text(encoding="utf-8"))
    picked = [image for name, image in written.images.items() if name.startswith("test/") and image.id not in came]
    metrics["counts"]["test_picked"] = len(picked)
    file.write_text(json.dumps(metrics), encoding="utf-8")


def remark(sentence: str, written: Written) -> dict[str, Any]:
    """A sentence of the audit with the images' own names in place of those in the folder, and the images that it names:
    `{"sentence": ..., "images": [[id, name], ...]}`."""
    found: dict[int, str] = {}

    def own(match: re.Match[str]) -> str:
        name = match[0].rstrip(".")
        image = written.images.get(name)
        if image is None:
            return match[0]
        found[image.id] = image.name
        return image.name + match[0][len(name) :]

    words = re.sub(r"\b(?:train|test)/[\w./-]+", own, sentence)  # such names as `write_folder` gives
    return {"sentence": words, "images": [[*pair] for pair in found.items()]}


def _named(product: str) -> str:
    """The folder that the card will name as its data."""
    name = re.sub(r"[^\w. -]+", "-", product)[:60].strip(". -")
    return name if name and name not in ("run", "before", "log.txt") else "images"


def _rates(job: Job) -> dict[str, Any]:
    """What was asked for, where it was."""
    return {name: job.settings[name] for name in ("false_alarms", "review") if name in job.settings}


def taken_over(place: Path) -> dict[str, Any]:
    """The options of `blemish train`, by name, that a bundle's version was trained with and the next one is to be:
    guarantee, frame, seed and, of a detector of the same family, its settings and image size."""
    card = bundle.read(place).card
    rule, frame = card.decision, card.frame
    asked: dict[str, Any] = {
        "seed": card.data.seed,
        "review": rule.review,
        "confidence": rule.confidence,
        "min_area": rule.min_area / (frame.tile_share if frame else 1),  # with tiles, of one tile
        "evidence": bundle.EVIDENCE in card.files,
    }
    if rule.false_alarms:
        asked["false_alarms"] = rule.false_alarms
    if frame and frame.tile:
        asked |= {"tile": max(frame.tile), "overlap": frame.overlap}
    if frame and frame.roi:
        asked["roi"] = place / bundle.ROI
    if frame and frame.align:
        asked["align"] = True
    if card.detector in FAMILY:
        own = {option.field for option in options(PatchCoreConfig) if not option.machine}
        asked |= {name: value for name, value in card.settings.items() if name in own and value is not None}
        asked["image_size"] = "x".join(map(str, card.image_size))
    return asked


class Told:
    """A `Progress` that writes into the job's row, at most once a second, and each stage into the log."""

    def __init__(self, database: Database, job_id: int) -> None:
        self._database, self._job_id = database, job_id
        self._last, self._stage = 0.0, ""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        self.tell(what, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            self.tell(what, done, total)

    def tell(self, stage: str, done: int, total: int) -> None:
        new = stage != self._stage
        if new:
            _say(f"{stage}, {total} in all" if total else stage)
        if not new and time.monotonic() - self._last < EVERY:
            return
        self._stage, self._last = stage, time.monotonic()
        with suppress(DBAPIError), self._database.writing() as session:  # no reason to end a training
            row = session.get_one(Job, self._job_id)
            row.stage, row.done, row.total = stage, done, total
            row.settings = {**row.settings, "told": now()}  # for those who cannot see the process


def _say(words: str) -> None:
    LOG.info(words)


def _to_log() -> None:
    """What is said goes to standard output, which is the job's log.txt; times are UTC."""
    lines, form = logging.StreamHandler(sys.stdout), logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S")
    form.converter = time.gmtime
    lines.setFormatter(form)
    LOG.addHandler(lines)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


if __name__ == "__main__":
    _to_log()
    main(sys.argv[1], int(sys.argv[2]))
