"""Are the heatmaps faithful? A detector, as a black box, is run again on images with parts of them replaced.

Every measure is taken of the detector's own maps and of controls, maps made without the detector. The maps explain the
verdicts by a measure only where they beat every control. docs/faithfulness.md says how to read the result.
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

LARGEST_INPAINTED = 0.2  # share of the image up to which the inpainting rate is measured
FEWEST = 6  # images for a verdict: with fewer no sign test reaches 5 %
ADDS = 1.1  # mean standardised score of random replacement above which the replacement itself adds an anomaly

DETECTOR, MOVED, RANDOM = "detector", "the same region moved", "a random map"
MEASURES = ("deletion", "insertion", "road", "inpainting", "pointing", "energy")
LOWER = frozenset({"deletion"})  # lower is better
MARKED = frozenset({"pointing", "energy"})  # compared with the marked defect, not with the verdict


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure, named as in MEASURES: the detector's `value`, that of each control, and the `advantage` over each
    control: the mean paired difference, positive where the detector's maps are better. `beats` says of each control
    whether that is more than chance (`beaten`).

    `at_random` is the mean standardised score with random content replaced. Above 1, the replacement itself is an
    anomaly to this detector, and the measure cannot judge maps. `explains` is whether the maps beat every control;
    None = no verdict.
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


@dataclass(frozen=True, slots=True)
class InpaintingRate:
    """Share of images called good once the hottest `area` (0..1) is inpainted (Wilson's interval), share of them once
    the same region elsewhere is (mean over draws), their paired difference, and the share for each control's hottest
    area."""

    area: float
    hottest: Interval
    moved: Interval
    difference: Interval
    controls: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What was measured on `images` detected anomalies, of `asked` images tried, by `calls` of the detector.

    Scores are standardised for each image: (score - good_score) / (the image's own score - good_score), not clipped.
    `curves` are mean standardised scores by map and area, `areas` being the shares of the image taken out (deletion)
    or put back (insertion). `replaced` is the mean standardised score of wholly replaced images: far from 0, the
    replacement itself looks abnormal.
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
    inpainting: tuple[InpaintingRate, ...]
    curves: dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True, slots=True)
class _Anomaly:
    """A detected anomaly, at the size at which it is measured."""

    index: int
    image: Pixels
    mask: Mask | None
    score: float
    heat: Map


@dataclass(slots=True)
class _Counted:
    """A detector that counts its calls."""

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
    """Measures the maps of up to `most` anomalies, chosen evenly among those that `run` scores above `threshold`.

    Samples labelled good are left out. `good_score` is the median score of good images, `impute` replaces content (see
    imputation.py), and `randomised` is the same detector with random weights, of which only the map is used, as one
    more control (Adebayo et al. 2018, "Sanity Checks for Saliency Maps"). Images are reduced until no side exceeds
    `side` pixels: give the detector's own input size. `draws` is how often a region is moved. It takes about 27 calls
    for each of an image's 4 or 5 maps, and 15 more. Raises `BlemishError` where `good_score` is not below the
    threshold, or no image is called an anomaly.
    """
    if not good_score < threshold:
        raise BlemishError(
            f"The median score of good images ({good_score:.4g}) is not below the threshold ({threshold:.4g}), so "
            "there is no fall to measure; check the threshold."
        )
    counted = _Counted(run)
    anomalies, asked = _detected(samples, counted, threshold, most, side, progress)
    if not anomalies:
        raise BlemishError(
            f"None of {asked} images is called an anomaly at the threshold {threshold:.4g}; heatmaps are tested on "
            "anomalies, so give some that the detector finds."
        )
    other = None if randomised is None else _Counted(randomised)
    measured = [
        _measure(anomaly, counted, threshold, good_score, impute, other, draws, seed)
        for anomaly in progress(anomalies, "heatmaps", len(anomalies))
    ]
    calls = counted.calls + (other.calls if other else 0)
    return _summed(measured, asked, calls, threshold, good_score, seed)


def _detected(
    samples: Sequence[Sample], run: Detector, threshold: float, most: int, side: int, progress: Progress
) -> tuple[list[_Anomaly], int]:
    """The first `most` detected anomalies, in an order that is spread evenly wherever it ends (multiples of the golden
    ratio), and how many images were tried."""
    candidates = [i for i, sample in enumerate(samples) if sample.label != "good"]
    golden = np.arange(len(candidates)) * (5**0.5 - 1) / 2 % 1
    order = np.argsort(np.argsort(golden))
    anomalies, asked = list[_Anomaly](), 0
    for at in progress(order, "anomalies", len(order)):
        if len(anomalies) == most:
            break
        index = candidates[int(at)]
        image, mask = _load(samples[index], side)
        score, heat = run(image)
        asked += 1
        if score > threshold:
            anomalies.append(_Anomaly(index, image, mask, score, heat))
    return sorted(anomalies, key=lambda anomaly: anomaly.index), asked


def _load(sample: Sample, side: int) -> tuple[Pixels, Mask | None]:
    """The image and its mask, None for no defect, reduced until no side exceeds `side` pixels."""
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
    """Of one image, by map: each measure's value, the standardised curves with both ends, and whether (0, 1; for moved
    regions the share of draws) it is called good once each of A areas is inpainted (A,)."""

    values: dict[str, dict[str, float]]
    curves: dict[str, dict[str, Floats]]
    inpainted: dict[str, Floats]
    replaced: float
    at_random: dict[str, float]


def _measure(
    anomaly: _Anomaly,
    run: Detector,
    threshold: float,
    good_score: float,
    impute: Imputer,
    randomised: Detector | None,
    draws: int,
    seed: int,
) -> _Measured:
    image, shape = anomaly.image, (anomaly.image.shape[0], anomaly.image.shape[1])

    def standardised(scores: Any) -> Any:
        return (scores - good_score) / (anomaly.score - good_score)

    replaced = run(impute(image, np.ones(shape, bool)))[0]
    few = [area for area in AREAS if area <= LARGEST_INPAINTED]
    maps = {DETECTOR: anomaly.heat, **_controls(anomaly, randomised, np.random.default_rng([seed, anomaly.index]))}
    values: dict[str, dict[str, float]] = {measure: {} for measure in MEASURES}
    curves: dict[str, dict[str, Floats]] = {"deletion": {}, "insertion": {}}
    inpainted, at_random = dict[str, Floats](), dict[str, float]()
    for number, (name, heat) in enumerate(maps.items()):
        random = np.random.default_rng([seed, anomaly.index, number])
        ranks = ranked(heat, shape, random)
        out, back = deletion(run, image, ranks, impute), insertion(run, image, ranks, impute)
        curves["deletion"][name] = standardised(np.array([anomaly.score, *out, replaced]))
        curves["insertion"][name] = standardised(np.array([replaced, *back, anomaly.score]))
        for measure, curve in curves.items():
            values[measure][name] = area_under((0, *AREAS, 1), curve[name])
        least, most = standardised(road(run, image, ranks, random)).mean(1)
        values["road"][name] = float(least - most)
        inpainted[name] = (out[: len(few)] <= threshold).astype(np.float64)
        if anomaly.mask is not None:
            values["pointing"][name] = float(pointing(heat, anomaly.mask))
            values["energy"][name] = energy_inside(heat, anomaly.mask)
        if name == DETECTOR:
            elsewhere = np.array(
                [[run(impute(image, moved(hottest(ranks, a), random)))[0] for _ in range(draws)] for a in few]
            )
            inpainted[MOVED] = (elsewhere <= threshold).mean(1)
            at_random["inpainting"] = float(standardised(elsewhere).mean())
        elif name == RANDOM:
            at_random["road"] = float(least + most) / 2
            at_random["deletion"] = at_random["insertion"] = values["deletion"][name]
    values["inpainting"] = {name: float(good.mean()) for name, good in inpainted.items()}
    return _Measured(values, curves, inpainted, standardised(replaced), at_random)


def _controls(anomaly: _Anomaly, randomised: Detector | None, random: np.random.Generator) -> dict[str, Map]:
    shape = (anomaly.image.shape[0], anomaly.image.shape[1])
    maps = {RANDOM: random_map(shape, random), "a centre blob": centre_map(shape)}
    maps["an edge detector"] = edge_map(anomaly.image)
    if randomised is not None:
        maps["randomised weights"] = randomised(anomaly.image)[1]
    return maps


def _means(columns: Mapping[str, Floats], seed: int) -> dict[str, Interval]:
    """Means of (n,) values over images, with bootstrap intervals."""
    images = len(next(iter(columns.values())))
    return intervals(lambda w: {name: w @ column / w.sum(1) for name, column in columns.items()}, images, seed=seed)


def _summed(
    measured: Sequence[_Measured], asked: int, calls: int, threshold: float, good_score: float, seed: int
) -> Faithfulness:
    replaced = _means({"": np.array([of_image.replaced for of_image in measured])}, seed)[""]
    measures = []
    for name in MEASURES:
        probe = np.array([of_image.at_random[name] for of_image in measured if name in of_image.at_random])
        at_random = _means({"": probe}, seed)[""] if len(probe) else None
        measures.append(_compared(name, [of_image.values[name] for of_image in measured], at_random, seed))
    names = measured[0].curves["deletion"]
    curves = {
        kind: {name: tuple(np.mean([m.curves[kind][name] for m in measured], 0).tolist()) for name in names}
        for kind in ("deletion", "insertion")
    }
    return Faithfulness(
        images=len(measured),
        asked=asked,
        masks=sum(bool(of_image.values["pointing"]) for of_image in measured),
        calls=calls,
        threshold=threshold,
        good_score=good_score,
        areas=(0.0, *AREAS, 1.0),
        replaced=replaced,
        measures=tuple(measures),
        inpainting=tuple(_inpainting_rates([of_image.inpainted for of_image in measured], seed)),
        curves=curves,
    )


def _inpainting_rates(inpainted: Sequence[Mapping[str, Floats]], seed: int) -> list[InpaintingRate]:
    rates = []
    for k, area in enumerate(area for area in AREAS if area <= LARGEST_INPAINTED):
        good = {name: np.array([of_image[name][k] for of_image in inpainted]) for name in inpainted[0]}
        means = _means({"moved": good[MOVED], "difference": good[DETECTOR] - good[MOVED]}, seed)
        shares = {n: wilson(int(column.sum()), len(column)) for n, column in good.items() if n != MOVED}
        rates.append(InpaintingRate(area, shares.pop(DETECTOR), means["moved"], means["difference"], shares))
    return rates


def _compared(name: str, values: Sequence[Mapping[str, float]], at_random: Interval | None, seed: int) -> Measure:
    """A measure's figures and verdict from its values by map, {} for images that have none."""
    values = [of_image for of_image in values if of_image]
    columns = {key: np.array([of_image[key] for of_image in values]) for key in (values[0] if values else {})}
    own = columns.pop(DETECTOR, np.empty(0))
    sign = -1 if name in LOWER else 1
    means = dict[str, Interval]()
    if values:
        ahead = {f"ahead of {key}": sign * (own - column) for key, column in columns.items()}
        means = _means({DETECTOR: own, **columns, **ahead}, seed)
    advantage = {key: means[f"ahead of {key}"] for key in columns}
    beats = {key: beaten(interval, len(values)) for key, interval in advantage.items()}
    return Measure(
        name=name,
        lower_is_better=name in LOWER,
        images=len(values),
        value=means.get(DETECTOR, Interval(None)),
        controls={key: means[key] for key in columns},
        advantage=advantage,
        beats=beats,
        at_random=at_random,
        explains=None if len(values) < FEWEST or adds_anomaly(at_random) else all(beats.values()),
    )


def beaten(advantage: Interval, images: int) -> bool | None:
    """Whether a paired advantage over a control is more than chance: its 95 % interval lies above 0.

    Where all differences are equal there is no interval; then 6 of one sign are enough (two-sided sign test,
    2 / 2^6 = 3 %). None for fewer than 6 images, or where the advantage is undefined.

    >>> beaten(Interval(0.2, 0.1, 0.3), images=9), beaten(Interval(0.2, -0.1, 0.4), images=9)
    (True, False)
    """
    if images < FEWEST or advantage.value is None:
        return None
    return (advantage.value if advantage.low is None else advantage.low) > 0


def adds_anomaly(at_random: Interval | None) -> bool:
    """Whether random replacement certainly raises the standardised score, to more than 1.1: the lower end of the
    interval, or the value where there is none, lies above that."""
    if at_random is None or at_random.value is None:
        return False
    return (at_random.value if at_random.low is None else at_random.low) > ADDS
