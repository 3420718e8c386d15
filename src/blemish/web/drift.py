"""Do good parts still look like the calibration set? `inference.drift` over each version's verdicts, kept up to date
with a few more rows for each look."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, case, func, or_, select

from blemish.inference.bundle import Decision
from blemish.inference.drift import Drift, State, drift_of
from blemish.web.database import Database
from blemish.web.dataset import IMPORTED
from blemish.web.tables import Correction, Detector, Image, Verdict

MOST = 5000  # verdicts that one look takes in: some 0.2 s
AGAIN = "again"  # the source of verdicts on images that somebody picked
NO_TEST = (
    "There is no drift test for this version: it compares with the good images that set the threshold, each of another "
    "part. Train with --decide guarantee, on one image of each part."
)


@dataclass(frozen=True)
class Followed:
    """The test of one version: `state` is None where there can be none, `left` counts verdicts that it has not seen
    yet."""

    state: State | None
    sentence: str
    left: int = 0


@dataclass
class _Test:
    drift: Drift
    last: int = 0  # number of the last verdict
    images: set[int] = field(default_factory=set)


class Drifts:
    """The tests of all versions, in memory."""

    def __init__(self) -> None:
        self._tests: dict[int, _Test] = {}
        self._lock = threading.Lock()

    def follow(self, database: Database, detector_id: int, rule: Decision, most: int = MOST) -> Followed:
        """The test of a version, whose rule of decision is `rule`, after its verdicts in their order. An image counts
        once, when the version judged it first: the same image again is no new part.

        Images that somebody picked to be inspected again are left out, and so are those that the version may have
        learned from: neither are drawn as the stream is, and sixty good images from the review queue alone would raise
        the alarm."""
        with self._lock:
            if detector_id not in self._tests:
                if (fresh := drift_of(rule)) is None:
                    return Followed(None, NO_TEST)
                self._tests[detector_id] = _Test(fresh)
            test = self._tests[detector_id]
            mine = (Verdict.detector_id == detector_id, Verdict.score.is_not(None))
            with database.reading() as session:
                created = session.scalar(select(Detector.created).where(Detector.id == detector_id)) or ""
                columns = select(
                    Verdict.id,
                    Verdict.image_id,
                    func.coalesce(Verdict.score, 0.0),
                    case((or_(Verdict.source == AGAIN, _learned(created)), 1), else_=0),
                ).join(Image, Image.id == Verdict.image_id)
                rows = session.execute(
                    columns.where(*mine, Verdict.id > test.last).order_by(Verdict.id).limit(most)
                ).all()
                left = 0
                if len(rows) == most:
                    later = select(func.count()).where(*mine, Verdict.id > rows[-1].id)
                    left = session.scalar(later) or 0
            for number, image, score, left_out in rows:
                test.last = number
                if image not in test.images:
                    test.images.add(image)
                    if not left_out:
                        test.drift.see(score)
            return Followed(test.drift.state, test.drift.sentence(), left)


def may_have_learned(database: Database, image: Image, created: str) -> bool:
    """Whether a version that was made then may have learned from an image, or have set its threshold with it."""
    with database.reading() as session:
        return session.scalar(select(Image.id).where(Image.id == image.id, _learned(created))) is not None


def _learned(created: str) -> ColumnElement[bool]:
    """Whether a version that was made then may have learned from the verdict's image: one that is not held out, and was
    labelled before. Images that came with a bundle have no correction, and were there before their version."""
    labelled = select(Correction.id).where(
        Correction.image_id == Image.id, Correction.action == "label", Correction.time <= created
    )
    return and_(Image.split == "train", or_(IMPORTED, labelled.exists()))
