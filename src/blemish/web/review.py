"""Which images a person should look at, in which order, and what came of it."""

from __future__ import annotations

import math

from blemish.inference.bundle import Decision
from blemish.web.tables import Image, Verdict

NEAR = 2.0  # p within this factor of the false-alarm rate is near the threshold


def rank(image: Image, verdict: Verdict, rule: Decision) -> float | None:
    """The image's place in the review queue, the lowest first; None: nobody needs to look.

    0 to 1: put aside for review. 1 to 2: p near the threshold, the nearest first. 2 to 3: label and verdict disagree.
    From 3 on: all others without a label, the nearest to the threshold first.
    """
    if verdict.decision == "error":
        return None
    distance = _distance(verdict, rule)  # 0 at the threshold
    squeezed = distance / (1 + distance)
    if image.label:
        agrees = (image.label == "anomaly") == (verdict.decision == "anomaly")
        return None if agrees else 2 + squeezed
    if verdict.decision == "review":
        return squeezed
    if distance <= math.log(NEAR):
        return 1 + squeezed
    return 3 + squeezed


def _distance(verdict: Verdict, rule: Decision) -> float:
    """How far p is from the rate that is guaranteed, |log(p / rate)|; without p, the score from the threshold."""
    if verdict.p_value is not None and rule.false_alarms:
        return abs(math.log(verdict.p_value / rule.false_alarms))
    return abs((verdict.score or 0.0) - rule.threshold)
