"""One verdict's page: the image with heat, boxes and mask, what the verdict rests on, and why a place was flagged or
not."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from PIL import Image as Pixels
from sqlalchemy import select

from blemish.images import load_mask
from blemish.inference import overlay
from blemish.inference.evidence import NO_EVIDENCE
from blemish.inference.regions import foot
from blemish.reporting.run import OUTCOMES, outcome_of
from blemish.reporting.thumbnails import outline
from blemish.types import BlemishError
from blemish.web.access import Inspecting
from blemish.web.drift import may_have_learned
from blemish.web.evidence import Kind, piece_of, pieces, why_at
from blemish.web.history import Filters, FiltersOf, matching
from blemish.web.imports import learned_from
from blemish.web.pages import ASKED
from blemish.web.site import MissingError, RowId, Site, SiteOf, fragment, page, verdict_or_404
from blemish.web.tables import Image, Log, Verdict
from blemish.web.thresholds import family
from blemish.web.verdict_words import agreement, distance, verdict_sentence

router = APIRouter(include_in_schema=False)
SCALE = (256, 12)  # pixels of the picture of the color scale
Place = Annotated[int, Query(ge=0, le=10**6)]


@router.get("/verdicts/{verdict_id}")
def verdict_page(
    request: Request,
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    filters: FiltersOf,
    verdict_id: RowId,
    evidence: bool = False,
) -> HTMLResponse:
    """The page; `evidence` has its evidence at once, for browsers without scripts. `filters`: those of the history that
    led here, which the neighbours match."""
    verdict = verdict_or_404(site, verdict_id)
    product = verdict.image.product
    rule, gone = None, ""
    try:
        rule = site.detectors.inspector(verdict.detector_id).card.decision
    except BlemishError as cause:
        gone = str(cause)
    outcome = outcome_of(verdict.decision, verdict.image.label)
    return page(
        request,
        "verdict.html",
        product=product,
        verdict=verdict,
        image=verdict.image,
        rule=rule,
        gone=gone,
        sentence=verdict_sentence(verdict, rule),
        outcome=outcome,
        outcome_words=OUTCOMES[outcome],
        agreement=agreement(verdict),
        known=_known(site, verdict),
        edge=foot(verdict.regions[0]["peak"], rule.pixel_threshold, rule.normal_median)
        if rule and verdict.regions and rule.boxes != "one"
        else None,
        evidence=_evidence(site, verdict) if evidence and not gone and verdict.regions else None,
        # Without its bundle a TIFF cannot be turned into what browsers show.
        has_image=bool(verdict.image.ending) and not (gone and verdict.image.ending == ".tif"),
        has_heat=verdict.decision != "error" and not gone,
        **_around(site, verdict, replace(filters, product=product)),
    )


def _known(site: Site, verdict: Verdict) -> str:
    """A sentence where the version had seen the image before, so that its p-value means nothing; "" elsewhere."""
    if verdict.decision == "error":
        return ""
    own, _ = family(site.detectors, verdict.detector)
    learned = learned_from(site.detectors, own)
    if learned is None:
        has = "may have learned" if may_have_learned(site.database, verdict.image, own.created) else ""
    else:
        has = "has learned" if verdict.image.sha256 in learned else ""
    if not has:
        return ""
    return (
        f"Version {verdict.detector.version} {has} from this image, or set its threshold with it: its score and its "
        "p-value do not tell how a new image like it is judged."
    )


def _around(site: Site, verdict: Verdict, filters: Filters) -> dict[str, Any]:
    """What else the database knows: neighbours among those that match, the log's entry, other verdicts, the version
    that judges now."""
    mine = matching(select(Verdict.id), filters)
    with site.database.reading() as session:
        judging = site.detectors.judging(verdict.image.product)
        return {
            "asked": f"?{filters.query()}" if filters.active else "",
            "newer": session.scalar(mine.where(Verdict.id > verdict.id).order_by(Verdict.id).limit(1)),
            "older": session.scalar(mine.where(Verdict.id < verdict.id).order_by(Verdict.id.desc()).limit(1)),
            "entry": session.scalar(select(Log).where(Log.kind == "verdict", Log.ref == verdict.id)),
            "others": session.scalars(
                select(Verdict)
                .where(Verdict.image_id == verdict.image_id, Verdict.id != verdict.id)
                .order_by(Verdict.id.desc())
                .limit(24)
            ).all(),
            "judging": None if judging.id == verdict.detector_id else judging,
            "has_mask": bool(_mask_file(site, verdict.image)),
        }


@router.get("/verdicts/{verdict_id}/evidence")
def evidence_part(site: SiteOf, who: Inspecting, verdict_id: RowId) -> HTMLResponse:  # noqa: ARG001
    """The evidence of each region, as a part of the page."""
    verdict = verdict_or_404(site, verdict_id)
    return HTMLResponse(fragment("evidence.html", verdict=verdict, evidence=_evidence(site, verdict)))


def _evidence(site: Site, verdict: Verdict) -> dict[str, Any]:
    """For the template; `trouble` says why there is none."""
    try:
        found, seen = site.line.evidence(verdict), site.line.seen(verdict)
        rule = site.detectors.inspector(verdict.detector_id).card.decision
        has_store = site.line.evidence_store(verdict.detector_id) is not None
    except BlemishError as cause:
        return {"pieces": (), "sentence": "", "trouble": str(cause), "compares": False, "distances": ()}
    compares = seen.neighbours is not None
    trouble = NO_EVIDENCE if compares and not has_store else ""
    cut = pieces(seen, found)
    return {
        "pieces": cut,
        "distances": ["" if p.distance is None else distance(p.distance, p.p_value, rule) for p in cut],
        "sentence": found.sentence() if found else "",
        "trouble": trouble,
        "compares": compares,
    }


@router.get("/verdicts/{verdict_id}/regions/{number}/{kind}.jpg")
def piece(site: SiteOf, who: Inspecting, verdict_id: RowId, number: int, kind: Kind) -> Response:  # noqa: ARG001
    """A region's crop, its nearest normal crop, or it inpainted."""
    pixels = piece_of(site, verdict_or_404(site, verdict_id), number).of(kind)
    if pixels is None:
        raise MissingError(f"Region {number} of verdict {verdict_id} has no such picture.")
    return _jpeg(pixels)


