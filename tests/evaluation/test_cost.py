from __future__ import annotations

import numpy as np
import pytest

from blemish.evaluation.bootstrap import clopper_pearson
from blemish.evaluation.cost import Prices, ThresholdCost, cheapest, cost_at, costs, miss_rate, parse_prices
from blemish.inference.calibration import item_weights
from blemish.types import BlemishError


def test_costs_by_hand() -> None:
    good, defective = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 5.0])
    prices = Prices(false_alarm=2, miss=30, defective=0.1)
    # Of 1000 parts 900 are good: each quarter of them costs 450. 100 are defective: each half of them costs 1500.
    assert cost_at(2.0, good, defective, prices) == ThresholdCost(2.0, 0.5, 0.0, 900.0)
    assert cost_at(2.5, good, defective, prices) == ThresholdCost(2.5, 0.5, 0.5, 2400.0)
    assert cost_at(4.0, good, defective, prices) == ThresholdCost(4.0, 0.0, 0.5, 1500.0)
    assert cost_at(9.0, good, defective, prices) == ThresholdCost(9.0, 0.0, 1.0, 3000.0)
    assert cheapest(good, defective, prices) == ThresholdCost(2.0, 0.5, 0.0, 900.0)
    assert cheapest(good, defective, Prices(2, 15, 0.1)) == ThresholdCost(4.0, 0.0, 0.5, 750.0)
    assert cheapest(good, np.array([0.5, 2.5]), Prices(2, 1, 0.1)) == ThresholdCost(4.0, 0.0, 1.0, 100.0)


def test_of_equal_costs_the_fewest_alarms() -> None:
    good, defective = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 5.0])
    assert cheapest(good, defective, Prices(2, 18, 0.1)) == ThresholdCost(4.0, 0.0, 0.5, 900.0)


def test_all_are_anomalies_where_misses_cost_most() -> None:
    found = cheapest(np.array([1.0, 2.0]), np.array([0.5, 3.0]), Prices(1, 1e6, 0.5))
    assert (found.false_alarms, found.missed, found.cost) == (1.0, 0.0, 500.0)
    assert found.threshold < 0.5


def test_the_cheapest_threshold_is_that_of_a_fine_grid() -> None:
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
        assert cost_at(found.threshold, good, defective, prices, weights) == found


def test_the_miss_rate_is_exact() -> None:
    assert miss_rate(2, 40) == clopper_pearson(2, 40)


def test_invalid_prices_are_refused() -> None:
    for prices in ((0, 1, 0.1), (1, -1, 0.1), (1, float("inf"), 0.1)):
        with pytest.raises(BlemishError, match="must each cost more than 0"):
            Prices(*prices)
    with pytest.raises(BlemishError, match=r"share of defective parts .* not 100 %"):
        Prices(1, 1, 1.0)
    with pytest.raises(BlemishError, match="one kind is missing"):
        cheapest(np.array([1.0]), np.array([]), Prices(1, 1, 0.1))


def test_the_guaranteed_threshold_beside_the_cheapest() -> None:
    good, defective = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 5.0])
    both = costs(4.0, good, defective, Prices(false_alarm=2, miss=30, defective=0.1))
    assert (both.guaranteed.cost, both.cheapest.cost, both.cheapest.threshold) == (1500, 900, 2)


@pytest.mark.parametrize("text", ["1,50,2%", " 1 , 50.0,0.02"])
def test_prices_are_parsed(text: str) -> None:
    assert parse_prices(text) == Prices(1, 50, 0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,50", "--costs takes FALSE_ALARM,MISS,SHARE, as 1,50,2%, not '1,50'"),
        ("1,50,2%,3", "not '1,50,2%,3'"),
        ("one,50,2%", "not 'one,50,2%'"),
        ("1,50,", "not '1,50,'"),
        ("0,50,2%", "must each cost more than 0"),
        ("1,nan,2%", "must each cost more than 0"),
        ("1,50,200%", "share of defective parts"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(BlemishError, match=message):
        parse_prices(text)
