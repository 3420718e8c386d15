"""Which detector a folder's images call for: PatchCore from good images alone, or the hybrid where there are defects to
learn from. Light: torch is not loaded, so that `blemish data` can say it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blemish.inference.calibration import parts_needed
from blemish.types import Sample

FEWEST_DEFECTS = 10  # items: of fewer, cross-validation cannot tell whether they help
FEWEST_GOOD = 3  # times as many good items as must be held out for the threshold
NORMAL, LEARNING = "patchcore", "hybrid"


class Choice(NamedTuple):
    """A detector's name, and why, in one sentence."""

    detector: str
    sentence: str


def choose(
    samples: Sequence[Sample], *, test: float = 0.2, false_alarms: float = 0.05, confidence: float | None = None
) -> Choice:
    """The detector for these images. `test` is the share that is only tested where the folder has no test split of its
    own; `false_alarms` and `confidence` are those of the guarantee, which takes good images from learning.

    >>> from pathlib import Path
    >>> choose([Sample(Path("1.png"), "1.png", "good")]).sentence
    'There are no defective images to learn from, so the detector is patchcore, which needs good images alone.'
    """
    divided = any(sample.split for sample in samples)
    open_to = [sample for sample in samples if not divided or sample.split != "test"]
    bad = [sample for sample in open_to if sample.label == "anomaly"]
    good = {sample.group or sample.name for sample in open_to if sample.label != "anomaly"}
    items = len({sample.group or sample.name for sample in bad}) * (1 if divided else 1 - test)
    goods = len(good) * (1 if divided else 1 - test)
    tested = sum(sample.label == "anomaly" for sample in samples) - len(bad)
    because = f"so the detector is {NORMAL}, which needs good images alone"
    if not bad and tested:
        return Choice(NORMAL, f"All {tested} defective images are in the folder's own test split, {because}.")
    if not bad:
        return Choice(NORMAL, f"There are no defective images to learn from, {because}.")
    masks = sum(sample.mask is not None for sample in bad)
    what = f"{len(bad)} defective image{'s' if len(bad) > 1 else ''}" + (f", {masks} with masks" if masks else "")
    if items < FEWEST_DEFECTS:
        least = f"fewer than {FEWEST_DEFECTS} of them (or of their items) could be learned from"
        return Choice(NORMAL, f"{what}: {least}, {because}; the defects test it.")
    if goods < FEWEST_GOOD * parts_needed(false_alarms, confidence):
        return Choice(
            NORMAL,
            f"{what}, but {len(good)} good images (or items) are too few to hold some out for the threshold, {because}"
            "; the defects test it.",
        )
    return Choice(
        LEARNING,
        f"{what}: the detector is {LEARNING}, which learns from good and defective images"
        + ("." if divided else f", and is tested on {test:.0%} of both."),
    )
