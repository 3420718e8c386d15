import numpy as np
import pytest

from blemish import calibration
from blemish.types import BlemishError


def test_p_values_by_hand() -> None:
    good = np.array([1.0, 2.0, 2.0, 3.0])
    # p = (1 + how many calibration scores are at least as high) / 5
    assert calibration.p_values(good, np.array([0.0, 2.0, 2.5, 3.0, 9.0])).tolist() == [1.0, 0.8, 0.4, 0.4, 0.2]


@pytest.mark.parametrize("n", [19, 20, 39, 57, 100])
@pytest.mark.parametrize("rate", [0.05, 0.1, 1 / 3])
def test_the_threshold_is_where_p_crosses_the_rate(n: int, rate: float) -> None:
    good = np.round(np.random.default_rng(n).normal(size=n), 1)  # rounded: ties
    limit = calibration.threshold(good, rate)
    scores = np.unique(np.concatenate([good, good + 0.05, [99.0]]))
    assert ((scores > limit) == (calibration.p_values(good, scores) <= rate + 1e-12)).all()


@pytest.mark.parametrize(
    ("n", "rate", "ties"), [(20, 0.05, False), (60, 0.1, False), (60, 0.1, True), (300, 0.01, False)]
)
def test_the_promise_holds_over_many_draws(n: int, rate: float, ties: bool) -> None:
    random = np.random.default_rng(7)
    draws = random.exponential(size=(4000, n + 1))
    if ties:
        draws = np.round(draws, 1)
    alarms = np.mean([row[-1] > calibration.threshold(row[:-1], rate) for row in draws])
    error = np.sqrt(rate * (1 - rate) / len(draws))
    assert alarms <= rate + 3 * error
    if not ties:  # and it is not needlessly strict: the expected rate is floor(rate (n + 1)) / (n + 1)
        assert alarms >= np.floor(rate * (n + 1) + 1e-9) / (n + 1) - 3 * error


def test_too_few_parts_are_refused_with_what_can_be_had() -> None:
    with pytest.raises(BlemishError, match=r"9 held-out good pictures cannot promise 5.00% .* takes 19; .* 10%"):
        calibration.threshold(np.arange(9.0), 0.05)
    assert calibration.parts_needed(0.05) == 19
    assert calibration.threshold(np.arange(19.0), 0.05) == 18.0


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_must_be_a_share(rate: float) -> None:
    with pytest.raises(BlemishError, match="lies between"):
        calibration.threshold(np.arange(100.0), rate)
