"""What a data set holds and what is wrong with it. Every image is decoded once; nothing is changed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blemish.data.checks import (
    Decoded,
    Files,
    Problem,
    contents,
    count_files,
    is_dark,
    mask_facts,
    not_read,
    page_count,
)
from blemish.data.duplicates import near_pairs, thumbnail
from blemish.data.grouping import connected
from blemish.data.layouts import Dataset
from blemish.images import ImageError, load_image
from blemish.masks import looks_drawn
from blemish.types import Progress, Sample, silent

if TYPE_CHECKING:
    from rich.console import Console

# A conformal p-value of n calibration scores is at least 1 / (n + 1), so 5 % needs 19: half of the good images.
ENOUGH_GOOD = 38
IMBALANCE = 20  # times as many images of one label as of the other
UNTYPED = "defect"  # a folder of this name says that its images are defective, and not how
TOO_GOOD = "are too good"  # in the sentences of problems that flatter
SHOWN = 8  # problems of one kind that `render` prints


@dataclass(frozen=True)
class Row:
    """One class of images. Sizes are (width, height), ordered by area; None where no image of the class is readable."""

    split: str
    label: str
    defect: str
    count: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    masks: int


@dataclass(frozen=True)
class Audit:
    """`files` counts every file of the folder. `groups` are indices of the data set's samples that show the same thing,
    as `split` takes them."""

    layout: str
    why: str
    files: Files
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    groups: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, object]:
        """Only dicts, lists, strings, numbers and None: ready for json.dumps."""
        return dataclasses.asdict(self)


def audit(dataset: Dataset, progress: Progress = silent, threads: int = 2) -> Audit:
    """Decode every image and mask once, on `threads` threads, and report what is there and what is wrong.

    Problems come worst first. Bad images are reported, not raised.
    """
    samples = dataset.samples
    pool = ThreadPoolExecutor(threads)
    try:
        decoded = list(progress(pool.map(_decode, samples), "images", len(samples)))
    finally:
        pool.shutdown(cancel_futures=True)
    exact = _by(image.digest if image.size else None for image in decoded)
    groups, crowd = _merged(len(samples), exact, _near(decoded))
    problems = [
        *_unreadable(samples, decoded),
        *_copies(samples, exact, groups, crowd),
        *_items_in_both_splits(samples),
        *_masks(samples, decoded),
        *_counts(samples, decoded),
        *contents(samples, decoded),
        *not_read(dataset),
    ]
    rank = ("error", "warning", "note")
    problems.sort(key=lambda problem: rank.index(problem.severity))
    files = count_files(dataset, decoded)
    return Audit(dataset.layout, dataset.why, files, _rows(samples, decoded), tuple(problems), groups)


def _decode(sample: Sample) -> Decoded:
    try:
        pixels = load_image(sample.path)
    except ImageError as error:
        return Decoded(error=str(error))
    height, width, _ = pixels.shape
    seen = Decoded(
        size=(width, height),
        digest=hashlib.sha256(f"{width}x{height}:".encode() + pixels.tobytes()).digest(),
        thumbnail=thumbnail(pixels),
        pages=page_count(sample.path),
        dark=is_dark(sample.path, pixels),
        drawn=looks_drawn(pixels),
    )
    if sample.mask:
        try:
            return dataclasses.replace(seen, **mask_facts(sample.mask, (height, width)))
        except ImageError as error:
            return dataclasses.replace(seen, mask_error=str(error))
    return seen


def _rows(samples: Sequence[Sample], decoded: Sequence[Decoded]) -> tuple[Row, ...]:
    classes: dict[tuple[str, str, str], list[int]] = {}
    for index, sample in enumerate(samples):
        key = (sample.split, sample.label or "", sample.defect)
        classes.setdefault(key, []).append(index)
    rows = []
    for (split, label, defect), members in sorted(classes.items(), key=lambda c: (c[0][0] != "train", *c[0])):
        sizes = sorted((size for i in members if (size := decoded[i].size)), key=lambda s: (s[0] * s[1], s))
        masks = sum(samples[i].mask is not None and not decoded[i].mask_error for i in members)
        smallest, largest = (sizes[0], sizes[-1]) if sizes else (None, None)
        rows.append(Row(split, label, defect, len(members), smallest, largest, masks))
    return tuple(rows)


def _by(keys: Iterable[bytes | None]) -> list[list[int]]:
    """Indices with the same key, where there are at least two."""
    members: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        if key is not None:
            members.setdefault(key, []).append(index)
    return [group for group in members.values() if len(group) > 1]


def _near(decoded: Sequence[Decoded]) -> list[tuple[int, int]]:
    """Index pairs of near duplicates."""
    readable = [i for i, image in enumerate(decoded) if image.thumbnail is not None]
    if not readable:
        return []
    thumbnails = np.stack([t for image in decoded if (t := image.thumbnail) is not None])
    return [(readable[first], readable[second]) for first, second in near_pairs(thumbnails)]


def _merged(count: int, exact: list[list[int]], near: list[tuple[int, int]]) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Connected groups, and the size of a crowd (0 where there is none).

    A crowd is a group of near duplicates that holds more than half of the images. It shows that copies cannot be told
    from different parts in this data set, so only exact copies are grouped then.
    """
    groups = _several(count, [*exact, *near])
    crowd = max((len(group) for group in groups), default=0)
    if 2 * crowd > count and len(_several(count, exact)) != len(groups):
        return _several(count, exact), crowd
    return groups, 0


