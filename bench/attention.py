"""The attention autoencoder, PatchCore and five classical baselines on the test images of `blemish train`.

    OMP_NUM_THREADS=1 python bench/attention.py [--only magnetic-tile/with ...]
    python bench/attention.py --table

A configuration is one training, whose network is evaluated with each map of READINGS; the published recipes are in
study_curve.py. Each is written to --work as soon as it is finished, so that a long run can be interrupted and resumed,
or distributed over processes. `--table` collects all of them in bench/results/attention.json and attention.md, with the
baselines of bench/results/baselines.json (image figures only). The best IoU is the highest over all thresholds of
`thresholds_for`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines import DEMO, SETS, parts_of  # type: ignore[import-not-found]  # beside this file
from blemish import __version__
from blemish.cli.console import progress
from blemish.data.split import Split
from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.attention.detector import Attention
from blemish.detectors.interface import Graph
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore
from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import detection_metrics
from blemish.evaluation.localisation import localisation_metrics
from blemish.images import load_mask, read_size
from blemish.reporting.figures import with_interval
from blemish.training.export import in_torch, predict
from blemish.training.splits import auto_size
from blemish.types import Sample

HERE = Path(__file__).resolve().parent
NAMES = ("flange", "cloth", "board", "magnetic-tile", "kolektorsdd")
# The settings of each training that differ from the defaults, and its name in the tables.
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "with": ({"attention_loss": "mean"}, "interpretability term"),
    "without": ({"attention_loss": "none"}, "no interpretability term"),
    "unspoiled": ({"corruption": "none"}, "images not corrupted"),
}
READINGS: dict[str, dict[str, str]] = {
    "attention (image)": {"map": "attention", "input": "image"},
    "attention (difference)": {"map": "attention", "input": "difference"},
    "attention (residual)": {"map": "attention", "input": "residual"},
    "residual": {"map": "residual"},
    "combined": {"map": "combined", "input": "residual"},
}
FIGURES = ("auroc", "average_precision", "pixel_auroc", "aupro", "best_iou")


def measure(folder: Path, name: str) -> dict[str, Any]:
    """One training, and a row for each map that is read from it."""
    split = parts_of(folder, SETS[folder.name])
    result = patchcore(split) if name == "patchcore" else attending(split, name)
    anomalies = sum(sample.label == "anomaly" for sample in split.test)
    counts = {"train": len(split.train), "test_good": len(split.test) - anomalies, "test_anomaly": anomalies}
    return {"set": folder.name, "config": name, **counts, "threads": torch.get_num_threads(), **result}


def patchcore(split: Split) -> dict[str, Any]:
    config = PatchCoreConfig(image_size=auto_size(split.train, 384 * 384))
    begun = time.perf_counter()
    detector = PatchCore(config).fit(split.train, progress)
    seconds = time.perf_counter() - begun
    rows = figures_of([("PatchCore", detector.graph(), {})], split.test)
    return {"image_size": config.image_size, "seconds": round(seconds, 1), "epochs": None, "rows": rows}


def attending(split: Split, name: str) -> dict[str, Any]:
    height, width = AttentionConfig().image_size
    config = AttentionConfig(image_size=auto_size(split.train, height * width))
    config = replace(config, **CONFIGS[name][0])
    begun = time.perf_counter()
    detector = Attention(config).fit(split.train, progress)
    seconds = time.perf_counter() - begun
    readings = []
    for reading, changes in READINGS.items():
        shown = detector.shown_as(progress, **changes)
        graph, validation = shown.graph(), shown.validation
        chosen = {"share": graph.share, "validation": validation.get(f"{graph.share:g}")}
        readings.append((reading, graph, {**chosen, "validation_by_share": validation}))
    return {
        "image_size": config.image_size,
        "seconds": round(seconds, 1),
        "epochs": len(detector.records),
        "training": detector.records,
        "rows": figures_of(readings, split.test),
    }


def figures_of(
    readings: Sequence[tuple[str, Graph, dict[str, Any]]], samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """FIGURES of each reading's graph on labelled samples, with 95 % intervals, and its other entries."""
    labels = np.array([sample.label == "anomaly" for sample in samples])
    sizes = [read_size(sample.path) for sample in samples]
    masks = [load_mask(s.mask, (h, w)) if s.mask else None for s, (w, h) in zip(samples, sizes, strict=True)]
    rows = []
    for reading, graph, more in readings:
        prediction = predict(in_torch(graph), samples, progress, reading)
        # There are no thresholds, decisions or boxes: only figures of scores and maps are used.
        figures = {
            **detection_metrics(prediction.scores, labels, np.zeros_like(labels)),
            **localisation_metrics(prediction.maps, masks, labels, [()] * len(samples), sizes),
        }
        rows.append({"reading": reading, **more, **to_json({key: figures[key] for key in FIGURES})})
    return rows


