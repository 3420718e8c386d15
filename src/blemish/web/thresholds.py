"""Another threshold for a version, chosen on its histogram of scores and saved as a new version: the same graph,
another rule on the card. Nothing is scored again.

What can be chosen are the calibration scores, since between two of them nothing is guaranteed that is not guaranteed at
the lower one. `steps` gives each of them with the lowest rate that it guarantees; see `inference.calibration`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import or_, select, true

from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import detection_metrics
from blemish.inference import bundle, calibration
from blemish.inference.bundle import Decision
from blemish.reporting.figures import percent
from blemish.types import BlemishError
from blemish.web.database import Database
from blemish.web.dataset import IMPORTED, is_imported
from blemish.web.detectors import Detectors
from blemish.web.imports import learned_from
from blemish.web.tables import Detector, Image, Verdict

Floats = npt.NDArray[np.float64]
CLASS = (
    "This version decides by the likelier class: it has no calibration scores, and no false-alarm rate is guaranteed. "
    "There is no threshold to choose; a version that is learned again has one."
)
IN_ADVANCE = (
    "The guarantee holds, on average, for a rate that is fixed in advance. Of a rate that was chosen by looking at "
    "these scores it is only an estimate: say first which rate you can afford, then look."
)
CONFIDENT = (
    "This version's guarantee is one with confidence. It holds for a rate that is fixed in advance; choosing among "
    "several by looking at these scores costs some of the confidence."
)
OVER_ALL = ("auroc", "average_precision", "best_f1")  # figures that no threshold changes
ALL_UNSEEN = "Counted are labelled images that this version did not learn from."
SURELY_UNSEEN = "Counted are labelled images that are held out, and those that came after the version."
# What the sentence of a version's guarantee says more, where its rate was set on the page.
CHOSEN = "If the rate was chosen by looking at the calibration scores, this is only an estimate."
CHOSEN_CONFIDENT = "If the rate was chosen by looking at the calibration scores, this costs some of the confidence."


class Step(NamedTuple):
    """A threshold, and the lowest rate of false alarms that it guarantees."""

    threshold: float
    rate: float


@dataclass(frozen=True)
class Scored:
    """A labelled image that the version did not learn from, with its score by the version's graph."""

    score: float
    defective: bool


@dataclass(frozen=True)
class Effects:
    """What a pair of thresholds does to the labelled images."""

    found: int  # defective ones called anomalies
    missed: int  # called good
    put_aside: int  # to be reviewed
    false_alarms: int  # good ones called anomalies
    good_put_aside: int
    passed: int


def steps(rule: Decision) -> list[Step]:
    """The thresholds that can be chosen, in rising order; none without calibration scores.

    On average over calibration sets, with a weight above the threshold of k of n items, the rate is (1 + k) / (n + 1).
    With confidence it is the lowest rate at which the k-th highest of the items' scores has that confidence,
    P(Binomial(n, rate) >= k) = confidence.
    """
    if not rule.scores:
        return []
    scores, groups = np.array(rule.scores, np.float64), groups_of(rule)
    weights = calibration.item_weights(groups) if groups else np.ones(len(scores))
    items = round(float(weights.sum()))
    if rule.confidence is None:
        return [
            Step(float(t), (1 + round(float(weights[scores > t].sum()), 9)) / (items + 1)) for t in np.unique(scores)
        ]
    highest = _highest(scores, groups)
    ranks = {float(t): int((highest > t).sum()) + 1 for t in highest}
    return [Step(t, _with_confidence(items, k, rule.confidence)) for t, k in sorted(ranks.items())]


def groups_of(rule: Decision) -> list[str] | None:
    """The items' names of the calibration images; None where each shows another."""
    return [str(item) for item in rule.items] if rule.items else None


def _highest(scores: Floats, groups: Sequence[str] | None) -> Floats:
    if groups is None:
        return scores
    named = np.array(groups)
    return np.array([scores[named == name].max() for name in dict.fromkeys(groups)])


