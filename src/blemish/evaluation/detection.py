"""Does the detector tell good parts from defective ones? Pure functions of scores, labels and decisions.

Throughout, `scores` (N,) are raw and higher means more anomalous, `labels` (N,) bool are True for anomalies
and `flagged` (N,) bool for images that the calibrated detector calls anomalous. A figure that the images
leave undefined (one class only, say) is NaN, and None once it is an `Interval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import Interval, intervals, wilson

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images by what they are and what was said: caught and missed are anomalies, the others are good."""

    caught: int
    missed: int
    false_alarms: int
    passed: int


@dataclass(frozen=True, slots=True)
class DefectRecall:
    """How many images of one defect type were flagged, with Wilson's interval of that share."""

    recall: Interval
    caught: int
    of: int


# Figures of counts: anomalies and good ones per distinct score, highest score first, shape (..., K). They serve
# images (below) and pixels (localisation.py), weighted by whatever a bootstrap drew.


def area_under_roc(anomalies: Floats, good: Floats) -> Floats:
    """Chance that an anomaly scores above a good one, ties counting half (Mann & Whitney 1947): (...,)."""
    above = np.cumsum(anomalies, axis=-1) - anomalies / 2
    return _ratio((good * above).sum(-1), anomalies.sum(-1) * good.sum(-1))


def average_precision_of(anomalies: Floats, good: Floats) -> Floats:
    """Mean precision over the recalls reached, sum of (R_k - R_k-1) P_k, not interpolated: (...,) in 0..1."""
    caught, alarms = np.cumsum(anomalies, axis=-1), np.cumsum(good, axis=-1)
    precision = np.nan_to_num(_ratio(caught, caught + alarms))
    defined = good.sum(-1) > 0  # with no good ones about, any order at all would be perfect
    return np.where(defined, _ratio((anomalies * precision).sum(-1), anomalies.sum(-1)), np.nan)


def best_f1_of(anomalies: Floats, good: Floats) -> Floats:
    """Highest F1 over all thresholds: (...,) in 0..1."""
    caught, alarms = np.cumsum(anomalies, axis=-1), np.cumsum(good, axis=-1)
    total = anomalies.sum(-1, keepdims=True)
    best = np.nan_to_num(_ratio(2 * caught, caught + alarms + total)).max(-1)
    return np.where((total[..., 0] > 0) & (good.sum(-1) > 0), best, np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    quotient: Floats = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=quotient, where=np.asarray(below) > 0)
    return quotient


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Scores sorted once, so that each resample costs a sum and no sort."""

    order: npt.NDArray[np.intp]  # (N,), highest score first
    starts: npt.NDArray[np.intp]  # (K,), where each distinct score begins in that order
    anomaly: Floats  # (N,), 1 for anomalies, in that order

    @classmethod
    def of(cls, scores: npt.NDArray[np.floating], labels: Bools) -> _Ranking:
        _check(labels, scores=scores)
        if not np.isfinite(scores).all():
            raise ValueError("expected finite scores; got NaN or infinity")
        order = np.argsort(-scores, kind="stable")
        new = np.diff(scores[order], prepend=np.inf) != 0
        return cls(order, np.flatnonzero(new), labels[order].astype(np.float64))

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Anomalies and good ones per distinct score, each (R, K), of weights (R, N)."""
        if not len(self.order):
            return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
        ordered = weights[:, self.order]
        anomalies = np.add.reduceat(ordered * self.anomaly, self.starts, axis=1)
        return anomalies, np.add.reduceat(ordered, self.starts, axis=1) - anomalies


def auroc(scores: npt.NDArray[np.floating], labels: Bools) -> float:
    """Area under the ROC curve: the chance that an anomaly scores above a good part, ties counting half."""
    return float(area_under_roc(*_Ranking.of(scores, labels).counts(np.ones((1, len(labels)))))[0])


def average_precision(scores: npt.NDArray[np.floating], labels: Bools) -> float:
    """Average precision; its floor is the share of anomalies among the images, not 0.5."""
    return float(average_precision_of(*_Ranking.of(scores, labels).counts(np.ones((1, len(labels)))))[0])


