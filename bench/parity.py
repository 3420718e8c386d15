"""The differences between PyTorch, onnxruntime and OpenVINO, on the detectors and images of tests/test_parity.py.

    python bench/parity.py

Prints the table of docs/parity.md and writes bench/results/parity.json. Differences are the largest over all images and
pixels, as shares of the range of the scores or maps over all images.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests import parity  # noqa: E402

from blemish.inference.inspector import Inspector  # noqa: E402
from blemish.training.export import in_onnxruntime, in_torch, predict  # noqa: E402
from blemish.types import Prediction  # noqa: E402


def apart(one: Prediction, other: Prediction, made: parity.Made, *, judge: bool = True) -> dict[str, Any]:
    """The largest differences, and the number of images whose decision, defect type or boxes differ."""
    found: dict[str, Any] = {
        "scores": float(np.abs(one.scores - other.scores).max() / np.ptp(one.scores)),
        "maps": float(np.abs(one.maps - other.maps).max() / np.ptp(one.maps)),
    }
    if judge:
        sides = [[(v.decision, v.defect, [r.box for r in v.regions]) for v in made.verdicts(p)] for p in (one, other)]
        found["verdicts"] = sum(a != b for a, b in zip(*sides, strict=True))
    return found


def measured(name: str, folder: Path) -> dict[str, Any]:
    made = parity.make(name, folder)
    torch, line = in_torch(made.graph), in_onnxruntime(made.model)
    ours, theirs = predict(torch, made.tests), predict(line, made.tests)
    one, two = (predict(parity.through(Inspector(made.bundle, threads=n)), made.tests) for n in (1, 2))
    alone = predict(line, made.batch)
    return {
        "images": len(made.tests),
        "onnxruntime": apart(ours, theirs, made),
        "openvino": apart(ours, predict(parity.in_openvino(made.model), made.tests), made),
        "threads": apart(one, two, made),
        "batch": apart(alone, parity.predict_together(line, made.batch), made, judge=False),
    }


def main() -> None:
    rows: dict[str, Any] = {}
    for name in parity.CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measured(name, Path(folder))
        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    versions = {package: version(package) for package in ("torch", "onnxruntime", "openvino", "numpy")}
    result = {"versions": versions, "batch": parity.BATCH, "cases": rows}
    (HERE / "results/parity.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    against = ("onnxruntime", "openvino", "threads", "batch")
    print("| detector and map | onnxruntime | OpenVINO | 2 threads | batch of 32 | other verdicts |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        cells = [
            " / ".join(f"{row[what][of]:.0e}" if row[what][of] else "0" for of in ("scores", "maps"))
            for what in against
        ]
        others = sum(row[what].get("verdicts", 0) for what in against)
        print(f"| {name} | {' | '.join(cells)} | {others} of {3 * row['images']} |")


if __name__ == "__main__":
    main()
