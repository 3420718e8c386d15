"""Image-level figures: does the detector tell good parts from defective ones? Pure functions.

Throughout, `scores` (N,) float are raw, higher meaning more anomalous; `labels` (N,) bool are True for anomalies;
`flagged` (N,) bool are True for images that the calibrated detector calls anomalies. All figures are shares in 0..1. A
figure that these images leave undefined (only one class, say) is NaN, and None once it is an `Interval`. Arrays of
other shapes or types raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blemish.evaluation.auroc_interval import auroc_interval
from blemish.evaluation.bootstrap import Interval, intervals, wilson

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Numbers of images by label and decision: anomalies are caught or missed, good ones are false alarms or passed."""

    caught: int
    missed: int
    false_alarms: int
    passed: int


@dataclass(frozen=True, slots=True)
class DefectRecall:
    """Of the `of` images of one defect type, how many were flagged (`caught`), and that share with Wilson's
    interval."""

    recall: Interval
    caught: int
    of: int


# The next three take counts of anomalies and of good ones per distinct score, highest score first, shape (..., K). They
# serve images (below) and pixels (localisation.py), weighted by what a bootstrap drew.


def area_under_roc(anomalies: Floats, good: Floats) -> Floats:
    """P(score of an anomaly > score of a good one) + P(both equal) / 2 (Mann & Whitney 1947): (...,) in 0..1.

    >>> float(area_under_roc(np.array([1.0, 1, 0]), np.array([0.0, 1, 1])))  # pairs: 2 + 1.5 of 4
    0.875
    """
    above = np.cumsum(anomalies, axis=-1) - anomalies / 2
    return _ratio((good * above).sum(-1), anomalies.sum(-1) * good.sum(-1))


def average_precision_of(anomalies: Floats, good: Floats) -> Floats:
    """Average precision, sum over k of (R_k - R_k-1) P_k with recall R and precision P at the k-th highest score, not
    interpolated (as scikit-learn's): (...,) in 0..1.

    >>> float(average_precision_of(np.array([1.0, 0, 1]), np.array([0.0, 2, 0])))  # (1 + 2/4) / 2
    0.75
    """
    caught, alarms = np.cumsum(anomalies, axis=-1), np.cumsum(good, axis=-1)
    precision = np.nan_to_num(_ratio(caught, caught + alarms))
    defined = good.sum(-1) > 0  # without good ones, any order would be perfect
    return np.where(defined, _ratio((anomalies * precision).sum(-1), anomalies.sum(-1)), np.nan)


def best_f1_of(anomalies: Floats, good: Floats) -> Floats:
    """Highest F1, 2 P R / (P + R) (van Rijsbergen 1979), over all thresholds: (...,) in 0..1.

    >>> float(best_f1_of(np.array([1.0, 0, 1]), np.array([0.0, 2, 0])))  # 2/3 after the first and after the last
    0.6666666666666666
    """
    caught, alarms = np.cumsum(anomalies, axis=-1), np.cumsum(good, axis=-1)
    total = anomalies.sum(-1, keepdims=True)
    best = np.nan_to_num(_ratio(2 * caught, caught + alarms + total)).max(-1)
    return np.where((total[..., 0] > 0) & (good.sum(-1) > 0), best, np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    quotient: Floats = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=quotient, where=np.asarray(below) > 0)
    return quotient


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores sorted once, so that each resample of a bootstrap costs a sum and no sort."""

    order: npt.NDArray[np.intp]  # (N,), highest score first
    starts: npt.NDArray[np.intp]  # (K,), first place of each distinct score in that order
    anomaly: Floats  # (N,), 1 for anomalies, in that order

    @classmethod
    def of(cls, scores: npt.NDArray[np.floating], labels: Bools) -> Ranking:
        """Of finite scores (N,) and labels (N,)."""
        _check(labels, scores=scores)
        if not np.isfinite(scores).all():
            raise ValueError("expected finite scores; got NaN or infinity")
        order = np.argsort(-scores, kind="stable")
        new = np.diff(scores[order], prepend=np.inf) != 0
        return cls(order, np.flatnonzero(new), labels[order].astype(np.float64))

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Anomalies and good ones per distinct score, each (R, K), highest score first, for weights (R, N)."""
        if not len(self.order):
            return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
        ordered = weights[:, self.order]
        anomalies = np.add.reduceat(ordered * self.anomaly, self.starts, axis=1)
        return anomalies, np.add.reduceat(ordered, self.starts, axis=1) - anomalies


def auroc(scores: npt.NDArray[np.floating], labels: Bools) -> float:
    """Area under the ROC curve: the probability that an anomaly scores above a good part, ties counting half.

    0.5 is chance. See `area_under_roc`.

    >>> auroc(np.array([3.0, 1, 2, 0]), np.array([True, True, False, False]))  # 3 of the 4 pairs are in order
    0.75
    """
    return float(area_under_roc(*Ranking.of(scores, labels).counts(np.ones((1, len(labels)))))[0])


