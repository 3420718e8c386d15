"""What the card of a run says: how it decides, what it learned from and with."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blemish import bundle, calibration
from blemish.data.split import Split
from blemish.types import Prediction

if TYPE_CHECKING:
    from blemish.learn.train import TrainConfig


def decision(config: TrainConfig, held_out: Prediction) -> bundle.Decision:
    """How scores become verdicts, by what the graph said of held-out good pictures."""
    peaks = held_out.maps.reshape(len(held_out.maps), -1).max(1)
    farthest = [] if held_out.distances is None else held_out.distances.max((1, 2))
    promise = config.decide == "promise"
    # Family-wise: at most this share of good pictures has a single pixel above it.
    pixel_threshold = calibration.threshold(peaks, config.false_alarms) if promise else float(peaks.max())
    usual = float(np.median(held_out.maps))
    return bundle.Decision(
        rule=config.decide,
        boxes=config.boxes,
        false_alarms=config.false_alarms if promise else None,
        guarantee=calibration.guarantee(len(peaks), config.false_alarms) if promise else calibration.NO_PROMISE,
        threshold=calibration.threshold(held_out.scores, config.false_alarms) if promise else 0.0,
        pixel_threshold=pixel_threshold,
        usual=usual,
        min_area=config.min_area,
        scores=tuple(map(float, held_out.scores)) if promise else (),
        peaks=tuple(map(float, peaks)),
        distances=tuple(map(float, farthest)) if promise else (),
        heat=(float(np.median(peaks)), pixel_threshold + (pixel_threshold - usual)),
    )


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
        seed=config.seed,
        sha256=digest.hexdigest(),
    )


def settings_of(settings: Any) -> dict[str, Any]:
    """What the detector was learned with, as JSON; not where its training was kept."""
    kept = {key: value for key, value in asdict(settings).items() if key not in ("checkpoint", "resume", "log")}
    return {key: str(value) if isinstance(value, Path) else value for key, value in kept.items()}


def counts(parts: Split) -> dict[str, int]:
    """Pictures in each part."""
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