def best_f1(scores: npt.NDArray[np.floating], labels: Bools) -> float:
    """F1 at the threshold that suits these very images best: optimistic, as no line knows it beforehand."""
    return float(best_f1_of(*_Ranking.of(scores, labels).counts(np.ones((1, len(labels)))))[0])


def confusion(labels: Bools, flagged: Bools) -> Confusion:
    """Counts of right and wrong decisions."""
    _check(labels, flagged=flagged)
    return Confusion(
        caught=int((labels & flagged).sum()),
        missed=int((labels & ~flagged).sum()),
        false_alarms=int((~labels & flagged).sum()),
        passed=int((~labels & ~flagged).sum()),
    )


def f1(caught: Floats, missed: Floats, false_alarms: Floats) -> Floats:
    """Harmonic mean of precision and recall, 2 caught / (2 caught + missed + false alarms), in 0..1."""
    return _ratio(2 * caught, 2 * caught + missed + false_alarms)


def balanced_accuracy(caught: Floats, missed: Floats, false_alarms: Floats, passed: Floats) -> Floats:
    """Mean of the shares of anomalies and of good parts that were decided rightly; 0.5 = a coin."""
    return (_ratio(caught, caught + missed) + _ratio(passed, passed + false_alarms)) / 2


def detection_metrics(
    scores: npt.NDArray[np.floating],
    labels: Bools,
    flagged: Bools,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval | Confusion]:
    """Every figure of detection by name (docs/metrics.md explains each), with its interval at `level`.

    `auroc`, `average_precision`, `best_f1`, `f1` and `balanced_accuracy` carry bootstrap intervals over
    images, stratified by label; the plain shares `precision`, `recall`, `miss_rate`, `false_alarm_rate` and
    `accuracy` carry Wilson's. `confusion` holds the counts.
    """
    ranking, counts = _Ranking.of(scores, labels), confusion(labels, flagged)
    decisions = np.stack([labels & flagged, labels & ~flagged, ~labels & flagged, ~labels & ~flagged])

    def figures(weights: Floats) -> dict[str, Floats]:
        ranked = ranking.counts(weights)
        caught, missed, false_alarms, passed = (weights @ decisions.T.astype(np.float64)).T
        return {
            "auroc": area_under_roc(*ranked),
            "average_precision": average_precision_of(*ranked),
            "best_f1": best_f1_of(*ranked),
            "f1": f1(caught, missed, false_alarms),
            "balanced_accuracy": balanced_accuracy(caught, missed, false_alarms, passed),
        }

    anomalies, good = counts.caught + counts.missed, counts.false_alarms + counts.passed
    return {
        **intervals(figures, labels, resamples=resamples, seed=seed, level=level),
        "precision": wilson(counts.caught, counts.caught + counts.false_alarms, level),
        "recall": wilson(counts.caught, anomalies, level),
        "miss_rate": wilson(counts.missed, anomalies, level),
        "false_alarm_rate": wilson(counts.false_alarms, good, level),
        "accuracy": wilson(counts.caught + counts.passed, anomalies + good, level),
        "confusion": counts,
    }


def recall_by_defect(
    defects: Sequence[str], labels: Bools, flagged: Bools, *, level: float = 0.95
) -> dict[str, DefectRecall]:
    """Share of each defect type's images that were flagged, by name; "" gathers anomalies without a type."""
    _check(labels, flagged=flagged, defects=np.asarray(defects, object))
    found = {}
    for defect in sorted({d for d, anomaly in zip(defects, labels, strict=True) if anomaly}):
        these = np.array([d == defect for d in defects]) & labels
        caught, of = int((these & flagged).sum()), int(these.sum())
        found[defect] = DefectRecall(wilson(caught, of, level), caught, of)
    return found


def _check(labels: Bools, **others: npt.NDArray[np.generic]) -> None:
    if labels.ndim != 1 or labels.dtype != bool:
        raise ValueError(f"expected labels (N,) bool; got {labels.dtype} {labels.shape}")
    for name, values in others.items():
        if values.shape != labels.shape:
            raise ValueError(f"expected {name} {labels.shape} like the labels; got {values.shape}")
        if name == "flagged" and values.dtype != bool:
            raise ValueError(f"expected flagged (N,) bool; got {values.dtype}")
