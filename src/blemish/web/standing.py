"""What follows from the log: an image is what its standing corrections say, and the version judges that was promoted
last. Exports and trainings read these columns, so whoever changes them behind the log is told here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.orm import Session, lazyload

from blemish.web.dataset import PIXELS, split_of
from blemish.web.tables import Correction, Image, Product, Promotion

SAID = ("label", "defect", "shapes", "labelled_by")  # columns of an image
IMPORT = "import"  # who labelled the images that came with a bundle: no correction says so
_BATCH = 500


def stands(*undoing: ColumnElement[bool]) -> ColumnElement[bool]:
    """Of a correction: it was not undone. `undoing` says which corrections may have undone it, where that is known."""
    return Correction.id.not_in(select(Correction.undoes).where(Correction.undoes.is_not(None), *undoing))


def contradictions(session: Session) -> Iterator[str]:
    """A sentence for each image and each product that is not what corrections and promotions say."""
    yield from _of_products(session)
    yield from _of_images(session)
    unsaid = select(Image.id, Image.name, Image.labelled_by).where(
        Image.label.is_not(None), Image.labelled_by != IMPORT, Image.id.not_in(select(Correction.image_id))
    )
    for number, name, by in session.execute(unsaid.order_by(Image.id)):
        yield f"Image {number} ({name}) has a label by '{by}', which no correction in the log gave."


def _of_products(session: Session) -> Iterator[str]:
    last = select(func.max(Promotion.id)).group_by(Promotion.product)
    promoted = dict(
        session.execute(select(Promotion.product, Promotion.detector_id).where(Promotion.id.in_(last))).all()
    )
    for name, judging in session.execute(select(Product.name, Product.detector_id).order_by(Product.name)):
        if judging != promoted.get(name):
            yield f"Product '{name}': the version that judges is not the one that the log says was promoted last."


def _of_images(session: Session) -> Iterator[str]:
    """A few hundred corrected images at a time: the first correction of each, whose `before` says how it came, and the
    last label that stands."""
    label = case((and_(Correction.action == "label", stands()), Correction.id))
    marks = select(Correction.image_id, func.min(Correction.id), func.max(label)).group_by(Correction.image_id)
    after = 0
    while found := session.execute(
        marks.where(Correction.image_id > after).order_by(Correction.image_id).limit(_BATCH)
    ).all():
        numbers = {number for _, *both in found for number in both if number}
        chosen = select(Correction).where(Correction.id.in_(numbers)).options(lazyload("*"))
        rows = {row.id: row for row in session.scalars(chosen)}
        images = {
            image.id: image for image in session.scalars(select(Image).where(Image.id.in_([row[0] for row in found])))
        }
        for number, first, last in found:
            if number in images and (wrong := _wrong(images[number], rows[first], rows.get(last))):
                yield f"Image {number} ({images[number].name}): not what the log's corrections say: {', '.join(wrong)}."
        after = found[-1][0]
        session.expunge_all()


def _wrong(image: Image, first: Correction, last: Correction | None) -> list[str]:
    """The columns that are not what the corrections say. Without a label that stands the image is what it was before
    the first one, but that it may have been imported since."""
    if last is None and first.before.get("label") is None and image.labelled_by == IMPORT:
        return []
    said: dict[str, Any] = first.before if last is None else {**_columns(last), "labelled_by": last.by}
    wrong = [name for name in SAID if getattr(image, name) != said.get(name)]
    # Images that came with a bundle have the split of its run; and whatever a version has learned from may be taken
    # out of those that are held out, but never the other way.
    came_with = image.item and not image.item.startswith(PIXELS)
    if last is not None and not came_with and image.split != split_of(image.sha256, image.item) != "test":
        wrong.append("split")
    return wrong


def _columns(row: Correction) -> dict[str, Any]:
    return {"label": row.label, "defect": row.defect, "shapes": row.shapes}
