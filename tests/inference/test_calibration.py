from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from blemish.evaluation.bootstrap import clopper_pearson
from blemish.inference import calibration
from blemish.types import BlemishError

Floats = npt.NDArray[np.float64]


def three_errors(rate: float, draws: int) -> float:
    """Three standard errors of a share that is `rate`, measured in so many draws."""
    return 3 * float(np.sqrt(rate * (1 - rate) / draws))


def test_p_values_by_hand() -> None:
    good = np.array([1.0, 2.0, 2.0, 3.0])
    # p = (1 + how many calibration scores are at least as high) / 5
    assert calibration.p_values(good, np.array([0.0, 2.0, 2.5, 3.0, 9.0])).tolist() == [1.0, 0.8, 0.4, 0.4, 0.2]


def test_items_count_once_however_many_images_they_have() -> None:
    groups = ["a", "", "b", "a", "", "a", "b"]
    weights = calibration.item_weights(groups)
    assert weights.tolist() == pytest.approx([1 / 3, 1, 1 / 2, 1 / 3, 1, 1 / 3, 1 / 2])
    good = np.array([3.0, 1.0, 3.0, 5.0, 2.0, 0.0, 4.0])
    # above 3.5: one of three images of a, one of two of b, of four items; below all: every item in full
    p = calibration.p_values(good, np.array([3.5, -1.0, 9.0]), weights)
    assert p.tolist() == pytest.approx([(1 + 1 / 3 + 1 / 2) / 5, 1.0, 1 / 5], abs=1e-9)
    assert p[1] == 1.0


def test_images_without_a_group_are_items_of_their_own() -> None:
    good, scores = np.random.default_rng(0).normal(size=(2, 50)).round(1)
    alone = calibration.item_weights([""] * 50)
    assert calibration.p_values(good, scores, alone).tolist() == calibration.p_values(good, scores).tolist()
    assert calibration.threshold(good, 0.1, [""] * 50) == calibration.threshold(good, 0.1)


@pytest.mark.parametrize("n", [19, 20, 39, 57, 100])
@pytest.mark.parametrize("rate", [0.05, 0.1, 1 / 3])
def test_the_threshold_is_where_p_crosses_the_rate(n: int, rate: float) -> None:
    good = np.round(np.random.default_rng(n).normal(size=n), 1)  # rounded: ties
    threshold = calibration.threshold(good, rate)
    scores = np.unique(np.concatenate([good, good + 0.05, [99.0]]))
    assert ((scores > threshold) == (calibration.p_values(good, scores) <= rate + 1e-12)).all()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_alarm_and_p_agree_with_items_and_ties(data: st.DataObject) -> None:
    """score > threshold <=> p <= rate, also where the rate is exactly a p-value."""
    images = data.draw(st.lists(st.tuples(st.integers(-4, 4), st.sampled_from(["", *"abcdefgh"])), min_size=4))
    good, groups = np.array([float(score) for score, _ in images]), [group for _, group in images]
    weights = calibration.item_weights(groups)
    scores = np.unique(np.concatenate([good, good + 0.5, good - 0.5]))
    p = calibration.p_values(good, scores, weights)
    items = round(weights.sum())
    rate = data.draw(st.one_of(st.sampled_from(p.tolist()), st.floats(0.01, 0.99)))
    if rate * (items + 1) < 1 - 1e-9:
        with pytest.raises(BlemishError, match="cannot guarantee"):
            calibration.threshold(good, rate, groups)
    elif rate < 1:
        threshold = calibration.threshold(good, rate, groups)
        assert ((scores > threshold) == (p <= rate + 1e-9 / (items + 1))).all()


@pytest.mark.parametrize(
    ("n", "rate", "ties"), [(20, 0.05, False), (60, 0.1, False), (60, 0.1, True), (300, 0.01, False)]
)
def test_the_guarantee_holds_over_many_draws(n: int, rate: float, ties: bool) -> None:
    random = np.random.default_rng(7)
    draws = random.exponential(size=(4000, n + 1))
    if ties:
        draws = np.round(draws, 1)
    alarms = np.mean([row[-1] > calibration.threshold(row[:-1], rate) for row in draws])
    error = three_errors(rate, len(draws))
    assert alarms <= rate + error
    if not ties:  # and it is not needlessly strict: the expected rate is floor(rate (n + 1)) / (n + 1)
        assert alarms >= np.floor(rate * (n + 1) + 1e-9) / (n + 1) - error


