"""Repeated stratified k-fold cross-validation of a classifier: every image is judged by one that did not learn from it.

The figures of a bundle's own test come from one split. Cross-validation shows how much they depend on the split, and
which labels look wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from blemish.data.content import fingerprint
from blemish.data.split import kfold
from blemish.detectors.nn.loop import identity
from blemish.detectors.nn.resampling import Enlarge
from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import auroc, balanced_accuracy, confusion
from blemish.evaluation.evaluate import evaluate, targets
from blemish.evaluation.label_errors import named, suspects
from blemish.evaluation.reliability import class_weights, softmax, temperature
from blemish.files import replacing
from blemish.images import read_size
from blemish.inference import calibration
from blemish.inference.regions import find_regions
from blemish.types import Prediction, Progress, Region, Sample, Verdict, silent

Floats = npt.NDArray[np.float32]


class CrossValidation(NamedTuple):
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]  # for each image its out-of-fold probabilities, averaged over the repetitions


class CrossValidationConfig(Protocol):
    """The settings that cross-validation reads."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def sigma(self) -> float: ...
    @property
    def head_weights(self) -> tuple[float, ...] | str: ...
    @property
    def checkpoint(self) -> Path | None: ...
    @property
    def resume(self) -> bool: ...


class CrossValidated(Protocol):
    """What a detector has in addition if its traits say `cross_validates`."""

    classes: tuple[str, ...]

    @property
    def config(self) -> CrossValidationConfig: ...
    def cache(self, samples: Sequence[Sample], progress: Progress = silent) -> None:
        """Computes, once for all samples, what does not depend on the training images."""

    def fit(self, samples: Sequence[Sample], progress: Progress = silent, *, run: str = "") -> Any:
        """Learns from `samples`; `run` names the checkpoint."""

    def cells(self, samples: Sequence[Sample], progress: Progress = silent) -> tuple[Floats, Floats]:
        """Logits (n, classes) and maps (n, h, w) before they are enlarged."""


def cross_validate(
    detector: CrossValidated,
    samples: Sequence[Sample],
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    groups: Sequence[Sequence[int]] = (),
    false_alarms: float = 0.05,
    progress: Progress = silent,
) -> CrossValidation:
    """Trains `repeats` times `folds` detectors on all samples. The decision is the likelier class, as in the case
    study; regions come from thresholds on the good images of the other folds. The outputs of each fold are kept beside
    the detector's checkpoints until the end, so that a killed run can be resumed.

    Figures are means over the repetitions, and so are the ends of their intervals. The interval of one repetition is a
    bootstrap over images, which does not contain the randomness of the training; for that see `by_fold`.
    """
    pairs = kfold(samples, folds, seed=seed, repeat=repeats, groups=groups)
    detector.cache(samples, progress)
    sizes = [read_size(sample.path) for sample in samples]
    repetitions = []
    for number in range(repeats):
        fold_pairs = pairs[number * folds : (number + 1) * folds]
        outputs = _predict_out_of_fold(detector, samples, fold_pairs, f"repeat-{number + 1}", progress)
        repetitions.append(_evaluate(detector, samples, sizes, outputs, folds, false_alarms))
    probabilities = np.mean([repetition.probabilities for repetition in repetitions], 0)
    metrics = {
        "folds": folds,
        "repeats": repeats,
        **mean_of([repetition.figures for repetition in repetitions]),
        "by_fold": spread([figures for repetition in repetitions for figures in repetition.by_fold]),
        "suspects": _suspects(samples, probabilities, detector.classes),
    }
    return CrossValidation(to_json(metrics), _rows(samples, probabilities, detector.classes))


class OutOfFold(NamedTuple):
    """What one repetition predicts of each image, by the detector that did not learn from it."""

    fold: npt.NDArray[np.int64]  # (N,): the fold that the image was tested in
    logits: Floats  # (N, classes)
    maps: Floats  # (N, h, w), before they are enlarged


class Repetition(NamedTuple):
    """Figures over all images, figures of each fold, and the probabilities (N, classes) of one repetition."""

    figures: dict[str, Any]
    by_fold: list[dict[str, float]]
    probabilities: Floats


def _predict_out_of_fold(
    detector: CrossValidated,
    samples: Sequence[Sample],
    fold_pairs: Sequence[tuple[Sequence[Sample], Sequence[Sample]]],
    run: str,
    progress: Progress,
) -> OutOfFold:
    """Trains on each fold's training images and predicts its test images."""
    index = {sample.name: i for i, sample in enumerate(samples)}
    fold_of = np.zeros(len(samples), np.int64)
    outputs: dict[int, tuple[Floats, Floats]] = {}  # logits and map by the image's index
    for fold, (train, test) in enumerate(fold_pairs):
        fold_outputs = _fold(detector, train, test, f"{run}-fold-{fold + 1}", progress)
        tested = [index[sample.name] for sample in test]
        fold_of[tested] = fold
        outputs |= dict(zip(tested, zip(*fold_outputs, strict=True), strict=True))
    logits, maps = (np.stack([outputs[i][output] for i in range(len(samples))]) for output in (0, 1))
    return OutOfFold(fold_of, logits, maps)


