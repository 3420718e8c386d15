"""Graphs as a stranger may send them. Each is refused on loading, or gives an error verdict, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from blemish import BlemishError, Inspector
from blemish.inference.bundle import BundleError
from blemish.inference.graph_check import GraphError, _has_external_data, check_file
from tests import tiny

Change = Callable[[onnx.GraphProto], None]
GREY = np.full((7, 9, 3), 50, np.uint8)


def refused(folder: Path, graph: bytes, **changes: Any) -> str:
    """The sentence with which a bundle of this graph is refused."""
    with pytest.raises(BundleError) as caught:
        Inspector(tiny.made(folder / "b", graph, **changes), threads=1)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(folder))
    return sentence


def failed(folder: Path, graph: bytes, **changes: Any) -> str:
    """The error of the verdict on a grey image."""
    verdict = Inspector(tiny.made(folder / "b", graph, **changes), threads=1).inspect(GREY, "a.png")
    assert verdict.decision == "error"
    assert verdict.error is not None
    assert verdict.error.startswith("a.png: ")
    assert "\n" not in verdict.error
    assert verdict.score is None
    return verdict.error


def test_the_tiny_graph_is_healthy(tmp_path: Path) -> None:
    inspector = Inspector(tiny.made(tmp_path / "b"), threads=1)
    decisions = [inspector.inspect(np.full((7, 9, 3), grey, np.uint8)).decision for grey in (90, 95, 101)]
    assert decisions == ["good", "review", "anomaly"]
    assert not _has_external_data(tiny.model())


# External data: wherever a tensor may be.


def outside(name: str = "outside", *, located: bool = True) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    if located:
        tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "secret.bin"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _initializer(graph: onnx.GraphProto) -> None:
    graph.initializer.append(outside())


def _unlocated(graph: onnx.GraphProto) -> None:
    graph.initializer.append(outside(located=False))


def _constant(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, helper.make_node("Constant", [], ["outside"], value=outside()))


def _sparse(graph: onnx.GraphProto) -> None:
    places = tiny.tensor("places", [0])
    graph.sparse_initializer.append(onnx.SparseTensorProto(values=outside(), indices=places, dims=[1]))


def _sparse_places(graph: onnx.GraphProto) -> None:
    values = tiny.tensor("values", [0.0], np.float32)
    graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=outside(), dims=[1]))


def _branch(depth: int = 1) -> onnx.GraphProto:
    graph = helper.make_graph([], "branch", [], [tiny.value("outside", TensorProto.FLOAT, [1])], [outside()])
    for _ in range(depth - 1):
        node = helper.make_node("If", ["so"], ["outside"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "branch", [], [tiny.value("outside", TensorProto.FLOAT, [1])])
    return graph


def _if(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("If", ["so"], ["outside"], then_branch=_branch(), else_branch=_branch()))
    graph.initializer.append(tiny.tensor("so", True, bool))


def _deep(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("If", ["so"], ["outside"], then_branch=_branch(8), else_branch=_branch(8)))


def _list(graph: onnx.GraphProto) -> None:
    node = helper.make_node("Foo", [], ["outside"], domain="own")
    node.attribute.append(onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS, tensors=[outside()]))
    graph.node.append(node)


def _graphs(graph: onnx.GraphProto) -> None:
    node = helper.make_node("Foo", [], ["outside"], domain="own")
    node.attribute.append(onnx.AttributeProto(name="many", type=onnx.AttributeProto.GRAPHS, graphs=[_branch()]))
    graph.node.append(node)


@pytest.mark.parametrize(
    "change", [_initializer, _unlocated, _constant, _sparse, _sparse_places, _if, _deep, _list, _graphs]
)
def test_a_graph_with_external_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    (tmp_path / "secret.bin").write_bytes(np.float32(7).tobytes())
    monkeypatch.chdir(tmp_path)
    assert "takes weights from other files" in refused(tmp_path, tiny.model(change))


def test_external_data_of_a_function_is_found() -> None:
    function = helper.make_function(
        "own", "Foo", [], ["y"], [helper.make_node("Constant", [], ["y"], value=outside())], []
    )
    assert _has_external_data(tiny.model(functions=[function]))


def test_onnxruntime_itself_would_read_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or there would be nothing to refuse. If it does so no more, the check may go."""
    (tmp_path / "secret.bin").write_bytes(np.float32(7).tobytes())
    monkeypatch.chdir(tmp_path)

    def added(graph: onnx.GraphProto) -> None:
        graph.initializer.append(outside())
        graph.node[2].input[1] = "outside"

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tiny.model(added), options, providers=["CPUExecutionProvider"])
    assert session.run(["scores"], {"images": GREY[None]})[0] == 7 * 50


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x0b", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 30, b"\x3a"])
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "onnxruntime cannot load the graph" in refused(tmp_path, data)


