"""What people say of images: labelled, sent back, skipped, undone. Each is a row that stays, in the log; the columns of
the image follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from blemish.types import BlemishError
from blemish.web import ledger, review
from blemish.web.dataset import split_of
from blemish.web.site import MissingError, Site
from blemish.web.standing import IMPORT
from blemish.web.tables import Correction, Image, Verdict, now
from blemish.web.texts import plain

Label = Literal["good", "anomaly"]
# What a correction changes of an image, and undoing restores. `split` is not among them: it is set once, for good.
STATE = ("label", "defect", "shapes", "mask", "labelled_by", "queue")
KEPT = ("defect", "shapes")  # of these a label may say nothing; then they stay
TYPE = 100  # characters of a type's name
NOTE = 2000
SHAPES, POINTS = 100, 500  # of an image, of a shape
LARGEST = 1e9  # pixels; an integer may be larger than any float


class DecidedError(BlemishError):
    """Somebody else decided meanwhile."""


@dataclass(frozen=True)
class Seen:
    """What a person had before their eyes: the verdict, and the latest correction of the image (0 = there was none).
    None is not checked."""

    verdict_id: int | None = None
    correction_id: int | None = None


NOTHING = Seen()


def label(
    site: Site,
    image_id: int,
    by: str,
    label: Label,
    *,
    defect: str | None = None,
    shapes: Sequence[Mapping[str, Any]] | None = None,
    note: str = "",
    seen: Seen = NOTHING,
) -> Correction:
    """Says what an image is; it leaves the queue. `shapes` are polygons in pixels, [{"points": [[x, y], ...]}]. None
    for `defect` or `shapes` says nothing of them: an anomaly keeps those that it has, and the correction names them in
    `before["kept"]`, so that nobody is credited with what somebody else said. Raises `DecidedError` where somebody
    decided since what was `seen`, and `BlemishError` for shapes that are none."""
    with site.database.writing() as session:
        image = _image(session, image_id)
        return _labelled(session, image, by, label, defect=defect, shapes=shapes, note=note, seen=seen)


def _labelled(
    session: Session,
    image: Image,
    by: str,
    label: Label,
    *,
    defect: str | None = None,
    shapes: Sequence[Mapping[str, Any]] | None = None,
    note: str = "",
    seen: Seen = NOTHING,
) -> Correction:
    said: dict[str, Any] = {}
    if defect is not None:
        said["defect"] = " ".join(plain(defect).split())
        if len(said["defect"]) > TYPE:
            raise BlemishError(f"The type has {len(said['defect'])} characters; shorten it to {TYPE}.")
    if shapes is not None:
        said["shapes"] = checked(shapes, image)
    if label == "good":
        if any(said.values()):
            raise BlemishError("A good image has no type and no shapes; remove them, or call it an anomaly.")
        said = {"defect": "", "shapes": []}
    kept = [name for name in KEPT if name not in said]
    fields = {"label": label, "defect": "", "shapes": [], **said}
    row = _added(session, image, by, "label", note, seen, kept=kept, **fields)
    # A mask that was brought in with the image is worth more than none, and less than what is drawn now.
    image.mask = "" if label == "good" or said.get("shapes") else image.mask
    image.label, image.labelled_by = label, by
    for name, value in said.items():
        setattr(image, name, value)
    image.split = image.split or split_of(image.sha256, image.item)
    image.queue = None
    return _finished(session, row)


def again(site: Site, image_id: int, by: str, *, note: str = "", seen: Seen = NOTHING) -> Correction:
    """Sends an image back to the front of the queue for another look; its label stays until then."""
    with site.database.writing() as session:
        return _again(session, _image(session, image_id), by, note, seen)


def _again(session: Session, image: Image, by: str, note: str, seen: Seen) -> Correction:
    row = _added(session, image, by, "again", note, seen, **_as_it_is(image))
    image.queue = review.SENT_BACK
    return _finished(session, row)


def skip(site: Site, image_id: int, by: str, *, note: str = "", seen: Seen = NOTHING) -> Correction:
    """Puts an image behind all that waits."""
    with site.database.writing() as session:
        return _skipped(session, _image(session, image_id), by, note, seen)


def _skipped(session: Session, image: Image, by: str, note: str, seen: Seen) -> Correction:
    row = _added(session, image, by, "skip", note, seen, **_as_it_is(image))
    if image.queue is not None and image.queue < review.REST:
        image.queue = review.SKIPPED
    return _finished(session, row)


def several(
    site: Site,
    images: Mapping[int, Seen],
    by: str,
    action: Literal["good", "anomaly", "again", "skip"],
    *,
    product: str,
    defect: str = "",
    note: str = "",
) -> Correction:
    """Says the same of images of one product, of all or of none; returns the last correction. Raises as the functions
    for one image do, and `BlemishError` for an image of another product."""
    if not images:
        raise BlemishError("No image is ticked; tick some, then decide.")
    with site.database.writing() as session:
        found = [(_image(session, number), seen) for number, seen in images.items()]
        for image, _ in found:
            if image.product != product:
                raise BlemishError(f"{image.name}: is of the product {image.product}, not {product}; nothing was done.")
        for image, seen in found:
            if action == "again":
                row = _again(session, image, by, note, seen)
            elif action == "skip":
                row = _skipped(session, image, by, note, seen)
            else:
                type_ = defect or None if action == "anomaly" else None  # a good image loses what was named
                row = _labelled(session, image, by, action, defect=type_, note=note, seen=seen)
        return row


def undo(site: Site, by: str, correction_id: int | None = None, *, product: str = "") -> Correction:
    """Takes a correction back: the image is what it was before it. Without a number it is one's own last one (of a
    product), so that a second undo goes further back. Raises `DecidedError` where somebody decided since, and
    `BlemishError` where there is nothing to undo."""
    with site.database.writing() as session:
        row = _to_undo(session, by, correction_id, product)
        image = session.get_one(Image, row.image_id)
        rows = history(session, image.id)
        if row.id not in undoable(rows):
            last = next(later for later in reversed(standing(rows)) if later.action != "skip")
            raise DecidedError(f"{image.name}: {_told(last)} after that; undo that first, or decide anew.")
        undone = _added(session, image, by, "undo", "", NOTHING, undoes=row.id, label=None, defect="", shapes=[])
        if row.action != "skip":
            for column in STATE:
                setattr(image, column, row.before[column])
        elif image.queue == review.SKIPPED:  # a skip says nothing of the image, and others may have decided since
            image.queue = row.before["queue"]
        if image.verdict_id != row.before["verdict_id"]:  # it was judged again meanwhile
            image.queue = _rank(site, session, image)
        return _finished(session, undone)


def history(session: Session, image_id: int) -> Sequence[Correction]:
    """All corrections of an image, the oldest first."""
    return session.scalars(select(Correction).where(Correction.image_id == image_id).order_by(Correction.id)).all()


def standing(rows: Sequence[Correction]) -> list[Correction]:
    """Those of `history` that were not undone, without the undoing ones."""
    undone = {row.undoes for row in rows}
    return [row for row in rows if row.action != "undo" and row.id not in undone]


def undoable(rows: Sequence[Correction]) -> set[int]:
    """The numbers of those of `history` that can be undone: the last one that says something, and skips after it."""
    found = set()
    for row in reversed(standing(rows)):
        found.add(row.id)
        if row.action != "skip":
            break
    return found


def brought_in(image: Image, rows: Sequence[Correction]) -> Mapping[str, Any] | None:
    """The label, type and mask that came with an image of this `history`, by the names of its columns; None where none
    came."""
    if image.labelled_by == IMPORT:
        return {name: getattr(image, name) for name in STATE}
    return next((row.before for row in rows if row.before.get("labelled_by") == IMPORT), None)


def latest(rows: Sequence[Correction]) -> int:
    """The number of the last correction that says something of the image; 0 without one."""
    return max((row.id for row in rows if row.action != "skip"), default=0)


def checked(shapes: Sequence[Mapping[str, Any]], image: Image) -> list[dict[str, Any]]:
    """Polygons with their points rounded to a tenth of a pixel. Raises `BlemishError` for what is no polygon within the
    image."""
    if len(shapes) > SHAPES:
        raise BlemishError(f"There are {len(shapes)} shapes; draw at most {SHAPES}.")
    width, height = image.width or 0, image.height or 0
    found = []
    for number, shape in enumerate(shapes, start=1):
        points = shape.get("points") if isinstance(shape, Mapping) else None
        if not isinstance(points, Sequence) or not all(_is_point(point) for point in points):
            raise BlemishError(f"Shape {number} is no list of points; each shape is {{'points': [[x, y], ...]}}.")
        if not 3 <= len(points) <= POINTS:
            raise BlemishError(f"Shape {number} has {len(points)} points; a shape has 3 to {POINTS}.")
        if not all(0 <= x <= width and 0 <= y <= height for x, y in points):
            raise BlemishError(f"Shape {number} leaves the image, which is {width} x {height} pixels; move its points.")
        found.append({"points": [[round(float(x), 1), round(float(y), 1)] for x, y in points]})
    return found


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, Sequence)
        and len(point) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < LARGEST for v in point)
    )


def _image(session: Session, image_id: int) -> Image:
    image = session.get(Image, image_id)
    if image is None:
        raise MissingError(f"There is no image {image_id}.")
    if not image.ending:
        raise BlemishError(f"{image.name}: could not be read, so there is nothing to say of it.")
    return image


def _as_it_is(image: Image) -> dict[str, Any]:
    """What a correction says that leaves the label."""
    return {"label": image.label, "defect": image.defect, "shapes": image.shapes}


def _added(
    session: Session,
    image: Image,
    by: str,
    action: str,
    note: str,
    seen: Seen,
    *,
    kept: Sequence[str] = (),
    **fields: Any,
) -> Correction:
    """The row of a correction, before the image is changed."""
    if seen.correction_id is not None and action != "skip":
        rows = history(session, image.id)
        if latest(rows) != seen.correction_id:
            last = next(row for row in reversed(rows) if row.action != "skip")
            raise DecidedError(f"{image.name}: {_told(last)} meanwhile. Look once more, then decide.")
    if seen.verdict_id is not None:
        verdict = session.get(Verdict, seen.verdict_id)
        if verdict is None or verdict.image_id != image.id:
            raise BlemishError(f"Verdict {seen.verdict_id} is not of this image; give the one that was seen.")
    # `item` decides the split; it is never undone, but the log keeps what it was (`standing.py`).
    before = {column: getattr(image, column) for column in (*STATE, "verdict_id", "item")}
    if kept:
        before["kept"] = list(kept)
    row = Correction(
        image_id=image.id,
        verdict_id=seen.verdict_id,
        time=now(),
        by=by,
        action=action,
        note=plain(note).strip()[:NOTE],
        before=before,
        **{"undoes": None, **fields},
    )
    session.add(row)
    session.flush()
    ledger.append(session, row, row.time)
    return row


def _finished(session: Session, row: Correction) -> Correction:
    session.flush()
    session.refresh(row)
    return row


def _to_undo(session: Session, by: str, correction_id: int | None, product: str) -> Correction:
    undone = select(Correction.undoes).where(Correction.undoes.is_not(None))
    if correction_id is None:
        query = select(Correction).where(Correction.by == by, Correction.action != "undo", Correction.id.not_in(undone))
        if product:
            query = query.join(Image, Image.id == Correction.image_id).where(Image.product == product)
        row = session.scalar(query.order_by(Correction.id.desc()).limit(1))
        if row is None:
            raise BlemishError("There is nothing of yours to undo.")
        return row
    row = session.get(Correction, correction_id)
    if row is None:
        raise MissingError(f"There is no correction {correction_id}.")
    if row.action == "undo":
        raise BlemishError(f"Correction {correction_id} undoes another one; decide anew instead.")
    if session.scalar(select(Correction.id).where(Correction.undoes == row.id)):
        raise BlemishError(f"Correction {correction_id} has been undone already.")
    return row


def _rank(site: Site, session: Session, image: Image) -> float | None:
    verdict = session.get(Verdict, image.verdict_id) if image.verdict_id else None
    if verdict is None:
        return image.queue
    try:
        rule = site.detectors.inspector(verdict.detector_id).card.decision
    except BlemishError:  # its bundle is gone: then what it was in the queue has to do
        return image.queue
    return review.place(session, image, verdict, rule)


def _told(row: Correction) -> str:
    """A correction in words."""
    kind = f" ({row.defect})" if row.defect else ""
    words = {
        "label": f"called it {'an anomaly' if row.label == 'anomaly' else 'good'}{kind}",
        "again": "sent it back",
        "skip": "skipped it",
        "undo": "undid a correction of it",
    }
    return f"{row.by} {words[row.action]}"
