from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from blemish.evaluation.label_errors import Suspect, suspects
from blemish.evaluation.reliability import temperature

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def labelled(seed: int, counts: tuple[int, ...], distance: float, flipped: float) -> tuple[Floats, Ints, Bools]:
    """Out-of-fold probabilities of a real classifier (class weights, temperature), labels, and which are wrong.

    Normal classes, each `distance` apart from the first in a direction of its own, in ten dimensions.
    """
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(counts)), counts)
    x = random.normal(0, 1, (len(truth), 10))
    x[np.arange(len(truth)), truth] += distance * (truth > 0)
    wrong = random.random(len(truth)) < flipped
    given = np.where(wrong, (truth + random.integers(1, len(counts), len(truth))) % len(counts), truth)
    model = LogisticRegression(class_weight="balanced", max_iter=500)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    logits = cross_val_predict(model, x, given, cv=folds, method="predict_log_proba")
    odds = np.exp(logits / temperature(logits, given, 1 / np.bincount(given)))
    return odds / odds.sum(1, keepdims=True), given, wrong


def slowly(p: Floats, given: Ints, false_share: float) -> set[int]:
    """The rule in a slow version, image by image, for probabilities that already sum to the counts."""
    classes = range(p.shape[1])
    mean_own = {c: float(np.mean([p[i, c] for i in range(len(p)) if given[i] == c])) for c in classes if c in given}
    found = []
    for i in range(len(p)):
        passing = [c for c in mean_own if p[i, c] >= mean_own[c]]
        if passing:
            likely = max(passing, key=lambda c: p[i, c])
            if likely != given[i] and p[i, likely] > p[i, given[i]]:
                found.append((p[i, given[i]], i))
    found.sort()
    taken: set[int] = set()
    for k, (unlikely, _) in enumerate(found, 1):
        if sum(float(v) for v in p.ravel() if v <= unlikely) <= false_share * k:
            taken = {i for _, i in found[:k]}
    return taken


def test_suspects_worked_out_by_hand() -> None:
    first = np.array([0.9, 0.9, 0.02, 0.4, 0.1, 0.1, 0.6, 0.98])
    p, given = np.stack([first, 1 - first], axis=1), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    # Mean p_0 of those labelled 0: (0.9 + 0.9 + 0.02 + 0.4) / 4 = 0.555, and so is that of p_1 of those labelled 1.
    # Candidates: 2 and 7 (0.98), 3 and 6 (0.6). The columns' sums are the counts, 4 and 4, already.
    every = suspects(p, given, false_share=math.inf)
    assert [(s.index, s.given, s.likely) for s in every] == [(2, 0, 1), (7, 1, 0), (3, 0, 1), (6, 1, 0)]
    assert [s.confidence for s in every] == pytest.approx([0.02, 0.02, 0.4, 0.4])
    assert [s.margin for s in every] == pytest.approx([-0.96, -0.96, -0.2, -0.2])
    # Expected: 2 * 0.02 labels as unlikely as 0.02 (2 are), and 2 * 0.02 + 4 * 0.1 + 2 * 0.4 = 1.24 as 0.4 (4 are).
    assert suspects(p, given, false_share=0.32) == every
    assert suspects(p, given, false_share=0.25) == every[:2]
    assert suspects(p, given, false_share=0.025) == every[:2]
    assert suspects(p, given, false_share=0.015) == ()


def test_an_image_likelier_of_its_own_label_is_no_suspect() -> None:
    # Image 0 is as much 1 as those labelled 1 are (0.45 >= 0.4), and less 0 than those labelled 0 (0.55 < 0.625).
    p = np.array([[0.55, 0.45], [0.7, 0.3], [0.6, 0.4], [0.6, 0.4]])
    assert suspects(p, np.array([0, 0, 1, 1]), false_share=math.inf) == ()


def test_of_several_classes_the_likeliest_confident_one_is_named() -> None:
    sure = np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]])
    p = np.concatenate([np.repeat(sure, 20, axis=0), [[0.0, 0.985, 0.015], [0.002, 0.5, 0.498], [0.45, 0.1, 0.45]]])
    given = np.concatenate([np.repeat([0, 1, 2], 20), [0, 0, 2]])
    # The second of the three is unlikely to be 0, but like neither 1 (0.98) nor 2 (0.95); the third is typical of none.
    assert [(s.index, s.given, s.likely) for s in suspects(p, given)] == [(60, 0, 1)]


