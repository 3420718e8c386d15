"""Repeated stratified k-fold of the classifier, and of a logistic regression on pooled ImageNet features.

    python bench/cam.py --work bench/results/work [--only magnetic-tile/imagenet-tail ...] [--folds 5] [--repeats 1]
    python bench/cam.py --table

Each row is one data set and one configuration; each is written to --work as soon as it is finished, so that a long run
can be interrupted and resumed, or distributed over processes. `--table` collects all rows in bench/results/cam.json and
cam.md. The regression is that of scikit-learn, on the 1,280 pooled features before MobileNetV2's classifier,
standardised, with balanced class weights, on the same folds at 224x224.
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

from blemish import __version__
from blemish.cli.console import progress
from blemish.data import layouts
from blemish.data.audit import audit
from blemish.data.split import kfold
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.cam.detector import Cam
from blemish.detectors.nn.resampling import Resize, batches
from blemish.evaluation.bootstrap import intervals, to_json
from blemish.evaluation.detection import auroc
from blemish.evaluation.localisation import localisation_metrics
from blemish.images import load_mask, read_size
from blemish.reporting.figures import with_interval
from blemish.training.crossval import cross_validate, of_fold, spread
from blemish.training.splits import usable
from blemish.types import Sample, silent

HERE = Path(__file__).resolve().parent
IMAGENET = "mobilenetv2_100?pad_type=same&mean=0.498&std=0.5"
WEIGHTS = "weights/mobilenetv2_100_tf.safetensors"
SETS = ("magnetic-tile", "casting", "kolektorsdd", "cookies", "flange", "cloth", "board")
# The settings of each row that differ from the defaults; all at 224x224, as in the published study and the regression.
CONFIGS: dict[str, dict[str, Any]] = {
    "bundled-head": {"unfreeze": 0},
    "bundled-deviations": {"unfreeze": 0, "pool": "deviations"},
    "bundled-tail": {"unfreeze": 1},
    "imagenet-head": {"unfreeze": 0},
    "imagenet-deviations": {"unfreeze": 0, "pool": "deviations"},
    "imagenet-tail": {"unfreeze": 1},
    "imagenet-mean": {"unfreeze": 0, "pool": "mean", "layers": ("4",)},
}
# Method and layer of the compared maps, of the classifier whose last stages were trained.
MAPS = {
    "bundled": [("cam", ""), *((m, "3") for m in ("gradcam", "gradcam++", "layercam", "hirescam")), ("layercam", "2"),
                ("gradcam++", "2"), ("hirescam", "2")],
    "imagenet": [("cam", ""), *((m, "4") for m in ("gradcam", "gradcam++", "layercam", "hirescam")), ("layercam", "3"),
                 ("gradcam++", "3"), ("hirescam", "3")],
}  # fmt: skip


def read(folder: Path) -> tuple[list[Sample], list[list[int]]]:
    dataset = layouts.read(folder)
    return usable(dataset, audit(dataset, silent))


def configured(name: str, shared: Path) -> CamConfig:
    config = replace(CamConfig(image_size=(224, 224)), **CONFIGS[name])
    if name.startswith("imagenet"):
        config = replace(config, backbone=IMAGENET, weights=shared / WEIGHTS)
    return config


def regression(folder: Path, shared: Path, folds: int, repeats: int) -> dict[str, Any]:
    """The baseline: the network is frozen, and there are no maps."""
    import timm
    from safetensors.torch import load_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    samples, groups = read(folder)
    net = timm.create_model("mobilenetv2_100", num_classes=1001, pad_type="same")
    net.load_state_dict(load_file(shared / WEIGHTS))
    net.eval()
    with torch.inference_mode():
        pooled = [net.forward_features((x - 127) / 127.5).mean((2, 3)) for x in batches(samples, Resize(224, 224), 16)]
    features = torch.cat(pooled).numpy()
    index = {sample.name: i for i, sample in enumerate(samples)}
    labels = np.array([sample.label == "anomaly" for sample in samples])
    each, scores = [], np.zeros((repeats, len(samples)))
    for number, (train, test) in enumerate(kfold(samples, folds, repeat=repeats, groups=groups)):
        learned, tested = ([index[s.name] for s in part] for part in (train, test))
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
        fold_scores = model.fit(features[learned], labels[learned]).decision_function(features[tested])
        scores[number // folds, tested] = fold_scores
        each.append(of_fold(fold_scores, labels[tested]))

    def figures(weights: Any) -> dict[str, Any]:
        flagged = scores > 0
        caught = np.mean([(weights * (labels & f)).sum(1) / (weights * labels).sum(1) for f in flagged], 0)
        passed = np.mean([(weights * (~labels & ~f)).sum(1) / (weights * ~labels).sum(1) for f in flagged], 0)
        return {"balanced_accuracy": (caught + passed) / 2}

    return {
        "detection": {
            **to_json(intervals(figures, labels)),
            "auroc": {"value": float(np.mean([auroc(s, labels) for s in scores])), "low": None, "high": None},
        },
        "by_fold": spread(each),
    }


def side_by_side(folder: Path, name: str, shared: Path, folds: int) -> dict[str, Any]:
    """Out-of-fold maps of the same trained classifiers by every method, of all defective and every fourth good
    image."""
    samples, groups = read(folder)
    methods = MAPS[name.partition("-")[0]]
    earlier = next(layer for method, layer in methods if method == "layercam" and layer)
    detector = Cam(replace(configured(name, shared), map="layercam", map_layer=earlier))
    detector.cache(samples, progress)
    chosen = [s for i, s in enumerate(samples) if s.mask or (s.label == "good" and i % 4 == 0)]
    maps: dict[str, dict[str, np.ndarray]] = {f"{m} {layer}".strip(): {} for m, layer in methods}
    for fold, (train, test) in enumerate(kfold(samples, folds, groups=groups)):
        detector.fit(train, progress, run=f"maps-{fold}")
        wanted = {s.name for s in chosen}
        tested = [s for s in test if s.name in wanted]
        for (method, layer), into in zip(methods, maps.values(), strict=True):
            _, cells = detector.with_map(method, layer).cells(tested, progress)
            into |= {s.name: cell for s, cell in zip(tested, cells, strict=True)}
    sizes = [read_size(s.path) for s in chosen]
    masks = [load_mask(s.mask, (h, w)) if s.mask else None for s, (w, h) in zip(chosen, sizes, strict=True)]
    labels = np.array([s.label == "anomaly" for s in chosen])
    return {
        key: to_json(
            localisation_metrics(np.stack([found[s.name] for s in chosen]), masks, labels, [()] * len(chosen), sizes)
        )
        for key, found in maps.items()
    }


def measure(folder: Path, name: str, shared: Path, folds: int, repeats: int) -> dict[str, Any]:
    begun = time.perf_counter()
    if name == "regression":
        found = regression(folder, shared, folds, repeats)
    elif name.endswith("-maps"):
        found = {"maps": side_by_side(folder, name.removesuffix("-maps"), shared, folds)}
    else:
        samples, groups = read(folder)
        detector = Cam(configured(name, shared))
        crossed = cross_validate(detector, samples, folds=folds, repeats=repeats, groups=groups, progress=progress)
        found = crossed.metrics
    return {**found, "set": folder.name, "config": name, "seconds": round(time.perf_counter() - begun)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = "| data | learned | balanced accuracy | by fold | AUROC | boxes hit | pixel AUROC | pointing game | ECE |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if "maps" in row:
            continue
        detection, places, by_fold = row["detection"], row.get("localisation", {}), row["by_fold"]
        spread = by_fold["balanced_accuracy"]
        cells = [
            f"{row['set']}",
            row["config"],
            with_interval(detection["balanced_accuracy"]),
            f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f} %",
            f"{by_fold['auroc']['mean']:.3f}",
            with_interval(places.get("defects_hit"), percent=True),
            with_interval(places.get("pixel_auroc")),
            with_interval(places.get("pointing_game"), percent=True),
            with_interval(row.get("reliability", {}).get("ece")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        if "maps" in row:
            lines += ["", f"Maps of {row['config'].removesuffix('-maps')} on {row['set']}:", ""]
            lines += ["| map, layer | pixel AUROC | AUPRO | best IoU | pointing game |", "|---|---|---|---|---|"]
            for key, m in row["maps"].items():
                figures = (with_interval(m[k]) for k in ("pixel_auroc", "aupro", "best_iou"))
                lines.append(f"| {key} | {' | '.join(figures)} | {with_interval(m['pointing_game'], percent=True)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work" / "cam")
    parser.add_argument("--only", nargs="*", default=None, help="SET/CONFIG")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only collect the results in --work")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    names = ["regression", *CONFIGS, "bundled-tail-maps", "imagenet-tail-maps"]
    tasks = [f"{where}/{name}" for where in SETS for name in names if not name.endswith("maps") or where == SETS[0]]
    for task in [] if options.table else options.only or tasks:
        where, name = task.split("/")
        folder = (options.demo if where in ("flange", "cloth", "board") else options.shared / "data") / where
        file = options.work / f"{where}-{name}.json"
        if file.exists() or not folder.is_dir():
            print(f"{task}: {'done before' if file.exists() else f'{folder} is missing; skipped'}")
            continue
        result = measure(folder, name, options.shared, options.folds, options.repeats)
        file.write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"{task}: {result['seconds']} s")
    files = [options.work / f"{task.replace('/', '-')}.json" for task in tasks]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    facts = {"date": str(date.today()), "blemish": __version__, "machine": platform.machine(), "cores": os.cpu_count()}
    saved = HERE / "results" / "cam.json"
    saved.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n", encoding="utf-8")
    saved.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
