"""Where the classifier's map looks when the background is empty: parts on black, by the recipe and by our default.

    OMP_NUM_THREADS=1 python bench/cam_border.py [--only cookies/recipe-zeros ...] [--demo demo/data] [--table]

No set here has a black background, so two are derived: cookies and the drawn flange, with everything outside the part
replaced by black with a camera's noise (grey values 0 to about 6). The part is found by its colour or brightness. Each
image is judged by a classifier that learned from the other half. Figures are of the defective images, maps at 224x224:

- outside: share of the map's positive values that lies outside the part; border: in the outermost ring of 16 pixels.
- AUROC outside, AUROC inside: how well the mean of the map there alone divides the images. .5 outside: the verdict
  does not come from the background.
- peak on part, pointing game: the map's maximum lies on the part, in the defect (of images with a mask).
- box on defect: the centre of the published box, around all above 0.7 of the map's range, lies in the defect's box.
  defects hit: by boxes around peaks, as docs/metrics.md defines it.

Each row is kept in --work. Writes bench/results/cam_border.json and cam_border.md; `--table` does only this.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from blemish import __version__
from blemish.cli.console import progress
from blemish.data.split import kfold
from blemish.detectors.cam.config import CamConfig, case_study
from blemish.detectors.cam.detector import Cam
from blemish.detectors.nn.resampling import Enlarge
from blemish.evaluation.bootstrap import to_json, wilson
from blemish.evaluation.detection import auroc
from blemish.images import load_image, load_mask
from blemish.reporting.figures import with_interval
from blemish.training.crossval import cross_validate
from blemish.types import Sample

HERE = Path(__file__).resolve().parent
VGG = "vgg16_imagenet_conv.safetensors"
SIDE, RING = 224, 16  # pixels
Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]
ROWS: dict[str, dict[str, Any]] = {
    "recipe-zeros": {},
    "recipe-reflect": {"padding": "reflect"},
    "recipe-replicate": {"padding": "replicate"},
    "recipe-roi": {},
    "recipe-skip": {"background": "auto"},
    "ours-zeros": {},
    "ours-reflect": {"padding": "reflect"},
    "ours-replicate": {"padding": "replicate"},
    "ours-skip": {"background": "auto"},
}


def find_part(pixels: Pixels, where: str) -> tuple[Mask, Mask]:
    """What belongs to the part, and all within its outline, both bool (H, W)."""
    smooth = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 2)
    found = smooth[..., 0] - smooth[..., 2] > 22 if where == "cookies" else smooth.mean(2) > 95
    _, labels, facts, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8))
    pieces = np.isin(labels, 1 + np.flatnonzero(facts[1:, 4] > 0.15 * facts[1:, 4].max()))
    points = np.argwhere(pieces)[:, ::-1].astype(np.int32)
    outline = np.zeros(found.shape, np.uint8)
    if where == "flange":
        (x, y), radius = cv2.minEnclosingCircle(points)
        cv2.circle(outline, (round(x), round(y)), round(radius), 1, -1)
        return outline > 0, outline > 0
    cv2.fillConvexPoly(outline, cv2.convexHull(points), 1)
    contours, _ = cv2.findContours(pieces.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    solid = cv2.drawContours(np.zeros(found.shape, np.uint8), contours, -1, 1, -1)
    kernel = np.ones((7, 7), np.uint8)
    return cv2.dilate(solid, kernel) > 0, cv2.dilate(outline, kernel) > 0


def derive(where: str, options: argparse.Namespace, fill: bool) -> tuple[list[Sample], dict[str, Mask]]:
    """Samples on black, and each one's part at the maps' size. With `fill`, what lies outside the place where parts
    lie is grey, as `--roi` makes it."""
    if where == "cookies":
        root = options.shared / "data" / "cookies"
        files = [*sorted((root / "good").iterdir()), *sorted((root / "cracked").iterdir())]
    else:
        root = options.demo / "flange"
        good = [*sorted((root / "test" / "good").iterdir()), *sorted((root / "train" / "good").iterdir())[:25]]
        files = [*good, *sorted(f for f in (root / "test").glob("*/*.png") if f.parent.name != "good")]
    noise = np.random.default_rng(0)
    made: list[tuple[Path, Pixels]] = []
    parts: dict[str, Mask] = {}
    for file in files:
        pixels = load_image(file)
        solid, outline = find_part(pixels, where)
        dark = noise.normal(1, 2, pixels.shape).round().clip(0, 255)
        made.append((file, np.where(solid[..., None], pixels, dark).astype(np.uint8)))
        parts[f"{file.parent.name}/{file.parent.parent.name}-{file.name}"] = small(outline)
    union = np.any([cv2.resize(m.astype(np.uint8), made[0][1].shape[1::-1]) > 0 for m in parts.values()], 0)
    samples = []
    for (file, pixels), name in zip(made, parts, strict=True):
        drawn = np.where(union[..., None], pixels, 128).astype(np.uint8) if fill else pixels
        mask = root / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
        is_good = file.parent.name == "good"
        samples.append(
            Sample(
                file,
                name,
                "good" if is_good else "anomaly",
                "" if is_good else file.parent.name,
                mask if mask.is_file() else None,
                pixels=drawn,
            )
        )
    return samples, parts


def small(mask: Mask) -> Mask:
    """At the maps' size; a pixel counts where the mask touches it."""
    share = cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(share > 0)


