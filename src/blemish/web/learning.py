"""Learn again: a training in a process of its own (`job.py`), one at a time over all products.

The process holds a lock for as long as it works, and the lock's file says which process and which job it is. So it
survives the server, anybody can see whether it still runs, and one that was killed is told from one that works.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Text, and_, case, cast, distinct, func, or_, select
from sqlalchemy.orm import Session

from blemish.atomic import try_lock
from blemish.training.choice import ANYWAY, LEARNING, NORMAL, Choice, Found, chosen
from blemish.types import BlemishError
from blemish.web.config import Folder, Limits, ServeConfig
from blemish.web.database import Database
from blemish.web.detectors import Detectors
from blemish.web.site import MissingError
from blemish.web.tables import Correction, Detector, Image, Job, now
from blemish.web.times import minute

LOCK, LOG = "training.lock", "log.txt"
DATABASE = "BLEMISH_DATABASE"  # the variable that tells the process where the database is
LEAST_RATE = 1e-6  # that can be asked for: a million good parts and more would have to be calibrated with
STARTING = 60.0  # seconds that a process may take before it works
SILENT = 3600.0  # seconds without progress after which a training elsewhere may be given up
ALIVE = ("queued", "running")
DIED = (
    "The training ended without a word: its process was killed, or the machine was restarted or ran out of memory; "
    "learn again."
)
NEVER_BEGAN = "The training did not begin: its process could not be started, see its log; learn again."


class Holder(NamedTuple):
    """Who holds the lock: a process, the number of its job (0: not written yet), and its machine, since several may
    share the folder."""

    process: int
    job: int
    machine: str

    def content(self) -> bytes:
        """What the lock's file says."""
        return f"{self.process} {self.job} {self.machine}".encode()


def here(job_id: int) -> Holder:
    """This process as the holder."""
    return Holder(os.getpid(), job_id, socket.gethostname())


class Counts(NamedTuple):
    """Labelled images of a product."""

    good: int = 0  # to learn from
    defective: int = 0
    held_out_good: int = 0
    held_out_defective: int = 0
    new: int = 0  # labelled by people since the newest version that learned
    new_good: int = 0  # of them, those that change which good images there are to learn from


@dataclass(frozen=True)
class Rates:
    """What the new detector is to guarantee: shares of good parts that are flagged, and flagged or put aside."""

    false_alarms: float
    review: float | None = None


def mine(folder: Folder) -> dict[str, str]:
    """What a job's settings say of where it runs: its machine and data folder. Several may share a database."""
    return {"machine": socket.gethostname(), "folder": str(folder.path.resolve())}


def elsewhere(folder: Folder, database: Database, job: Job) -> str:
    """Where a job runs that is not of this machine and data folder, in words; "" for one's own. A database in the
    folder has only its own."""
    own = mine(folder)
    where = {name: str(job.settings.get(name, value)) for name, value in own.items()}
    if database.is_sqlite or where == own:
        return ""
    return f"the machine {where['machine']}, in its folder {where['folder']}"


def heard(job: Job) -> str:
    """When a job last told how far it is."""
    return str(job.settings.get("told") or job.started or job.created)


def silent(job: Job) -> bool:
    """Whether a job has told nothing for so long that it may be given up."""
    return _since(heard(job)) > SILENT


