import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from blemish.detectors.hybrid.combine import Help, Unit, Units, compared, doubtful, partial_area


def test_a_unit_is_the_median_and_the_95_percent_quantile_of_good_images() -> None:
    unit = Unit.of(np.arange(101, dtype=np.float32))
    assert (unit.centre, unit.scale) == (50, 45)
    assert unit(torch.tensor([50.0, 95.0, 140.0])).tolist() == [0, 1, 2]
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


def made(helps: float, seed: int = 2, bad: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances and heads' answers of 100 good and some defective images, and which these are."""
    random = np.random.default_rng(seed)
    defective = np.arange(100 + bad) >= 100
    count = len(defective)
    return random.normal(size=count) + defective, random.normal(size=count) + helps * defective, defective


def helped(helps: float, seed: int = 2, bad: int = 40) -> Help:
    distances, heads, defective = made(helps, seed, bad)
    return compared(distances, distances + heads, defective, [str(i) for i in range(len(defective))])


def test_heads_that_know_the_defects_help_clearly() -> None:
    found = helped(2.0)
    assert found.clear
    assert found.with_heads > found.without + 0.1
    assert found.sure > 0.95


def test_heads_that_are_wrong_or_have_nothing_to_add_do_not_help() -> None:
    assert not helped(-2.0).clear
    distances, _, defective = made(0)
    perfect = distances + 20 * defective
    assert not compared(perfect, 2 * perfect, defective, [str(i) for i in range(len(perfect))]).clear


def test_heads_that_are_noise_are_seldom_taken_for_help() -> None:
    """Adding noise loses; that it seems to win clearly happens in at most a sixth of the cases."""
    taken = sum(helped(0.0, seed, bad=12).clear for seed in range(18))
    assert taken <= 3


def test_images_of_one_item_are_drawn_together() -> None:
    """Of two defective items, one with 39 images that heads find and one that they lose, the one may be all that is
    drawn, so that nothing is sure; as 40 items it would be."""
    defective = np.arange(140) >= 100
    before, after = np.where(defective, 0.0, np.arange(140) / 100), np.where(defective, 5.0, np.arange(140) / 100)
    before[-1], after[-1] = 5.0, 0.0
    own = [str(i) for i in range(140)]
    assert compared(before, after, defective, own).sure > 0.99
    shared = [*own[:100], *["one"] * 39, "other"]
    assert 0.6 < compared(before, after, defective, shared).sure < 0.9


def test_scores_and_cells_by_hand() -> None:
    units = Units(Unit(1.0, 2.0), Unit(0.0, 4.0))
    deviations, cells = torch.tensor([[3.0, 5.0]]), torch.tensor([[8.0, 0.0]])
    scores, joint = units.join(deviations, cells, torch.tensor([6.0]))
    assert joint.tolist() == [[1 + 2, 2 + 0]]
    assert scores.tolist() == [((2 + 1.5) + 3) / 2]


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
