"""Missed defects and the cost of mistakes: estimates from known defective images, not guarantees.

Known defects are those that somebody collected; future ones may be harder. The cheapest threshold is chosen on the
same images on which its cost is estimated, so that cost is biased low, the more so the fewer images there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import Interval, clopper_pearson
from blemish.types import BlemishError

Floats = npt.NDArray[np.floating]

PARTS = 1000  # costs are per so many parts


@dataclass(frozen=True, slots=True)
class Prices:
    """The cost of a false alarm and of a miss, in any one currency, and the share of parts that are defective (0..1).

    Raises `BlemishError` for a cost that is not above 0, or a share outside 0..1.
    """

    false_alarm: float
    miss: float
    defective: float

    def __post_init__(self) -> None:
        if not (0 < self.false_alarm < np.inf and 0 < self.miss < np.inf):
            raise BlemishError(
                f"A false alarm and a miss must each cost more than 0, not {self.false_alarm:g} and {self.miss:g}."
            )
        if not 0 < self.defective < 1:
            raise BlemishError(
                f"The share of defective parts lies between 0 % and 100 %, not {100 * self.defective:g} %."
            )


def parse_prices(text: str) -> Prices:
    """Reads `FALSE_ALARM,MISS,SHARE`. Raises `BlemishError` for anything else.

    >>> parse_prices("1,50,2%")
    Prices(false_alarm=1.0, miss=50.0, defective=0.02)
    """
    try:
        false_alarm, miss, share = (field.strip() for field in text.split(","))
        defective = float(share[:-1]) / 100 if share.endswith("%") else float(share)
        return Prices(float(false_alarm), float(miss), defective)
    except ValueError:
        raise BlemishError(f"--costs takes FALSE_ALARM,MISS,SHARE, as 1,50,2%, not '{text}'.") from None


@dataclass(frozen=True, slots=True)
class ThresholdCost:
    """A threshold's share of good parts that are false alarms, its share of defective parts that are missed (both
    0..1), and the resulting cost per 1000 parts, of which the given share is defective."""

    threshold: float
    false_alarms: float
    missed: float
    cost: float


def miss_rate(missed: int, defects: int) -> Interval:
    """missed / defects, the share of defective parts called good, with its exact 95 % interval (`clopper_pearson`).

    Each image must show another part. It guarantees nothing for kinds of defect that are not among these.
    """
    return clopper_pearson(missed, defects)


def cost_at(
    threshold: float, good: Floats, defective: Floats, prices: Prices, weights: npt.NDArray[np.float64] | None = None
) -> ThresholdCost:
    """The cost of one threshold, 1000 ((1 - d) prices.false_alarm a + d prices.miss m), with d = prices.defective, a =
    the share of `good` scores above the threshold, and m = the share of `defective` scores not above it.

    `good` (n,) are calibration scores of good images, `defective` (k,) scores of known defective ones, `weights` (n,)
    the good images' `calibration.item_weights`. Raises `BlemishError` where either kind is missing.

    >>> prices = Prices(false_alarm=2, miss=30, defective=0.1)
    >>> cost_at(2.0, np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 5.0]), prices)  # 900 good parts, half alarmed
    ThresholdCost(threshold=2.0, false_alarms=0.5, missed=0.0, cost=900.0)
    """
    return _costs_at(np.array([threshold]), good, defective, prices, weights)[0]


def cheapest(
    good: Floats, defective: Floats, prices: Prices, weights: npt.NDArray[np.float64] | None = None
) -> ThresholdCost:
    """The threshold of least cost; among equals the highest, which has the fewest false alarms. Every threshold that
    separates the images differently is tried, from all anomalies to none. Arguments and errors as of `cost_at`.

    >>> cheapest(np.array([1.0, 2.0]), np.array([1.5, 3.0]), Prices(false_alarm=1, miss=9, defective=0.5))
    ThresholdCost(threshold=1.0, false_alarms=0.5, missed=0.0, cost=250.0)
    """
    scores = np.unique(np.concatenate([np.asarray(good, np.float64), np.asarray(defective, np.float64)]))
    below_all = np.nextafter(scores[:1], -np.inf)
    candidates = _costs_at(np.concatenate([below_all, scores]), good, defective, prices, weights)
    return min(reversed(candidates), key=lambda candidate: candidate.cost)


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of the guaranteed threshold beside that of the cheapest one."""

    prices: Prices
    guaranteed: ThresholdCost
    cheapest: ThresholdCost


def costs(
    threshold: float, good: Floats, defective: Floats, prices: Prices, weights: npt.NDArray[np.float64] | None = None
) -> Costs:
    """`cost_at` the guaranteed `threshold`, and the `cheapest` one; arguments and errors as theirs."""
    return Costs(
        prices, cost_at(threshold, good, defective, prices, weights), cheapest(good, defective, prices, weights)
    )


def _costs_at(
    thresholds: npt.NDArray[np.float64],
    good: Floats,
    defective: Floats,
    prices: Prices,
    weights: npt.NDArray[np.float64] | None,
) -> list[ThresholdCost]:
    if not len(good) or not len(defective):
        raise BlemishError("Costs need the scores of good and of defective images; one kind is missing.")
    weights = np.ones(len(good)) if weights is None else weights
    order = np.argsort(good)
    up_to = np.concatenate([[0.0], np.cumsum(weights[order])])[np.searchsorted(good[order], thresholds, side="right")]
    false_alarms = np.maximum(0.0, 1 - up_to / weights.sum())
    missed = np.searchsorted(np.sort(defective), thresholds, side="right") / len(defective)
    cost = PARTS * (
        (1 - prices.defective) * prices.false_alarm * false_alarms + prices.defective * prices.miss * missed
    )
    columns = (thresholds, false_alarms, missed, np.round(cost, 9))
    return [ThresholdCost(*map(float, row)) for row in zip(*columns, strict=True)]
