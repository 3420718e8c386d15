"""Are probabilities calibrated? Temperature scaling, expected calibration error, Brier score, log loss.

`probabilities` (N,) in 0..1 are those of "anomaly", `labels` (N,) bool are True for anomalies. A classifier trained
with class weights gives probabilities for equal odds of good and defective, whatever the share of defects is; with the
`weights` (N,) of `balanced_weights` it is judged so, each class counting the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import CHUNK, Interval, intervals, wilson

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
AnyFloat = TypeVar("AnyFloat", bound=np.floating[Any])

COLDEST, HOTTEST = 0.05, 20.0  # the range of temperatures
HALVINGS = 60  # of that range: below the resolution of float64


@dataclass(frozen=True, slots=True)
class Bin:
    """The images with a probability in (low, high]; the first bin includes 0."""

    low: float
    high: float
    images: int
    share: float  # of the total weight, 0..1
    probability: float | None  # weighted mean; None for an empty bin
    anomalies: Interval  # weighted share of anomalies among them, 0..1


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far predicted probabilities agree with the labels; `bootstrap.to_json` makes JSON of it.

    `ece_if_calibrated` is the 95 % quantile of the ECE of a perfectly calibrated classifier with these probabilities,
    over draws of labels (Bröcker & Smith 2007): an ECE is never 0 on few images, and one below this figure is no sign
    of bad calibration. None where weights differ within a class.
    """

    images: int
    weighted: bool
    bins: tuple[Bin, ...]
    ece: Interval
    ece_if_calibrated: float | None
    brier: Interval
    log_loss: Interval


def class_weights(counts: npt.NDArray[np.integer]) -> Floats:
    """Weights (C,) by which classes of `counts` (C,) images, none 0, count the same; their mean over images is 1.

    >>> class_weights(np.array([3, 1])).tolist()
    [0.6666666666666666, 2.0]
    """
    return np.asarray(counts.sum() / (len(counts) * counts), np.float64)


def balanced_weights(labels: Bools) -> Floats:
    """Weights (N,) of mean 1 by which good and defective images count the same; all 1 with only one class.

    >>> balanced_weights(np.array([True, False, False, False])).round(3).tolist()
    [2.0, 0.667, 0.667, 0.667]
    """
    counts = np.bincount(labels, minlength=2)
    return class_weights(counts)[labels.astype(int)] if counts.all() else np.ones(len(labels))


def temperature(logits: Floats, classes: npt.NDArray[np.integer], weights: Floats | None = None) -> float:
    """The T for which softmax(logits / T) has the least mean negative log-likelihood (Guo et al. 2017, sec. 4.2).

    `logits` (N, C) finite, of images that were not trained on; `classes` (N,) ints in 0..C-1; `weights` (C,) multiply
    the images of each class. The result lies in 0.05..20; it is 1 where all logits of each row are equal.

    Targets are Platt's (1999): an image of a class with n images counts with (n + 1) / (n + 2) as of that class, the
    rest is spread over the other classes. Otherwise perfectly separated logits would drive T to the lower end, as if no
    error among n images meant no error ever. The loss is convex in 1 / T, so its derivative rises: bisection.

    Raises ValueError with fewer than two classes, and where shapes or ranges are not as above.

    >>> predicted = np.array([0, 0, 0, 1, 1, 1, 1, 0])  # 3 of 4 right in each class: (3 * 5/6 + 1/6) / 4 = 2/3
    >>> T = temperature(2 * np.eye(2)[predicted], np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    >>> round(T, 6) == round(float(2 / np.log(2)), 6)  # softmax of (2 / T, 0) = (2/3, 1/3)
    True
    """
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or classes.shape != z.shape[:1] or not np.isfinite(z).all():
        raise ValueError(f"expected finite logits (N, C) and classes (N,); got {z.shape} and {classes.shape}")
    if len(classes) and not (classes.min() >= 0 and classes.max() < z.shape[1]):
        raise ValueError(f"expected classes in 0..{z.shape[1] - 1}; got {classes.min()}..{classes.max()}")
    n = np.bincount(classes, minlength=z.shape[1])
    if (n > 0).sum() < 2:
        raise ValueError("a temperature takes images of at least two classes")
    each = np.ones(z.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if each.shape != n.shape or not np.isfinite(each).all() or (each < 0).any() or not each[n > 0].any():
        raise ValueError(f"expected weights ({len(n)},), none negative, not all 0; got {each}")
    if not np.ptp(z, axis=1).any():
        return 1.0

    weight, wrong = each[classes], 1 / (n[classes] + 2)
    own = z[np.arange(len(z)), classes]
    aimed_at = (1 - wrong) * own + wrong * (z.sum(1) - own) / (z.shape[1] - 1)

    def slope(inverse: float) -> float:  # d loss / d (1 / T)
        return float(weight @ ((softmax(inverse * z) * z).sum(1) - aimed_at))

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.clip(2 / (low + high), COLDEST, HOTTEST))


