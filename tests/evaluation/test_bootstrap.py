from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from blemish.evaluation.bootstrap import Interval, bootstrap, clopper_pearson, intervals, paired_shares, to_json, wilson

Floats = npt.NDArray[np.float64]


def mean_of(values: Floats) -> Any:
    return lambda weights: weights @ values / weights.sum(1)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = bootstrap(mean_of(values), 400, resamples=4000)
    error = values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    half = bootstrap(mean_of(values), 400, resamples=4000, level=0.5)
    assert half.high == pytest.approx(values.mean() + 0.6745 * error, abs=0.1 * error)


def test_intervals_cover_the_true_value_at_their_level() -> None:
    random = np.random.default_rng(2)
    held = 0
    for trial in range(300):
        found = bootstrap(mean_of(random.exponential(1, 80)), 80, resamples=300, seed=trial)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1 <= found.high
    # Percentile intervals of 80 skewed values cover a little less than 95 %; 4 standard errors of 300 trials.
    assert 0.87 <= held / 300 <= 0.99


def test_each_resample_keeps_the_size_of_every_stratum() -> None:
    strata = np.array(["good"] * 30 + ["anomaly"] * 4)
    seen = []

    def statistic(weights: Floats) -> Floats:
        seen.append(weights)
        return weights[:, 0]

    bootstrap(statistic, strata, resamples=250)
    drawn = np.concatenate(seen[1:])
    assert drawn.shape == (250, 34)
    assert (drawn[:, :30].sum(1) == 30).all()
    assert (drawn[:, 30:].sum(1) == 4).all()
    assert drawn.max() > 1
    assert (seen[0] == 1).all()


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(3).random(50)
    assert bootstrap(mean_of(values), 50) == bootstrap(mean_of(values), 50)
    assert bootstrap(mean_of(values), 50) != bootstrap(mean_of(values), 50, seed=1)


def test_no_interval_where_it_would_mislead() -> None:
    assert bootstrap(mean_of(np.ones(20)), 20) == Interval(1.0)
    assert bootstrap(mean_of(np.array([0.0, 1, 2])), [0, 0, 1]) == Interval(1.0)
    assert bootstrap(lambda weights: np.full(len(weights), np.nan), 20) == Interval(None)
    # undefined whenever image 0 is not drawn: in about 1 of e resamples
    rarely = bootstrap(lambda w: np.where(w[:, 0] > 0, w[:, 1], np.nan), 20)
    assert rarely == Interval(1.0)


def test_several_figures_share_their_resamples() -> None:
    values = np.random.default_rng(4).random(50)
    both = intervals(lambda w: {"a": mean_of(values)(w), "b": -mean_of(values)(w)}, 50)
    assert both["a"] == bootstrap(mean_of(values), 50)
    assert both["b"].low == pytest.approx(-(both["a"].high or 0))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 7), (81, 263), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_agrees_with_scipy(successes: int, trials: int, level: float) -> None:
    found = wilson(successes, trials, level)
    expected = stats.binomtest(successes, trials).proportion_ci(level, "wilson")
    assert found.value == pytest.approx(successes / trials)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == Interval(None)
    assert wilson(0, 5).low == 0.0
    assert wilson(5, 5).high == 1.0
    with pytest.raises(ValueError, match="successes"):
        wilson(6, 5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 7), (81, 263), (1, 1), (4, 5000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson_agrees_with_the_beta_distribution(successes: int, trials: int, level: float) -> None:
    found, tail = clopper_pearson(successes, trials, level), (1 - level) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    assert found.value == pytest.approx(successes / trials)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-7)


def test_clopper_pearson_never_covers_less_than_its_level() -> None:
    for share in (0.01, 0.05, 0.3, 0.5):
        ends = [clopper_pearson(k, 30) for k in range(31)]
        held = [e.low is not None and e.high is not None and e.low <= share <= e.high for e in ends]
        assert stats.binom.pmf(np.arange(31), 30, share) @ np.array(held, float) >= 0.95
    assert clopper_pearson(0, 0) == Interval(None)
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson(6, 5)


def test_paired_shares_by_hand() -> None:
    """Bonett and Price (2012): with b and c trials in which only the one, only the other is True, (b - c) / (n + 2) -+
    z sqrt(((b + 1) + (c + 1) - (b - c)^2 / (n + 2)) / (n + 2)^2)."""
    some, less = np.arange(30) < 21, np.isin(np.arange(30), [*range(15), 25, 26])
    found = paired_shares(some, less)  # b = 6, c = 2
    half = 1.959964 * math.sqrt((7 + 3 - 4**2 / 32) / 32**2)
    assert found.value == pytest.approx(4 / 30)
    assert (found.low, found.high) == pytest.approx((4 / 32 - half, 4 / 32 + half))
    equal = paired_shares(some, some)
    assert (equal.low, equal.high) == pytest.approx((-1.959964 * math.sqrt(2) / 32, 1.959964 * math.sqrt(2) / 32))
    assert paired_shares(some[:1], less[:1]) == Interval(0.0)
    assert paired_shares(some[:0], less[:0]) == Interval(None)


@pytest.mark.parametrize("count", [10, 20, 50])
@pytest.mark.parametrize(("first", "second"), [(0.9, 0.95), (0.95, 0.95), (0.99, 0.9)])
def test_paired_shares_cover_the_difference(count: int, first: float, second: float) -> None:
    random = np.random.default_rng(4)
    held = 0
    for _ in range(500):
        common = random.random(count)
        other = np.where(random.random(count) < 0.5, common, random.random(count))
        found = paired_shares(common < first, other < second)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= first - second <= found.high
    assert held / 500 >= 0.93


def test_to_json_gives_json_types() -> None:
    @dataclass(frozen=True)
    class Found:
        share: Interval
        of: int

    value = {"x": Found(Interval(0.5, 0.25, np.float64(0.75)), 4), "y": [np.float32(1.5), float("nan")], "z": ()}
    expected = {"x": {"share": {"value": 0.5, "low": 0.25, "high": 0.75}, "of": 4}, "y": [1.5, None], "z": []}
    assert json.loads(json.dumps(to_json(value), allow_nan=False)) == expected
    assert to_json(np.array([[1, 2]])) == [[1, 2]]
    assert to_json("text") == "text"
    assert to_json(None) is None
