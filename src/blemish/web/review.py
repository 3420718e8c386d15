"""Which images a person should look at, and in which order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Select, and_, case, func, literal, select, tuple_
from sqlalchemy.orm import Session

from blemish.inference.bundle import Decision
from blemish.types import BlemishError
from blemish.web.standing import IMPORT, stands
from blemish.web.tables import Correction, Image, Verdict

NEAR = 2.0  # p within this factor of the false-alarm rate is near the threshold
SENT_BACK = -1.0  # the ranks, see `rank`
UNCERTAIN, DISAGREE, SKIPPED, REST = 0.0, 2.0, 2.995, 3.0
NO_RANK = 9.0  # stands for None where all images are listed: behind all others
PAGE = 60  # images of one page

SHOWS: dict[Show, str] = {
    "waiting": "Everything that waits",
    "back": "Sent back",
    "uncertain": "Uncertain",
    "disagree": "Label and verdict disagree",
    "skipped": "Skipped",
    "rest": "Others without a label",
    "second": "Checked by others, not by me",
    "labelled": "Labelled",
    "all": "All images",
}
_PLACE = re.compile(r"(-?[0-9]{1,3}(?:\.[0-9]{1,20})?(?:e-[0-9]{1,3})?),([0-9]{1,15})", re.ASCII)

Show = Literal["waiting", "back", "uncertain", "disagree", "skipped", "rest", "second", "labelled", "all"]
Place = tuple[float, int]  # rank and number of an image: where a page of the queue ends


def rank(image: Image, verdict: Verdict, rule: Decision, *, decided: bool = False) -> float | None:
    """The image's place in the review queue, the lowest first; None: nobody needs to look.

    -1: sent back for another look, until somebody does. 0 to 1: put aside for review. 1 to 2: p near the threshold, the
    nearest first. 2 to 3: label and verdict disagree, the verdict nearest to its threshold first, and behind them what
    was skipped. From 3 on: all others without a label, the nearest to the threshold first. `decided`: whoever gave the
    label had seen what this version says, so that there is nothing to ask again.
    """
    if image.queue is not None and image.queue < UNCERTAIN:
        return image.queue
    if verdict.decision == "error":
        return None
    distance = _distance(verdict, rule)  # 0 at the threshold
    squeezed = distance / (1 + distance)
    if image.label:
        # "review" is neither: the detector leaves it to the person, who has spoken.
        agrees = verdict.decision == "review" or (image.label == "anomaly") == (verdict.decision == "anomaly")
        return None if agrees or decided else DISAGREE + (SKIPPED - DISAGREE) * min(squeezed, 0.999)
    if verdict.decision == "review":
        return UNCERTAIN + min(squeezed, 0.999)
    if distance <= math.log(NEAR):
        return 1 + squeezed
    return REST + squeezed


def _distance(verdict: Verdict, rule: Decision) -> float:
    """How far p is from the rate that is guaranteed, |log(p / rate)|. Without p, how far the score is from the
    threshold, in units of |threshold| / 4, so that a score within a sixth of its threshold is near."""
    if verdict.p_value and rule.false_alarms:
        return abs(math.log(verdict.p_value / rule.false_alarms))
    score, threshold = verdict.score or 0.0, rule.threshold
    return 4 * abs(score - threshold) / max(abs(threshold), 1e-9)


def place(session: Session, image: Image, verdict: Verdict, rule: Decision) -> float | None:
    """`rank`, for an image whose label may have been given in sight of a verdict of the same version."""
    last = session.scalar(
        select(Correction.verdict_id)
        .where(Correction.image_id == image.id, Correction.action == "label")
        .where(stands(Correction.image_id == image.id))
        .order_by(Correction.id.desc())
        .limit(1)
    )
    seen = session.scalar(select(Verdict.detector_id).where(Verdict.id == last)) if last else None
    return rank(image, verdict, rule, decided=bool(image.label) and seen == verdict.detector_id)


@dataclass(frozen=True)
class Filters:
    """Which images of a product are shown. `label`: "none", "good", "anomaly"; `verdict`: a decision; `version`: a
    detector's number, 0 for any. "" is any."""

    product: str
    show: Show = "waiting"
    label: str = ""
    verdict: str = ""
    version: int = 0

    def query(self, **changes: Any) -> str:
        """As the query of an address, with changes; what is not filtered is left out."""
        fields = asdict(self) | changes
        return urlencode({name: v for name, v in fields.items() if v and not (name == "show" and v == "waiting")})

    def only(self, show: Show) -> Filters:
        return replace(self, show=show, label="", verdict="", version=0)


@dataclass(frozen=True)
class Entry:
    """An image in the queue, with its latest verdict, its place, and the number of what was said of it last (0 =
    nothing)."""

    image: Image
    verdict: Verdict | None
    place: Place
    latest: int = 0

    @property
    def reason(self) -> str:
        """Why a person should look."""
        rank = self.image.queue
        if rank is None:
            return ""
        if rank < UNCERTAIN:
            return "sent back"
        if rank < 1:
            return "put aside for review"
        if rank < DISAGREE:
            return "near the threshold"
        if rank < SKIPPED:
            return "label and verdict disagree"
        return "skipped" if rank < REST else ""


def listed(
    session: Session, filters: Filters, me: str, *, after: Place | None = None, limit: int = PAGE
) -> list[Entry]:
    """The images behind `after`, in the order of the queue."""
    query = _select(filters, me)
    if after is not None:
        query = query.where(tuple_(_key(filters), Image.id) > tuple_(*after))
    return _entries(session, query.order_by(_key(filters), Image.id).limit(limit), filters)


