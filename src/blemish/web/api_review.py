"""/api/v1: corrections, the review queue, and how far reviewers agree."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from blemish.types import BlemishError
from blemish.web import agreement, corrections, review
from blemish.web.access import Reviewing
from blemish.web.answers import ErrorAnswer
from blemish.web.corrections import NOTE, TYPE, Seen
from blemish.web.site import MissingError, ProductOf, RowId, SiteOf
from blemish.web.tables import Correction, Image

router = APIRouter(prefix="/api/v1", responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}})
Number = Annotated[int, Query(ge=0, le=2**31 - 1)]
_SHAPES: Any = [{"points": [[210.0, 96.0], [258.0, 96.0], [240.5, 141.0]]}]
_CORRECTION: dict[str, Any] = {
    "id": 5,
    "image_id": 12,
    "image": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "name": "flange-0042.png",
    "product": "flange",
    "verdict_id": 17,
    "time": "2026-11-30T13:44:29.123+00:00",
    "by": "anna",
    "action": "label",
    "label": "anomaly",
    "defect": "scratch",
    "shapes": _SHAPES,
    "note": "",
    "undoes": None,
    "kept": [],
}


class CorrectionAnswer(BaseModel):
    """What a person said of an image. `undoes` is the number of the correction that an "undo" took back. `kept` names
    what a label said nothing of, so that the image kept what it had: "defect", "shapes"."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CORRECTION]})
    id: int
    image_id: int
    image: str
    name: str
    product: str
    verdict_id: int | None
    time: str
    by: str
    action: str
    label: str | None
    defect: str
    shapes: list[dict[str, Any]]
    note: str
    undoes: int | None
    kept: list[str]


class Shape(BaseModel):
    """A polygon around a defect, in pixels of the original image."""

    points: list[tuple[float, float]] = Field(min_length=3, max_length=corrections.POINTS)


class CorrectionRequest(BaseModel):
    """What to say of an image. `seen_verdict` and `seen_correction` are the latest that the person had seen (0 = there
    was no correction): where somebody decided since, the answer is 409 and nothing is recorded. Without `defect` or
    `shapes` an anomaly keeps those that it has; "" and [] remove them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"action": "label", "label": "anomaly", "defect": "scratch", "shapes": _SHAPES}]
        }
    )
    action: Literal["label", "again", "skip"] = "label"
    label: Literal["good", "anomaly"] | None = None
    defect: str | None = Field(default=None, max_length=TYPE)
    shapes: list[Shape] | None = Field(default=None, max_length=corrections.SHAPES)
    note: str = Field(default="", max_length=NOTE)
    seen_verdict: int | None = Field(default=None, ge=1, le=2**31 - 1)
    seen_correction: int | None = Field(default=None, ge=0, le=2**31 - 1)


class QueuedImage(BaseModel):
    """An image of the review queue. `reason` says why a person should look; `rank` is None where nobody need."""

    id: int
    image: str
    name: str
    rank: float | None
    reason: str
    label: str | None
    defect: str
    shapes: list[dict[str, Any]]
    labelled_by: str
    split: str
    verdict: int | None
    decision: str | None
    p_value: float | None
    links: dict[str, str]


class QueueAnswer(BaseModel):
    """A page of the queue. `next` is to be given as `after` for the next page; None on the last one."""

    waiting: int
    counts: dict[str, int]
    images: list[QueuedImage]
    next: str | None


class AgreementAnswer(BaseModel):
    """Cohen's kappa of two reviewers over the `n` images that both labelled, by the first label of each, with its 95 %
    interval; `differ` are the numbers of the images to which they gave different labels, `open` of those that have two
    still, by the last label of each."""

    first: str
    second: str
    n: int
    agreed: int
    kappa: dict[str, float | None]
    differ: list[int]
    open: list[int]


def as_answer(row: Correction) -> CorrectionAnswer:
    """A row as it is answered."""
    own = ("id", "image_id", "verdict_id", "time", "by", "action", "label", "defect", "shapes", "note", "undoes")
    fields = {name: getattr(row, name) for name in own} | {"kept": row.before.get("kept", [])}
    return CorrectionAnswer(**fields, image=row.image.sha256, name=row.image.name, product=row.image.product)


@router.get("/corrections", summary="Corrections, the newest first")
def listed(
    site: SiteOf,
    who: Reviewing,  # noqa: ARG001
    product: ProductOf,
    image_id: Number = 0,
    before: Annotated[Number, Query(description="Only those with a smaller number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[CorrectionAnswer]:
    """What people said of a product's images, or of one image."""
    query = select(Correction).join(Image, Image.id == Correction.image_id).where(Image.product == product)
    if image_id:
        query = query.where(Correction.image_id == image_id)
    if before:
        query = query.where(Correction.id < before)
    with site.database.reading() as session:
        return [as_answer(row) for row in session.scalars(query.order_by(Correction.id.desc()).limit(limit))]