def _with_confidence(n: int, k: int, confidence: float) -> float:
    """By bisection; the tail rises with the rate."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if calibration.binomial_tail(n, k, middle) >= confidence else (middle, high)
    return high


def effects(scored: Sequence[Scored], threshold: float, review_threshold: float | None = None) -> Effects:
    """Counts of labelled images at a pair of thresholds. What is put aside for a person is neither missed nor a false
    alarm."""
    review = threshold if review_threshold is None else review_threshold

    def count(low: float, high: float, *, defective: bool) -> int:
        return sum(image.defective == defective and low < image.score <= high for image in scored)

    inf = float("inf")
    return Effects(
        found=count(threshold, inf, defective=True),
        missed=count(-inf, review, defective=True),
        put_aside=count(review, threshold, defective=True),
        false_alarms=count(threshold, inf, defective=False),
        good_put_aside=count(review, threshold, defective=False),
        passed=count(-inf, review, defective=False),
    )


def decided(rule: Decision, false_alarms: float, review: float | None) -> Decision:
    """The same rule at other rates, as `training.card.decision` would have made it of the same calibration images.
    Colours stay: a map looks the same in all versions of a graph. Raises `BlemishError` for rates that so few images
    cannot guarantee, and where there are none."""
    if not rule.scores:
        raise BlemishError(CLASS)
    scores, maxima = np.array(rule.scores, np.float64), np.array(rule.map_maxima, np.float64)
    groups, confidence = groups_of(rule), rule.confidence
    review_threshold = None
    if review is not None:
        both = calibration.thresholds(scores, false_alarms, review, groups, confidence=confidence)
        review_threshold = both.review
    sentence = calibration.guarantee(
        len(scores),
        false_alarms,
        confidence=confidence,
        items=len(set(groups)) if groups else None,
        review=review,
        kind=rule.calibrated_by,
    )
    changes = {
        "false_alarms": false_alarms,
        "threshold": calibration.threshold(scores, false_alarms, groups, confidence=confidence),
        "review": review,
        "review_threshold": review_threshold,
        "pixel_threshold": calibration.threshold(maxima, false_alarms, groups, confidence=confidence),
        "guarantee": sentence,
    }
    return bundle.made(Decision, **(rule.model_dump() | changes))


def save(
    detectors: Detectors, detector: Detector, false_alarms: float, review: float | None, *, by: str, note: str = ""
) -> Detector:
    """A new version of the same graph at other rates. It does not judge until it is promoted. Raises `BlemishError`
    where the rates cannot be guaranteed, or are those that the version has."""
    place = detectors.place(detector)
    loaded = bundle.read(place / "bundle")
    rule = decided(loaded.card.decision, false_alarms, review)
    if (rule.threshold, rule.review_threshold) == (
        loaded.card.decision.threshold,
        loaded.card.decision.review_threshold,
    ):
        raise BlemishError(
            f"These rates give the thresholds that version {detector.version} has already; choose another rate."
        )
    caution = CHOSEN if rule.confidence is None else CHOSEN_CONFIDENT
    rule = rule.model_copy(update={"guarantee": f"{rule.guarantee} {caution}"})
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    card = loaded.card.model_copy(update={"decision": rule, "created": created})
    detectors.folder.detectors.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".threshold-", dir=detectors.folder.detectors) as made:
        run = Path(made) / "run"
        shutil.copytree(place / "bundle", run / "bundle", ignore=shutil.ignore_patterns(bundle.CARD, ".blemish"))
        bundle.write(run / "bundle", card)
        own, _ = family(detectors, detector)
        metrics = _metrics(detector.metrics, tested(detectors.place(own)), rule)
        (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        return detectors.bring(run, by=by, kind="threshold", product=detector.product, parent_id=detector.id, note=note)


def _metrics(before: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]], rule: Decision) -> dict[str, Any]:
    """The figures of a run at another threshold: those of images come from the scores of its `verdicts`. They have no
    intervals where they depend on the threshold, since it may have been chosen by looking at these very images. Those
    of boxes and pixels at the threshold would need the maps, and are left out; those over all thresholds stay."""
    metrics = dict(before)
    metrics["decision"] = rule.model_dump(mode="json", exclude={"scores", "map_maxima", "distances", "items"})
    metrics.pop("recall_by_defect", None)
    rows = [row for row in verdicts if row.get("label") and row.get("score") is not None]
    labels = np.array([row["label"] == "anomaly" for row in rows], bool)
    if rows and labels.any() and not labels.all():
        scores = np.array([row["score"] for row in rows], np.float64)
        found = to_json(detection_metrics(scores, labels, scores > rule.threshold))
        for name, figure in found.items():
            if "low" in figure and name not in OVER_ALL:
                figure |= {"low": None, "high": None}
        metrics["detection"] = found
    else:
        metrics.pop("detection", None)
    kept = ("pixel_auroc", "aupro", "pixel_average_precision", "aupimo", "aupimo_p33", "pointing_game", "best_iou")
    if localised := metrics.get("localisation"):
        metrics["localisation"] = {name: localised[name] for name in kept if name in localised}
    return metrics


def tested(place: Path) -> list[dict[str, Any]]:
    """The verdicts of a version's run on its test images; [] where it came without."""
    file = place / "verdicts.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def family(detectors: Detectors, detector: Detector) -> tuple[Detector, list[int]]:
    """The version whose graph this one has, and the numbers of all versions that have it."""
    every = {version.id: version for version in detectors.versions(detector.product)}

    def root(version: Detector) -> Detector:
        while version.kind == "threshold" and version.parent_id in every:
            version = every[version.parent_id]
        return version

    own = root(detector)
    return own, [number for number, version in every.items() if root(version).id == own.id]


