"""Five classical detectors on pooled features, on the same test images as `blemish train`: image level only.

    python bench/baselines.py [--only flange ...] [--backbone NAME --weights FILE.safetensors]

The baselines of Jiang, Xue & Zou's study, by scikit-learn and with its default hyper-parameters: distance to the
nearest training image; distance to the nearest of 8 k-means centres; one-class SVM (RBF kernel, gamma "scale",
nu 0.5); local outlier factor (20 neighbours); isolation forest (100 trees, at most 256 images each). An image is the
vector of global averages of each tap of the backbone, standardised by the training images. The backbone, taps, image
size and training split are those of PatchCore. Writes bench/results/baselines.json and baselines.md after each set;
rows of other sets and backbones are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from blemish import __version__
from blemish.cli.console import progress
from blemish.data.split import Split
from blemish.detectors.nn.backbones import Backbone, load_backbone
from blemish.detectors.nn.resampling import Resize, batches
from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import detection_metrics
from blemish.reporting.figures import with_interval
from blemish.training.config import TrainConfig
from blemish.training.splits import auto_size, divide, read_data
from blemish.types import Progress, Sample, silent

HERE = Path(__file__).resolve().parent
BATCH = 8
# Options that differ from the defaults of `blemish train`, so that the test images are those of accuracy.py. With a
# fifth of its good images held out, KolektorSDD's few items cannot guarantee a lower rate (no figure here depends on
# it).
SETS: dict[str, dict[str, Any]] = {
    "flange": {},
    "cloth": {},
    "board": {},
    "magnetic-tile": {},
    "casting": {},
    "kolektorsdd": {"test": 0.5, "false_alarms": 0.2},
    "cookies": {"false_alarms": 0.1},
}
DEMO = ("flange", "cloth", "board")

Features = npt.NDArray[np.float64]  # (N, channels of all taps)


def baselines(
    train: Sequence[Sample],
    test: Sequence[Sample],
    *,
    image_size: tuple[int, int],
    backbone: str = "bundled",
    weights: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores `(len(test),)` by baseline, higher = more anomalous, learned from the good images `train`."""
    resize = Resize(*image_size)
    network = load_backbone(backbone, image_size=image_size, weights=weights)
    scaler = StandardScaler()
    known = scaler.fit_transform(pooled(train, resize, network, progress))
    asked = scaler.transform(pooled(test, resize, network, progress))

    nearest = NearestNeighbors(n_neighbors=1).fit(known)
    centres = KMeans(n_clusters=min(8, len(known)), random_state=seed).fit(known)
    machine = OneClassSVM().fit(known)
    local = LocalOutlierFactor(n_neighbors=min(20, len(known) - 1), novelty=True).fit(known)
    forest = IsolationForest(random_state=seed).fit(known)
    return {
        "nearest neighbour": nearest.kneighbors(asked)[0][:, 0],
        "k-means": centres.transform(asked).min(1),
        "one-class SVM": -machine.score_samples(asked),
        "local outlier factor": -local.score_samples(asked),
        "isolation forest": -forest.score_samples(asked),
    }


def pooled(samples: Sequence[Sample], resize: Resize, backbone: Backbone, progress: Progress = silent) -> Features:
    """Global average of every channel of every tap."""
    rows = []
    for batch in progress(batches(samples, resize, BATCH), "features", -(-len(samples) // BATCH)):
        with torch.inference_mode():
            rows.append(torch.cat([features.mean((2, 3)) for features in backbone(batch)], 1))
    return torch.cat(rows).double().numpy()


def parts_of(folder: Path, changes: dict[str, Any]) -> Split:
    """The split of `blemish train --calibrate split`, so that all detectors have the same training images."""
    config = TrainConfig(folder, folder, calibrate="split", **changes)
    data = read_data(config.data, config.layout, progress)
    return divide(data, config.split_rule, config.decision_rule, config.settings.traits).split


def measure(folder: Path, backbone: str, weights: Path | None) -> list[dict[str, Any]]:
    """One row for each baseline."""
    split = parts_of(folder, SETS[folder.name])
    size = auto_size(split.train, 256 * 256)
    scores = baselines(split.train, split.test, image_size=size, backbone=backbone, weights=weights, progress=progress)
    labels = np.array([sample.label == "anomaly" for sample in split.test])
    rows = []
    for name, values in scores.items():
        nothing = np.zeros_like(labels)  # there are no decisions: only figures of the ranking are used
        figures = detection_metrics(values, labels, nothing)
        rows.append(
            {
                "set": folder.name,
                "backbone": backbone,
                "baseline": name,
                "train": len(split.train),
                "test_good": int((~labels).sum()),
                "test_anomaly": int(labels.sum()),
                "image_size": size,
                **to_json({key: figures[key] for key in ("auroc", "average_precision")}),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| data | backbone | baseline | learned from good | tested on good / defective | AUROC | average precision |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["set"], row["backbone"].partition("?")[0], row["baseline"], str(row["train"])]
        cells += [
            f"{row['test_good']} / {row['test_anomaly']}",
            with_interval(row["auroc"]),
            with_interval(row["average_precision"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--only", nargs="*", choices=list(SETS), default=list(SETS), metavar="SET")
    parser.add_argument("--backbone", default="bundled")
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    saved = HERE / "results" / "baselines.json"
    rows = json.loads(saved.read_text(encoding="utf-8"))["results"] if saved.exists() else []
    order = list(SETS)
    for name in options.only:
        folder = (options.demo if name in DEMO else options.shared / "data") / name
        if not folder.is_dir():
            print(f"{folder} is missing; skipped")
            continue
        set_rows = measure(folder, options.backbone, options.weights)
        rows = [row for row in rows if (row["set"], row["backbone"]) != (name, options.backbone)] + set_rows
        rows.sort(key=lambda row: (order.index(row["set"]), row["backbone"] != "bundled", row["backbone"]))
        facts = {
            "date": str(date.today()),
            "blemish": __version__,
            "scikit-learn": sklearn.__version__,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        saved.parent.mkdir(exist_ok=True)
        saved.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n", encoding="utf-8")
        saved.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        print(table(set_rows))


if __name__ == "__main__":
    main()
