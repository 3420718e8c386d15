"""What follows from the log: an image is what its standing corrections say, and the version judges that was promoted
last. Exports and trainings read these columns, so whoever changes them behind the log is told here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session, lazyload

from blemish.web.dataset import IMPORTED, is_imported, split_of
from blemish.web.tables import Correction, Detector, Image, Product, Promotion, Verdict

SAID = ("label", "defect", "shapes", "labelled_by")  # columns of an image
IMPORT = "import"  # who labelled the images that came with a bundle: no correction says so
_BATCH = 500


def stands(*undoing: ColumnElement[bool]) -> ColumnElement[bool]:
    """Of a correction: it was not undone. `undoing` says which corrections may have undone it, where that is known."""
    return Correction.id.not_in(select(Correction.undoes).where(Correction.undoes.is_not(None), *undoing))


def contradictions(session: Session) -> Iterator[str]:
    """A sentence for each image and each product that is not what corrections, promotions and verdicts say."""
    yield from _of_products(session)
    yield from _of_images(session)
    # Images that came with a label have an item with a name, and no others have.
    unsaid = select(Image.id, Image.name, Image.labelled_by).where(
        Image.label.is_not(None),
        or_(Image.labelled_by != IMPORT, ~IMPORTED),
        Image.id.not_in(select(Correction.image_id)),
    )
    for number, name, by in session.execute(unsaid.order_by(Image.id)):
        yield f"Image {number} ({name}) has a label by '{by}', which no correction in the log gave."
    moved = select(Image.id, Image.name, Image.product).join(Verdict, Verdict.image_id == Image.id)
    moved = moved.join(Detector, Detector.id == Verdict.detector_id).where(Detector.product != Image.product).distinct()
    for number, name, product in session.execute(moved.order_by(Image.id)):
        yield f"Image {number} ({name}) is of the product '{product}', but was judged as another one's."


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
    labels that stand."""
    marks = select(Correction.image_id, func.min(Correction.id)).group_by(Correction.image_id)
    after = 0
    while found := session.execute(
        marks.where(Correction.image_id > after).order_by(Correction.image_id).limit(_BATCH)
    ).all():
        numbers, firsts = zip(*found, strict=True)
        told = or_(Correction.id.in_(firsts), Correction.action == "label")
        chosen = select(Correction, stands()).where(Correction.image_id.in_(numbers), told).options(lazyload("*"))
        rows: dict[int, list[tuple[Correction, bool]]] = {}
        for row, counts in session.execute(chosen.order_by(Correction.id)):
            rows.setdefault(row.image_id, []).append((row, counts))
        for image in session.scalars(select(Image).where(Image.id.in_(numbers)).order_by(Image.id)):
            labels = [row for row, counts in rows[image.id] if counts and row.action == "label"]
            if wrong := _wrong(image, rows[image.id][0][0], labels):
                yield f"Image {image.id} ({image.name}): not what the log's corrections say: {', '.join(wrong)}."
        after = numbers[-1]
        session.expunge_all()


def _wrong(image: Image, first: Correction, labels: Sequence[Correction]) -> list[str]:
    """The columns that are not what the corrections say: how the image came, and then what each label said of it in
    turn. It may have been imported after the first correction, as long as it had no label."""
    wrong = [] if image.ending else ["ending"]  # nobody can say anything of an image that was not kept
    came = first.before
    if came.get("label") is None:
        if not labels and image.labelled_by == IMPORT:
            return wrong if is_imported(image.item) else [*wrong, "labelled_by"]
        if labels and labels[0].before.get("labelled_by") == IMPORT:
            came = labels[0].before
    said = {name: came.get(name) for name in SAID}
    for row in labels:
        told = {"label": row.label, "defect": row.defect, "shapes": row.shapes, "labelled_by": row.by}
        said |= {name: value for name, value in told.items() if name not in row.before.get("kept", ())}
    wrong += [name for name in SAID if getattr(image, name) != said[name]]
    if labels and image.item != labels[-1].before.get("item", image.item):
        wrong.append("item")  # which decides the split
    # Images that came with a bundle have the split of its run; and whatever a version has learned from may be taken
    # out of those that are held out, but never the other way.
    came_with = came.get("labelled_by") == IMPORT
    if labels and not came_with and image.split != split_of(image.sha256, image.item) != "test":
        wrong.append("split")
    return wrong
