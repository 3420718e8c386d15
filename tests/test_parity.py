"""PyTorch, onnxruntime and OpenVINO agree, for one image or a batch, one thread or two, and images of any size.

Scores and maps agree to 0.1 % of their range, and verdicts, boxes included, are the same. The requirements on every
detector are in test_contract.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from blemish.detectors.cam.maps import METHODS
from blemish.detectors.registry import OURS, config_of
from blemish.inference.inspector import Inspector
from blemish.options import options
from blemish.training.export import in_onnxruntime, in_torch, predict, prove_parity
from blemish.types import Prediction, Verdict
from tests import parity
from tests.parity import CASES, Made


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return parity.make(request.param, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def ours(made: Made) -> Prediction:
    """Predictions of torch on images of all sizes."""
    return predict(in_torch(made.graph), made.tests)


def comparable(verdicts: list[Verdict]) -> list[object]:
    """The fields of verdicts that must be equal."""
    return [(v.path, v.decision, v.defect, v.p_value, [region.box for region in v.regions]) for v in verdicts]


def agree(made: Made, ours: Prediction, theirs: Prediction) -> None:
    prove_parity(ours, theirs, [sample.name for sample in made.tests], gated=made.gated)
    if ours.reconstruction is not None:
        assert theirs.reconstruction is not None
        assert theirs.reconstruction.dtype == np.uint8
        assert np.abs(ours.reconstruction.astype(int) - theirs.reconstruction).max() <= 1
    verdicts = made.verdicts(ours)
    assert comparable(made.verdicts(theirs)) == comparable(verdicts)
    assert {"good", "anomaly"} <= {v.decision for v in verdicts}  # otherwise the comparison would show nothing
    assert any(v.regions for v in verdicts)


def test_every_detector_and_every_map_is_compared() -> None:
    def chosen(detector: str, setting: str) -> set[str]:
        defaults = config_of(detector)()
        return {c.settings.get(setting, getattr(defaults, setting)) for c in CASES.values() if c.detector == detector}

    assert {case.detector for case in CASES.values()} == set(OURS)
    assert {case.map or "cam" for case in CASES.values() if case.detector == "cam"} == set(METHODS)
    for option in options(config_of("attention")):
        if option.field in ("model", "map", "input", "residual"):
            assert chosen("attention", option.field) == set(option.choices)


def test_onnxruntime_agrees_with_torch(made: Made, ours: Prediction) -> None:
    theirs = predict(in_onnxruntime(made.model), made.tests)
    agree(made, ours, theirs)
    assert ours.neighbours is not None
    assert theirs.neighbours is not None
    assert theirs.neighbours.dtype == np.int32
    assert (ours.neighbours == theirs.neighbours).mean() > 0.98  # patches at the same distance may come in any order


def test_openvino_agrees_with_torch(made: Made, ours: Prediction) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed; it is in blemish[dev]")
    agree(made, ours, predict(parity.in_openvino(made.model), made.tests))


def test_an_image_gives_the_same_alone_and_in_a_batch(made: Made) -> None:
    exported = in_onnxruntime(made.model)
    alone, names = predict(exported, made.batch), [sample.name for sample in made.batch]
    for run in (exported, in_torch(made.graph)):
        prove_parity(parity.predict_together(run, made.batch), alone, names, gated=made.gated)


def test_one_thread_agrees_with_two(made: Made) -> None:
    one, two = (predict(parity.through(Inspector(made.bundle, threads=threads)), made.tests) for threads in (1, 2))
    prove_parity(one, two, [sample.name for sample in made.tests], gated=made.gated)
    assert comparable(made.verdicts(one)) == comparable(made.verdicts(two))