def average_precision(scores: npt.NDArray[np.floating], labels: Bools) -> float:
    """Average precision (`average_precision_of`); chance gets the share of anomalies among the images, not 0.5.

    >>> average_precision(np.array([3.0, 1, 2, 0]), np.array([True, True, False, False]))  # (1 + 2/3) / 2
    0.8333333333333333
    """
    return float(average_precision_of(*Ranking.of(scores, labels).counts(np.ones((1, len(labels)))))[0])


def best_f1(scores: npt.NDArray[np.floating], labels: Bools) -> float:
    """Highest F1 that any threshold reaches on these images: optimistic, since that threshold is not known beforehand.

    >>> best_f1(np.array([3.0, 1, 2, 0]), np.array([True, True, False, False]))  # 2 caught, 1 false alarm: 4/5
    0.8
    """
    return float(best_f1_of(*Ranking.of(scores, labels).counts(np.ones((1, len(labels)))))[0])


def confusion(labels: Bools, flagged: Bools) -> Confusion:
    """Numbers of right and wrong decisions.

    >>> confusion(np.array([True, True, False]), np.array([True, False, False]))
    Confusion(caught=1, missed=1, false_alarms=0, passed=1)
    """
    _check(labels, flagged=flagged)
    return Confusion(
        caught=int((labels & flagged).sum()),
        missed=int((labels & ~flagged).sum()),
        false_alarms=int((~labels & flagged).sum()),
        passed=int((~labels & ~flagged).sum()),
    )


def f1(caught: Floats, missed: Floats, false_alarms: Floats) -> Floats:
    """Harmonic mean of precision and recall, 2 caught / (2 caught + missed + false alarms): (...,) in 0..1.

    >>> float(f1(np.array(2.0), np.array(1.0), np.array(1.0)))
    0.6666666666666666
    """
    return _ratio(2 * caught, 2 * caught + missed + false_alarms)


def balanced_accuracy(caught: Floats, missed: Floats, false_alarms: Floats, passed: Floats) -> Floats:
    """(caught / anomalies + passed / good) / 2 (Brodersen et al. 2010): (...,) in 0..1; chance gets 0.5.

    >>> float(balanced_accuracy(np.array(1.0), np.array(1.0), np.array(0.0), np.array(8.0)))  # (1/2 + 1) / 2
    0.75
    """
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
    """All image-level figures by name (docs/metrics.md explains each), each with its interval at `level`.

    `auroc` has the interval of `auroc_interval`. `average_precision`, `best_f1`, `f1` and `balanced_accuracy` have
    bootstrap intervals over images, stratified by label. The plain shares have Wilson's: `precision` = caught /
    flagged, `recall` = caught / anomalies,
    `miss_rate` = missed / anomalies, `false_alarm_rate` = false alarms / good, `accuracy` = right / all. `confusion`
    holds the numbers.
    """
    ranking, counts = Ranking.of(scores, labels), confusion(labels, flagged)
    decisions = np.stack([labels & flagged, labels & ~flagged, ~labels & flagged, ~labels & ~flagged])

    def figures(weights: Floats) -> dict[str, Floats]:
        ranked = ranking.counts(weights)
        caught, missed, false_alarms, passed = (weights @ decisions.T.astype(np.float64)).T
        return {
            "average_precision": average_precision_of(*ranked),
            "best_f1": best_f1_of(*ranked),
            "f1": f1(caught, missed, false_alarms),
            "balanced_accuracy": balanced_accuracy(caught, missed, false_alarms, passed),
        }

    anomalies, good = counts.caught + counts.missed, counts.false_alarms + counts.passed
    return {
        "auroc": auroc_interval(scores, labels, level),
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
    """Recall of each defect type by name, of `defects` (N,) names; "" holds the anomalies without a type."""
    _check(labels, flagged=flagged, defects=np.asarray(defects, object))
    recalls = {}
    for defect in sorted({d for d, anomaly in zip(defects, labels, strict=True) if anomaly}):
        of_type = np.array([d == defect for d in defects]) & labels
        caught, of = int((of_type & flagged).sum()), int(of_type.sum())
        recalls[defect] = DefectRecall(wilson(caught, of, level), caught, of)
    return recalls


def _check(labels: Bools, **others: npt.NDArray[np.generic]) -> None:
    if labels.ndim != 1 or labels.dtype != bool:
        raise ValueError(f"expected labels (N,) bool; got {labels.dtype} {labels.shape}")
    for name, values in others.items():
        if values.shape != labels.shape:
            raise ValueError(f"expected {name} {labels.shape} like the labels; got {values.shape}")
        if name == "flagged" and values.dtype != bool:
            raise ValueError(f"expected flagged (N,) bool; got {values.dtype}")
