"""The drift test against a slow one that is written from the definition, and its guarantee over many streams."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.spatial import distance

from blemish.inference import calibration
from blemish.inference.drift import Drift, State
from blemish.types import BlemishError

Floats = npt.NDArray[np.float64]

BETS = [(-1, 0), (-1.9, 0), (1, 0), (1.9, 0), (0, 1.5), (0, -0.75)]  # slope, bend


def smoothed(scores: Floats, n: int, u: Floats) -> Floats:
    """p of each score after the first n, over many streams at once: scores (streams, n + t), u (streams, t)."""
    columns = []
    for t in range(n, scores.shape[1]):
        now, seen = scores[:, t : t + 1], scores[:, : t + 1]
        columns.append(((seen > now).sum(1) + u[:, t - n] * (seen == now).sum(1)) / (t + 1))
    return np.stack(columns, axis=1)


def log_capital(p: Floats) -> Floats:
    """ln of the capital after each p, (streams, t): the average, over the moments when the bets could begin, of what
    each of them has won since, plus what still waits."""
    t = p.shape[1]
    waiting = 1 / (1 + np.log2(1 + np.arange(t + 1)))
    awake = np.zeros((len(BETS), len(p)))
    capital = np.empty(p.shape)
    for k in range(t):
        centred = p[:, k] - 0.5
        won = np.array([1 + slope * centred + bend * (6 * centred**2 - 0.5) for slope, bend in BETS])
        awake = (awake + (waiting[k] - waiting[k + 1]) / len(BETS)) * won
        capital[:, k] = np.log(awake.sum(0) + waiting[k + 1])
    return capital


def capitals(scores: Floats, n: int, seed: int = 0) -> Floats:
    u = np.random.default_rng(seed).random((len(scores), scores.shape[1] - n))
    return log_capital(smoothed(scores, n, u))


def alarmed_at(capital: Floats, rate: float) -> Floats:
    """How many parts had been seen at each stream's alarm; infinite without one."""
    reached = capital >= -math.log(rate)
    return np.where(reached.any(1), reached.argmax(1) + 1.0, math.inf)


def test_it_equals_the_definition() -> None:
    from blemish.inference import drift

    random = np.random.default_rng(0)
    scores = np.round(random.normal(size=(1, 220)), 1)  # ties
    scores[:, 120:] += 1.5
    u = np.array([[drift._uniform(3, t) for t in range(200)]])
    expected = log_capital(smoothed(scores, 20, u))[0]
    running = Drift(scores[0, :20], rate=0.01, seed=3)
    states = [running.see(score) for score in scores[0, 20:]]
    assert [state.martingale for state in states] == pytest.approx(expected / math.log(10), abs=1e-9)
    assert [state.seen for state in states] == list(range(1, 201))
    at = int(alarmed_at(expected[None], 0.01)[0])
    assert 100 < at < 200
    assert [state.alarm for state in states] == [t >= at for t in range(1, 201)]
    assert states[-1].since == at
    assert states[-1].highest == max(state.martingale for state in states)
    assert states[-1].direction == "higher"


@pytest.mark.parametrize(
    ("direction", "change"),
    [
        ("higher", lambda z: z + 1.5),
        ("lower", lambda z: z - 1.5),
        ("wider", lambda z: 3 * z),
        ("narrower", lambda z: z / 5),
        ("higher", lambda z: z + 100),  # all at one end: moved, not spread
        ("lower", lambda z: z - 100),
    ],
)
def test_it_reports_how_scores_have_changed(direction: str, change: Callable[[Any], Any]) -> None:
    random = np.random.default_rng(1)
    running = Drift(random.normal(size=100))
    states = [running.see(float(score)) for score in change(random.normal(size=120))]
    alarmed = [state.direction for state in states if state.alarm]
    assert len(alarmed) > 50
    assert set(alarmed) == {direction}


def test_the_bets_are_fair_and_bounded() -> None:
    p = np.linspace(0, 1, 200_001)[None]
    for slope, bend in BETS:
        won = 1 + slope * (p - 0.5) + bend * (6 * (p - 0.5) ** 2 - 0.5)
        assert np.trapezoid(won[0], p[0]) == pytest.approx(1, abs=1e-9)
        assert 0 < won.min() <= won.max() <= 2.5


def test_the_random_numbers_are_uniform_and_fixed() -> None:
    from blemish.inference import drift

    drawn = [drift._uniform(0, t) for t in range(5000)]
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert len(set(drawn)) == 5000
    assert drift._uniform(1, 0) != drift._uniform(0, 1) != drift._uniform(0, 0)


