"""Confidence intervals: the bootstrap over images, and closed formulas for plain shares and their differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from blemish.inference.calibration import binomial_tail

Floats = npt.NDArray[np.float64]

CHUNK = 100  # resamples computed at once
DEFINED = 0.95  # share of the resamples that must have a value for an interval


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its confidence interval, all in the figure's own unit.

    `value` is None where the figure is undefined (no masks, only one class). `low` and `high` are None where these
    images do not allow an interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def bootstrap(
    statistic: Callable[[Floats], npt.ArrayLike],
    strata: int | npt.ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`intervals` for a single figure: `statistic` turns weights (R, n) into R values.

    >>> bootstrap(lambda weights: weights @ [1, 1, 4] / weights.sum(1), 3, level=1.0)
    Interval(value=2.0, low=1.0, high=4.0)
    """
    several = intervals(lambda weights: {"": statistic(weights)}, strata, resamples=resamples, seed=seed, level=level)
    return several[""]


def bootstrap_counts(
    statistic: Callable[[Floats], npt.ArrayLike],
    counts: npt.ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`bootstrap` of n images of which `counts` (c,) are of each of c kinds, where only the kind matters. Drawing n
    images is drawing from Multinomial(n, counts / n), so that time and memory do not grow with n. `statistic` turns
    counts (R, c) float64 into R values.

    >>> bootstrap_counts(lambda counts: counts @ [1, 4] / counts.sum(1), [2, 1], level=1.0)
    Interval(value=2.0, low=1.0, high=4.0)
    """
    kinds = np.asarray(counts, np.float64)
    value, n = float(_flat(statistic(kinds[None]))[0]), int(kinds.sum())
    if n < 2:
        return Interval(None if math.isnan(value) else value)
    drawn = np.random.default_rng(seed).multinomial(n, kinds / n, size=resamples).astype(np.float64)
    return _percentile(value, _flat(statistic(drawn)), level)


def intervals(
    statistics: Callable[[Floats], Mapping[str, npt.ArrayLike]],
    strata: int | npt.ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals (Efron 1979) at `level` (0..1) of figures of n images drawn with replacement.

    `strata` is n, or the stratum of each image (n,). Each stratum is resampled by itself, so that every resample has
    as many good and as many defective images as the original. `statistics` takes weights (R, n) float64, how often
    each image was drawn in each of R resamples, and returns R values for each name, NaN where undefined. Equal seeds
    give equal intervals.

    There is no interval where it would mislead: with fewer than 2 images in a stratum, with more than 5 % of the
    resamples undefined, or where all resamples give the same value (an average precision of exactly 1 stays 1 in each).
    """
    group = np.zeros(strata, np.int64) if isinstance(strata, int) else np.asarray(strata)
    _, group = np.unique(group, return_inverse=True)
    value = {k: float(_flat(v)[0]) for k, v in statistics(np.ones((1, len(group)))).items()}
    if not len(group) or np.bincount(group).min() < 2:
        return {name: Interval(None if math.isnan(v) else v) for name, v in value.items()}

    drawn: dict[str, list[Floats]] = {name: [] for name in value}
    for weights in _weights(group, resamples, seed):
        for name, values in statistics(weights).items():
            drawn[name].append(_flat(values))
    return {name: _percentile(value[name], np.concatenate(drawn[name]), level) for name in value}


def _flat(values: npt.ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, np.float64))


