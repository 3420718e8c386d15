"""The tamper-evident log: one row for each verdict, correction, promotion and detector, chained by hashes.

A row's body is what the other table's row says, with the SHA-256 of the image and of the bundle's card; it is written
in the same transaction. `entries` gives the chain, and `differences` what the tables say otherwise today: of those
rows, and of what follows from them (`standing.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, null, select
from sqlalchemy.orm import Session, lazyload

from blemish.station.chain import GENESIS, Entry, Head, canonical, link
from blemish.web.standing import contradictions
from blemish.web.tables import Base, Correction, Detector, Image, Log, Promotion, Verdict

KINDS: dict[str, type[Base]] = {
    "verdict": Verdict,
    "correction": Correction,
    "promotion": Promotion,
    "detector": Detector,
}
_BATCH = 500


def append(session: Session, row: Base, time: str) -> Log:
    """Adds a row of another table, which has its number already, to the chain. To be called by the only writer."""
    kind = next(name for name, table in KINDS.items() if isinstance(row, table))
    last = head(session)
    entry = link(last.hash, last.seq + 1, time, kind, body(session, row))
    log = Log(**entry._asdict(), ref=row.id)  # type: ignore[attr-defined]
    session.add(log)
    session.flush()
    return log


def head(session: Session) -> Head:
    """The last entry's number and hash."""
    last = session.execute(select(Log.seq, Log.hash).order_by(Log.seq.desc()).limit(1)).one_or_none()
    return Head(last.seq, last.hash) if last else Head(0, GENESIS)


def body(session: Session, row: Base) -> dict[str, Any]:
    """What the chain commits to of a row: its columns, the image's hash and the bundle's."""
    image = bundle = None
    if isinstance(row, Verdict | Correction):
        image = session.execute(select(Image.sha256).where(Image.id == row.image_id)).scalar_one()
    if isinstance(row, Verdict | Promotion):
        bundle = session.execute(select(Detector.sha256).where(Detector.id == row.detector_id)).scalar_one()
    return _body(row, image, bundle)


def _body(row: Base, image: str | None, bundle: str | None) -> dict[str, Any]:
    fields = {column.key: getattr(row, column.key) for column in row.__table__.columns}
    if isinstance(row, Verdict | Correction):
        fields["image"] = image
    if isinstance(row, Verdict | Promotion):
        fields["bundle"] = bundle
    return fields


def entries(session: Session) -> Iterator[Entry]:
    """The chain from its beginning, in the order of its numbers."""
    after = -1
    while rows := session.scalars(select(Log).where(Log.seq > after).order_by(Log.seq).limit(_BATCH)).all():
        for row in rows:
            yield Entry(row.seq, row.time, row.kind, row.body, row.previous, row.hash)
        after = rows[-1].seq
        session.expunge_all()


def differences(session: Session) -> Iterator[str]:
    """A sentence for each row that is not any more what the log says of it, is missing, or is not in the log; and for
    each image and product that is not what follows from these rows."""
    for kind, table in KINDS.items():
        after = 0
        while found := session.execute(_logged(kind, table, after)).all():
            for seq, ref, text, row, image, bundle in found:
                if row is None:
                    yield f"Entry {seq}: {kind} {ref} has been deleted."
                elif canonical(_body(row, image, bundle)) != text:
                    yield f"Entry {seq}: {kind} {ref} has been changed."
            after = found[-1].seq
            session.expunge_all()
        known = select(Log.ref).where(Log.kind == kind)
        for number in session.scalars(select(table.id).where(table.id.not_in(known))):  # type: ignore[attr-defined]
            yield f"{kind.capitalize()} {number} is not in the log."
    yield from contradictions(session)


def _logged(kind: str, table: Any, after: int) -> Select[Any]:
    """The next entries of a kind: number, row's number and body; the row, the image's hash and the bundle's."""
    has_image, has_bundle = issubclass(table, Verdict | Correction), issubclass(table, Verdict | Promotion)
    image, bundle = Image.sha256 if has_image else null(), Detector.sha256 if has_bundle else null()
    query = select(Log.seq, Log.ref, Log.body, table, image, bundle).outerjoin(table, table.id == Log.ref)
    if has_image:
        query = query.outerjoin(Image, Image.id == table.image_id)
    if has_bundle:
        query = query.outerjoin(Detector, Detector.id == table.detector_id)
    query = query.where(Log.kind == kind, Log.seq > after).order_by(Log.seq).limit(_BATCH)
    return query.options(lazyload("*"))  # or each row would bring its image and its version's metrics
