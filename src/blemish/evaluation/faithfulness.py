"""Are the heatmaps true? A detector as a black box is asked again with parts of its images taken out.

Every measure is taken of the detector's own maps and of maps that know nothing of the detector (controls); maps that
are not better than each of these are said not to explain. docs/faithfulness.md says how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from blemish.evaluation.bootstrap import Interval, intervals, wilson
from blemish.evaluation.imputation import Floats, Imputer, Pixels
from blemish.evaluation.localisation import Map, Mask, reduce_mask
from blemish.evaluation.relevance import (
    AREAS,
    Detector,
    area_under,
    centre_map,
    deletion,
    edge_map,
    energy_inside,
    hottest,
    insertion,
    moved,
    pointing,
    random_map,
    ranked,
    road,
)
from blemish.images import load_image, load_mask
from blemish.types import BlemishError, Progress, Sample, silent

INPAINTED = 0.2  # up to this area a repair counts as one
FEWEST = 6  # images for a verdict: with fewer no sign test reaches 5 %, however clear they are
ADDS = 1.1  # standardised score from which on taking content out at random is said to add an anomaly

DETECTOR, MOVED, RANDOM = "detector", "the same region moved", "a random map"
MEASURES = {
    "deletion": "Deletion",
    "insertion": "Insertion",
    "road": "ROAD",
    "inpainting": "Repair rate",
    "pointing": "Pointing game",
    "energy": "Energy inside the mask",
}
LOWER = frozenset({"deletion"})  # of which less is better
MARKED = frozenset({"pointing", "energy"})  # which ask for the marked defect, not for the verdict


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: the detector's `value`, the same of each control, and `advantage` over each: the mean paired
    difference, positive where the detector's maps are better.

    `at_random` is the mean standardised score with content taken out at random. Above 1, what is put in its place is
    itself an anomaly to this detector, and the measure says nothing of maps. `explains` is None for no verdict.
    """

    name: str
    lower_is_better: bool
    images: int
    value: Interval
    controls: dict[str, Interval]
    advantage: dict[str, Interval]
    beats: dict[str, bool | None]
    at_random: Interval | None
    explains: bool | None
    sentence: str


@dataclass(frozen=True, slots=True)
class InpaintedRate:
    """Share of images called good once the hottest `area` is inpainted (Wilson's interval), once the same region
    somewhere else is (mean over draws), and the paired difference; and of each control's hottest area."""

    area: float
    hottest: Interval
    moved: Interval
    difference: Interval
    controls: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What was measured on `images` detected anomalies of `asked` looked at, by `calls` of the detector.

    Scores are standardised by image: 0 = `good_score`, 1 = its own score; they are clipped nowhere. `curves` are mean
    scores by map and area, `areas` being shares of the image taken out (deletion) or put back (insertion).
    `replaced` is the mean score of wholly replaced images: far from 0, the repair itself looks abnormal.
    """

    images: int
    asked: int
    masks: int
    calls: int
    threshold: float
    good_score: float
    areas: tuple[float, ...]
    replaced: Interval
    measures: tuple[Measure, ...]
    impute: tuple[InpaintedRate, ...]
    curves: dict[str, dict[str, tuple[float, ...]]]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A detected anomaly, reduced to the size at which it is measured."""

    index: int
    image: Pixels
    mask: Mask | None
    score: float
    heat: Map


@dataclass(slots=True)
class _Counted:
    run: Detector
    calls: int = 0

    def __call__(self, image: Pixels) -> tuple[float, Map]:
        self.calls += 1
        score, heat = self.run(image)
        return float(score), np.asarray(heat, np.float32)


def faithfulness(
    samples: Sequence[Sample],
    run: Detector,
    threshold: float,
    good_score: float,
    *,
    impute: Imputer,
    randomised: Detector | None = None,
    most: int = 50,
    side: int = 256,
    draws: int = 3,
    seed: int = 0,
    progress: Progress = silent,
) -> Faithfulness:
    """Measures the maps of up to `most` anomalies, evenly chosen among those that `run` scores above `threshold`.

    Samples labelled good are left out. `good_score` is the median score of good images. `impute` takes content out;
    see repair.py. `randomised` is the same detector with random weights (Adebayo et al. 2018), of which only the map is
    taken. Images are first reduced until no side is over `side` pixels: give the size that the detector looks at.
    `draws` is how often a region is moved. It takes about 27 calls for each of the 4 or 5 maps of an image, and 15
    more. Raises BlemishError where `good_score` is no good one's, or no image is called an anomaly.
    """
    if not good_score < threshold:
        raise BlemishError(
            f"The median score of good images ({good_score:.4g}) is not below the threshold ({threshold:.4g}), so "
            "there is no fall to measure; check the threshold."
        )
    counted = _Counted(run)
    found, asked = _detected(samples, counted, threshold, most, side, progress)
    if not found:
        raise BlemishError(
            f"None of {asked} images is called an anomaly at the threshold {threshold:.4g}; heatmaps are tested on "
            "anomalies, so give some that the detector finds."
        )
    other = None if randomised is None else _Counted(randomised)
    measured = [
        _measure(item, counted, threshold, good_score, impute, other, draws, seed)
        for item in progress(found, "heatmaps", len(found))
    ]
    calls = counted.calls + (other.calls if other else 0)
    return _summed(measured, asked, calls, threshold, good_score, seed)


