"""Detectors in Python, in the style of scikit-learn: fit, predict, calibrate, export.

    detector = PatchCore(coreset=0.1).fit(Folder("tiles").good)
    prediction = detector.predict(["new/1.png", "new/2.png"])
    detector.calibrate(Folder("held-out").good, false_alarms=0.05).export("bundle")

`blemish.train` runs the whole pipeline: it splits, calibrates, tests and reports.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import numpy as np
import numpy.typing as npt

from blemish.data.content import fingerprint, identified, refuse_changed
from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.interface import Detector, DetectorConfig
from blemish.detectors.nn.provenance import write_evidence
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.files import staged
from blemish.inference import bundle, calibration
from blemish.training import card as cards
from blemish.training.config import DecisionRule, Run, configure
from blemish.training.export import Parity, export, in_onnxruntime, in_torch, predict, prove_parity
from blemish.training.framing import Seen
from blemish.types import BlemishError, Prediction, Progress, Sample, silent

P = ParamSpec("P")
# What the methods take: samples of a `Folder`, paths, or RGB arrays uint8 (H, W, 3); or one array (N, H, W, 3).
Images = Sequence[Sample | Path | str | npt.NDArray[np.uint8]] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Calibrated:
    """The result of `calibrate`: the exported graph `model`, an ONNX file's content, how its scores become verdicts,
    and how closely it agrees with the fitted one."""

    model: bytes
    decision: bundle.Decision
    parity: Parity
    images: tuple[Sample, ...]


class Estimator:
    """A detector with its settings, fitted or not. Made by `PatchCore`, `Hybrid`, `Cam` and `Attention`."""

    def __init__(self, config: DetectorConfig) -> None:
        size: object = config.image_size
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise ValueError(f"expected image_size=(height, width); got {size!r}")
        self.config = config
        self._detector: Detector | None = None
        self._learned: tuple[Sample, ...] = ()
        self._calibrated: Calibrated | None = None

    def fit(
        self, images: Images, labels: Sequence[Literal["good", "anomaly"]] | None = None, progress: Progress = silent
    ) -> Estimator:
        """Learns from images. `labels` are for images without their own (paths, arrays); unlabelled images count as
        good.

        Raises `BlemishError` if there is no image, one cannot be read, or one changes meanwhile, and ValueError for
        arrays of another shape or dtype.
        """
        samples = as_samples(images, labels)
        if unknown := {label for label in labels or () if label not in ("good", "anomaly")}:
            raise ValueError(f"expected the labels 'good' and 'anomaly'; got {min(unknown)!r}")
        traits = self.config.traits
        if not traits.learns_from_defects and any(sample.label == "anomaly" for sample in samples):
            raise BlemishError(f"{traits.title} learns from good images alone; leave the defective ones out of fit.")
        self._calibrated = None
        samples = [identified(sample) for sample in samples]
        detector = self.config.build().fit(samples, progress)
        refuse_changed(samples)
        self._detector, self._learned = detector, tuple(samples)
        return self

    def predict(self, images: Images, progress: Progress = silent) -> Prediction:
        """Raw scores (N,) and anomaly maps (N, H, W), float32, higher = more anomalous, and the detector's other
        outputs; see `Prediction`. Images may differ in size. Raises `BlemishError` before `fit`, and the errors of
        `fit`."""
        return predict(in_torch(self._fitted().graph()), as_samples(images), progress)

    def calibrate(
        self,
        images: Images,
        *,
        false_alarms: float = 0.05,
        review: float | None = None,
        confidence: float | None = None,
        progress: Progress = silent,
    ) -> Estimator:
        """Sets the threshold on good images that are not training images, so that at most `false_alarms` of good parts
        are flagged (docs/guarantee.md). The scores are those of the exported graph, which must agree with the fitted
        one.

        Raises `BlemishError` if the images are too few for that rate, are training images, or are not good.
        """
        samples = as_samples(images)
        if any(sample.label == "anomaly" for sample in samples):
            raise BlemishError("The threshold comes from good images alone; leave the defective ones out of calibrate.")
        learned = {fingerprint(sample) for sample in self._learned}
        if training_images := [sample.name for sample in samples if fingerprint(sample) in learned]:
            raise BlemishError(
                f"{training_images[0]} is a training image, so it cannot calibrate; hold good images out."
            )
        items = [sample.item for sample in samples]
        calibration.guarantee(  # refuses before any work
            len(items), false_alarms, confidence=confidence, items=len(set(items)), review=review
        )
        graph = self._fitted().graph()
        with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
            export(graph, Path(folder) / bundle.MODEL)
            onnx = predict(in_onnxruntime(Path(folder) / bundle.MODEL), samples, progress, "calibration")
            model = (Path(folder) / bundle.MODEL).read_bytes()
        torch = predict(in_torch(graph), samples, progress, "parity")
        parity = prove_parity(torch, onnx, [sample.name for sample in samples], gated=graph.gated)
        rule = DecisionRule(false_alarms, review, confidence)
        decision = cards.decision(rule, onnx, items, "split")
        self._calibrated = Calibrated(model, decision, parity, tuple(samples))
        return self

    def export(self, folder: Path | str, *, product: str = "", evidence_size: float = 8.0) -> Path:
        """Writes the bundle that `Inspector` and `blemish inspect` run, and returns its folder. `evidence_size` is the
        size limit, in MB, of the good images that it carries as evidence; 0 = none.

        Raises `BlemishError` before `calibrate`, and if the folder exists.
        """
        folder, detector = Path(folder), self._fitted()
        if self._calibrated is None:
            raise BlemishError(
                "A bundle needs a threshold; call calibrate with good images that are not training images."
            )
        data = bundle.Data(
            source=product or folder.resolve().parent.name,
            layout="python",
            train=len(self._learned),
            calibration=len(self._calibrated.images),
            test=0,
            anomalies=sum(sample.label == "anomaly" for sample in self._learned),
            seed=self.config.seed,
            sha256=cards.digest(self._learned),
        )
        with staged(folder, "bundle") as partial:
            (partial / bundle.MODEL).write_bytes(self._calibrated.model)  # the very graph that was calibrated
            sources = detector.sources() if evidence_size else None
            if sources is not None:
                refuse_changed(sources.samples)  # which are decoded again
                write_evidence(sources, self.config.image_size, partial / bundle.EVIDENCE, evidence_size)
            card = cards.card(
                detector,
                self.config,
                Seen(self.config.image_size).frame,
                data,
                self._calibrated.decision,
                self._calibrated.parity,
            )
            bundle.write(partial, card)
        return folder

    def _fitted(self) -> Detector:
        if self._detector is None:
            raise BlemishError(f"{self.config.traits.title} is not fitted; call fit first.")
        return self._detector

    def __repr__(self) -> str:
        default = type(self.config)()
        changed = [
            f"{setting.name}={getattr(self.config, setting.name)!r}"
            for setting in fields(self.config)  # type: ignore[arg-type]
            if getattr(self.config, setting.name) != getattr(default, setting.name)
        ]
        state = "not fitted"
        if self._detector is not None:
            state = f"fitted on {len(self._learned)} images"
        if self._calibrated is not None:
            state += f", threshold {self._calibrated.decision.threshold:.4g}"
        name = type(self.config).__name__.removesuffix("Config")
        return f"{name}({', '.join(changed)}): {state}"


def estimator(config: Callable[P, DetectorConfig]) -> Callable[P, Estimator]:
    """Makes an `Estimator` factory from a detector's config class, with the same typed settings."""

    @wraps(config)
    def build(*settings: P.args, **named: P.kwargs) -> Estimator:
        return Estimator(config(*settings, **named))

    build.__name__ = build.__qualname__ = build.__name__.removesuffix("Config")
    return build


