"""Do good parts still look like the calibration set? A test that runs along with the line (conformal test martingale:
Vovk, Gammerman & Shafer 2005; Volkhonskiy et al. 2017).

Each new score gets the rank p among the calibration scores and all earlier ones of the stream. As long as all of them
are exchangeable, these p are independent and uniform, and no game of bets on them grows on average. So a capital that
starts at 1 ever reaches 1 / rate with a chance of at most `rate`, however long the line runs (Ville 1939).

The scores must come from one image of each part (or one figure of each part, such as its highest score), and the
calibration images must have been held out of learning: several images of a part are not exchangeable with the
stream's. Scores from leaving each image out of the memory are rather higher than the stream's, so `upward` bets on
rising scores alone, and the bound holds about, not exactly (tests/test_drift.py simulates it).

**Defective parts** are not exchangeable with good ones, and would be taken for drift. With `threshold`, scores at or
above it are left out, of the calibration set too. That costs the bound nothing where `threshold` is a calibration
threshold or a number fixed beforehand: only how many scores lie below such a threshold matters for it, not which, so
given it, those below are exchangeable still, ties or not. What it costs is power: drift so strong that good parts are
called anomalies is left out as well. `State.left_out` counts these; a rising share of anomalies is a warning of its
own. Defects that are missed stay in, and may raise the alarm where they are many.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from blemish.types import BlemishError

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
    """How the test stands. `martingale` and `highest` are log10 of the capital, now and at its highest."""

    seen: int  # scores that were ranked
    left_out: int  # scores at or above the threshold
    martingale: float
    highest: float
    alarm: bool  # the capital reached 1 / rate, now or earlier
    since: int | None  # how many had been seen then
    direction: Direction  # how the scores have changed, if they have


class Drift:
    """The running test. `rate` bounds the chance that it ever raises a false alarm.

    `see` takes O(log n) steps and one insertion into a sorted array (8 bytes a score). Equal scores, seeds and order
    give equal numbers, also where the test was saved with `to_json` and went on from there.
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
        """`threshold` is the threshold above which parts are called anomalies (None: every score counts); `upward` bets
        on rising scores alone, for a calibration by leaving out.

        Raises `BlemishError` for a rate outside 0..1, and where no calibration score is left.
        """
        if not 0 < rate < 1:
            raise BlemishError(f"The rate of false drift alarms lies between 0 % and 100 %, not {rate:.3%}.")
        self.rate, self.seed, self.threshold, self.upward = rate, seed, threshold, upward
        self._bets = [bet for bet in _BETS if bet[0] == "higher" or not upward]
        scores = sorted(_finite(score) for score in calibration)
        self._scores = array("d", [score for score in scores if threshold is None or score < threshold])
        if not self._scores:
            raise BlemishError("There are no calibration scores below the threshold to compare with; calibrate again.")
        self._seen = self._left_out = 0
        self._awake = [-math.inf] * len(self._bets)  # ln of the capital on each bet
        self._highest = 0.0  # ln
        self._since: int | None = None

    def see(self, score: float) -> State:
        """Ranks the next part's raw score and bets on its p. Raises `BlemishError` for what is no finite number."""
        score = _finite(score)
        if self.threshold is not None and score >= self.threshold:
            self._left_out += 1
            return self.state
        low, high = bisect_left(self._scores, score), bisect_right(self._scores, score)
        above, equal = len(self._scores) - high, high - low + 1  # itself is one of the equal
        p = (above + _uniform(self.seed, self._seen) * equal) / (len(self._scores) + 1)
        insort(self._scores, score)
        waking = math.log((_asleep(self._seen) - _asleep(self._seen + 1)) / len(self._bets))
        self._awake = [
            _log_sum([capital, waking]) + math.log1p(slope * (p - 0.5) + bend * (6 * (p - 0.5) ** 2 - 0.5))
            for capital, (_, slope, bend) in zip(self._awake, self._bets, strict=True)
        ]
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
        )

    @property
    def _direction(self) -> Direction:
        """What the richest bet says. But scores that all lie at one end have moved and not spread: then a bet on that
        has gained as well, which it does not where both ends are full."""
        richest = max(range(len(self._bets)), key=lambda bet: self._awake[bet])
        if self._bets[richest][0] == "wider":
            moved = max((i for i, (_, slope, _) in enumerate(self._bets) if slope), key=lambda bet: self._awake[bet])
            if self._awake[moved] > math.log((1 - _asleep(self._seen)) / len(self._bets)):
                richest = moved
        return self._bets[richest][0]

    @property
    def _capital(self) -> float:
        """ln of all there is: what has been bet, and what waits."""
        return _log_sum([*self._awake, math.log(_asleep(self._seen))])

    def to_json(self) -> str:
        """Everything, all scores too: some 20 bytes each, so save it now and then, not after each part."""
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
        """What `to_json` wrote, to go on from there. Raises `BlemishError` for anything else."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError("another format")
            rate, seed, upward = float(content["rate"]), int(content["seed"]), bool(content["upward"])
            found = cls(content["scores"], rate, seed, content["threshold"], upward=upward)
            if len(content["awake"]) != len(found._bets):
                raise ValueError("other bets")
            if len(found._scores) != len(content["scores"]):
                raise ValueError("scores above the threshold")
            found._seen, found._left_out = int(content["seen"]), int(content["left_out"])
            found._awake = [-math.inf if capital is None else _finite(capital) for capital in content["awake"]]
            found._highest = _finite(content["highest"])
            found._since = None if content["since"] is None else int(content["since"])
        except (ValueError, KeyError, TypeError, AttributeError, BlemishError) as cause:
            raise BlemishError(
                f"This is no drift test that blemish saved ({cause}); start it anew from the calibration scores."
            ) from None
        return found


def _asleep(seen: int) -> float:
    """The share of the capital that is not yet bet: from 1 down to 0, so slowly that a change after a million parts is
    still noticed. (With all bet from the start, the loss of a long calm would have to be won back first.)"""
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
        raise BlemishError(f"A score for the drift test must be a finite number, not {score}; look at its image.")
    return float(score)
