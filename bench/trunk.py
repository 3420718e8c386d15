"""Caching the frozen layers: ten epochs of VGG16 with three trained convolutions, against the plain loop.

    python bench/trunk.py [--data ../shared/data/casting] [--images 20] [--epochs 10]

Both train the same layers on the same images from the same seed. The plain loop decodes, resizes and runs the whole
network in every epoch, the frozen layers without gradient. The weights are random, which does not change the time.
Prints the ratio and its limit, computed from the floating-point operations of the convolutions.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from blemish.data import layouts
from blemish.detectors.cam.config import CamConfig, case_study
from blemish.detectors.cam.detector import Cam
from blemish.detectors.nn.resampling import batches
from blemish.types import Sample

HERE = Path(__file__).resolve().parent
# Multiply-adds of VGG16's convolutions at 224 x 224, in 10^9: the first ten, the last three.
TRUNK, TAIL = 13.96, 1.39


def plain(detector: Cam, samples: list[Sample], epochs: int) -> float:
    """Seconds of a loop without a cache."""
    config = detector.config
    classifier = detector.classifier(2).requires_grad_(True)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=config.learning_rate)
    targets = torch.tensor([sample.label == "anomaly" for sample in samples]).long()
    begun = time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(samples))
        shuffled = [samples[i] for i in order]
        for number, images in enumerate(batches(shuffled, detector.resize, config.batch)):
            with torch.no_grad():
                inputs = detector.trunk(images)
            chosen = order[number * config.batch :][: len(images)]
            optimiser.zero_grad()
            F.cross_entropy(classifier(*inputs), targets[chosen], torch.tensor([1.0, 3.0])).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return time.perf_counter() - begun


def kept(detector: Cam, samples: list[Sample]) -> float:
    begun = time.perf_counter()
    detector.cache(samples)
    detector.fit(samples)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "casting")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    samples = list(layouts.read(options.data).samples)
    half = options.images // 2
    some = [[s for s in samples if s.label == label][:half] for label in ("good", "anomaly")]
    images = [*some[0], *some[1]]
    base = replace(case_study(CamConfig()), random_weights=True, epochs=options.epochs, stop_at=2.0)
    rows = {}
    for name, config in {"last three": base, "head alone": replace(base, unfreeze=0)}.items():
        detector = Cam(config)
        slow, quick = plain(detector, images, options.epochs), kept(detector, images)
        tail = 8 / 3 * TAIL if config.unfreeze else 0.0  # forward; backward twice that, less the input's gradient
        trunk = TRUNK if config.unfreeze else TRUNK + TAIL
        limit = options.epochs * (trunk + tail) / (trunk + options.epochs * tail)
        rows[name] = {
            "plain_s": round(slow, 1),
            "kept_s": round(quick, 1),
            "ratio": slow / quick,
            "limit": limit,
        }
        print(f"{name}: plain {slow:.1f} s, kept {quick:.1f} s: {slow / quick:.2f} times; operations allow {limit:.2f}")
    facts = {"images": len(images), "epochs": options.epochs, "threads": torch.get_num_threads()}
    (HERE / "results" / "trunk.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