def _several(count: int, links: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The connected components of more than one image."""
    return tuple(tuple(group) for group in connected(count, links) if len(group) > 1)


def _unreadable(samples: Sequence[Sample], decoded: Sequence[Decoded]) -> Iterable[Problem]:
    for sample, image in zip(samples, decoded, strict=True):
        if image.error:
            yield Problem("unreadable", "error", image.error, (sample.name,))


def _copies(
    samples: Sequence[Sample], exact: list[list[int]], groups: tuple[tuple[int, ...], ...], crowd: int
) -> Iterable[Problem]:
    copies = {i: number for number, group in enumerate(exact) for i in group}
    if crowd:
        yield Problem(
            "crowd",
            "warning",
            f"{crowd} of {len(samples)} images are so alike that near copies cannot be told from different parts; "
            "make sure that the test split shows other parts than the training split.",
        )
    for group in groups:
        members = [samples[i] for i in group]
        names = tuple(sample.name for sample in members)
        same = len({copies.get(i) for i in group}) == 1 and group[0] in copies
        what = f"{names[0]} and {_more(names[1:])} {'are the same image' if same else 'show the same thing'}"
        labels = {sample.label for sample in members}
        types = {sample.defect for sample in members} - {"", UNTYPED}
        items = {sample.group for sample in members}
        if len({sample.split for sample in members}) > 1:
            text = f"{what}, in the training and the test split: figures measured on them {TOO_GOOD}."
            yield Problem("copies-across-splits", "error", text, names)
        elif len(labels) > 1 or len(types) > 1:  # what has no type contradicts none
            classes = " and ".join(sorted({_class(sample) for sample in members}))
            text = f"{what} with different labels ({classes}): at least one label is wrong, or the part was relabelled."
            yield Problem("copies-across-labels", "warning", text, names)
        elif len(items) > 1 and "" not in items:
            text = f"{what} under the names of different items ({', '.join(sorted(items))}): they stay together."
            yield Problem("copies-across-items", "warning", text, names)
        else:
            yield Problem("copies", "note", f"{what}: they stay together when the set is split.", names)


def _items_in_both_splits(samples: Sequence[Sample]) -> Iterable[Problem]:
    splits: dict[str, dict[str, str]] = {}  # of each item, the first image in each split
    for sample in samples:
        if sample.group and sample.split:
            splits.setdefault(sample.group, {}).setdefault(sample.split, sample.name)
    for item, names in splits.items():
        if len(names) > 1:
            text = f"Item {item} is in the training and in the test split: figures measured on it {TOO_GOOD}."
            yield Problem("item-across-splits", "warning", text, tuple(names.values()))


def _masks(samples: Sequence[Sample], decoded: Sequence[Decoded]) -> Iterable[Problem]:
    without = []
    for sample, image in zip(samples, decoded, strict=True):
        if image.mask_error:
            yield Problem("mask-unusable", "error", image.mask_error, (sample.name,))
        elif image.mask_share == 0:
            text = f"{sample.mask} marks nothing, but {sample.name} is labelled {sample.defect}; draw it or remove it."
            yield Problem("mask-empty", "warning", text, (sample.name,))
        elif sample.label == "anomaly" and sample.mask is None:
            without.append(sample.name)
    if without:
        defective = sum(sample.label == "anomaly" for sample in samples)
        text = f"{len(without)} of {defective} defective images have no mask: localisation is not measured on them."
        yield Problem("mask-missing", "note", text, tuple(without))


def _counts(samples: Sequence[Sample], decoded: Sequence[Decoded]) -> Iterable[Problem]:
    usable = [sample for sample, image in zip(samples, decoded, strict=True) if not image.error]
    to_train = sum(sample.label != "anomaly" and sample.split != "test" for sample in usable)
    if to_train < ENOUGH_GOOD:
        text = (
            f"There are {to_train} good images to learn from; {ENOUGH_GOOD} are needed so that half of them "
            "can calibrate a threshold for 5 % false alarms, the default (19 images): add good images."
        )
        yield Problem("few-good", "error" if to_train < 2 else "warning", text)
    counts = Counter(sample.label for sample in usable)
    good, bad = counts["good"], counts["anomaly"]
    if not bad:
        text = "No image is labelled defective: how many defects are detected cannot be measured."
        yield Problem("no-defects", "note", text)
    elif max(good, bad) > IMBALANCE * max(1, min(good, bad)):
        text = f"There are {good} good and {bad} defective images: figures for the smaller class are uncertain."
        yield Problem("imbalance", "note", text)
    for defect, count in sorted(Counter(s.defect for s in usable if s.label == "anomaly").items()):
        if count < 5:
            text = f"Only {count} images show the defect type {defect}: its figures mean little."
            yield Problem("few-of-defect", "note", text, tuple(s.name for s in usable if s.defect == defect))


def _class(sample: Sample) -> str:
    return sample.defect or sample.label or "unlabelled"


def _more(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def render(audit: Audit, console: Console) -> None:
    """Print the audit as a table and sentences."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(audit.why))
    table = Table()
    for column in ("split", "label", "defect type", "images", "size", "masks"):
        table.add_column(column, justify="right" if column in {"images", "masks"} else "left")
    for row in audit.rows:
        cells = (row.split, row.label or "unlabelled", row.defect, str(row.count), _sizes(row), str(row.masks or ""))
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print(Text(audit.files.sentence()), soft_wrap=True)
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    kinds = Counter(problem.kind for problem in audit.problems)
    printed: Counter[str] = Counter()
    for problem in audit.problems:
        printed[problem.kind] += 1
        if printed[problem.kind] <= SHOWN:
            line = Text(f"{problem.severity}: ", colours[problem.severity])
            sentence = problem.sentence.encode("utf-8", "replace").decode()  # file names can be anything
            console.print(line.append(sentence, "default"), soft_wrap=True)
        elif printed[problem.kind] == kinds[problem.kind]:
            console.print(Text(f"  and {kinds[problem.kind] - SHOWN} more like this ({problem.kind})"))
    if not audit.problems:
        console.print("No problems found.")


def _sizes(row: Row) -> str:
    if row.smallest is None or row.largest is None:
        return ""
    smallest, largest = ("{} × {}".format(*size) for size in (row.smallest, row.largest))
    return smallest if smallest == largest else f"{smallest} to {largest}"
