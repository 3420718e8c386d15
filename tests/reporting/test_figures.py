"""Beside the doctests: what the formatters have in common, and that every measured figure has a title."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blemish.evaluation import faithfulness, localisation
from blemish.evaluation.bootstrap import Interval, to_json
from blemish.evaluation.detection import detection_metrics
from blemish.evaluation.reliability import reliability
from blemish.reporting.figures import (
    DASH,
    FIGURES,
    MAIN,
    MEASURES,
    NAMED,
    REPORT,
    SHORT,
    Figure,
    interval_of,
    number,
    stacked,
    value_of,
    with_interval,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (15.0, "15.00"),
        (0.5, "0.5000"),
        (1234.5, "1234"),
        (9999.4, "9999"),
        (9999.6, "10000"),  # four digits would be 1.000e+04
        (-123456.0, "-123456"),
        (0.0, "0.000"),
    ],
)
def test_numbers_have_four_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("undefined", [None, {}, to_json(Interval(None))])
def test_what_is_undefined_is_a_dash(undefined: dict[str, float | None] | None) -> None:
    for write in (value_of, interval_of, with_interval, stacked):
        assert write(undefined) == write(undefined, percent=True) == DASH


def test_without_an_interval_the_value_stands_alone() -> None:
    measured = to_json(Interval(1.0))
    assert value_of(measured) == with_interval(measured) == stacked(measured) == "1.000"
    assert interval_of(measured) == DASH


def test_shares_have_tenths_of_a_percent_where_the_interval_is_narrow() -> None:
    wide, narrow = to_json(Interval(0.004, 0.0, 0.051)), to_json(Interval(0.004, 0.002, 0.0075))
    assert with_interval(wide, percent=True) == "0 % [0, 5]"
    assert with_interval(narrow, percent=True) == "0.4 % [0.2, 0.8]"
    assert interval_of(narrow, percent=True) == "0.2 to 0.8 %"
    assert stacked(narrow, percent=True, narrow=True) == "0.4 %\n0.2–0.8"


def test_narrow_intervals_lose_only_a_leading_zero() -> None:
    assert stacked(to_json(Interval(10.0, -0.5, 20.25)), narrow=True) == "10.000\n-.500–20.250"


def test_differences_have_a_sign() -> None:
    assert stacked(to_json(Interval(0.01, -0.02, 0.04)), sign="+") == "+0.010\n-0.020 to +0.040"
    assert stacked(to_json(Interval(-0.1, -0.2, 0.0)), percent=True, sign="+") == "-10 %\n-20 to +0 %"


def test_every_measured_figure_has_a_title_and_a_meaning() -> None:
    labels = np.array([True, False])
    groups = {
        "detection": detection_metrics(np.array([1.0, 0.0]), labels, labels, resamples=2),
        "localisation": dict.fromkeys(localisation.FIGURES, Interval(None)),
        "reliability": to_json(reliability(np.array([0.5, 0.5]), labels, resamples=2)),
    }
    measured = {
        (group, name)
        for group, figures in groups.items()
        for name, figure in figures.items()
        if isinstance(figure, Interval) or (isinstance(figure, dict) and "value" in figure)
    }
    assert measured == {(figure.group, figure.name) for figure in FIGURES}
    assert len(NAMED) == len(FIGURES)
    assert set(SHORT) < set(MAIN) < set(REPORT) < set(FIGURES)
    assert all(figure.title and figure.meaning for figure in FIGURES)
    assert NAMED["miss_rate"] == Figure("detection", "miss_rate", "Missed", "defective parts called good", percent=True)
    assert tuple(MEASURES) == faithfulness.MEASURES


@pytest.mark.parametrize("name", NAMED)
def test_every_figure_is_explained(name: str) -> None:
    page = Path(__file__).resolve().parents[2] / "docs/metrics.md"
    assert f"\n| `{name}` |" in page.read_text("utf-8"), f"docs/metrics.md has no row for {name}"