PatchCore = estimator(PatchCoreConfig)
Hybrid = estimator(HybridConfig)
Cam = estimator(CamConfig)
Attention = estimator(AttentionConfig)


def as_samples(images: Images, labels: Sequence[Literal["good", "anomaly"]] | None = None) -> list[Sample]:
    """Samples of whatever the methods take. Raises ValueError for one image alone, arrays that are no RGB images, and
    where labels and images differ in number."""
    if isinstance(images, str | Path):  # a text would be taken letter by letter
        raise ValueError(f"expected several images; got {str(images)!r}: give [path], or Folder(path).good of a folder")
    if isinstance(images, np.ndarray) and images.ndim == 3:
        raise ValueError(f"expected several images; got one array {images.shape}: give image[None]")
    samples = [_sample(image, number) for number, image in enumerate(images)]
    if not samples:
        raise BlemishError("There is no image among those given; give at least one.")
    if labels is None:
        return samples
    if len(labels) != len(samples):
        raise ValueError(f"expected a label for each of {len(samples)} images; got {len(labels)}")
    return [replace(sample, label=label) for sample, label in zip(samples, labels, strict=True)]


def _sample(image: Any, number: int) -> Sample:
    if isinstance(image, Sample):
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"expected RGB images uint8 (H, W, 3); got {image.dtype} {image.shape}")
        name = f"array-{number:06}"
        return Sample(Path(name), name, pixels=image)
    if not isinstance(image, str | Path):
        raise ValueError(f"expected samples, paths or RGB arrays; got {type(image).__name__}")
    return Sample(Path(image), Path(image).as_posix())


def train(
    data: Path | str,
    out: Path | str,
    *,
    detector: str = "",
    recipe: str = "",
    progress: Progress = silent,
    **options: Any,
) -> Run:
    """Runs the whole pipeline, as `blemish train` does: learns from a folder of images, calibrates, tests, and writes
    the run to `out`. `options` are those of the command, by name with underscores: `false_alarms=0.05`,
    `image_size=(256, 256)`, `coreset=0.1`; see `blemish train --help`.

    Raises `BlemishError` for an unknown option, and if the images cannot support what was asked.
    """
    from blemish.training import pipeline

    return pipeline.train(configure(data, out, detector=detector, recipe=recipe, **options), progress)
