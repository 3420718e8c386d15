"""The guarantee under change: false alarms, recall and the drift alarm when the test images are no longer photographed
like those that were learned from.

    OMP_NUM_THREADS=1 python bench/robustness.py [--only flange ...] [--demo demo/data] [--good 100] [--defective 60]
    python bench/robustness.py --table

Trains PatchCore with its defaults on each set (options that differ are those of accuracy.py), and inspects its test
images as they are and with each change of CHANGES at five severities. Of the drawn products, new good parts are drawn
until there are `--good`. The drift test is set up from the bundle's card as `blemish watch --drift` does. It sees the
good images in random order, drawn with replacement, until it raises the alarm or has seen 500. Sets with several images
of an item have no drift test.

Scores are kept under bench/results/work/robustness, a file for each set; remove them to measure again. Writes
bench/results/robustness.json and robustness.md; `--table` writes these from existing scores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from accuracy import SETS  # type: ignore[import-not-found]  # beside this file
from blemish import Inspector, __version__
from blemish.cli.console import progress
from blemish.data import layouts
from blemish.demo.line import draw
from blemish.evaluation.bootstrap import to_json, wilson
from blemish.evaluation.detection import auroc
from blemish.images import load_image
from blemish.inference.bundle import Decision
from blemish.inference.drift import Drift
from blemish.reporting.figures import percent, with_interval
from blemish.reporting.run import names_tested
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train
from blemish.types import Sample

HERE = Path(__file__).resolve().parent
DEMO = ("flange", "cloth", "board")
OPTIONS: dict[str, dict[str, Any]] = {**{name: {} for name in DEMO}, **{name: changes for name, changes, _ in SETS}}
CAP = 500  # good images after which the drift test counts as silent
ORDERS = 51  # random orders of the good images

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float64]  # (n,)


def brightness(image: Pixels, levels: float, _: int = 0) -> Pixels:
    """Every value plus `levels` grey levels."""
    return _rounded(image + np.float32(levels))


def contrast(image: Pixels, share: float, _: int = 0) -> Pixels:
    """Every value nearer to the middle grey, 127.5, by `share` percent: glare, a dirty lens."""
    return _rounded(127.5 + (image - np.float32(127.5)) * np.float32(1 - share / 100))


def blur(image: Pixels, share: float, _: int = 0) -> Pixels:
    """Gaussian blur with a standard deviation of `share` percent of the shorter side: out of focus."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(min(image.shape[:2]) * share / 100)))


def shift(image: Pixels, share: float, _: int = 0) -> Pixels:
    """Shifted to the right and down by `share` percent of the shorter side each, in whole pixels. What comes in is the
    image, mirrored at its edge, so that no border appears."""
    by = round(min(image.shape[:2]) * share / 100)
    return np.pad(image, ((by, 0), (by, 0), (0, 0)), "symmetric")[: image.shape[0], : image.shape[1]]


def rotation(image: Pixels, degrees: float, _: int = 0) -> Pixels:
    """Rotated about its middle, bilinear; what comes in is mirrored as in `shift`."""
    height, width = image.shape[:2]
    edge = max(height, width) // 4  # covers the corners of 3:1 images up to 14 degrees
    wide = Image.fromarray(np.pad(image, ((edge, edge), (edge, edge), (0, 0)), "symmetric"))
    turned = np.asarray(wide.rotate(degrees, Image.Resampling.BILINEAR))
    return turned[edge : edge + height, edge : edge + width]


def noise(image: Pixels, levels: float, seed: int = 0) -> Pixels:
    """Normal noise with a standard deviation of `levels` grey levels, of each pixel and channel by itself."""
    drawn = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    return _rounded(image + np.float32(levels) * drawn)


def jpeg(image: Pixels, quality: float, _: int = 0) -> Pixels:
    """Through a JPEG file of this quality (Pillow's, with colours at half the resolution)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file).convert("RGB"))


def _rounded(values: npt.NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of images, with five severities in its own unit, the mildest first."""

    name: str
    unit: str
    severities: tuple[float, ...]
    apply: Callable[[Pixels, float, int], Pixels]  # image, severity, seed


