"""`blemish demo`: draw the production line, learn each product, inspect its test part, show it all on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blemish.data.demo import PRODUCTS, write_line
from blemish.learn.cam_config import CamConfig
from blemish.learn.train import TrainConfig, train
from blemish.page import write_page
from blemish.types import Progress, silent

CLASSIFIED = "flange"
SETTINGS: dict[str, Any] = {"departures": True, "unfreeze": 0}  # parts that lie still, and few of them


def run_demo(out: Path, *, quick: bool = False, progress: Progress = silent) -> list[dict[str, Any]]:
    """Writes `out/data/<product>` (pictures and masks), `out/<product>` (a run each), one product's classifier in
    `out/<product>-cam`, and `out/index.html`.

    Returns each product's metrics. A rerun redraws only what is missing and learns again.
    """
    if quick:
        folders = write_line(out / "data", train=30, good=8, defective=2, size=256, progress=progress)
    else:
        folders = write_line(out / "data", train=80, good=20, defective=6, progress=progress)
    metrics = []
    for folder in folders:
        # 30 pictures leave 15 for the threshold, which can promise 10 % and no less.
        config = TrainConfig(folder, out / folder.name, false_alarms=0.1 if quick else 0.05, overwrite=True)
        metrics.append(train(config, progress).metrics)
    # One product once more, with defective parts to learn from: the classifier that shows where it looked.
    classified = f"{CLASSIFIED}-cam"
    settings = CamConfig(**SETTINGS)
    config = TrainConfig(
        out / "data" / CLASSIFIED,
        out / classified,
        settings=settings,
        detector="cam",
        false_alarms=0.1 if quick else 0.05,
        overwrite=True,
    )
    metrics.append({**train(config, progress).metrics, "product": f"{CLASSIFIED}\n(cam)"})
    write_page(out, [*PRODUCTS, classified], progress)
    return metrics