def before(session: Session, filters: Filters, me: str, place: Place) -> Entry | None:
    """The image in front of `place`."""
    query = _select(filters, me).where(tuple_(_key(filters), Image.id) < tuple_(*place))
    found = _entries(session, query.order_by(_key(filters).desc(), Image.id.desc()).limit(1), filters)
    return found[0] if found else None


def following(session: Session, filters: Filters, me: str, place: Place, *, other_than: int = 0) -> Entry | None:
    """The image behind `place`; behind the last one comes the first, if it is not `other_than`."""
    for after in (place, None):
        for entry in listed(session, filters, me, after=after, limit=2):
            if entry.image.id != other_than:
                return entry
    return None


def where_is(image: Image, filters: Filters) -> Place:
    """Where an image stands in the list of `filters`. A second reader's is in the order in which images came: that of
    the queue would tell what the first reader said."""
    return (NO_RANK if image.queue is None or filters.show == "second" else image.queue, image.id)


def text_of(place: Place) -> str:
    return f"{place[0]!r},{place[1]}"


def place_of(text: str) -> Place | None:
    """The opposite of `text_of`; None for "". Raises `BlemishError` for anything else."""
    if not text:
        return None
    found = _PLACE.fullmatch(text)
    if not found:
        raise BlemishError(f"'{text[:50]}' is no place in the queue; take the `next` of the page before.")
    return float(found[1]), int(found[2])


def counts(session: Session, product: str, me: str) -> dict[str, int]:
    """How many images each of `SHOWS` has."""
    counted = {
        name: func.count(case((condition, 1)))
        for name, condition in {name: _shown(name, me) for name in SHOWS}.items()
        if name != "second"
    }
    row = session.execute(
        select(*(column.label(name) for name, column in counted.items())).where(Image.product == product)
    ).one()
    second = session.scalar(
        select(func.count()).select_from(Image).where(Image.product == product, _shown("second", me))
    )
    return {name: second or 0 if name == "second" else int(getattr(row, name)) for name in SHOWS}


def count(session: Session, filters: Filters, me: str) -> int:
    """How many images the list of `filters` has."""
    return session.scalar(_select(filters, me).with_only_columns(func.count(), maintain_column_froms=True)) or 0


def waiting(session: Session, product: str) -> int:
    """How many images wait for a person: all of `SHOWS`' "waiting"."""
    return all_waiting(session, product).get(product, 0)


def all_waiting(session: Session, product: str = "") -> dict[str, int]:
    """How many images wait for a person, of each product that has any, or of one."""
    query = select(Image.product, func.count()).where(Image.queue < REST).group_by(Image.product)
    rows = session.execute(query.where(Image.product == product) if product else query)
    return dict(rows.all())


def types(session: Session, product: str) -> Sequence[str]:
    """The types of defects that were named so far."""
    query = select(Image.defect).where(Image.product == product, Image.defect != "").distinct().order_by(Image.defect)
    return session.scalars(query).all()


def _select(filters: Filters, me: str) -> Select[Image, Verdict]:
    query = select(Image, Verdict).outerjoin(Verdict, Verdict.id == Image.verdict_id)
    query = query.where(Image.product == filters.product, Image.ending != "", _shown(filters.show, me))
    if filters.label:
        query = query.where(Image.label.is_(None) if filters.label == "none" else Image.label == filters.label)
    if filters.verdict:
        query = query.where(Verdict.decision == filters.verdict)
    if filters.version:
        query = query.where(Verdict.detector_id == filters.version)
    return query


def _entries(session: Session, query: Select[Image, Verdict], filters: Filters) -> list[Entry]:
    found = session.execute(query).all()
    last = dict(
        session.execute(
            select(Correction.image_id, func.max(Correction.id))
            .where(Correction.image_id.in_([image.id for image, _ in found]), Correction.action != "skip")
            .group_by(Correction.image_id)
        ).all()
    )
    return [Entry(image, verdict, where_is(image, filters), last.get(image.id, 0)) for image, verdict in found]


def entry_of(session: Session, image: Image, filters: Filters) -> Entry:
    """An image as it would stand in the list of `filters`."""
    query = select(Image, Verdict).outerjoin(Verdict, Verdict.id == Image.verdict_id).where(Image.id == image.id)
    return _entries(session, query, filters)[0]


def _key(filters: Filters) -> ColumnElement[Any]:
    """The first number of `where_is`."""
    if filters.show == "second":
        return literal(NO_RANK)
    return func.coalesce(Image.queue, NO_RANK) if filters.show in ("labelled", "all") else Image.queue.expression


def _shown(show: Show, me: str) -> ColumnElement[bool]:
    between = {
        "waiting": (None, REST),
        "back": (None, UNCERTAIN),
        "uncertain": (UNCERTAIN, DISAGREE),
        "disagree": (DISAGREE, SKIPPED),
        "skipped": (SKIPPED, REST),
        "rest": (REST, None),
    }
    if show in between:
        low, high = between[show]
        above = [] if low is None else [Image.queue >= low]
        below = [] if high is None else [Image.queue < high]
        return and_(*above, *below)
    if show == "second":
        mine = select(Correction.image_id).where(Correction.action == "label", Correction.by == me, stands())
        # By a person: a label that was brought in is no reviewer's, and agreement with it would count for nobody.
        return and_(Image.label.is_not(None), Image.labelled_by.not_in((me, IMPORT)), Image.id.not_in(mine))
    return Image.label.is_not(None) if show == "labelled" else Image.ending != ""