def _evaluate(
    detector: CrossValidated,
    samples: Sequence[Sample],
    sizes: Sequence[tuple[int, int]],
    outputs: OutOfFold,
    folds: int,
    false_alarms: float,
) -> Repetition:
    """Decides by the likelier class, and measures. The thresholds and the temperature of a fold come from the
    others."""
    fold_of, logits, maps = outputs
    labels = np.array([sample.label == "anomaly" for sample in samples])
    balanced = detector.config.head_weights == "auto"
    probabilities = _tempered(logits, targets(samples, detector.classes), fold_of, balanced)
    scores = (np.logaddexp.reduce(logits[:, 1:].astype(np.float64), axis=1) - logits[:, 0]).astype(np.float32)
    flagged = scores > 0
    thresholds = [_thresholds(maps[(fold_of != fold) & ~labels], false_alarms) for fold in range(folds)]
    enlarge = Enlarge(maps.shape[1:], detector.config.image_size, detector.config.sigma)
    regions = [
        _regions(enlarge, maps[i], thresholds[fold_of[i]], sizes[i]) if flagged[i] else () for i in range(len(samples))
    ]
    verdicts = [
        Verdict(sample.name, "anomaly" if flagged[i] else "good", size=sizes[i], regions=regions[i])
        for i, sample in enumerate(samples)
    ]
    prediction = Prediction(scores, maps, probabilities)
    return Repetition(
        evaluate(samples, prediction, verdicts, detector.classes, balanced=balanced),
        [of_fold(scores[fold_of == fold], labels[fold_of == fold]) for fold in range(folds)],
        probabilities,
    )


def _suspects(samples: Sequence[Sample], probabilities: Floats, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The images whose label looks wrong."""
    given = targets(samples, classes)
    found = suspects(probabilities.astype(np.float64), given)
    return named(found, [sample.name for sample in samples], classes)


def _rows(samples: Sequence[Sample], probabilities: Floats, classes: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": sample.name,
            "label": sample.label,
            "defect": sample.defect,
            "probabilities": dict(zip(classes, map(float, probabilities[i]), strict=True)),
            "predicted_defect": classes[int(probabilities[i].argmax())],
        }
        for i, sample in enumerate(samples)
    ]


def of_fold(scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.bool_]) -> dict[str, float]:
    """`auroc` and `balanced_accuracy` of one fold; scores (n,) above 0 are called anomalies."""
    counts = confusion(labels, scores > 0)
    caught, missed, alarms, passed = (np.array(n, np.float64) for n in astuple(counts))
    return {
        "auroc": auroc(scores, labels),
        "balanced_accuracy": float(balanced_accuracy(caught, missed, alarms, passed)),
    }


def spread(folds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each figure over the folds."""
    values_of = {key: [fold[key] for fold in folds] for key in folds[0]}
    return {key: {"mean": float(np.mean(values)), "std": float(np.std(values))} for key, values in values_of.items()}


def mean_of(several: Sequence[Any]) -> Any:
    """The mean of JSON-like figures of the same shape, number by number. Texts that differ become None; keys that not
    all of them have are left out."""
    first = several[0]
    if isinstance(first, dict):
        return {
            key: mean_of([figures[key] for figures in several])
            for key in first
            if all(key in figures for figures in several)
        }
    if isinstance(first, list):
        return [mean_of(list(values)) for values in zip(*several, strict=False)]
    if any(value is None for value in several):
        return None
    if isinstance(first, bool | str):
        return first if all(value == first for value in several) else None
    total = sum(several) / len(several)
    return total if isinstance(first, float) or total != int(total) else int(total)


def _fold(
    detector: CrossValidated, train: Sequence[Sample], test: Sequence[Sample], run: str, progress: Progress
) -> tuple[Floats, Floats]:
    """Logits and maps of the test images, in their order; loaded if a killed run with the same options and images left
    them."""
    folder = detector.config.checkpoint
    made_for = identity(
        detector.config, [[(s.name, s.label, s.defect, fingerprint(s)) for s in part] for part in (train, test)]
    )
    file = folder / f"{run}.npz" if folder else None
    if file and file.is_file() and detector.config.resume:
        with np.load(file, allow_pickle=False) as loaded:
            if "identity" in loaded and str(loaded["identity"]) == made_for:
                detector.classes = tuple(map(str, loaded["classes"]))
                return loaded["logits"], loaded["maps"]
    detector.fit(train, progress, run=run)
    logits, maps = detector.cells(test)
    if file:
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, identity=made_for, classes=detector.classes, logits=logits, maps=maps)
    return logits, maps


def _tempered(logits: Floats, given: npt.NDArray[np.int64], fold_of: npt.NDArray[np.int64], balanced: bool) -> Floats:
    """Probabilities; the temperature of each fold is fitted on the other folds."""
    probabilities = np.zeros_like(logits)
    for fold in np.unique(fold_of):
        others = (fold_of != fold) & (given >= 0)
        counts = np.bincount(given[others], minlength=logits.shape[1])
        degree = 1.0
        if (counts > 0).all():
            weights = class_weights(counts) if balanced else None
            degree = temperature(logits[others].astype(np.float64), given[others], weights)
        probabilities[fold_of == fold] = softmax(logits[fold_of == fold] / degree)
    return probabilities


def _thresholds(good: Floats, false_alarms: float) -> tuple[float, float]:
    """Pixel threshold and median of the maps of good images; the threshold is their highest value if there are too few
    images for the false-alarm rate."""
    map_maxima = good.reshape(len(good), -1).max(1)
    enough = len(map_maxima) >= calibration.parts_needed(false_alarms)
    threshold = calibration.threshold(map_maxima, false_alarms) if enough else float(map_maxima.max())
    return threshold, float(np.median(good))


def _regions(
    enlarge: Enlarge, cells: Floats, thresholds: tuple[float, float], size: tuple[int, int]
) -> tuple[Region, ...]:
    anomaly_map = enlarge(torch.from_numpy(cells)).numpy()
    return find_regions(anomaly_map, thresholds[0], size, normal_median=thresholds[1], always=True)
