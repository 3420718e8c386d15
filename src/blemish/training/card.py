"""The card of a run: its decision rule, its data, its settings and versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blemish.data.content import fingerprint, refuse_changed
from blemish.data.split import Split
from blemish.detectors.interface import Detector, DetectorConfig
from blemish.inference import bundle, calibration
from blemish.inference.framing import Framing
from blemish.options import as_json
from blemish.training.config import DecisionRule, SplitRule
from blemish.training.export import Parity
from blemish.types import Prediction, Sample, readable


def decision(
    rule: DecisionRule, good: Prediction, items: Sequence[str], kind: calibration.Kind, framing: Framing | None = None
) -> bundle.Decision:
    """How scores become verdicts, from predictions on good images that were held out, or left out one item at a time
    (`kind`); `items` names the item of each. With a frame, `normal_median` is that of the region of interest, and with
    tiles `min_area` is a share of one tile.

    Raises `BlemishError` if the images are too few for the guarantee.
    """
    if not rule.guaranteed:
        return _by_class(rule, good, framing)
    confidence = rule.confidence
    map_maxima, distances = _map_maxima(good), good.distances
    # Family-wise: at most this share of good images has any pixel above it.
    pixel_threshold = calibration.threshold(map_maxima, rule.false_alarms, items, confidence=confidence)
    normal_median = _normal_median(good, framing)
    number_of = {item: number for number, item in enumerate(dict.fromkeys(items))}
    review_threshold = None
    if rule.review:
        thresholds = calibration.thresholds(good.scores, rule.false_alarms, rule.review, items, confidence=confidence)
        review_threshold = thresholds.review
    return bundle.made(
        bundle.Decision,
        rule="guarantee",
        boxes=rule.boxes,
        false_alarms=rule.false_alarms,
        guarantee=calibration.guarantee(
            len(items), rule.false_alarms, confidence=confidence, items=len(number_of), review=rule.review, kind=kind
        ),
        confidence=confidence,
        calibrated_by=kind,
        threshold=calibration.threshold(good.scores, rule.false_alarms, items, confidence=confidence),
        review=rule.review,
        review_threshold=review_threshold,
        pixel_threshold=pixel_threshold,
        normal_median=normal_median,
        min_area=rule.min_area * (framing.frame.tile_share if framing else 1.0),
        scores=tuple(map(float, good.scores)),
        map_maxima=tuple(map(float, map_maxima)),
        distances=() if distances is None else tuple(map(float, distances.reshape(len(distances), -1).max(1))),
        items=tuple(number_of[item] for item in items) if len(number_of) < len(items) else (),
        color_range=_color_range(map_maxima, pixel_threshold + (pixel_threshold - normal_median)),
    )


def _by_class(rule: DecisionRule, good: Prediction, framing: Framing | None) -> bundle.Decision:
    """Without a guarantee: the prediction on good images only sets the pixel threshold and the color range."""
    map_maxima, normal_median = _map_maxima(good), _normal_median(good, framing)
    return bundle.made(
        bundle.Decision,
        rule="class",
        boxes=rule.boxes,
        false_alarms=None,
        guarantee=calibration.NO_GUARANTEE,
        threshold=0.0,
        pixel_threshold=float(map_maxima.max()),
        normal_median=normal_median,
        min_area=rule.min_area,
        scores=(),
        map_maxima=tuple(map(float, map_maxima)),
        color_range=_color_range(map_maxima, 2 * float(map_maxima.max()) - normal_median),
    )


def _color_range(map_maxima: npt.NDArray[np.float32], high: float) -> tuple[float, float]:
    """From the median of the maxima to `high`; a range also where all maps are constant."""
    low = float(np.median(map_maxima))
    return low, high if high - low >= bundle.LEAST_RANGE else low + 1


def _map_maxima(prediction: Prediction) -> npt.NDArray[np.float32]:
    return prediction.maps.reshape(len(prediction.maps), -1).max(1)  # type: ignore[no-any-return]


def _normal_median(prediction: Prediction, framing: Framing | None) -> float:
    if framing is None or framing.roi is None:
        return float(np.median(prediction.maps))
    return float(np.median(prediction.maps[:, framing.roi_in_map(prediction.maps.shape[1:])]))


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 of the images' names and bytes (as they were learned, of samples that are `identified`), sorted by
    name."""
    total = hashlib.sha256()
    for sample in sorted(samples, key=lambda s: s.name):
        total.update(sample.name.encode("utf-8", "surrogateescape") + b"\0" + bytes.fromhex(fingerprint(sample)))
    return total.hexdigest()


def data(folder: Path, layout: str, split: Split, rule: SplitRule, *, pooled: bool = False) -> bundle.Data:
    """The data that the detector learned from. Raises `BlemishError` where an image is not any more what it was when it
    was read: then it was learned from, or judged, in another state than the hash says."""
    refuse_changed([*split.train, *split.calibration, *split.test])
    return bundle.made(
        bundle.Data,
        source=readable(folder.resolve().name),
        layout=layout,
        train=len(split.train),
        calibration=len(split.calibration),
        test=len(split.test),
        anomalies=sum(s.label == "anomaly" for s in split.train),
        pooled=pooled,
        test_share=rule.test,
        calibration_share=rule.calibration,
        seed=rule.seed,
        sha256=digest(split.train),
    )


def card(
    detector: Detector,
    settings: DetectorConfig,
    frame: bundle.Frame | None,
    data: bundle.Data,
    decision: bundle.Decision,
    parity: Parity,
) -> bundle.Card:
    """The card of a fitted detector, without the hashes of its files."""
    origin = detector.origin
    return bundle.made(
        bundle.Card,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        product=data.source,
        detector=settings.traits.name,
        settings=as_json(settings),
        image_size=settings.image_size,
        frame=frame,
        data=data,
        decision=decision,
        parity=parity.to_json(),
        backbone=origin._asdict(),
        classes=detector.classes,
        licences={"blemish": "Apache-2.0", "backbone weights": origin.licence},
        versions=versions(),
    )


def metrics(card: bundle.Card, split: Split, parity: Parity, warnings: Sequence[str]) -> dict[str, Any]:
    """The metrics that every run has."""
    return {
        "product": card.product,
        "detector": card.detector,
        "counts": counts(split),
        "decision": card.decision.model_dump(mode="json", exclude={"scores", "map_maxima", "distances", "items"}),
        "parity": parity.to_json(),
        "data_problems": list(warnings),
    }


def counts(split: Split) -> dict[str, int]:
    """Number of images in each split, by label."""
    anomalies = sum(s.label == "anomaly" for s in split.test)
    return {
        "train": len(split.train),
        "train_anomaly": sum(s.label == "anomaly" for s in split.train),
        "calibration": sum(s.label != "anomaly" for s in split.calibration),
        "calibration_anomaly": sum(s.label == "anomaly" for s in split.calibration),
        "test_good": sum(s.label == "good" for s in split.test),
        "test_anomaly": anomalies,
        "test_masks": sum(s.mask is not None for s in split.test),
    }


def versions() -> dict[str, str]:
    """Of Python and of the libraries that training depends on."""
    names = ("blemish", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
