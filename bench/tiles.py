"""Small defects in images of 4000 x 3000 pixels: with tiles and without.

    python bench/tiles.py [--data FOLDER] [--train 20] [--only tiles]

Draws the demo's panel (or reads it from FOLDER). Trains PatchCore with each set of options in one process, inspects
test images in another, and writes figures, seconds and peak memory to bench/results/tiles.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from blemish.cli.console import progress
from blemish.demo.panel import write_panel

HERE = Path(__file__).resolve().parent
WAYS = {
    "whole, 256x256 pixels in all": [],
    "whole, at 768x1024": ["--image-size", "768x1024"],
    "tiles of 512, overlap 64": ["--tile", "512", "--overlap", "64"],
    "the same, without the engraving": ["--tile", "512", "--overlap", "64", "--roi", "ROI"],
}
# The serial number differs on every plate, so it looks like a defect.
ROI = {"polygons": [[[0, 0], [3999, 0], [3999, 2820], [0, 2820]]]}
TIMED = 6  # test images that are timed


def measured(command: list[str]) -> tuple[str, float, float]:
    """The output of a process, its seconds, and its peak resident memory in GiB."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}")
        output.seek(0)
        return output.read(), time.perf_counter() - begun, usage.ru_maxrss / 2**20


def look(bundle: Path, folder: Path) -> None:
    """In the child process: seconds per image, decoding included, on one thread."""
    from blemish import Inspector

    inspector = Inspector(bundle, threads=1)
    seconds = []
    for image in sorted((folder / "test").rglob("*.jpg"))[:TIMED]:
        begun = time.perf_counter()
        inspector.inspect(image)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps(seconds))


def way(name: str, options: list[str], data: Path, out: Path) -> dict[str, Any]:
    run, roi = out / "run", out / "roi.json"
    roi.write_text(json.dumps(ROI))
    options = [str(roi) if option == "ROI" else option for option in options]
    words = ["train", str(data), "-o", str(run), "--overwrite", "--json", "--overlays", "4", *options]
    printed, seconds, peak = measured([sys.executable, "-m", "blemish", *words])
    metrics = json.loads(printed)
    times, _, line_peak = measured([sys.executable, __file__, "--look", str(run / "bundle"), "--data", str(data)])
    found = {
        "way": name,
        "options": WAYS[name],
        **{key: metrics["detection"][key] for key in ("auroc", "recall", "false_alarm_rate")},
        **{key: metrics["localisation"][key] for key in ("pixel_auroc", "aupro", "defects_hit", "boxes_right")},
        "recall_by_defect": metrics["recall_by_defect"],
        "counts": metrics["counts"],
        "learning_seconds": round(seconds, 1),
        "stages": metrics["seconds"],
        "learning_peak_gib": round(peak, 2),
        "seconds_a_image": round(statistics.median(json.loads(times)), 2),
        "line_peak_gib": round(line_peak, 2),
        "bundle_mb": round(sum(file.stat().st_size for file in (run / "bundle").iterdir()) / 1e6, 1),
    }
    print(json.dumps({key: found[key] for key in ("way", "auroc", "pixel_auroc", "defects_hit", "seconds_a_image")}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--train", type=int, default=20)
    parser.add_argument("--only", default="", help="only the options whose name starts with this")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        look(options.look, options.data)
        return
    file = HERE / "results" / "tiles.json"
    known = {one["way"]: one for one in json.loads(file.read_text())} if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or write_panel(Path(folder), train=options.train, progress=progress)
        for name, words in WAYS.items():
            if name.startswith(options.only):
                known[name] = way(name, words, data, Path(folder))
                file.write_text(json.dumps([known[way] for way in WAYS if way in known], indent=1) + "\n")


if __name__ == "__main__":
    main()
