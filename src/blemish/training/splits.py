"""Which images teach, which calibrate and which test, and at what size they are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from blemish.data import layouts
from blemish.data.audit import Audit, audit
from blemish.data.split import Split, items, split
from blemish.images import read_size
from blemish.inference import calibration
from blemish.types import Progress, Sample, silent

if TYPE_CHECKING:
    from blemish.training.pipeline import TrainConfig

FROM_BOTH = ("cam",)  # learn from defective images too
FEW = 3  # rank of the held-out score that sets the threshold; below it none is held out where that can be helped
_UNUSABLE = ("unreadable", "mask-unusable")


class Divided(NamedTuple):
    """A folder's usable images and their parts; `groups` are indices of near duplicates among `samples`."""

    layout: str
    samples: list[Sample]
    groups: list[list[int]]
    parts: Split
    items: dict[str, str]  # of each sample's name
    left_out: bool  # calibrated by leaving one out, so that nothing is held out
    warnings: tuple[str, ...]  # where the threshold hangs on one part; what the audit has to say


def divide(config: TrainConfig, progress: Progress = silent) -> Divided:
    """Reads, audits and splits the folder as `train` does. Raises `BlemishError` where its images cannot support the
    guarantee."""
    both, guarantee = config.detector in FROM_BOTH, config.decide == "guarantee"
    dataset = layouts.read(config.data, config.layout)
    checked = audit(dataset, progress)
    samples, groups = usable(dataset, checked)
    if config.pooled:
        samples = [replace(sample, split="") for sample in samples]
    named = items(samples, groups)

    def divided(calibrating: float, least: int) -> Split:
        return split(
            samples,
            seed=config.seed,
            test=config.test,
            calibration=calibrating,
            min_calibration=least,
            groups=groups,
            anomalies_in_train=1 - config.test if both else 0.0,
            anomalies_in_calibration=config.calibration if both else 0.0,
        )

    left = False
    if guarantee and config.detector == "patchcore" and config.calibrate != "split" and not config.confidence:
        parts = divided(0.0, 0)
        held_out = config.calibration * len({named[s.name] for s in parts.train})
        left = config.calibrate == "leave-one-out" or config.false_alarms * (held_out + 1) < FEW
    if not left:
        good = [named[sample.name] for sample in samples if sample.label != "anomaly"]
        each = math.ceil(len(good) / max(1, len(set(good))))  # images of an item
        least = each * calibration.parts_needed(config.false_alarms, config.confidence) if guarantee else 0
        parts = divided(config.calibration, least)
    warnings: list[str] = []
    if guarantee:  # refuses before the work, not after
        those = [sample for sample in (parts.train if left else parts.calibration) if sample.label != "anomaly"]
        count = len({named[sample.name] for sample in those})
        calibration.guarantee(
            len(those),
            config.false_alarms,
            confidence=config.confidence,
            items=count,
            review=config.review,
            kind="leave-one-out" if left else "split",
        )
        if calibration.allowance(count, config.false_alarms, config.confidence) == 1:
            warnings.append(
                f"The oddest of {count} good parts alone sets the threshold, so many defects may pass; add good parts, "
                "or ask for a higher --false-alarms."
            )
    warnings += [problem.sentence for problem in checked.problems if problem.severity != "note"]
    return Divided(dataset.layout, samples, groups, parts, named, left, tuple(warnings))


def usable(dataset: layouts.Dataset, checked: Audit) -> tuple[list[Sample], list[list[int]]]:
    """The samples that can be read, without masks that cannot, and the near-duplicate groups by their new indices."""
    of_kind = {kind: {n for p in checked.problems if p.kind == kind for n in p.names} for kind in _UNUSABLE}
    kept = [i for i, sample in enumerate(dataset.samples) if sample.name not in of_kind["unreadable"]]
    new = {old: index for index, old in enumerate(kept)}
    samples = [dataset.samples[i] for i in kept]
    samples = [replace(s, mask=None) if s.name in of_kind["mask-unusable"] else s for s in samples]
    return samples, [[new[i] for i in group if i in new] for group in checked.groups]


def auto_size(samples: Sequence[Sample], area: int = 256 * 256, multiple: int = 32) -> tuple[int, int]:
    """Height and width with about `area` pixels and the images' usual aspect, so that parts keep their shape.

    The median aspect of (at most 200) images, kept within 1:4 and 4:1; sides are multiples of `multiple`.
    """
    sizes = [read_size(sample.path) for sample in samples[:: max(1, len(samples) // 200)]]
    return shape_for(float(np.median([width / height for width, height in sizes])), area, multiple)


def shape_for(aspect: float, area: int, multiple: int = 32) -> tuple[int, int]:
    """Height and width for one aspect, as `auto_size`."""
    aspect = min(max(aspect, 0.25), 4)
    height = max(1, round((area / aspect) ** 0.5 / multiple)) * multiple
    return height, max(1, round(area / height / multiple)) * multiple
