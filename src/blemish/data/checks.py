"""What a data set does not read, and what its images and masks are that a reader of the figures has to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blemish.data.layouts import Dataset
from blemish.images import ImageError, find_images, has_image_start, is_16_bit, mask_values, pages
from blemish.listing import REASONS, Reason, ending, natural, other_formats
from blemish.masks import defective, greys, is_picture
from blemish.types import Sample

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

Severity = Literal["error", "warning", "note"]
SQUEEZED = 1.25  # times the width per height of the median image: what is stretched more is named
LONGEST = 4  # times the other side: longer images are squeezed (see training.splits.auto_size)
COVERED = 0.5  # of the image, by its mask: more is named
TWELVE_BITS = 4095 * 255 // 65535 + 1  # grey levels that 12-bit values in a 16-bit file become, at most
STUCK = 1e-3  # of the pixels, or 4 of them: so few above it may be stuck ones


@dataclass(frozen=True)
class Problem:
    """`kind` is stable for programs, `sentence` is for people, `names` are the samples or files concerned.

    error: results would be wrong; warning: they would be worse, or look better than they are; note: good to know.
    """

    kind: str
    severity: Severity
    sentence: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """Every file below the data folder, once: `all` = `images` + `masks` + `refused` + the sum of `left_out`.

    `images` and `masks` were read, `refused` could not be, `left_out` are the others by their reason.
    """

    all: int
    images: int
    masks: int
    refused: int
    left_out: dict[Reason, int]

    def sentence(self) -> str:
        """The sums in words."""
        left = sum(self.left_out.values())
        reasons = "; ".join(f"{count} {REASONS[reason]}" for reason, count in self.left_out.items())
        listed = f" ({reasons})" if left else ""
        return (
            f"Of all files, {self.images} images and {self.masks} masks are read, {left} left out{listed}, "
            f"{self.refused} refused."
        )


@dataclass(frozen=True)
class Decoded:
    """What is kept of a decoded image and its mask."""

    size: tuple[int, int] | None = None
    digest: bytes = b""
    thumbnail: npt.NDArray[np.uint8] | None = None
    error: str = ""
    pages: int = 1
    dark: bool = False  # a 16-bit file whose values fit 12 bits but for a few pixels
    drawn: bool = False  # looks like a mask
    mask_error: str = ""
    mask_share: float | None = None  # of the image
    mask_greys: tuple[float, ...] = ()


def count_files(dataset: Dataset, decoded: Sequence[Decoded]) -> Files:
    """The sums of all files, with what could not be read."""
    left_out: Counter[Reason] = Counter()
    for entry in dataset.left_out:
        left_out[entry.reason] += entry.files
    unreadable = sum(bool(each.error) for each in decoded)
    unusable = {each.mask for each, seen in zip(dataset.samples, decoded, strict=True) if each.mask and seen.mask_error}
    masks = sum(len(find_images(mask)) if mask.is_dir() else 1 for mask in unusable)
    total = len(dataset.samples) + dataset.masks + left_out.total()
    ordered = {reason: left_out[reason] for reason in REASONS if left_out[reason]}
    return Files(total, len(dataset.samples) - unreadable, dataset.masks - masks, unreadable + masks, ordered)


def page_count(path: Path) -> int:
    """As `images.pages`; 1 where they cannot be counted."""
    try:
        return pages(path)
    except ImageError:
        return 1


def is_dark(path: Path, pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether a 16-bit file (its `pixels`, (H, W, 3)) has values above 4095 in so few pixels that they may be stuck."""
    if (pixels[::5, ::5] > TWELVE_BITS).mean() > 0.1:  # most images
        return False
    few = int((pixels.max(axis=2) > TWELVE_BITS).sum())
    return 0 < few <= max(4, STUCK * pixels.shape[0] * pixels.shape[1]) and is_16_bit(path)


def mask_facts(mask: Path, size: tuple[int, int]) -> dict[str, Any]:
    """The mask's fields of `Decoded`. Raises ImageError where it is unusable."""
    files = find_images(mask) if mask.is_dir() else [mask]
    if not files:
        raise ImageError(f"{mask} holds no masks; draw one, or remove the folder.")
    marked, found = None, set[float]()
    for file in files:
        values, white = mask_values(file, size)
        if is_picture(values, white):
            raise ImageError(f"{file} holds a picture, not a mask; draw the defect in white on black, or move it away.")
        one = defective(values, white)
        marked = one if marked is None else marked | one
        found.update(greys(values, white))
    return {"mask_share": float(marked.mean()) if marked is not None else 0.0, "mask_greys": tuple(sorted(found))}


def not_read(dataset: Dataset) -> Iterable[Problem]:
    """What was left out that somebody may take for read."""
    by_reason: dict[Reason, list[str]] = {}
    files: Counter[Reason] = Counter()
    for entry in dataset.left_out:
        by_reason.setdefault(entry.reason, []).append(entry.name)
        files[entry.reason] += entry.files

    def problem(reason: Reason, severity: Severity, text: str) -> Iterable[Problem]:
        if names := by_reason.get(reason):
            said = text.format(count=_files(files[reason]), names=_some(names))
            yield Problem(reason, severity, said, tuple(names))

    for folder, names in _by_folder(by_reason.get("not-in-layout", [])).items():
        text = (
            f"{len(names)} images in {folder or 'the folder itself'} ({_some(names)}) are not read: the layout "
            f"{dataset.layout} names no such place; move them into a class's folder, or out of the data."
        )
        yield Problem("not-in-layout", "warning", text, tuple(names))
    shown = other_formats(dataset.left_out)
    yield from problem(
        "other-format", "warning", f"{{count}} in formats that are not read ({shown}): {{names}}; convert them to PNG."
    )
    yield from problem("too-deep", "warning", "{count} so many folders down that they are not read: {names}.")
    yield from problem("mask-unused", "warning", "{count} of masks that belong to no image: {names}; name them as it.")
    yield from problem("depth-map", "note", "{count} of depth maps beside the images are left out: {names}.")
    yield from problem("linked", "note", "{count} that are links to what is listed already are left out: {names}.")
    yield from problem("litter", "note", "{count} of a system or file server are left out: {names}.")
    yield from problem("own-output", "note", "{count} that blemish wrote are left out: {names}.")
    for mask, images in dataset.ambiguous:
        text = (
            f"{mask} is ambiguous: it fits {len(images)} images ({_some(images)}), and one mask cannot show the "
            "defects of two images; it is used for none: give each image a mask of its own name."
        )
        yield Problem("mask-ambiguous", "warning", text, (mask, *images))
    yield from _under_other_endings(dataset, by_reason.get("no-image", []))


