"""What is missed, and what mistakes cost: estimates on the defective images there are, not guarantees.

Known defects are those that somebody collected; the next ones may be harder. And the cheapest threshold is chosen on
the very images that its cost is reckoned on, so that cost is on the low side, the more so the fewer they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import Interval, clopper_pearson
from blemish.types import BlemishError

Floats = npt.NDArray[np.floating]

PARTS = 1000  # costs are for so many


@dataclass(frozen=True, slots=True)
class Prices:
    """What a false alarm and a miss cost, in any one currency, and the share of parts that are defective.

    Raises `BlemishError` for a cost that is not above 0, or a share outside 0..1.
    """

    false_alarm: float
    miss: float
    defective: float

    def __post_init__(self) -> None:
        if not (0 < self.false_alarm < np.inf and 0 < self.miss < np.inf):
            raise BlemishError(
                f"A false alarm and a miss each cost something above 0, not {self.false_alarm:g} and {self.miss:g}."
            )
        if not 0 < self.defective < 1:
            raise BlemishError(f"The share of defective parts lies between 0 % and 100 %, not {self.defective:.3%}.")


def prices_of(text: str) -> Prices:
    """`FALSE_ALARM,MISS,SHARE`, as 1,50,2%. Raises `BlemishError` for anything else."""
    try:
        false_alarm, miss, share = (part.strip() for part in text.split(","))
        defective = float(share[:-1]) / 100 if share.endswith("%") else float(share)
        return Prices(float(false_alarm), float(miss), defective)
    except ValueError:
        raise BlemishError(f"--costs takes FALSE_ALARM,MISS,SHARE, as 1,50,2%, not '{text}'.") from None


@dataclass(frozen=True, slots=True)
class Working:
    """How a threshold works out: shares of good parts alarmed and of defective parts missed, and the cost that they
    lead to, per 1000 parts, good and defective as they come."""

    threshold: float
    false_alarms: float
    missed: float
    cost: float


def miss_rate(missed: int, defects: int) -> Interval:
    """The share of defective parts that were called good, with its exact 95 % interval (Clopper-Pearson). Of known
    defects, each image of another part; it guarantees nothing of defects of another kind."""
    return clopper_pearson(missed, defects)


def at(
    threshold: float, good: Floats, defective: Floats, prices: Prices, weights: npt.NDArray[np.float64] | None = None
) -> Working:
    """How a threshold, such as the guaranteed one, works out on the calibration scores of good images `(n,)` and the
    scores of known defective ones `(m,)`. `weights` `(n,)` are the good images' `calibration.item_weights`.

    Raises `BlemishError` where either kind is missing.
    """
    return _working(np.array([threshold]), good, defective, prices, weights)[0]


def cheapest(
    good: Floats, defective: Floats, prices: Prices, weights: npt.NDArray[np.float64] | None = None
) -> Working:
    """The threshold with the least expected cost; of several, the highest, with the fewest alarms. Every threshold that
    tells the images apart in another way is tried, from all anomalies to none. Otherwise as `at`."""
    scores = np.unique(np.concatenate([np.asarray(good, np.float64), np.asarray(defective, np.float64)]))
    below_all = np.nextafter(scores[:1], -np.inf)
    return min(
        reversed(_working(np.concatenate([below_all, scores]), good, defective, prices, weights)),
        key=lambda working: working.cost,
    )


@dataclass(frozen=True, slots=True)
class Costs:
    """How the guaranteed threshold works out, and the cheapest one, in figures and in words."""

    prices: Prices
    guaranteed: Working
    cheapest: Working
    sentences: tuple[str, str]


def costs(
    threshold: float, good: Floats, defective: Floats, prices: Prices, weights: npt.NDArray[np.float64] | None = None
) -> Costs:
    """What `at` says of a guaranteed threshold, beside the `cheapest`; raises as they do."""
    guaranteed, best = at(threshold, good, defective, prices, weights), cheapest(good, defective, prices, weights)
    each = f"{prices.false_alarm:g} a false alarm, {prices.miss:g} a miss, {prices.defective:.3g} of parts defective"
    first = f"At the guaranteed threshold, {guaranteed.threshold:.4g}, {PARTS} parts cost {guaranteed.cost:.4g}"
    if best.cost < guaranteed.cost:
        second = f"Cheapest is the threshold {best.threshold:.4g}, at {best.cost:.4g}: {_shares(best)}"
    else:
        second = f"No threshold is cheaper on these images; {_shares(guaranteed)}"
    return Costs(
        prices,
        guaranteed,
        best,
        (
            f"{first} ({each}): {_shares(guaranteed)}.",
            f"{second}; that is an estimate on the low side, and no guarantee.",
        ),
    )


def _shares(working: Working) -> str:
    return f"{working.false_alarms:.1%} false alarms among good parts, {working.missed:.1%} of defective ones missed"


def _working(
    thresholds: npt.NDArray[np.float64],
    good: Floats,
    defective: Floats,
    prices: Prices,
    weights: npt.NDArray[np.float64] | None,
) -> list[Working]:
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
    return [Working(*map(float, row)) for row in zip(*columns, strict=True)]
