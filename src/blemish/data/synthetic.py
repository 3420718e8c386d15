"""A data set with synthetic defects, made from good images alone: `blemish corrupt`.

Held-out good images are divided into two halves; items and near duplicates stay together. One half becomes the good
test images, unchanged; each image of the other half is corrupted once. So no image is tested twice, and no corrupted
image is a near copy of a good one: the images are as independent as those of the source. Foreign pieces come from the
corrupted half too, and no test image holds anything of a training image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.data import idx, layouts
from blemish.data.audit import audit
from blemish.data.corrupt import AREA, KINDS, check_kinds, corrupt
from blemish.data.split import split
from blemish.data.unusable import explained, unusable
from blemish.files import staged, write_text
from blemish.images import load_image
from blemish.types import BlemishError, Progress, Sample, TooFewError, silent

CARD = "corrupted.json"
FORMAT = "blemish corrupted 1"
HELD_OUT = 0.2  # of the good images, where the data set has no test split of its own

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Good:
    """A good image: its `name` in the source, the `stem` of the file it becomes, and how to get its pixels."""

    name: str
    stem: str
    pixels: Callable[[], Pixels]


@dataclass(frozen=True)
class _Division:
    """The good images by what becomes of them; `skipped` are those that cannot be read."""

    layout: str
    train: list[_Good]
    good: list[_Good]
    corrupted: list[_Good]
    skipped: tuple[str, ...] = ()


def write_corrupted(
    data: Path,
    out: Path,
    *,
    layout: str = "auto",
    one_class: int | None = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    area: tuple[float, float] = AREA,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes OUT in the MVTec layout: `train/good`, `test/good`, `test/<kind>`, `ground_truth/<kind>/NAME_mask.png`.

    `data` is a folder of images in any layout, of which only good (or unlabelled) ones are used, or one with idx
    files, of which `one_class` is good. Where the data set has a training and a test split these are kept; otherwise a
    fifth is held out, images of one item and near duplicates together. `train` and `test` are the most images of each,
    drawn by `seed`; `test` counts good and corrupted ones. Kinds take turns.

    Returns what OUT/corrupted.json holds: settings, counts by folder, and the source of each image.
    Raises BlemishError for anything that cannot be done; OUT is then unchanged.
    """
    data, out = Path(data), Path(out)
    kinds = list(dict.fromkeys(kinds))
    check_kinds(kinds)
    _check_counts(train, test)
    here, there = data.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise BlemishError(f"{out} and {data} overlap; choose a folder outside {data} with -o.")
    rng = np.random.default_rng([seed, 0])
    with staged(out, "images", overwrite=overwrite, reads=[data]) as folder:
        division = _thinned(_divide(data, layout, one_class, seed, kinds, rng, progress), train, test, rng)
        count = len(division.train) + len(division.good) + len(division.corrupted)
        written = dict(progress(_write(folder, division, kinds, area, seed), "writing", count))
        card = {
            "format": FORMAT,
            "source": str(data),
            "layout": division.layout,
            "one_class": one_class,
            "seed": seed,
            "kinds": kinds,
            "area": list(area),
            "skipped": list(division.skipped),
            "counts": dict(sorted(Counter(name.rpartition("/")[0] for name in written).items())),
            "images": written,
        }
        write_text(folder / CARD, json.dumps(card, indent=1) + "\n")
    return card


def _check_counts(train: int | None, test: int | None) -> None:
    if train is not None and train < 1:
        raise BlemishError(f"Asked for {train} training images; there must be at least 1.")
    if test is not None and test < 2:
        raise BlemishError(f"Asked for {test} test images; there must be at least 2, a good and a corrupted one.")


def _divide(
    data: Path,
    layout: str,
    one_class: int | None,
    seed: int,
    kinds: Sequence[str],
    rng: np.random.Generator,
    progress: Progress,
) -> _Division:
    """All good images of the source, divided. Raises BlemishError where there are too few."""
    if idx.holds_idx(data):
        division = _from_idx(data, layout, one_class, rng)
    elif one_class is not None and data.is_dir():
        raise BlemishError(f"{data} holds no idx files, so it has no class {one_class}; leave --one-class out.")
    else:
        division = _from_folder(data, layout, seed, progress)
    if not (division.train and division.good and division.corrupted):
        raise BlemishError(
            f"{data} has {len(division.train)} good images to learn from and "
            f"{len(division.good) + len(division.corrupted)} held out; add good images: at least 1 and 2 are needed."
        )
    if kinds == ["foreign"] and len(division.corrupted) < 2:
        raise BlemishError(f"{data} has one image to corrupt, so no other to take from; add images or kinds.")
    return division


def _from_folder(data: Path, layout: str, seed: int, progress: Progress) -> _Division:
    dataset = layouts.read(data, layout)
    candidates = [sample for sample in dataset.samples if sample.label != "anomaly"]
    if not candidates:
        raise BlemishError(f"{data} has no good images; synthetic defects are drawn into good ones.")
    checked = audit(replace(dataset, samples=tuple(candidates)), progress)
    broken = {name for problem in checked.problems if problem.kind == "unreadable" for name in problem.names}
    copies = [[candidates[i].name for i in group] for group in checked.groups]
    # Unlabelled images are taken for good, as in training.
    samples = [replace(sample, label="good") for sample in candidates if sample.name not in broken]
    train = [sample for sample in samples if sample.split == "train"]
    held_out = [sample for sample in samples if sample.split == "test"]
    with explained(unusable(data, replace(dataset, samples=tuple(candidates)), checked)):
        if not (train and held_out):
            share = max(HELD_OUT, 2 / max(1, len(samples)))
            train, held_out = _divided(samples, share, copies, seed, data)
        corrupted, good = _divided(held_out, 0.5, copies, seed, data)
    return _Division(dataset.layout, _named(train), _named(good), _named(corrupted), tuple(sorted(broken)))


