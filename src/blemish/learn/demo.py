"""`blemish demo`: draw the production line, learn each product, inspect its test part, show it all on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blemish.data.demo import PRODUCTS, write_line
from blemish.learn.train import TrainConfig, train
from blemish.page import write_page
from blemish.types import Progress, silent


def run_demo(out: Path, *, quick: bool = False, progress: Progress = silent) -> list[dict[str, Any]]:
    """Writes `out/data/<product>` (pictures and masks), `out/<product>` (a run each) and `out/index.html`.

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
    write_page(out, list(PRODUCTS), progress)
    return metrics
