"""The review queue: a grid for speed, a single view for care, and what a person decides there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from PIL import Image as Pixels
from pydantic import Field
from sqlalchemy.orm import Session

from blemish.images import load_mask
from blemish.inference import overlay
from blemish.reporting.thumbnails import outline
from blemish.types import BlemishError
from blemish.web import corrections, review
from blemish.web.access import Inspecting, Reviewing
from blemish.web.answers import wants_page
from blemish.web.corrections import DecidedError, Seen
from blemish.web.inspection import small_jpeg
from blemish.web.pages import ASKED
from blemish.web.review import Filters
from blemish.web.site import MissingError, ProductOf, RowId, Site, SiteOf, fragment, leads, page
from blemish.web.store import MEDIA
from blemish.web.tables import Correction, Image, Verdict
from blemish.web.verdict_words import verdict_sentence

router = APIRouter(include_in_schema=False)
Ticked = Annotated[int, Field(ge=1, le=2**31 - 1)]
Shown = Annotated[str, Field(pattern=r"^\d{1,9}:\d{1,9}:\d{1,9}$")]  # image, latest correction, verdict; 0 = none
Action = Literal["good", "anomaly", "skip", "again"]
NO_VERSION = 0  # a thumbnail's that shows no heat


def _filters(
    product: ProductOf,
    show: review.Show = "waiting",
    label: Literal["", "none", "good", "anomaly"] = "",
    verdict: Literal["", "anomaly", "review", "good"] = "",
    version: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Filters:
    return Filters(product, show, label, verdict, version)


FiltersOf = Annotated[Filters, Depends(_filters)]


@router.get("/review")
def grid(
    request: Request,
    site: SiteOf,
    who: Reviewing,
    filters: FiltersOf,
    after: Annotated[str, Query(max_length=60)] = "",
    done: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> HTMLResponse:
    """Thumbnails of what waits, the most uncertain first."""
    return _grid(request, site, who.name, filters, after=after, done=done)


def _grid(
    request: Request, site: Site, me: str, filters: Filters, *, after: str = "", done: int = 0, trouble: str = ""
) -> HTMLResponse:
    with site.database.reading() as session:
        entries = review.listed(session, filters, me, after=review.place_of(after), limit=review.PAGE + 1)
        counts = review.counts(session, filters.product, me)
        names = review.types(session, filters.product)
        last = session.get(Correction, done) if done else None
    more = len(entries) > review.PAGE
    entries = entries[: review.PAGE]
    return page(
        request,
        "review.html",
        product=filters.product,
        status=409 if trouble else 200,
        trouble=trouble,
        entries=entries,
        more=review.text_of(entries[-1].place) if more else "",
        after=after,
        counts=counts,
        shows=review.SHOWS,
        filters=filters,
        versions=site.detectors.versions(filters.product),
        types=names,
        last=last,
    )


@router.get("/review/tiles")
def tiles(
    site: SiteOf, who: Reviewing, filters: FiltersOf, after: Annotated[str, Query(max_length=60)] = ""
) -> HTMLResponse:
    """More thumbnails, for the grid."""
    with site.database.reading() as session:
        entries = review.listed(session, filters, who.name, after=review.place_of(after))
    return HTMLResponse("".join(_tile(entry, filters) for entry in entries))


@router.get("/review/waiting")
def waiting(site: SiteOf, who: Inspecting, product: ProductOf) -> JSONResponse:  # noqa: ARG001
    """How many images wait, for the header of every page."""
    with site.database.reading() as session:
        return JSONResponse({"waiting": review.waiting(session, product)})


@router.post("/review", response_model=None)
def decide_several(
    request: Request,
    site: SiteOf,
    who: Reviewing,
    filters: FiltersOf,
    action: Annotated[Action, Form()],
    images: Annotated[list[Ticked] | None, Form(max_length=1000)] = None,
    seen: Annotated[list[Shown] | None, Form(max_length=1000)] = None,
    defect: Annotated[str, Form(max_length=1000)] = "",
) -> Response:
    """Without scripts: one decision for all ticked images, or for none where somebody decided meanwhile."""
    try:
        ticked = seen_of(images or [], seen or [])
        row = corrections.several(site, ticked, who.name, action, product=filters.product, defect=defect)
    except DecidedError as cause:
        return _grid(request, site, who.name, filters, trouble=str(cause))
    return RedirectResponse(f"/review?{filters.query(done=row.id)}", 303)


def seen_of(images: list[int], seen: list[str]) -> dict[int, Seen]:
    """What was shown of each ticked image; nothing is checked of one that is not among `seen`."""
    shown = (tuple(map(int, text.split(":"))) for text in seen)
    found = {image: Seen(verdict or None, latest) for image, latest, verdict in shown}
    return {image: found.get(image, corrections.NOTHING) for image in images}


@router.post("/review/undo", response_model=None)
def undo(
    request: Request,
    site: SiteOf,
    who: Reviewing,
    filters: FiltersOf,
    correction: Annotated[int, Form(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """Takes back one's own last correction, or the given one, and shows its image."""
    try:
        row = corrections.undo(site, who.name, correction or None, product=filters.product)
    except BlemishError as cause:
        if not wants_page(request):
            raise  # a script's page stays open, and tells it
        return _grid(request, site, who.name, filters, trouble=str(cause))
    return leads(request, f"/review/{row.image_id}?{filters.query(draft=row.undoes)}")


