"""The page on which images are inspected, and the images of a verdict."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from PIL import Image as Pixels
from starlette.concurrency import run_in_threadpool

from blemish.inference import overlay
from blemish.web import history
from blemish.web.access import Inspecting
from blemish.web.site import MissingError, ProductOf, RowId, Site, SiteOf, fragment, page, verdict_or_404
from blemish.web.store import MEDIA
from blemish.web.streams import OneStream, still_there
from blemish.web.tables import Verdict
from blemish.web.uploads import inspected

router = APIRouter(include_in_schema=False)
RECENT = 24  # verdicts on the first page
# The browser keeps them, but asks each time (see conditional.py): numbers of rows mean something else in another data
# folder, and nothing is shown to the next one after a logout.
ASKED = {"Cache-Control": "private, no-cache"}


@router.get("/static/base.css")
def base_css() -> FileResponse:
    """The visual language of report and demo page."""
    return FileResponse(str(files("blemish.reporting") / "base.css"), media_type="text/css")


@router.get("/")
def inspect_page(request: Request, site: SiteOf, who: Inspecting, product: ProductOf) -> HTMLResponse:  # noqa: ARG001
    with site.database.reading() as session:
        recent = history.found(session, history.Filters(product), limit=RECENT)
    detector = site.detectors.judging(product) if product else None
    return page(
        request,
        "inspect.html",
        product=product,
        recent=recent,
        detector=detector,
        rule=site.detectors.inspector(detector.id).card.decision if detector else None,
        limits=site.config.limits,
        watching=site.folders.said(),
    )


@router.post("/inspect")
async def inspect_form(request: Request, site: SiteOf, who: Inspecting, product: ProductOf) -> Response:
    """Without scripts: judges the chosen images, then shows the first page."""
    await inspected(request, site, product, by=who.name, source="page")
    return RedirectResponse("/", 303)


@router.get("/events", response_class=EventSourceResponse)
async def events(
    request: Request,
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    one: OneStream,  # noqa: ARG001
    after: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happens after an entry of the log (None = from now on), as server-sent events named by the log's kinds;
    after a break the browser goes on where it was."""
    last = request.headers.get("last-event-id", "")
    async for seq, kind, ref in site.hub.listen(int(last[:9]) if last.isascii() and last.isdigit() else after):
        if not await run_in_threadpool(still_there, request):  # logged out, or removed
            return
        yield ServerSentEvent(data={"ref": ref}, event=kind, id=str(seq))


@router.get("/verdicts/{verdict_id}/card")
def card(site: SiteOf, who: Inspecting, verdict_id: RowId) -> HTMLResponse:  # noqa: ARG001
    """One verdict as it stands in a list."""
    return HTMLResponse(fragment("card.html", verdict=verdict_or_404(site, verdict_id)))


@router.get("/verdicts/{verdict_id}/image")
def image(site: SiteOf, who: Inspecting, verdict_id: RowId) -> Response:  # noqa: ARG001
    """The original, as a format that browsers show."""
    verdict = _readable(site, verdict_id)
    place = site.store.image(verdict.image.sha256, verdict.image.ending)
    if verdict.image.ending != ".tif" and place.is_file():
        return FileResponse(place, media_type=MEDIA[verdict.image.ending], headers=ASKED)
    return Response(_png(site, verdict), media_type="image/png", headers=ASKED)


@router.get("/verdicts/{verdict_id}/thumbnail.jpg")
def thumbnail(site: SiteOf, who: Inspecting, verdict_id: RowId) -> Response:  # noqa: ARG001
    verdict = _readable(site, verdict_id)
    place = site.store.thumbnail(verdict.image.sha256, verdict.detector_id)
    if not place.is_file():
        site.line.draw_thumbnail(verdict)
    return FileResponse(place, media_type="image/jpeg", headers=ASKED)


@router.get("/verdicts/{verdict_id}/overlay.jpg")
def drawn(site: SiteOf, who: Inspecting, verdict_id: RowId) -> Response:  # noqa: ARG001
    """The image with heat and boxes, as `blemish inspect` writes it."""
    verdict = _readable(site, verdict_id)
    seen = site.line.seen(verdict)
    assert seen.image is not None
    low, high = seen.color_range
    canvas = overlay.overlay(seen.image, seen.map, seen.verdict.regions, low=low, high=high)
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=90, subsampling=0)
    return Response(buffer.getvalue(), media_type="image/jpeg", headers=ASKED)


@router.get("/verdicts/{verdict_id}/heat.png")
def heat(site: SiteOf, who: Inspecting, verdict_id: RowId) -> Response:  # noqa: ARG001
    """The heat alone, transparent where the map is low, to be laid over the image."""
    seen = site.line.seen(_readable(site, verdict_id))
    assert seen.image is not None
    assert seen.map is not None
    low, high = seen.color_range
    size = overlay.fit(Pixels.fromarray(seen.image)).size
    return Response(
        overlay.png(overlay.heat_layer(seen.map, size, low=low, high=high)), media_type="image/png", headers=ASKED
    )


def _readable(site: Site, verdict_id: int) -> Verdict:
    verdict = verdict_or_404(site, verdict_id)
    if not verdict.image.ending:
        raise MissingError(f"{verdict.name}: could not be read, so there is no image to show.")
    return verdict


def _png(site: Site, verdict: Verdict) -> bytes:
    seen = site.line.seen(verdict)
    assert seen.image is not None
    return overlay.png(Pixels.fromarray(seen.image))