@pytest.mark.parametrize(("n", "ties"), [(20, False), (60, True), (300, False)])
def test_p_values_are_uniform_and_false_alarms_rare(n: int, ties: bool) -> None:
    random, rate = np.random.default_rng(n), 0.05
    scores = random.exponential(size=(1500, n + 300))
    scores = np.round(2 * scores) if ties else scores
    p = smoothed(scores, n, random.random((1500, 300)))
    assert stats.kstest(p[:, [0, 100, 299]].ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[:, 0], p[:, 1])[0, 1]) < 3 / math.sqrt(1500)
    capital = log_capital(p)
    early = np.exp(capital[:, 5])  # later its mean depends on few streams
    assert early.mean() == pytest.approx(1, abs=4 * early.std() / math.sqrt(1500))
    false = np.isfinite(alarmed_at(capital, rate)).mean()
    assert false <= rate + 3 * math.sqrt(rate * (1 - rate) / 1500)
    assert false > 0.002  # it could have alarmed


@pytest.mark.parametrize("ties", [False, True])
def test_leaving_anomalies_out_keeps_the_guarantee(ties: bool) -> None:
    """Defects come often and score high; what is below the calibration threshold stays exchangeable."""
    random, n, rate, streams = np.random.default_rng(5), 60, 0.05, 1000
    scores = random.normal(size=(streams, n + 250))
    scores[:, n:] += np.where(random.random((streams, 250)) < 0.2, 8.0, 0.0)
    scores = np.round(2 * scores) if ties else scores
    alike: dict[int, list[Floats]] = {}  # streams by how many calibration scores are left
    for row in scores:
        threshold = calibration.threshold(row[:n], 0.05)
        good, rest = row[:n][row[:n] < threshold], row[n:][row[n:] < threshold]
        assert len(rest) >= 130
        alike.setdefault(len(good), []).append(np.concatenate([good, rest[:130]]))
    alarms = [alarmed_at(capitals(np.array(rows), left, left), rate) for left, rows in alike.items()]
    false = np.isfinite(np.concatenate(alarms)).mean()
    assert false <= rate + 3 * math.sqrt(rate * (1 - rate) / streams)
    assert np.isfinite(alarmed_at(capitals(scores[:200], n), rate)).mean() > 0.3  # with the defects there is an alarm


def test_left_out_scores_are_counted_and_change_nothing() -> None:
    random = np.random.default_rng(6)
    good, stream = random.normal(size=60), random.normal(size=50)
    threshold = calibration.threshold(good, 0.05)
    with_defects, without = Drift(good, threshold=threshold), Drift(good[good < threshold])
    for score in stream:
        if score < threshold:
            with_defects.see(score + 100)
            with_defects.see(threshold)
            assert with_defects.see(score).martingale == without.see(score).martingale
    assert with_defects.state.left_out == 2 * without.state.seen > 0


# Measured here: half of the streams have raised the alarm by then, and 95 of 100.
@pytest.mark.parametrize(
    ("n", "shift", "half", "most"), [(60, 1.0, 25, 70), (60, -1.0, 24, 60), (300, 1.0, 20, 40), (20, 2.0, 16, 28)]
)
def test_a_shift_raises_the_alarm(n: int, shift: float, half: int, most: int) -> None:
    scores = np.random.default_rng(n).normal(size=(400, n + 2 * most))
    scores[:, n:] += shift
    at = alarmed_at(capitals(scores, n), 0.01)
    assert abs(np.median(at) - half) <= 3
    assert np.mean(at <= most) >= 0.95


def test_a_resumed_test_gives_the_same_numbers() -> None:
    random = np.random.default_rng(7)
    good, stream = random.normal(size=40), random.normal(size=120) + 0.7
    whole, parts = Drift(good, 0.02, seed=5, threshold=2.0), Drift(good, 0.02, seed=5, threshold=2.0)
    for number, score in enumerate(stream):
        expected = whole.see(score)
        if number % 7 == 0:
            text = parts.to_json()
            parts = Drift.from_json(text)
            assert parts.to_json() == text
        assert parts.see(score) == expected
    assert expected.alarm
    assert expected.left_out > 0
    assert whole.to_json() == parts.to_json()


def test_a_new_test_has_seen_nothing_and_can_be_saved() -> None:
    fresh = Drift([1.0, 2.0])
    assert Drift.from_json(fresh.to_json()).state == fresh.state
    assert (fresh.state.seen, fresh.state.martingale, fresh.state.alarm, fresh.state.since) == (0, 0.0, False, None)
    assert isinstance(fresh.state, State)


