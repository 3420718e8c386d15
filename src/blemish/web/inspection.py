"""Bytes of an image -> a verdict that is in the database, in the log, and on the disk before anybody hears of it."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from blemish.images import ImageError, load_image, read_size
from blemish.inference import overlay
from blemish.inference.bundle import BundleError, Decision
from blemish.inference.evidence import Evidence, gather, open_store
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection, Inspector, cores
from blemish.inference.resizing import size_of
from blemish.station.trouble import passing
from blemish.types import BlemishError, readable
from blemish.types import Verdict as Judged
from blemish.web import ledger, review
from blemish.web.config import Limits
from blemish.web.database import Database
from blemish.web.dataset import item_of
from blemish.web.detectors import Detectors
from blemish.web.metrics import Metrics
from blemish.web.store import Store, ending_of, sha256
from blemish.web.tables import Image, Verdict, now

THUMBNAIL = 320  # pixels of the longer side
KEPT = 256 * 2**20  # bytes of decoded images whose inspections are kept for the pages, and of inpainted ones
GATHERED = 8  # verdicts whose evidence is kept
ASKING = 20  # requests that may wait for evidence; other pages need threads, too


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
        self._asking = threading.BoundedSemaphore(ASKING)

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
        if len(content) > self.limits.megabytes * 1e6:
            raise TooLargeError(f"{name}: is larger than {self.limits.megabytes:g} MB; make it smaller.")
        digest, ending = sha256(content), ending_of(content)
        if request:
            with self.database.reading() as session:
                if known := _answered(session, request, digest, product):
                    return known
        begun = time.monotonic()
        name = readable(name).replace("\0", "")[:500] or "image"  # PostgreSQL's text has no NUL
        detector = self.detectors.version(detector_id) if detector_id else self.detectors.judging(product)
        inspector = self._inspector(detector.id)
        place, new = self.store.put(content, digest, ending) if ending else (None, False)
        with self._turn:
            inspection = self._look(inspector, place, name)
            if why := passing(inspection.cause):
                raise UnavailableError(f"{name}: cannot be judged now ({why}).")
            size = _size(inspection, place)
            if place and inspection.image is not None:
                self.store.put_thumbnail(thumbnail(inspection), digest, detector.id)
        with self.database.writing() as session:
            # Another request with this name may have come first, and the writer's turn is only now.
            if request and (known := _answered(session, request, digest, product)):
                return known
            image = _image(session, digest, product, name, ending, size, inspection)
            verdict = _row(inspection, image, detector.id, name, source, by, request)
            session.add(verdict)
            session.flush()
            ledger.append(session, verdict, verdict.time)
            image.verdict_id = verdict.id
            image.queue = _queue(session, image, verdict, inspector.card.decision)
            session.refresh(verdict)
        if inspection.image is not None:
            self._keep((digest, detector.id), inspection)
        elif place and new and not image.ending:
            # No image under these limits: its hash and its verdict are kept. One that was kept before stays, whatever
            # the limits are now.
            place.unlink(missing_ok=True)
        self.metrics.judged(product, verdict.decision, time.monotonic() - begun)
        return verdict

    def _inspector(self, detector_id: int) -> Inspector:
        try:
            return self.detectors.inspector(detector_id)
        except BundleError as cause:  # nothing of the request's doing
            raise UnavailableError(f"The detector of this product cannot be loaded now. {cause}") from None

    def _look(self, inspector: Inspector, place: Path | None, name: str) -> Inspection:
        if place is None:
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
        """Draws a verdict's thumbnail again where it was deleted; without heat where it could not be judged."""
        unjudged = verdict.decision == "error"
        drawn = small_jpeg(self.pixels(verdict.image)) if unjudged else thumbnail(self.seen(verdict))
        self.store.put_thumbnail(drawn, verdict.image.sha256, verdict.detector_id)

    def pixels(self, image: Image) -> npt.NDArray[np.uint8]:
        """An image that is kept, decoded when it is its turn: not all at once for all who ask. Raises `ImageError`."""
        with self._turn:
            return load_image(self.store.image(image.sha256, image.ending), max_pixels=self.limits.pixels)

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
        """`inference.evidence.gather` of a verdict. A page asks for it once for each of its crops, all at once. Raises
        `UnavailableError` where so many ask that the others would have to wait."""
        key = (verdict.image.sha256, verdict.detector_id)
        if not self._asking.acquire(blocking=False):
            raise UnavailableError("Too many people look at evidence now; try again in a moment.")
        try:
            return self._gather(verdict, key)
        finally:
            self._asking.release()

    def _gather(self, verdict: Verdict, key: tuple[str, int]) -> Evidence | None:
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


def _answered(session: Session, request: str, digest: str, product: str) -> Verdict | None:
    """The verdict of a request that came before. Raises `BlemishError` where that was about another image."""
    known = session.scalar(select(Verdict).where(Verdict.request == request))
    if known and (known.image.sha256, known.image.product) != (digest, product):
        raise BlemishError("This Idempotency-Key was used for another image; give each image one of its own.")
    return known


def _size(inspection: Inspection, place: Path | None) -> tuple[int, int] | None:
    """Width and height of an image, also of one that could be read but not judged; None for what is no image."""
    if inspection.image is not None:
        return size_of(inspection.image)
    if place is None or isinstance(inspection.cause, ImageError):
        return None
    return read_size(place)


def _queue(session: Session, image: Image, verdict: Verdict, rule: Decision) -> float | None:
    """The image's place in the review queue. One that could not be judged keeps its place, or gets the first: somebody
    must look at it."""
    if verdict.decision != "error":
        return review.place(session, image, verdict, rule)
    return 0.0 if image.queue is None and image.ending and not image.label else image.queue


def _image(
    session: Session,
    digest: str,
    product: str,
    name: str,
    ending: str,
    size: tuple[int, int] | None,
    inspection: Inspection,
) -> Image:
    """The image's row, made where it is new."""
    image = session.scalar(select(Image).where(Image.product == product, Image.sha256 == digest))
    if image is None:
        image = Image(sha256=digest, product=product, name=name, added=now(), ending="", shapes=[], defect="")
        image.mask = image.split = image.labelled_by = ""
        # The same pixels in another file are the same item, and stay on its side of the split.
        image.item = "" if inspection.image is None else item_of(inspection.image)
        session.add(image)
    if size:
        image.ending, (image.width, image.height) = ending, size
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


def thumbnail(inspection: Inspection) -> bytes:
    """The inspected image with its heat, JPEG."""
    assert inspection.image is not None
    return small_jpeg(inspection.image, inspection.map, inspection.color_range)


def small_jpeg(
    pixels: npt.NDArray[np.uint8],
    anomaly_map: npt.NDArray[np.float32] | None = None,
    color_range: tuple[float, float] = (0.0, 1.0),
) -> bytes:
    """An image, with heat where there is a map, in the size of a thumbnail."""
    low, high = color_range
    canvas = overlay.overlay(pixels, anomaly_map, (), low=low, high=high, max_side=THUMBNAIL)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