def unknown(detectors: Detectors, detector: Detector) -> str:
    """A sentence where nobody knows which images a version learned from; "" where that is known."""
    own, _ = family(detectors, detector)
    if own.kind == "learned" or learned_from(detectors, own) is not None:
        return ""
    return (
        f"It is not known which images version {own.version} learned from; if held-out ones are among them, its "
        "figures are too good. To have it known, start blemish serve with its run, and with --images and the folder "
        "that it learned from."
    )


def counted(detectors: Detectors, detector: Detector) -> str:
    """Which labelled images `scored` finds, in a sentence."""
    own, _ = family(detectors, detector)
    return SURELY_UNSEEN if learned_from(detectors, own) is None else ALL_UNSEEN


def scored(database: Database, detectors: Detectors, detector: Detector) -> list[Scored]:
    """Labelled images with their scores by the version's graph. Where it is known what it learned from: all others.
    Else those that are held out, and those that came after it had been learned. Their scores are those of verdicts,
    else of the run's test."""
    own, numbers = family(detectors, detector)
    learned = learned_from(detectors, own)
    unseen = true() if learned is not None else or_(Image.split == "test", ~IMPORTED & (Image.added > own.created))
    # Columns, and not rows: there may be a hundred thousand of them.
    columns = (Image.id, Image.sha256, Image.name, Image.item, Image.label)
    images = select(*columns).where(Image.product == detector.product, Image.label.is_not(None), unseen)
    with database.reading() as session:
        rows = session.execute(images.order_by(Image.id)).all()
        judged = select(Verdict.image_id, Verdict.score).join(Image, Image.id == Verdict.image_id)
        judged = judged.where(Verdict.detector_id.in_(numbers), Verdict.score.is_not(None))
        scores = dict(session.execute(judged.where(unseen, Image.label.is_not(None)).order_by(Verdict.id)).all())
    # Of a version that was learned here the test's rows have the images' hashes, of others the names in their folder.
    by_name = {row.get("image", row["path"]): row.get("score") for row in tested(detectors.place(own))}
    found = []
    for image in rows:
        known = by_name.get(image.sha256)
        if known is None and is_imported(image.item):
            known = by_name.pop(image.name, None)  # the first of that name; another may have come from another folder
        score = scores.get(image.id, known)
        if score is not None and image.sha256 not in (learned or ()):
            found.append(Scored(float(score), image.label == "anomaly"))
    return found


def as_json(rule: Decision, images: Sequence[Scored]) -> dict[str, Any]:
    """What the page's slider needs: `steps`, calibration `scores`, labelled `good` and `defective` scores, where the
    version stands, and the sentence on what the guarantee is worth."""
    return {
        "threshold": rule.threshold,
        "review_threshold": rule.review_threshold,
        "false_alarms": rule.false_alarms,
        "review": rule.review,
        "confidence": rule.confidence,
        "steps": [step._asdict() for step in steps(rule)],
        "scores": list(rule.scores),
        "good": sorted(image.score for image in images if not image.defective),
        "defective": sorted(image.score for image in images if image.defective),
        "effects": asdict(effects(images, rule.threshold, rule.review_threshold)),
        "caution": IN_ADVANCE if rule.confidence is None else CONFIDENT,
    }


def summary(rule: Decision) -> str:
    """The rule in a sentence."""
    if rule.false_alarms is None:
        return "Decides by the likelier class, without a guaranteed rate."
    aside = f", at most {percent(rule.review)} flagged or put aside" if rule.review else ""
    return f"At most {percent(rule.false_alarms)} of good parts flagged{aside}."