def _weights(group: npt.NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        weights = np.zeros((count, len(group)))
        for stratum in members:
            even = np.full(len(stratum), 1 / len(stratum))
            weights[:, stratum] = random.multinomial(len(stratum), even, size=count)
        yield weights


def _percentile(value: float, drawn: Floats, level: float) -> Interval:
    if math.isnan(value):
        return Interval(None)
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < DEFINED * len(drawn) or np.ptp(defined) == 0:
        return Interval(value)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The share p = successes / trials with Wilson's score interval (1927), which also holds at 0 % and 100 %.

    With z the normal quantile at (1 + level) / 2 and n trials, its ends are
    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). Its mean coverage is close to `level`;
    `clopper_pearson` never covers less, and is wider. Undefined for 0 trials; raises ValueError for
    successes outside 0..trials.

    >>> interval = wilson(0, 4)  # from 0 to z^2 / (n + z^2) = 3.8415 / 7.8415
    >>> interval.value, interval.low, round(interval.high, 4)
    (0.0, 0.0, 0.4899)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials; got {successes} of {trials}")
    if trials == 0:
        return Interval(None)
    low, high = wilson_ends(successes / trials, trials, level)
    return Interval(successes / trials, low, high)


def wilson_ends(share: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """The ends of `wilson` for a share (0..1) of any positive number of trials, which need not be whole."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    penalty = z * z / trials
    centre = (share + penalty / 2) / (1 + penalty)
    half = z / (1 + penalty) * math.sqrt(share * (1 - share) / trials + penalty / (4 * trials))
    return 0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The share successes / trials with the exact interval (Clopper & Pearson 1934), which covers the true share with
    a probability of at least `level`, whatever that share is. Trials must be independent: several images of one item
    are one trial.

    Its ends are the shares at which P(Binomial >= successes), or P(Binomial <= successes), is (1 - level) / 2.
    Undefined for 0 trials; raises ValueError for successes outside 0..trials.

    >>> interval = clopper_pearson(0, 5)  # from 0 to 1 - 0.025^(1/5)
    >>> interval.value, interval.low, round(interval.high, 4)
    (0.0, 0.0, 0.5218)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials; got {successes} of {trials}")
    if trials == 0:
        return Interval(None)
    tail = (1 - level) / 2
    return Interval(
        successes / trials,
        0.0 if successes == 0 else _share_with_tail(trials, successes, tail),
        1.0 if successes == trials else _share_with_tail(trials, successes + 1, 1 - tail),
    )


def _share_with_tail(trials: int, successes: int, tail: float) -> float:
    """The share at which P(Binomial(trials, share) >= successes), which rises with the share, equals `tail`."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until no float lies between
        below = binomial_tail(trials, successes, middle) < tail
        low, high = (middle, high) if below else (low, middle)
    return middle


def paired_shares(some: npt.NDArray[np.bool_], less: npt.NDArray[np.bool_], level: float = 0.95) -> Interval:
    """The share of True in `some` (N,) minus that in `less` (N,), of the same trials, with the interval of Bonett and
    Price (2012): Wald's, with a further trial that only the one has, and one that only the other has.

    A bootstrap has no interval where the two are equal in each trial, and too short a one where they are in most.
    No interval of 1 trial; undefined for none.

    >>> found = paired_shares(np.array([True, True, True, False]), np.array([True, False, False, False]))
    >>> found.value, round(found.low, 3), round(found.high, 3)  # 2/6 -+ 1.96 sqrt((4/6 - 4/36) / 6)
    (0.5, -0.263, 0.93)
    """
    if not len(some):
        return Interval(None)
    differences = some.astype(np.float64) - less
    value = float(differences.mean())
    if len(some) == 1:
        return Interval(value)
    widened = np.concatenate([differences, [1, -1]])
    half = NormalDist().inv_cdf((1 + level) / 2) * float(widened.std()) / math.sqrt(len(widened))
    middle = float(widened.mean())
    return Interval(value, max(-1.0, min(value, middle - half)), min(1.0, max(value, middle + half)))


def to_json(value: Any) -> Any:
    """`value` as JSON types: dataclasses become objects, arrays and tuples lists, NaN and infinity null.

    >>> to_json({"auroc": Interval(0.5), "map": np.zeros((1, 2)), "ece": float("nan")})
    {'auroc': {'value': 0.5, 'low': None, 'high': None}, 'map': [[0.0, 0.0]], 'ece': None}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