def measure(where: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    begun = time.perf_counter()
    samples, parts = derive(where, options, name.endswith("roi"))
    kind = name.partition("-")[0]
    config = CamConfig() if kind == "ours" else case_study(CamConfig(weights=options.shared / "weights" / VGG))
    kept = options.work / f"{where}-{name}"
    kept.mkdir(parents=True, exist_ok=True)
    detector = Cam(replace(config, checkpoint=kept, resume=True, **ROWS[name]))
    crossed = cross_validate(detector, samples, folds=2, progress=progress)
    maps = np.zeros((len(samples), SIDE, SIDE), np.float32)
    index = {sample.name: i for i, sample in enumerate(samples)}
    for fold, (_, test) in enumerate(kfold(samples, 2), 1):
        with np.load(kept / f"repeat-1-fold-{fold}.npz") as outputs:  # as cross-validation keeps them
            cells = torch.tensor(outputs["maps"])
        enlarged = Enlarge((cells.shape[1], cells.shape[2]), (SIDE, SIDE), detector.config.sigma)(cells)
        maps[[index[sample.name] for sample in test]] = enlarged.numpy()
    for state in kept.glob("*.safetensors"):
        state.unlink()
    return {
        "set": where,
        "config": name,
        **figures(samples, maps, np.stack([parts[s.name] for s in samples])),
        "detection": crossed.metrics["detection"],
        "localisation": crossed.metrics.get("localisation", {}),
        "seconds": round(time.perf_counter() - begun),
    }


def figures(samples: list[Sample], maps: npt.NDArray[np.float32], parts: Mask) -> dict[str, Any]:
    labels = np.array([sample.label == "anomaly" for sample in samples])
    ring = np.ones((SIDE, SIDE), bool)
    ring[RING:-RING, RING:-RING] = False
    heat = np.maximum(maps[labels], 0)
    total = np.maximum(heat.sum((1, 2)), 1e-9)
    outside = (heat * ~parts[labels]).sum((1, 2)) / total
    border = (heat * ring).sum((1, 2)) / total
    peaks = maps.reshape(len(maps), -1).argmax(1)
    on_part = parts.reshape(len(parts), -1)[np.arange(len(parts)), peaks][labels]
    pointed, boxed = [], []
    for sample, values, peak in zip(samples, maps, peaks, strict=True):
        if sample.mask is None:
            continue
        mask = small(load_mask(sample.mask, sample.pixels.shape[:2]))  # type: ignore[union-attr]
        pointed.append(bool(mask.flat[peak]))
        y, x = np.nonzero(values >= values.min() + 0.7 * np.ptp(values))
        down, across = np.nonzero(mask)
        inside_y = down.min() <= (y.min() + y.max()) / 2 <= down.max()
        boxed.append(bool(inside_y and across.min() <= (x.min() + x.max()) / 2 <= across.max()))

    def mean_in(where: Mask) -> npt.NDArray[np.float64]:
        return np.array([m[p].astype(np.float64).mean() for m, p in zip(maps, where, strict=True)])

    found: dict[str, Any] = to_json(
        {
            "images": {"good": int((~labels).sum()), "defective": int(labels.sum()), "with_mask": len(pointed)},
            "outside": mean_of(outside),
            "outside_area": float((~parts[labels]).mean()),
            "border": mean_of(border),
            "border_area": float(ring.mean()),
            "auroc_outside": auroc(mean_in(~parts), labels),
            "auroc_inside": auroc(mean_in(parts), labels),
            "peak_on_part": wilson(int(on_part.sum()), len(on_part)),
            "pointing": wilson(sum(pointed), len(pointed)),
            "box_on_defect": wilson(sum(boxed), len(boxed)),
        }
    )
    return found


def mean_of(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """With its bootstrap interval of 95 %."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def table(rows: list[dict[str, Any]]) -> str:
    head: tuple[str, ...] = ("heat outside the part", "in the border", "AUROC outside", "AUROC inside", "peak on part")
    head = (*head, "pointing game", "box on defect", "defects hit", "pixel AUROC", "balanced accuracy", "AUROC")
    lines = [f"| data | configuration | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for row in rows:
        places, detection = row["localisation"], row["detection"]
        cells = [
            row["set"],
            row["config"],
            *(f"{with_interval(row[key], percent=True)}" for key in ("outside", "border")),
            *(f"{row[key]:.3f}" for key in ("auroc_outside", "auroc_inside")),
            *(with_interval(row[key], percent=True) for key in ("peak_on_part", "pointing", "box_on_defect")),
            with_interval(places["defects_hit"], percent=True),
            *(with_interval(f) for f in (places["pixel_auroc"], detection["balanced_accuracy"], detection["auroc"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    areas = {r["set"]: f"{r['set']}: {r['outside_area']:.0%} of the area, {r['images']}" for r in rows}
    return "\n".join(
        [*lines, "", f"Outside the part: {'; '.join(areas.values())}. Border: {rows[0]['border_area']:.0%}.\n"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work" / "cam_border")
    parser.add_argument("--only", nargs="*", default=None, help="SET/CONFIGURATION")
    parser.add_argument("--table", action="store_true", help="only collect the results in --work")
    options = parser.parse_args()
    tasks = [f"{where}/{name}" for where in ("cookies", "flange") for name in ROWS]
    for task in [] if options.table else options.only or tasks:
        where, name = task.split("/")
        file = options.work / f"{where}-{name}.json"
        if not file.exists():
            result = measure(where, name, options)
            file.write_text(json.dumps(result) + "\n", encoding="utf-8")
            print(f"{task}: {result['seconds']} s", flush=True)
    files = [options.work / f"{task.replace('/', '-')}.json" for task in tasks]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    facts = {"date": str(date.today()), "blemish": __version__, "cores": os.cpu_count()}
    saved = HERE / "results" / "cam_border.json"
    saved.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n", encoding="utf-8")
    saved.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
