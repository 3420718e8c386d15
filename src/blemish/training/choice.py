"""Which detector a folder's images call for: PatchCore from good images alone, or the hybrid where there are defects to
learn from. Light: torch is not loaded, so that `blemish data` can say it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from blemish.inference.calibration import parts_needed
from blemish.types import Sample

FEWEST_DEFECTS = 10  # items to learn from: of fewer, cross-validation hardly tells whether they help
RANK = 2  # that the threshold has at least among the good items held out: the very highest is a matter of chance
NORMAL, LEARNING = "patchcore", "hybrid"


class Choice(NamedTuple):
    """A detector's name, and why, in one sentence."""

    detector: str
    sentence: str


def choose(
    samples: Sequence[Sample],
    *,
    test: float = 0.2,
    calibration: float = 0.2,
    false_alarms: float = 0.05,
    confidence: float | None = None,
) -> Choice:
    """The detector for these images. `test` is the share that is only tested where the folder has no test split of its
    own, `calibration` the share of the other good ones that is held out for the threshold; `false_alarms` and
    `confidence` are those of the guarantee. Items are counted, and good ones only where they have no defective image.

    >>> from pathlib import Path
    >>> choose([Sample(Path("1.png"), "1.png", "good")]).sentence
    'There are no defective images to learn from, so the detector is patchcore, which needs good images alone.'
    """
    divided = any(sample.split for sample in samples)
    learned = 1.0 if divided else 1 - test
    open_to = [sample for sample in samples if not divided or sample.split != "test"]
    bad = [sample for sample in open_to if sample.label == "anomaly"]
    defective = {sample.item for sample in bad}
    good = {sample.item for sample in open_to if sample.label != "anomaly"} - defective
    tested = sum(sample.label == "anomaly" for sample in samples) - len(bad)
    because = f"so the detector is {NORMAL}, which needs good images alone"
    if not bad and tested:
        return Choice(NORMAL, f"All {tested} defective images are in the folder's own test split, {because}.")
    if not bad:
        return Choice(NORMAL, f"There are no defective images to learn from, {because}.")
    masks = sum(sample.mask is not None for sample in bad)
    what = f"{len(bad)} defective image{'s' if len(bad) > 1 else ''}" + (f", {masks} with masks" if masks else "")
    if len(defective) * learned < FEWEST_DEFECTS:
        least = f"fewer than {FEWEST_DEFECTS} of them (or of their items) could be learned from"
        return Choice(NORMAL, f"{what}: {least}, {because}; the defects test it.")
    types = Counter(sample.defect for sample in bad)
    if not divided and (test == 0 or max(types.values()) * test < 1):
        return Choice(NORMAL, f"{what}, of which none would be left to test, {because}; the defects test it.")
    if len(good) * learned * calibration < _held_out(false_alarms, confidence):
        few = f"{what}, but {len(good)} good images (or items) are too few to hold out enough of them for the threshold"
        return Choice(NORMAL, f"{few}, {because}; --detector {LEARNING} learns from them even so.")
    others = "" if divided else ", and is tested on those that it does not learn from"
    return Choice(LEARNING, f"{what}: the detector is {LEARNING}, which learns from good and defective images{others}.")


def _held_out(false_alarms: float, confidence: float | None) -> int:
    """Good items to hold out, so that the threshold has at least `RANK` among them: floor(rate (n + 1)) >= RANK; with a
    confidence that many times as many as it needs at least."""
    if confidence is not None:
        return RANK * parts_needed(false_alarms, confidence)
    return RANK * (parts_needed(false_alarms) + 1) - 1
