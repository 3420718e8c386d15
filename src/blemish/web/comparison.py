"""The version that judged and a new one, on the images that are held out: what `reporting.compare` finds, in a form
that the page shows. No verdict is recorded for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, lazyload

from blemish.inference.inspector import Inspection, Inspector
from blemish.reporting.compare import compare
from blemish.types import BlemishError, Progress
from blemish.web.database import Database
from blemish.web.dataset import Written, is_imported
from blemish.web.inspection import thumbnail
from blemish.web.standing import IMPORT
from blemish.web.tables import Correction, Image, Job

FEW = 10  # held-out images of either kind, below which the page says how little a comparison tells
DRAWN = 200  # images whose verdict changed that are drawn, at most
UNTESTED = (
    "No image that came with its label is held out, so the versions are not tested against each other, and no "
    "intervals are given. Start blemish serve with --images and the labelled images that the first version was tested "
    "with."
)


@dataclass(frozen=True)
class Compared:
    """What came of a comparison, as a job keeps it, and thumbnails by the image's hash: the earlier version's, the new
    one's."""

    told: dict[str, Any]
    thumbnails: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)


def as_they_came(session: Session, images: Sequence[Image]) -> set[int]:
    """The numbers of those of the images whose label is the one that they came with (see `imports`): neither was the
    image chosen by what a version said, nor its label changed in sight of it. One that a person confirmed is among
    them, or a version's mistakes would be taken out of its test."""
    same = {image.id for image in images if is_imported(image.item) and image.labelled_by == IMPORT}
    others = {image.id: image for image in images if is_imported(image.item) and image.labelled_by != IMPORT}
    if not others:
        return same
    mine = Image.product == next(iter(others.values())).product
    rows = select(Correction).join(Image, Image.id == Correction.image_id).where(mine, Image.labelled_by != IMPORT)
    first: dict[int, Any] = {}
    for row in session.scalars(rows.order_by(Correction.id).options(lazyload("*"))):
        if row.before.get("labelled_by") == IMPORT:
            first.setdefault(row.image_id, row.before.get("label"))
    return same | {number for number, image in others.items() if first.get(number) == image.label}


def compared(before: Path, written: Written, place: Path, told: Progress, came: Container[int]) -> Compared:
    """Both versions on the held-out images of the folder `written`: the one that judged, in the folder `before`, and
    the new one, which was trained into `place/run`.

    They are tested against each other, as `compare` does, only on the images that are as they `came` (`as_they_came`).
    Images that a person labelled were chosen by looking at an earlier version's verdicts: those that it got wrong, or
    was unsure of; and a label that was changed was changed in sight of one. A new version that is no better looks
    better on them, so they are counted apart, in `corrected`, and no test is made. `changed`
    holds both kinds, each with its number and hash, and whether it was `corrected`.

    `words` are sentences on what the figures are worth. Without `runs` in it no test could be made.
    """
    held_out = {name: image for name, image in written.images.items() if name.startswith("test/")}
    if not held_out:
        return Compared({"words": few(0, 0)})
    inspectors = Inspector(before), Inspector(place / "run")
    rows = _rows(place / "run" / "verdicts.jsonl")
    chosen = {name for name, image in held_out.items() if image.id in came}
    decided = _judge(inspectors[0], rows, written.folder, place / "before", before, chosen, told)
    result = _tested([place / "before", place / "run"], [held_out[name].label or "" for name in chosen])
    others = [(row, decided[row["path"]]) for row in rows if row["path"] not in chosen and row["label"]]
    changed = [{**entry, "corrected": False} for entry in result.pop("changed", [])]
    changed += [
        {"name": row["path"], "label": row["label"], "decisions": [was, row["decision"]], "corrected": True}
        for row, was in others
        if was != row["decision"]
    ]
    for entry in changed:
        image = held_out[entry["name"]]
        entry |= {"image": image.id, "sha256": image.sha256, "shown": image.name, "defect": image.defect}
    told_of = {**result, "changed": changed}
    if others:
        told_of["corrected"] = counted([(row["label"], was, row["decision"]) for row, was in others])
    thumbnails = {}
    for entry in told(changed[:DRAWN], "drawing what changed", min(DRAWN, len(changed))):
        looks = [inspector.look(written.folder / entry["name"]) for inspector in inspectors]
        if all(look.image is not None for look in looks):
            thumbnails[entry["sha256"]] = (thumbnail(looks[0]), thumbnail(looks[1]))
    return Compared(told_of, thumbnails)


