"""Bytes of an image -> a verdict that is in the database, in the log, and on the disk before anybody hears of it."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from blemish.inference import overlay
from blemish.inference.bundle import BundleError
from blemish.inference.evidence import Evidence, gather, open_store
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection, Inspector, cores
from blemish.station.trouble import passing
from blemish.types import BlemishError, readable
from blemish.web import ledger, review
from blemish.web.config import Limits
from blemish.web.database import Database
from blemish.web.detectors import Detectors
from blemish.web.metrics import Metrics
from blemish.web.store import Store, ending_of, sha256
from blemish.web.tables import Image, Verdict, now

THUMBNAIL = 320  # pixels of the longer side
KEPT = 256 * 2**20  # bytes of decoded images whose inspections are kept for the pages, and of inpainted ones
GATHERED = 8  # verdicts whose evidence is kept


class TooLargeError(BlemishError):
    """An upload is larger than the limits allow."""


class UnavailableError(BlemishError):
    """The machine cannot judge now; the same request may succeed later."""


class Line:
    """Judges images with the versions of `detectors`, so many at once."""

    def __init__(
        self, store: Store, database: Database, detectors: Detectors, limits: Limits, threads: int = 0
    ) -> None:
        self.store, self.database, self.detectors, self.limits = store, database, detectors, limits
        self.metrics = Metrics()
        self._turn = threading.BoundedSemaphore(threads or cores())
        self._evidence: OrderedDict[int, EvidenceStore | None] = OrderedDict()
        self._seen: OrderedDict[tuple[str, int], Inspection] = OrderedDict()
        self._gathered: OrderedDict[tuple[str, int], Evidence | None] = OrderedDict()
        self._lock, self._gathering = threading.Lock(), threading.Lock()

    def inspect(
        self,
        content: bytes,
        name: str,
        product: str,
        *,
        by: str,
        source: str,
        request: str | None = None,
        detector_id: int | None = None,
    ) -> Verdict:
        """The verdict of the version that judges, or of another one of the product. A `request` that was answered
        already gets the same verdict again. An image that cannot be read has a verdict too, "error".

        Raises `TooLargeError`, `UnavailableError` for trouble that passes, and `BlemishError` where the disk is full.
        """
        if request and (known := self._answered(request)):
            return known
        if len(content) > self.limits.megabytes * 1e6:
            raise TooLargeError(f"{name}: is larger than {self.limits.megabytes:g} MB; make it smaller.")
        begun = time.monotonic()
        name = readable(name).replace("\0", "")[:500] or "image"  # PostgreSQL's text has no NUL
        detector = self.detectors.version(detector_id) if detector_id else self.detectors.judging(product)
        inspector = self._inspector(detector.id)
        digest, ending = sha256(content), ending_of(content)
        place, new = self.store.put(content, digest, ending) if ending else (None, False)
        with self._turn:
            inspection = self._look(inspector, place, name)
            if place and inspection.image is not None:
                self.store.put_thumbnail(_thumbnail(inspection), digest, detector.id)
        try:
            if why := passing(inspection.cause):
                raise UnavailableError(f"{name}: cannot be judged now ({why}); try again.")
            with self.database.writing() as session:
                # Another request with this name may have come first, and the writer's turn is only now.
                known = session.scalar(select(Verdict).where(Verdict.request == request)) if request else None
                if known:
                    return known
                image = _image(session, digest, product, name, ending, inspection)
                verdict = _row(inspection, image, detector.id, name, source, by, request)
                session.add(verdict)
                session.flush()
                ledger.append(session, verdict, verdict.time)
                image.verdict_id = verdict.id
                image.queue = review.place(session, image, verdict, inspector.card.decision)
                session.refresh(verdict)
        except BaseException:
            if new and place and inspection.image is None:
                place.unlink(missing_ok=True)
            raise
        if inspection.image is not None:
            self._keep((digest, detector.id), inspection)
        elif new and place:
            place.unlink(missing_ok=True)  # it is no image: only its hash and its verdict are kept
        self.metrics.judged(product, verdict.decision, time.monotonic() - begun)
        return verdict

    def _inspector(self, detector_id: int) -> Inspector:
        try:
            return self.detectors.inspector(detector_id)
        except BundleError as cause:  # nothing of the request's doing
            raise UnavailableError(f"The detector of this product cannot be loaded now. {cause}") from None

    def _answered(self, request: str) -> Verdict | None:
        with self.database.reading() as session:
            return session.scalar(select(Verdict).where(Verdict.request == request))

    def _look(self, inspector: Inspector, place: Path | None, name: str) -> Inspection:
        if place is None:
            from blemish.images import ImageError
            from blemish.types import Verdict as Judged

            cause = ImageError(f"{name}: is not an image that can be read; save it as PNG, JPEG, TIFF, BMP or WebP.")
            return Inspection(Judged(path=name, decision="error", error=str(cause)), cause=cause)
        inspection = inspector.look(place, str(place))
        if inspection.verdict.error:
            words = inspection.verdict.error.replace(str(place), name)
            object.__setattr__(inspection.verdict, "error", words)
        return inspection

    def seen(self, verdict: Verdict) -> Inspection:
        """The inspection of a verdict, with its image and prediction: kept, or made again by the same version."""
        key = (verdict.image.sha256, verdict.detector_id)
        with self._lock:
            if key in self._seen:
                self._seen.move_to_end(key)
                return self._seen[key]
        if not verdict.image.ending:
            raise BlemishError(f"{verdict.name}: could not be read, so there is nothing to show of it.")
        inspector = self.detectors.inspector(verdict.detector_id)
        place = self.store.image(verdict.image.sha256, verdict.image.ending)
        with self._turn:
            inspection = self._look(inspector, place, verdict.name)
        if inspection.image is None:
            raise BlemishError(str(inspection.verdict.error))
        self._keep(key, inspection)
        return inspection

    def draw_thumbnail(self, verdict: Verdict) -> None:
        """Draws a verdict's thumbnail again where it was deleted."""
        self.store.put_thumbnail(_thumbnail(self.seen(verdict)), verdict.image.sha256, verdict.detector_id)

    def evidence_store(self, detector_id: int) -> EvidenceStore | None:
        """Of a version's bundle; None where it carries no images."""
        with self._lock:
            if detector_id in self._evidence:
                return self._evidence[detector_id]
        store = open_store(self.detectors.inspector(detector_id))
        with self._lock:
            self._evidence[detector_id] = store
            while len(self._evidence) > 2:
                self._evidence.popitem(last=False)
        return store

    def evidence(self, verdict: Verdict) -> Evidence | None:
        """`inference.evidence.gather` of a verdict. A page asks for it once for each of its crops, all at once."""
        key = (verdict.image.sha256, verdict.detector_id)
        with self._gathering:
            if key not in self._gathered:
                inspector, store = (
                    self.detectors.inspector(verdict.detector_id),
                    self.evidence_store(verdict.detector_id),
                )
                seen = self.seen(verdict)
                with self._turn:
                    self._gathered[key] = gather(inspector, store, seen)
            self._gathered.move_to_end(key)
            while len(self._gathered) > 1 and (
                len(self._gathered) > GATHERED or sum(map(_bytes, self._gathered.values())) > KEPT
            ):
                self._gathered.popitem(last=False)
            return self._gathered[key]

    def _keep(self, key: tuple[str, int], inspection: Inspection) -> None:
        with self._lock:
            self._seen[key] = inspection
            while (
                len(self._seen) > 1 and sum(i.image.nbytes for i in self._seen.values() if i.image is not None) > KEPT
            ):
                self._seen.popitem(last=False)
            while len(self._seen) > 8:
                self._seen.popitem(last=False)


