"""Which images train, which calibrate, which test: the same on every machine, for the same seed and names.

Images are placed in units: those of one item (`Sample.group`) and near duplicates stay together. Units are ranked
by the SHA-256 of "seed:name", so neither the order of the listing nor a library's random generator matters.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blemish.data.grouping import connected
from blemish.types import BlemishError, Sample, TooFewError

Unit = list[Sample]


@dataclass(frozen=True)
class Split:
    """The samples of each split, sorted by name. `train` and `calibration` hold good (or unlabelled) images, unless
    anomalies were asked for there. `unused` are anomalies that may be in no split, because images of the same item,
    or near duplicates, are in `train` or `calibration`."""

    train: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    test: tuple[Sample, ...]
    unused: tuple[Sample, ...] = ()


def split(
    samples: Sequence[Sample],
    *,
    seed: int = 0,
    test: float = 0.2,
    calibration: float = 0.2,
    min_calibration: int = 0,
    groups: Sequence[Sequence[int]] = (),
    anomalies_in_train: float = 0.0,
    anomalies_in_calibration: float = 0.0,
) -> Split:
    """Divide `samples`; `groups` are indices of samples that must stay together besides those of one item.

    `test` is a share of the labelled good images. It is ignored where the data set has a test split of its own, which
    is kept even where an item is in both of its splits (`audit` reports that). All anomalies go to the test split, and
    units that hold both kinds go there first. `calibration` is a share of the good images outside the test split;
    `min_calibration` raises it, at most to half of them. A unit is never divided, so splits can be smaller than their
    share. `anomalies_in_train` moves this share of each defect type, with its units, to `train`; where the training
    split of the data set has anomalies of its own, it means all of those. `anomalies_in_calibration` moves this share
    of each defect type of these on to `calibration`, with its units.
    Raises BlemishError for shares outside 0..1 and where a split would be left empty.
    """
    shares = {"test": test, "calibration": calibration, "anomalies_in_train": anomalies_in_train}
    for what, share in (shares | {"anomalies_in_calibration": anomalies_in_calibration}).items():
        if not 0 <= share < 1:
            raise BlemishError(f"The share {what} is {share}; it must be at least 0 and below 1.")
    units = _units(samples, groups, str(seed))
    has_test = any(sample.split == "test" for sample in samples)
    if own := [u for u in units if any(s.split == "train" and s.label == "anomaly" for s in u)]:
        anomalous = own if anomalies_in_train else []
    else:
        anomalous = _anomalous_units(units, anomalies_in_train)
    in_train = _names(anomalous)
    held_out = _names(_anomalous_units(anomalous, anomalies_in_calibration))
    rest = [unit for unit in units if unit[0].name not in in_train]
    if has_test:
        in_test = {sample.name for unit in rest for sample in unit if sample.split == "test"}
    else:
        good = sum(sample.label == "good" for sample in samples)
        in_test = _names(_test_units(rest, _share(test, good)))

    pool = [[sample for sample in unit if _is_good(sample) and sample.name not in in_test] for unit in rest]
    pool = [unit for unit in pool if unit]
    size = sum(map(len, pool))
    wanted = max(_share(calibration, size), min(min_calibration, size // 2))
    in_calibration = _names(_fill(pool, wanted))
    in_train = (in_train | _names(pool)) - in_calibration - held_out
    in_calibration |= held_out

    by_name = sorted(samples, key=lambda sample: sample.name)
    unused = {sample.name for sample in samples} - in_train - in_calibration - in_test
    chosen = (in_train, in_calibration, in_test, unused)
    result = Split(*(tuple(sample for sample in by_name if sample.name in names) for names in chosen))
    _refuse_empty(result, calibration > 0 or min_calibration > 0, test > 0 and not has_test, len(samples))
    return result


def kfold(
    samples: Sequence[Sample],
    folds: int,
    *,
    seed: int = 0,
    repeat: int = 1,
    groups: Sequence[Sequence[int]] = (),
) -> list[tuple[tuple[Sample, ...], tuple[Sample, ...]]]:
    """`repeat` times `folds` pairs (train, test): in each repetition every sample is tested exactly once.

    Good images and every defect type are spread evenly (within one image where units are single images).
    The data set's own splits are ignored. Raises BlemishError for fewer than 2 folds or too few good units.
    """
    if folds < 2 or repeat < 1:
        raise BlemishError(f"Got {folds} folds, {repeat} times; there must be at least 2 folds, at least once.")
    pairs = []
    by_name = sorted(samples, key=lambda sample: sample.name)
    for repetition in range(repeat):
        units = _units(samples, groups, f"{seed}/{repetition}")
        if (good := sum(any(map(_is_good, unit)) for unit in units)) < folds:
            raise TooFewError(
                f"There are {good} good images (or items) for {folds} folds; add good images or take fewer folds."
            )
        for in_test in _folds(units, folds):
            train = tuple(sample for sample in by_name if sample.name not in in_test)
            pairs.append((train, tuple(sample for sample in by_name if sample.name in in_test)))
    return pairs


def items(samples: Sequence[Sample], groups: Sequence[Sequence[int]] = ()) -> dict[str, str]:
    """The item of each sample, by the sample's name; samples that stay together in a split have the same item."""
    return {sample.name: unit[0].name for unit in _units(samples, groups, "") for sample in unit}


