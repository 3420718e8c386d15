"""Accuracy of `blemish train --detector patchcore` on every real data set beside the repository, and on the demo.

    python bench/accuracy.py [--shared ../shared] [--demo demo/data] [--only cookies ...] [--seeds 5]
    python bench/accuracy.py --table

Writes bench/results/accuracy.json and accuracy.md. Each run uses the command and the split rule of a user. Options that
differ from the defaults are in SETS and in the table. `--seeds` repeats it with other splits and other coresets, and
adds a table of their means. `--table` writes the tables from existing runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from blemish import __version__
from blemish.cli.console import progress
from blemish.reporting.figures import with_interval
from blemish.training.config import configure
from blemish.training.pipeline import train

HERE = Path(__file__).resolve().parent
# Folder, options that differ from the defaults, and why.
SETS: list[tuple[str, dict[str, Any], str]] = [
    ("magnetic-tile", {}, ""),
    ("casting", {}, ""),
    (
        "kolektorsdd",
        {"test": 0.5, "false_alarms": 0.1},
        "`--test 0.5`: parts of one item stay together, else 10 defects would be left; `--false-alarms 10%`: for 5 % "
        "the oddest of its 24 good items sets the threshold",
    ),
    ("cookies", {"false_alarms": 0.1}, "`--false-alarms 10%`: 45 good images cannot guarantee 5 %"),
]


def measure(folder: Path, work: Path, changes: dict[str, Any]) -> dict[str, Any]:
    config = configure(folder, work / folder.name, overwrite=True, detector="patchcore", **changes)
    return train(config, progress).metrics


def repeated(folder: Path, work: Path, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """The figures of one more seed, kept in a file of their own."""
    kept = work / f"seed-{seed}" / f"{folder.name}.json"
    if not kept.is_file():
        metrics = measure(folder, work / f"seed-{seed}", {**changes, "seed": seed, "overlays": 0, "evidence": False})
        kept.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    metrics_again: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return metrics_again


def over_seeds(results: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and range of the figures over the seeds of each set."""
    lines = ["| data | seeds | image AUROC | defects found | false alarms |", "|---|---|---|---|---|"]
    for name, runs in results.items():
        cells = []
        for figure in ("auroc", "recall", "false_alarm_rate"):
            values = [run["detection"][figure]["value"] for run in runs]
            shown = (np.mean(values), min(values), max(values))
            texts = [f"{value:.3f}" if figure == "auroc" else f"{value:.0%}" for value in shown]
            cells.append("{} ({} to {})".format(*texts))
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def row(metrics: dict[str, Any]) -> str:
    counts, detection, places = metrics["counts"], metrics["detection"], metrics["localisation"]
    left_out = metrics["decision"].get("calibrated_by") == "leave-one-out"
    cells = [
        metrics["product"],
        f"{counts['train']}" if left_out else f"{counts['train']} + {counts['calibration']}",
        f"{counts['test_good']} / {counts['test_anomaly']}",
        with_interval(detection["auroc"]),
        with_interval(places["pixel_auroc"]),
        with_interval(places["aupro"]),
        with_interval(places["aupimo"]) if "aupimo" in places else "–",
        with_interval(places["defects_hit"], percent=True),
        with_interval(detection["recall"], percent=True),
        f"{with_interval(detection['false_alarm_rate'], percent=True)} of {metrics['decision']['false_alarms']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def table(results: list[dict[str, Any]], notes: list[str]) -> str:
    head = (
        "| data | learned from good (+ threshold) | tested on good / defective | image AUROC | pixel AUROC | AUPRO "
        "| AUPIMO "
        "| defects hit by a box | defects found | false alarms, of guaranteed |"
    )
    lines = [head, "|---" * 10 + "|", *map(row, results), "", *notes]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--only", nargs="*", default=None, help="names of sets")
    parser.add_argument("--seeds", type=int, default=1, help="that each set is measured with")
    parser.add_argument("--table", action="store_true", help="write only the table")
    options = parser.parse_args()
    work = HERE / "results" / "work"
    tasks: list[tuple[Path, dict[str, Any], str]] = [
        (options.demo / name, {}, "") for name in ("flange", "cloth", "board")
    ]
    tasks += [(options.shared / "data" / name, changes, why) for name, changes, why in SETS]
    saved = HERE / "results" / "accuracy.json"
    results = {}
    for folder, changes, _ in tasks:
        kept = work / folder.name / "metrics.json"
        if options.table or (options.only and folder.name not in options.only):
            if kept.is_file():
                results[folder.name] = json.loads(kept.read_text(encoding="utf-8"))
        elif folder.is_dir():
            results[folder.name] = measure(folder, work, changes)
        else:
            print(f"{folder} is missing; skipped")
    order = [results[folder.name] for folder, _, _ in tasks if folder.name in results]
    notes = ["Without a + the same images set the threshold, each scored without its own item."]
    notes += [f"{folder.name}: {why}." for folder, _, why in tasks if why and folder.name in results]
    facts = {"date": str(date.today()), "blemish": __version__, "machine": platform.machine(), "cores": os.cpu_count()}
    saved.parent.mkdir(exist_ok=True)
    saved.write_text(json.dumps({**facts, "results": order}, indent=1) + "\n", encoding="utf-8")
    text = table(order, notes)
    seeds: dict[str, list[dict[str, Any]]] = {}
    for folder, changes, _ in tasks:
        wanted = [seed for seed in range(1, options.seeds) if not options.only or folder.name in options.only]
        known = [work / f"seed-{seed}" / f"{folder.name}.json" for seed in range(1, 100)]
        wanted = wanted or [seed for seed, file in enumerate(known, 1) if file.is_file()]
        if folder.name in results and wanted:
            seeds[folder.name] = [results[folder.name], *(repeated(folder, work, changes, seed) for seed in wanted)]
    text += "\n" + over_seeds(seeds) if seeds else ""
    saved.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
