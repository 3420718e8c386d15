"""What the card of a run says: how it decides, what it learned from and with."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from blemish.data.split import Split
from blemish.inference import bundle, calibration
from blemish.inference.framing import Framing
from blemish.types import Prediction

if TYPE_CHECKING:
    from blemish.training.pipeline import TrainConfig


def decision(
    config: TrainConfig,
    held_out: Prediction,
    groups: Sequence[str],
    how: calibration.Kind,
    framing: Framing | None = None,
) -> bundle.Decision:
    """How scores become verdicts, by what was said of good images that had no part in it; `groups` names their items.
    With a frame, `normal_median` is that of the region of interest, and with tiles the least area is a share of one of
    them.

    Raises `BlemishError` where they cannot guarantee what was asked.
    """
    if config.decide == "class":
        return _by_class(config, held_out, framing)
    rate, review, sure = config.false_alarms, config.review, config.confidence
    distances = held_out.distances
    map_maxima, farthest = (
        _map_maxima(held_out),
        [] if distances is None else distances.reshape(len(distances), -1).max(1),
    )
    # Family-wise: at most this share of good images has a single pixel above it.
    pixel_threshold = calibration.threshold(map_maxima, rate, groups, confidence=sure)
    normal_median = _normal_median(held_out, framing)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    items = tuple(numbers[group] for group in groups) if len(numbers) < len(groups) else ()
    return bundle.Decision(
        rule="guarantee",
        boxes=config.boxes,
        false_alarms=rate,
        guarantee=calibration.guarantee(
            len(groups), rate, confidence=sure, items=len(numbers), review=review, kind=how
        ),
        confidence=sure,
        calibrated_by=how,
        threshold=calibration.threshold(held_out.scores, rate, groups, confidence=sure),
        review=review,
        review_threshold=calibration.thresholds(held_out.scores, rate, review, groups, confidence=sure).review
        if review
        else None,
        pixel_threshold=pixel_threshold,
        normal_median=normal_median,
        min_area=config.min_area * _of_a_tile(framing),
        scores=tuple(map(float, held_out.scores)),
        map_maxima=tuple(map(float, map_maxima)),
        distances=tuple(map(float, farthest)),
        items=items,
        color_range=(float(np.median(map_maxima)), pixel_threshold + (pixel_threshold - normal_median)),
    )


def _by_class(config: TrainConfig, held_out: Prediction, framing: Framing | None) -> bundle.Decision:
    """Without a guarantee: `held_out` only says how high maps of good images are."""
    map_maxima, normal_median = _map_maxima(held_out), _normal_median(held_out, framing)
    return bundle.Decision(
        rule="class",
        boxes=config.boxes,
        false_alarms=None,
        guarantee=calibration.NO_GUARANTEE,
        threshold=0.0,
        pixel_threshold=float(map_maxima.max()),
        normal_median=normal_median,
        min_area=config.min_area,
        scores=(),
        map_maxima=tuple(map(float, map_maxima)),
        color_range=(float(np.median(map_maxima)), 2 * float(map_maxima.max()) - normal_median),
    )


def _map_maxima(found: Prediction) -> npt.NDArray[np.float32]:
    return found.maps.reshape(len(found.maps), -1).max(1)  # type: ignore[no-any-return]


def _normal_median(found: Prediction, framing: Framing | None) -> float:
    if framing is None or framing.roi is None:
        return float(np.median(found.maps))
    return float(np.median(found.maps[:, framing.roi_in_map(found.maps.shape[1:])]))


def _of_a_tile(framing: Framing | None) -> float:
    """What share of the frame a tile is; 1 where there are none."""
    if framing is None or framing.frame.tile is None:
        return 1.0
    tile, size = framing.frame.tile, framing.frame.size
    return tile[0] * tile[1] / (size[0] * size[1])


def data(config: TrainConfig, layout: str, parts: Split) -> bundle.Data:
    """What was learned from."""
    digest = hashlib.sha256()
    for sample in sorted(parts.train, key=lambda s: s.name):
        digest.update(sample.name.encode() + b"\0" + hashlib.sha256(sample.path.read_bytes()).digest())
    return bundle.Data(
        source=config.data.resolve().name,
        layout=layout,
        train=len(parts.train),
        calibration=len(parts.calibration),
        test=len(parts.test),
        anomalies=sum(s.label == "anomaly" for s in parts.train),
        test_share=config.test,
        calibration_share=config.calibration,
        seed=config.seed,
        sha256=digest.hexdigest(),
    )


def settings_of(settings: Any) -> dict[str, Any]:
    """What the detector was learned with, as JSON; not where its training was kept."""
    kept = {key: value for key, value in asdict(settings).items() if key not in ("checkpoint", "resume", "log")}
    return {key: str(value) if isinstance(value, Path) else value for key, value in kept.items()}


def counts(parts: Split) -> dict[str, int]:
    """Images in each part."""
    anomalies = sum(s.label == "anomaly" for s in parts.test)
    return {
        "train": len(parts.train),
        "train_anomaly": sum(s.label == "anomaly" for s in parts.train),
        "calibration": sum(s.label != "anomaly" for s in parts.calibration),
        "calibration_anomaly": sum(s.label == "anomaly" for s in parts.calibration),
        "test_good": sum(s.label == "good" for s in parts.test),
        "test_anomaly": anomalies,
        "test_masks": sum(s.mask is not None for s in parts.test),
    }


def versions() -> dict[str, str]:
    """Of Python and of the libraries that learn."""
    names = ("blemish", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
