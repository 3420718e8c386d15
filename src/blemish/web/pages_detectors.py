"""The versions of a detector, the threshold as a slider, learning again, and the comparison that follows it."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.responses import JSONResponse as Json
from sqlalchemy import select

from blemish.data.audit import TOO_GOOD
from blemish.inference import bundle
from blemish.reporting.figures import NAMED, REPORT
from blemish.types import BlemishError
from blemish.web import learning, thresholds
from blemish.web.access import Administering, Inspecting
from blemish.web.comparison import DRAWN, earlier
from blemish.web.headers import POLICY
from blemish.web.histogram import histogram
from blemish.web.learning import ALIVE, LEAST_RATE, Rates
from blemish.web.pages import ASKED
from blemish.web.site import MissingError, ProductOf, RowId, Site, SiteOf, leads, page
from blemish.web.tables import Detector, Image, Job, Verdict
from blemish.web.texts import plain
from blemish.web.times import minute

router = APIRouter(include_in_schema=False)
SHOWN = tuple(NAMED[name] for name in ("auroc", "miss_rate", "false_alarm_rate", "pixel_auroc"))
COMPARED = tuple(NAMED[name] for name in ("auroc", "recall", "false_alarm_rate"))
# A report is a file that came with a run, and is shown in a frame of a page of ours. Of scripts only blemish's own runs
# in it, for the filters. It sends nothing, does not act as one of our pages, and cannot lead the browser elsewhere:
# the frame's `sandbox` keeps it from the page around it, whose policy lets the frame show nothing but reports.
REPORT_PAGE_POLICY = f"{POLICY}; frame-src 'self'"
REPORT_SCRIPT = "\n" + (files("blemish.reporting") / "report.js").read_text(encoding="utf-8").removesuffix("\n")
REPORT_POLICY = (
    "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; frame-ancestors 'self'; "
    f"script-src 'sha256-{b64encode(sha256(REPORT_SCRIPT.encode()).digest()).decode()}'; "
    "sandbox allow-scripts; form-action 'none'; base-uri 'none'"
)
KINDS = {"imported": "brought in", "learned": "learned again", "threshold": "another threshold"}
FLATTERING = 3  # remarks that stand beside the figures, which they say are too good; the others are with all others
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
    choice = learning.choice(site.database, product, rule.false_alarms or 0.05) if counts.good else None
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
        choice=choice,
        nothing=learning.nothing_from(choice.detector, counts.new, counts.new_good) if choice else "",
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
        counted=thresholds.counted(site.detectors, detector),
        admin=who.may("admin"),
    )


@router.get("/detectors/{detector_id}/report")
def report_page(request: Request, site: SiteOf, who: Inspecting, detector_id: RowId) -> HTMLResponse:  # noqa: ARG001
    """The report that training wrote of the version's run."""
    detector = site.detectors.version(detector_id)
    _report(site, detector)
    response = page(request, "report.html", product=detector.product, detector=detector)
    response.headers["Content-Security-Policy"] = REPORT_PAGE_POLICY
    return response


@router.get("/detectors/{detector_id}/report.html")
def report(request: Request, site: SiteOf, who: Inspecting, detector_id: RowId) -> Response:  # noqa: ARG001
    """The file itself, for the frame and for programs; a browser that opens it in a tab is sent to the page."""
    file = _report(site, site.detectors.version(detector_id))
    if request.headers.get("sec-fetch-dest") == "document":
        return RedirectResponse(f"/detectors/{detector_id}/report", 303)
    return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/detectors/{detector_id}/images/{digest}.jpg")
def drawn(site: SiteOf, who: Inspecting, detector_id: RowId, digest: str) -> Response:  # noqa: ARG001
    """A held-out image with a version's heat, as the comparison drew it; drawn again where that was deleted."""
    detector = site.detectors.version(detector_id)
    with site.database.reading() as session:
        image = session.scalar(select(Image).where(Image.product == detector.product, Image.sha256 == digest))
    if image is None:
        raise MissingError("There is no such image.")
    place = site.store.thumbnail(image.sha256, detector.id)
    if not place.is_file():
        site.line.draw_thumbnail(Verdict(image=image, detector_id=detector.id, name=image.name, decision="good"))
    return FileResponse(place, media_type="image/jpeg", headers=ASKED)


@router.post("/detectors/{detector_id}/promote")
def promote(site: SiteOf, who: Administering, detector_id: RowId) -> Response:
    detector = site.detectors.version(detector_id)
    site.detectors.promote(detector_id, who.name)
    return RedirectResponse(f"/detectors?product={quote(detector.product)}", 303)


@router.post("/detectors/{detector_id}/threshold")
def save_threshold(
    request: Request,
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
    return leads(request, f"/detectors/{new.id}")


@router.get("/jobs/{job_id}")
def job_page(request: Request, site: SiteOf, who: Inspecting, job_id: RowId) -> HTMLResponse:
    job = learning.job_of(site.config.folder, site.database, job_id)
    before, new = (_version(site, number) for number in (job.before_id, job.detector_id))
    judging = site.detectors.judging(job.product)
    remarks = _remarks(job)
    flattering = [remark for remark in remarks if TOO_GOOD in remark["sentence"]][:FLATTERING]
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
        words=_words(site, job, before, new),
        flattering=flattering,
        remarks=[remark for remark in remarks if remark not in flattering],
        drawn={str(entry["sha256"]) for entry in job.comparison.get("changed", [])[:DRAWN]},
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


def _report(site: Site, detector: Detector) -> Path:
    file = site.detectors.place(detector) / "report.html"
    if not file.is_file():
        raise MissingError("This version has no report: it came as a bundle alone, or is another threshold of one.")
    return file


def _card(site: Site, detector: Detector) -> bundle.Card:
    return site.detectors.inspector(detector.id).card


def _version(site: Site, number: int | None) -> Detector | None:
    return site.detectors.version(number) if number else None


def _words(site: Site, job: Job, before: Detector | None, new: Detector | None) -> list[str]:
    """What the figures of a comparison are worth, what is not known about the version that judged, and where nothing
    could be learned."""
    words = list(job.comparison.get("words", []))
    if job.comparison.get("runs"):
        words.append(earlier(site.database, job))
    if before and job.comparison.get("changed") is not None:
        words.append(thresholds.unknown(site.detectors, before))
    if new and "new_good" in job.settings:
        detector = str(new.metrics.get("detector", ""))
        words.append(learning.nothing_from(detector, job.settings["new"], job.settings["new_good"]))
    return [sentence for sentence in words if sentence]


def _remarks(job: Job) -> list[dict[str, Any]]:
    """On the labelled images, as `job.remark` makes them; an older training kept the sentences alone."""
    kept = job.comparison.get("audit", [])
    return [{"sentence": one, "images": []} if isinstance(one, str) else one for one in kept]


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