def items_drawn(random: np.random.Generator, items: int) -> tuple[Floats, list[str]]:
    """Scores of 1 to 8 images of each item; images of an item are alike, and items with many score higher."""
    sizes = random.choice([1, 2, 8], size=items)
    own = random.normal(size=items) + 0.2 * sizes
    scores = np.repeat(own, sizes) + 0.1 * random.normal(size=sizes.sum())
    return scores, [str(item) for item in np.repeat(np.arange(items), sizes)]


def test_the_guarantee_holds_for_items_with_several_images() -> None:
    random, rate, draws = np.random.default_rng(8), 0.05, 3000
    hits = []
    for _ in range(draws):
        scores, groups = items_drawn(random, 41)
        new = np.flatnonzero(np.array(groups) == "40")[0]  # one image of the last item; 40 items calibrate
        hits.append(scores[new] > calibration.threshold(scores[:new], rate, groups[:new]))
    assert np.mean(hits) <= rate + three_errors(rate, draws)
    assert np.mean(hits) >= 0.02  # not needlessly strict: of 41 items at least 1 may be above, and 1/41 is 2.4 %


def test_items_counted_as_images_would_break_the_guarantee() -> None:
    random, draws = np.random.default_rng(9), 2000
    own = random.normal(size=(draws, 10))  # ten items, the first nine with five images that are all but copies
    images = np.repeat(own[:, :9], 5, axis=1) + 1e-6 * random.normal(size=(draws, 45))
    pooled = np.mean([new > calibration.threshold(row, 0.05) for row, new in zip(images, own[:, 9], strict=True)])
    assert pooled > 0.05 + three_errors(0.05, draws)  # 1 / 10 in truth
    with pytest.raises(BlemishError, match=r"9 good items .* cannot guarantee 5.00% .* takes 19; hold out 10 more"):
        calibration.threshold(images[0], 0.05, [str(i // 5) for i in range(45)])


@pytest.mark.parametrize(
    ("n", "rate", "ties"), [(59, 0.05, False), (60, 0.1, False), (60, 0.1, True), (300, 0.01, True)]
)
def test_the_guarantee_with_confidence_holds_for_95_of_100_calibration_sets(n: int, rate: float, ties: bool) -> None:
    random, draws = np.random.default_rng(10), 4000
    sets = random.exponential(size=(draws, n))
    sets = np.floor(20 * sets) / 20 if ties else sets
    thresholds = np.array([calibration.threshold(row, rate, confidence=0.95) for row in sets])
    # The true rate above the threshold: P(floor(20 X) / 20 > t) = P(X >= t + 1/20)
    true = np.exp(-(thresholds + 0.05)) if ties else np.exp(-thresholds)
    too_often = np.mean(true > rate + 1e-12)
    assert too_often <= 0.05 + three_errors(0.05, draws)
    if not ties:  # the largest rank is taken: one more would be above 5 %
        rank = calibration.allowance(n, rate, 0.95)
        assert too_often == pytest.approx(stats.beta.sf(rate, rank, n + 1 - rank), abs=three_errors(0.05, draws))
        assert stats.beta.sf(rate, rank + 1, n - rank) > 0.05


def test_the_confidence_is_about_items_where_images_depend_on_each_other() -> None:
    random, rate, draws = np.random.default_rng(11), 0.1, 1500
    new, whose = items_drawn(random, 20000)
    numbers = np.array(whose, np.int64)
    highest = np.full(20000, -np.inf)
    np.maximum.at(highest, numbers, new)
    sets = [items_drawn(random, 60) for _ in range(draws)]
    thresholds = [calibration.threshold(scores, rate, groups, confidence=0.95) for scores, groups in sets]
    too_often = np.mean([np.mean(highest > threshold) > rate for threshold in thresholds])
    assert too_often <= 0.05 + three_errors(0.05, draws)
    assert too_often >= stats.binom.cdf(calibration.allowance(60, rate, 0.95) - 1, 60, rate) - 0.02


@pytest.mark.parametrize(("n", "rate"), [(29, 0.1), (59, 0.05), (93, 0.05), (500, 0.02), (2000, 0.005)])
def test_the_rank_with_confidence_is_scipys(n: int, rate: float) -> None:
    tails = stats.binom.sf(np.arange(n), n, rate)  # P(X >= 1), P(X >= 2), ...
    assert calibration.allowance(n, rate, 0.95) == np.sum(tails >= 0.95)


@pytest.mark.parametrize(("n", "share"), [(1, 0.5), (10, 0.01), (60, 0.1), (300, 0.97), (5000, 0.002)])
def test_the_binomial_tail_is_scipys(n: int, share: float) -> None:
    ranks = [*range(min(n, 40) + 2), n, n + 1, n + 2]
    tails = [calibration.binomial_tail(n, k, share) for k in ranks]
    assert tails == pytest.approx(stats.binom.sf(np.array(ranks) - 1, n, share), rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("confidence", [None, 0.9, 0.95])
@pytest.mark.parametrize("rate", [0.005, 0.01, 0.05, 0.1, 0.5])
def test_the_fewest_parts_are_the_fewest(rate: float, confidence: float | None) -> None:
    needed = calibration.parts_needed(rate, confidence)
    assert calibration.allowance(needed, rate, confidence) == 1
    assert calibration.best_rate(needed, confidence) <= rate + 1e-12 < calibration.best_rate(needed - 1, confidence)
    with pytest.raises(BlemishError, match=f"takes {needed}; hold out 1 more"):
        calibration.allowance(needed - 1, rate, confidence)


def test_the_offered_false_alarm_rate_can_be_guaranteed() -> None:
    for confidence in (None, 0.95):
        for n in range(1, 120):
            with pytest.raises(BlemishError) as refusal:
                calibration.allowance(n, 0.0001, confidence)
            had = re.search(r"--false-alarms ([\d.]+)%", str(refusal.value))
            assert had, refusal.value
            assert calibration.allowance(n, float(had[1]) / 100, confidence) >= 1


def test_too_few_parts_are_refused_with_what_can_be_guaranteed() -> None:
    with pytest.raises(BlemishError, match=r"9 held-out good images cannot guarantee 5.00% .* takes 19; .* 10%"):
        calibration.threshold(np.arange(9.0), 0.05)
    assert calibration.parts_needed(0.05) == 19
    assert calibration.threshold(np.arange(19.0), 0.05) == 18.0
    sure = r"40 .* with 95% confidence: that takes 59; hold out 19 more .* 7\.3%, or ask for the guarantee on average"
    with pytest.raises(BlemishError, match=sure):
        calibration.threshold(np.arange(40.0), 0.05, confidence=0.95)
    with pytest.raises(BlemishError, match=r"^0 held-out .* larger --calibration\)\.$"):  # 100 % is no offer
        calibration.threshold(np.array([]), 0.05)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_must_be_a_share(rate: float) -> None:
    with pytest.raises(BlemishError, match="a false-alarm rate lies between"):
        calibration.threshold(np.arange(100.0), rate)
    with pytest.raises(BlemishError, match="a confidence lies between"):
        calibration.threshold(np.arange(100.0), 0.1, confidence=rate)


def test_scores_must_be_numbers() -> None:
    with pytest.raises(BlemishError, match="not a finite number"):
        calibration.threshold(np.array([1.0, np.nan] * 30), 0.1)


def test_three_verdicts_from_two_rates() -> None:
    good = np.arange(1.0, 40.0)  # 39: two may be above the threshold for 5 %, four above that for 10 %
    thresholds = calibration.thresholds(good, 0.05, 0.1)
    assert thresholds == calibration.Thresholds(review=36.0, anomaly=38.0)
    assert [thresholds.level(score) for score in (36.0, 36.5, 38.0, 38.5)] == ["good", "review", "review", "anomaly"]
    paired = [str(i // 2) for i in range(40)]
    thresholds = calibration.thresholds(np.arange(40.0), 0.05, 0.1, paired)
    assert thresholds.anomaly == calibration.threshold(np.arange(40.0), 0.05, paired)
    assert thresholds.review == calibration.threshold(np.arange(40.0), 0.1, paired)
    for review in (0.05, 0.01):
        with pytest.raises(BlemishError, match=r"review rate, .* must be larger than .* 5.00%"):
            calibration.thresholds(good, 0.05, review)


@pytest.mark.parametrize(("items", "images"), [(20, 1), (20, 3)])
def test_leaving_one_item_out_keeps_the_guarantee_for_a_nearest_neighbour_distance(items: int, images: int) -> None:
    """All images are in both bank and calibration set; p is valid, and never below full conformal prediction's."""
    random, draws, rate = np.random.default_rng(12), 3000, 0.1
    own = random.normal(size=(draws, items + 1, 1, 2))
    points = own + 0.3 * random.normal(size=(draws, items + 1, images, 2))
    groups = np.repeat(np.arange(items), images)
    same = groups[:, None] == groups[None]
    names = [str(group) for group in groups]
    weights = calibration.item_weights(names)
    hits = []
    for drawn in points:
        bank, new = drawn[:items].reshape(-1, 2), drawn[items]
        apart = np.linalg.norm(bank[:, None] - bank[None], axis=-1)
        left_out = np.where(same, np.inf, apart).min(1)
        to_new = np.linalg.norm(bank[:, None] - new[None], axis=-1)  # (bank, images of the new item)
        score = to_new[:, :1].min(0)
        p = calibration.p_values(left_out, score, weights)
        assert p >= calibration.p_values(np.minimum(left_out, to_new.min(1)), score, weights)
        hits.append(score[0] > calibration.threshold(left_out, rate, names))
    assert np.mean(hits) <= rate + three_errors(rate, draws)
    assert np.mean(hits) >= 0.03  # not needlessly strict


GOOD = "as long as new good parts are made and photographed like those"


def test_the_guarantee_in_words() -> None:
    assert calibration.guarantee(19, 0.05) == (
        f"At most 5.00% of good parts are called anomalies, on average over calibration sets of 19, {GOOD} "
        "(exchangeability). It says nothing of the share of defects found."
    )
    items = calibration.guarantee(60, 0.05, items=20, review=0.1)
    assert items.startswith("At most 5.00% of images of good items are called anomalies, and at most 10.00% are")
    assert "calibration sets of 60 images of 20 items" in items
    sure = calibration.guarantee(60, 0.05, confidence=0.95)
    assert sure.startswith("With 95% confidence (so often over calibration sets of 60), at most 5.00% of good parts")
    assert "independently of each other" in sure
    sure = calibration.guarantee(180, 0.05, items=60, confidence=0.95)
    assert "at most 5.00% of good items have any image that is called an anomaly" in sure
    assert "only approximate here" in calibration.guarantee(60, 0.05, kind="leave-one-out")


def test_a_guarantee_that_cannot_be_kept_is_not_put_in_words() -> None:
    with pytest.raises(BlemishError, match="18 held-out good images cannot guarantee"):
        calibration.guarantee(18, 0.05)
    with pytest.raises(BlemishError, match="18 good items"):
        calibration.guarantee(90, 0.05, items=18)
    with pytest.raises(BlemishError, match="needs calibration images that were held out"):
        calibration.guarantee(100, 0.05, confidence=0.95, kind="leave-one-out")
    with pytest.raises(BlemishError, match="must be larger"):
        calibration.guarantee(100, 0.05, review=0.05)


PAGE = (Path(__file__).parents[2] / "docs/guarantee.md").read_text(encoding="utf-8")


def test_the_docs_say_how_many_images_it_takes() -> None:
    for rate in (0.1, 0.05, 0.02, 0.01, 0.005):
        row = f"| {100 * rate:g} % | {calibration.parts_needed(rate)} | {calibration.parts_needed(rate, 0.95)} |"
        assert row in PAGE


def test_the_docs_say_how_far_one_set_can_be_off() -> None:
    for n in (19, 60, 100, 300, 1000):
        rank = calibration.allowance(n, 0.05)
        low, high = stats.beta.ppf([0.05, 0.95], rank, n + 1 - rank)
        assert f"| {n} | {rank} | {100 * low:.1f} % | {100 * high:.1f} % |" in PAGE


def test_the_example_in_the_docs_is_right() -> None:
    example = re.sub(r"\s+", " ", PAGE)
    rank, sure = calibration.allowance(100, 0.05), calibration.allowance(100, 0.05, 0.95)
    above = stats.beta.sf(0.05, [rank, sure], [101 - rank, 101 - sure])
    assert f"threshold is the {rank}th highest score" in example
    assert f"{100 * rank / 101:.1f} % on average over such sets" in example
    assert f"With {100 * above[0]:.0f} of 100 sets it is above 5 %" in example
    assert f"threshold is the {sure}nd highest score" in example
    assert f"for {100 * (1 - above[1]):.0f} of 100 sets, and {100 * sure / 101:.1f} % on average" in example
    with pytest.raises(BlemishError, match=r"takes 299; .* --false-alarms 3%"):
        calibration.allowance(100, 0.01, 0.95)
    assert "takes 299. These 100 can guarantee 3 %" in example
    # Barber, Candès, Ramdas & Tibshirani 2021, theorem 4: 2 a + (1 - F/n) / (F + 1) for F folds of n images.
    assert f"100 images in 20 folds, {2 * 0.05 + (1 - 20 / 100) / 21:.1%}".replace("%", " %") in example
    missed = clopper_pearson(2, 40)
    assert missed.low is not None
    assert missed.high is not None
    assert f"between {missed.low:.1%} and {missed.high:.1%} (exact".replace("%", " %") in example


def test_the_code_in_the_docs_prints_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    (code, printed) = re.findall(r"^```(?:python|text)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == printed
