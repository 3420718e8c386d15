"""Confidence intervals of an AUROC, and of the difference of two on the same images, that also hold near 1.

A percentile bootstrap does not: resamples of images that are all but perfectly ordered hardly vary, and an AUROC of 1
stays 1 in each. Both intervals here are closed formulas; bench/intervals.py measures how often they cover the truth.

An AUROC is a mean over the anomalies: of each, the share of good images that score lower, ties counting half. It is as
well a mean over the good images, of the share of anomalies that score higher. These shares are *placements* (DeLong,
DeLong & Clarke-Pearson 1988), and their variances over m anomalies and n good images give the AUROC's:
S = var(anomalies' placements) / m + var(good images' placements) / n.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import Interval, wilson_ends

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TRUST = 4  # times as much as its bound counts S with each misplaced image of the smaller class
FURTHER = 0.5  # placements' difference in the two further images of each class, one up and one down


def auroc_interval(scores: npt.NDArray[np.floating], labels: Bools, level: float = 0.95) -> Interval:
    """The AUROC of finite `scores` (N,), `labels` (N,) True for anomalies, with its interval at `level` (0..1).

    It is Wilson's with continuity correction for a share A of k images, where A (1 - A) / k is the variance of the
    AUROC A. That variance is S or, as no S is larger (van Dantzig 1951), A (1 - A) / min(m, n). With few misplaced
    images S says little, and with none it is 0, so both are mixed: 1 / k = (1 - w) S / (A (1 - A)) + w / min(m, n),
    with w = 1 / (1 + 4 min(A, 1 - A) min(m, n)).

    No interval with fewer than 2 images of a class; undefined with none.

    >>> perfect = auroc_interval(np.arange(62.0), np.arange(62) >= 42)  # 20 anomalies above 42 good ones: k = 20
    >>> perfect.value, round(perfect.low, 3), perfect.high
    (1.0, 0.8, 1.0)
    """
    of_anomalies, of_good = placements(scores, labels)
    fewest = min(len(of_anomalies), len(of_good))
    if fewest == 0:
        return Interval(None)
    area = _area(scores, labels)
    if fewest == 1:
        return Interval(area)
    images = _effective(area, _variance(of_anomalies) + _variance(of_good), fewest)
    low, _ = wilson_ends(max(0.0, area - 0.5 / images), images, level)
    _, high = wilson_ends(min(1.0, area + 0.5 / images), images, level)
    return Interval(area, low, high)


def auroc_difference(
    scores: npt.NDArray[np.floating], less: npt.NDArray[np.floating], labels: Bools, level: float = 0.95
) -> Interval:
    """The AUROC of `scores` (N,) minus that of `less` (N,), of the same images, with its interval at `level` (0..1).

    The images' differences of placements have the AUROCs' difference as their mean, and S as its variance. As with
    a single AUROC, S is too small where few images are placed differently. So each class gets two further images, one
    placed FURTHER higher and one as much lower, as Bonett and Price (2012) do for the difference of paired shares.

    No interval with fewer than 2 images of a class; undefined with none.
    """
    pairs = zip(placements(scores, labels), placements(less, labels), strict=True)
    of_anomalies, of_good = (ours - theirs for ours, theirs in pairs)
    fewest = min(len(of_anomalies), len(of_good))
    if fewest == 0:
        return Interval(None)
    value = _area(scores, labels) - _area(less, labels)
    if fewest == 1:
        return Interval(value)
    widened = [np.concatenate([placed, [FURTHER, -FURTHER]]) for placed in (of_anomalies, of_good)]
    middle = sum(float(placed.mean()) for placed in widened) / 2
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(sum(map(_variance, widened)))
    return Interval(value, max(-1.0, min(value, middle - half)), min(1.0, max(value, middle + half)))


def placements(scores: npt.NDArray[np.floating], labels: Bools) -> tuple[Floats, Floats]:
    """Of each anomaly the share of good images below it, (m,), and of each good image the share of anomalies above it,
    (n,); ties count half. Empty where the other class is.

    >>> placements(np.array([3.0, 1, 2, 1]), np.array([True, True, False, False]))
    (array([1.  , 0.25]), array([0.5 , 0.75]))
    """
    anomalies, good = scores[labels], scores[~labels]
    if not len(anomalies) or not len(good):
        return np.empty(0), np.empty(0)
    return _twice_below(good, anomalies) / (2 * len(good)), 1 - _twice_below(anomalies, good) / (2 * len(anomalies))


def _area(scores: npt.NDArray[np.floating], labels: Bools) -> float:
    """The AUROC to the last digit, from whole numbers."""
    anomalies, good = scores[labels], scores[~labels]
    return float(_twice_below(good, anomalies).sum() / (2 * len(anomalies) * len(good)))


def _twice_below(others: npt.NDArray[np.floating], values: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Twice the number of the `others` below each of the values, where equal ones count half."""
    ranked = np.sort(others)
    return np.searchsorted(ranked, values, "left") + np.searchsorted(ranked, values, "right")


def _variance(placed: Floats) -> float:
    """Of their mean."""
    return float(placed.var(ddof=1)) / len(placed)


def _effective(area: float, variance: float, fewest: int) -> float:
    """The number of images k, as a share of which the AUROC has this variance; see `auroc_interval`."""
    spread = area * (1 - area)
    weight = 1 / (1 + TRUST * min(area, 1 - area) * fewest)
    return 1 / ((1 - weight) * variance / spread + weight / fewest) if spread > 0 else float(fewest)