@pytest.mark.parametrize("false_share", [0.2, 0.5, 1.0, math.inf])
@pytest.mark.parametrize("count", [2, 4])
def test_the_rule_is_that_of_a_slow_version(count: int, false_share: float) -> None:
    random = np.random.default_rng(count)
    sizes = 0
    for _ in range(20):
        given = np.tile(np.arange(count), 30)
        p = random.dirichlet(np.full(count, 0.5), len(given)) + 0.7 * np.eye(count)[given] * (
            random.random((len(given), 1)) < 0.9
        )
        for _ in range(300):  # until rows sum to 1 and columns to the counts (Sinkhorn)
            p *= np.bincount(given) / p.sum(0)
            p /= p.sum(1, keepdims=True)
        found = {s.index for s in suspects(p, given, false_share=false_share)}
        assert found == slowly(p, given, false_share)
        sizes += len(found)
    assert sizes > 0


def test_class_weights_in_training_make_no_difference() -> None:
    """Probabilities for equal odds are first matched to the counts, here 9 : 1."""
    named, plain = 0, 0
    for seed in range(4):
        random = np.random.default_rng(seed)
        given = (random.random(4000) < 0.1).astype(np.int64)
        x = random.normal(0, 1, 4000) + 2 * given
        found = []
        for odds in (1.0, 1 / 9):  # the posterior were both classes alike often, and as often as they are
            p = 1 / (1 + np.exp(-2 * (x - 1)) / odds)
            p = np.stack([1 - p, p], axis=1)
            found.append({s.index for s in suspects(p, given)})
            plain += len(suspects(p, given, false_share=math.inf))
        assert found[0] == found[1]
        named += len(found[0])
    assert named <= 0.002 * 16_000  # every label is right
    assert plain >= 0.03 * 32_000


@pytest.mark.parametrize("counts", [(200, 60), (150, 60, 40)])
def test_right_labels_are_seldom_suspected(counts: tuple[int, ...]) -> None:
    """Where classes overlap, plain confident learning suspects 1 image in 20 to 1 in 5; this 1 in 200."""
    draws = range(12)
    for distance, plain_share in ((1.0, 0.15), (2.0, 0.04)):
        found, plain = 0, 0
        for seed in draws:
            p, given, _ = labelled(seed, counts, distance, 0)
            found += len(suspects(p, given))
            plain += len(suspects(p, given, false_share=math.inf))
        assert found <= 0.01 * sum(counts) * len(draws)
        assert plain >= plain_share * sum(counts) * len(draws)
    assert not any(len(suspects(*labelled(seed, counts, 7.0, 0)[:2])) for seed in draws)


def test_planted_flips_are_found() -> None:
    for distance, precision, recall in ((3.0, 0.85, 0.25), (5.0, 0.95, 0.4)):
        right, named, planted = 0, 0, 0
        for seed in range(12):
            p, given, wrong = labelled(seed, (200, 100), distance, 0.03)
            found = [s.index for s in suspects(p, given)]
            right, named, planted = right + int(wrong[found].sum()), named + len(found), planted + int(wrong.sum())
        assert right >= precision * named
        assert right >= recall * planted


def test_no_images_have_no_suspects_and_absent_classes_are_never_likely() -> None:
    assert suspects(np.zeros((0, 2)), np.zeros(0, int)) == ()
    p = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert suspects(p, np.array([0, 0, 1]), false_share=math.inf) == ()  # looks like 2, of which there are none
    certain = np.repeat(np.eye(2), 10, axis=0)
    given = np.repeat([0, 1], 10)
    given[3] = 1
    assert suspects(certain, given) == (Suspect(3, 1, 0, 0.0, -1.0),)


def test_invalid_input_is_refused() -> None:
    p, given = np.full((4, 2), 0.5), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="int labels"):
        suspects(p, given[:3])
    with pytest.raises(ValueError, match="int labels"):
        suspects(p, given.astype(float))
    with pytest.raises(ValueError, match="sum to 1"):
        suspects(p * 2, given)
    with pytest.raises(ValueError, match="sum to 1"):
        suspects(p * np.nan, given)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        suspects(p, given + 1)
    with pytest.raises(ValueError, match="share"):
        suspects(p, given, false_share=0)
