"""What a run's folder says of its test images, read once for reports and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.images import natural
from blemish.inference import bundle
from blemish.types import BlemishError

# What an image is against what was said of it, in the order in which people should look.
OUTCOMES = {
    "missed": "missed",
    "false-alarm": "false alarm",
    "review": "review",
    "error": "not judged",
    "found": "found",
    "passed": "good",
    "unlabelled": "no label",
}
FAITHFUL = "faithfulness.json"  # written by `blemish evaluate --faithfulness`
DECISIONS = ("good", "anomaly", "review", "error")
RISING = ("missed", "found")  # what is worst is what scored lowest; elsewhere, what scored highest


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """One line of `verdicts.jsonl`. `name` is the image's in its data set; `regions` and `evidence` are as written
    there, boxes in pixels of the original image of `size` (width, height)."""

    name: str
    label: str | None
    defect: str
    decision: str
    score: float | None
    threshold: float | None
    p_value: float | None
    probability: float | None
    said: str  # the likeliest defect type, of a classifier that knows types
    size: tuple[int, int] | None
    regions: tuple[Mapping[str, Any], ...]
    evidence: tuple[Mapping[str, Any], ...]
    counterfactual: Mapping[str, Any] | None  # what was said once its regions were inpainted
    error: str | None

    @property
    def outcome(self) -> str:
        """A key of OUTCOMES."""
        if self.decision in ("error", "review"):
            return self.decision
        if self.label == "anomaly":
            return "found" if self.decision == "anomaly" else "missed"
        if self.label == "good":
            return "false-alarm" if self.decision == "anomaly" else "passed"
        return "unlabelled"

    @property
    def shown(self) -> str:
        """The name as text that every file can hold, whatever bytes the file system had."""
        return self.name.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run: its folder, its bundle's card (verified), `metrics.json`, and its test images in the order of
    OUTCOMES, within each the most telling first."""

    folder: Path
    card: bundle.Card
    metrics: Mapping[str, Any]
    images: tuple[JudgedImage, ...]


def read_run(folder: Path | str) -> Recorded:
    """Reads what `blemish train` wrote. Raises `BlemishError` where that is missing, damaged, or something else."""
    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise BlemishError(f"{folder}: is no run, it has no metrics.json; give the folder that `blemish train` wrote.")
    card = bundle.read(folder / "bundle").card
    metrics = _json(_text(folder / "metrics.json"), f"{folder / 'metrics.json'}")
    faithful = folder / FAITHFUL
    if faithful.is_file():
        metrics = {**metrics, "faithfulness": _json(_text(faithful), f"{faithful}")}
    file = folder / "verdicts.jsonl"
    images: dict[str, JudgedImage] = {}
    for number, line in enumerate(_text(file).splitlines(), start=1):
        image = _image(_json(line, f"{file}, line {number}"), f"{file}, line {number}")
        if image.name in images:
            raise BlemishError(f"{file}: judges {image.shown} twice; train again.")
        images[image.name] = image
    return Recorded(folder, card, metrics, tuple(sorted(images.values(), key=_telling)))


def names_tested(run: Path) -> set[str]:
    """Names of the labelled test images of a run, given as its folder or as the bundle in it."""
    for folder in (run, run.parent):
        if (folder / "metrics.json").is_file() and (folder / "verdicts.jsonl").is_file():
            return {image.name for image in read_run(folder).images if image.label}
    return set()


def inside(folder: Path, relative: str) -> Path | None:
    """The file `relative` within `folder`, or None where there is none, or it lies elsewhere."""
    try:
        file = (folder / relative).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
    except (OSError, ValueError):  # a name that no file system takes
        return None


def _telling(image: JudgedImage) -> tuple[int, float, Any]:
    score = image.score or 0.0
    return (
        list(OUTCOMES).index(image.outcome),
        score if image.outcome in RISING else -score,
        natural(image.name),
    )


def _image(said: Mapping[str, Any], where: str) -> JudgedImage:
    try:
        image = JudgedImage(
            name=str(said["path"]),
            label=said.get("label"),
            defect=str(said.get("defect") or ""),
            decision=str(said["decision"]),
            score=said.get("score"),
            threshold=said.get("threshold"),
            p_value=said.get("p_value"),
            probability=said.get("probability"),
            said=str(said.get("said") or ""),
            size=(int(said["size"][0]), int(said["size"][1])) if said.get("size") else None,
            regions=tuple({**region, "box": [int(side) for side in region["box"]]} for region in said["regions"]),
            evidence=tuple(said.get("evidence") or ()),
            counterfactual=said.get("counterfactual") or None,
            error=said.get("error"),
        )
    except (KeyError, TypeError, ValueError, IndexError) as cause:
        raise BlemishError(f"{where}: is not a verdict ({type(cause).__name__}: {cause}); train again.") from None
    if image.decision not in DECISIONS:
        raise BlemishError(f"{where}: has the unknown verdict '{image.decision}'; update blemish.")
    return image


def _json(text: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as cause:
        raise BlemishError(f"{where}: is damaged ({cause}); train again.") from None
    if not isinstance(value, Mapping):
        raise BlemishError(f"{where}: is damaged (no JSON object); train again.")
    return value


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as cause:
        raise BlemishError(f"{file}: cannot be read ({cause.strerror}); train again.") from None
    except UnicodeDecodeError:
        raise BlemishError(f"{file}: is damaged (no UTF-8); train again.") from None