def softmax(z: npt.NDArray[AnyFloat]) -> npt.NDArray[AnyFloat]:
    """Probabilities (N, C) of logits (N, C), of the same dtype: exp(z_c) / sum of exp(z).

    >>> softmax(np.array([[0.0, np.log(3)]])).round(6).tolist()
    [[0.25, 0.75]]
    """
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), z.dtype)


def expected_calibration_error(
    probabilities: Floats, labels: Bools, *, bins: int = 10, weights: Floats | None = None
) -> float:
    """ECE, the sum over equal-width bins of share * |mean label - mean probability| (Guo et al. 2017, eq. 3).

    In 0..1, 0 = perfect; NaN without images. `weights` (N,), above 0, weigh shares and means.

    >>> expected_calibration_error(np.array([0.25, 0.25, 1.0]), np.array([False, True, True]), bins=2)  # 2/3 * 0.25
    0.16666666666666666
    """
    p, each = _checked(probabilities, labels, bins, weights)
    return float(_ece(_bin(p, bins), p, labels[None], each[None])[0])


def _bin(p: Floats, bins: int) -> npt.NDArray[np.intp]:
    return np.asarray(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p, side="left"))


def _ece(number: npt.NDArray[np.intp], p: Floats, labels: Bools | Floats, weights: Floats) -> Floats:
    """ECE (R,) from bin numbers (N,), probabilities (N,), labels (R or 1, N) and weights (R, N)."""
    member = number[:, None] == np.unique(number)
    gap = np.abs((weights * (labels - p)) @ member).sum(1)
    total = weights.sum(1)
    return np.asarray(np.divide(gap, total, out=np.full(len(total), np.nan), where=total > 0))


