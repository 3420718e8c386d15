"""A verdict, and why a place was flagged or not, in sentences for people."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from blemish.inference.bundle import Decision
from blemish.inference.evidence import NO_EVIDENCE
from blemish.inference.inspector import Inspection, p_value_of
from blemish.inference.nearest_normal import NearestNormal
from blemish.inference.regions import ONE, foot
from blemish.reporting.figures import number, p_value, percent, probability
from blemish.reporting.run import outcome_of
from blemish.types import BlemishError, Region
from blemish.web.tables import Verdict

AGREEMENT = {  # by the keys of reporting.run.OUTCOMES
    "missed": "Missed: it is labelled as an anomaly, and was called good.",
    "false-alarm": "False alarm: it is labelled good, and was called an anomaly.",
    "found": "Label and verdict agree: an anomaly, and found.",
    "passed": "Label and verdict agree: good.",
    "unlabelled": "Nobody has labelled it yet.",
    "error": "Not judged.",
}
ELSEWHERE = "Called an anomaly, but not at the labelled place: no box touches a labelled shape."
LEFT_OUT = "The image that it comes from did not fit into the bundle, see blemish train --evidence-size."


@dataclass(frozen=True)
class Why:
    """A place of an image: what the anomaly map says there, against the threshold for places.

    `flagged` is whether it lies in a box, which reaches further than the threshold does, see `level`. `p_value` is the
    share of good images whose map gets as high anywhere. `nearest` is None for detectors that have no memory bank.
    """

    at: tuple[int, int]
    value: float
    threshold: float
    p_value: float | None
    flagged: bool
    nearest: NearestNormal | None
    sentences: tuple[str, ...]


def verdict_sentence(verdict: Verdict, rule: Decision | None) -> str:
    """The verdict in one sentence or two; `rule` is that of its bundle, None where that is gone."""
    if verdict.decision == "error":
        return f"Not judged: {verdict.error}"
    score, threshold = number(verdict.score), number(verdict.threshold)
    if verdict.probability is not None:
        words = _classified(verdict, score, threshold)
    elif verdict.decision == "review":
        middle = number(rule.review_threshold) if rule and rule.review_threshold is not None else None
        bounds = f"between {middle} and {threshold}" if middle else f"just below the threshold {threshold}"
        words = f"Put aside for review: its score {score} lies {bounds}"
    elif verdict.decision == "anomaly":
        words = f"Called an anomaly: its score {score} is above the threshold {threshold}"
    else:
        words = f"Called good: its score {score} is not above the threshold {threshold}"
    if verdict.p_value is not None:
        words += f"; {_as_high(verdict.p_value, rule, 'scored as high')}"
    return _unbroken(words + ".")


def _classified(verdict: Verdict, score: str, threshold: str) -> str:
    kind = f", most likely {verdict.defect}" if verdict.defect else ""
    called = {"anomaly": "Called an anomaly", "review": "Put aside for review"}.get(verdict.decision, "Called good")
    side = "above" if verdict.decision == "anomaly" else "not above"
    return (
        f"{called}{kind}: the probability of a defect is {probability(verdict.probability)} (score {score}, {side} the "
        f"threshold {threshold})"
    )


def agreement(verdict: Verdict) -> str:
    """Label against verdict."""
    outcome, label = outcome_of(verdict.decision, verdict.image.label), verdict.image.label
    if outcome == "found" and _elsewhere(verdict):
        return ELSEWHERE
    if outcome != "review":
        return AGREEMENT[outcome]
    labelled = {"good": "labelled good", "anomaly": "labelled as an anomaly"}.get(label or "", "without a label yet")
    return f"The detector left the decision to a person; it is {labelled}."


def _elsewhere(verdict: Verdict) -> bool:
    """Whether none of the verdict's boxes touches the box around a labelled shape; of masks it is not asked."""
    labelled = []
    for shape in verdict.image.shapes:
        xs, ys = zip(*shape["points"], strict=True)
        labelled.append((min(xs), min(ys), max(xs), max(ys)))
    boxes = [region["box"] for region in verdict.regions]
    touching = any(
        left <= far and near <= right and top <= low and high <= bottom
        for left, top, right, bottom in boxes
        for near, high, far, low in labelled
    )
    return bool(labelled) and bool(boxes) and not touching


