"""Which images are learned from, which calibrate and which test, and at what size they are seen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from blemish.data import layouts
from blemish.data.audit import Audit, audit
from blemish.data.split import Split, items, split
from blemish.detectors.interface import Traits
from blemish.images import preload, read_size
from blemish.inference import calibration
from blemish.training.config import DecisionRule, SplitRule
from blemish.types import Progress, Sample, silent

PRELOADED = 2**29  # bytes of images that are decoded once and kept, instead of once for each step
FEW = 3  # rank of the held-out score that sets the threshold; below it none is held out where that can be helped
_UNUSABLE = ("unreadable", "mask-unusable")


@dataclass(frozen=True)
class Data:
    """A folder's usable images; `groups` are indices of near duplicates among them."""

    layout: str
    samples: list[Sample]
    groups: list[list[int]]
    warnings: tuple[str, ...]  # what the audit has to say


@dataclass(frozen=True)
class Divided:
    """The images by what they are for."""

    split: Split
    items: dict[str, str]  # of each sample's name
    left_out: bool  # calibrated by leaving one out, so that nothing is held out
    warnings: tuple[str, ...] = ()  # where the threshold hangs on one part

    @property
    def kind(self) -> calibration.Kind:
        """How the threshold is calibrated."""
        return "leave-one-out" if self.left_out else "split"

    def without_tests(self, names: Collection[str]) -> Divided:
        """Without some test images."""
        kept = tuple(sample for sample in self.split.test if sample.name not in names)
        return replace(self, split=replace(self.split, test=kept))

    @property
    def calibrating(self) -> list[Sample]:
        """The good images whose scores set the threshold."""
        those = self.split.train if self.left_out else self.split.calibration
        return [sample for sample in those if sample.label != "anomaly"]


def read_data(folder: Path, layout: str = "auto", progress: Progress = silent, *, pooled: bool = False) -> Data:
    """Reads and audits a folder. `pooled` forgets its own train and test. Raises `BlemishError` where it cannot."""
    dataset = layouts.read(folder, layout)
    checked = audit(dataset, progress)
    samples, groups = usable(dataset, checked)
    if pooled:
        samples = [replace(sample, split="") for sample in samples]
    samples = preload(samples, PRELOADED)
    warnings = tuple(problem.sentence for problem in checked.problems if problem.severity != "note")
    return Data(dataset.layout, samples, groups, warnings)


def divide(data: Data, rule: SplitRule, decision: DecisionRule, traits: Traits) -> Divided:
    """Divides the images for a detector. Raises `BlemishError` where they cannot support the guarantee."""
    named = items(data.samples, data.groups)

    def divided(calibrating: float, least: int) -> Split:
        return split(
            data.samples,
            seed=rule.seed,
            test=rule.test,
            calibration=calibrating,
            min_calibration=least,
            groups=data.groups,
            anomalies_in_train=1 - rule.test if traits.learns_from_defects else 0.0,
            anomalies_in_calibration=rule.calibration if traits.learns_from_defects else 0.0,
        )

    if leaves_one_out(rule, decision, traits):
        parts = divided(0.0, 0)
        held_out = rule.calibration * len({named[s.name] for s in parts.train})
        if rule.calibrate == "leave-one-out" or decision.false_alarms * (held_out + 1) < FEW:
            found = Divided(parts, named, left_out=True)
            return replace(found, warnings=tuple(_guaranteed(found, decision)))
    good = [named[sample.name] for sample in data.samples if sample.label != "anomaly"]
    each = math.ceil(len(good) / max(1, len(set(good))))  # images of an item
    least = each * calibration.parts_needed(decision.false_alarms, decision.confidence) if decision.guaranteed else 0
    found = Divided(divided(rule.calibration, least), named, left_out=False)
    return replace(found, warnings=tuple(_guaranteed(found, decision)))


def leaves_one_out(rule: SplitRule, decision: DecisionRule, traits: Traits) -> bool:
    """Whether the threshold may come from scores of the training images, each without its own item."""
    return traits.leaves_one_out and decision.guaranteed and rule.calibrate != "split" and not decision.confidence


def _guaranteed(divided: Divided, decision: DecisionRule) -> list[str]:
    """What there is to warn of. Refuses, before the work, what these images cannot guarantee."""
    if not decision.guaranteed:
        return []
    those = divided.calibrating
    count = len({divided.items[sample.name] for sample in those})
    calibration.guarantee(
        len(those),
        decision.false_alarms,
        confidence=decision.confidence,
        items=count,
        review=decision.review,
        kind=divided.kind,
    )
    if calibration.allowance(count, decision.false_alarms, decision.confidence) > 1:
        return []
    return [
        f"The highest score of {count} good parts alone sets the threshold, so many defects may pass; add good parts, "
        "or ask for a higher --false-alarms."
    ]


def usable(dataset: layouts.Dataset, checked: Audit) -> tuple[list[Sample], list[list[int]]]:
    """The samples that can be read, without masks that cannot, and the near-duplicate groups by their new indices."""
    of_kind = {kind: {n for p in checked.problems if p.kind == kind for n in p.names} for kind in _UNUSABLE}
    kept = [i for i, sample in enumerate(dataset.samples) if sample.name not in of_kind["unreadable"]]
    new = {old: index for index, old in enumerate(kept)}
    samples = [dataset.samples[i] for i in kept]
    samples = [replace(s, mask=None) if s.name in of_kind["mask-unusable"] else s for s in samples]
    return samples, [[new[i] for i in group if i in new] for group in checked.groups]


def auto_size(samples: Sequence[Sample], area: int = 256 * 256, multiple: int = 32) -> tuple[int, int]:
    """Height and width with about `area` pixels and the images' median aspect, so that parts keep their shape.

    The median aspect of (at most 200) images, kept within 1:4 and 4:1; sides are multiples of `multiple`.
    """
    sizes = [read_size(sample.path) for sample in samples[:: max(1, len(samples) // 200)]]
    return shape_for(float(np.median([width / height for width, height in sizes])), area, multiple)


def shape_for(aspect: float, area: int, multiple: int = 32) -> tuple[int, int]:
    """Height and width for one aspect, as `auto_size`."""
    aspect = min(max(aspect, 0.25), 4)
    height = max(1, round((area / aspect) ** 0.5 / multiple)) * multiple
    return height, max(1, round(area / height / multiple)) * multiple
