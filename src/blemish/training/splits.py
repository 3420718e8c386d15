"""Which images train, which calibrate and which test the detector, and the size that they are resized to."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data import layouts
from blemish.data.audit import Audit, audit
from blemish.data.content import preload
from blemish.data.split import Split, items, split
from blemish.data.unusable import explained, unusable
from blemish.detectors.interface import Traits
from blemish.images import read_size
from blemish.inference import calibration
from blemish.training.config import DecisionRule, SplitRule
from blemish.types import Progress, Sample, TooFewError, silent

PRELOADED = 2**29  # bytes of decoded images that are kept, so that they are decoded once
MOST_LEARNED = 0.99  # of the defects, where no good image is to be tested
FEW = 3  # with "auto", no images are held out if the threshold would have a rank below this among their scores
LEAST_AREA = 256 * 256  # pixels that even smaller images are enlarged to
_UNUSABLE = ("unreadable", "mask-unusable")


@dataclass(frozen=True)
class Data:
    """The usable images of a folder; `groups` are indices of near duplicates among them."""

    layout: str
    samples: list[Sample]
    groups: list[list[int]]
    warnings: tuple[str, ...]  # problems that the audit found
    files: dict[str, Any] = field(default_factory=dict)  # the sums of all files, as `data.checks.Files`
    unusable: str = ""  # how many more there are that cannot be used, in words


@dataclass(frozen=True)
class Divided:
    """The images by their use."""

    split: Split
    items: dict[str, str]  # the item by the sample's name
    left_out: bool  # calibrated by leave-one-out, so no images are held out
    warnings: tuple[str, ...] = ()  # if the threshold depends on a single part

    @property
    def kind(self) -> calibration.Kind:
        """How the threshold is calibrated."""
        return "leave-one-out" if self.left_out else "split"

    def without_tests(self, names: Collection[str]) -> Divided:
        """The same without the test images of these names."""
        kept = tuple(sample for sample in self.split.test if sample.name not in names)
        return replace(self, split=replace(self.split, test=kept))

    @property
    def calibrating(self) -> list[Sample]:
        """The good images whose scores set the threshold."""
        samples = self.split.train if self.left_out else self.split.calibration
        return [sample for sample in samples if sample.label != "anomaly"]


def read_data(folder: Path, layout: str = "auto", progress: Progress = silent, *, pooled: bool = False) -> Data:
    """Reads and audits a folder. `pooled` ignores the folder's own split. Raises `BlemishError` if it cannot be
    read."""
    dataset = layouts.read(folder, layout)
    checked = audit(dataset, progress)
    why_few = unusable(folder, dataset, checked)
    samples, groups = usable(dataset, checked)
    if pooled:
        samples = [replace(sample, split="") for sample in samples]
    samples = preload(samples, PRELOADED)
    warnings = tuple(problem.sentence for problem in checked.problems if problem.severity != "note")
    return Data(dataset.layout, samples, groups, warnings, asdict(checked.files), why_few)


def divide(data: Data, rule: SplitRule, decision: DecisionRule, traits: Traits) -> Divided:
    """Splits the images for a detector. Raises `BlemishError` if they are too few for the guarantee, and says why if
    that is because of images that cannot be used."""
    with explained(data.unusable):
        divided = _divide(data, rule, decision, traits)
        if traits.classifies and not any(sample.label == "anomaly" for sample in divided.split.train):
            raise TooFewError(
                f"{traits.title} learns from good and defective images, and among {len(divided.split.train)} training "
                "images there is no defective one; add some, or use --detector patchcore, which needs good ones only."
            )
    own = [sample.split for sample in divided.split.train if sample.label == "anomaly"]
    if moved := own.count("test"):
        left = sum(sample.label == "anomaly" for sample in divided.split.test)
        moving = (
            f"{moved} defective images of the folder's own test split are learned from, as its training split has "
            f"none; the figures are of the other {left}."
        )
        divided = replace(divided, warnings=(*divided.warnings, moving))
    return divided


def _divide(data: Data, rule: SplitRule, decision: DecisionRule, traits: Traits) -> Divided:
    item_of = items(data.samples, data.groups)

    def split_with(calibration_share: float, min_calibration: int) -> Split:
        return split(
            data.samples,
            seed=rule.seed,
            test=rule.test,
            calibration=calibration_share,
            min_calibration=min_calibration,
            groups=data.groups,
            anomalies_in_train=min(1 - rule.test, MOST_LEARNED) if traits.learns_from_defects else 0.0,
            anomalies_in_calibration=rule.calibration if traits.classifies else 0.0,
        )

    if leaves_one_out(rule, decision, traits):
        all_train = split_with(0.0, 0)
        held_out = rule.calibration * len({item_of[s.name] for s in all_train.train})
        if rule.calibrate == "leave-one-out" or decision.false_alarms * (held_out + 1) < FEW:
            divided = Divided(all_train, item_of, left_out=True)
            return replace(divided, warnings=tuple(_check_guarantee(divided, decision)))
    good = [item_of[sample.name] for sample in data.samples if sample.label != "anomaly"]
    per_item = math.ceil(len(good) / max(1, len(set(good))))
    least = (
        per_item * calibration.parts_needed(decision.false_alarms, decision.confidence) if decision.guaranteed else 0
    )
    divided = Divided(split_with(rule.calibration, least), item_of, left_out=False)
    return replace(divided, warnings=tuple(_check_guarantee(divided, decision)))


def leaves_one_out(rule: SplitRule, decision: DecisionRule, traits: Traits) -> bool:
    """Whether the threshold may come from leave-one-out scores of the training images."""
    return traits.leaves_one_out and decision.guaranteed and rule.calibrate != "split" and not decision.confidence


def _check_guarantee(divided: Divided, decision: DecisionRule) -> list[str]:
    """Returns warnings. Raises `BlemishError`, before any work, if the images are too few for the guarantee."""
    if not decision.guaranteed:
        return []
    samples = divided.calibrating
    count = len({divided.items[sample.name] for sample in samples})
    calibration.guarantee(
        len(samples),
        decision.false_alarms,
        confidence=decision.confidence,
        items=count,
        review=decision.review,
        kind=divided.kind,
    )
    if calibration.allowance(count, decision.false_alarms, decision.confidence) > 1:
        return []
    return [
        f"The threshold is the highest score of {count} good parts, so many defects may pass; add good parts, "
        "or ask for a higher --false-alarms."
    ]


def usable(dataset: layouts.Dataset, checked: Audit) -> tuple[list[Sample], list[list[int]]]:
    """The readable samples, without unusable masks, and the near-duplicate groups by their new indices."""
    names_of = {kind: {n for p in checked.problems if p.kind == kind for n in p.names} for kind in _UNUSABLE}
    kept = [i for i, sample in enumerate(dataset.samples) if sample.name not in names_of["unreadable"]]
    new_index = {old: new for new, old in enumerate(kept)}
    samples = [dataset.samples[i] for i in kept]
    samples = [replace(s, mask=None) if s.name in names_of["mask-unusable"] else s for s in samples]
    return samples, [[new_index[i] for i in group if i in new_index] for group in checked.groups]


def auto_size(samples: Sequence[Sample], area: int, multiple: int = 32) -> tuple[int, int]:
    """Height and width with about `area` pixels and the median aspect ratio of (about 200 of) the images, limited to
    1:4 and 4:1; both sides are multiples of `multiple`. Images are not enlarged beyond LEAST_AREA: there is nothing
    more to see."""
    sizes = [read_size(sample.path) for sample in samples[:: max(1, len(samples) // 200)]]
    own = float(np.median([width * height for width, height in sizes]))
    area = round(min(area, max(own, LEAST_AREA)))
    return shape_for(float(np.median([width / height for width, height in sizes])), area, multiple)


def shape_for(aspect: float, area: int, multiple: int = 32) -> tuple[int, int]:
    """Height and width for one aspect ratio, as in `auto_size`."""
    aspect = min(max(aspect, 0.25), 4)
    height = max(1, round((area / aspect) ** 0.5 / multiple)) * multiple
    return height, max(1, round(area / height / multiple)) * multiple
