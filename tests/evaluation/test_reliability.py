from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import optimize, special
from sklearn import metrics
from sklearn.calibration import calibration_curve

from blemish.evaluation.bootstrap import Interval, to_json, wilson
from blemish.evaluation.reliability import (
    balanced_weights,
    class_weights,
    expected_calibration_error,
    reliability,
    temperature,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def drawn(seed: int, count: int, spread: float = 2.5, overconfident: float = 1.0) -> tuple[Floats, Bools]:
    """Calibrated probabilities and labels; `overconfident` multiplies the log-odds of the probabilities."""
    random = np.random.default_rng(seed)
    log_odds = random.normal(0, spread, count)
    return special.expit(overconfident * log_odds), random.random(count) < special.expit(log_odds)


def loss(t: float, logits: Floats, classes: npt.NDArray[np.int64], weights: Floats) -> float:
    """The objective in a slow version, image by image."""
    total, weight = 0.0, 0.0
    for row, c in zip(logits, classes, strict=True):
        n, others = int((classes == c).sum()), len(row) - 1
        for j, log_p in enumerate(special.log_softmax(row / t)):
            total -= weights[c] * log_p * ((n + 1) / (n + 2) if j == c else 1 / (n + 2) / others)
        weight += weights[c]
    return total / weight


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_temperature_agrees_with_scipy(count: int, weighted: bool) -> None:
    random = np.random.default_rng(count)
    classes = random.integers(0, count, 120)
    logits = random.normal(0, 2, (120, count)) + 2.5 * np.eye(count)[classes]
    weights = random.uniform(0.2, 3, count) if weighted else np.ones(count)
    best = optimize.minimize_scalar(
        loss, bounds=(0.05, 20), args=(logits, classes, weights), method="bounded", options={"xatol": 1e-9}
    )
    found = temperature(logits, classes, weights if weighted else None)
    assert found == pytest.approx(best.x, rel=1e-5)
    assert 0.3 < found < 3


def test_the_temperature_worked_out_by_hand() -> None:
    # Logits (0, 2) or (2, 0), 3 of 4 images of each class right. By Platt an image counts by 5/6 as of its own
    # class: the right class gets 3/4 * 5/6 + 1/4 * 1/6 = 2/3, so that 2 / T must be log(2/3 : 1/3) = log 2.
    side = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    classes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert temperature(2 * np.eye(2)[side], classes) == pytest.approx(2 / math.log(2))
    # Class 1 counts threefold, but with the same error rate that makes no difference. With more errors it does.
    assert temperature(2 * np.eye(2)[side], classes, np.array([1.0, 3.0])) == pytest.approx(2 / math.log(2))
    side[5] = 0  # class 1: half are right, 1/2 in any case; mean (2/3 + 3 * 1/2) / 4 = 13/24
    assert temperature(2 * np.eye(2)[side], classes, np.array([1.0, 3.0])) == pytest.approx(2 / math.log(13 / 11))


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_overconfidence(true: float) -> None:
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, (6000, 3))
    classes = (special.softmax(honest, axis=1).cumsum(1) < random.random((6000, 1))).sum(1)
    assert temperature(honest * true, classes) == pytest.approx(true, rel=0.05)


def test_separated_classes_do_not_give_certainty() -> None:
    confidences = []
    for n in (10, 100, 1000):
        classes = np.arange(2 * n) % 2
        logits = 6.0 * np.eye(2)[classes]  # without Platt's targets T would be 0.05 and every probability 1
        found = temperature(logits, classes)
        confidences.append(special.expit(6 / found))
        assert confidences[-1] == pytest.approx((n + 1) / (n + 2))


def test_temperatures_stay_in_their_range() -> None:
    classes = np.arange(40) % 2
    right = np.eye(2)[classes]
    assert temperature(right * 1e-3, classes) == pytest.approx(0.05)
    assert temperature(-right, classes) == pytest.approx(20)  # worse than a coin: as good as none
    assert temperature(right * 1e6, classes) == pytest.approx(20)
    assert temperature(np.zeros((40, 2)) + np.arange(40)[:, None], classes) == 1


def test_a_temperature_needs_two_classes_and_valid_numbers() -> None:
    logits, classes = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    for wrong in (np.array([1, 1, 1, 1]), np.zeros(0, int)):
        with pytest.raises(ValueError, match="two classes"):
            temperature(logits[: len(wrong)], wrong)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        temperature(logits, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="finite"):
        temperature(logits + np.nan, classes)
    with pytest.raises(ValueError, match="weights"):
        temperature(logits, classes, np.array([1.0, -1, 1]))


