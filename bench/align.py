"""Does alignment help? Parts are shifted by up to 8 % of the image and rotated by up to 15 degrees.

    python bench/align.py [--product flange] [--train 60] [--good 30] [--defective 5] [--size 512]

Draws a product of the demo with moved parts, trains with and without --align on moved parts, and on parts that are not
moved, tests all on moved parts, and writes bench/results/align.json.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.cli.console import progress
from blemish.demo import board, flange
from blemish.demo.drawing import Array, Flaw, affine, camera, changed, digitise, expose, generator, noise
from blemish.demo.line import VISIBLE
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train

HERE = Path(__file__).resolve().parent
SHIFT, TURN = 0.08, 15.0
SMALLER = 0.72  # boards nearly fill their images, so they are drawn on a larger tray
PRODUCTS = {"flange": flange.DEFECTS, "board": board.DEFECTS}
Place = tuple[float, float, float]  # shift to the right and down, as shares of the size; degrees


def on_a_tray(key: tuple[int | str, ...], size: int, flaws: list[Flaw], where: Place) -> Array:
    """The demo's board under its ring lamp, which looks the same from all sides, on a dark tray."""
    scene = board.scene(key, size, flaws)
    rng = generator(*key, "tray")
    turn = math.radians(where[2])
    c, s = math.cos(turn) / SMALLER, math.sin(turn) / SMALLER
    x, y = size * (0.5 + where[0]), size * (0.5 + where[1])
    matrix = (c, s, size / 2 - c * x - s * y, -s, c, size / 2 + s * x - c * y)
    cover = affine(np.ones((size, size), np.float32), size, size, matrix)
    tray = 0.05 + 0.006 * noise(rng, size, size, 1.5) + 0.006 * noise(rng, size, size, size / 12, 2)
    return np.stack([tray + (affine(plane, size, size, matrix) - tray) * cover for plane in scene])


def scene_of(product: str, key: tuple[int | str, ...], size: int, flaws: list[Flaw], where: Place) -> Array:
    return flange.scene(key, size, flaws, where) if product == "flange" else on_a_tray(key, size, flaws, where)


def draw(product: str, part: str, number: int, kind: str, size: int, *, moved: bool) -> tuple[np.ndarray, np.ndarray]:
    """A part and its mask, as `demo.draw` but at another place."""
    key = (0, product, part, number)
    rng = generator(*key, "moved")
    shift, turn = rng.uniform(-SHIFT, SHIFT, 2), rng.uniform(-TURN, TURN)
    where = (float(shift[0]), float(shift[1]), float(turn)) if moved else (0.0, 0.0, 0.0)
    settings = camera(generator(*key, "camera"), size)
    before = expose(scene_of(product, key, size, [], where), settings)
    if kind == "good":
        return digitise(before, settings), np.zeros((size, size), bool)
    flaw = Flaw(kind, 1.0 - 0.75 * (number * 0.6180339887 % 1.0), (*key, kind))
    after = expose(scene_of(product, key, size, [flaw], where), settings)
    return digitise(after, settings), changed(before, after, VISIBLE, 2)


def write(root: Path, product: str, counts: tuple[int, int, int], size: int, *, moved: bool) -> None:
    """`train/good` is moved or not; the test split is always moved."""
    tasks = [("train", "good", n) for n in range(counts[0])] + [("test", "good", n) for n in range(counts[1])]
    tasks += [("test", kind, n) for kind in PRODUCTS[product] for n in range(counts[2])]
    for part, kind, number in progress(tasks, "drawing", len(tasks)):
        image, mask = draw(product, f"{part}/{kind}", number, kind, size, moved=moved or part == "test")
        file = root / part / kind / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        if mask.any():
            drawn = root / "ground_truth" / kind / f"{number:03d}_mask.png"
            drawn.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--good", type=int, default=30)
    parser.add_argument("--defective", type=int, default=5)
    parser.add_argument("--product", choices=PRODUCTS, default="flange")
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    file = HERE / "results" / "align.json"
    known = json.loads(file.read_text()) if file.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        # The middle of a board, without the tray around it; the reference is within a few pixels of it.
        middle = [[x * options.size, y * options.size] for x, y in ((0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8))]
        roi = Path(folder) / "roi.json"
        roi.write_text(json.dumps({"polygons": [middle]}))
        ways: dict[str, dict[str, Any]] = {"": {}, "--align": {"align": True}}
        if options.product == "board":
            ways["--align --roi"] = {"align": True, "roi": roi}
        for learned in ("moved", "still"):
            data = Path(folder) / learned
            counts = (options.train, options.good, options.defective)
            write(data, options.product, counts, options.size, moved=learned == "moved")
            for way, frame in ways.items():
                config = TrainConfig(
                    data,
                    Path(folder) / "run",
                    **frame,
                    overwrite=True,
                    overlays=0,
                    evidence=False,
                )
                metrics = train(config, progress).metrics
                result = {
                    "product": options.product,
                    "learned": learned,
                    "options": way,
                    **{key: metrics["detection"][key] for key in ("auroc", "recall", "false_alarm_rate")},
                    **{key: metrics["localisation"][key] for key in ("pixel_auroc", "aupro", "defects_hit")},
                    "counts": metrics["counts"],
                    "left_out": [problem for problem in metrics["data_problems"] if "aligned" in problem],
                }
                print(json.dumps(result))
                same = ("product", "learned", "options")
                known = [other for other in known if any(other[key] != result[key] for key in same)] + [result]
                file.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
