"""/api/v1: the versions of detectors, their thresholds, and the trainings, for programs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from blemish.inference import bundle
from blemish.web import learning, thresholds
from blemish.web.access import Administering, Inspecting
from blemish.web.answers import ErrorAnswer
from blemish.web.learning import LEAST_RATE, Rates
from blemish.web.site import ProductOf, RowId, Site, SiteOf
from blemish.web.tables import Detector, Job
from blemish.web.texts import plain

router = APIRouter(prefix="/api/v1", responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}})
MOST = 200  # rows of an answer
_DETECTOR: dict[str, Any] = {
    "id": 2,
    "product": "flange",
    "version": 2,
    "kind": "learned",
    "parent_id": 1,
    "job_id": 1,
    "sha256": "833c575d12e39c9b6639daf71025a297e2bc4362f6f0107c99a16fd532b774e7",
    "created": "2026-11-30T13:44:29.123+00:00",
    "by": "ada",
    "note": "",
    "judges": True,
    "metrics": {"detection": {"auroc": {"value": 0.981, "low": 0.962, "high": 0.995}}},
    "links": {"page": "/detectors/2", "report": "/detectors/2/report.html"},
}
_JOB: dict[str, Any] = {
    "id": 1,
    "product": "flange",
    "state": "running",
    "by": "ada",
    "created": "2026-11-30T13:44:29.123+00:00",
    "started": "2026-11-30T13:44:31.020+00:00",
    "ended": None,
    "stage": "features",
    "done": 40,
    "total": 120,
    "error": "",
    "before_id": 1,
    "detector_id": None,
    "comparison": {},
    "links": {"page": "/jobs/1"},
}


class DetectorAnswer(BaseModel):
    """A version of a product's detector. `kind`: "imported", "learned", or "threshold" (other rates of `parent_id`).
    `metrics` is its run's metrics.json, {} where it came without a run."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DETECTOR]})
    id: int
    product: str
    version: int
    kind: str
    parent_id: int | None
    job_id: int | None
    sha256: str
    created: str
    by: str
    note: str
    judges: bool
    metrics: dict[str, Any]
    links: dict[str, str]


class JobAnswer(BaseModel):
    """A training. `state`: "queued", "running", "done", "failed" (`error` says why) or "cancelled". `comparison` is of
    the version that judged (first) and the new one on the images that are held out: tested on those that came with
    their labels, and counted apart, in `corrected`, on those that people labelled."""

    model_config = ConfigDict(json_schema_extra={"examples": [_JOB]})
    id: int
    product: str
    state: str
    by: str
    created: str
    started: str | None
    ended: str | None
    stage: str
    done: int
    total: int
    error: str
    before_id: int | None
    detector_id: int | None
    comparison: dict[str, Any]
    links: dict[str, str]


