"""The figures of the history: places computed by hand."""

from __future__ import annotations

from blemish.web.history import Dot
from blemish.web.trend import WINDOW, bars, trend


def dot(number: int, score: float, p: float | None, decision: str = "good") -> Dot:
    return Dot(number, "2026-11-30T12:00:00.000+00:00", decision, score, p)


def test_p_values_stand_between_0_and_1() -> None:
    found = trend([dot(1, 2, 0.25), dot(2, 9, 0.01, "anomaly")], threshold=5.0, rate=0.05)
    assert found is not None
    assert found.of == "p-value"
    assert found.dots == {"good": "M250.0 75.0h0", "anomaly": "M750.0 99.0h0"}
    assert (found.threshold, found.median, found.shown) == (95.0, "", 2)


def test_scores_where_a_p_value_is_missing() -> None:
    found = trend([dot(1, 0.0, None), dot(2, 10.0, 0.5)], threshold=5.0, rate=0.05)
    assert found is not None
    assert (found.of, found.low, found.high, found.threshold) == ("score", -0.5, 10.5, 50.0)
    assert found.dots["good"] == "M250.0 95.45h0M750.0 4.55h0"
    flat = trend([dot(1, 0.0, None)], threshold=None, rate=None)
    assert flat is not None
    assert (flat.low, flat.high, flat.threshold) == (-1.0, 1.0, None)
    assert trend([], 1.0, 0.05) is None


def test_the_line_is_the_median_of_those_before() -> None:
    found = trend([dot(i, 0.0, i / 100) for i in range(WINDOW + 1)], None, None)
    assert found is not None
    first, second = found.median.removeprefix("M").split("L")
    assert [float(place.split()[1]) for place in (first, second)] == [88.0, 87.0]  # medians 0.12 and 0.13


def test_bars_stack_the_decisions() -> None:
    found, most = bars([("a", {}), ("b", {"good": 3, "anomaly": 1}), ("c", {"error": 2})])
    assert most == 4
    assert found[0].parts == ()
    assert found[1].parts == (("good", 25.0, 75.0), ("anomaly", 0.0, 25.0))
    assert found[2].parts == (("error", 50.0, 50.0),)
    assert bars([("a", {})]) == ([], 0)