def _divided(
    samples: Sequence[Sample], share: float, copies: Sequence[Sequence[str]], seed: int, data: Path
) -> tuple[list[Sample], list[Sample]]:
    """The rest, and about `share` of the samples; items and copies stay together."""
    index = {sample.name: i for i, sample in enumerate(samples)}
    groups = [[index[name] for name in group if name in index] for group in copies]
    try:
        free = [replace(sample, split="") for sample in samples]
        divided = split(free, seed=seed, test=share, calibration=0.0, groups=[group for group in groups if group])
    except BlemishError:
        raise TooFewError(
            f"{data} has too few good images of different items: at least 3 are needed, and 2 of them held out."
        ) from None
    return list(divided.train), list(divided.test)


def _named(samples: Sequence[Sample]) -> list[_Good]:
    """With file names that are unique (regardless of case) and keep the ending `_Part3` that names an item's view."""
    named: list[_Good] = []
    taken: set[str] = set()
    for sample in samples:
        stem = plain = Path(sample.name).stem
        copy = 1
        while stem.casefold() in taken:
            copy += 1
            stem = f"{copy}-{plain}"
        taken.add(stem.casefold())
        named.append(_Good(sample.name, stem, partial(load_image, sample.path)))
    return named


def _from_idx(data: Path, layout: str, one_class: int | None, rng: np.random.Generator) -> _Division:
    if layout != "auto":
        raise BlemishError(f"{data} holds idx files, which have no folder layout; leave --layout out.")
    train, test = idx.read_split(data, "train"), idx.read_split(data, "test")
    classes = np.unique(train.labels).tolist()
    if one_class not in classes:
        reason = "say which class is good" if one_class is None else f"there is no class {one_class}; choose another"
        raise BlemishError(f"{data} holds the classes {', '.join(map(str, classes))}: {reason} with --one-class.")
    held_out = rng.permutation(np.flatnonzero(test.labels == one_class))
    half = (len(held_out) + 1) // 2
    return _Division(
        "idx",
        _of(train, "train", np.flatnonzero(train.labels == one_class)),
        _of(test, "t10k", np.sort(held_out[:half])),
        _of(test, "t10k", np.sort(held_out[half:])),
    )


def _of(digits: idx.Digits, name: str, indices: npt.NDArray[np.intp]) -> list[_Good]:
    return [_Good(f"{name}/{i}", f"{i:05d}", partial(_rgb, digits.images, i)) for i in indices.tolist()]


def _rgb(images: Pixels, index: int) -> Pixels:
    return np.repeat(images[index][..., None], 3, axis=2)


def _thinned(division: _Division, train: int | None, test: int | None, rng: np.random.Generator) -> _Division:
    """At most `train` and `test` images, drawn at random; those to corrupt in random order."""
    chosen = _some(division.train, train, rng)
    good = _some(division.good, None if test is None else (test + 1) // 2, rng)
    corrupted = _some(division.corrupted, None if test is None else test // 2, rng)
    order = rng.permutation(len(corrupted))  # else the turns of the kinds could follow those of the camera
    return replace(division, train=chosen, good=good, corrupted=[corrupted[i] for i in order])


def _some(images: list[_Good], count: int | None, rng: np.random.Generator) -> list[_Good]:
    """At most `count` of the images, chosen at random, in their order."""
    chosen = np.sort(rng.permutation(len(images))[:count])
    return [images[i] for i in chosen]


def _write(
    folder: Path, division: _Division, kinds: Sequence[str], area: tuple[float, float], seed: int
) -> Iterator[tuple[str, str]]:
    """Writes one image after another and yields (name written, name in the source)."""
    for place, images in (("train/good", division.train), ("test/good", division.good)):
        for image in images:
            yield _save(folder, f"{place}/{image.stem}.png", image.pixels()), image.name
    sources = division.corrupted
    for number, image in enumerate(sources):
        rng = np.random.default_rng([seed, 1, number])
        others = []
        if len(sources) > 1 and "foreign" in kinds:
            others = [sources[(number + int(rng.integers(1, len(sources)))) % len(sources)].pixels()]
        try:
            first = kinds[number % len(kinds)]
            made = corrupt(image.pixels(), rng, others=others, kinds=kinds, area=area, first=first)
        except BlemishError as refusal:
            raise BlemishError(f"{image.name}: {refusal}") from None
        mask = made.mask.astype(np.uint8) * np.uint8(255)
        _save(folder, f"ground_truth/{made.kind}/{image.stem}_mask.png", mask)
        yield _save(folder, f"test/{made.kind}/{image.stem}.png", made.image), image.name


def _save(folder: Path, name: str, pixels: Pixels) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])  # grey: a third of the bytes, read as the same pixels
    Image.fromarray(pixels).save(path, compress_level=2)
    return name