def test_numbers_stay_finite_long_after_the_alarm() -> None:
    running = Drift([0.0] * 3000)
    for score in range(1, 1500):
        state = running.see(score)
    assert state.alarm
    assert 100 < state.martingale < 1e6
    json.loads(running.to_json())


def test_no_single_part_raises_the_alarm() -> None:
    running = Drift(np.arange(1000.0), rate=0.1)
    assert [running.see(1e9).alarm for _ in range(3)] == [False] * 3


@pytest.mark.parametrize(("rate", "upward"), [(0.01, False), (0.01, True), (0.1, False)])
def test_few_parts_cannot_tell_however_they_have_changed(rate: float, upward: bool) -> None:
    """Against the definition: of the streams whose p are at the ends and in the middle, none alarms sooner, and the one
    whose p are all the lowest alarms then."""
    if not upward:
        p = np.random.default_rng(0).choice([0.0, 0.0, 0.0, 0.5, 1.0], size=(3000, 40))
        p[0], p[1] = 0.0, 1.0
        assert Drift([0.0], rate).fewest == alarmed_at(log_capital(p), rate).min()
    running = Drift(np.arange(10_000.0), rate, upward=upward)
    states = [running.see(1e6 + number) for number in range(running.fewest + 1)]
    assert [state.early for state in states] == [seen < running.fewest for seen in range(1, running.fewest + 2)]
    assert [state.since for state in states[-2:]] == [running.fewest] * 2
    few = Drift([0.0, 1.0], rate, upward=upward)
    assert few.sentence() == (
        f"Too few parts to tell of drift: the alarm takes at least {few.fewest} parts (0 parts seen, 0 anomalies left "
        "out)."
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other"}', "broken", "[" * 100_000])
def test_text_that_it_did_not_save_is_refused(text: str) -> None:
    with pytest.raises(BlemishError, match="no drift test that blemish saved"):
        Drift.from_json(text)


def test_a_saved_test_that_was_changed_is_refused() -> None:
    content = json.loads(Drift([1.0, 2.0], threshold=5.0).to_json())
    changes: list[dict[str, object]] = [{"scores": [1.0, 9.0]}, {"scores": []}, {"awake": [0.0]}, {"rate": 2}]
    changes += [
        {"seen": -5},
        {"seen": math.inf},
        {"seen": 2**60},
        {"since": -1},
        {"threshold": math.nan},
        {"seed": math.inf},
    ]
    for change in [
        *changes,
        {"highest": math.nan},
        {"rate": math.nan},
        {"scores": [math.nan]},
        {"awake": [math.inf] * 6},
    ]:
        with pytest.raises(BlemishError, match="no drift test that blemish saved"):
            Drift.from_json(json.dumps(content | change))


def test_impossible_arguments_are_refused_in_a_sentence() -> None:
    with pytest.raises(BlemishError, match="between 0 % and 100 %"):
        Drift([1.0], rate=0.0)
    with pytest.raises(BlemishError, match="no calibration scores below the threshold"):
        Drift([1.0, 2.0], threshold=1.0)
    with pytest.raises(BlemishError, match="finite number, not nan"):
        Drift([1.0, 2.0]).see(math.nan)


@pytest.mark.parametrize(("n", "dimensions"), [(40, 8), (80, 32)])
def test_leave_one_out_scores_seldom_alarm_falsely_and_rising_ones_do(n: int, dimensions: int) -> None:
    """Distances to the nearest of n normal points, each of these scored without itself, and then new points."""
    streams, rate = 150, 0.05

    def alarmed(spread: float) -> float:
        count = 0
        for seed in range(streams):
            random = np.random.default_rng(seed)
            bank, new = random.normal(size=(n, dimensions)), spread * random.normal(size=(200, dimensions))
            apart = distance.cdist(bank, bank)
            np.fill_diagonal(apart, np.inf)
            left_out, scores = apart.min(1), distance.cdist(new, bank).min(1)
            running = Drift(left_out, rate, threshold=calibration.threshold(left_out, 0.05), upward=True)
            count += [running.see(float(score)) for score in scores][-1].alarm
        return count / streams

    assert alarmed(1.0) <= rate + 3 * math.sqrt(rate * (1 - rate) / streams)
    assert alarmed(1.3) > 0.5


def test_upward_bets_on_rising_scores_alone() -> None:
    random = np.random.default_rng(0)
    held_out = random.normal(size=100)
    for shift, alarm in ((-3, False), (3, True)):
        running = Drift(held_out, upward=True)
        assert [running.see(float(score)) for score in random.normal(shift, size=80)][-1].alarm is alarm
        again = Drift.from_json(running.to_json())
        assert again.to_json() == running.to_json()
        assert again.see(0.5) == running.see(0.5)