def _image(session: Session, digest: str, product: str, name: str, ending: str, inspection: Inspection) -> Image:
    """The image's row, made where it is new."""
    image = session.scalar(select(Image).where(Image.product == product, Image.sha256 == digest))
    if image is None:
        image = Image(sha256=digest, product=product, name=name, added=now(), ending="", shapes=[], defect="")
        image.mask = image.split = image.item = image.labelled_by = ""
        session.add(image)
    if inspection.image is not None:
        image.ending, (image.height, image.width) = ending, inspection.image.shape[:2]
    session.flush()
    return image


def _row(
    inspection: Inspection, image: Image, detector_id: int, name: str, source: str, by: str, request: str | None
) -> Verdict:
    judged = inspection.verdict.to_json()
    columns = ("decision", "score", "threshold", "p_value", "probability", "defect", "error")
    return Verdict(
        image_id=image.id,
        detector_id=detector_id,
        time=now(),
        name=name,
        source=source,
        by=by,
        request=request,
        regions=[{**region, "box": list(region["box"])} for region in judged["regions"]],
        **{column: judged[column] for column in columns},
    )


def _bytes(evidence: Evidence | None) -> int:
    return evidence.counterfactual.image.nbytes if evidence and evidence.counterfactual else 0


def _thumbnail(inspection: Inspection) -> bytes:
    """The image with heat and boxes, JPEG."""
    assert inspection.image is not None
    low, high = inspection.color_range
    canvas = overlay.overlay(inspection.image, inspection.map, (), low=low, high=high, max_side=THUMBNAIL)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