def earlier(database: Database, job: Job) -> str:
    """A sentence on earlier comparisons on the images that are held out; "" where there was none."""
    before = (Job.product == job.product, Job.state == "done", Job.id < job.id)
    compared_too = Job.comparison["images"].as_integer().is_not(None)
    with database.reading() as session:
        number = session.scalar(select(func.count()).where(*before, compared_too)) or 0
    if not number:
        return ""
    return (
        f"{number} earlier training{'' if number == 1 else 's'} {'was' if number == 1 else 'were'} compared on these "
        "held-out images too. The more versions are tried on the same images, the more easily one seems better by "
        "chance: intervals and p do not allow for that."
    )


def _tested(runs: Sequence[Path], labels: Sequence[str]) -> dict[str, Any]:
    """`compare` of both runs, and what it is worth; without images only the words."""
    if not labels:
        return {"words": [UNTESTED]}
    try:
        result = compare(runs)
    except BlemishError:
        return {"words": ["None of the held-out images could be judged by both versions."]}
    return {**result, "words": [*few(result["good"], result["anomalies"]), *result.pop("warnings")]}


def counted(images: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """How many of the images, each given as its label and the decisions of both versions, each version is right on,
    puts aside, and gets wrong. What could not be judged is wrong.

    >>> counted([("anomaly", "good", "anomaly"), ("good", "review", "good")])
    {'images': 2, 'right': [0, 2], 'review': [1, 0], 'wrong': [1, 0]}
    """
    both = [[(label, decisions[i]) for label, *decisions in images] for i in (0, 1)]
    right = [sum(label == decision for label, decision in one) for one in both]
    review = [sum(decision == "review" for _, decision in one) for one in both]
    wrong = [len(images) - r - aside for r, aside in zip(right, review, strict=True)]
    return {"images": len(images), "right": right, "review": review, "wrong": wrong}


def named(comparison: dict[str, Any], before: str, new: str) -> dict[str, Any]:
    """The same with the versions' names in place of their folders."""
    for run, name in zip(comparison.get("runs", []), (before, new), strict=False):
        run["run"] = name
    for difference in comparison.get("differences", []):
        difference |= {"run": new, "less": before}
    return comparison


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
    inspector: Inspector,
    rows: list[dict[str, Any]],
    images: Path,
    out: Path,
    version: Path,
    chosen: set[str],
    told: Progress,
) -> dict[str, str]:
    """The earlier version's decisions on the same images, by their names; of those `chosen` its verdicts are written as
    a small run folder."""
    out.mkdir(parents=True)
    shutil.copytree(version / "bundle", out / "bundle")
    (out / "metrics.json").write_text("{}\n", encoding="utf-8")
    labels = {row["path"]: (row["label"], row["defect"]) for row in rows}
    decided = {}

    def look(name: str) -> Inspection:
        return inspector.look(images / name, name)

    with (out / "verdicts.jsonl").open("w", encoding="utf-8") as file:
        inspections = inspector.in_threads(labels, look)
        for inspection in told(inspections, "judging the held-out images again", len(labels)):
            verdict = inspection.verdict
            decided[verdict.path] = str(verdict.decision)
            if verdict.path not in chosen:
                continue
            label, defect = labels[verdict.path]
            row = {**verdict.to_json(), "predicted_defect": verdict.defect, "label": label, "defect": defect}
            file.write(json.dumps(row, allow_nan=False) + "\n")
    return decided
