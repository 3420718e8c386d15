"""The result types, which need neither a graph nor an image."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.types import Prediction, Region, Sample, Verdict, readable

MAPS = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
SCORES = np.array([1, 2, 3], np.float32)


def prediction(**more: Any) -> Prediction:
    return Prediction(**{"scores": SCORES, "maps": MAPS, **more})


def test_named_takes_the_outputs_that_are_fields_and_drops_others() -> None:
    outputs = {"maps": MAPS, "extra": np.zeros(7), "scores": SCORES, "distances": MAPS}
    named = Prediction.named(outputs)
    assert named.scores is SCORES
    assert named.maps is MAPS
    assert named.distances is MAPS
    assert named.neighbours is None
    assert set(named.outputs()) == {"scores", "maps", "distances"}
    with pytest.raises(TypeError, match="maps"):
        Prediction.named({"scores": SCORES})


def test_rows_keep_their_batch_axis() -> None:
    neighbours = np.arange(6, dtype=np.int32).reshape(3, 1, 2)
    whole = prediction(neighbours=neighbours)
    assert len(whole) == 3
    for index, row in ((1, 1), (-1, 2), (0, 0)):
        one = whole[index]
        assert len(one) == 1
        assert one.scores.tolist() == [SCORES[row]]
        np.testing.assert_array_equal(one.maps, MAPS[row : row + 1])
        assert one.neighbours is not None
        np.testing.assert_array_equal(one.neighbours, neighbours[row : row + 1])
    assert whole[1:].scores.tolist() == [2, 3]
    assert whole[::2].scores.tolist() == [1, 3]
    assert whole[1:].probabilities is None


def test_a_prediction_prints_its_shapes_and_not_its_numbers() -> None:
    assert repr(prediction()) == "Prediction(scores (3,), maps (3, 2, 4))"
    assert repr(prediction(distances=MAPS)[0]) == "Prediction(scores (1,), maps (1, 2, 4), distances (1, 2, 4))"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"maps": MAPS[0]}, r"expected scores \(N,\) and maps \(N, H, W\); got \(3,\) and \(2, 4\)"),
        ({"scores": SCORES[:2]}, r"got \(2,\) and \(3, 2, 4\)"),
        ({"scores": SCORES[:, None]}, r"got \(3, 1\) and"),
        ({"scores": SCORES.astype(np.float64)}, "expected float32; got float64 and float32"),
        ({"maps": MAPS.astype(np.float64)}, "expected float32; got float32 and float64"),
        ({"probabilities": SCORES}, r"expected probabilities \(N, classes\); got \(3,\)"),
        ({"probabilities": np.zeros((2, 2), np.float32)}, r"expected probabilities \(N, classes\); got \(2, 2\)"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prediction(**fields)


REGION = Region((1, 2, 5, 7), 20.0, 4.5, 0.05)
ANOMALY = Verdict("a.png", "anomaly", 4.5, 3.0, 0.05, (10, 8), (REGION,), probability=0.9, defect="crack")


def test_a_verdict_as_json() -> None:
    expected = {
        "path": "a.png",
        "decision": "anomaly",
        "score": 4.5,
        "threshold": 3.0,
        "p_value": 0.05,
        "size": [10, 8],
        "regions": [{"box": [1, 2, 5, 7], "area": 20.0, "peak": 4.5, "p_value": 0.05}],
        "error": None,
        "probability": 0.9,
        "defect": "crack",
    }
    assert json.loads(json.dumps(ANOMALY.to_json())) == expected
    error = Verdict("b.png", "error", error="b.png is empty").to_json()
    assert (error["score"], error["regions"], error["error"]) == (None, [], "b.png is empty")


def test_a_pickled_verdict_loses_only_its_drawing() -> None:
    drawn = Verdict("a.png", "good", 1.0, 3.0).drawn_by(lambda: b"png")  # a lambda cannot be pickled itself
    assert drawn._repr_png_() == b"png"
    for verdict in (drawn, ANOMALY, Verdict("b.png", "error", error="why")):
        copied = pickle.loads(pickle.dumps(verdict))  # noqa: S301
        assert copied == verdict
        assert copied._repr_png_() is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decision": "error"}, "error text exactly when"),
        ({"decision": "good", "error": "why"}, "error text exactly when"),
        ({"decision": "good", "regions": (REGION,)}, "no regions"),
    ],
)
def test_a_verdict_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Verdict("a.png", **fields)


@pytest.mark.parametrize("box", [(5, 2, 5, 7), (1, 7, 5, 2), (-1, 2, 5, 7)])
def test_a_box_that_holds_nothing_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= left < right"):
        Region(box, 1.0, 1.0)


def test_a_good_sample_has_neither_defect_nor_mask() -> None:
    for more in ({"defect": "crack"}, {"mask": Path("mask.png")}):
        with pytest.raises(ValueError, match="neither defect type nor mask"):
            Sample(Path("a.png"), "a.png", "good", **more)


@pytest.mark.parametrize(
    ("name", "text"), [("零件", "零件"), ("a\udcff", "a\\xff"), ("\ud800", "\\ud800"), ("a\\xff", "a\\xff"), ("", "")]
)
def test_a_name_is_readable(name: str, text: str) -> None:
    assert readable(name) == text
    readable(name).encode()  # raises nothing
