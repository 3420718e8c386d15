"""The second study's own network over its training: what its attention map finds, and what each departure changes.

    OMP_NUM_THREADS=1 python bench/study_curve.py --only flange/study flange/no-term --cycles 0 1 2 4 10
    python bench/study_curve.py --table

A variant is one training of a recipe with some settings changed. It stops after each of `--cycles` cycles of 50 epochs,
is evaluated on the test images of `blemish train`, and is resumed; 0 is the untrained network, the control. All
good images of the training part are learned from, as in the study: no threshold is set here. Each result is written to
--work at once, so that a killed run goes on where it was. `--table` collects them in bench/results/study_curve.json and
study_curve.md. Which figure is best is nowhere used to choose anything.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from baselines import DEMO, SETS, parts_of  # type: ignore[import-not-found]  # beside this file
from blemish.cli.console import progress
from blemish.detectors.attention import losses
from blemish.detectors.attention.config import AttentionConfig, expvae, paper, study
from blemish.detectors.attention.detector import Attention
from blemish.detectors.nn.resampling import Resize, batches, gaussian
from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import detection_metrics
from blemish.evaluation.localisation import localisation_metrics
from blemish.images import load_mask, read_size
from blemish.reporting.figures import with_interval
from blemish.training.export import in_torch, predict
from blemish.types import Sample

HERE = Path(__file__).resolve().parent
SMALL = {"image_size": (128, 128)}
OFTEN = {"alternate": "every", "fixed_weights": False, "batch": 16, "layers": ("encoder.23",)}
NO_TERM = {"attention_loss": "none"}


class Variant(NamedTuple):
    name: str  # in the table; those without a size are at 128 x 128
    changes: dict[str, Any]
    recipe: Callable[[AttentionConfig], AttentionConfig] = study


VARIANTS = {
    "study": Variant("study, 256 x 256", {}),
    "no-term": Variant("study without the term, 256 x 256", NO_TERM),
    "study-128": Variant("study", SMALL),
    "no-term-128": Variant("study without the term", {**SMALL, **NO_TERM}),
    "batch-79-128": Variant("study, batches of 79 and 1", {**SMALL, "batch": 79}),
    "zeros-128": Variant("study, SSIM over borders of zeros, as in the code", SMALL),
    "mse-128": Variant("study, mean squared error instead of SSIM", {**SMALL, "loss": "mse"}),
    "declared-128": Variant(
        "study, learning rate to 0.1 as its schedule declares",
        {**SMALL, "schedule": "one-cycle", "learning_rate": 0.1, "momentum": 0.9},
    ),
    "batch-16-128": Variant(
        "study's network, batches of 16, all for the reconstruction",
        {**SMALL, **NO_TERM, "alternate": "no", "batch": 16},
    ),
    "acting-128": Variant(
        "study's network, batches of 16, attention after norm and ReLU (encoder.23), the term on every batch",
        {**SMALL, **OFTEN},
    ),
    "not-acting-128": Variant("the same without the term", {**SMALL, **OFTEN, **NO_TERM}),
    "early-128": Variant("study, attention at encoder.3", {**SMALL, "layers": ("encoder.3",)}),
    "paper-128": Variant("paper", SMALL, paper),
    "paper-no-term-128": Variant("paper without the term", {**SMALL, **NO_TERM}, paper),
    "paper-seed1-128": Variant("paper, another seed", {**SMALL, "seed": 1}, paper),
    "paper-no-term-seed1-128": Variant("paper without the term, another seed", {**SMALL, **NO_TERM, "seed": 1}, paper),
    "expvae-128": Variant("expvae", SMALL, expvae),
}
READINGS: dict[str, dict[str, str]] = {
    "attention of image - reconstruction": {"map": "attention", "input": "residual"},
    "attention of image - mean": {"map": "attention", "input": "image"},
    "attention of exp((mean - image)^3)": {"map": "attention", "input": "difference"},
    "attention of image - mean, in each place's spread": {"map": "attention", "input": "image", "standardise": "place"},
    "SSIM residual": {"map": "residual"},
}
# By autograd, as the study's code does it, and with one thing of it at a time as ours.
PUBLISHED = {
    "as published: weights of rounding, by batch; corners aligned": {"batch": True, "rounding": True, "aligned": True},
    "the same, weights by image": {"batch": False, "rounding": True, "aligned": True},
    "the same, equal weights": {"batch": True, "rounding": False, "aligned": True},
    "the same, equal weights, corners not aligned (ours)": {"batch": True, "rounding": False, "aligned": False},
}
FIGURES = ("pixel_auroc", "best_iou", "auroc")


def measure(folder: Path, name: str, cycles: int, work: Path) -> dict[str, Any]:
    """Trains up to `cycles` cycles, from the last checkpoint on, and evaluates every reading."""
    split = parts_of(folder, SETS[folder.name])
    good = [*split.train, *split.calibration]
    variant = VARIANTS[name]
    config = replace(variant.recipe(AttentionConfig()), **variant.changes)
    if cycles:
        config = replace(config, cycles=cycles, checkpoint=work / f"{folder.name}-{name}.training", resume=True)
    else:
        config = replace(config, untrained=True)
    if name == "zeros-128":
        losses._window_means = zero_padded
    detector = Attention(config).fit(good, progress)
    rows: dict[str, Any] = {}
    for reading, changes in READINGS.items():
        prediction = predict(in_torch(detector.shown_as(progress, **changes).graph()), split.test, progress, reading)
        rows[reading] = figures_of(prediction.maps, split.test)
    if detector._learner.net.cancels(detector._learner.layers[0]):
        for reading, how in PUBLISHED.items():
            rows[reading] = figures_of(published_maps(detector, split.test, **how), split.test)
    anomalies = sum(sample.label == "anomaly" for sample in split.test)
    counts = {"train": len(good), "test_good": len(split.test) - anomalies, "test_anomaly": anomalies}
    last = detector.records[-1] if cycles else {}
    return {"set": folder.name, "variant": name, "epochs": 50 * cycles, **counts, "last": last, "rows": rows}


def published_maps(
    detector: Attention, samples: Sequence[Sample], *, batch: bool, rounding: bool, aligned: bool
) -> npt.NDArray[np.float32]:
    """The maps by autograd as the study's code computes them: weights normalised over a batch of 128, whose mean is
    zero but for rounding where an instance norm follows, and a bilinear enlargement with aligned corners. Without
    `batch` they are normalised by image, without `rounding` all are 1."""
    learner, found = detector._learner, []
    for images in batches(samples, Resize(*detector.config.image_size), 128):
        images = images / 255
        code, _, skipped = learner.net.encode(learner.standard(images))
        difference = images - learner.net.decode(learner.net.latent(code), skipped)
        with torch.enable_grad():
            features = learner.net.encoder[: learner.layers[0] + 1](difference).detach().requires_grad_()
            gradient = torch.autograd.grad(learner.net.tail(learner.layers[0])(features).sum(), features)[0]
        size = gradient.square().mean(None if batch else (1, 2, 3), keepdim=True).sqrt()
        weights = (gradient / (size + 1e-5)).mean((2, 3), keepdim=True)
        features = features.detach()
        attention = (weights * features if rounding else features).abs().mean(1, keepdim=True)
        found.append(F.interpolate(attention, images.shape[2:], mode="bilinear", align_corners=aligned)[:, 0])
    return torch.cat(found).numpy()


def zero_padded(length: int) -> torch.Tensor:
    """SSIM's means over windows that reach over the border into zeros, `(length, length)`: another
    `losses._window_means`, for one variant alone. Run that variant in a process of its own."""
    half = losses.WINDOW // 2
    weights = gaussian(half, losses.SIGMA, torch.float64)
    rows = torch.zeros(length, length + 2 * half, dtype=torch.float64)
    for row in range(length):
        rows[row, row : row + 2 * half + 1] = weights
    return rows[:, half:-half].float()


def figures_of(maps: npt.NDArray[np.float32], samples: Sequence[Sample]) -> dict[str, Any]:
    """FIGURES with 95 % intervals; an image's score is its map's maximum."""
    labels = np.array([sample.label == "anomaly" for sample in samples])
    sizes = [read_size(sample.path) for sample in samples]
    masks = [load_mask(s.mask, (h, w)) if s.mask else None for s, (w, h) in zip(samples, sizes, strict=True)]
    maps = maps / max(float(np.abs(maps).max()), 1e-30)  # weights of rounding give maps of 1e-9
    scores = maps.reshape(len(maps), -1).max(1).astype(np.float64)
    figures = {
        **detection_metrics(scores, labels, np.zeros_like(labels)),
        **localisation_metrics(maps, masks, labels, [()] * len(samples), sizes),
    }
    found: dict[str, Any] = to_json({key: figures[key] for key in FIGURES})
    return found


def table(results: Sequence[dict[str, Any]], figure: str = "pixel_auroc") -> str:
    """A table for each set: a row for each variant and number of epochs."""
    lines = []
    for name in dict.fromkeys(result["set"] for result in results):
        of_set = [result for result in results if result["set"] == name]
        first = of_set[0]
        lines += [
            f"{name}: learned from {first['train']} good images, tested on {first['test_good']} good and "
            f"{first['test_anomaly']} defective; {figure}.",
            "",
            f"| {' | '.join(['training', 'epochs', *READINGS, *PUBLISHED])} |",
            f"|{'---|' * (2 + len(READINGS) + len(PUBLISHED))}",
        ]
        for result in of_set:
            cells = [
                with_interval(result["rows"][reading][figure]) if reading in result["rows"] else "–"
                for reading in (*READINGS, *PUBLISHED)
            ]
            lines.append(f"| {' | '.join([VARIANTS[result['variant']].name, str(result['epochs']), *cells])} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work" / "study_curve")
    every = [f"{where}/{name}" for where in ("flange", "kolektorsdd") for name in VARIANTS]
    parser.add_argument("--only", nargs="*", choices=every, default=every[:4], metavar="SET/VARIANT")
    parser.add_argument("--cycles", nargs="*", type=int, default=[0, 1], metavar="N")
    parser.add_argument("--table", action="store_true", help="only collect the results in --work")
    options = parser.parse_args()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    options.work.mkdir(parents=True, exist_ok=True)
    for task in [] if options.table else options.only:
        where, name = task.split("/")
        folder = (options.demo if where in DEMO else options.shared / "data") / where
        for cycles in options.cycles:
            file = options.work / f"{where}-{name}-{cycles:04}.json"
            if file.exists():
                continue
            result = measure(folder, name, cycles, options.work)
            file.write_text(json.dumps(result) + "\n", encoding="utf-8")
            print(f"{task}, {50 * cycles} epochs: {json.dumps(result['rows'])}", flush=True)
    order = list(VARIANTS)
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(options.work.glob("*.json"))]
    results.sort(key=lambda result: (result["set"], order.index(result["variant"]), result["epochs"]))
    saved = HERE / "results" / "study_curve.json"
    saved.write_text(json.dumps({"results": results}, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(table(results, figure) for figure in FIGURES)
    saved.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
