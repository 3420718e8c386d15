"""Cohen's kappa against scikit-learn, and which labels it is made of."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from sqlalchemy import event

from blemish.web.agreement import agreements, kappa, labels
from blemish.web.corrections import again, label, undo
from tests.web.desk import judged, opened

LABELS = st.sampled_from(["good", "anomaly"])


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of one label only
        expected = cohen_kappa_score(first, second, labels=["good", "anomaly"])
    found = kappa(first, second)
    if math.isnan(expected):
        assert found.value is None
    else:
        assert found.value == pytest.approx(expected, abs=1e-12)
        if found.low is not None and found.high is not None:
            assert -1 <= found.low <= found.high <= 1


def test_kappa_by_hand() -> None:
    """Cohen's first table has o = 0.7 and e = 0.5: 20 of 50 both good, 15 both anomalies, 5 and 10 differ."""
    first = ["good"] * 25 + ["anomaly"] * 25
    second = ["good"] * 20 + ["anomaly"] * 5 + ["good"] * 10 + ["anomaly"] * 15
    found = kappa(first, second)
    assert found.value == pytest.approx(0.4)
    assert found.low is not None
    assert found.high is not None
    # The analytic standard error is sqrt(o (1 - o) / n) / (1 - e) = 0.1296 (Cohen 1960, eq. 7).
    assert found.low == pytest.approx(0.4 - 1.96 * 0.1296, abs=0.05)
    assert found.high == pytest.approx(0.4 + 1.96 * 0.1296, abs=0.05)


def test_twenty_thousand_images_take_no_longer_than_a_few() -> None:
    """And the interval is that of the formula."""
    first = ["good"] * 10_000 + ["anomaly"] * 10_000
    second = ["good"] * 8_000 + ["anomaly"] * 2_000 + ["good"] * 4_000 + ["anomaly"] * 6_000
    begun = time.process_time()
    found = kappa(first, second)
    assert time.process_time() - begun < 0.2  # some 0.01 s; drawing each image takes 1 s
    assert found.value == pytest.approx(0.4)
    error = 1.96 * math.sqrt(0.7 * 0.3 / 20_000) / 0.5
    assert found.low == pytest.approx(0.4 - error, abs=0.1 * error)
    assert found.high == pytest.approx(0.4 + error, abs=0.1 * error)


def test_they_are_read_again_only_after_a_correction(tmp_path: Path) -> None:
    site = opened(tmp_path)
    for number in range(2):
        judged(site, 95, number)
        label(site, number + 1, "anna", "good")
    label(site, 1, "ben", "good")
    with site.database.reading() as session:
        assert [pair.n for pair in agreements(session, "tiny")] == [1]
        asked: list[str] = []
        event.listen(site.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
        assert [pair.n for pair in agreements(session, "tiny")] == [1]
        assert {name: dict(said) for name, said in labels(session, "tiny").items()} == {
            "anna": {1: "good", 2: "good"},
            "ben": {1: "good"},
        }
        assert [statement for statement in asked if "max(" not in statement] == []
    label(site, 2, "ben", "good")
    with site.database.reading() as session:
        assert [pair.n for pair in agreements(session, "tiny")] == [2]
    undo(site, "ben")
    with site.database.reading() as session:
        assert [pair.n for pair in agreements(session, "tiny")] == [1]
    site.database.close()


def test_who_gives_way_after_another_look_raises_no_kappa(tmp_path: Path) -> None:
    """Four images: o = 3/4, e = 1/2 * 1/4 + 1/2 * 3/4 = 1/2, kappa = 1/2 before and after."""
    site = opened(tmp_path)
    for number, (first, second) in enumerate([("good", "good"), ("good", "good"), ("anomaly", "good")]):
        judged(site, 95, number)
        label(site, number + 1, "anna", first)  # type: ignore[arg-type]
        label(site, number + 1, "ben", second)  # type: ignore[arg-type]
    judged(site, 95, 3)
    label(site, 4, "anna", "anomaly")
    label(site, 4, "ben", "anomaly")
    again(site, 3, "anna")
    label(site, 3, "ben", "anomaly")
    with site.database.reading() as session:
        (pair,) = agreements(session, "tiny")
    assert (pair.agreed, pair.images, pair.open, pair.same) == (3, (3,), (), ())
    assert pair.kappa.value == pytest.approx(0.5)
    site.database.close()


def test_kappa_without_images_and_with_uneven_lists() -> None:
    assert kappa([], []).value is None
    with pytest.raises(ValueError, match="as many labels"):
        kappa(["good"], [])


def test_the_first_label_of_each_counts_and_none_that_was_undone(tmp_path: Path) -> None:
    site = opened(tmp_path)
    for number in range(4):
        judged(site, 95, number)
    for number in (1, 2, 3, 4):
        label(site, number, "anna", "good")
    label(site, 1, "ben", "anomaly")
    label(site, 1, "ben", "good")  # gives way: settled, and no agreement
    label(site, 2, "ben", "anomaly")
    label(site, 3, "ben", "good")
    label(site, 4, "ben", "good")
    undo(site, "ben")
    label(site, 3, "anna", "anomaly")
    again(site, 3, "carl")
    with site.database.reading() as session:
        (pair,) = agreements(session, "tiny")
        assert agreements(session, "other") == []
    assert (pair.first, pair.second, pair.n, pair.agreed, pair.images) == ("anna", "ben", 3, 1, (1, 2))
    assert (pair.open, pair.same) == ((2, 3), (("anna", "good"),))
    # good/anomaly, good/anomaly, good/good: o = 1/3, e = 1 * 1/3, kappa = 0.
    assert pair.kappa.value == pytest.approx(0)
    site.database.close()