def _units(samples: Sequence[Sample], groups: Sequence[Sequence[int]], seed: str) -> list[Unit]:
    """Samples that stay together, in the order of their rank: connected components of items and groups."""
    keys = [sample.item for sample in samples]
    of_item: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        of_item.setdefault(key, []).append(index)
    # A unit has the smallest of its items' names, whatever the order of the samples.
    units = {
        min(keys[i] for i in members): [samples[i] for i in members]
        for members in connected(len(samples), [*of_item.values(), *groups])
    }
    return [units[name] for name in sorted(units, key=lambda name: _rank(seed, name))]


def _names(units: Iterable[Unit]) -> set[str]:
    return {sample.name for unit in units for sample in unit}


def _rank(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _is_good(sample: Sample) -> bool:
    return sample.label != "anomaly"  # unlabelled images are taken for good


def _share(share: float, count: int) -> int:
    """At least one where anything is asked for; halves are rounded up on every machine alike."""
    return max(1, math.floor(share * count + 0.5)) if share > 0 and count else 0


def _fill(units: Iterable[Unit], wanted: int) -> list[Unit]:
    """Units by rank as long as they fit into `wanted` samples; the smallest one if none does."""
    units = list(units)
    chosen: list[Unit] = []
    count = 0
    for unit in units:
        if count + len(unit) <= wanted:
            chosen.append(unit)
            count += len(unit)
    return chosen or ([min(units, key=len)] if units and wanted else [])


def _anomalous_units(units: list[Unit], share: float) -> list[Unit]:
    """Units that together hold `share` of the anomalies of each defect type."""
    chosen: list[Unit] = []
    taken: set[str] = set()
    totals = Counter(sample.defect for unit in units for sample in unit if not _is_good(sample))
    for defect in sorted(totals):
        wanted = _share(share, totals[defect])
        count = sum(_anomalies(unit, defect) for unit in chosen)
        for unit in units:
            if unit[0].name not in taken and 0 < _anomalies(unit, defect) <= wanted - count:
                chosen.append(unit)
                taken.add(unit[0].name)
                count += _anomalies(unit, defect)
    return chosen


def _anomalies(unit: Unit, defect: str) -> int:
    return sum(not _is_good(sample) and sample.defect == defect for sample in unit)


def _test_units(units: list[Unit], wanted: int) -> list[Unit]:
    """Units without good images, and units with `wanted` good images: first those that hold anomalies too, so that as
    few anomalies as possible are lost because their item is in `train`."""
    anomalous, good = [], []
    for unit in units:
        if not any(map(_is_good, unit)):
            anomalous.append(unit)
        elif all(sample.label for sample in unit):  # a verdict on an unlabelled image is neither right nor wrong
            good.append(unit)
    good.sort(key=lambda unit: all(map(_is_good, unit)))  # stable: ranks stay
    chosen, count = [], 0
    for unit in good:
        size = sum(map(_is_good, unit))
        if count + size <= wanted:
            chosen.append(unit)
            count += size
    if not chosen and good and wanted:
        chosen = [min(good, key=len)]
    return anomalous + chosen


def _folds(units: list[Unit], folds: int) -> list[set[str]]:
    """Large units first, each to the fold that has the smallest share of its kinds so far, then the fewest samples."""
    totals = Counter(sample.defect for unit in units for sample in unit)
    placed = [Counter[str]() for _ in range(folds)]
    names: list[set[str]] = [set() for _ in range(folds)]
    for unit in sorted(units, key=len, reverse=True):
        kinds = Counter(sample.defect for sample in unit)
        fold = min(
            range(folds),
            key=lambda f: (sum(n * placed[f][kind] / totals[kind] for kind, n in kinds.items()), len(names[f])),
        )
        placed[fold] += kinds
        names[fold] |= _names([unit])
    return names


def _refuse_empty(result: Split, calibrated: bool, tested: bool, count: int) -> None:
    placed = result.train + result.calibration + result.test
    empty = [] if any(map(_is_good, result.train)) else ["training"]
    empty += ["calibration"] if calibrated and not result.calibration else []
    labelled = any(sample.label for sample in placed)
    empty += ["test"] if tested and labelled and not any(map(_is_good, result.test)) else []
    if empty:
        raise TooFewError(
            f"Of {count} images {sum(map(_is_good, placed))} are good, which leaves none for {' and '.join(empty)}; "
            "add good images (of different items, where images are grouped by item)."
        )
