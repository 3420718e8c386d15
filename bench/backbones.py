"""Compares backbones: PatchCore with the bundled one, with its ImageNet teacher, and with random weights.

    python bench/backbones.py --data ../shared/data --teacher ../shared/weights/mobilenetv2_100_tf.safetensors

Half of the good images (split by item, at most --taught) are training images, all others (at most --tested good and as
many defective ones) are test images; the three backbones share each split. Image AUROC, and pixel AUROC if there are
masks, with bootstrap intervals over images; the difference to the teacher is bootstrapped on the same resamples. Writes
one JSON and one Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blemish.data import layouts
from blemish.data.split import split
from blemish.detectors.nn.backbones import BUNDLED
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore
from blemish.evaluation.bootstrap import intervals, to_json
from blemish.evaluation.detection import area_under_roc
from blemish.evaluation.localisation import localisation_metrics
from blemish.images import load_mask, read_size
from blemish.training.export import in_torch, predict
from blemish.types import Prediction, Sample

SETS = ("magnetic-tile", "kolektorsdd", "casting", "cookies")
TEACHER = "mobilenetv2_100?pad_type=same&mean=0.498&std=0.5"  # (x - 127) / 127.5
Floats = npt.NDArray[np.float64]


def configs(teacher: Path, bank: int, seed: int) -> dict[str, PatchCoreConfig]:
    base = PatchCoreConfig(image_size=(256, 256), max_bank=bank, seed=seed)
    return {
        "bundled": base,
        "teacher": replace(base, backbone=TEACHER, weights=teacher),
        "random": replace(base, random_weights=True),
    }


def divide(samples: Sequence[Sample], seed: int, taught: int, tested: int) -> tuple[list[Sample], list[Sample]]:
    splits = split(samples, seed=seed, test=0.5, calibration=0)
    rng = np.random.default_rng(seed)
    good = [s for s in splits.test if s.label == "good"]
    defective = [s for s in splits.test if s.label == "anomaly"]
    return some(splits.train, taught, rng), some(good, tested, rng) + some(defective, tested, rng)


def some(samples: Sequence[Sample], most: int, rng: np.random.Generator) -> list[Sample]:
    return [samples[i] for i in sorted(rng.permutation(len(samples))[:most])]


def image_figures(predictions: dict[str, Prediction], labels: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """AUROC of each backbone and its difference to the teacher, on the same resamples."""
    orders = {name: np.argsort(-p.scores, kind="stable") for name, p in predictions.items()}

    def figures(weights: Floats) -> dict[str, Floats]:
        found = {
            name: area_under_roc((weights * labels)[:, order], (weights * ~labels)[:, order])
            for name, order in orders.items()
        }
        return found | {f"{name} - teacher": found[name] - found["teacher"] for name in found if name != "teacher"}

    return intervals(figures, labels)


def pixel_figures(prediction: Prediction, samples: Sequence[Sample]) -> dict[str, Any]:
    sizes = [read_size(s.path) for s in samples]
    masks = [load_mask(s.mask, size[::-1]) if s.mask else None for s, size in zip(samples, sizes, strict=True)]
    labels = np.array([s.label == "anomaly" for s in samples])
    found = localisation_metrics(prediction.maps, masks, labels, [() for _ in samples], sizes)
    return {name: found[name] for name in ("pixel_auroc", "aupro")}


def predicted(config: PatchCoreConfig, taught: list[Sample], tested: list[Sample], work: Path | None) -> Prediction:
    """Trains and predicts; predictions with the same weights and images are cached in the `work` folder."""
    file = config.weights or BUNDLED
    weights = "" if config.random_weights else hashlib.sha256(file.read_bytes()).hexdigest()
    asked = [repr(config), weights, [str(s.path) for s in taught + tested]]
    kept = work / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]}.npz" if work else None
    if kept and kept.exists():
        with np.load(kept, allow_pickle=False) as arrays:
            return Prediction(arrays["scores"], arrays["maps"])
    prediction = predict(in_torch(PatchCore(config).fit(taught).graph()), tested)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, scores=prediction.scores, maps=prediction.maps)
    return prediction


def measure(
    folder: Path, teacher: Path, bank: int, seed: int, most: tuple[int, int], work: Path | None
) -> dict[str, Any]:
    taught, tested = divide(layouts.read(folder).samples, seed, *most)
    labels = np.array([s.label == "anomaly" for s in tested])
    predictions = {
        name: predicted(config, taught, tested, work) for name, config in configs(teacher, bank, seed).items()
    }
    masked = any(s.mask for s in tested)
    result = {
        "set": folder.name,
        "seed": seed,
        "taught": len(taught),
        "tested_good": int((~labels).sum()),
        "tested_defective": int(labels.sum()),
        "image_auroc": image_figures(predictions, labels),
        "pixels": {name: pixel_figures(p, tested) for name, p in predictions.items()} if masked else {},
    }
    plain: dict[str, Any] = to_json(result)
    return plain


def cell(interval: dict[str, float | None] | None, signed: bool = False) -> str:
    if interval is None or interval["value"] is None:
        return "no masks"
    sign = "+" if signed else ""
    value = f"{interval['value']:{sign}.3f}"
    if interval["low"] is None or interval["high"] is None:
        return value
    return f"{value} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def table(runs: Sequence[dict[str, Any]], bank: int) -> str:
    lines = [
        f"Made by `bench/backbones.py`; PatchCore's defaults but for a bank of at most {bank} patches; brackets: 95 %.",
        "",
        "| set, seed | training / good / defective | image AUROC bundled | teacher | random | bundled - teacher |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        image = run["image_auroc"]
        counts = f"{run['taught']} / {run['tested_good']} / {run['tested_defective']}"
        cells = [cell(image[name]) for name in ("bundled", "teacher", "random")]
        difference = cell(image["bundled - teacher"], signed=True)
        lines.append(f"| {run['set']}, {run['seed']} | {counts} | {' | '.join(cells)} | {difference} |")
    means = {n: np.mean([r["image_auroc"][n]["value"] for r in runs]) for n in ("bundled", "teacher", "random")}
    difference = means["bundled"] - means["teacher"]
    lines.append(
        f"| **mean** | | {means['bundled']:.3f} | {means['teacher']:.3f} | {means['random']:.3f} | {difference:+.3f} |"
    )
    lines += [
        "",
        "| set, seed | pixel AUROC bundled | teacher | random | AUPRO bundled | teacher | random |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        if run["pixels"]:
            cells = [
                cell(run["pixels"][name][figure])
                for figure in ("pixel_auroc", "aupro")
                for name in ("bundled", "teacher", "random")
            ]
            lines.append(f"| {run['set']}, {run['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bank", type=int, default=PatchCoreConfig.max_bank)
    parser.add_argument("--taught", type=int, default=300)
    parser.add_argument("--tested", type=int, default=1000)
    parser.add_argument("--work", type=Path, help="folder for predictions, from which an interrupted run is resumed")
    parser.add_argument("--out", type=Path, default=here / "results" / "backbones.json")
    arguments = parser.parse_args()
    runs = []
    for name in arguments.sets:
        for seed in arguments.seeds:
            most = (arguments.taught, arguments.tested)
            runs.append(measure(arguments.data / name, arguments.teacher, arguments.bank, seed, most, arguments.work))
            text = table(runs, arguments.bank)
            print(text, flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps({"bank": arguments.bank, "runs": runs}, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