@router.get("/review/{image_id}")
def single(
    request: Request,
    site: SiteOf,
    who: Reviewing,
    filters: FiltersOf,
    image_id: RowId,
    done: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    draft: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> HTMLResponse:
    """One image, large, with all that is known of it. `draft` is a correction that has just been undone: what it said
    is in the form again, to be sent once more."""
    return _single(request, site, who.name, filters, image_id, done=done, draft=draft)


def _single(
    request: Request,
    site: Site,
    me: str,
    filters: Filters,
    image_id: int,
    *,
    done: int = 0,
    draft: int = 0,
    trouble: str = "",
) -> HTMLResponse:
    with site.database.reading() as session:
        image = _image(session, image_id)
        filters = Filters(**(vars(filters) | {"product": image.product}))
        entry = review.entry_of(session, image, filters)
        here = entry.place
        rows = corrections.history(session, image.id)
        context: dict[str, Any] = {
            "entry": entry,
            "previous": review.before(session, filters, me, here),
            "following": review.following(session, filters, me, here, other_than=image.id),
            "size": review.count(session, filters, me),
            "list_name": review.SHOWS[filters.show],
            "types": review.types(session, image.product),
            "last": session.get(Correction, done) if done else None,
        }
    context |= _told(image, rows, filters) | {"draft": _draft(image, rows, me, draft, blind=filters.show == "second")}
    words = _sentence(site, entry.verdict) if entry.verdict else "No version has judged it yet."
    return page(
        request,
        "review_image.html",
        product=image.product,
        status=409 if trouble else 200,
        image=image,
        verdict=entry.verdict,
        words=words,
        trouble=trouble,
        **context,
    )


def _sentence(site: Site, verdict: Verdict) -> str:
    try:
        rule = site.detectors.inspector(verdict.detector_id).card.decision
    except BlemishError:  # the bundle is gone, the verdict is not
        rule = None
    return f"Version {verdict.detector.version}: {verdict_sentence(verdict, rule)}"


def _draft(image: Image, rows: Sequence[Correction], me: str, number: int, *, blind: bool) -> dict[str, Any]:
    """What stands in the form of an image: what it is, or what one's own correction of that number said, as long as
    nothing was said since it was undone. A second reader begins with nothing."""
    found: dict[str, Any] = {"defect": "", "shapes": [], "note": "", "undone": False}
    if not blind:
        found |= {"defect": image.defect, "shapes": image.shapes}
    last = next((row for row in reversed(rows) if row.action != "skip"), None)
    if number and last is not None and last.undoes == number:
        row = next(row for row in rows if row.id == number)
        if row.by == me:
            named = row.action == "label" and row.label == "anomaly"
            kept = row.before.get("kept", ()) if named else corrections.KEPT
            said = {name: getattr(row, name) for name in corrections.KEPT if name not in kept}
            found |= said | {"note": row.note, "undone": any(said.values()) or bool(row.note)}
    return found


def _told(image: Image, rows: Sequence[Correction], filters: Filters) -> dict[str, Any]:
    """What the history of an image shows. Who reads it a second time does not see what the first one said."""
    return {
        "rows": list(reversed(rows)),
        "stands": {row.id for row in corrections.standing(rows)},
        "undoable": corrections.undoable(rows),
        "brought": corrections.brought_in(image, rows),
        "latest": corrections.latest(rows),
        "blind": filters.show == "second",
        "filters": filters,
    }


@router.get("/review/{image_id}/history")
def history(site: SiteOf, who: Reviewing, filters: FiltersOf, image_id: RowId) -> HTMLResponse:
    """What people said of an image."""
    with site.database.reading() as session:
        image, rows = _image(session, image_id), corrections.history(session, image_id)
    return HTMLResponse(fragment("review_history.html", visitor=who, **_told(image, rows, filters)))


@router.get("/review/{image_id}/tile")
def tile(site: SiteOf, who: Reviewing, filters: FiltersOf, image_id: RowId) -> HTMLResponse:  # noqa: ARG001
    """One image as it stands in the grid."""
    with site.database.reading() as session:
        entry = review.entry_of(session, _image(session, image_id), filters)
    return HTMLResponse(_tile(entry, filters))


def _tile(entry: review.Entry, filters: Filters) -> str:
    return fragment("review_tile.html", entry=entry, filters=filters)


@router.post("/review/{image_id}", response_model=None)
def decide(
    request: Request,
    site: SiteOf,
    who: Reviewing,
    filters: FiltersOf,
    image_id: RowId,
    action: Annotated[Action, Form()],
    defect: Annotated[str, Form(max_length=1000)] = "",
    shapes: Annotated[str, Form(max_length=1_000_000)] = "",
    note: Annotated[str, Form(max_length=corrections.NOTE)] = "",
    seen: Annotated[int | None, Form(ge=0, le=2**31 - 1)] = None,
    verdict: Annotated[int | None, Form(ge=0, le=2**31 - 1)] = None,
) -> Response:
    """Decides about an image, then shows the next one."""
    with site.database.reading() as session:
        image = _image(session, image_id)
    filters = Filters(**(vars(filters) | {"product": image.product}))
    here = review.where_is(image, filters)
    drawn = _parsed(shapes) if shapes else None
    named: str | None = defect
    if filters.show == "second":  # who was shown no type and no shapes, and gave none, says nothing of them
        named, drawn = defect or None, drawn or None
    try:
        before = Seen(verdict or None, seen)
        row = _decide(site, image_id, who.name, action, defect=named, shapes=drawn, note=note, seen=before)
    except DecidedError as cause:
        if not wants_page(request):
            raise  # a script's page stays open, and tells it
        return _single(request, site, who.name, filters, image_id, trouble=str(cause))
    with site.database.reading() as session:
        entry = review.following(session, filters, who.name, here, other_than=image_id)
    target = f"/review/{entry.image.id}" if entry else "/review"
    return leads(request, f"{target}?{filters.query(done=row.id)}")


def _decide(
    site: Site,
    image_id: int,
    by: str,
    action: Action,
    *,
    defect: str | None,
    shapes: list[Any] | None,
    note: str,
    seen: Seen,
) -> Correction:
    if action == "skip":
        return corrections.skip(site, image_id, by, note=note, seen=seen)
    if action == "again":
        return corrections.again(site, image_id, by, note=note, seen=seen)
    if action == "good":  # what was drawn or named goes with it
        return corrections.label(site, image_id, by, "good", note=note, seen=seen)
    return corrections.label(site, image_id, by, "anomaly", defect=defect, shapes=shapes, note=note, seen=seen)


def _parsed(shapes: str) -> list[Any]:
    try:
        drawn = json.loads(shapes)
    except (ValueError, RecursionError):
        drawn = None
    if not isinstance(drawn, list):
        raise BlemishError("The shapes cannot be read; load the page again, and draw them once more.")
    return drawn


@router.get("/images/{image_id}/file")
def file(site: SiteOf, who: Inspecting, image_id: RowId) -> Response:  # noqa: ARG001
    """An image, with a verdict or without, as a format that browsers show."""
    with site.database.reading() as session:
        image = _image(session, image_id)
    place = _kept(site, image)
    if image.ending != ".tif":
        return FileResponse(place, media_type=MEDIA[image.ending], headers=ASKED)
    pixels = site.line.pixels(image)
    return Response(overlay.png(Pixels.fromarray(pixels)), media_type="image/png", headers=ASKED)


@router.get("/images/{image_id}/thumbnail.jpg")
def thumbnail(site: SiteOf, who: Inspecting, image_id: RowId) -> Response:  # noqa: ARG001
    """An image, small, without heat."""
    with site.database.reading() as session:
        image = _image(session, image_id)
    small = site.store.thumbnail(image.sha256, NO_VERSION)
    if not small.is_file():
        _kept(site, image)
        site.store.put_thumbnail(small_jpeg(site.line.pixels(image)), image.sha256, NO_VERSION)
    return FileResponse(small, media_type="image/jpeg", headers=ASKED)


@router.get("/images/{image_id}/mask.png")
def mask(site: SiteOf, who: Inspecting, image_id: RowId) -> Response:  # noqa: ARG001
    """The mask that was brought in with an image, as an outline to be laid over it."""
    with site.database.reading() as session:
        image = _image(session, image_id)
    place = site.store.image(image.mask, ".png") if image.mask else None
    if place is None or not place.is_file():
        raise MissingError(f"{image.name}: has no mask.")
    height, width = image.height or 1, image.width or 1
    drawn = outline(load_mask(place, (height, width)), overlay.fit(Pixels.new("L", (width, height))).size)
    return Response(overlay.png(drawn), media_type="image/png")


def _kept(site: Site, image: Image) -> Path:
    """The image's file. Raises `MissingError` where somebody took it away."""
    place = site.store.image(image.sha256, image.ending)
    if not place.is_file():
        raise MissingError(f"{image.name}: its file is not in the data folder any more; bring it in again.")
    return place


def _image(session: Session, image_id: int) -> Image:
    image = session.get(Image, image_id)
    if image is None:
        raise MissingError(f"There is no image {image_id}.")
    if not image.ending:
        raise MissingError(f"{image.name}: could not be read, so there is nothing to show of it.")
    return image
