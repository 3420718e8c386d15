"""The last verdicts and the counts of each hour as the figures of a page: paths in a box of 1000 x 100, which is
stretched to the page's width."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blemish.reporting.run import DECISIONS
from blemish.web.history import Dot

WIDE, HIGH = 1000, 100
WINDOW = 25  # verdicts of which the line shows the median


@dataclass(frozen=True)
class Trend:
    """`dots` has a path for each decision, a dot is a line of no length; `median` is a path, "" for too few verdicts.

    The axis goes from `low` at the bottom to `high`; `threshold` is the height of the dashed line, None without one.
    """

    of: str  # "p-value" or "score"
    dots: Mapping[str, str]
    median: str
    low: float
    high: float
    threshold: float | None
    shown: int


@dataclass(frozen=True)
class Bar:
    """One hour: rectangles (y, height) by decision, the first at the bottom."""

    x: float
    width: float
    parts: tuple[tuple[str, float, float], ...]
    time: str
    counts: Mapping[str, int]


def trend(dots: Sequence[Dot], threshold: float | None, rate: float | None) -> Trend | None:
    """Of p-values where all of `dots` (the oldest first) have one, since these compare over versions; else of scores.
    `threshold` and `rate` are those of the version that judges. None without verdicts."""
    if not dots:
        return None
    by_p = all(dot.p_value is not None for dot in dots)
    values = [float((dot.p_value if by_p else dot.score) or 0.0) for dot in dots]
    line = rate if by_p else threshold
    low, high = (0.0, 1.0) if by_p else _range([*values, *([] if line is None else [line])])

    def y(value: float) -> float:
        return round(HIGH * (1 - (value - low) / (high - low)), 2)

    step = WIDE / len(values)
    places = [(round((number + 0.5) * step, 1), y(value)) for number, value in enumerate(values)]
    paths = {
        decision: "".join(f"M{x} {at}h0" for (x, at), dot in zip(places, dots, strict=True) if dot.decision == decision)
        for decision in DECISIONS
    }
    medians = [statistics.median(values[end - WINDOW : end]) for end in range(WINDOW, len(values) + 1)]
    path = "L".join(f"{x} {y(m)}" for (x, _), m in zip(places[WINDOW - 1 :], medians, strict=True))
    return Trend(
        "p-value" if by_p else "score",
        {decision: path for decision, path in paths.items() if path},
        f"M{path}" if path else "",
        low,
        high,
        None if line is None else y(line),
        len(values),
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) / 20 or abs(high) / 20 or 1.0
    return low - margin, high + margin


def bars(hours: Sequence[tuple[str, Mapping[str, int]]]) -> tuple[list[Bar], int]:
    """Of the counts of each hour, and the highest of their sums."""
    most = max((sum(counts.values()) for _, counts in hours), default=0)
    if not most:
        return [], 0
    width, found = WIDE / len(hours), []
    for number, (time, counts) in enumerate(hours):
        parts, top = [], float(HIGH)
        for decision in DECISIONS:
            height = HIGH * counts.get(decision, 0) / most
            if height:
                top -= height
                parts.append((decision, round(top, 2), round(height, 2)))
        found.append(Bar(round(number * width + width * 0.1, 2), round(width * 0.8, 2), tuple(parts), time, counts))
    return found, most