CHANGES = (
    Change("brighter", "levels", (4, 8, 16, 32, 64), brightness),
    Change("darker", "levels", (-4, -8, -16, -32, -64), brightness),
    Change("less contrast", "%", (5, 10, 20, 30, 50), contrast),
    Change("blur", "% of side", (0.05, 0.1, 0.2, 0.4, 0.8), blur),
    Change("shift", "% of side", (0.5, 1, 2, 4, 8), shift),
    Change("rotation", "degrees", (0.5, 1, 2, 5, 10), rotation),
    Change("noise", "levels", (2, 4, 8, 16, 32), noise),
    Change("JPEG", "quality", (90, 75, 50, 30, 15), jpeg),
)


def measure(folder: Path, changes: dict[str, Any], work: Path, most: tuple[int, int], threads: int) -> dict[str, Any]:
    """The expensive step: trains, and scores at most `most` good and defective test images, unchanged and changed.

    `scores[label]["unchanged"]` and `scores[label][change]` hold the scores, (n,) and for each severity (n,).
    """
    begun = time.perf_counter()
    run = train(TrainConfig(folder, work / folder.name, overwrite=True, **changes), progress)
    inspector = Inspector(run.bundle, threads=threads)
    tested = names_tested(run.folder)
    samples = [sample for sample in layouts.read(folder).samples if sample.name in tested]
    images = {
        label: evenly([s for s in samples if s.label == label], count)
        for label, count in zip(("good", "anomaly"), most, strict=True)
    }
    drawn: list[int] = []
    if folder.name in DEMO:
        drawn = [*range(1000, 1000 + most[0] - len(images["good"]))]  # parts that the folder does not hold

    def good_part(number: int) -> Pixels:
        settings = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
        return draw(folder.name, number, seed=settings["seed"], size=settings["size"], place="test/good")[0]

    def scored(item: tuple[int, Sample | int]) -> list[float]:
        seed, source = item
        image = good_part(source) if isinstance(source, int) else load_image(source.path)
        changed = [image]
        changed += [change.apply(image, severity, seed) for change in CHANGES for severity in change.severities]
        return [float(inspector.predict(pixels).scores[0]) for pixels in changed]

    scores = {}
    sources: dict[str, list[Sample | int]] = {"good": [*images["good"], *drawn], "anomaly": [*images["anomaly"]]}
    for label, shown in sources.items():
        items = list(enumerate(shown))
        found = inspector.in_threads(items, scored)
        scores[label] = by_change(list(progress(found, f"{folder.name}, {label}", len(items))))
    return {
        "set": folder.name,
        "options": changes,
        "image_size": inspector.card.image_size,
        "learned_from": run.metrics["counts"]["train"],
        "decision": inspector.card.decision.model_dump(mode="json"),
        "good": len(images["good"]),
        "drawn": len(drawn),
        "anomaly": len(images["anomaly"]),
        "scores": scores,
        "blemish": __version__,
        "date": str(date.today()),
        "seconds": round(time.perf_counter() - begun),
    }


