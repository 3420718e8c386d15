"""Does alignment help? Flanges that lie anywhere within 8 % of the picture and are turned by up to 15 degrees.

    python bench/align.py [--train 60] [--good 30] [--defective 5] [--detector patchcore]

Draws the demo's flange moved under its lamps, learns with and without --align from parts that were moved, and from
parts that lie still, tests all on moved parts, and writes bench/results/align.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.console import progress
from blemish.data import demo_metal
from blemish.data.demo import VISIBLE
from blemish.data.drawing import Flaw, camera, changed, digitise, expose, generator
from blemish.learn.attention_config import AttentionConfig
from blemish.learn.patchcore import PatchCoreConfig
from blemish.learn.train import TrainConfig, train

HERE = Path(__file__).resolve().parent
SIZE, SHIFT, TURN = 512, 0.08, 15.0
SETTINGS: dict[str, Any] = {
    "patchcore": PatchCoreConfig(),
    "attention": AttentionConfig(image_size=(96, 96), epochs=14),  # as in the demo
}


def draw(part: str, number: int, kind: str, *, moved: bool) -> tuple[np.ndarray, np.ndarray]:
    """A flange and its mask, as `demo.draw` but for where it lies."""
    key = (0, "flange", part, number)
    rng = generator(*key, "moved")
    shift, turn = rng.uniform(-SHIFT, SHIFT, 2), rng.uniform(-TURN, TURN)
    where = (float(shift[0]), float(shift[1]), float(turn)) if moved else (0.0, 0.0, 0.0)
    settings = camera(generator(*key, "camera"), SIZE)
    before = expose(demo_metal.scene(key, SIZE, (), where), settings)
    if kind == "good":
        return digitise(before, settings), np.zeros((SIZE, SIZE), bool)
    flaw = Flaw(kind, 1.0 - 0.75 * (number * 0.6180339887 % 1.0), (*key, kind))
    after = expose(demo_metal.scene(key, SIZE, [flaw], where), settings)
    return digitise(after, settings), changed(before, after, VISIBLE, 2)


def write(root: Path, counts: tuple[int, int, int], *, moved: bool) -> None:
    """`train/good` lies still or moved, the test part always moved."""
    tasks = [("train", "good", n) for n in range(counts[0])] + [("test", "good", n) for n in range(counts[1])]
    tasks += [("test", kind, n) for kind in demo_metal.DEFECTS for n in range(counts[2])]
    for part, kind, number in progress(tasks, "drawing", len(tasks)):
        picture, mask = draw(f"{part}/{kind}", number, kind, moved=moved or part == "test")
        file = root / part / kind / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
        if mask.any():
            drawn = root / "ground_truth" / kind / f"{number:03d}_mask.png"
            drawn.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--good", type=int, default=30)
    parser.add_argument("--defective", type=int, default=5)
    parser.add_argument("--detector", choices=SETTINGS, default="patchcore")
    options = parser.parse_args()
    file = HERE / "results" / "align.json"
    known = json.loads(file.read_text()) if file.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for learned in ("moved", "still"):
            data = Path(folder) / learned
            write(data, (options.train, options.good, options.defective), moved=learned == "moved")
            for align in (False, True):
                config = TrainConfig(
                    data,
                    Path(folder) / "run",
                    settings=SETTINGS[options.detector],
                    detector=options.detector,
                    align=align,
                    overwrite=True,
                    overlays=0,
                    evidence=False,
                )
                metrics = train(config, progress).metrics
                one = {
                    "detector": options.detector,
                    "learned": learned,
                    "align": align,
                    **{key: metrics["detection"][key] for key in ("auroc", "recall", "false_alarm_rate")},
                    **{key: metrics["localisation"][key] for key in ("pixel_auroc", "aupro", "defects_hit")},
                    "counts": metrics["counts"],
                    "left_out": [problem for problem in metrics["data_problems"] if "aligned" in problem],
                }
                print(json.dumps(one))
                same = ("detector", "learned", "align")
                known = [other for other in known if any(other[key] != one[key] for key in same)] + [one]
                file.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
