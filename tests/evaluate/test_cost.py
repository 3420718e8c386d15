from __future__ import annotations

import numpy as np
import pytest

from blemish.calibration import item_weights
from blemish.evaluate.bootstrap import clopper_pearson
from blemish.evaluate.cost import Prices, Working, at, cheapest, miss_rate
from blemish.types import BlemishError


def test_costs_by_hand() -> None:
    good, defective = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 5.0])
    prices = Prices(false_alarm=2, miss=30, defective=0.1)
    # per 1000 parts 900 good: each quarter of them costs 450; 100 defective: each half of them costs 1500
    assert at(2.0, good, defective, prices) == Working(2.0, 0.5, 0.0, 900.0)
    assert at(2.5, good, defective, prices) == Working(2.5, 0.5, 0.5, 2400.0)
    assert at(4.0, good, defective, prices) == Working(4.0, 0.0, 0.5, 1500.0)
    assert at(9.0, good, defective, prices) == Working(9.0, 0.0, 1.0, 3000.0)
    assert cheapest(good, defective, prices) == Working(2.0, 0.5, 0.0, 900.0)
    assert cheapest(good, defective, Prices(2, 15, 0.1)) == Working(4.0, 0.0, 0.5, 750.0)
    assert cheapest(good, np.array([0.5, 2.5]), Prices(2, 1, 0.1)) == Working(4.0, 0.0, 1.0, 100.0)


def test_of_equal_costs_the_fewest_alarms() -> None:
    good, defective = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 5.0])
    assert cheapest(good, defective, Prices(2, 18, 0.1)) == Working(4.0, 0.0, 0.5, 900.0)


def test_everything_an_anomaly_where_misses_cost_most() -> None:
    found = cheapest(np.array([1.0, 2.0]), np.array([0.5, 3.0]), Prices(1, 1e6, 0.5))
    assert (found.false_alarms, found.missed, found.cost) == (1.0, 0.0, 500.0)
    assert found.threshold < 0.5


def test_the_cheapest_is_cheapest_of_a_fine_grid() -> None:
    random = np.random.default_rng(0)
    good, defective = random.normal(size=80).round(1), random.normal(1.5, 1, size=30).round(1)
    weights = item_weights([str(i // 3) for i in range(80)])
    for prices in (Prices(1, 5, 0.2), Prices(1, 40, 0.05), Prices(3, 2, 0.5)):
        grid = np.linspace(-6, 6, 2001)
        by_hand = [
            1000 * (1 - prices.defective) * prices.false_alarm * np.average(good > t, weights=weights)
            + 1000 * prices.defective * prices.miss * np.mean(defective <= t)
            for t in grid
        ]
        found = cheapest(good, defective, prices, weights)
        assert found.cost == pytest.approx(min(by_hand))
        assert at(found.threshold, good, defective, prices, weights) == found


def test_the_miss_rate_is_exact() -> None:
    assert miss_rate(2, 40) == clopper_pearson(2, 40)
    assert str(miss_rate(2, 40)) == "0.050 [0.006, 0.169]"


def test_what_has_no_cost_is_refused() -> None:
    for prices in ((0, 1, 0.1), (1, -1, 0.1), (1, float("inf"), 0.1)):
        with pytest.raises(BlemishError, match="cost something above 0"):
            Prices(*prices)
    with pytest.raises(BlemishError, match="share of defective parts"):
        Prices(1, 1, 1.0)
    with pytest.raises(BlemishError, match="one kind is missing"):
        cheapest(np.array([1.0]), np.array([]), Prices(1, 1, 0.1))
