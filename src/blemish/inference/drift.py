"""Do good parts still look like the calibration set? A test that runs along with the inspection (conformal test
martingale: Vovk, Gammerman & Shafer 2005; Volkhonskiy et al. 2017).

Each new score gets a p-value, its rank among the calibration scores and all earlier ones of the stream. As long as all
of them are exchangeable, these p are independent and uniform, and no strategy of bets on them gains on average. So the
chance that a capital of 1 ever grows to 1 / rate is at most `rate`, however long the stream is (Ville 1939).

The scores must come from one image of each part (or be one figure of each part, such as its highest score), and the
calibration images must have been held out of training: several images of a part are not exchangeable with those of
other parts. Leave-one-out scores tend to be higher than the stream's, so for them `upward` bets on rising scores alone,
and the bound holds approximately, not exactly (tests/inference/test_drift.py simulates it).

**Defective parts** are not exchangeable with good ones, and would be taken for drift. With `threshold`, scores at or
above it are left out, also of the calibration set. The bound stays as it is where `threshold` is a calibration
threshold or a number fixed beforehand: such a threshold depends only on how many scores are below it, not on which, so
given the threshold, those below are still exchangeable, with ties or without. The price is power: where drift is so
strong that good parts are called anomalies, these are left out as well. `State.left_out` counts them; a rising share of
anomalies is a warning of its own. Missed defects stay in, and may raise the alarm where there are many.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from blemish.types import BlemishError

if TYPE_CHECKING:
    from blemish.inference.bundle import Decision

Direction = Literal["higher", "lower", "wider", "narrower"]

FORMAT = "blemish drift 1"
# Each bet multiplies its capital by 1 + slope (p - 1/2) + bend (6 (p - 1/2)^2 - 1/2): 1 on average over uniform p, and
# never above 2.5, so that no single part can raise the alarm. A low p is a high score.
_BETS: tuple[tuple[Direction, float, float], ...] = (
    ("higher", -1.0, 0.0),
    ("higher", -1.9, 0.0),
    ("lower", 1.0, 0.0),
    ("lower", 1.9, 0.0),
    ("wider", 0.0, 1.5),
    ("narrower", 0.0, -0.75),
)


@dataclass(frozen=True, slots=True)
class State:
    """The state of the test. `martingale` and `highest` are log10 of the capital, now and at its highest."""

    seen: int  # scores that were ranked
    left_out: int  # scores at or above the threshold
    martingale: float
    highest: float
    alarm: bool  # the capital reached 1 / rate, now or earlier
    since: int | None  # how many scores had been ranked when it first did
    direction: Direction  # how the scores have changed, if they have
    early: bool  # too few were ranked for any alarm, however much the scores have changed


class Drift:
    """The running test. `rate` bounds the chance that it ever raises a false alarm.

    `fewest` is how many parts the alarm takes at least.

    `see` takes O(log n) steps and one insertion into a sorted array (8 bytes a score). Equal scores, seeds and order
    give equal numbers, also where the test is saved with `to_json` and resumed with `from_json`.
    """

    def __init__(
        self,
        calibration: Iterable[float],
        rate: float = 0.01,
        seed: int = 0,
        threshold: float | None = None,
        *,
        upward: bool = False,
    ) -> None:
        """`threshold` is the one above which parts are called anomalies (None: every score counts); `upward` bets on
        rising scores alone, for leave-one-out calibration.

        Raises `BlemishError` for a rate outside 0..1, and where no calibration score is left.
        """
        if not 0 < rate < 1:
            raise BlemishError(f"The rate of false drift alarms lies between 0 % and 100 %, not {rate:.3%}.")
        self.rate, self.seed, self.threshold, self.upward = rate, seed, threshold, upward
        self._bets = [bet for bet in _BETS if bet[0] == "higher" or not upward]
        self.fewest = _fewest(rate, self._bets)
        scores = sorted(_finite(score) for score in calibration)
        self._scores = array("d", [score for score in scores if threshold is None or score < threshold])
        if not self._scores:
            raise BlemishError("There are no calibration scores below the threshold to compare with; calibrate again.")
        self._seen = self._left_out = 0
        self._awake = [-math.inf] * len(self._bets)  # ln of the capital on each bet
        self._highest = 0.0  # ln
        self._since: int | None = None

    def see(self, score: float) -> State:
        """Ranks the next part's raw score and bets on its p. Raises `BlemishError` unless it is a finite number."""
        score = _finite(score)
        if self.threshold is not None and score >= self.threshold:
            self._left_out += 1
            return self.state
        low, high = bisect_left(self._scores, score), bisect_right(self._scores, score)
        above, equal = len(self._scores) - high, high - low + 1  # itself is one of the equal
        p = (above + _uniform(self.seed, self._seen) * equal) / (len(self._scores) + 1)
        insort(self._scores, score)
        self._awake = _bet(self._awake, self._bets, p, self._seen)
        self._seen += 1
        self._highest = max(self._highest, self._capital)
        if self._since is None and self._highest >= -math.log(self.rate):
            self._since = self._seen
        return self.state

    @property
    def state(self) -> State:
        return State(
            seen=self._seen,
            left_out=self._left_out,
            martingale=self._capital / math.log(10),
            highest=self._highest / math.log(10),
            alarm=self._since is not None,
            since=self._since,
            direction=self._direction,
            early=self._seen < self.fewest,
        )

    @property
    def _direction(self) -> Direction:
        """That of the bet with the most capital. But scores that are all at one end have moved and not spread: then a
        bet on that has gained as well, which it does not where there are scores at both ends."""
        richest = max(range(len(self._bets)), key=lambda bet: self._awake[bet])
        if self._bets[richest][0] == "wider":
            moved = max((i for i, (_, slope, _) in enumerate(self._bets) if slope), key=lambda bet: self._awake[bet])
            if self._awake[moved] > math.log((1 - _asleep(self._seen)) / len(self._bets)):
                richest = moved
        return self._bets[richest][0]

    @property
    def _capital(self) -> float:
        return _whole(self._awake, self._seen)

    def sentence(self) -> str:
        """The state in words."""
        state, rate = self.state, f"{'about' if self.upward else 'at most'} {self.rate:.0%}"
        seen = f"{state.seen} part{'s' * (state.seen != 1)} seen, "
        seen += f"{state.left_out} {'anomaly' if state.left_out == 1 else 'anomalies'} left out"
        by_chance = f"without drift, the chance that this alarm ever rings is {rate}"
        if state.alarm:
            return (
                f"Drift since part {state.since}: scores of good parts have become {state.direction} ({seen}; "
                f"{by_chance}). Look for a change of light, camera or material; then train again."
            )
        if state.early:
            return f"Too few parts to tell of drift: the alarm takes at least {self.fewest} parts ({seen})."
        return f"No drift: good parts look like the calibration set ({seen}; {by_chance})."

    def to_json(self) -> str:
        """The test with all its scores, some 20 bytes each; so save it now and then, not after each part."""
        content = {
            "format": FORMAT,
            "rate": self.rate,
            "seed": self.seed,
            "threshold": self.threshold,
            "upward": self.upward,
            "seen": self._seen,
            "left_out": self._left_out,
            "awake": [None if capital == -math.inf else capital for capital in self._awake],
            "highest": self._highest,
            "since": self._since,
            "scores": self._scores.tolist(),
        }
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Drift:
        """The test that `to_json` wrote, to be resumed. Raises `BlemishError` for anything else."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError("another format")
            rate, seed, upward = float(content["rate"]), int(content["seed"]), bool(content["upward"])
            drift = cls(content["scores"], rate, seed, content["threshold"], upward=upward)
            if len(content["awake"]) != len(drift._bets):
                raise ValueError("other bets")
            if len(drift._scores) != len(content["scores"]):
                raise ValueError("scores above the threshold")
            drift._seen, drift._left_out = int(content["seen"]), int(content["left_out"])
            drift._awake = [-math.inf if capital is None else _finite(capital) for capital in content["awake"]]
            drift._highest = _finite(content["highest"])
            drift._since = None if content["since"] is None else int(content["since"])
            if not all(0 <= count < 2**53 for count in (drift._seen, drift._left_out, drift._since or 0)):
                raise ValueError("counts that cannot be")
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            BlemishError,
        ) as cause:
            raise BlemishError(
                f"This is no drift test that blemish saved ({cause}); start it anew from the calibration scores."
            ) from None
        return drift


def drift_of(rule: Decision) -> Drift | None:
    """The test of a bundle with this rule of decision; None where the threshold was not set by good images, each of
    another part."""
    if not rule.scores or rule.items:
        return None
    return Drift(rule.scores, threshold=rule.threshold, upward=rule.calibrated_by == "leave-one-out")


def _bet(awake: list[float], bets: list[tuple[Direction, float, float]], p: float, seen: int) -> list[float]:
    """ln of the capital on each bet after the part with this p, the first one after `seen`."""
    waking = math.log((_asleep(seen) - _asleep(seen + 1)) / len(bets))
    return [
        _log_sum([capital, waking]) + math.log1p(slope * (p - 0.5) + bend * (6 * (p - 0.5) ** 2 - 0.5))
        for capital, (_, slope, bend) in zip(awake, bets, strict=True)
    ]


def _fewest(rate: float, bets: list[tuple[Direction, float, float]]) -> int:
    """How many parts the alarm takes at least: as many as where each scores higher than all before it (p = 0)."""
    awake, seen = [-math.inf] * len(bets), 0
    while _whole(awake, seen) < -math.log(rate):
        awake, seen = _bet(awake, bets, 0.0, seen), seen + 1
    return seen


def _whole(awake: list[float], seen: int) -> float:
    """ln of the whole capital, on bets and not yet bet."""
    return _log_sum([*awake, math.log(_asleep(seen))])


def _asleep(seen: int) -> float:
    """The share of the capital that is not yet bet. It falls from 1 to 0 so slowly that a change after a million parts
    is still noticed; if all were bet from the start, the losses of a long time without drift would have to be won back
    first."""
    return 1 / (1 + math.log2(1 + seen))


def _uniform(seed: int, number: int) -> float:
    """A number strictly between 0 and 1, the same on every machine."""
    digest = sha256(f"{seed}:{number}".encode()).digest()
    return ((int.from_bytes(digest[:8]) >> 12) + 0.5) / 2**52


def _log_sum(logs: list[float]) -> float:
    """ln of the sum of exponentials, of which one at least is above zero."""
    largest = max(logs)
    return largest + math.log(sum(math.exp(value - largest) for value in logs))


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise BlemishError(f"A score for the drift test must be a finite number, not {score}; check its image.")
    return float(score)