class RatesRequest(BaseModel):
    """Shares of good parts: those that may be flagged, and those that may be flagged or put aside for review."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"false_alarms": 0.05, "review": 0.1}]})
    false_alarms: float = Field(ge=LEAST_RATE, lt=1)
    review: float | None = Field(None, ge=LEAST_RATE, lt=1)


class LearnRequest(RatesRequest):
    """What to learn. Without a detector, the one that the labelled images call for: hybrid where there are enough
    defects to learn from, else patchcore."""

    detector: Literal["", "patchcore", "hybrid"] = ""


class ThresholdRequest(RatesRequest):
    """The rates of the new version."""

    note: str = Field("", max_length=1000)


def as_detector(site: Site, detector: Detector) -> DetectorAnswer:
    """A row as it is answered."""
    product = next((row for row in site.detectors.products() if row.name == detector.product), None)
    own = {name: getattr(detector, name) for name in DetectorAnswer.model_fields if name not in ("judges", "links")}
    here = f"/detectors/{detector.id}"
    links = {"page": here}
    if (site.detectors.place(detector) / "report.html").is_file():
        links["report"] = f"{here}/report.html"
    return DetectorAnswer(**own, judges=product is not None and product.detector_id == detector.id, links=links)


def as_job(job: Job) -> JobAnswer:
    """A row as it is answered."""
    own = {name: getattr(job, name) for name in JobAnswer.model_fields if name != "links"}
    return JobAnswer(**own, links={"page": f"/jobs/{job.id}"})


@router.get("/detectors", summary="The versions of a product's detector")
def detectors(
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    product: ProductOf,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> list[DetectorAnswer]:
    """The newest first; `before` is the number of the last one that is known."""
    chosen = select(Detector).where(Detector.product == product).order_by(Detector.id.desc()).limit(limit)
    with site.database.reading() as session:
        rows = session.scalars(chosen.where(Detector.id < before) if before is not None else chosen).all()
    return [as_detector(site, row) for row in rows]


@router.get("/detectors/{detector_id}", summary="One version")
def detector(site: SiteOf, who: Inspecting, detector_id: RowId) -> DetectorAnswer:  # noqa: ARG001
    """A version by its number."""
    return as_detector(site, site.detectors.version(detector_id))


@router.post("/detectors/{detector_id}/promote", summary="Let a version judge")
def promote(site: SiteOf, who: Administering, detector_id: RowId) -> DetectorAnswer:
    """Makes it the version that judges; also how a promotion is rolled back."""
    site.detectors.version(detector_id)
    return as_detector(site, site.detectors.promote(detector_id, who.name))


@router.get("/detectors/{detector_id}/threshold", summary="What a threshold would do")
def threshold(site: SiteOf, who: Inspecting, detector_id: RowId) -> dict[str, Any]:  # noqa: ARG001
    """The thresholds that can be chosen with the rates that they guarantee (`steps`), and the scores of calibration
    images and of labelled images that the version did not learn from."""
    version = site.detectors.version(detector_id)
    rule = bundle.read(site.detectors.place(version) / "bundle").card.decision
    return thresholds.as_json(rule, thresholds.scored(site.database, site.detectors, version))


@router.post("/detectors/{detector_id}/threshold", summary="Save other rates as a new version", status_code=201)
def save(site: SiteOf, who: Administering, detector_id: RowId, asked: ThresholdRequest) -> DetectorAnswer:
    """A new version of the same graph; nothing is scored again, and it does not judge until it is promoted."""
    version = site.detectors.version(detector_id)
    new = thresholds.save(
        site.detectors, version, asked.false_alarms, asked.review, by=who.name, note=plain(asked.note).strip()
    )
    return as_detector(site, new)


@router.get("/jobs", summary="The trainings of a product")
def jobs(
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    product: ProductOf,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> list[JobAnswer]:
    """The newest first; `before` is the number of the last one that is known."""
    rows = learning.jobs_of(site.config.folder, site.database, product, limit, before)
    return [as_job(row) for row in rows]


@router.post("/jobs", summary="Learn again", status_code=202)
def learn(site: SiteOf, who: Administering, product: ProductOf, asked: LearnRequest | None = None) -> JobAnswer:
    """Begins a training of the product from its labelled images, in a process of its own; there is one at a time.
    Without rates those of the version that judges are kept."""
    rates, detector = (Rates(asked.false_alarms, asked.review), asked.detector) if asked else (None, "")
    return as_job(learning.start(site.config, site.database, site.detectors, product, who.name, rates, detector))


@router.get("/jobs/{job_id}", summary="One training")
def job(site: SiteOf, who: Inspecting, job_id: RowId) -> JobAnswer:  # noqa: ARG001
    """How far it is, or how it ended."""
    return as_job(learning.job_of(site.config.folder, site.database, job_id))


@router.post("/jobs/{job_id}/cancel", summary="Cancel a training")
def cancel(site: SiteOf, who: Administering, job_id: RowId) -> JobAnswer:  # noqa: ARG001
    """Ends it as soon as its process has heard of it; nothing stays of it but its log."""
    return as_job(learning.cancel(site.config.folder, site.database, job_id))