@router.get("/verdicts/{verdict_id}/why/{kind}.jpg")
def why_picture(
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    verdict_id: RowId,
    kind: Kind,
    x: Place,
    y: Place,
) -> Response:
    """The crop around a place, or the nearest normal one."""
    nearest = why_at(site, verdict_or_404(site, verdict_id), x, y).nearest
    pixels = None if nearest is None or kind == "inpainted" else nearest.crop if kind == "crop" else nearest.normal
    if pixels is None:
        raise MissingError(f"Verdict {verdict_id} has no such picture of the place {x}, {y}.")
    return _jpeg(pixels)


@router.get("/verdicts/{verdict_id}/mask.png")
def mask(site: SiteOf, who: Inspecting, verdict_id: RowId) -> Response:  # noqa: ARG001
    """The outline of the imported mask, transparent elsewhere."""
    verdict = verdict_or_404(site, verdict_id)
    file, image = _mask_file(site, verdict.image), verdict.image
    if file is None or image.width is None or image.height is None:
        raise MissingError(f"{verdict.name}: has no mask.")
    size = overlay.fit(Pixels.new("1", (image.width, image.height))).size
    drawn = outline(load_mask(file, (image.height, image.width)), size)
    return Response(overlay.png(drawn), media_type="image/png", headers={"Cache-Control": "private, no-cache"})


@router.get("/heat-scale.png")
def scale(who: Inspecting) -> Response:  # noqa: ARG001
    """The color scale of every heat, from transparent to brightest."""
    return Response(_scale(), media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})


@router.post("/verdicts/{verdict_id}/again")
def again(site: SiteOf, who: Inspecting, verdict_id: RowId) -> Response:
    """Has the image judged by the version that judges now."""
    verdict = verdict_or_404(site, verdict_id)
    if not verdict.image.ending:
        raise MissingError(f"{verdict.name}: could not be read and was not kept; inspect the file again.")
    place = site.store.image(verdict.image.sha256, verdict.image.ending)
    if not place.is_file():
        raise MissingError(f"{verdict.name}: its file is gone from the data folder; restore a backup.")
    new = site.line.inspect(place.read_bytes(), verdict.name, verdict.image.product, by=who.name, source="again")
    return RedirectResponse(f"/verdicts/{new.id}", 303)


def _mask_file(site: Site, image: Image) -> Path | None:
    """The mask that came with an image; what a person drew takes its place."""
    file = site.store.image(image.mask, ".png") if image.mask and not image.shapes else None
    return file if file and file.is_file() else None


def _jpeg(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Response:
    buffer = io.BytesIO()
    Pixels.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
    return Response(buffer.getvalue(), media_type="image/jpeg", headers=ASKED)


@lru_cache(maxsize=1)
def _scale() -> bytes:
    return overlay.png(overlay.heat_layer(np.linspace(0, 1, SCALE[0], dtype=np.float32)[None], SCALE, low=0, high=1))
