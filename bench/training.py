"""How long `blemish train` takes, end to end and by stage: this checkout beside an earlier one, in rounds in turn.

Usage: python bench/training.py --shared ../shared --before /path/to/another/checkout [--rounds 3]
The data are those of bench/line.py: 300 good magnetic tiles to learn from, 400 to test on. Each training is a process
of its own with two threads. Writes bench/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from line import lay_out  # type: ignore[import-not-found]  # beside this file

HERE = Path(__file__).resolve().parent
WORK = HERE / "results" / "work" / "line"


def trained(checkout: Path, out: Path) -> dict[str, Any]:
    """Seconds of one training by the code in `checkout`, in all and by stage, and its image AUROC."""
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [
        sys.executable,
        "-m",
        "blemish",
        "train",
        str(WORK / "images"),
        "-o",
        str(out),
        "--detector",
        "patchcore",
    ]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    seconds = time.perf_counter() - begun
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "stages": metrics["seconds"], "image_auroc": metrics["detection"]["auroc"]["value"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared")
    parser.add_argument("--before", type=Path, required=True, help="another checkout of blemish")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    lay_out(options.shared / "data" / "magnetic-tile", WORK)
    rounds = []
    for number in range(options.rounds):
        each = {
            name: trained(checkout, WORK / f"train-{name}")
            for name, checkout in (("before", options.before), ("now", HERE.parent))
        }
        rounds.append(each)
        print(
            f"round {number + 1}: {each['before']['seconds']:.1f} s before, {each['now']['seconds']:.1f} s now",
            flush=True,
        )
    ratio = statistics.median(each["now"]["seconds"] / each["before"]["seconds"] for each in rounds)
    print(f"now / before: {ratio:.2f}")
    result = {"ratio": ratio, "rounds": rounds}
    (HERE / "results" / "training.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