def test_a_graph_in_onnxruntimes_own_format_is_refused(tmp_path: Path) -> None:
    """The check does not read it, so it could hide anything."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(tiny.model(), options, providers=["CPUExecutionProvider"])
    assert "cannot load the graph" in refused(tmp_path, (tmp_path / "m.ort").read_bytes())


def test_a_long_graph_is_read_in_little_time() -> None:
    """A million small numbers, which are a million fields where they are not packed."""
    many = TensorProto(data_type=TensorProto.INT64, dims=[10**6], int64_data=[1] * 10**6)

    def grown(graph: onnx.GraphProto) -> None:
        graph.initializer.append(many)

    check_file(tiny.model(grown), Path("b"))


# Names, types and shapes, on loading.


def _input(kind: int, shape: list[int | str]) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].CopyFrom(tiny.value("images", kind, shape))

    return change


def _renamed_input(graph: onnx.GraphProto) -> None:
    graph.input[0].name = graph.node[0].input[0] = "x\ny"


def _second_input(graph: onnx.GraphProto) -> None:
    graph.input.append(tiny.value("more", TensorProto.FLOAT, [1]))
    graph.node[2].input[1] = "more"


def _no_maps(graph: onnx.GraphProto) -> None:
    del graph.output[1], graph.node[3:]


def _no_scores(graph: onnx.GraphProto) -> None:
    graph.output[0].name = graph.node[2].output[0] = "points"


def _whole_scores(graph: onnx.GraphProto) -> None:
    graph.node[2].output[0] = "before"
    graph.node.append(helper.make_node("Cast", ["before"], ["scores"], to=TensorProto.INT64))
    graph.output[0].CopyFrom(tiny.value("scores", TensorProto.INT64, ["N"]))


def _sequence(graph: onnx.GraphProto) -> None:
    graph.node[2].output[0] = "before"
    graph.node.append(helper.make_node("SequenceConstruct", ["before"], ["scores"]))
    graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("scores", TensorProto.FLOAT, ["N"]))


def _slope(shape: tuple[int, ...]) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.initializer[3].CopyFrom(tiny.tensor("slope", np.zeros(shape), np.float32))
        graph.output[1].CopyFrom(tiny.value("maps", TensorProto.FLOAT, ["N", *shape[1:]]))

    return change


def _twelve_scores(graph: onnx.GraphProto) -> None:
    graph.initializer[2].CopyFrom(tiny.tensor("one", np.ones((2, 1)), np.float32))
    graph.output[0].CopyFrom(tiny.value("scores", TensorProto.FLOAT, [2, "N"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed_input, "input is called x?y instead of images"),
        (_second_input, "2 inputs instead of 1"),
        (_input(TensorProto.FLOAT, ["N", "H", "W", 3]), r"a tensor(float) instead of a tensor(uint8)"),
        (_input(TensorProto.UINT8, ["N", "H", "W", 4]), "(N, H, W, 4) instead of (N, H, W, 3)"),
        (_input(TensorProto.UINT8, ["N", 3, "H", "W"]), "(N, 3, H, W) instead of (N, H, W, 3)"),
        (_input(TensorProto.UINT8, ["N", 64, 64, 3]), "(N, 64, 64, 3) instead of (N, H, W, 3)"),
        (_input(TensorProto.UINT8, [2, "H", "W", 3]), "(2, H, W, 3) instead of (N, H, W, 3)"),
        (_no_maps, "no output maps"),
        (_no_scores, "no output scores"),
        (_whole_scores, "scores is a tensor(int64) instead of a tensor(float)"),
        (_sequence, "scores is a seq(tensor(float)) instead of a tensor(float)"),
        (_slope((1, 9, 9)), "maps has the shape (N, 9, 9) instead of (?, 4, 5)"),
        (_slope((1, 5, 4)), "maps has the shape (N, 5, 4) instead of (?, 4, 5)"),
        (_twelve_scores, "scores has the shape (2, N) instead of (?)"),
    ],
)
def test_a_graph_that_is_not_of_its_card_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    assert message in refused(tmp_path, tiny.model(change))


def _probabilities(width: int) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(tiny.tensor("classes", np.full((1, width), 1 / width), np.float32))
        graph.node.append(helper.make_node("Identity", ["classes"], ["probabilities"]))
        graph.output.append(tiny.value("probabilities", TensorProto.FLOAT, [1, width]))

    return change


def test_the_classes_are_those_of_the_card(tmp_path: Path) -> None:
    three = {"classes": ("good", "scratch", "dent")}
    assert "no output probabilities" in refused(tmp_path / "none", tiny.model(), **three)
    assert "(1, 2) instead of (?, 3)" in refused(tmp_path / "two", tiny.model(_probabilities(2)), **three)
    inspector = Inspector(tiny.made(tmp_path / "b", tiny.model(_probabilities(3)), **three), threads=1)
    verdict = inspector.inspect(np.full((7, 9, 3), 120, np.uint8))
    assert (verdict.decision, verdict.defect) == ("anomaly", "scratch")
    assert verdict.probability == pytest.approx(2 / 3)


def test_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("Foo\nBar", ["mean"], ["y"], domain="com.microsoft"))

    assert "onnxruntime cannot load the graph" in refused(tmp_path, tiny.model(change))


def test_outputs_that_mean_nothing_are_left_out(tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("SequenceConstruct", ["mean"], ["more"]))
        graph.output.append(helper.make_tensor_sequence_value_info("more", TensorProto.FLOAT, ["N"]))

    assert Inspector(tiny.made(tmp_path / "b", tiny.model(change)), threads=1).inspect(GREY).score == 50


# What can only be seen on an image.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of", ["scores", "maps", "one cell", "probabilities", "distances"])
def test_what_is_no_number_is_an_error(tmp_path: Path, of: str, value: float) -> None:
    slope, changes = np.zeros((1, *tiny.SIZE)), {}

    def change(graph: onnx.GraphProto) -> None:
        if of == "scores":
            graph.initializer[2].CopyFrom(tiny.tensor("one", value, np.float32))
        elif of == "maps":
            graph.initializer[3].CopyFrom(tiny.tensor("slope", slope + value, np.float32))
        elif of == "one cell":
            slope[0, 2, 3] = value
            graph.initializer[3].CopyFrom(tiny.tensor("slope", slope, np.float32))
        else:
            shape = (1, 2) if of == "probabilities" else (1, 2, 2)
            graph.initializer.append(tiny.tensor("made", np.full(shape, value), np.float32))
            graph.node.append(helper.make_node("Identity", ["made"], [of]))
            graph.output.append(tiny.value(of, TensorProto.FLOAT, shape))

    if of == "probabilities":
        changes = {"classes": ("good", "defect")}
    message = failed(tmp_path, tiny.model(change), **changes)
    assert f"no number (NaN or infinite) among its {'maps' if of == 'one cell' else of}" in message
    with pytest.raises(GraphError, match="no number"):
        Inspector(tmp_path / "b", threads=1).predict(GREY)


def _unknown(name: str, kind: int) -> onnx.ValueInfoProto:
    """An output of which nothing is known but its type."""
    return tiny.value(name, kind, None)


def _wrong_map(graph: onnx.GraphProto) -> None:
    _slope((1, 9, 9))(graph)
    graph.output[1].CopyFrom(_unknown("maps", TensorProto.FLOAT))
    graph.node[4].CopyFrom(helper.make_node("Add", ["column", "slope"], ["wrong"]))
    graph.node.append(helper.make_node("Reshape", ["wrong", "shape"], ["maps"]))
    graph.node.insert(0, helper.make_node("Shape", ["images"], ["all"]))
    graph.node.insert(1, helper.make_node("Gather", ["all", "order"], ["some"]))
    graph.node.insert(2, helper.make_node("Concat", ["some", "left"], ["shape"], axis=0))
    graph.initializer.extend([tiny.tensor("order", [0]), tiny.tensor("left", [-1, 1])])


def test_a_map_of_another_shape_is_an_error(tmp_path: Path) -> None:
    assert "gave maps of another form (float32 (1, 81, 1))" in failed(tmp_path, tiny.model(_wrong_map))


def test_a_graph_that_fails_is_an_error(tmp_path: Path) -> None:
    """It divides the image into as many parts as do not fit."""

    def change(graph: onnx.GraphProto) -> None:
        graph.node[2].input[0] = "reshaped"
        graph.node.insert(2, helper.make_node("Reshape", ["pixels", "seven"], ["reshaped"]))
        graph.initializer.append(tiny.tensor("seven", [7]))
        graph.output[0].CopyFrom(tiny.value("scores", TensorProto.FLOAT, ["M"]))

    assert "the detector cannot be run on it" in failed(tmp_path, tiny.model(change))


def test_a_graph_that_asks_for_all_memory_is_refused_or_an_error(tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[2].input[1] = "sum"
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["much"]))
        graph.node.insert(1, helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0))
        graph.initializer.append(tiny.tensor("shape", [10**7, 10**7]))

    assert "the detector cannot be run on it" in failed(tmp_path, tiny.model(change))


def test_a_verdict_never_rests_on_what_is_no_number(tmp_path: Path) -> None:
    """Also where a program changes the card itself, which is then not checked."""
    inspector = Inspector(tiny.made(tmp_path / "b"), threads=1)
    for value in (np.nan, np.inf, -np.inf):
        rule = inspector.card.decision.model_copy(update={"threshold": value})
        inspector.card = inspector.card.model_copy(update={"decision": rule})
        assert inspector.inspect(GREY).decision == "error"


def test_a_time_limit_is_a_number_of_seconds(tmp_path: Path) -> None:
    tiny.made(tmp_path / "b")
    for seconds in (0, -1, float("nan"), float("inf"), 1e300):
        with pytest.raises(BlemishError, match="time limit"):
            Inspector(tmp_path / "b", timeout=seconds)
