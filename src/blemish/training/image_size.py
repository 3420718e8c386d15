"""Chooses the image size from the data, within a latency budget (`--budget`): the smallest size that finds small
synthetic defects in good training images about as well as the best one does."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from blemish.data.corrupt import corrupt
from blemish.detectors.interface import DetectorConfig, Traits
from blemish.evaluation.detection import auroc
from blemish.images import decode
from blemish.training.config import FrameRule
from blemish.training.export import export, in_onnxruntime
from blemish.training.splits import auto_size
from blemish.types import BlemishError, Progress, Runner, Sample, silent

T = TypeVar("T")
AREAS = (256 * 256, 384 * 384, 512 * 512)  # pixels of the candidates
FITTED, SCORED = 40, 20  # images, at most
FEWEST_ITEMS = 4
# Shares of the image that a synthetic defect covers; each scored image gets one copy for each.
DEFECTS = ((0.0002, 0.0005), (0.0005, 0.0015), (0.0015, 0.005))
TOLERANCE = 0.01  # of AUROC below the best, for which a smaller size is taken
TIMED = 7  # runs, after one to warm up


@dataclass(frozen=True)
class Candidate:
    """One size (height, width): milliseconds for one image, and the AUROC of good images against their copies with
    defects; None for a size over the budget, which is not scored."""

    image_size: tuple[int, int]
    ms: float
    auroc: float | None


@dataclass(frozen=True)
class Choice:
    """The chosen size (height, width), and what it was chosen from."""

    image_size: tuple[int, int]
    budget: float  # milliseconds
    candidates: tuple[Candidate, ...]
    fitted: int  # images that each candidate learned from
    scored: int  # good images that it scored, each with len(DEFECTS) copies

    @property
    def sentence(self) -> str:
        tried = "; ".join(
            f"{shown(tried.image_size)}: {tried.ms:.0f} ms, "
            + ("over the budget" if tried.auroc is None else f"AUROC {tried.auroc:.3f}")
            for tried in self.candidates
        )
        return (
            f"Image size {shown(self.image_size)}, chosen within {self.budget:g} ms by synthetic defects in "
            f"{self.scored} training images ({tried})."
        )

    def to_json(self) -> dict[str, Any]:
        """The entry `image_size` of metrics.json."""
        known = asdict(self)
        return {"chosen": known.pop("image_size"), **known, "sentence": self.sentence}


def check(budget: float | None, image_size: tuple[int, int] | None, rule: FrameRule, traits: Traits) -> None:
    """Raises `BlemishError`, before any work, where a budget cannot choose the size."""
    if budget is None:
        return
    if not (math.isfinite(budget) and budget > 0):
        raise BlemishError(f"--budget {budget:g} is no time; give the milliseconds that one image may take.")
    if traits.learns_from_defects or traits.trained_by_gradient:
        raise BlemishError(
            f"{traits.name} would have to be trained once for each image size, so --budget cannot choose one; give "
            "--image-size."
        )
    if image_size:
        raise BlemishError("--budget chooses the image size and --image-size gives it; omit one of them.")
    if rule.asked:
        raise BlemishError(
            "--budget chooses a size for whole images as they are; omit it with --tile, --roi or --align."
        )


def choose_size(
    samples: Sequence[Sample],
    items: dict[str, str],
    settings: DetectorConfig,
    budget: float,
    progress: Progress = silent,
) -> Choice:
    """Tries the sizes of about `AREAS` pixels, the smallest first, until one takes more than `budget` milliseconds, and
    chooses the smallest whose AUROC is within `TOLERANCE` of the best. For each, a detector with `settings` learns from
    a part of the training images `samples`, and scores others, of other items (`items`, by image name).

    Raises `BlemishError` for too few items, and where even the smallest size is over the budget.
    """
    good = [replace(sample, group=items[sample.name]) for sample in samples if sample.label != "anomaly"]
    learned, scored = parted(good, items)
    candidates: list[Candidate] = []
    sizes = sorted({auto_size(good, area) for area in AREAS}, key=lambda size: size[0] * size[1])
    for size in progress(sizes, "image size", len(sizes)):
        run = _runner(replace(settings, image_size=size), learned)  # type: ignore[type-var]
        ms = milliseconds(run, scored[0])
        if ms > budget:
            candidates.append(Candidate(size, round(ms, 1), None))
            break
        candidates.append(Candidate(size, round(ms, 1), round(separation(run, scored, settings.seed), 4)))
    return Choice(_chosen(candidates, budget), budget, tuple(candidates), len(learned), len(scored))


def _chosen(candidates: Sequence[Candidate], budget: float) -> tuple[int, int]:
    measured = [(tried.auroc, tried.image_size) for tried in candidates if tried.auroc is not None]
    if not measured:
        smallest = candidates[0]
        raise BlemishError(
            f"--budget {budget:g} ms is not enough: one image of {shown(smallest.image_size)} takes {smallest.ms:.1f} "
            "ms here; allow more, or give a smaller --image-size, --max-bank or --backbone."
        )
    best = max(value for value, _ in measured)
    return next(size for value, size in measured if value >= best - TOLERANCE)


def parted(samples: Sequence[Sample], items: dict[str, str]) -> tuple[list[Sample], list[Sample]]:
    """The images to learn from, and those to score: at most `FITTED` and `SCORED`, evenly chosen, of different items. A
    third of the items is scored, unless that gives more than `SCORED` images. Raises `BlemishError` for fewer than
    `FEWEST_ITEMS` items."""
    names = list(dict.fromkeys(items[sample.name] for sample in samples))
    if len(names) < FEWEST_ITEMS:
        raise BlemishError(
            f"{len(names)} good parts to learn from are too few to choose an image size from; add good images, or give "
            "--image-size instead of --budget."
        )
    held_out = set(_evenly(names, min(SCORED, len(names) // 3)))
    learned = [sample for sample in samples if items[sample.name] not in held_out]
    scored = [sample for sample in samples if items[sample.name] in held_out]
    return _evenly(learned, FITTED), _evenly(scored, SCORED)


def _evenly(values: list[T], most: int) -> list[T]:
    count = min(most, len(values))
    return [values[i * len(values) // count] for i in range(count)]


def _runner(settings: DetectorConfig, samples: Sequence[Sample]) -> Runner:
    """A detector that learned from `samples`, exported, as inference runs it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export(settings.build().fit(samples).graph(), file)
        return in_onnxruntime(file)


def milliseconds(run: Runner, sample: Sample) -> float:
    """The median time of the graph on one image, which is decoded already."""
    image = decode(sample)[None]
    seconds = []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[1:]))


def separation(run: Runner, samples: Sequence[Sample], seed: int) -> float:
    """Image AUROC of `samples` against copies of them, each with one small defect. The same seed gives the same copies,
    so all sizes are compared on the same defects. One image is held in memory at a time."""
    scores, defective = list[float](), list[bool]()
    for number, sample in enumerate(samples):
        image = decode(sample)
        random = np.random.default_rng([seed, number])
        for pixels in (image, *(corrupt(image, random, area=area).image for area in DEFECTS)):
            scores.append(float(run(pixels[None]).scores[0]))
            defective.append(pixels is not image)
    return auroc(np.array(scores), np.array(defective))


def shown(size: tuple[int, int]) -> str:
    """As `--image-size` takes it."""
    return f"{size[0]}x{size[1]}"