def baseline_rows(file: Path, ours: dict[str, Any]) -> list[dict[str, Any]]:
    """The baselines of the same set and backbone; skipped if they were measured on other numbers of images."""
    counted = ("set", "train", "test_good", "test_anomaly")
    every = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else []
    rows = [row for row in every if row["backbone"] == "bundled" and row["set"] == ours["set"]]
    same = [row for row in rows if all(row[key] == ours[key] for key in counted)]
    if len(same) < len(rows):
        print(f"{ours['set']}: {len(rows) - len(same)} baselines are of other images; run bench/baselines.py again")
    return same


def table(results: Sequence[dict[str, Any]], baselines: Path) -> str:
    """A table for each set."""
    lines = []
    for name in NAMES:
        of_set = [found for found in results if found["set"] == name]
        if not of_set:
            continue
        first = of_set[0]
        tested = f"{first['test_good']} good and {first['test_anomaly']} defective"
        lines += [f"{name}: learned from {first['train']} good images, tested on {tested}.", ""]
        lines += [
            "| method | image AUROC | average precision | pixel AUROC | AUPRO | best IoU | score "
            "| validation AUROC | training, s | epochs |",
            f"|{'---|' * 10}",
        ]
        for found in of_set:
            height, width = found["image_size"]
            for row in found["rows"]:
                called = "bundled" if found["config"] == "patchcore" else CONFIGS[found["config"]][1]
                cells = [f"{row['reading']}, {called}, {height}x{width}", *(with_interval(row[key]) for key in FIGURES)]
                cells += [score_of(row.get("share")), dashed(row.get("validation"))]
                cells += [f"{found['seconds']:.0f}", dashed(found["epochs"])]
                lines.append(f"| {' | '.join(cells)} |")
        for row in baseline_rows(baselines, first):
            cells = [row["baseline"], *(with_interval(row.get(key)) for key in FIGURES), *"––––"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def beside(results: Sequence[dict[str, Any]], baselines: Path) -> str:
    """The tables of docs/attention.md: image AUROC and pixel AUROC, with a column for each set."""
    lines: list[str] = []
    for figure, title in (("auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC")):
        cells: dict[str, dict[str, str]] = {}
        for found in results:
            for row in found["rows"]:
                more = "" if found["config"] == "patchcore" else f", {CONFIGS[found['config']][1]}"
                cells.setdefault(f"{row['reading']}{more}", {})[found["set"]] = with_interval(row[figure])
        for found in results if figure == "auroc" else []:  # the classical baselines come last
            for row in baseline_rows(baselines, found):
                cells.setdefault(row["baseline"], {})[found["set"]] = with_interval(row[figure])
        sets = [name for name in NAMES if any(name in row for row in cells.values())]
        lines += [f"| {' | '.join([title, *sets])} |", f"|{'---|' * (1 + len(sets))}"]
        lines += [f"| {' | '.join([name, *(row.get(each, '–') for each in sets)])} |" for name, row in cells.items()]
        lines.append("")
    return "\n".join(lines)


def score_of(share: float | None) -> str:
    """`max`, `top 1 %`, or a dash."""
    return "–" if share is None else f"top {100 * share:g} %" if share else "max"


def dashed(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work" / "attention")
    every = [f"{where}/{name}" for name in (*CONFIGS, "patchcore") for where in NAMES]
    parser.add_argument("--only", nargs="*", choices=every, default=every, metavar="SET/CONFIG")
    parser.add_argument("--table", action="store_true", help="only collect the results in --work")
    options = parser.parse_args()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    options.work.mkdir(parents=True, exist_ok=True)
    for task in [] if options.table else options.only:
        where, name = task.split("/")
        folder = (options.demo if where in DEMO else options.shared / "data") / where
        file = options.work / f"{where}-{name}.json"
        if file.exists() or not folder.is_dir():
            print(f"{task}: {'done before' if file.exists() else f'{folder} is missing; skipped'}", flush=True)
            continue
        result = measure(folder, name)
        part = file.with_suffix(".part")  # a file that was not written to its end does not count as done
        part.write_text(json.dumps(result) + "\n", encoding="utf-8")
        part.replace(file)
        print(f"{task}: trained in {result['seconds']} s", flush=True)
    files = [options.work / f"{task.replace('/', '-')}.json" for task in every]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    facts = {"date": str(date.today()), "blemish": __version__, "machine": platform.machine(), "cores": os.cpu_count()}
    saved = HERE / "results" / "attention.json"
    baselines = HERE / "results" / "baselines.json"
    text = beside(results, baselines) + "\n" + table(results, baselines)
    saved.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    saved.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
