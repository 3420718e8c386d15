"""`blemish demo`: draw the production line, learn each product, inspect its test part, show it all on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from blemish.demo.line import PRODUCTS, write_line
from blemish.demo.page import write_page
from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.interface import DetectorConfig
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train
from blemish.types import Progress, silent

ATTENDED = "cloth"  # learned once more by the autoencoder
CLASSIFIED = "flange"  # and by the classifier, which is shown defective parts too
# Of the autoencoder, smaller and shorter than its defaults, so that the demo takes minutes.
SHORT = AttentionConfig(image_size=(96, 96), epochs=14)
SHORTEST = AttentionConfig(image_size=(64, 64), epochs=5)


class Lesson(NamedTuple):
    """One run: a product, and what it is learned by."""

    product: str
    suffix: str  # of the run's folder, beside the product's own
    settings: DetectorConfig

    @property
    def run(self) -> str:
        return f"{self.product}-{self.suffix}" if self.suffix else self.product

    @property
    def title(self) -> str:
        return f"{self.product}\n({self.suffix})" if self.suffix else self.product


def lessons(*, quick: bool = False) -> list[Lesson]:
    """What the demo learns, in the order of its page."""
    classifies = CamConfig(pool="deviations", unfreeze=0)  # parts that lie still, and few of them
    return [
        *(Lesson(product, "", PatchCoreConfig()) for product in PRODUCTS),
        Lesson(ATTENDED, "attention", SHORTEST if quick else SHORT),
        Lesson(CLASSIFIED, "cam", classifies),
    ]


def run_demo(out: Path, *, quick: bool = False, progress: Progress = silent) -> list[dict[str, Any]]:
    """Writes `out/data/<product>` (images and masks), `out/<product>` (a run each), one product learned once more by
    the autoencoder in `out/<product>-attention` and by the classifier in `out/<product>-cam`, and `out/index.html`.

    Returns each run's metrics. A rerun redraws only what is missing and learns again.
    """
    if quick:
        write_line(out / "data", train=30, good=8, defective=2, size=256, progress=progress)
    else:
        write_line(out / "data", train=80, good=20, defective=6, progress=progress)
    planned = lessons(quick=quick)
    metrics = []
    for lesson in planned:
        config = TrainConfig(
            out / "data" / lesson.product,
            out / lesson.run,
            settings=lesson.settings,
            # Of 30 images some detectors hold 15 out for the threshold, which can guarantee 10 % and no less.
            false_alarms=0.1 if quick else 0.05,
            overwrite=True,
        )
        metrics.append({**train(config, progress).metrics, "product": lesson.title})
    write_page(out, [lesson.run for lesson in planned], progress)
    return metrics