def _under_other_endings(dataset: Dataset, names: Sequence[str]) -> Iterable[Problem]:
    """Images whose names do not say so: of each ending, the first files are looked into."""
    of_ending: dict[str, list[str]] = {}
    for name in names:
        of_ending.setdefault(ending(name), []).append(name)
    for suffix, files in of_ending.items():
        if any(has_image_start(dataset.root / name) for name in files[:3]):
            shown = f"end in {suffix}" if suffix else "have no ending"
            text = f"{len(files)} files {shown} and are not read, but hold images ({_some(files)}); rename them."
            yield Problem("other-ending", "warning", text, tuple(files))


def contents(samples: Sequence[Sample], decoded: Sequence[Decoded]) -> Iterable[Problem]:
    """What the pixels and headers say."""
    pairs = [(each, seen) for each, seen in zip(samples, decoded, strict=True) if seen.size]
    if several := [each.name for each, seen in pairs if seen.pages > 1]:
        text = f"{len(several)} images have several pages or frames ({_some(several)}): only the first of each is read."
        yield Problem("several-pages", "warning", text, tuple(several))
    if dark := [each.name for each, seen in pairs if seen.dark]:
        text = (
            f"{len(dark)} images have 16 bits, but hardly a value above 4095 of 65535 ({_some(dark)}): very dark, or "
            "10- or 12-bit values with a few stuck pixels, of which 16 grey levels remain; scale them to all 16 bits."
        )
        yield Problem("dark-16-bit", "warning", text, tuple(dark))
    yield from _masks(pairs)
    yield from _drawn(pairs)
    yield from _shapes([(each.name, seen.size) for each, seen in pairs if seen.size])


def _masks(pairs: Sequence[tuple[Sample, Decoded]]) -> Iterable[Problem]:
    for each, seen in pairs:
        if seen.mask_greys:
            shown = ", ".join(f"{value:g}" for value in seen.mask_greys)
            text = f"{each.mask} has areas of several grey values ({shown} and brighter): all count as defective."
            yield Problem("mask-values", "warning", text, (each.name,))
        if (seen.mask_share or 0) > COVERED:
            text = (
                f"{each.mask} marks {seen.mask_share:.0%} of {each.name}, most of the image: it may be inverted (white "
                "means defective)."
            )
            yield Problem("mask-covers-most", "warning", text, (each.name,))


def _drawn(pairs: Sequence[tuple[Sample, Decoded]]) -> Iterable[Problem]:
    """A defect type that is drawn like masks, beside good images that are not."""
    good = [seen.drawn for each, seen in pairs if each.label == "good"]
    if not good or sum(good) * 2 > len(good):
        return
    for defect in sorted({each.defect for each, _ in pairs if each.defect}, key=natural):
        ours = [(each.name, seen.drawn) for each, seen in pairs if each.defect == defect]
        if len(ours) > 1 and all(drawn for _, drawn in ours):
            names = tuple(name for name, _ in ours)
            text = (
                f"All {len(ours)} images of the defect type {defect} look like masks ({_some(names)}): rename that "
                f"folder to masks, or its figures are false."
            )
            yield Problem("type-of-masks", "error", text, names)


def _shapes(sizes: Sequence[tuple[str, tuple[int, int]]]) -> Iterable[Problem]:
    """Images that training squeezes, because they get one shape."""
    if not sizes:
        return
    aspects = sorted(width / height for _, (width, height) in sizes)
    median = aspects[(len(aspects) - 1) // 2]
    shown = {name: f"{name}, {width} × {height}" for name, (width, height) in sizes}
    other = [name for name, (w, h) in sizes if max(w / h / median, median * h / w) > SQUEEZED]
    if other:
        wide, high = sum(w > h for _, (w, h) in sizes), sum(w < h for _, (w, h) in sizes)
        text = (
            f"{len(other)} of {len(sizes)} images have another shape than the median image ({shown[other[0]]}; {wide} "
            f"are wider than high, {high} higher than wide): they are squeezed or stretched into one shape; turn or "
            "cut them to one shape, or train each shape alone."
        )
        yield Problem("mixed-shapes", "warning", text, tuple(other))
    if long := [name for name, (w, h) in sizes if max(w / h, h / w) > LONGEST]:
        text = (
            f"{len(long)} of {len(sizes)} images are longer than {LONGEST} : 1 ({shown[long[0]]}), as line scans are: "
            "they are squeezed to that; train with --tile."
        )
        yield Problem("long-images", "warning", text, tuple(long))


def _by_folder(names: Sequence[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    return folders


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def _some(names: Sequence[str], most: int = 2) -> str:
    listed = list(names[:most])
    if len(names) > most:
        return f"{', '.join(listed)} and {len(names) - most} more"
    return " and ".join(listed)
