"""Which detector a folder's images call for: PatchCore from good images alone, or the hybrid where there are defects to
learn from. Light: torch is not loaded, so that `blemish data` can say it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from blemish.inference.calibration import parts_needed
from blemish.types import Sample

FEWEST_DEFECTS = 10  # items to learn from: of fewer, cross-validation hardly tells whether they help
ANYWAY = "give --detector"  # how the command line learns with another detector than the one chosen
RANK = 2  # that the threshold has at least among the good items held out: the very highest is a matter of chance
NORMAL, LEARNING = "patchcore", "hybrid"


class Choice(NamedTuple):
    """A detector's name, and why, in one sentence."""

    detector: str
    sentence: str


class Found(NamedTuple):
    """What decides, of a folder's images. All but `tested` are those that are open to learning: not of the folder's own
    test split."""

    defective: int  # images
    masks: int  # of them
    defective_items: int
    good_items: int  # that have no defective image
    most: int  # defective images of one type, at most
    tested: int  # defective images of the folder's own test split
    divided: bool  # whether it has one


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
    open_to = [sample for sample in samples if not divided or sample.split != "test"]
    bad = [sample for sample in open_to if sample.label == "anomaly"]
    defective = {sample.item for sample in bad}
    found = Found(
        defective=len(bad),
        masks=sum(sample.mask is not None for sample in bad),
        defective_items=len(defective),
        good_items=len({sample.item for sample in open_to if sample.label != "anomaly"} - defective),
        most=max(Counter(sample.defect for sample in bad).values(), default=0),
        tested=sum(sample.label == "anomaly" for sample in samples) - len(bad),
        divided=divided,
    )
    return chosen(found, test=test, calibration=calibration, false_alarms=false_alarms, confidence=confidence)


def chosen(
    found: Found,
    *,
    test: float = 0.2,
    calibration: float = 0.2,
    false_alarms: float = 0.05,
    confidence: float | None = None,
) -> Choice:
    """`choose`, of images that are counted already."""
    bad, divided, good = found.defective, found.divided, found.good_items
    learned = 1.0 if divided else 1 - test
    because = f"so the detector is {NORMAL}, which needs good images alone"
    if not bad and found.tested:
        return Choice(NORMAL, f"All {found.tested} defective images are in the folder's own test split, {because}.")
    if not bad:
        return Choice(NORMAL, f"There are no defective images to learn from, {because}.")
    what = f"{bad} defective image{'s' if bad > 1 else ''}" + (f", {found.masks} with masks" if found.masks else "")
    if found.defective_items * learned < FEWEST_DEFECTS:
        least = f"fewer than {FEWEST_DEFECTS} of them (or of their items) could be learned from"
        return Choice(NORMAL, f"{what}: {least}, {because}; the defects test it.")
    if not divided and (test == 0 or found.most * test < 1):
        return Choice(NORMAL, f"{what}, of which none would be left to test, {because}; the defects test it.")
    if good * learned * calibration < (fewest := _held_out(false_alarms, confidence)):
        needed = ceil(fewest / (learned * calibration)) if learned * calibration else "more"
        few = f"{what}, but {good} good images (or items) are too few to hold out {fewest} of them for the threshold"
        anyway = f"{ANYWAY} {LEARNING} to learn from the defects all the same"
        return Choice(NORMAL, f"{few} ({needed} are needed), {because}; {anyway}.")
    others = "" if divided else ", and is tested on those that it does not learn from"
    return Choice(LEARNING, f"{what}: the detector is {LEARNING}, which learns from good and defective images{others}.")


def _held_out(false_alarms: float, confidence: float | None) -> int:
    """Good items to hold out, so that the threshold has at least `RANK` among them: floor(rate (n + 1)) >= RANK; with a
    confidence that many times as many as it needs at least."""
    if confidence is not None:
        return RANK * parts_needed(false_alarms, confidence)
    return RANK * (parts_needed(false_alarms) + 1) - 1
