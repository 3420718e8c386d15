"""Which images teach, which calibrate, which test: the same on every machine, for the same seed and names.

Images are placed in units: those of one item (`Sample.group`) and near duplicates stay together. Units are ranked
by the SHA-256 of "seed:name", so neither the order of the listing nor a library's random generator matters.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blemish.types import BlemishError, Sample


@dataclass(frozen=True)
class Split:
    """Each part sorted by name. `train` and `calibration` hold good (or unlabelled) images, unless anomalies were
    asked for there. `unused` are anomalies that no part may hold, because images of the same item, or near
    duplicates, are in `train` or `calibration`."""

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

    `test` is a share of the labelled good images; it is ignored where the data set says what its test part is,
    which is kept even where an item is on both of its sides (`audit` says so). All anomalies go to the test part,
    and units that hold both kinds go there first. `calibration` is a share of the good images outside the test
    part; `min_calibration` raises it, at most to half of them. A unit is never cut, so parts can be smaller than
    their share. `anomalies_in_train` moves this share of each defect type, with its unit, to `train`; where the
    training part of the data set has anomalies of its own, it means all of those. `anomalies_in_calibration` takes this
    share of each defect type of these on to `calibration`, with its unit.
    Raises BlemishError for shares outside 0..1 and where a part would be left empty.
    """
    shares = {"test": test, "calibration": calibration, "anomalies_in_train": anomalies_in_train}
    for what, share in (shares | {"anomalies_in_calibration": anomalies_in_calibration}).items():
        if not 0 <= share < 1:
            raise BlemishError(f"The share {what} is {share}; it must be at least 0 and below 1.")
    units = _units(samples, groups, str(seed))
    given = any(sample.part == "test" for sample in samples)
    if own := [u for u in units if any(s.part == "train" and s.label == "anomaly" for s in u)]:
        teaching = own if anomalies_in_train else []
    else:
        teaching = _anomalous_units(units, anomalies_in_train)
    taught = {sample.name for unit in teaching for sample in unit}
    held_out = {s.name for unit in _anomalous_units(teaching, anomalies_in_calibration) for s in unit}
    rest = [unit for unit in units if unit[0].name not in taught]
    if given:
        tested = {sample.name for unit in rest for sample in unit if sample.part == "test"}
    else:
        good = sum(sample.label == "good" for sample in samples)
        tested = {sample.name for unit in _test_units(rest, _share(test, good)) for sample in unit}

    pool = [[sample for sample in unit if _may_teach(sample) and sample.name not in tested] for unit in rest]
    pool = [unit for unit in pool if unit]
    size = sum(map(len, pool))
    wanted = max(_share(calibration, size), min(min_calibration, size // 2))
    calibrating = {sample.name for unit in _fill(pool, wanted) for sample in unit}
    taught = (taught | {sample.name for unit in pool for sample in unit}) - calibrating - held_out
    calibrating |= held_out

    by_name = sorted(samples, key=lambda sample: sample.name)
    unused = {sample.name for sample in samples} - taught - calibrating - tested
    result = Split(*(tuple(s for s in by_name if s.name in names) for names in (taught, calibrating, tested, unused)))
    _refuse_empty(result, calibration > 0 or min_calibration > 0, test > 0 and not given, len(samples))
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
    The data set's own parts are ignored. Raises BlemishError for fewer than 2 folds or too few good units.
    """
    if folds < 2 or repeat < 1:
        raise BlemishError(f"Got {folds} folds, {repeat} times; there must be at least 2 folds, at least once.")
    pairs = []
    by_name = sorted(samples, key=lambda sample: sample.name)
    for repetition in range(repeat):
        units = _units(samples, groups, f"{seed}/{repetition}")
        if (good := sum(any(map(_may_teach, unit)) for unit in units)) < folds:
            raise BlemishError(
                f"There are {good} good images (or items) for {folds} folds; add good images or take fewer folds."
            )
        for tested in _folds(units, folds):
            train = tuple(sample for sample in by_name if sample.name not in tested)
            pairs.append((train, tuple(sample for sample in by_name if sample.name in tested)))
    return pairs


def items(samples: Sequence[Sample], groups: Sequence[Sequence[int]] = ()) -> dict[str, str]:
    """Of each sample's name the item that it shows; samples that stay together in a split show one."""
    return {sample.name: unit[0].name for unit in _units(samples, groups, "") for sample in unit}


Unit = list[Sample]


def _units(samples: Sequence[Sample], groups: Sequence[Sequence[int]], seed: str) -> list[Unit]:
    """Samples that stay together, in the order of their rank: connected components of items and groups."""
    keys = [sample.group or sample.name for sample in samples]
    leader = {key: key for key in keys}

    def find(key: str) -> str:
        while leader[key] != key:
            leader[key] = key = leader[leader[key]]
        return key

    for group in groups:
        for index in group[1:]:
            first, second = sorted((find(keys[group[0]]), find(keys[index])))
            leader[second] = first  # the smallest name leads, whatever the order
    units: dict[str, Unit] = {}
    for key, sample in zip(keys, samples, strict=True):
        units.setdefault(find(key), []).append(sample)
    return [units[name] for name in sorted(units, key=lambda name: _rank(seed, name))]


def _rank(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _may_teach(sample: Sample) -> bool:
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
    """Units that bring `share` of each defect type's anomalies into the training part."""
    chosen: list[Unit] = []
    taken: set[str] = set()
    totals = Counter(sample.defect for unit in units for sample in unit if not _may_teach(sample))
    for defect in sorted(totals):
        wanted = _share(share, totals[defect])
        count = sum(_has(unit, defect) for unit in chosen)
        for unit in units:
            if unit[0].name not in taken and 0 < _has(unit, defect) <= wanted - count:
                chosen.append(unit)
                taken.add(unit[0].name)
                count += _has(unit, defect)
    return chosen


def _has(unit: Unit, defect: str) -> int:
    return sum(not _may_teach(sample) and sample.defect == defect for sample in unit)


def _test_units(units: list[Unit], wanted: int) -> list[Unit]:
    """Units without good images, and `wanted` good ones: first with units that hold anomalies too, so that as
    few anomalies as possible are lost to items that teach."""
    anomalous, good = [], []
    for unit in units:
        if not any(map(_may_teach, unit)):
            anomalous.append(unit)
        elif all(sample.label for sample in unit):  # nobody can say whether a verdict on the unlabelled is right
            good.append(unit)
    good.sort(key=lambda unit: all(map(_may_teach, unit)))  # stable: ranks stay
    chosen, count = [], 0
    for unit in good:
        size = sum(map(_may_teach, unit))
        if count + size <= wanted:
            chosen.append(unit)
            count += size
    if not chosen and good and wanted:
        chosen = [min(good, key=len)]
    return anomalous + chosen


def _folds(units: list[Unit], folds: int) -> list[set[str]]:
    """Large units first, each to the fold that has the smallest share of its kinds so far, then the fewest samples."""
    totals = Counter(sample.defect for unit in units for sample in unit)
    held = [Counter[str]() for _ in range(folds)]
    names: list[set[str]] = [set() for _ in range(folds)]
    for unit in sorted(units, key=len, reverse=True):
        kinds = Counter(sample.defect for sample in unit)
        fold = min(
            range(folds),
            key=lambda f: (sum(n * held[f][kind] / totals[kind] for kind, n in kinds.items()), len(names[f])),
        )
        held[fold] += kinds
        names[fold] |= {sample.name for sample in unit}
    return names


def _refuse_empty(parts: Split, calibrated: bool, tested: bool, count: int) -> None:
    good = sum(map(_may_teach, parts.train + parts.calibration + parts.test))
    empty = [] if any(map(_may_teach, parts.train)) else ["training"]
    empty += ["calibration"] if calibrated and not parts.calibration else []
    labelled = any(sample.label for sample in parts.train + parts.calibration + parts.test)
    empty += ["test"] if tested and labelled and not any(map(_may_teach, parts.test)) else []
    if empty:
        raise BlemishError(
            f"Of {count} images {good} are good, which leaves none for {' and '.join(empty)}; "
            "add good images (of different items, where images are grouped by item)."
        )
