"""`blemish demo`: draw the production line, train on each product, inspect its test split, show it all on one page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from blemish.demo.line import PRODUCTS, write_line
from blemish.demo.page import IMAGES, write_page
from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.interface import DetectorConfig
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.files import Kept, kept
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train
from blemish.types import Progress, silent

RECONSTRUCTED = "cloth"  # also by the autoencoder
CLASSIFIED = "flange"  # also by the classifier, which learns from defective parts too
TAUGHT = "board"  # also by the hybrid, which learns from good parts and from a few defective ones
# The autoencoder is smaller than by default and trained for less long, so that the demo takes minutes.
SHORT = AttentionConfig(image_size=(96, 96), epochs=14)
SHORTEST = AttentionConfig(image_size=(64, 64), epochs=5)


class Plan(NamedTuple):
    """One run to come: a product, and the detector that is trained on it."""

    product: str
    suffix: str  # of the run's folder, "" for the product's first run
    settings: DetectorConfig

    @property
    def run(self) -> str:
        return f"{self.product}-{self.suffix}" if self.suffix else self.product

    @property
    def title(self) -> str:
        return f"{self.product}\n({self.suffix})" if self.suffix else self.product


def plans(*, quick: bool = False) -> list[Plan]:
    """The runs of the demo, in the order of its page."""
    classifier = CamConfig(pool="deviations", unfreeze=0)  # for aligned parts, and few of them
    return [
        *(Plan(product, "", PatchCoreConfig()) for product in PRODUCTS),
        Plan(RECONSTRUCTED, "attention", SHORTEST if quick else SHORT),
        Plan(CLASSIFIED, "cam", classifier),
        Plan(TAUGHT, "hybrid", HybridConfig(image_size=(256, 256))),
    ]


def own_folder(out: Path) -> AbstractContextManager[Kept]:
    """The demo's folder, see `files.kept`."""
    return kept(out, "demo", ("data", IMAGES, "index.html", *(plan.run for plan in plans())), resume=True)


def run_demo(out: Path, *, quick: bool = False, progress: Progress = silent) -> list[dict[str, Any]]:
    """Writes `out/data/<product>` (images and masks), `out/<product>` (a run each), a second run by the autoencoder in
    `out/<product>-attention`, one by the classifier in `out/<product>-cam` and one by the hybrid in
    `out/<product>-hybrid`, and `out/index.html`.

    Returns each run's metrics. A rerun draws only what is missing and trains again.
    """
    planned = plans(quick=quick)
    with own_folder(out):
        return _run_demo(out, planned, quick=quick, progress=progress)


def _run_demo(out: Path, planned: Sequence[Plan], *, quick: bool, progress: Progress) -> list[dict[str, Any]]:
    if quick:
        write_line(out / "data", train=30, good=8, defective=2, size=256, progress=progress)
    else:
        write_line(out / "data", train=80, good=20, defective=6, progress=progress)
    metrics = []
    for plan in planned:
        config = TrainConfig(
            out / "data" / plan.product,
            out / plan.run,
            settings=plan.settings,
            # Of 30 images some detectors hold out 15 for the threshold, which guarantee 10 % but no less.
            false_alarms=0.1 if quick else 0.05,
            overwrite=True,
        )
        metrics.append({**train(config, progress).metrics, "product": plan.title})
    write_page(out, [plan.run for plan in planned], progress)
    return metrics
