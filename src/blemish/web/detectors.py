"""The versions of each product's detector: brought in, judged by, promoted, rolled back. Bundles are copied into the
data folder, so that the one that was given may be moved, replaced or deleted while this one serves."""

from __future__ import annotations

import json
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from blemish.files import staged
from blemish.inference import bundle
from blemish.inference.inspector import Inspector
from blemish.types import BlemishError
from blemish.web import ledger
from blemish.web.config import Folder, Limits
from blemish.web.database import Database
from blemish.web.tables import Detector, Product, Promotion, now

LOADED = 4  # inspectors that are kept in memory
RUN_FILES = ("metrics.json", "verdicts.jsonl", "report.html", "faithfulness.json")


class NoDetectorError(BlemishError):
    """There is no version that judges this product."""


class Detectors:
    """The versions in a database, and their bundles in a data folder."""

    def __init__(self, folder: Folder, database: Database, limits: Limits) -> None:
        self.folder, self.database, self.limits = folder, database, limits
        self._loaded: OrderedDict[int, Inspector] = OrderedDict()
        self._lock = threading.Lock()

    def place(self, detector: Detector) -> Path:
        """The folder of a version: `bundle/`, and of a run metrics.json, verdicts.jsonl and report.html."""
        return self.folder.detectors / detector.sha256

    def bring(
        self, path: Path, *, by: str, kind: str = "imported", product: str = "", note: str = "", **more: int | None
    ) -> Detector:
        """A bundle, or a run with its bundle, as a product's next version; the version that it is already, where it is
        one. A product's first version judges at once. Raises `BundleError` for what is no bundle."""
        loaded = bundle.read(path)
        name = product or loaded.card.product
        with self.database.reading() as session:
            known = session.scalar(select(Detector).where(Detector.sha256 == loaded.card.sha256))
        if known and (self.place(known) / "bundle").is_dir():
            return known
        metrics = self._copy(loaded, path)
        if known:
            return known
        with self.database.writing() as session:
            if not session.get(Product, name):
                session.add(Product(name=name, detector_id=None))
                session.flush()
            last = session.scalar(select(func.max(Detector.version)).where(Detector.product == name))
            detector = Detector(
                sha256=loaded.card.sha256,
                product=name,
                version=(last or 0) + 1,
                kind=kind,
                created=now(),
                by=by,
                note=note,
                metrics=metrics,
                **more,
            )
            session.add(detector)
            session.flush()
            ledger.append(session, detector, detector.created)
            if last is None:
                _promote(session, detector, by)
        return detector

    def _copy(self, loaded: bundle.Bundle, path: Path) -> dict[str, Any]:
        """Copies a bundle and what its run says of it; returns the run's metrics."""
        target = self.folder.detectors / loaded.card.sha256
        self.folder.detectors.mkdir(parents=True, exist_ok=True)
        run = next((f for f in (path, path.parent) if path.is_dir() and (f / "metrics.json").is_file()), None)
        metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8")) if run else {}
        with staged(target, "detector", overwrite=True) as folder:
            (folder / "bundle").mkdir(parents=True)
            contents = {bundle.MODEL: loaded.model, bundle.EVIDENCE: loaded.evidence}
            contents |= {bundle.ROI: loaded.roi, bundle.REFERENCE: loaded.reference}
            for name, content in contents.items():
                if content is not None:
                    (folder / "bundle" / name).write_bytes(content)
            bundle.write(folder / "bundle", loaded.card)
            for name in RUN_FILES if run else ():
                if run and (run / name).is_file():
                    shutil.copyfile(run / name, folder / name)
        return metrics

    def inspector(self, detector_id: int) -> Inspector:
        """Of a version; one thread for each image, so that several images are judged at once. Raises `BundleError`
        where its bundle is damaged or gone."""
        with self._lock:
            if detector_id in self._loaded:
                self._loaded.move_to_end(detector_id)
                return self._loaded[detector_id]
        detector = self.version(detector_id)
        limits = self.limits
        inspector = Inspector(self.place(detector), threads=1, max_pixels=limits.pixels, timeout=limits.timeout)
        with self._lock:
            self._loaded[detector_id] = inspector
            while len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
        return inspector

    def version(self, detector_id: int) -> Detector:
        with self.database.reading() as session:
            detector = session.get(Detector, detector_id)
        if detector is None:
            raise NoDetectorError(f"There is no detector {detector_id}; choose one of the list of detectors.")
        return detector

    def judging(self, product: str) -> Detector:
        """The version that judges a product."""
        with self.database.reading() as session:
            row = session.get(Product, product)
            detector = session.get(Detector, row.detector_id) if row and row.detector_id else None
        if detector is None:
            raise NoDetectorError(f"'{product}' has no detector; start blemish serve with a bundle of it.")
        return detector

    def products(self) -> Sequence[Product]:
        with self.database.reading() as session:
            return session.scalars(select(Product).order_by(Product.name)).all()

    def versions(self, product: str) -> Sequence[Detector]:
        """The newest first."""
        with self.database.reading() as session:
            return session.scalars(
                select(Detector).where(Detector.product == product).order_by(Detector.version.desc())
            ).all()

    def promote(self, detector_id: int, by: str) -> Detector:
        """Makes a version the one that judges; also how a promotion is rolled back. Raises `BlemishError` where its
        bundle cannot be loaded."""
        self.inspector(detector_id)
        with self.database.writing() as session:
            detector = session.get_one(Detector, detector_id)
            _promote(session, detector, by)
        return detector

    def promotions(self, product: str) -> Sequence[Promotion]:
        """The newest first."""
        with self.database.reading() as session:
            return session.scalars(
                select(Promotion).where(Promotion.product == product).order_by(Promotion.id.desc())
            ).all()


def _promote(session: Session, detector: Detector, by: str) -> None:
    product = session.get_one(Product, detector.product)
    if product.detector_id == detector.id:
        return
    promotion = Promotion(
        product=product.name, detector_id=detector.id, before_id=product.detector_id, by=by, time=now()
    )
    product.detector_id = detector.id
    session.add(promotion)
    session.flush()
    ledger.append(session, promotion, promotion.time)