def test_ece_worked_out_by_hand() -> None:
    p = np.array([0.0, 0.1, 0.3, 0.35, 0.5, 1.0])
    labels = np.array([0, 1, 0, 1, 1, 1], bool)
    # Two bins, 0..0.5 and above: mean 0.25 against 3/5; and 1 against 1.
    assert expected_calibration_error(p, labels, bins=2) == pytest.approx(5 / 6 * 0.35)
    # Ten bins, each closed on the right: {0, 0.1} 0.05 and 1/2; {0.3} 0.3 and 0; {0.35} and {0.5}, both anomalies; {1}.
    assert expected_calibration_error(p, labels) == pytest.approx((2 * 0.45 + 0.3 + 0.65 + 0.5 + 0) / 6)
    # Anomalies counting double: (0.2 + 0.7 + 1 + ...) for the first of two bins.
    weights = np.where(labels, 2.0, 1.0)
    mean = (0 + 2 * 0.1 + 0.3 + 2 * 0.35 + 2 * 0.5) / 8
    assert expected_calibration_error(p, labels, bins=2, weights=weights) == pytest.approx(8 / 10 * (6 / 8 - mean))
    assert math.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, bool)))


@pytest.mark.parametrize("seed", range(6))
def test_bins_and_scores_agree_with_scikit_learn(seed: int) -> None:
    p, labels = drawn(seed, 300, overconfident=1.7)
    if seed % 2:
        p = np.round(p, 1)  # on the bins' very edges
    bins = [10, 7, 15][seed % 3]
    found = reliability(p, labels, bins=bins, resamples=50)
    observed, predicted = calibration_curve(labels, p, n_bins=bins)
    used = [b for b in found.bins if b.images]
    np.testing.assert_allclose([b.anomalies.value for b in used], observed)  # type: ignore[arg-type]
    np.testing.assert_allclose([b.probability for b in used], predicted)  # type: ignore[arg-type]
    gaps = [b.share * gap for b, gap in zip(used, abs(observed - predicted), strict=True)]
    assert found.ece.value == pytest.approx(sum(gaps))
    assert found.ece.value == expected_calibration_error(p, labels, bins=bins)
    assert found.brier.value == pytest.approx(metrics.brier_score_loss(labels, p))
    assert found.log_loss.value == pytest.approx(metrics.log_loss(labels, p))
    weights = np.random.default_rng(seed).uniform(0.1, 3, 300)
    found = reliability(p, labels, weights=weights, bins=bins, resamples=50)
    assert found.brier.value == pytest.approx(metrics.brier_score_loss(labels, p, sample_weight=weights))
    assert found.log_loss.value == pytest.approx(metrics.log_loss(labels, p, sample_weight=weights))
    assert found.ece_if_calibrated is None
    for b in found.bins:
        inside = (p > b.low) & (p <= b.high) | ((p == 0) & (b.low == 0))
        assert b.images == inside.sum()
        assert b.share == pytest.approx(weights[inside].sum() / weights.sum())
        if b.images:
            assert b.anomalies.value == pytest.approx(np.average(labels[inside], weights=weights[inside]))
            assert b.anomalies.low is None


def test_weights_are_repetitions() -> None:
    p, labels = drawn(3, 60)
    times = np.random.default_rng(0).integers(1, 4, 60)
    many = expected_calibration_error(np.repeat(p, times), np.repeat(labels, times))
    assert expected_calibration_error(p, labels, weights=times.astype(float)) == pytest.approx(many)


