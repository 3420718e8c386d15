"""Repeated stratified k-fold of a classifier: every image judged by one that did not learn from it.

What a bundle's own test says rests on one split; this says how much that split decided, and which labels look wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from blemish.data.split import kfold
from blemish.detectors.nn.resampling import Enlarge
from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import auroc, balanced_accuracy, confusion
from blemish.evaluation.evaluate import evaluate, targets
from blemish.evaluation.label_errors import suspects
from blemish.evaluation.reliability import class_weights, softmax, temperature
from blemish.files import replacing
from blemish.images import read_size
from blemish.inference import calibration
from blemish.inference.regions import find_regions
from blemish.types import Prediction, Progress, Region, Sample, Verdict, silent

Floats = npt.NDArray[np.float32]


class CrossValidation(NamedTuple):
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]  # one an image: its out-of-fold probabilities, averaged over the repetitions


class CrossValidationConfig(Protocol):
    """What is asked of its settings."""

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
    """What a detector whose traits say `cross_validates` has besides."""

    classes: tuple[str, ...]

    @property
    def config(self) -> CrossValidationConfig: ...
    def cache(self, samples: Sequence[Sample], progress: Progress = silent) -> None:
        """Computes what does not depend on who is learned from, once for all samples."""

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
    """`repeats` times `folds` trainings, on all samples. The decision is the likelier class, as in the study; regions
    come from thresholds on the good images of the other folds. Each fold's answers are kept beside the detector's
    checkpoints until all is done, so that a killed run goes on where it was.

    Figures are means over the repetitions; so are the ends of their intervals, each of which is that of one
    repetition (a bootstrap over images, which knows nothing of the training's own chance: for that see `by_fold`).
    """
    index = {sample.name: i for i, sample in enumerate(samples)}
    pairs = kfold(samples, folds, seed=seed, repeat=repeats, groups=groups)
    detector.cache(samples, progress)
    sizes = [read_size(sample.path) for sample in samples]
    labels = np.array([sample.label == "anomaly" for sample in samples])
    balanced = detector.config.head_weights == "auto"
    each, by_fold, probabilities = [], [], []
    for repetition in range(repeats):
        tested = np.zeros(len(samples), np.int64)  # in which fold each was
        answers: dict[int, tuple[Floats, Floats]] = {}  # logits and map of each
        for fold, (train, test) in enumerate(pairs[repetition * folds : (repetition + 1) * folds]):
            found = _fold(detector, train, test, f"repeat-{repetition + 1}-fold-{fold + 1}", progress)
            places = [index[sample.name] for sample in test]
            tested[places] = fold
            answers |= dict(zip(places, zip(*found, strict=True), strict=True))
        logits, maps = (np.stack([answers[i][what] for i in range(len(samples))]) for what in (0, 1))
        given = targets(samples, detector.classes)
        likely = _tempered(logits, given, tested, balanced)
        scores = (np.logaddexp.reduce(logits[:, 1:].astype(np.float64), axis=1) - logits[:, 0]).astype(np.float32)
        flagged = scores > 0
        thresholds = [_thresholds(maps[(tested != fold) & ~labels], false_alarms) for fold in range(folds)]
        enlarge = Enlarge(maps.shape[1:], detector.config.image_size, detector.config.sigma)
        regions = [
            _regions(enlarge, maps[i], thresholds[tested[i]], sizes[i]) if flagged[i] else ()
            for i in range(len(samples))
        ]
        verdicts = [
            Verdict(sample.name, "anomaly" if flagged[i] else "good", size=sizes[i], regions=regions[i])
            for i, sample in enumerate(samples)
        ]
        each.append(evaluate(samples, Prediction(scores, maps, likely), verdicts, detector.classes, balanced=balanced))
        by_fold += [of_fold(scores[tested == fold], labels[tested == fold]) for fold in range(folds)]
        probabilities.append(likely)
    mean = np.mean(probabilities, 0)
    doubted = suspects(mean.astype(np.float64), given)
    names = detector.classes
    metrics = {
        "folds": folds,
        "repeats": repeats,
        **mean_of(each),
        "by_fold": spread(by_fold),
        "suspects": [
            {"name": samples[s.index].name, "given": names[s.given], "likely": names[s.likely], "sure": s.confidence}
            for s in doubted
        ],
    }
    rows = [
        {
            "name": sample.name,
            "label": sample.label,
            "defect": sample.defect,
            "probabilities": dict(zip(names, map(float, mean[i]), strict=True)),
            "predicted_defect": names[int(mean[i].argmax())],
        }
        for i, sample in enumerate(samples)
    ]
    return CrossValidation(to_json(metrics), rows)


def of_fold(scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.bool_]) -> dict[str, float]:
    """A tested fold's `auroc`, and `balanced_accuracy` where scores (n,) above 0 are called anomalies."""
    counts = confusion(labels, scores > 0)
    caught, missed, alarms, passed = (np.array(n, np.float64) for n in astuple(counts))
    return {
        "auroc": auroc(scores, labels),
        "balanced_accuracy": float(balanced_accuracy(caught, missed, alarms, passed)),
    }


def spread(folds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each figure over the folds."""
    several = {key: [fold[key] for fold in folds] for key in folds[0]}
    return {key: {"mean": float(np.mean(values)), "std": float(np.std(values))} for key, values in several.items()}


def mean_of(several: Sequence[Any]) -> Any:
    """The mean of JSON-like figures of one shape, number by number; what differs and is no number is left out."""
    first = several[0]
    if isinstance(first, dict):
        return {key: mean_of([one[key] for one in several]) for key in first if all(key in one for one in several)}
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
    """Logits and maps of the tested images, in their order."""
    folder = detector.config.checkpoint
    kept = folder / f"{run}.npz" if folder else None
    if kept and kept.is_file() and detector.config.resume:
        with np.load(kept, allow_pickle=False) as loaded:
            if list(loaded["names"]) == [sample.name for sample in test]:
                detector.classes = tuple(map(str, loaded["classes"]))
                return loaded["logits"], loaded["maps"]
    detector.fit(train, progress, run=run)
    logits, maps = detector.cells(test)
    if kept:
        with replacing(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, names=[s.name for s in test], classes=detector.classes, logits=logits, maps=maps)
    return logits, maps


def _tempered(logits: Floats, given: npt.NDArray[np.int64], tested: npt.NDArray[np.int64], balanced: bool) -> Floats:
    """Probabilities, each fold's temperature taken from the others."""
    likely = np.zeros_like(logits)
    for fold in np.unique(tested):
        others = (tested != fold) & (given >= 0)
        counts = np.bincount(given[others], minlength=logits.shape[1])
        degree = 1.0
        if (counts > 0).all():
            weights = class_weights(counts) if balanced else None
            degree = temperature(logits[others].astype(np.float64), given[others], weights)
        likely[tested == fold] = softmax(logits[tested == fold] / degree)
    return likely


def _thresholds(good: Floats, false_alarms: float) -> tuple[float, float]:
    """Pixel threshold and usual value of these good images' maps; no threshold where they are too few for one."""
    map_maxima = good.reshape(len(good), -1).max(1)
    enough = len(map_maxima) >= calibration.parts_needed(false_alarms)
    return calibration.threshold(map_maxima, false_alarms) if enough else float(map_maxima.max()), float(
        np.median(good)
    )


def _regions(
    enlarge: Enlarge, cells: Floats, thresholds: tuple[float, float], size: tuple[int, int]
) -> tuple[Region, ...]:
    anomaly_map = enlarge(torch.from_numpy(cells)).numpy()
    return find_regions(anomaly_map, thresholds[0], size, normal_median=thresholds[1], always=True)