def why(
    inspection: Inspection, rule: Decision, nearest: NearestNormal | None, at: tuple[int, int], *, has_store: bool
) -> Why:
    """Why the place (x, y), in pixels of the original image, was flagged or not; `nearest` is what `nearest_normal`
    gives of it, `has_store` whether the bundle carries normal images. Raises `BlemishError` where the image has no such
    place."""
    verdict, anomaly_map, (x, y) = inspection.verdict, inspection.map, at
    assert anomaly_map is not None
    assert verdict.size is not None
    width, height = verdict.size
    if not (0 <= x < width and 0 <= y < height):
        raise BlemishError(f"The image has {width} x {height} pixels, so there is no place {x}, {y}.")
    rows, columns = anomaly_map.shape
    value = float(anomaly_map[y * rows // height, x * columns // width])
    around = next((one for one in verdict.regions if _holds(one, at)), None)
    p = p_value_of(rule, "map_maxima", value)
    place = Why(at, value, rule.pixel_threshold, p, around is not None, nearest, ())
    box = around or next(iter(verdict.regions), None)
    down_to = level(box, rule, anomaly_map) if box else None
    sentences = (*_on_the_map(place, rule, box, down_to), _on_the_patch(place, rule, has_store=has_store))
    return replace(place, sentences=tuple(map(_unbroken, sentences)))


def _holds(region: Region, at: tuple[int, int]) -> bool:
    (left, top, right, bottom), (x, y) = region.box, at
    return left <= x < right and top <= y < bottom


def level(region: Region, rule: Decision, anomaly_map: npt.NDArray[np.float32]) -> float:
    """The value of the map down to which a region goes; the box is the rectangle around that."""
    if rule.boxes == "one":
        low, high = float(anomaly_map.min()), float(anomaly_map.max())
        return low + ONE * (high - low)
    return foot(region.peak, rule.pixel_threshold, rule.normal_median)


def _on_the_map(place: Why, rule: Decision, box: Region | None, down_to: float | None) -> list[str]:
    """`box` is the one that holds the place, else the first one, and `down_to` its level; None where there is none."""
    (x, y), high = place.at, place.value >= place.threshold
    side = "at or above" if high else "below"
    measured = f"the map is {number(place.value)} here, {side} the threshold for places, {number(place.threshold)}"
    is_in = f"The place {x}, {y} {'is inside a box' if place.flagged else 'has no box'}"
    if place.flagged == high:
        words = [f"{is_in}: {measured}."]
    elif box is None or down_to is None:
        # The threshold for places is one of the highest values of good images, so a good image may reach it.
        words = [f"{is_in}, since the image as a whole was called good: {measured}."]
    else:
        which, edge = "The" if place.flagged else "The first", number(down_to)
        against = "at or above" if place.value >= down_to else "below"
        words = [
            f"{is_in}, though {measured}.",
            f"{which} box is drawn around its peak, {number(box.peak)}, and what is connected to it down to {edge}; "
            f"the map here is {against} that.",
        ]
    if place.p_value is not None:
        said = _as_high(place.p_value, rule, "got as high anywhere")
        words.append(f"{said[0].upper()}{said[1:]}.")
    return words


def _on_the_patch(place: Why, rule: Decision, *, has_store: bool) -> str:
    nearest = place.nearest
    if nearest is None:
        return "This detector compares with no normal patches, so the map against its threshold is all that there is."
    words = f"The nearest normal patch is {distance(nearest.distance, nearest.p_value, rule)}"
    if nearest.source:
        return f"{words}. It comes from {nearest.source}."
    return f"{words}. {LEFT_OUT if has_store else NO_EVIDENCE}"


def distance(value: float, p: float | None, rule: Decision) -> str:
    """How far from all normal patches a patch is, and of how many good images the farthest one is as far."""
    words = f"at distance {number(value)}"
    if p is None or not rule.distances:
        return words
    return _unbroken(f"{words}; {_as_high(p, rule, 'had a patch as far from all normal ones')}")


def _as_high(p: float, rule: Decision | None, did: str) -> str:
    """What a p-value counts, among the good images that set the threshold: p = (1 + those as high) / (1 + all), see
    `calibration.p_values`. Where several show one item, items are counted, each by the share of its images."""
    n = len(set(rule.items) or rule.scores) if rule else 0
    if not n:  # the bundle is gone, and with it how many there were
        return f"its p-value among good images is p {_equals(p)}"
    things = "good items" if rule and rule.items else "good images"
    count = p * (n + 1) - 1
    if count < 1e-6:
        return (
            f"none of the {n} {things} that set the threshold {did} (p {_equals(p)}, the smallest that {n} "
            f"{things.removeprefix('good ')} can give)"
        )
    if abs(count - round(count)) < 1e-6:
        return f"{round(count)} of the {n} {things} that set the threshold {did} (p {_equals(p)})"
    return f"{percent(count / n)} of the {n} {things} that set the threshold {did} (p {_equals(p)})"


def _unbroken(words: str) -> str:
    """With spaces that no line ends at, before % and within "p = 0.050"."""
    return re.sub(r"\bp ([=<]) ", "p\u00a0\\1\u00a0", words.replace(" %", "\u00a0%"))


def _equals(p: float) -> str:
    written = p_value(p)
    return written if written.startswith("<") else f"= {written}"