def test_balanced_weights_worked_out_by_hand() -> None:
    labels = np.array([True, False, False, False])
    np.testing.assert_allclose(balanced_weights(labels), [2, 2 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(class_weights(np.array([3, 1])), [2 / 3, 2])
    np.testing.assert_allclose(class_weights(np.array([1, 2, 3])), [2, 1, 2 / 3])
    assert (balanced_weights(np.ones(3, bool)) == 1).all()
    assert (balanced_weights(np.zeros(3, bool)) == 1).all()


def test_intervals_of_bins_are_wilsons_and_move_with_the_weights() -> None:
    p = np.full(20, 0.55)
    labels = np.arange(20) < 5
    plain = reliability(p, labels, resamples=10).bins[5]
    assert plain.anomalies == wilson(5, 20)
    assert reliability(p, labels, resamples=10, level=0.8).bins[5].anomalies == wilson(5, 20, 0.8)
    balanced = reliability(p, labels, weights=balanced_weights(labels), resamples=10).bins[5]
    # 5 and 15 weigh the same: odds are tripled, so 1/4 becomes 1/2; likewise at the ends.
    assert balanced.anomalies.value == pytest.approx(0.5)
    for end in ("low", "high"):
        plain_end, moved = getattr(plain.anomalies, end), getattr(balanced.anomalies, end)
        assert moved / (1 - moved) == pytest.approx(3 * plain_end / (1 - plain_end))
    empty = reliability(p, labels, resamples=10).bins[0]
    assert (empty.images, empty.share, empty.probability, empty.anomalies) == (0, 0, None, Interval(None))


def test_balanced_weights_make_probabilities_for_equal_odds_calibrated() -> None:
    random = np.random.default_rng(0)
    labels = random.random(40_000) < 0.1
    x = random.normal(0, 1, 40_000) + 2 * labels
    p = special.expit(2 * (x - 1))  # the posterior were both classes alike often
    assert expected_calibration_error(p, labels) > 0.15
    found = reliability(p, labels, weights=balanced_weights(labels), resamples=100)
    assert found.ece.value is not None
    assert found.ece_if_calibrated is not None
    assert found.ece.value < found.ece_if_calibrated < 0.03


def test_the_ece_of_calibrated_and_of_overconfident_probabilities() -> None:
    calibrated, overconfident, held = [], [], []
    for seed in range(60):
        found = reliability(*drawn(seed, 150), resamples=200, seed=seed)
        assert found.ece.value is not None
        assert found.ece_if_calibrated is not None
        calibrated.append(found.ece.value > found.ece_if_calibrated)
        held.append(found.ece.low)
        found = reliability(*drawn(seed, 150, overconfident=3), resamples=200, seed=seed)
        assert found.ece.value is not None
        assert found.ece_if_calibrated is not None
        overconfident.append(found.ece.value > found.ece_if_calibrated)
    assert np.mean(calibrated) <= 0.15  # 5 % are meant
    assert np.mean(overconfident) >= 0.95
    assert np.mean([low == 0 for low in held]) >= 0.85


@pytest.mark.parametrize("overconfident", [1.0, 2.0])
def test_the_interval_of_the_ece_covers_the_true_one(overconfident: float) -> None:
    true = expected_calibration_error(*drawn(99, 400_000, overconfident=overconfident))
    inside = []
    for seed in range(60):
        ece = reliability(*drawn(seed, 200, overconfident=overconfident), resamples=200, seed=seed).ece
        assert ece.low is not None
        assert ece.high is not None
        inside.append(ece.low <= true <= ece.high)
    assert np.mean(inside) >= 0.85  # plain percentiles: 0 % and 61 %


def test_undefined_and_certain_cases() -> None:
    nothing = reliability(np.zeros(0), np.zeros(0, bool))
    assert (nothing.ece, nothing.brier, nothing.log_loss) == (Interval(None),) * 3
    assert nothing.ece_if_calibrated is None
    wrong = reliability(np.array([0.0, 1.0, 0.0, 1.0]), np.array([True, False, True, False]), resamples=20)
    assert (wrong.ece.value, wrong.brier.value) == (1, 1)
    assert wrong.log_loss.value == pytest.approx(-math.log(np.finfo(float).eps))
    one_class = reliability(np.array([0.2, 0.4, 0.3]), np.zeros(3, bool), resamples=50)
    assert one_class.brier.value == pytest.approx((0.04 + 0.16 + 0.09) / 3)


def test_invalid_input_is_refused() -> None:
    p, labels = np.array([0.2, 0.7]), np.array([False, True])
    for bad in (np.array([0.2, 1.1]), np.array([-0.1, 0.5]), np.array([np.nan, 0.5])):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            reliability(bad, labels)
    with pytest.raises(ValueError, match="bool"):
        expected_calibration_error(p, np.array([0, 1]))
    with pytest.raises(ValueError, match="bin"):
        expected_calibration_error(p, labels, bins=0)
    for weights in (np.array([1.0]), np.array([1.0, 0.0]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="weights"):
            expected_calibration_error(p, labels, weights=weights)


def test_equal_seeds_give_equal_json() -> None:
    p, labels = drawn(1, 80)
    one, two = (json.dumps(to_json(reliability(p, labels, resamples=100, seed=4))) for _ in range(2))
    assert one == two
    found = json.loads(one)
    assert set(found) == {"images", "weighted", "bins", "ece", "ece_if_calibrated", "brier", "log_loss"}
    assert set(found["bins"][0]) == {"low", "high", "images", "share", "probability", "anomalies"}