def evenly(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most `most` of the samples, evenly spread over their order."""
    if len(samples) <= most:
        return list(samples)
    return [samples[i * len(samples) // most] for i in range(most)]


def by_change(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The scores of n images, each unchanged and then changed in the order of CHANGES, by change."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    scores: dict[str, Any] = {"unchanged": columns[0]}
    first = 1
    for change in CHANGES:
        scores[change.name] = columns[first : first + len(change.severities)]
        first += len(change.severities)
    return scores


def noticed(
    decision: Decision, scores: Sequence[float], *, replace: bool = True, every: bool = False
) -> dict[str, Any] | None:
    """After how many images the drift test raised the alarm, over ORDERS random orders of these good images' scores:
    the median (None: later than CAP), and the share of the orders in which it did.

    Without `replace` each image is seen once, so that chance repeats nothing. With `every`, images that are called
    anomalies count too, as they may where none is defective. None where there is no drift test.
    """
    if decision.items or not decision.scores:
        return None
    upward = decision.calibrated_by == "leave-one-out"
    counts = []
    for order in range(ORDERS):
        random = np.random.default_rng(order)
        stream = random.choice(np.array(scores), CAP if replace else len(scores), replace=replace)
        test = Drift(decision.scores, seed=order, threshold=None if every else decision.threshold, upward=upward)
        counts.append(next((n for n, score in enumerate(stream, 1) if test.see(float(score)).alarm), np.inf))
    median = float(np.median(counts))
    return {"median": None if np.isinf(median) else int(median), "share": float(np.isfinite(counts).mean())}


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """False alarms and recall with Wilson's intervals, the AUROC, and the drift test, of one set: unchanged and by
    change."""
    decision = Decision.model_validate(found["decision"])

    def row(good: Sequence[float], anomalies: Sequence[float]) -> dict[str, Any]:
        return {
            "false_alarms": share(good, decision.threshold),
            "recall": share(anomalies, decision.threshold),
            "auroc": auroc(np.array([*good, *anomalies]), np.repeat([False, True], [len(good), len(anomalies)])),
            "drift": noticed(decision, good),
            "drift_of_every_image": noticed(decision, good, every=True),
        }

    good, anomalies = found["scores"]["good"], found["scores"]["anomaly"]
    unchanged = row(good["unchanged"], anomalies["unchanged"])
    unchanged["drift_each_image_once"] = noticed(decision, good["unchanged"], replace=False)
    changed = {
        change.name: [
            {"severity": severity, **row(*both)}
            for severity, *both in zip(change.severities, good[change.name], anomalies[change.name], strict=True)
        ]
        for change in CHANGES
    }
    kept = ("set", "options", "image_size", "learned_from", "good", "drawn", "anomaly", "blemish", "date", "seconds")
    return {
        **{key: found[key] for key in kept},
        "guaranteed": decision.false_alarms,
        "calibrated_by": decision.calibrated_by,
        "calibration_images": len(decision.scores),
        "unchanged": unchanged,
        "changes": changed,
    }


def share(scores: Sequence[float], threshold: float) -> dict[str, Any]:
    """The share of the scores above the threshold, as `Inspector` decides, with Wilson's interval."""
    return dict(to_json(wilson(sum(score > threshold for score in scores), len(scores))))


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown: unchanged, then how far the guarantee holds, then all of each set."""
    names = ("data", "good / defective", "guaranteed", "false alarms", "recall", "AUROC", "drift alarm")
    lines = [
        f"Test images as they are. Drift alarm: in which share of {ORDERS} random orders of the good images, each seen "
        f"once, and {CAP} drawn with replacement:",
        "",
        *_head(*names),
    ]
    for row in rows:
        found, once = row["unchanged"], row["unchanged"]["drift_each_image_once"]
        cells = [with_interval(found[name], percent=True) for name in ("false_alarms", "recall")]
        seen = f"{row['good'] + row['drawn']} / {row['anomaly']}"
        alarm = "–" if once is None else f"{percent(once['share'])}, {percent(found['drift']['share'])}"
        lines.append(_row(row["set"], seen, percent(row["guaranteed"]), *cells, f"{found['auroc']:.3f}", alarm))
    lines += [
        "",
        "How far the guarantee holds. The largest severity at which the observed false alarms agree with the "
        "guaranteed rate (Wilson's interval is not above it), and the next severity: false alarms there, good images "
        "until the drift alarm (if anomalies counted too):",
        "",
        *_head("change", *(row["set"] for row in rows)),
        *(_row(f"{change.name}, {change.unit}", *(_holds(row, change) for row in rows)) for change in CHANGES),
    ]
    lines += [
        "",
        "All changes and severities of the sets that have a drift test, by their false alarms, and in how many of them "
        "more than half of the orders raised the drift alarm; the median number of images until then:",
        "",
        *_head("false alarms", "changes", "alarm raised", "images", "if anomalies counted too", "images"),
        *(_row(*cells) for cells in _by_false_alarms(rows)),
    ]
    for row in rows:
        lines += [
            "",
            f"{row['set']}, {percent(row['guaranteed'])} guaranteed. Severity: false alarms / recall in %, AUROC, good "
            "images until the drift alarm (if anomalies counted too):",
            "",
            *_head("change", "mildest", "second", "third", "fourth", "strongest"),
        ]
        for change in CHANGES:
            lines.append(_row(f"{change.name}, {change.unit}", *map(_cell, row["changes"][change.name])))
    return "\n".join(lines) + "\n"


def _holds(row: dict[str, Any], change: Change) -> str:
    last = "none"
    for found in row["changes"][change.name]:
        if found["false_alarms"]["low"] > row["guaranteed"]:
            return f"{last}; {found['severity']:g}: {percent(found['false_alarms']['value'])}, {_images(found)}"
        last = f"{found['severity']:g}"
    return f"all: {last}"


def _by_false_alarms(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """How the drift test did where false alarms agree with the guarantee, are above it, and are most verdicts."""
    kinds: dict[str, list[dict[str, Any]]] = {"as guaranteed": [], "more, up to half": [], "more than half": []}
    for row in rows:
        for found in [found for severities in row["changes"].values() for found in severities if found["drift"]]:
            alarms = found["false_alarms"]
            more = "more than half" if alarms["value"] > 0.5 else "more, up to half"
            kinds["as guaranteed" if alarms["low"] <= row["guaranteed"] else more].append(found)
    table = []
    for kind, changed in kinds.items():
        cells = [kind, str(len(changed))]
        for test in ("drift", "drift_of_every_image"):
            counts = [found[test]["median"] for found in changed if found[test]["median"] is not None]
            cells += [str(len(counts)), f"{np.median(counts):.0f}" if counts else "–"]
        table.append(cells)
    return table


def _cell(found: dict[str, Any]) -> str:
    alarms, recall = (f"{100 * found[name]['value']:.0f}" for name in ("false_alarms", "recall"))
    return f"{found['severity']:g}: {alarms} / {recall}, {found['auroc']:.2f}, {_images(found)}"


def _images(found: dict[str, Any]) -> str:
    """The median number of images, as `blemish watch` is set up and, in brackets where it differs, with every image."""
    first, second = (
        "–" if drift is None else f"> {CAP}" if drift["median"] is None else str(drift["median"])
        for drift in (found["drift"], found["drift_of_every_image"])
    )
    return first if first == second else f"{first} ({second})"


def _head(*names: str) -> list[str]:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--only", nargs="*", choices=list(OPTIONS), default=list(OPTIONS), metavar="SET")
    parser.add_argument("--good", type=int, default=100, help="good test images at most")
    parser.add_argument("--defective", type=int, default=60, help="defective test images at most")
    parser.add_argument("--threads", type=int, default=0, help="of the inspector; 0 = one for each core")
    parser.add_argument("--table", action="store_true", help="write the tables from existing scores")
    options = parser.parse_args()
    work = HERE / "results" / "work" / "robustness"
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, changes in OPTIONS.items():
        file = work / f"{name}.json"
        folder = (options.demo if name in DEMO else options.shared / "data") / name
        if not options.table and name in options.only and not file.exists():
            if not folder.is_dir():
                print(f"{folder} is missing; skipped")
                continue
            found = measure(folder, changes, work, (options.good, options.defective), options.threads)
            file.write_text(json.dumps(found), encoding="utf-8")
        if file.exists():
            rows.append(figures(json.loads(file.read_text(encoding="utf-8"))))
    facts = {"date": str(date.today()), "blemish": __version__, "machine": platform.machine(), "cores": os.cpu_count()}
    saved = HERE / "results" / "robustness.json"
    saved.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n", encoding="utf-8")
    text = tables(rows)
    saved.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
