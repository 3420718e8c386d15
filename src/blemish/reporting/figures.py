"""The figures of a run: what each is called, what it means, and the one way in which it is written for people.

Console, report, demo page and exports write numbers through these functions. What programs read (JSON, the numbers of a
CSV) keeps every digit and is not written here. A *measured* figure is `{"value", "low", "high"}` as `metrics.json`
holds it, an `Interval` as JSON: `value` is None (or the figure itself is) where it is undefined, `low` and `high` where
there is no interval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

DASH = "–"  # stands for what is undefined
NARROW = 0.05  # width of an interval from which on shares are written in whole percent


class Figure(NamedTuple):
    """A figure's place in `metrics.json` (`metrics[group][name]`), its title, its meaning, and whether it is a share of
    things counted, which is written in percent."""

    group: str
    name: str
    title: str
    meaning: str
    percent: bool = False


MAIN = (  # on every page
    Figure("detection", "auroc", "Image AUROC", "how often a defective part scores above a good one"),
    Figure("detection", "average_precision", "Average precision", "of images, ranked by score"),
    Figure("detection", "f1", "F1 at the threshold", "harmonic mean of precision and recall"),
    Figure("detection", "balanced_accuracy", "Balanced accuracy", "good and defective parts count the same"),
    Figure("detection", "miss_rate", "Missed", "defective parts called good", percent=True),
    Figure("detection", "false_alarm_rate", "False alarms", "good parts called anomalies", percent=True),
    Figure("localisation", "pixel_auroc", "Pixel AUROC", "how often a defective pixel scores above a good one"),
    Figure("localisation", "aupro", "AUPRO", "coverage of each defect, up to 30 % of good pixels flagged"),
    Figure("localisation", "defects_hit", "Defects hit", "drawn defects that the boxes show", percent=True),
    Figure("localisation", "boxes_right", "Boxes right", "boxes that show a drawn defect", percent=True),
)
REPORT = (  # in the report
    *MAIN,
    Figure("localisation", "pixel_average_precision", "Pixel average precision", "of pixels, ranked by the map"),
    Figure(
        "localisation", "aupimo", "AUPIMO", "coverage of an image's defects, 0.001 to 0.01 % of good pixels flagged"
    ),
    Figure("localisation", "pointing_game", "Pointing game", "maps whose maximum lies in a defect", percent=True),
    Figure("reliability", "ece", "Calibration error", "how far probabilities are off on average (ECE)"),
)
FIGURES = (  # all, as the console lists them
    *REPORT,
    Figure("detection", "best_f1", "Best F1", "at the threshold that suits these images best: optimistic"),
    Figure("detection", "precision", "Precision", "flagged parts that are defective", percent=True),
    Figure("detection", "recall", "Recall", "defective parts called anomalies", percent=True),
    Figure("detection", "accuracy", "Accuracy", "parts decided rightly", percent=True),
    Figure("localisation", "aupimo_p33", "AUPIMO, two thirds", "at least this in two of three defective images"),
    Figure("localisation", "best_iou", "Best IoU", "at the threshold that suits these images best: optimistic"),
    Figure("reliability", "brier", "Brier score", "mean squared error of the probabilities"),
    Figure("reliability", "log_loss", "Log loss", "mean -log of the probability of the truth, in nats"),
)
NAMED = {figure.name: figure for figure in FIGURES}
# The figures of a run in one row, where there is room for no more.
SHORT = tuple(NAMED[name] for name in ("auroc", "pixel_auroc", "aupro", "defects_hit", "miss_rate", "false_alarm_rate"))
# The measures of faithfulness (evaluation/faithfulness.py).
MEASURES = {
    "deletion": "Deletion",
    "insertion": "Insertion",
    "road": "ROAD",
    "inpainting": "Inpainting rate",
    "pointing": "Pointing game",
    "energy": "Energy inside the mask",
}

Measured = Mapping[str, Any] | None


def number(value: float | None) -> str:
    """A score, threshold, distance or cost: four significant digits, trailing zeros kept, from 10,000 on as an integer.

    >>> number(15), number(2.11367), number(0.00417), number(123456.7), number(None)
    ('15.00', '2.114', '0.004170', '123457', '–')
    """
    if value is None:
        return DASH
    return f"{value:.0f}" if abs(value) >= 9999.5 else f"{value:#.4g}".removesuffix(".")


def percent(share: float | None) -> str:
    """A share (0..1) without an interval: up to three significant digits.

    >>> percent(0.05), percent(1 / 3), percent(0.0004), percent(0.0), percent(None)
    ('5 %', '33.3 %', '0.04 %', '0 %', '–')
    """
    return DASH if share is None else f"{100 * share:.3g} %"


def p_value(p: float | None) -> str:
    """Three decimals.

    >>> p_value(0.0123), p_value(0.0004), p_value(None)
    ('0.012', '< 0.001', '–')
    """
    return DASH if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def probability(p: float | None) -> str:
    """Two decimals.

    >>> probability(0.876), probability(None)
    ('0.88', '–')
    """
    return DASH if p is None else f"{p:.2f}"


def defined(measured: Measured) -> TypeGuard[Mapping[str, Any]]:
    """Whether a measured figure has a value.

    >>> defined({"value": 0.0, "low": None, "high": None}), defined({"value": None}), defined(None)
    (True, False, False)
    """
    return measured is not None and measured.get("value") is not None


def value_of(measured: Measured, *, percent: bool = False, sign: str = "") -> str:
    """The value alone: three decimals or, of shares, percent; whole ones, but tenths where the interval is narrower
    than 5 points. `sign` is "+" for differences.

    >>> value_of({"value": 0.9525, "low": 0.9, "high": 0.99}), value_of({"value": 0.012}, sign="+"), value_of(None)
    ('0.953', '+0.012', '–')
    >>> value_of({"value": 0.214, "low": 0.1, "high": 0.4}, percent=True)
    '21 %'
    >>> value_of({"value": 0.004, "low": 0.002, "high": 0.007}, percent=True)
    '0.4 %'
    """
    if not defined(measured):
        return DASH
    return _digits(measured, "value", percent, sign) + (" %" if percent else "")


def interval_of(measured: Measured, *, percent: bool = False, sign: str = "") -> str:
    """The interval alone, as it stands in a column of a table.

    >>> interval_of({"value": 0.95, "low": 0.9214, "high": 0.9776}), interval_of({"value": 1.0, "low": None})
    ('0.921 to 0.978', '–')
    >>> interval_of({"value": 0.04, "low": 0.01, "high": 0.08}, percent=True)
    '1 to 8 %'
    >>> interval_of({"value": 0.01, "low": -0.02, "high": 0.03}, sign="+")
    '-0.020 to +0.030'
    """
    if not _bounded(measured):
        return DASH
    low, high = (_digits(measured, end, percent, sign) for end in ("low", "high"))
    return f"{low} to {high}" + (" %" if percent else "")


def with_interval(measured: Measured, *, percent: bool = False) -> str:
    """The value and its interval in brackets, as they stand in a sentence.

    >>> with_interval({"value": 0.9531, "low": 0.9214, "high": 0.9776})
    '0.953 [0.921, 0.978]'
    >>> with_interval({"value": 0.04, "low": 0.01, "high": 0.08}, percent=True)
    '4 % [1, 8]'
    >>> with_interval({"value": 1.0, "low": None, "high": None}), with_interval({"value": None})
    ('1.000', '–')
    """
    written = value_of(measured, percent=percent)
    if not _bounded(measured):
        return written
    low, high = (_digits(measured, end, percent, "") for end in ("low", "high"))
    return f"{written} [{low}, {high}]"


def stacked(measured: Measured, *, percent: bool = False, sign: str = "", narrow: bool = False) -> str:
    """The value above its interval, for a cell of a table; `narrow` takes the fewest columns of a terminal.

    >>> stacked({"value": 0.9531, "low": 0.9214, "high": 1.0})
    '0.953\\n0.921 to 1.000'
    >>> stacked({"value": 0.9531, "low": 0.9214, "high": 1.0}, narrow=True)
    '0.953\\n.921–1'
    >>> stacked({"value": -0.1, "low": -0.25, "high": 0.0}, narrow=True)
    '-0.100\\n-.250–.000'
    >>> stacked({"value": 0.04, "low": 0.01, "high": 0.08}, percent=True, narrow=True)
    '4 %\\n1–8'
    """
    written = value_of(measured, percent=percent, sign=sign)
    if not _bounded(measured):
        return written
    if not narrow:
        return f"{written}\n{interval_of(measured, percent=percent, sign=sign)}"
    low, high = (_digits(measured, end, percent, "") for end in ("low", "high"))
    if not percent:
        low, high = ("1" if end == "1.000" else re.sub(r"^(-?)0\.", r"\1.", end) for end in (low, high))
    return f"{written}\n{low}–{high}"


def _bounded(measured: Measured) -> TypeGuard[Mapping[str, Any]]:
    """Whether it has an interval."""
    return defined(measured) and measured.get("low") is not None


def _digits(measured: Mapping[str, Any], which: str, percent: bool, sign: str) -> str:
    """One of "value", "low" and "high" without a unit, all three with the same number of decimals."""
    if not percent:
        return f"{measured[which]:{sign}.3f}"
    tenths = _bounded(measured) and measured["high"] - measured["low"] < NARROW
    return f"{100 * measured[which]:{sign}.{1 if tenths else 0}f}"


# For jinja2's templates; a figure of a row of FIGURES is `{{ measured|value_of(percent=figure.percent) }}`.
FILTERS = {
    filter.__name__: filter for filter in (number, percent, p_value, probability, value_of, interval_of, with_interval)
}
