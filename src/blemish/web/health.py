"""Whether the server is alive, whether it can judge now and why not, and what it has counted."""

from __future__ import annotations

import logging
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from blemish.inference import bundle
from blemish.types import BlemishError
from blemish.web import ledger, review
from blemish.web.access import Inspecting
from blemish.web.database import why
from blemish.web.site import Site, SiteOf
from blemish.web.tables import Detector, Job, Product

router = APIRouter()
ROOM = 100_000_000  # bytes that must be free
LOGGED = "It cannot judge now; the server's log says why."
JOBS = ("queued", "running", "done", "failed", "cancelled")


class Health(BaseModel):
    """`ready`, or the reasons why not, a sentence for each; and the state of each watched folder."""

    ready: bool
    reasons: list[str]
    watching: list[str] = []


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is it alive?")
async def healthz() -> Health:
    """Answers as long as the process does."""
    return Health(ready=True, reasons=[])


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Can it judge?", responses={503: {"model": Health}})
def readyz(site: SiteOf, response: Response) -> Health:
    """200 where an image that is sent now is judged and recorded; 503, with the reasons, where not. Where people log in
    it is open to all, and so names no folder: the reasons are in the server's log."""
    reasons = [*_of_folder(site), *_of_database(site)]
    response.status_code = 503 if reasons else 200
    if not site.config.local:
        for reason in reasons:
            logging.getLogger("blemish").warning("/readyz: %s", reason)
        return Health(ready=not reasons, reasons=[LOGGED] if reasons else [])
    return Health(ready=not reasons, reasons=reasons, watching=site.folders.said())


@router.get("/metrics", include_in_schema=False)
def metrics(site: SiteOf, who: Inspecting) -> Response:  # noqa: ARG001
    """For Prometheus."""
    with site.database.reading() as session:
        products = session.scalars(select(Product.name)).all()
        queue = dict.fromkeys(products, 0) | review.all_waiting(session)
        counted = select(Job.state, func.count()).group_by(Job.state)
        jobs = dict.fromkeys(JOBS, 0) | {row[0]: row[1] for row in session.execute(counted)}
        head = ledger.head(session).seq
    return Response(site.line.metrics.text(queue, jobs, head), media_type=CONTENT_TYPE_LATEST)


def _of_folder(site: Site) -> list[str]:
    """What keeps the data folder from taking another image."""
    folder = site.config.data
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as cause:
        return [f"The data folder cannot be written to ({cause.strerror or cause}); mend that."]
    if free < ROOM:
        return [f"The data folder's disk has {free / 1e6:.0f} MB left, less than {ROOM / 1e6:.0f}; make room there."]
    return []


def _of_database(site: Site) -> list[str]:
    """What keeps the database from answering, and the products from being judged."""
    try:
        with site.database.reading() as session:
            judging = session.scalars(select(Detector).join(Product, Product.detector_id == Detector.id)).all()
    except DBAPIError as cause:
        return [f"The database does not answer ({why(cause)})."]
    except PoolTimeoutError:
        return ["All connections to the database are in use."]
    return [reason for detector in judging if (reason := detector_trouble(site, detector))]


def detector_trouble(site: Site, detector: Detector) -> str:
    """Why a version could not be loaded from the data folder now; "" where it could. One that is in memory judges on
    until the server ends."""
    place = site.detectors.place(detector)
    files = sorted(file for file in (place / "bundle").glob("*") if file.is_file())
    try:
        state = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError:  # it has just been removed
        state = ()
    if trouble := _verified(place, detector.sha256, state):
        return f"Version {detector.version} of '{detector.product}' cannot be loaded any more. {trouble}"
    return ""


@lru_cache(maxsize=64)
def _verified(place: Path, sha256: str, state: tuple[tuple[str, int, int], ...]) -> str:  # noqa: ARG001 - the key
    """Why there is no bundle with that card; read again only where its files have changed."""
    try:
        found = bundle.read(place).card.sha256
    except (BlemishError, OSError) as cause:
        return str(cause)
    return "" if found == sha256 else f"{place}: holds another bundle; restore it from a backup."
