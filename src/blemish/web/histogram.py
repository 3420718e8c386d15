"""The histogram of scores that the threshold slides over: three rows of bars on one axis, drawn by the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 60
WIDTH, HEIGHT, GAP = 1000, 72, 26  # of the drawing and of a row, and between rows, in its units
FAR = 2.0  # what lies this many times the calibration scores' range above them is drawn at the edge
ROWS = (("scores", "good, calibration"), ("good", "good, labelled"), ("defective", "defective, labelled"))


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    words: str


class Row(NamedTuple):
    """Bars of one kind of images, its name, how many images there are, and where its line lies."""

    name: str
    kind: str
    images: int
    base: float
    bars: tuple[Bar, ...]


class Histogram(NamedTuple):
    """`low` and `high` are the scores at the edges; `clipped` images lie beyond and stand at the right edge."""

    low: float
    high: float
    height: float
    rows: tuple[Row, ...]
    clipped: int

    def x(self, score: float) -> float:
        """Where a score lies."""
        return place(score, self.low, self.high)


def histogram(data: Mapping[str, Any]) -> Histogram:
    """Of `thresholds.as_json`'s `scores`, `good` and `defective`, each row on a scale of its own."""
    calibration = data["scores"]
    every = [*calibration, *data["good"], *data["defective"]]
    low, top = min(every), max(calibration)
    high = min(max(every), top + FAR * ((top - min(calibration)) or 1.0))
    margin = 0.02 * ((high - low) or 1.0)
    low, high = low - margin, high + margin
    rows = [
        _row(name, kind, data[kind], low, high, (number + 1) * (HEIGHT + GAP) - GAP / 2)
        for number, (kind, name) in enumerate(ROWS)
    ]
    return Histogram(low, high, len(ROWS) * (HEIGHT + GAP), tuple(rows), sum(score > high for score in every))


def place(score: float, low: float, high: float) -> float:
    """Where a score lies between the edges, in the drawing's units."""
    return round(WIDTH * min(1.0, max(0.0, (score - low) / (high - low))), 2)


def _row(name: str, kind: str, scores: Sequence[float], low: float, high: float, base: float) -> Row:
    counts, edges = np.histogram(np.clip(scores, low, high), bins=BINS, range=(low, high))
    most = max(1, int(counts.max()))
    bars = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, height = place(left, low, high), round(HEIGHT * int(count) / most, 2)
            words = f"{count} from {left:.4g} to {right:.4g}"
            bars.append(Bar(x, round(base - height, 2), round(WIDTH / BINS - 1, 2), height, words))
    return Row(name, kind, len(scores), base, tuple(bars))
