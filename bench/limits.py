"""Time of an inspection by stage, and how close each stage is to the limit of this processor.

    python bench/limits.py BUNDLE IMAGE

Measures the processor's rates (float32 and 8-bit matrix products, copying memory) and, in the same run, each stage of
an inspection. Counts the operations from the graph's nodes. Prints a table; bench/line.py also writes it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from blemish.images import load_image
from blemish.inference import overlay
from blemish.inference.inspector import Inspector

RUNS = 30


def median(do: Callable[[], object], runs: int = RUNS) -> float:
    """Seconds of a call, after two warm-up calls."""
    times = []
    for _ in range(runs + 2):
        begun = time.perf_counter()
        do()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def one_node(kind: str, a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    """A session that multiplies `a` by the constant `b`."""
    make = onnx.helper
    of = make.np_dtype_to_tensor_dtype
    out = np.dtype(np.int32) if a.dtype == np.uint8 else a.dtype
    graph = make.make_graph(
        [make.make_node(kind, ["a", "b"], ["c"])],
        "product",
        [make.make_tensor_value_info("a", of(a.dtype), a.shape)],
        [make.make_tensor_value_info("c", of(out), None)],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def rates() -> dict[str, float]:
    """Rates of all cores together: 10^9 operations per second in float and 8-bit matrix products, and 10^9 bytes copied
    per second (each read once and written once)."""
    n, random = 1024, np.random.default_rng(0)
    floats = random.random((n, n), np.float32)
    whole = random.integers(0, 100, (n, n))
    big = np.ones(2**26, np.float32)
    other = np.empty_like(big)
    return {
        "float_product": 2 * n**3 / median(one_node("MatMul", floats, floats)) / 1e9,
        "byte_product": 2
        * n**3
        / median(one_node("MatMulInteger", whole.astype(np.uint8), whole.astype(np.int8)))
        / 1e9,
        "copy": 2 * big.nbytes / median(lambda: np.copyto(other, big), 8) / 1e9,
    }


def operations(model: onnx.ModelProto) -> dict[str, float]:
    """Multiplications and additions of convolutions and matrix products for one image, by stage, in 10^9."""
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    weights = {i.name: list(i.dims) for i in model.graph.initializer}
    found: dict[str, float] = defaultdict(float)
    for node in model.graph.node:
        out = float(np.prod(shapes.get(node.output[0], [0])))
        if node.op_type == "Conv":
            found["backbone"] += 2 * out * np.prod(weights[node.input[1]][1:])
        elif node.op_type == "MatMulInteger":
            rows = float(np.prod(shapes.get(node.input[0], [0])[:-1]))
            found["neighbours"] += 2 * rows * np.prod(weights[node.input[1]])
    return {stage: count / 1e9 for stage, count in found.items()}


def stage_of(event: dict[str, Any], seen: set[str]) -> str:
    """The stage of a node, from its type and the nodes before it: the graph runs in a fixed order."""
    kind = event["args"]["op_name"]
    if kind in ("Conv", "FusedConv"):
        seen.add("backbone")
        return "backbone"
    if kind in ("MatMulInteger", "ReduceMax", "TopK", "GatherND", "Split") or "neighbours" in seen:
        if kind == "MatMulInteger":
            seen.add("neighbours")
        if "neighbours" in seen and kind in ("MatMul", "FusedMatMul", "Gemm"):
            return "map"
        return "neighbours"
    return "neighbours" if kind == "AveragePool" else "backbone" if "backbone" in seen else "resize"


def graph_stages(model: bytes, image: np.ndarray) -> dict[str, float]:
    """Milliseconds per image by stage, from onnxruntime's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, {"images": image[None]})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    seen: set[str] = set()
    known: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            if event["name"] not in known:
                known[event["name"]] = stage_of(event, seen)
            times[known[event["name"]], event["name"]].append(event["dur"] / 1000)
    found: dict[str, float] = defaultdict(float)
    for (stage, _), each in times.items():
        found[stage] += statistics.median(each)
    return dict(found)


def measure(bundle: Path, image: Path) -> dict[str, Any]:
    """Rates and, for each stage, milliseconds per image and the limit, if there is one."""
    rate, inspector = rates(), Inspector(bundle)
    pixels = load_image(image)
    content = (bundle / "model.onnx").read_bytes()
    count = operations(onnx.load_from_string(content))
    found = inspector.predict(pixels)
    size, (low, high) = (pixels.shape[1], pixels.shape[0]), inspector.card.decision.color_range
    peak = float(found.maps.max())
    flagged = replace(found, scores=np.full(1, inspector.card.decision.threshold * 1.01, np.float32))
    verdict = inspector.judge(flagged, size)
    graph = graph_stages(content, pixels)
    stages: dict[str, dict[str, float]] = {"decode": {"ms": 1e3 * median(lambda: load_image(image))}}
    for stage in ("resize", "backbone", "neighbours", "map"):
        stages[stage] = {"ms": graph.get(stage, 0.0)}
        if stage in count:
            of = rate["float_product" if stage == "backbone" else "byte_product"]
            stages[stage] |= {"gflop": count[stage], "limit_ms": 1e3 * count[stage] / of}
    higher = replace(found, scores=np.full(1, peak * 2, np.float32))
    stages["regions"] = {"ms": 1e3 * median(lambda: inspector.judge(higher, size))}
    with tempfile.TemporaryDirectory() as folder:

        def draw() -> None:
            marked = overlay.overlay(pixels, found.maps[0], verdict.regions, low=low, high=high)
            overlay.save(marked, Path(folder) / "a.jpg")

        stages["drawing"] = {"ms": 1e3 * median(draw)}
    return {"rates": rate, "stages": stages, "cores": os.cpu_count()}


def table(measured: dict[str, Any]) -> str:
    """The table in Markdown."""
    rate = measured["rates"]
    lines = [
        f"Limits measured in the same run: {rate['float_product']:.0f} GFLOP/s in float products, "
        f"{rate['byte_product']:.0f} GOP/s in 8-bit products, {rate['copy']:.1f} GB/s copied.",
        "",
        "| stage | ms per image | 10^9 operations | limit, ms | times the limit |",
        "|---|---:|---:|---:|---:|",
    ]
    for stage, row in measured["stages"].items():
        if "limit_ms" in row:
            limit = f"{row['gflop']:.2f} | {row['limit_ms']:.1f} | {row['ms'] / row['limit_ms']:.1f}"
        else:
            limit = "– | – | –"
        lines.append(f"| {stage} | {row['ms']:.1f} | {limit} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    result = measure(Path(sys.argv[1]), Path(sys.argv[2]))
    print(table(result))
