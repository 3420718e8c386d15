"""Verdicts by what is known of them: filters, pages by the number of the last row, and counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Annotated, Any, Literal, TypeVarTuple
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from fastapi import Depends, Query
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, selectinload

from blemish.reporting.run import DECISIONS
from blemish.types import BlemishError
from blemish.web.database import Database
from blemish.web.site import ProductOf
from blemish.web.tables import Detector, Image, Verdict
from blemish.web.times import utc

Label = Literal["", "good", "anomaly", "none"]
DecisionName = Literal["", "good", "anomaly", "review", "error"]
Row = TypeVarTuple("Row")
BATCH = 500  # rows that an export reads at once
HOURS = 48  # of the counts


@dataclass(frozen=True)
class _Counted:
    """All verdicts of a product up to the number `last`."""

    last: int = 0
    decisions: Mapping[str, int] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()


_KEPT: WeakKeyDictionary[Any, dict[str, _Counted]] = WeakKeyDictionary()  # by database, then product
_LOCK = Lock()


@dataclass(frozen=True)
class Filters:
    """Which verdicts of a product; "" and None = all. `start` and `end` are times as people write them, `name` and
    `source` parts of these texts, `version` is the number of one of the product's versions."""

    product: str
    start: str = ""
    end: str = ""
    decision: str = ""
    p_low: float | None = None
    p_high: float | None = None
    version: int | None = None
    source: str = ""
    name: str = ""
    label: str = ""

    @property
    def active(self) -> bool:
        """Whether anything but the product is asked for."""
        return self != Filters(self.product)

    def query(self, **more: Any) -> str:
        """As the query of an address, with `more` parameters."""
        fields = {key: value for key, value in asdict(self).items() if value not in ("", None)}
        names = {"start": "from", "end": "to", "p_low": "p_from", "p_high": "p_to"}
        return urlencode({names.get(key, key): value for key, value in (fields | more).items()})


def _filters(
    product: ProductOf,
    start: Annotated[str, Query(alias="from", max_length=40, description="As 2026-11-30 or 2026-11-30T13:44.")] = "",
    end: Annotated[str, Query(alias="to", max_length=40, description="The last day or minute.")] = "",
    decision: DecisionName = "",
    p_from: Annotated[str, Query(max_length=30, description="0 to 1.")] = "",
    p_to: Annotated[str, Query(max_length=30, description="0 to 1.")] = "",
    version: Annotated[str, Query(pattern=r"^[0-9]{0,9}$", description="Of the product's detector.")] = "",
    source: Annotated[str, Query(max_length=255, description="A part of it.")] = "",
    name: Annotated[str, Query(max_length=500, description="A part of it.")] = "",
    label: Annotated[Label, Query(description='"none": not labelled.')] = "",
) -> Filters:
    # Empty fields of a form are empty texts, so numbers come as texts.
    for time in filter(str.strip, (start, end)):
        utc(time)  # raises
    return Filters(
        product=product,
        start=start.strip(),
        end=end.strip(),
        decision=decision,
        p_low=_share(p_from),
        p_high=_share(p_to),
        version=int(version) if version else None,
        source=source.replace("\0", ""),  # which PostgreSQL takes in no text
        name=name.replace("\0", ""),
        label=label,
    )


FiltersOf = Annotated[Filters, Depends(_filters)]


def _share(text: str) -> float | None:
    """A field of the form; None where it is empty. Raises `BlemishError`."""
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BlemishError(f"A p-value lies between 0 and 1, and '{text}' does not; write it as 0.05.")
    return value


def conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """For a select of verdicts, joined with their images where a label is asked for. A product's verdicts are those of
    its versions, so that nothing else needs the image's row."""
    versions = select(Detector.id).where(Detector.product == filters.product)
    asked: list[ColumnElement[bool]] = []
    if filters.version is None:
        # "+ 0": no index of versions, or SQLite would sort all rows instead of walking back from the newest.
        asked.append((Verdict.detector_id + 0).in_(versions))
    else:
        asked.append(Verdict.detector_id == versions.where(Detector.version == filters.version).scalar_subquery())
    if filters.start:
        asked.append(Verdict.time >= utc(filters.start))
    if filters.end:
        asked.append(Verdict.time < utc(filters.end, end=True))
    if filters.decision:
        asked.append(Verdict.decision == filters.decision)
    if filters.p_low is not None:
        asked.append(Verdict.p_value >= filters.p_low)
    if filters.p_high is not None:
        asked.append(Verdict.p_value <= filters.p_high)
    # Escaped, so that % and _ are themselves; the database itself makes both lower case, so that they are alike.
    for column, text in ((Verdict.name, filters.name), (Verdict.source, filters.source)):
        if text:
            escaped = re.sub(r"([%_/])", r"/\1", text)
            asked.append(func.lower(column).like(func.lower(f"%{escaped}%"), escape="/"))
    if filters.label:
        asked.append(Image.label.is_(None) if filters.label == "none" else Image.label == filters.label)
    return asked


