"""The AUROC's intervals against scipy, by hand, and by simulation. bench/intervals.py does so in many more settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from blemish.evaluation.auroc_interval import auroc_difference, auroc_interval, placements
from blemish.evaluation.bootstrap import Interval, bootstrap, wilson_ends
from blemish.evaluation.detection import Ranking, area_under_roc, auroc

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Draw = Callable[[np.random.Generator, int], Floats]


def ends(found: Interval) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


@pytest.mark.parametrize("steps", [3, 20, 10**6])
def test_placements_are_mean_comparisons(steps: int) -> None:
    random = np.random.default_rng(steps)
    scores, labels = random.integers(0, steps, 60).astype(np.float32), random.random(60) < 0.3
    of_anomalies, of_good = placements(scores, labels)
    above = np.sign(scores[labels][:, None] - scores[~labels][None]) / 2 + 0.5
    assert of_anomalies == pytest.approx(above.mean(1))
    assert of_good == pytest.approx(above.mean(0))
    found = auroc_interval(scores, labels)
    assert found.value == auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    low, high = ends(found)
    assert 0 <= low <= found.value <= high <= 1


def test_it_is_wilsons_interval_with_continuity_correction_of_the_smaller_class() -> None:
    """Where nothing is misplaced, of as many images as the smaller class has."""
    for level in (0.9, 0.95):
        low, high = ends(auroc_interval(np.arange(62.0), np.arange(62) >= 42, level))
        exact = stats.binomtest(20, 20).proportion_ci(level, "wilsoncc")
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert ends(auroc_interval(-np.arange(62.0), np.arange(62) >= 42)) == pytest.approx((0, 1 - ends_at_one(20)))


def ends_at_one(count: int) -> float:
    return wilson_ends(1 - 0.5 / count, count)[0]


def test_with_many_images_the_variance_is_delongs() -> None:
    """Of 2000 + 1000 images, as a normal distribution with DeLong's error (1988), here from his formulas."""
    random = np.random.default_rng(3)
    labels = np.arange(3000) >= 2000
    scores = random.normal(0, 1, 3000) + np.where(labels, 1.2, 0.0)
    above = (scores[labels][:, None] > scores[~labels][None]).astype(float)
    error = float(np.sqrt(np.cov(above.mean(1)) / 1000 + np.cov(above.mean(0)) / 2000))
    found = auroc_interval(scores, labels)
    assert ends(found) == pytest.approx((above.mean() - 1.96 * error, above.mean() + 1.96 * error), abs=0.1 * error)
    other = scores + random.normal(0, 1, 3000)
    less = (other[labels][:, None] > other[~labels][None]).astype(float)
    error = float(np.sqrt(np.cov((above - less).mean(1)) / 1000 + np.cov((above - less).mean(0)) / 2000))
    both = above.mean() - less.mean()
    difference = auroc_difference(scores, other, labels)
    assert difference.value == pytest.approx(both)
    assert ends(difference) == pytest.approx((both - 1.96 * error, both + 1.96 * error), abs=0.1 * error)


def test_too_few_images() -> None:
    scores = np.array([1.0, 2, 3, 4])
    for labels in (np.zeros(4, bool), np.ones(4, bool)):
        assert auroc_interval(scores, labels) == auroc_difference(scores, scores, labels) == Interval(None)
    one = np.array([False, False, True, False])
    assert auroc_interval(scores, one) == Interval(2 / 3)
    assert auroc_difference(scores, -scores, one) == Interval(1 / 3)
    two = np.array([False, True, True, False])
    assert ends(auroc_interval(scores, two))[0] < 0.5
    assert auroc_interval(np.ones(4), two).value == 0.5  # all ties


BINORMAL = float(stats.norm.ppf(0.97) * np.sqrt(2))


def drawn(good: Draw, defective: Draw, counts: tuple[int, int], draws: int) -> Iterator[tuple[Floats, Bools]]:
    random = np.random.default_rng(7)
    labels = np.arange(sum(counts)) >= counts[0]
    for _ in range(draws):
        yield np.concatenate([good(random, counts[0]), defective(random, counts[1])]), labels


def normal(random: np.random.Generator, count: int) -> Floats:
    return random.normal(0, 1, count)


SETTINGS: dict[str, tuple[Draw, Draw]] = {
    "normal": (normal, lambda random, count: random.normal(BINORMAL, 1, count)),
    "whole numbers": (  # 1 against mostly 0: 0.94 are below, and half of the 0.06 that are equal
        lambda random, count: (random.random(count) < 0.06).astype(float),
        lambda _, count: np.ones(count),
    ),
    "missed": (  # 6 % of the defects look like good parts
        normal,
        lambda random, count: random.normal(0, 1, count) + np.where(random.random(count) < 0.06, 0, 30),
    ),
    "spread": (normal, lambda random, count: random.normal(stats.norm.ppf(0.97) * np.sqrt(10), 3, count)),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("counts", [(42, 20), (20, 42), (12, 12), (100, 30)])
def test_the_interval_covers_an_auroc_near_one(setting: str, counts: tuple[int, int]) -> None:
    """The truth is 0.97 in all. 500 draws have a standard error of 1 % at 95 %."""
    found = [ends(auroc_interval(*images)) for images in drawn(*SETTINGS[setting], counts, 500)]
    below, above = np.mean([low - 1e-9 > 0.97 for low, _ in found]), np.mean([high + 1e-9 < 0.97 for _, high in found])
    assert max(below, above) <= 0.045
    assert below + above <= 0.065


def test_percentiles_of_a_bootstrap_do_not() -> None:
    """Why the AUROC has an interval of its own."""
    held = 0
    for number, (scores, labels) in enumerate(drawn(*SETTINGS["normal"], (20, 42), 200)):
        ranking = Ranking.of(scores, labels)
        found = bootstrap(lambda w, r=ranking: area_under_roc(*r.counts(w)), labels, resamples=200, seed=number)  # type: ignore[misc]
        held += found.low is not None and found.high is not None and found.low <= 0.97 <= found.high
    assert held / 200 < 0.92


@pytest.mark.parametrize("counts", [(42, 20), (20, 20), (100, 20)])
@pytest.mark.parametrize(("first", "second"), [(0.97, 0.97), (0.97, 0.99), (0.9, 0.97)])
def test_the_interval_of_a_difference_covers_it(counts: tuple[int, int], first: float, second: float) -> None:
    random = np.random.default_rng(11)
    labels = np.arange(sum(counts)) >= counts[0]
    steps = np.sqrt(2) * stats.norm.ppf([first, second])
    outside = 0
    for _ in range(500):
        common, own = random.normal(0, 1, (1, len(labels))), random.normal(0, 1, (2, len(labels)))
        scores = 0.8 * common + 0.6 * own + steps[:, None] * labels
        low, high = ends(auroc_difference(scores[1], scores[0], labels))
        outside += not low <= second - first <= high
    assert outside / 500 <= 0.06