def _detected(
    samples: Sequence[Sample], run: Detector, threshold: float, most: int, side: int, progress: Progress
) -> tuple[list[_Found], int]:
    """The first `most` detected anomalies in an order that is spread evenly however soon it ends, and how many were
    looked at."""
    candidates = [i for i, sample in enumerate(samples) if sample.label != "good"]
    golden = np.arange(len(candidates)) * (5**0.5 - 1) / 2 % 1
    order = np.argsort(np.argsort(golden))
    found, asked = list[_Found](), 0
    for at in progress(order, "anomalies", len(order)):
        if len(found) == most:
            break
        index = candidates[int(at)]
        image, mask = _load(samples[index], side)
        score, heat = run(image)
        asked += 1
        if score > threshold:
            found.append(_Found(index, image, mask, score, heat))
    return sorted(found, key=lambda item: item.index), asked


def _load(sample: Sample, side: int) -> tuple[Pixels, Mask | None]:
    image = load_image(sample.path)
    height, width = image.shape[:2]
    mask = None if sample.mask is None else load_mask(sample.mask, (height, width))
    factor = min(1.0, side / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if factor < 1:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        mask = None if mask is None else reduce_mask(mask, size)
    return image, mask if mask is not None and mask.any() else None


@dataclass(frozen=True, slots=True)
class _Measured:
    """Of one image, by map: each measure's value, the standardised curves with both ends, and what is called good
    after repairs of (A,) areas; of regions moved, the share of draws."""

    values: dict[str, dict[str, float]]
    curves: dict[str, dict[str, Floats]]
    inpainted: dict[str, Floats]
    replaced: float
    at_random: dict[str, float]


def _measure(
    item: _Found,
    run: Detector,
    threshold: float,
    good_score: float,
    impute: Imputer,
    randomised: Detector | None,
    draws: int,
    seed: int,
) -> _Measured:
    image, shape = item.image, (item.image.shape[0], item.image.shape[1])

    def standardised(scores: Any) -> Any:
        return (scores - good_score) / (item.score - good_score)

    replaced = run(impute(image, np.ones(shape, bool)))[0]
    few = [area for area in AREAS if area <= INPAINTED]
    maps = {DETECTOR: item.heat, **_controls(item, randomised, np.random.default_rng([seed, item.index]))}
    values: dict[str, dict[str, float]] = {measure: {} for measure in MEASURES}
    curves: dict[str, dict[str, Floats]] = {"deletion": {}, "insertion": {}}
    inpainted, at_random = dict[str, Floats](), dict[str, float]()
    for number, (name, heat) in enumerate(maps.items()):
        random = np.random.default_rng([seed, item.index, number])
        ranks = ranked(heat, shape, random)
        out, back = deletion(run, image, ranks, impute), insertion(run, image, ranks, impute)
        curves["deletion"][name] = standardised(np.array([item.score, *out, replaced]))
        curves["insertion"][name] = standardised(np.array([replaced, *back, item.score]))
        for measure, curve in curves.items():
            values[measure][name] = area_under((0, *AREAS, 1), curve[name])
        least, most = standardised(road(run, image, ranks, random)).mean(1)
        values["road"][name] = float(least - most)
        inpainted[name] = (out[: len(few)] <= threshold).astype(np.float64)
        if item.mask is not None:
            values["pointing"][name] = float(pointing(heat, item.mask))
            values["energy"][name] = energy_inside(heat, item.mask)
        if name == DETECTOR:
            again = [[run(impute(image, moved(hottest(ranks, a), random)))[0] for _ in range(draws)] for a in few]
            inpainted[MOVED] = (np.array(again) <= threshold).mean(1)
            at_random["inpainting"] = float(standardised(np.array(again)).mean())
        elif name == RANDOM:
            at_random["road"] = float(least + most) / 2
            at_random["deletion"] = at_random["insertion"] = values["deletion"][name]
    values["inpainting"] = {name: float(good.mean()) for name, good in inpainted.items()}
    return _Measured(values, curves, inpainted, standardised(replaced), at_random)


def _controls(item: _Found, randomised: Detector | None, random: np.random.Generator) -> dict[str, Map]:
    shape = (item.image.shape[0], item.image.shape[1])
    maps = {RANDOM: random_map(shape, random), "a centre blob": centre_map(shape)}
    maps["an edge detector"] = edge_map(item.image)
    if randomised is not None:
        maps["randomised weights"] = randomised(item.image)[1]
    return maps


def _means(columns: Mapping[str, Floats], seed: int) -> dict[str, Interval]:
    """Means of (n,) values over images, with bootstrap intervals."""
    images = len(next(iter(columns.values())))
    return intervals(lambda w: {name: w @ column / w.sum(1) for name, column in columns.items()}, images, seed=seed)


def _summed(
    measured: Sequence[_Measured], asked: int, calls: int, threshold: float, good_score: float, seed: int
) -> Faithfulness:
    replaced = _means({"": np.array([one.replaced for one in measured])}, seed)[""]
    measures = []
    for name in MEASURES:
        probe = np.array([one.at_random[name] for one in measured if name in one.at_random])
        at_random = _means({"": probe}, seed)[""] if len(probe) else None
        measures.append(_compared(name, [one.values[name] for one in measured], at_random, seed))
    masks = sum(bool(one.values["pointing"]) for one in measured)
    names = measured[0].curves["deletion"]
    curves = {
        kind: {name: tuple(np.mean([one.curves[kind][name] for one in measured], 0).tolist()) for name in names}
        for kind in ("deletion", "insertion")
    }
    told = [one for one in measures if one.explains is not None]
    said = (
        f"{len(measured)} detected anomalies of {asked} looked at, {calls} calls of the detector: by "
        f"{sum(bool(one.explains) for one in told)} of {len(told)} measures the heatmaps beat every control.",
        *(one.sentence for one in measures),
    )
    return Faithfulness(
        images=len(measured),
        asked=asked,
        masks=masks,
        calls=calls,
        threshold=threshold,
        good_score=good_score,
        areas=(0.0, *AREAS, 1.0),
        replaced=replaced,
        measures=tuple(measures),
        impute=tuple(_inpainted_rates([one.inpainted for one in measured], seed)),
        curves=curves,
        sentences=said,
    )


def _inpainted_rates(inpainted: Sequence[Mapping[str, Floats]], seed: int) -> list[InpaintedRate]:
    rates = []
    for k, area in enumerate(area for area in AREAS if area <= INPAINTED):
        good = {name: np.array([one[name][k] for one in inpainted]) for name in inpainted[0]}
        means = _means({"moved": good[MOVED], "difference": good[DETECTOR] - good[MOVED]}, seed)
        shares = {n: wilson(int(column.sum()), len(column)) for n, column in good.items() if n != MOVED}
        rates.append(InpaintedRate(area, shares.pop(DETECTOR), means["moved"], means["difference"], shares))
    return rates


def _compared(name: str, values: Sequence[Mapping[str, float]], at_random: Interval | None, seed: int) -> Measure:
    """A measure's figures and verdict from its values by map, {} for images that have none."""
    values = [one for one in values if one]
    columns = {key: np.array([one[key] for one in values]) for key in (values[0] if values else {})}
    own = columns.pop(DETECTOR, np.empty(0))
    sign = -1 if name in LOWER else 1
    means = dict[str, Interval]()
    if values:
        ahead = {f"ahead of {key}": sign * (own - column) for key, column in columns.items()}
        means = _means({DETECTOR: own, **columns, **ahead}, seed)
    controls = {key: means[key] for key in columns}
    advantage = {key: means[f"ahead of {key}"] for key in columns}
    beats = {key: beaten(interval, len(values)) for key, interval in advantage.items()}
    value = means.get(DETECTOR, Interval(None))
    claim = "point at the defects" if name in MARKED else "explain the verdicts"
    explains = None if len(values) < FEWEST or _adds(at_random) else all(beats.values())
    if len(values) < FEWEST:
        said = f"no verdict, as it was measured on {len(values)} images; it takes {FEWEST}."
    elif _adds(at_random):
        said = (
            f"no verdict, as taking content out at random raises the score (to {at_random}; 1 = the image's own): "
            "what is put in its place is itself an anomaly to this detector."
        )
    elif explains:
        others = ", ".join(f"{key} {interval.value:.3f}" for key, interval in controls.items())
        said = f"the heatmaps {claim}; {value}, better than each control ({others})."
    else:
        equals = ", ".join(f"{key} (advantage {advantage[key]})" for key, better in beats.items() if not better)
        said = f"the heatmaps do not {claim}; {value}, not better than {equals}."
    return Measure(
        name=name,
        lower_is_better=name in LOWER,
        images=len(values),
        value=value,
        controls=controls,
        advantage=advantage,
        beats=beats,
        at_random=at_random,
        explains=explains,
        sentence=f"{MEASURES[name]}: {said}",
    )


def beaten(advantage: Interval, images: int) -> bool | None:
    """Whether a paired advantage is above chance: its interval lies above 0. Where all differences are the same there
    is no interval; then 6 of one sign are enough (two-sided sign test, 2 / 2^6 = 3 %). Fewer images say nothing."""
    if images < FEWEST or advantage.value is None:
        return None
    return (advantage.value if advantage.low is None else advantage.low) > 0


def _adds(at_random: Interval | None) -> bool:
    if at_random is None or at_random.value is None:
        return False
    return (at_random.value if at_random.low is None else at_random.low) > ADDS
