"""The version that judged and a new one, on the images that are held out: what `reporting.compare` finds, in a form
that the page shows. No verdict is recorded for it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

from blemish.inference import overlay
from blemish.inference.inspector import Inspection, Inspector
from blemish.reporting.compare import compare
from blemish.types import BlemishError, Progress
from blemish.web.dataset import Written
from blemish.web.detectors import Detectors
from blemish.web.inspection import THUMBNAIL
from blemish.web.store import Store
from blemish.web.tables import Detector

FEW = 10  # held-out images of either kind, below which the page says how little a comparison tells
DRAWN = 200  # images whose verdict changed that are drawn, at most


def compared(
    detectors: Detectors, store: Store, before: Detector, new: Detector, written: Written, place: Path, told: Progress
) -> dict[str, Any]:
    """`compare` of both versions on the held-out images of the folder `written`, from which `new` was trained into
    `place/run`. `changed` also has each image's number and hash, and both versions' thumbnails of it are in the store.

    `words` are sentences on what the figures are worth. Where nothing can be compared, they are all that there is.
    """
    held_out = {name: image for name, image in written.images.items() if name.startswith("test/")}
    good = sum(image.label == "good" for image in held_out.values())
    words = few(good, len(held_out) - good)
    if not held_out:
        return {"words": words}
    inspectors = {detector.id: Inspector(detectors.place(detector)) for detector in (before, new)}
    rows = _rows(place / "run" / "verdicts.jsonl")
    _judge(inspectors[before.id], rows, written.folder, place / "before", detectors.place(before), told)
    try:
        result = compare([place / "before", place / "run"])
    except BlemishError:
        return {"words": ["None of the held-out images could be judged by both versions.", *words]}
    for run, detector in zip(result["runs"], (before, new), strict=True):
        run["run"] = f"version {detector.version}"
    for difference in result["differences"]:
        difference |= {"run": f"version {new.version}", "less": f"version {before.version}"}
    changed = result["changed"]
    for entry in changed:
        image = held_out[entry["name"]]
        entry |= {"image": image.id, "sha256": image.sha256, "shown": image.name, "defect": image.defect}
    for entry in told(changed[:DRAWN], "drawing what changed", min(DRAWN, len(changed))):
        for number, inspector in inspectors.items():
            inspection = inspector.look(written.folder / entry["name"])
            if inspection.image is not None:
                store.put_thumbnail(_thumbnail(inspection), entry["sha256"], number)
    return {**result, "words": [*few(result["good"], result["anomalies"]), *result.pop("warnings")]}


def few(good: int, defective: int) -> list[str]:
    """What so few held-out images cannot tell, in words."""
    if not good and not defective:
        return [
            "No labelled image is held out yet, so the versions cannot be compared: one of five images that are "
            "labelled is held out."
        ]
    words = []
    for count, kind, figure in ((good, "good", "false alarms"), (defective, "defective", "misses")):
        images = "image is" if count == 1 else "images are"
        if not count:
            words.append(f"No {kind} image is held out, so nothing can be said about {figure}.")
        elif count < FEW:
            words.append(f"Only {count} {kind} {images} held out: the figures on {figure} are rough.")
    return words


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _judge(
    inspector: Inspector, rows: list[dict[str, Any]], images: Path, out: Path, version: Path, told: Progress
) -> None:
    """Writes a small run folder of the earlier version, with its verdicts on the same images."""
    out.mkdir(parents=True)
    shutil.copytree(version / "bundle", out / "bundle")
    (out / "metrics.json").write_text("{}\n", encoding="utf-8")
    labels = {row["path"]: (row["label"], row["defect"]) for row in rows}

    def look(name: str) -> Inspection:
        return inspector.look(images / name, name)

    with (out / "verdicts.jsonl").open("w", encoding="utf-8") as file:
        inspections = inspector.in_threads(labels, look)
        for inspection in told(inspections, "judging the held-out images again", len(labels)):
            verdict = inspection.verdict
            label, defect = labels[verdict.path]
            row = {**verdict.to_json(), "predicted_defect": verdict.defect, "label": label, "defect": defect}
            file.write(json.dumps(row, allow_nan=False) + "\n")


def _thumbnail(inspection: Inspection) -> bytes:
    """The image with heat and boxes, JPEG."""
    assert inspection.image is not None
    low, high = inspection.color_range
    regions = inspection.verdict.regions
    canvas = overlay.overlay(inspection.image, inspection.map, regions, low=low, high=high, max_side=THUMBNAIL)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
