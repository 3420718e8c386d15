"""The versions of a detector, the threshold as a slider, learning again, and the comparison that follows it."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.responses import JSONResponse as Json

from blemish.inference import bundle
from blemish.reporting.figures import NAMED, REPORT
from blemish.types import BlemishError
from blemish.web import learning, thresholds
from blemish.web.access import Administering, Inspecting
from blemish.web.histogram import histogram
from blemish.web.learning import ALIVE, LEAST_RATE, Rates
from blemish.web.pages import ASKED
from blemish.web.site import MissingError, ProductOf, RowId, Site, SiteOf, page
from blemish.web.tables import Detector, Job
from blemish.web.texts import plain
from blemish.web.times import minute

router = APIRouter(include_in_schema=False)
SHOWN = tuple(NAMED[name] for name in ("auroc", "miss_rate", "false_alarm_rate", "pixel_auroc"))
COMPARED = tuple(NAMED[name] for name in ("auroc", "recall", "false_alarm_rate"))
# A report is a file that came with a run: of scripts only blemish's own runs in it, for the filters, and it sends
# nothing, nor acts as one of our pages.
REPORT_SCRIPT = "\n" + (files("blemish.reporting") / "report.js").read_text(encoding="utf-8").removesuffix("\n")
REPORT_POLICY = (
    "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'; "
    f"script-src 'sha256-{b64encode(sha256(REPORT_SCRIPT.encode()).digest()).decode()}'; "
    "sandbox allow-scripts; form-action 'none'; base-uri 'none'"
)
KINDS = {"imported": "brought in", "learned": "learned again", "threshold": "another threshold"}
Percent = Annotated[str, Form(max_length=20)]


@router.get("/detectors")
def versions_page(request: Request, site: SiteOf, who: Inspecting, product: ProductOf) -> HTMLResponse:
    if not product:
        return page(request, "detectors.html", product=product)
    judging = site.detectors.judging(product)
    versions = site.detectors.versions(product)
    promotions = site.detectors.promotions(product)
    jobs = learning.jobs_of(site.config.folder, site.database, "", 1)
    rule = _card(site, judging).decision
    counts = learning.counts(site.database, product)
    return page(
        request,
        "detectors.html",
        product=product,
        judging=judging,
        versions=versions,
        number_of={version.id: version.version for version in versions},
        promotions=promotions[:20],
        earlier=next((p.before_id for p in promotions if p.detector_id == judging.id and p.before_id), None),
        reports={version.id for version in versions if (site.detectors.place(version) / "report.html").is_file()},
        rule=rule,
        summary=thresholds.summary(rule),
        figures=SHOWN,
        kinds=KINDS,
        counts=counts,
        choice=learning.choice(site.database, product, rule.false_alarms or 0.05) if counts.good else None,
        job=next((job for job in jobs if job.state in ALIVE), None),
        jobs=learning.jobs_of(site.config.folder, site.database, product, 5),
        admin=who.may("admin"),
    )


@router.post("/detectors/learn")
def learn(
    site: SiteOf,
    who: Administering,
    product: ProductOf,
    false_alarms: Percent = "",
    review: Percent = "",
    detector: Annotated[Literal["", "patchcore", "hybrid"], Form()] = "",
) -> Response:
    share = _share(false_alarms, "rate of false alarms")
    rates = Rates(share, _share(review, "review rate")) if share is not None else None
    job = learning.start(site.config, site.database, site.detectors, product, who.name, rates, detector)
    return RedirectResponse(f"/jobs/{job.id}", 303)


@router.get("/detectors/{detector_id}")
def version_page(request: Request, site: SiteOf, who: Inspecting, detector_id: RowId) -> HTMLResponse:
    detector = site.detectors.version(detector_id)
    card = _card(site, detector)
    images = thresholds.scored(site.database, site.detectors, detector)
    data = thresholds.as_json(card.decision, images)
    every = site.detectors.versions(detector.product)
    return page(
        request,
        "detector.html",
        product=detector.product,
        detector=detector,
        card=card,
        rule=card.decision,
        kind=KINDS[detector.kind],
        parent=next((version for version in every if version.id == detector.parent_id), None),
        judges=site.detectors.judging(detector.product).id == detector.id,
        report=(site.detectors.place(detector) / "report.html").is_file(),
        figures=REPORT,
        data=data,
        drawn=histogram(data) if data["steps"] else None,
        without=thresholds.CLASS,
        unknown=thresholds.unknown(site.detectors, detector),
        admin=who.may("admin"),
    )


@router.get("/detectors/{detector_id}/report")
def report(site: SiteOf, who: Inspecting, detector_id: RowId) -> Response:  # noqa: ARG001
    """The report that training wrote of the version's run."""
    file = site.detectors.place(site.detectors.version(detector_id)) / "report.html"
    if not file.is_file():
        raise MissingError("This version has no report: it came as a bundle alone, or is another threshold of one.")
    return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/detectors/{detector_id}/images/{digest}.jpg")