def _since(time: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def holder(folder: Folder) -> Holder | None:
    """Who trains now; None for nobody."""
    try:
        descriptor = os.open(folder.jobs / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        if try_lock(descriptor):
            return None
        words = os.read(descriptor, 400).decode("utf-8", "replace").split(" ", 2)
        return Holder(int(words[0]), int(words[1]), words[2]) if len(words) == 3 else Holder(0, 0, "")
    finally:
        os.close(descriptor)


def start(
    config: ServeConfig,
    database: Database,
    detectors: Detectors,
    product: str,
    by: str,
    rates: Rates | None = None,
    detector: str = "",
) -> Job:
    """Begins to learn `product` again from its labelled images, with the rates of the version that judges where none
    are given, and with the detector that the images call for where none is asked for. Raises `BlemishError` where there
    is nothing to learn from, or a training runs already."""
    settle(config.folder, database)
    judging = detectors.judging(product)
    counted = counts(database, product)
    if not counted.good:
        raise BlemishError(
            f"'{product}' has no good image to learn from: label some as good in the review, or start blemish serve "
            "with --images and the folder that its detector learned from."
        )
    settings: dict[str, Any] = {"pixels": config.limits.pixels, "detector": detector, **counted._asdict()}
    settings |= mine(config.folder)
    if rates:
        settings |= {"false_alarms": rates.false_alarms, "review": rates.review}
    with database.writing() as session:
        if running := session.scalar(select(Job).where(Job.state.in_(ALIVE))):
            raise BlemishError(
                f"A training of '{running.product}' runs already (job {running.id}), and there is one at a time; wait "
                "for it, or cancel it."
            )
        job = Job(product=product, state="queued", by=by, created=now(), settings=settings, before_id=judging.id)
        job.stage, job.error, job.comparison = "waiting for its process", "", {}
        session.add(job)
        session.flush()
    _run(config, job.id)
    return job


def _run(config: ServeConfig, job_id: int) -> None:
    place = config.folder.jobs / str(job_id)
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "blemish.web.job", str(config.data.absolute()), str(job_id)]
    with (place / LOG).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, DATABASE: config.url, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a signal to the server is none to it
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay as a zombie when it has ended


def settle(folder: Folder, database: Database) -> None:
    """Marks one's own jobs as failed whose process is gone; of those that run elsewhere this cannot be seen. To be
    called before jobs are looked at."""
    with database.reading() as session:
        seen = session.scalars(select(Job).where(Job.state.in_(ALIVE))).all()
    seen = [job for job in seen if not elsewhere(folder, database, job)]
    if not seen:
        return
    # A job that was seen running holds the lock until its end is written: the order of these two looks matters.
    now_training = holder(folder)
    for job in seen:
        if now_training and now_training.job in (0, job.id):
            continue
        if job.state == "queued" and _since(job.created) < STARTING:
            continue
        with database.writing() as session:
            row = session.get_one(Job, job.id)
            settled = row.state == job.state
            if settled:
                row.ended, row.stage, row.detector_id = now(), "", brought(session, job.id)
                if row.detector_id:  # the version is the last that it brings
                    row.state = "done"
                else:
                    row.state, row.comparison = "failed", {}
                    row.error = DIED if job.state == "running" else NEVER_BEGAN
        if settled:  # of one that began between the two looks nothing may be removed
            clear(folder, job.id)


def cancel(folder: Folder, database: Database, job_id: int) -> Job:
    """Ends a job: at once where it has not begun, else when its process has heard of it. Raises `BlemishError` for one
    that has ended, or that runs elsewhere; one that has been silent there for an hour is given up, without a signal."""
    settle(folder, database)
    with database.reading() as session:
        far = session.get(Job, job_id)
    if far is not None and far.state in ALIVE and (where := elsewhere(folder, database, far)):
        return _given_up(database, far, where)
    working = holder(folder)
    if working and working.job == job_id and working.machine != socket.gethostname():
        raise BlemishError(f"Job {job_id} runs on the machine {working.machine}; cancel it on that one's page.")
    with database.writing() as session:
        job = session.get(Job, job_id)
        if job is None:
            raise MissingError(f"There is no job {job_id}.")
        if job.state not in ALIVE:
            raise BlemishError(f"Job {job_id} has ended already ({job.state}); there is nothing to cancel.")
        if job.state == "queued":
            job.state, job.ended = "cancelled", now()
        else:
            job.stage = "ending"
    working = holder(folder)
    if job.state == "running" and working and working.job == job_id:
        with suppress(ProcessLookupError):
            os.kill(working.process, signal.SIGTERM)
    return job


def _given_up(database: Database, job: Job, where: str) -> Job:
    last = minute(heard(job))
    if not silent(job):
        raise BlemishError(
            f"Job {job.id} runs on {where}, and was last heard of at {last}; cancel it on that one's page."
        )
    with database.writing() as session:
        row = session.get_one(Job, job.id)
        if row.state in ALIVE:
            row.state, row.ended, row.stage = "failed", now(), ""
            row.error = f"It was given up: it ran on {where}, and was last heard of at {last}."
    return row


def brought(session: Session, job_id: int) -> int | None:
    """The version that a job has brought in, with which it is done."""
    return session.scalar(select(Detector.id).where(Detector.job_id == job_id))


def clear(folder: Folder, job_id: int) -> None:
    """Removes what a job wrote, but its log."""
    place = folder.jobs / str(job_id)
    for entry in place.iterdir() if place.is_dir() else ():
        if entry.name == LOG:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def job_of(folder: Folder, database: Database, job_id: int) -> Job:
    """A job as it is now. Raises `MissingError` where there is none."""
    settle(folder, database)
    with database.reading() as session:
        job = session.get(Job, job_id)
    if job is None:
        raise MissingError(f"There is no job {job_id}.")
    return job


def jobs_of(folder: Folder, database: Database, product: str, limit: int = 20, before: int | None = None) -> list[Job]:
    """The jobs of a product ("" = of all), the newest first."""
    settle(folder, database)
    chosen = select(Job).order_by(Job.id.desc()).limit(limit)
    chosen = chosen.where(Job.product == product) if product else chosen
    chosen = chosen.where(Job.id < before) if before is not None else chosen
    with database.reading() as session:
        return list(session.scalars(chosen))


def log_of(folder: Folder, job_id: int, most: int = 20_000) -> str:
    """The end of a job's log."""
    try:
        with (folder.jobs / str(job_id) / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - most))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""


