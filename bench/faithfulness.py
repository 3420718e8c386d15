"""Faithfulness of the heatmaps: each detector on three real sets, compared with its controls (docs/faithfulness.md).

    OMP_NUM_THREADS=1 python bench/faithfulness.py [--only cookies/cam ...] [--most 20]
    python bench/faithfulness.py --table

Each detector is trained by `blemish train` with the options of accuracy.py (whose runs are used for PatchCore if they
exist), and again with random weights as a control (an autoencoder without any training step). The heatmaps are tested
as in `blemish evaluate --faithfulness`, on test images. Runs and figures are kept under
bench/results/work/faithfulness, so that a long run can be interrupted and resumed; remove them to measure again.
`--table` collects all figures in bench/results/faithfulness.json and faithfulness.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from accuracy import SETS  # type: ignore[import-not-found]  # beside this file
from blemish import Inspector, __version__
from blemish.cli.console import progress
from blemish.detectors.registry import settings_for
from blemish.evaluation.evaluate_bundle import heatmaps, labelled
from blemish.reporting.figures import MEASURES
from blemish.reporting.run import FAITHFUL, names_tested
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train

HERE = Path(__file__).resolve().parent
WORK = HERE / "results" / "work" / "faithfulness"
NAMES = ("kolektorsdd", "magnetic-tile", "cookies")
# The good images show 24 items; detectors with held-out images must hold out so many of them to guarantee 10 %.
FEW = {"kolektorsdd": {"calibration": 0.4}}
# Each detector, and its settings with random weights.
DETECTORS: dict[str, dict[str, Any]] = {
    "patchcore": {"random_weights": True},
    "cam": {"random_weights": True},
    "attention": {"epochs": 1, "rate": 0.0},
}


def learned(data: Path, name: str, out: Path, settings: dict[str, Any]) -> Path:
    if not out.exists():
        changes = dict(next(changes for known, changes, _ in SETS if known == data.name))
        changes |= {} if name == "patchcore" else FEW.get(data.name, {})
        train(TrainConfig(data, out, settings_for(name, settings), **changes), progress)
    return out


def folder(data: Path, name: str) -> Path:
    ready = HERE / "results" / "work" / data.name
    return ready if name == "patchcore" and ready.exists() else WORK / f"{data.name}-{name}"


def measure(data: Path, name: str, most: int) -> None:
    run = learned(data, name, folder(data, name), {})
    if (run / FAITHFUL).exists():
        return
    random = learned(data, name, WORK / f"{data.name}-{name}-random", DETECTORS[name])
    inspector = Inspector(run, threads=1)
    result = heatmaps(
        inspector,
        labelled(data, tested=names_tested(run)).samples,
        median(inspector.card.decision.scores),
        randomised=Inspector(random, threads=1),
        most=most,
        progress=progress,
    )
    (run / FAITHFUL).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(results: list[dict[str, Any]]) -> str:
    """A row for each detector and set, a column for each measure: its figure, that of the best control, and the
    verdict."""
    measures = [MEASURES[measure["name"]] for measure in results[0]["measures"]]
    lines = [f"| data | detector | images | {' | '.join(measures)} |", "|---" * (3 + len(measures)) + "|"]
    for found in results:
        cells = [cell(measure) for measure in found["measures"]]
        images = f"{found['images']} of {found['asked']}"
        lines.append(f"| {found['data']} | {found['detector']} | {images} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(measure: dict[str, Any]) -> str:
    controls = {name: figure["value"] for name, figure in measure["controls"].items()}
    if measure["value"]["value"] is None:
        return "–"
    best = (min if measure["lower_is_better"] else max)(controls, key=lambda name: controls[name])
    verdict = {True: "yes", False: "no", None: "no verdict"}[measure["explains"]]
    return f"**{verdict}** {measure['value']['value']:.3f}; {best} {controls[best]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--only", nargs="*", default=None, help="SET/DETECTOR")
    parser.add_argument("--most", type=int, default=20, help="anomalies of a set, at most")
    parser.add_argument("--table", action="store_true", help="write only the table")
    options = parser.parse_args()
    tasks = [(options.shared / "data" / data, name) for data in NAMES for name in DETECTORS]
    for data, name in [] if options.table else tasks:
        if not data.is_dir():
            print(f"{data} is missing; skipped")
        elif not options.only or f"{data.name}/{name}" in options.only:
            print(f"{data.name}/{name}", flush=True)
            measure(data, name, options.most)
    results = []
    for data, name in tasks:
        file = folder(data, name) / FAITHFUL
        if file.is_file():
            results.append({"data": data.name, "detector": name, **json.loads(file.read_text(encoding="utf-8"))})
    if results:
        facts = {"date": str(date.today()), "blemish": __version__, "machine": platform.machine()}
        saved = HERE / "results" / "faithfulness.json"
        saved.write_text(json.dumps({**facts, "cores": os.cpu_count(), "results": results}, indent=1) + "\n")
        saved.with_suffix(".md").write_text(table(results), encoding="utf-8")
        print(table(results))


if __name__ == "__main__":
    main()
