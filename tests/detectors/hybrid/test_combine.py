import math

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from blemish.detectors.hybrid.combine import Unit, combined, doubtful, partial_area


def test_a_unit_is_the_median_and_the_95_percent_quantile_of_good_images() -> None:
    unit = Unit.of(np.arange(101, dtype=np.float32))
    assert (unit.centre, unit.scale) == (50, 45)
    assert unit(np.array([50.0, 95.0, 140.0])).tolist() == [0, 1, 2]
    assert Unit.of(np.ones(5)).scale > 0  # of images that are all alike too


def test_of_exponential_tails_the_sum_is_fishers_combination() -> None:
    """p = exp(-x) has the median log 2, and log 20 is exceeded by 5 %: so a value u means p = 10^-u / 2."""
    quantiles = -np.log1p(-(np.arange(200_000) + 0.5) / 200_000)
    unit = Unit.of(quantiles)
    for u in (0.0, 1.0, 2.0):
        x = unit.centre + u * unit.scale
        assert math.exp(-x) == pytest.approx(10**-u / 2, rel=1e-3)


def test_partial_area_against_the_curve() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(300) >= 200
    scores = random.normal(size=300) + labels
    rates, caught, _ = roc_curve(labels, scores, drop_intermediate=False)
    inside = rates <= 0.1
    xs, ys = np.append(rates[inside], 0.1), np.append(caught[inside], np.interp(0.1, rates, caught))
    area = float(np.sum((ys[1:] + ys[:-1]) / 2 * np.diff(xs)))
    chance = 0.1**2 / 2
    assert partial_area(scores, labels) == pytest.approx(0.5 * (1 + (area - chance) / (0.1 - chance)))
    assert partial_area(labels.astype(float), labels) == 1


def made(helps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    defective = np.arange(140) >= 100
    return random.normal(size=140) + defective, random.normal(size=140) + helps * defective, defective


def test_heads_take_part_where_more_is_caught_with_them() -> None:
    found = combined(*made(helps=2.0))
    assert found.weight == 1
    assert max(found.areas[0.5], found.areas[1.0]) > found.areas[0.0] + 0.1


def test_heads_that_are_noise_or_worse_stay_out_unless_forced() -> None:
    assert combined(*made(helps=-2.0)).weight == 0
    assert combined(*made(helps=-2.0), forced=True).weight == 1
    distances, _, defective = made(helps=0)
    perfect = distances + 20 * defective
    assert combined(perfect, perfect, defective).weight == 0  # nothing to gain


def test_wrong_labels_are_suspected() -> None:
    random = np.random.default_rng(3)
    defective = np.arange(120) >= 80
    scores = random.normal(size=120) + 8 * defective
    scores[[5, 100]] = -1, 9  # clear cases
    given = defective.copy()
    given[[5, 100]] = ~given[[5, 100]]
    found = doubtful(scores, given, [f"{i}.png" for i in range(120)])
    assert {entry["name"]: (entry["given"], entry["likely"]) for entry in found} == {
        "5.png": ("anomaly", "good"),
        "100.png": ("good", "anomaly"),
    }