def matching(query: Select[*Row], filters: Filters) -> Select[*Row]:
    """A select of verdicts' columns, of those that match."""
    if filters.label:
        query = query.join(Image, Image.id == Verdict.image_id)
    return query.where(*conditions(filters))


def found(session: Session, filters: Filters, *, before: int | None = None, limit: int = 60) -> Sequence[Verdict]:
    """At most `limit` verdicts, the newest first, older than the verdict `before`."""
    # The few versions on their own, not with each row: their metrics are large.
    query = matching(select(Verdict).options(selectinload(Verdict.detector)), filters)
    query = query.order_by(Verdict.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Verdict.id < before)
    rows: Sequence[Verdict] = session.scalars(query).all()
    return rows


def every(database: Database, filters: Filters) -> Iterator[Verdict]:
    """All of them, the newest first, a few hundred in memory at a time. The first are read at once, so that trouble is
    there before anything is answered; between the reads no connection is held, however slowly they are taken."""

    def read(before: int | None) -> Sequence[Verdict]:
        with database.reading() as session:
            return found(session, filters, before=before, limit=BATCH)

    def taken(rows: Sequence[Verdict]) -> Iterator[Verdict]:
        while rows:
            yield from rows
            rows = read(rows[-1].id)  # none ever changes or goes, and the numbers of new ones are higher

    return taken(read(None))


def counts(session: Session, filters: Filters) -> dict[str, int]:
    """How many verdicts there are of each decision."""
    by_decision: Mapping[str, int]
    if filters.active:
        query = matching(select(Verdict.decision, func.count()), filters).group_by(Verdict.decision)
        by_decision = dict(session.execute(query).all())
    else:
        by_decision = _counted(session, filters.product).decisions
    return {decision: by_decision[decision] for decision in DECISIONS if decision in by_decision}


def _counted(session: Session, product: str) -> _Counted:
    """All verdicts of a product: those that are new since the last look are counted, since none ever changes or goes,
    and their numbers rise."""
    with _LOCK:
        kept = _KEPT.setdefault(session.get_bind(), {})
        counted = kept.setdefault(product, _Counted())
        last = session.scalar(select(func.max(Verdict.id))) or 0
        if last < counted.last:  # another database in its place
            counted = kept[product] = _Counted()
        if last == counted.last:
            return counted
        columns = (Verdict.decision, Verdict.source, func.count())
        new = matching(select(*columns), Filters(product)).where(Verdict.id > counted.last, Verdict.id <= last)
        rows = session.execute(new.group_by(Verdict.decision, Verdict.source)).all()
        decisions, sources = Counter(counted.decisions), set(counted.sources)
        for decision, source, count in rows:
            decisions[decision] += count
            sources.add(source)
        kept[product] = _Counted(last, decisions, frozenset(sources))
        return kept[product]


def per_hour(session: Session, filters: Filters) -> list[tuple[str, dict[str, int]]]:
    """The counts of each of the last `HOURS` hours up to the latest verdict, the oldest first: the hour's beginning
    (UTC), and how many there are of each decision."""
    # By its index, from the latest back; a maximum would look at all of them.
    latest = session.scalar(matching(select(Verdict.time), filters).order_by(Verdict.time.desc()).limit(1))
    if latest is None:
        return []
    last = datetime.fromisoformat(latest).replace(minute=0, second=0, microsecond=0)
    hours = [last - timedelta(hours=back) for back in reversed(range(HOURS))]
    hour = func.substr(Verdict.time, 1, 13)
    query = matching(select(hour, Verdict.decision, func.count()), filters)
    query = query.where(Verdict.time >= hours[0].isoformat(timespec="milliseconds")).group_by(hour, Verdict.decision)
    by_hour: dict[str, dict[str, int]] = {}
    for name, decision, count in session.execute(query):
        by_hour.setdefault(name, {})[decision] = count
    return [(time.isoformat(timespec="milliseconds"), by_hour.get(time.isoformat()[:13], {})) for time in hours]


@dataclass(frozen=True)
class Dot:
    """A verdict as the trend shows it."""

    id: int
    time: str
    decision: str
    score: float | None
    p_value: float | None


def latest(session: Session, filters: Filters, most: int) -> list[Dot]:
    """The last `most` verdicts that have a score, the oldest first."""
    columns = (Verdict.id, Verdict.time, Verdict.decision, Verdict.score, Verdict.p_value)
    query = (
        matching(select(*columns), filters).where(Verdict.score.is_not(None)).order_by(Verdict.id.desc()).limit(most)
    )
    return [Dot(*row) for row in reversed(session.execute(query).all())]


def sources(session: Session, product: str) -> Sequence[str]:
    """Where verdicts of a product came from."""
    return sorted(_counted(session, product).sources)[:50]
