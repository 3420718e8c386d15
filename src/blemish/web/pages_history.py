"""All verdicts: found by what is known of them, counted, followed over time, and exported."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from blemish.inference.bundle import Decision
from blemish.types import BlemishError
from blemish.web import history
from blemish.web.access import Inspecting
from blemish.web.export import REFUSED, as_csv, as_jsonl, as_zip, shape
from blemish.web.history import Filters, FiltersOf
from blemish.web.site import Site, SiteOf, page
from blemish.web.tables import Detector, now
from blemish.web.times import minute
from blemish.web.trend import bars, trend

router = APIRouter(include_in_schema=False)
PAGE = 60  # verdicts of a page
SHOWN = 500  # of the trend
NEVER = {"Cache-Control": "no-store"}


@router.get("/history")
def history_page(
    request: Request,
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    filters: FiltersOf,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> HTMLResponse:
    """A page of verdicts; the first one also has counts, trend and drift."""
    product = filters.product
    with site.database.reading() as session:
        rows = history.found(session, filters, before=before, limit=PAGE + 1)
        counted = history.counts(session, filters)
        overview = before is None and bool(rows)
        dots = history.latest(session, filters, SHOWN) if overview else []
        hours = history.per_hour(session, filters) if overview else []
        sources = history.sources(session, product)
        # Images without a label are in no folder: where they are looked at, it is one of all others.
        of_folder = replace(filters, label="") if filters.label == "none" else filters
        folder = shape(session, of_folder) if rows else "no label"
    versions = site.detectors.versions(product)
    detector = _followed_version(site, filters, versions) if product else None
    rule, gone = _rule(site, detector)
    return page(
        request,
        "history.html",
        product=product,
        rows=rows[:PAGE],
        older=rows[PAGE - 1].id if len(rows) > PAGE else None,
        before=before,
        filters=filters,
        counted=counted,
        total=sum(counted.values()),
        trend=trend(dots, rule.threshold if rule else None, rule.false_alarms if rule else None),
        first_dot=dots[0] if dots else None,
        bars=bars(hours),
        hours=hours,
        detector=detector,
        drift=site.drifts.follow(site.database, detector.id, rule) if overview and detector and rule else None,
        gone=gone,
        versions=versions,
        sources=sources,
        folder=folder,
        of_folder=of_folder,
        no_folder=REFUSED.get(folder, ""),
        field=_field,
        zone=minute(now()).rpartition(" ")[2],
    )


def _field(time: str, end: str) -> str:
    """A time that was asked for as a field of the form shows it."""
    return f"{time}T{end}" if len(time) == 10 else time[:16].replace(" ", "T")


def _followed_version(site: Site, filters: Filters, versions: Any) -> Detector | None:
    """The version that is asked for, else the one that judges."""
    if filters.version is not None:
        return next((one for one in versions if one.version == filters.version), None)
    return site.detectors.judging(filters.product)


def _rule(site: Site, detector: Detector | None) -> tuple[Decision | None, str]:
    """How a version decides, or why that is not known."""
    try:
        return (site.detectors.inspector(detector.id).card.decision if detector else None), ""
    except BlemishError as cause:
        return None, str(cause)


@router.get("/history/export.csv")
def csv_file(site: SiteOf, who: Inspecting, filters: FiltersOf) -> Response:  # noqa: ARG001
    """For table programs."""
    return StreamingResponse(as_csv(site.database, filters), 200, _named("csv"), "text/csv; charset=utf-8")


@router.get("/history/export.jsonl")
def jsonl_file(site: SiteOf, who: Inspecting, filters: FiltersOf) -> Response:  # noqa: ARG001
    """For programs."""
    return StreamingResponse(as_jsonl(site.database, filters), 200, _named("jsonl"), "application/jsonl")


@router.get("/history/export.zip")
def zip_file(site: SiteOf, who: Inspecting, filters: FiltersOf) -> Response:  # noqa: ARG001
    """The labelled images, as a folder."""
    return StreamingResponse(as_zip(site.store, site.database, filters), 200, _named("zip"), "application/zip")


def _named(ending: str) -> dict[str, str]:
    return NEVER | {"Content-Disposition": f'attachment; filename="verdicts.{ending}"'}