def drawn(site: SiteOf, who: Inspecting, detector_id: RowId, digest: str) -> Response:  # noqa: ARG001
    """A held-out image with a version's heat, as the comparison drew it."""
    place: Path | None = site.store.thumbnail(digest, detector_id) if re.fullmatch("[0-9a-f]{64}", digest) else None
    if place is None or not place.is_file():
        raise MissingError("There is no such image.")
    return FileResponse(place, media_type="image/jpeg", headers=ASKED)


@router.post("/detectors/{detector_id}/promote")
def promote(site: SiteOf, who: Administering, detector_id: RowId) -> Response:
    detector = site.detectors.version(detector_id)
    site.detectors.promote(detector_id, who.name)
    return RedirectResponse(f"/detectors?product={quote(detector.product)}", 303)


@router.post("/detectors/{detector_id}/threshold")
def save_threshold(
    site: SiteOf,
    who: Administering,
    detector_id: RowId,
    false_alarms: Percent,
    review: Percent = "",
    note: Annotated[str, Form(max_length=1000)] = "",
) -> Response:
    rate = _share(false_alarms, "rate of false alarms")
    if rate is None:
        raise BlemishError("A threshold takes a rate of false alarms; give one in percent.")
    detector = site.detectors.version(detector_id)
    aside = _share(review, "review rate")
    new = thresholds.save(site.detectors, detector, rate, aside, by=who.name, note=plain(note).strip())
    return RedirectResponse(f"/detectors/{new.id}", 303)


@router.get("/jobs/{job_id}")
def job_page(request: Request, site: SiteOf, who: Inspecting, job_id: RowId) -> HTMLResponse:
    job = learning.job_of(site.config.folder, site.database, job_id)
    before, new = (_version(site, number) for number in (job.before_id, job.detector_id))
    judging = site.detectors.judging(job.product)
    return page(
        request,
        "job.html",
        product=job.product,
        path="/detectors",
        job=job,
        alive=job.state in ALIVE,
        log=learning.log_of(site.config.folder, job_id),
        elsewhere=learning.elsewhere(site.config.folder, site.database, job),
        heard=minute(learning.heard(job)),
        silent=learning.silent(job),
        before=before,
        new=new,
        judging=judging,
        figures=COMPARED,
        compared=job.comparison if job.comparison.get("runs") else None,
        corrected=job.comparison.get("corrected"),
        words=_words(site, job, before),
        drawn=_drawn(site, job),
        admin=who.may("admin"),
    )


@router.get("/jobs/{job_id}/progress")
def progress(site: SiteOf, who: Inspecting, job_id: RowId) -> Json:  # noqa: ARG001
    """What the page asks for each second."""
    job = learning.job_of(site.config.folder, site.database, job_id)
    told = {name: getattr(job, name) for name in ("state", "stage", "done", "total")}
    return Json(told | {"alive": job.state in ALIVE, "log": learning.log_of(site.config.folder, job_id)})


@router.post("/jobs/{job_id}/cancel")
def cancel(site: SiteOf, who: Administering, job_id: RowId) -> Response:  # noqa: ARG001
    learning.cancel(site.config.folder, site.database, job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


def _card(site: Site, detector: Detector) -> bundle.Card:
    return site.detectors.inspector(detector.id).card


def _version(site: Site, number: int | None) -> Detector | None:
    return site.detectors.version(number) if number else None


def _words(site: Site, job: Job, before: Detector | None) -> list[str]:
    """What the figures of a comparison are worth, and what is not known about the version that judged."""
    unknown = thresholds.unknown(site.detectors, before) if before and job.comparison.get("changed") is not None else ""
    return [*job.comparison.get("words", []), *([unknown] if unknown else [])]


def _drawn(site: Site, job: Job) -> set[str]:
    """Hashes of the changed images that both versions' thumbnails are there of."""
    pair = [number for number in (job.before_id, job.detector_id) if number]
    hashes = [str(entry["sha256"]) for entry in job.comparison.get("changed", [])]
    return {digest for digest in hashes if all(site.store.thumbnail(digest, number).is_file() for number in pair)}


def _share(text: str, what: str) -> float | None:
    """Percent, as a form has it -> a share; None where nothing was written."""
    text = text.strip().removesuffix("%").strip().replace(",", ".")
    if not text:
        return None
    try:
        share = float(text) / 100
    except ValueError:
        share = -1.0
    if not LEAST_RATE <= share < 1:
        raise BlemishError(f"'{text}' is no {what}; write it in percent, such as 5.")
    return share