@router.get("/corrections/{correction_id}", summary="One correction")
def one(site: SiteOf, who: Reviewing, correction_id: RowId) -> CorrectionAnswer:  # noqa: ARG001
    """A correction by its number."""
    with site.database.reading() as session:
        row = session.get(Correction, correction_id)
    if row is None:
        raise MissingError(f"There is no correction {correction_id}.")
    return as_answer(row)


@router.post("/images/{image_id}/corrections", summary="Correct an image")
def correct(site: SiteOf, who: Reviewing, image_id: RowId, asked: CorrectionRequest) -> CorrectionAnswer:
    """Labels an image, sends it back for another look, or skips it. The answer comes when it is recorded."""
    seen = Seen(asked.seen_verdict, asked.seen_correction)
    if asked.action == "again":
        return as_answer(corrections.again(site, image_id, who.name, note=asked.note, seen=seen))
    if asked.action == "skip":
        return as_answer(corrections.skip(site, image_id, who.name, note=asked.note, seen=seen))
    if asked.label is None:
        raise BlemishError('To label an image, give `label`: "good" or "anomaly".')
    shapes = None if asked.shapes is None else [shape.model_dump() for shape in asked.shapes]
    row = corrections.label(
        site, image_id, who.name, asked.label, defect=asked.defect, shapes=shapes, note=asked.note, seen=seen
    )
    return as_answer(row)


@router.post("/corrections/{correction_id}/undo", summary="Undo a correction")
def undo(site: SiteOf, who: Reviewing, correction_id: RowId) -> CorrectionAnswer:
    """Takes back the latest correction of an image: a new correction, of action "undo"."""
    return as_answer(corrections.undo(site, who.name, correction_id))


@router.get("/review", summary="The review queue")
def queue(
    site: SiteOf,
    who: Reviewing,
    product: ProductOf,
    show: review.Show = "waiting",
    label: Literal["", "none", "good", "anomaly"] = "",
    verdict: Literal["", "anomaly", "review", "good"] = "",
    version: Annotated[Number, Query(description="Of the detector, its id; 0 = any.")] = 0,
    after: Annotated[str, Query(max_length=60, description="`next` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> QueueAnswer:
    """The images that a person should look at, the most uncertain first."""
    filters = review.Filters(product, show, label, verdict, version)
    with site.database.reading() as session:
        entries = review.listed(session, filters, who.name, after=review.place_of(after), limit=limit + 1)
        counts = review.counts(session, product, who.name)
    more = len(entries) > limit
    images = [_queued(entry) for entry in entries[:limit]]
    following = review.text_of(entries[limit - 1].place) if more else None
    return QueueAnswer(waiting=counts["waiting"], counts=counts, images=images, next=following)


def _queued(entry: review.Entry) -> QueuedImage:
    image, verdict = entry.image, entry.verdict
    links = {"page": f"/review/{image.id}", "image": f"/images/{image.id}/file"}
    if verdict:
        links["verdict"] = f"/api/v1/verdicts/{verdict.id}"
    return QueuedImage(
        id=image.id,
        image=image.sha256,
        rank=image.queue,
        reason=entry.reason,
        verdict=verdict.id if verdict else None,
        decision=verdict.decision if verdict else None,
        p_value=verdict.p_value if verdict else None,
        links=links,
        **{name: getattr(image, name) for name in ("name", "label", "defect", "shapes", "labelled_by", "split")},
    )


@router.get("/agreement", summary="How far reviewers agree")
def agree(site: SiteOf, who: Reviewing, product: ProductOf) -> list[AgreementAnswer]:  # noqa: ARG001
    """Of each two reviewers, over the images that both labelled."""
    with site.database.reading() as session:
        pairs = agreement.agreements(session, product)
    return [
        AgreementAnswer(
            first=pair.first,
            second=pair.second,
            n=pair.n,
            agreed=pair.agreed,
            kappa=asdict(pair.kappa),
            differ=list(pair.images),
            open=list(pair.open),
        )
        for pair in pairs
    ]