def _checked(p: Floats, labels: Bools, bins: int, weights: Floats | None) -> tuple[Floats, Floats]:
    p = np.asarray(p, np.float64)
    if labels.ndim != 1 or labels.dtype != bool or p.shape != labels.shape:
        raise ValueError(f"expected probabilities and bool labels (N,); got {p.shape}, {labels.dtype} {labels.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("expected probabilities in 0..1")
    if bins < 1:
        raise ValueError(f"expected at least one bin; got {bins}")
    each = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    if each.shape != p.shape or not np.isfinite(each).all() or (each <= 0).any():
        raise ValueError(f"expected weights {p.shape} above 0; got {each.shape}")
    return p, each


def reliability(
    probabilities: Floats,
    labels: Bools,
    *,
    bins: int = 10,
    weights: Floats | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Reliability:
    """Bins of equal width, ECE, Brier score = mean (p - label)^2 (Brier 1950) and log loss = mean -log p(label) (nats),
    with bootstrap intervals over images, stratified by label.

    The share of anomalies of a bin has Wilson's interval. Where each class has one weight, as by `balanced_weights`,
    its ends are transformed as the share is, which rises with the unweighted one; with other weights there is none. For
    the log loss, probabilities are kept 2e-16 away from 0 and 1, as in scikit-learn: a certain error costs 36. Raises
    ValueError where shapes, types or ranges are not as above.
    """
    p, each = _checked(probabilities, labels, bins, weights)
    number, odds = _bin(p, bins), _odds(each, labels)
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(p, tiny, 1 - tiny)
    loss = np.stack([(p - labels) ** 2, -np.where(labels, np.log(clipped), np.log1p(-clipped))], axis=1)

    def figures(drawn: Floats) -> dict[str, Floats]:
        drawn = drawn * each
        total = drawn.sum(1, keepdims=True)
        mean = np.divide(drawn @ loss, total, out=np.full((len(drawn), 2), np.nan), where=total > 0)
        return {"ece": _ece(number, p, labels[None], drawn), "brier": mean[:, 0], "log_loss": mean[:, 1]}

    measured = intervals(figures, labels, resamples=resamples, seed=seed, level=level)
    by_chance = None if odds is None else _ece_if_calibrated(number, p, odds, resamples, seed)
    edges = np.linspace(0, 1, bins + 1)
    return Reliability(
        images=len(p),
        weighted=weights is not None,
        bins=tuple(_summary(edges[k : k + 2], number == k, p, labels, each, odds, level) for k in range(bins)),
        ece=_unbiased(measured["ece"], by_chance),
        ece_if_calibrated=by_chance,
        brier=measured["brier"],
        log_loss=measured["log_loss"],
    )


def _unbiased(ece: Interval, by_chance: float | None) -> Interval:
    """The interval with a corrected lower end.

    An ECE is biased upwards, and that of a resample twice: percentile intervals never covered the true ECE of
    calibrated probabilities. So the lower end is the basic bootstrap's, 2 value - high, and 0 where the ECE is no more
    than chance gives.
    """
    if ece.value is None or ece.high is None:
        return ece
    low = 0.0 if by_chance is not None and ece.value <= by_chance else max(0.0, 2 * ece.value - ece.high)
    return Interval(ece.value, min(low, ece.value), max(ece.high, ece.value))


def _odds(weights: Floats, labels: Bools) -> float | None:
    """Weight of an anomaly over that of a good image; None where weights differ within a class."""
    good, bad = weights[~labels], weights[labels]
    if any(len(w) and np.ptp(w) > 1e-9 * w[0] for w in (good, bad)):
        return None
    return float(bad[0] / good[0]) if len(good) and len(bad) else 1.0


def _reweighted(share: float, odds: float) -> float:
    return odds * share / (odds * share + 1 - share)


def _summary(
    edges: Floats, inside: Bools, p: Floats, labels: Bools, weights: Floats, odds: float | None, level: float
) -> Bin:
    """The bin of the images `inside` (N,) bool, between `edges` (2,)."""
    count, weight = int(inside.sum()), weights * inside
    anomalies = wilson(int(labels[inside].sum()), count, level)
    if odds is None:
        anomalies = Interval(float(weight @ labels / weight.sum()) if count else None)
    elif anomalies.value is not None and anomalies.low is not None and anomalies.high is not None:
        anomalies = Interval(*(_reweighted(s, odds) for s in (anomalies.value, anomalies.low, anomalies.high)))
    return Bin(
        low=float(edges[0]),
        high=float(edges[1]),
        images=count,
        share=float(weight.sum() / weights.sum()) if count else 0.0,
        probability=float(weight @ p / weight.sum()) if count else None,
        anomalies=anomalies,
    )


def _ece_if_calibrated(number: npt.NDArray[np.intp], p: Floats, odds: float, draws: int, seed: int) -> float | None:
    """95 % quantile of the ECE with labels drawn from the probabilities themselves, the weights' odds removed."""
    if not len(p):
        return None
    true = p / (p + odds * (1 - p))  # weighted by odds : 1, these images show p again
    random, errors = np.random.default_rng(seed), list[Floats]()
    for start in range(0, draws, CHUNK):
        labels = random.random((min(CHUNK, draws - start), len(p))) < true
        errors.append(_ece(number, p, labels, np.where(labels, odds, 1.0)))
    return float(np.quantile(np.concatenate(errors), 0.95))
