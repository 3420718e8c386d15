"""How far reviewers agree, and the images on which they do not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import select

from blemish.web import agreement, corrections, review
from blemish.web.access import Reviewing
from blemish.web.pages_review import Shown, Ticked, seen_of
from blemish.web.site import ProductOf, SiteOf, page
from blemish.web.tables import Image

router = APIRouter(include_in_schema=False)
MOST = 60  # images that are shown of two reviewers


@router.get("/review/agreement")
def show(request: Request, site: SiteOf, who: Reviewing, product: ProductOf) -> HTMLResponse:  # noqa: ARG001
    with site.database.reading() as session:
        pairs = agreement.agreements(session, product)
        given = agreement.labels(session, product)
        numbers = {number for pair in pairs for number in pair.open[:MOST]}
        images = {i.id: i for i in session.scalars(select(Image).where(Image.id.in_(numbers)))}
        latest = {number: corrections.latest(corrections.history(session, number)) for number in numbers}
    shown = [(pair, asdict(pair.kappa), [images[number] for number in pair.open[:MOST]]) for pair in pairs]
    people = {name: len(labels) for name, labels in sorted(given.items())}
    return page(
        request,
        "agreement.html",
        product=product,
        pairs=shown,
        given=given,
        latest=latest,
        people=people,
        second=review.Filters(product, "second").query(),
        back=review.SENT_BACK,
    )


@router.post("/review/agreement")
def send_back(
    site: SiteOf,
    who: Reviewing,
    product: ProductOf,
    images: Annotated[list[Ticked], Form(max_length=1000)],
    seen: Annotated[list[Shown] | None, Form(max_length=1000)] = None,
    note: Annotated[str, Form(max_length=corrections.NOTE)] = "",
) -> RedirectResponse:
    """Sends images back for another look, all of them or, where somebody decided about one meanwhile, none."""
    corrections.several(site, seen_of(images, seen or []), who.name, "again", product=product, note=note)
    return RedirectResponse(f"/review?{review.Filters(product, 'back').query()}", 303)
