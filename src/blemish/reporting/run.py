"""A run's folder, read once for reports and comparisons: its card, its figures, and its verdicts on the test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.inference import bundle
from blemish.listing import natural
from blemish.types import BlemishError

# An image's label against its verdict, in the order in which people should look at them.
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
RISING = ("missed", "found")  # the lowest score comes first; elsewhere the highest


def outcome_of(decision: str, label: str | None) -> str:
    """What a decision is for an image of that label: a key of OUTCOMES.

    >>> outcome_of("anomaly", "good"), outcome_of("good", "anomaly"), outcome_of("anomaly", None)
    ('false-alarm', 'missed', 'unlabelled')
    """
    if decision in ("error", "review"):
        return decision
    if label == "anomaly":
        return "found" if decision == "anomaly" else "missed"
    if label == "good":
        return "false-alarm" if decision == "anomaly" else "passed"
    return "unlabelled"


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """One line of `verdicts.jsonl`: a test image with its label and its verdict.

    `name` is the image's in its data set, `defect` its labelled and `predicted_defect` its likeliest defect type (of a
    classifier that knows types, else ""). `regions` and `evidence` are as in that file, boxes in pixels of the original
    image of `size` (width, height). `counterfactual` is the verdict on the image with its regions inpainted.
    """

    name: str
    label: str | None
    defect: str
    decision: str
    score: float | None
    threshold: float | None
    p_value: float | None
    probability: float | None
    predicted_defect: str
    size: tuple[int, int] | None
    regions: tuple[Mapping[str, Any], ...]
    evidence: tuple[Mapping[str, Any], ...]
    counterfactual: Mapping[str, Any] | None
    error: str | None

    @property
    def outcome(self) -> str:
        """A key of OUTCOMES."""
        return outcome_of(self.decision, self.label)

    @property
    def shown(self) -> str:
        """The name as valid Unicode: bytes of the file system that are none become question marks."""
        return self.name.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run: its folder, its bundle's card (verified), `metrics.json` with `faithfulness.json`, and its test images in
    the order of OUTCOMES, within each the clearest mistakes first."""

    folder: Path
    card: bundle.Card
    metrics: Mapping[str, Any]
    images: tuple[JudgedImage, ...]


def read_run(folder: Path | str, card: bundle.Card | None = None) -> Recorded:
    """Reads what `blemish train` wrote; `card` is its bundle's, where it has just been verified. Raises `BlemishError`
    where that is missing, damaged, or something else."""
    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise BlemishError(f"{folder}: is no run (no metrics.json); give the folder that `blemish train` wrote.")
    card = card or bundle.read(folder / "bundle").card
    metrics = _json(_text(folder / "metrics.json"), f"{folder / 'metrics.json'}")
    faithful = folder / FAITHFUL
    if faithful.is_file():
        metrics = {**metrics, "faithfulness": _faithfulness(faithful)}
    file = folder / "verdicts.jsonl"
    images: dict[str, JudgedImage] = {}
    for number, line in enumerate(_text(file).splitlines(), start=1):
        image = _image(_json(line, f"{file}, line {number}"), f"{file}, line {number}")
        if image.name in images:
            raise BlemishError(f"{file}: judges {image.shown} twice; train again.")
        images[image.name] = image
    return Recorded(folder, card, metrics, tuple(sorted(images.values(), key=_order)))


def names_tested(run: Path) -> set[str]:
    """Names of the labelled test images of a run, given as its folder or as the bundle in it."""
    for folder in (run, run.parent):
        if (folder / "metrics.json").is_file() and (folder / "verdicts.jsonl").is_file():
            return {image.name for image in read_run(folder).images if image.label}
    return set()


def inside(folder: Path, relative: str) -> Path | None:
    """The file `relative` to `folder`, or None where there is none or it lies outside."""
    try:
        file = (folder / relative).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
    except (OSError, ValueError):  # a name that no file system takes
        return None


def _faithfulness(file: Path) -> Mapping[str, Any]:
    """The content of FAITHFUL; older files call the inpainting rate "repair"."""
    content = _json(_text(file), f"{file}")
    try:
        names = [{"repair": "inpainting"}.get(measure["name"], measure["name"]) for measure in content["measures"]]
    except (KeyError, TypeError):
        raise BlemishError(f"{file}: is damaged; run blemish evaluate --faithfulness again.") from None
    measures = zip(content["measures"], names, strict=True)
    return {**content, "measures": [{**measure, "name": name} for measure, name in measures]}


def _order(image: JudgedImage) -> tuple[int, float, Any]:
    score = image.score or 0.0
    return (
        list(OUTCOMES).index(image.outcome),
        score if image.outcome in RISING else -score,
        natural(image.name),
    )


def _image(line: Mapping[str, Any], where: str) -> JudgedImage:
    try:
        image = JudgedImage(
            name=str(line["path"]),
            label=line.get("label"),
            defect=str(line.get("defect") or ""),
            decision=str(line["decision"]),
            score=line.get("score"),
            threshold=line.get("threshold"),
            p_value=line.get("p_value"),
            probability=line.get("probability"),
            predicted_defect=str(line.get("predicted_defect") or line.get("said") or ""),  # "said": older runs
            size=(int(line["size"][0]), int(line["size"][1])) if line.get("size") else None,
            regions=tuple({**region, "box": [int(side) for side in region["box"]]} for region in line["regions"]),
            evidence=tuple(line.get("evidence") or ()),
            counterfactual=line.get("counterfactual") or None,
            error=line.get("error"),
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