def labelled(session: Session, product: str) -> Sequence[Image]:
    """The labelled images of a product that are kept."""
    chosen = select(Image).where(Image.product == product, Image.label.is_not(None), Image.ending != "")
    return session.scalars(chosen.order_by(Image.id)).all()


def counts(database: Database, product: str) -> Counts:
    """How many images are labelled, and how many of them are new."""
    with database.reading() as session:
        grouped = session.execute(
            select(Image.label, Image.split, func.count())
            .where(Image.product == product, Image.label.is_not(None), Image.ending != "")
            .group_by(Image.label, Image.split)
        ).all()
        last = session.scalar(
            select(func.max(Detector.created)).where(Detector.product == product, Detector.kind != "threshold")
        )
        good = or_(Correction.label == "good", Correction.before["label"].as_string() == "good")
        good_one = case((and_(good, Image.split != "test"), Correction.image_id))
        new, new_good = session.execute(
            select(func.count(distinct(Correction.image_id)), func.count(distinct(good_one)))
            .join(Image)
            .where(Image.product == product, Image.label.is_not(None))
            .where(Correction.action == "label", Correction.time > (last or ""))
        ).one()

    def of(label: str, *, held_out: bool) -> int:
        return sum(row[2] for row in grouped if row[0] == label and (row[1] == "test") == held_out)

    return Counts(
        good=of("good", held_out=False),
        defective=of("anomaly", held_out=False),
        held_out_good=of("good", held_out=True),
        held_out_defective=of("anomaly", held_out=True),
        new=new,
        new_good=new_good,
    )


def nothing_from(detector: str, new: int, new_good: int) -> str:
    """A sentence where a detector learns nothing from the images that are newly labelled; "" where it does."""
    if detector != NORMAL or not new or new_good:
        return ""
    return (
        f"No good image to learn from is among those newly labelled ({new}), and {NORMAL} learns from good images "
        f"alone: it learns nothing from them. {LEARNING.capitalize()} learns from defective images too."
    )


def choice(database: Database, product: str, false_alarms: float) -> Choice:
    """Which detector would be learned, and why: the choice that `blemish train` makes of the same images, in the page's
    words."""
    with database.reading() as session:
        made = chosen(_found(session, product), false_alarms=false_alarms)
    return made._replace(sentence=in_page_words(made.sentence))


def in_page_words(sentence: str) -> str:
    """Why a detector is chosen, without what only the command line has."""
    return sentence.replace(ANYWAY, "choose").replace("in the folder's own test split", "held out")


def _found(session: Session, product: str) -> Found:
    """Counted by the database, whose images have a split as soon as they have a label. An image without an item's name
    is an item of its own."""
    mine = (Image.product == product, Image.ending != "")
    bad = (*mine, Image.label == "anomaly", Image.split != "test")
    alone = func.count(case((Image.item == "", 1)))
    # The text of JSON is the same on every database as far as this goes: no shapes are "[]".
    masked = or_(Image.mask != "", func.length(cast(Image.shapes, Text)) > len("[]"))
    items = alone + func.count(distinct(func.nullif(Image.item, "")))
    counted = select(func.count(), func.count(case((masked, 1))), items).where(*bad)
    good = select(items).where(*mine, Image.label == "good", Image.split != "test")
    good = good.where(Image.item.not_in(select(Image.item).where(*bad, Image.item != "")))
    tested = select(func.count()).where(*mine, Image.label == "anomaly", Image.split == "test")
    defective, masks, defective_items = session.execute(counted).one()
    return Found(
        defective=defective,
        masks=masks,
        defective_items=defective_items,
        good_items=session.scalar(good) or 0,
        most=0,  # asked of undivided folders only
        tested=session.scalar(tested) or 0,
        divided=True,
    )


def limits_of(job: Job) -> Limits:
    """Of the server that started the job."""
    return Limits(pixels=int(job.settings.get("pixels", Limits.pixels)))
