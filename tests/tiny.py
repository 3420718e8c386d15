"""A bundle of two kilobytes, whose graph is written node by node: the score is an image's mean, the map that plus a
constant slope. And the same with whatever a stranger may have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from blemish.inference import bundle

SIZE = (4, 5)  # height, width of its maps


def tensor(name: str, values: Any, kind: Any = np.int64) -> onnx.TensorProto:
    made: onnx.TensorProto = onnx.numpy_helper.from_array(np.array(values, kind), name)
    return made


def value(name: str, kind: int, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    made: onnx.ValueInfoProto = helper.make_tensor_value_info(name, kind, shape)
    return made


def model(change: Callable[[onnx.GraphProto], None] = lambda _: None, **options: Any) -> bytes:
    """Its graph, after `change`."""
    slope = np.arange(SIZE[0] * SIZE[1], dtype=np.float32).reshape(1, *SIZE)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "one"], ["scores"]),
            helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
            helper.make_node("Add", ["column", "slope"], ["maps"]),
        ],
        "tiny",
        [value("images", TensorProto.UINT8, ["N", "H", "W", 3])],
        [value("scores", TensorProto.FLOAT, ["N"]), value("maps", TensorProto.FLOAT, ["N", *SIZE])],
        [
            tensor("axes", [1, 2, 3]),
            tensor("last", [1, 2]),
            tensor("one", 1, np.float32),
            tensor("slope", slope, np.float32),
        ],
    )
    change(graph)
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9, **options).SerializeToString()
    return made


def counting() -> onnx.GraphProto:
    """The body of a loop that adds one each time."""
    number, yes = value("number", TensorProto.INT64, []), value("yes", TensorProto.BOOL, [])
    before, after = value("before", TensorProto.FLOAT, []), value("after", TensorProto.FLOAT, [])
    return helper.make_graph(
        [helper.make_node("Identity", ["yes"], ["still"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "body",
        [number, yes, before],
        [value("still", TensorProto.BOOL, []), after],
    )


def endless(graph: onnx.GraphProto) -> None:
    """A change: the graph never ends where the image's mean is above 200."""
    graph.node.insert(1, helper.make_node("ReduceMean", ["pixels"], ["grey"], keepdims=0))
    graph.node.insert(2, helper.make_node("Greater", ["grey", "two hundred"], ["bright"]))
    graph.node.insert(3, helper.make_node("Loop", ["", "bright", "one"], ["count"], body=counting()))
    graph.node.insert(4, helper.make_node("Mul", ["count", "zero"], ["nothing"]))
    graph.node[-1].input[0] = "sum"
    graph.node.insert(len(graph.node) - 1, helper.make_node("Add", ["column", "nothing"], ["sum"]))
    graph.initializer.extend([tensor("two hundred", 200.0, np.float32), tensor("zero", 0.0, np.float32)])


def card(**changes: Any) -> bundle.Card:
    """An image is an anomaly when its mean is above 100."""
    decision = bundle.Decision(
        false_alarms=0.25,
        guarantee="At most 25% of good parts are called anomalies.",
        threshold=100.0,
        review=0.5,
        review_threshold=90.0,
        pixel_threshold=110.0,
        normal_median=50.0,
        min_area=0.0,
        scores=(80.0, 90.0, 100.0),
        map_maxima=(99.0, 109.0, 110.0),
        color_range=(100.0, 200.0),
    )
    fields: dict[str, Any] = {
        "created": "2026-01-01T00:00:00+00:00",
        "product": "tiny",
        "detector": "patchcore",
        "settings": {"coreset": 0.1},
        "image_size": SIZE,
        "data": bundle.Data(source="x", layout="mvtec", train=3, calibration=3, test=2, seed=0, sha256="0"),
        "decision": decision,
        "parity": {"scores": 0.0},
        "backbone": {"name": "none", "licence": "none"},
        "licences": {},
        "versions": {},
    }
    return bundle.Card(**fields | changes)


def made(folder: Path, graph: bytes | None = None, **changes: Any) -> Path:
    """Writes the bundle, with another `graph` or other fields of the card."""
    folder.mkdir(parents=True)
    (folder / bundle.MODEL).write_bytes(model() if graph is None else graph)
    bundle.write(folder, card(**changes))
    return folder


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / bundle.CARD).read_text("utf-8"))
    return content


def sealed(folder: Path, content: dict[str, Any]) -> Path:
    """Writes a card as a stranger would who knows how its hash is made."""
    content["sha256"] = ""
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / bundle.CARD).write_text(json.dumps(content), "utf-8")
    return folder
