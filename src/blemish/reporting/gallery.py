"""The images of a report: what each card shows, within the bytes that a page can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from blemish.data import layouts
from blemish.evaluation.localisation import (
    Mask,
    PixelStatistics,
    collect,
    cut,
    evaluation_size,
    judged,
    reduce_mask,
    thresholds_for,
)
from blemish.images import decode, load_image, load_mask, read_size
from blemish.inference.inspector import Inspector, cores
from blemish.reporting import thumbnails
from blemish.reporting.run import JudgedImage, Recorded, inside
from blemish.types import BlemishError, Progress, Sample, silent

BYTES = 9_500_000  # for all images together; a page holds them in base64, a third longer
EACH = 40_000  # for one image, at most
LEAST = 2_500  # for one image: smaller ones show nothing, so the last cards of the gallery go without
EVIDENCE = 3  # regions with their nearest normal patch, at most, for each image
SAME = 1e-3  # relative difference that the scores of one image may have between two machines


@dataclass(frozen=True, slots=True)
class Piece:
    """A region of an image beside the nearest normal patch. `images` are data URLs: of the region and the patch, of one
    sheet that shows both, or none where the sheet has been shown before. `source` names the patch's image; `distance`,
    `typical` (that of good parts) and `p_value` are those of the region, None where the run does not have them."""

    images: tuple[str, ...]
    source: str
    distance: float | None
    typical: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Card:
    """What the page shows of one image: `views` by name, in order, all of one size, and the `outline` of the drawn
    defect, as data URLs."""

    image: JudgedImage
    views: Mapping[str, str]
    outline: str | None
    evidence: tuple[Piece, ...]
    size: tuple[int, int]  # width, height of the original


class Gallery(NamedTuple):
    """The cards of all images; the last `without` of them have no views, or the page would be too large. `pixels` are
    the statistics behind AUPRO."""

    cards: tuple[Card, ...]
    without: int
    pixels: PixelStatistics | None


def gallery(
    run: Recorded, data: Path | None, progress: Progress = silent, *, samples: Sequence[Sample] = ()
) -> Gallery:
    """The cards of a run, in its order.

    `data` is the folder that the run was made from; its images are inspected again for `pixels`. `samples` are the
    run's test images as they were read, which are not inspected again. Without both, the cards show what the run's
    folder holds. Raises `BlemishError` where `data` is another folder, or an image is damaged.
    """
    known = _samples(run, data) if data else {sample.name: sample for sample in samples}
    files = [_files(run, known, image) for image in run.images]
    each, shown = _share([len(views) + sum(len(crops) for _, crops in evidence) for views, evidence in files])

    def card(number: int) -> Card:
        image, (paths, evidence) = run.images[number], files[number]
        if number >= shown:
            return Card(image, {}, None, (), image.size or (4, 3))
        views, size, sample = {}, image.size, known.get(image.name)
        for name, file in paths.items():
            pixels = decode(sample) if sample and name == "image" else load_image(file)
            size = size or (pixels.shape[1], pixels.shape[0])
            views[name] = thumbnails.jpeg(Image.fromarray(pixels), each)
        outline = thumbnails.outline_png(sample.mask, read_size(sample.path)) if sample and sample.mask else None
        pieces = tuple(_piece(entry, crops, each) for entry, crops in evidence)
        return Card(image, views, outline, pieces, size or (4, 3))

    with ThreadPoolExecutor(cores()) as pool:  # Pillow works outside Python's lock
        cards = list(progress(pool.map(card, range(len(files))), "report", len(files)))
    statistics = _pixels(run, known, progress) if data else None
    return Gallery(tuple(cards), max(0, len(cards) - shown), statistics)


def _share(wanted: list[int]) -> tuple[int, int]:
    """Bytes for each image file, and how many of the cards, which want so many files each, get theirs."""
    total = sum(wanted)
    if total * LEAST <= BYTES:
        return min(EACH, BYTES // max(1, total)), len(wanted)
    shown = int(np.searchsorted(np.cumsum(wanted) * LEAST, BYTES, side="right"))
    return LEAST, shown


def _samples(run: Recorded, data: Path) -> dict[str, Sample]:
    samples = {sample.name: sample for sample in layouts.read(data, run.card.data.layout).samples}
    for image in run.images:
        if image.name not in samples:
            raise BlemishError(
                f"{data}: has no {image.shown}, which {run.folder} judges; give the folder that it was made from."
            )
        size = read_size(samples[image.name].path) if image.size else None
        if size != image.size:
            raise BlemishError(
                f"{data}: {image.shown} is another image than the one that {run.folder} judges "
                f"({size} instead of {image.size} pixels); give the folder that the run was made from."
            )
    return samples


def _files(
    run: Recorded, samples: Mapping[str, Sample], image: JudgedImage
) -> tuple[dict[str, Path], list[tuple[Mapping[str, Any], list[Path]]]]:
    """The existing views of an image by name, and its evidence, each entry with its files: the region, then the normal
    patch."""
    if image.decision == "error":
        return {}, []
    # Older runs have one folder for both.
    older = inside(run.folder, f"repaired/{image.name}.jpg")
    autoencoder = run.card.detector == "attention"
    views = {
        "heatmap": inside(run.folder, f"overlays/{image.name}.jpg"),
        "image": samples[image.name].path if image.name in samples else None,
        "inpainted": inside(run.folder, f"inpainted/{image.name}.jpg") or (None if autoencoder else older),
        "reconstruction": inside(run.folder, f"reconstruction/{image.name}.jpg") or (older if autoencoder else None),
    }
    shown: set[Path] = set()
    evidence = []
    for entry in image.evidence[:EVIDENCE]:
        named = {name: inside(run.folder, value) for name, value in entry.items() if isinstance(value, str)}
        files = [file for name, file in sorted(named.items(), key=lambda item: "normal" in item[0]) if file]
        evidence.append((entry, [file for file in files if file not in shown]))
        shown |= set(files)
    return {name: file for name, file in views.items() if file}, evidence


def _piece(entry: Mapping[str, Any], files: list[Path], most: int) -> Piece:
    side = thumbnails.CROP if len(files) > 1 else thumbnails.SHEET
    return Piece(
        tuple(thumbnails.jpeg(Image.fromarray(load_image(file)), most, side) for file in files),
        str(entry.get("source") or "").encode("utf-8", "replace").decode(),
        *(_float(entry.get(name)) for name in ("distance", "typical", "p_value")),
    )


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _pixels(run: Recorded, samples: Mapping[str, Sample], progress: Progress) -> PixelStatistics | None:
    """The statistics behind the curve of AUPRO, from the labelled images inspected again. None without masks.

    As in `localisation_metrics`, an anomaly without a mask, or with an empty one, is left out.
    """
    scored = [p for p in run.images if p.label and p.score is not None and p.name in samples]
    if not any(samples[p.name].mask for p in scored):
        return None
    used = [p for p in scored if p.label == "good" or samples[p.name].mask]
    inspector = Inspector(run.folder / "bundle")
    looks = inspector.look_many(samples[p.name].path for p in used)
    maps, masks, sizes, counting = [], [], [], list[Mask | None]()
    for image, look in zip(used, progress(looks, "maps", len(used)), strict=True):
        score, size = look.verdict.score, look.verdict.size
        if look.map is None or score is None or size is None:
            raise BlemishError(f"{look.verdict.error or image.shown}")
        if abs(score - (image.score or 0)) > SAME * max(1.0, abs(score)):
            raise BlemishError(
                f"{samples[image.name].path}: is another image than the one that {run.folder} judges (score "
                f"{score:.4g} instead of {image.score:.4g}); give the folder that the run was made from."
            )
        mask = samples[image.name].mask
        drawn = load_mask(mask, (size[1], size[0])) if mask else None
        counts = inspector.framing.roi_in_image(size, look.pose) if inspector.framing else None
        drawn = cut(drawn, counts)
        if mask and (drawn is None or not drawn.any()):
            continue
        maps.append(look.map)
        masks.append(None if drawn is None else reduce_mask(drawn, evaluation_size(size)))
        sizes.append(size)
        counting.append(judged(counts, size))
    if not any(mask is not None for mask in masks):
        return None
    return collect(zip(maps, masks, sizes, strict=True), thresholds_for(maps, masks, sizes), counting)
