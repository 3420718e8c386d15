"""Before learning, where a frame was asked for (`--tile`, `--roi`, `--align`): what the frame is, and the images or
tiles that a detector learns from, as files. They are made by `inference.framing.Framing`, which inference runs too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from blemish.images import load_image, load_mask, read_size
from blemish.inference import alignment
from blemish.inference.bundle import REFERENCE, ROI, Frame
from blemish.inference.framing import Framing, Mask
from blemish.inference.resizing import resized
from blemish.inference.tiling import map_size, tile_corners
from blemish.training.splits import FROM_BOTH, Divided, shape_for
from blemish.types import BlemishError, Progress, Sample, silent

if TYPE_CHECKING:
    from blemish.training.pipeline import TrainConfig

LEAST_TILE = 32  # pixels
COMPARED = 50  # good images at most among which the reference is chosen
ENOUGH = 0.5  # of the good images' usual correlation with it, that an image needs
SAID = 5  # names in a sentence


class Prepared(NamedTuple):
    """A frame, the size (height, width) at which the detector sees it or its tiles, and each image's pose by name;
    `unaligned` are names of test images that have none."""

    framing: Framing
    image_size: tuple[int, int]
    poses: Mapping[str, alignment.Pose]
    unaligned: frozenset[str]
    warnings: tuple[str, ...]

    def training_samples(
        self, samples: Sequence[Sample], folder: Path, items: Mapping[str, str], progress: Progress = silent
    ) -> dict[str, list[Sample]]:
        """Writes what the detector learns from of each image into `folder`; gives these samples by the image's
        name. `items` are the images' items, which their tiles share."""
        folder.mkdir(parents=True, exist_ok=True)
        taught: dict[str, list[Sample]] = {}
        for number, sample in enumerate(progress(samples, "framing", len(samples))):
            seen, _ = self.framing.to_frame(load_image(sample.path), self.poses.get(sample.name))
            tiles = []
            for left, top, right, bottom in self.framing.boxes:
                file = folder / f"{number:06}-{left}-{top}.png"
                Image.fromarray(seen[top:bottom, left:right]).save(file, compress_level=1)
                name = f"{sample.name}@{left},{top}" if self.framing.frame.tile else sample.name
                tiles.append(replace(sample, path=file, name=name, mask=None, group=items.get(sample.name, "")))
            taught[sample.name] = tiles
        return taught

    def write(self, folder: Path) -> None:
        """Into a bundle: what the line needs of the frame besides the card."""
        if self.framing.roi is not None:
            Image.fromarray(self.framing.roi.astype(np.uint8) * np.uint8(255)).save(folder / ROI, optimize=True)
        if self.framing.reference is not None:
            Image.fromarray(self.framing.reference).save(folder / REFERENCE, optimize=True)


def check(config: TrainConfig) -> None:
    """Raises `BlemishError` for a frame that cannot be had, before the work."""
    if not _asked(config):
        return
    if config.folds:
        raise BlemishError("--folds knows neither --tile nor --roi nor --align; omit it, or those.")
    if config.tile and config.detector in FROM_BOTH:
        raise BlemishError(
            f"A label says nothing about the tiles of an image, so {config.detector} cannot learn from them; omit "
            "--tile, or take a detector that learns from good images alone."
        )
    if config.tile and config.tile < LEAST_TILE:
        raise BlemishError(f"--tile {config.tile} is too small; give at least {LEAST_TILE} pixels.")
    if config.tile and not 0 <= config.overlap <= config.tile // 2:
        raise BlemishError(f"--overlap {config.overlap} must be between 0 and half of --tile {config.tile}.")
    if config.align:
        alignment.opencv()
    if config.roi and not config.roi.is_file():
        raise BlemishError(f"{config.roi}: there is no such file; --roi takes a mask image or a .json of polygons.")


def prepare(config: TrainConfig, divided: Divided, area: int, progress: Progress = silent) -> Prepared | None:
    """The frame that was asked for, with tiles of about `area` pixels for the detector; None where none was.

    Raises `BlemishError` for a region that is none, tiles larger than the images, and images to learn from that
    cannot be aligned.
    """
    if not _asked(config):
        return None
    parts, warnings = divided.parts, list[str]()
    learned = [*parts.train, *parts.calibration]
    sizes = Counter(read_size(sample.path) for sample in learned)
    size = max(sizes, key=lambda one: (sizes[one], one))
    if others := sum(sizes.values()) - sizes[size]:
        warnings.append(
            f"{others} of {len(learned)} good images are not of {size[0]} x {size[1]} pixels, as most are; they are "
            "resized to that."
        )
    roi = read_roi(config.roi, size) if config.roi else None
    tile = None
    if config.tile:
        tile = min(config.tile, size[0]), min(config.tile, size[1])
        if tile == size:
            raise BlemishError(f"--tile {config.tile} is no smaller than the images ({size[0]} x {size[1]}); omit it.")
    image_size = config.image_size or shape_for((tile or size)[0] / (tile or size)[1], area)
    frame = Frame(
        size=size,
        map_size=map_size(size, tile, image_size) if tile else image_size,
        tile=tile,
        overlap=config.overlap if tile else 0,
        tiles=tile_corners(size, tile, config.overlap, roi) if tile else (),
        roi=roi is not None,
    )
    framing = Framing(frame, roi)
    poses: dict[str, alignment.Pose] = {}
    unaligned = frozenset[str]()
    if config.align:
        reference = _reference([s for s in learned if s.label != "anomaly"], size, progress)
        framing, poses, unaligned = _aligned(framing, reference, learned, parts.test, progress)
        if lost := [sample.name for sample in learned if sample.name in unaligned]:
            raise BlemishError(
                f"{_named(lost)}: cannot be aligned with the other images; take out what shows no whole part, or "
                "omit --align."
            )
        if unaligned:
            warnings.append(
                f"{_named(sorted(unaligned))}: cannot be aligned, so the verdict is 'error'; left out of the test."
            )
    if roi is not None:
        warnings += _outside(framing, [s for s in parts.test if s.name not in unaligned], poses)
    return Prepared(framing, image_size, poses, unaligned, tuple(warnings))


def read_roi(file: Path, size: tuple[int, int]) -> Mask:
    """The region of interest, bool (H, W), of a frame `size` (width, height): from an image of that size, white where
    an image counts, or from JSON, `{"polygons": [[[x, y], ...], ...], "holes": [...]}` in its pixels.

    Raises `BlemishError` for anything else, and where nothing or everything is inside.
    """
    if file.suffix.lower() == ".json":
        roi = _drawn(file, size)
    else:
        found = read_size(file)
        if found != size:
            raise BlemishError(
                f"{file}: has {found[0]} x {found[1]} pixels, the images {size[0]} x {size[1]}; a region of interest "
                "must be as large as they are."
            )
        roi = load_mask(file, (size[1], size[0]))
    if not roi.any():
        raise BlemishError(f"{file}: nothing of the images is inside; mark where they count (white in a mask).")
    if roi.all():
        raise BlemishError(f"{file}: the whole image is inside, so it changes nothing; omit --roi.")
    return roi


def _drawn(file: Path, size: tuple[int, int]) -> Mask:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as cause:
        raise BlemishError(f"{file}: cannot be read as JSON ({cause}); mend it.") from None
    known = {"polygons", "holes"}
    if not isinstance(content, dict) or not content.get("polygons") or set(content) - known:
        raise BlemishError(f'{file}: must be {{"polygons": [[[x, y], ...], ...]}}, with "holes" alike where needed.')
    image = Image.new("L", size)
    pen = ImageDraw.Draw(image)
    for kind, value in (("polygons", 255), ("holes", 0)):
        for polygon in _polygons(content.get(kind, []), file):
            pen.polygon(polygon, fill=value, outline=value)
    return np.asarray(image) > 0


def _polygons(found: Any, file: Path) -> list[list[tuple[float, float]]]:
    try:
        polygons = [[(float(x), float(y)) for x, y in polygon] for polygon in found]
    except (TypeError, ValueError):
        polygons = [[]]
    points = [number for polygon in polygons for point in polygon for number in point]
    if any(len(polygon) < 3 for polygon in polygons) or not np.isfinite(points).all():
        raise BlemishError(f"{file}: a polygon is a list of at least three points [x, y], in pixels of the images.")
    return polygons


def _asked(config: TrainConfig) -> bool:
    return bool(config.tile or config.roi or config.align)


def _resized(sample: Sample, size: tuple[int, int]) -> alignment.Pixels:
    return resized(load_image(sample.path), size)


def _reference(goods: Sequence[Sample], size: tuple[int, int], progress: Progress) -> alignment.Pixels:
    """The good image whose part lies nearest to the median of all, so that little is shifted out of the frame."""
    some = goods[:: -(-len(goods) // COMPARED)]
    small = [alignment.reference_of(_resized(sample, size)) for sample in progress(some, "reference", len(some))]
    found = [alignment.find_pose(one, small[0]) for one in small]
    # Of each: where the corners of the reference lie in it.
    height, width = small[0].shape[:2]
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    places = np.array([pose @ corners for pose, _ in found])
    sure = np.array([correlation for _, correlation in found])
    usable = np.flatnonzero(sure >= ENOUGH * np.median(sure))
    apart = np.abs(places[usable] - np.median(places[usable], 0)).sum((1, 2))
    return small[int(usable[apart.argmin()])]


def _aligned(
    framing: Framing,
    reference: alignment.Pixels,
    learned: Sequence[Sample],
    tested: Sequence[Sample],
    progress: Progress,
) -> tuple[Framing, dict[str, alignment.Pose], frozenset[str]]:
    """The framing with its reference and the least correlation, all poses, and the names of images below it."""
    every = [*learned, *tested]
    found = {
        sample.name: alignment.find_pose(_resized(sample, framing.frame.size), reference)
        for sample in progress(every, "aligning", len(every))
    }
    normal_median = float(np.median([found[sample.name][1] for sample in learned]))
    if normal_median <= 0:
        raise BlemishError("The images are not alike enough to be aligned; omit --align.")
    frame = framing.frame.model_copy(update={"align": "ecc", "least_correlation": round(ENOUGH * normal_median, 4)})
    unaligned = frozenset(name for name, (_, sure) in found.items() if sure < frame.least_correlation)
    poses = {name: pose for name, (pose, _) in found.items() if name not in unaligned}
    return Framing(frame, framing.roi, reference), poses, unaligned


def _outside(framing: Framing, samples: Sequence[Sample], poses: Mapping[str, alignment.Pose]) -> list[str]:
    """Says which defects lie wholly outside the region."""
    lost = []
    for sample in samples:
        if sample.mask is None:
            continue
        size = read_size(sample.path)
        mask = load_mask(sample.mask, (size[1], size[0]))
        inside = framing.roi_in_image(size, poses.get(sample.name))
        if inside is not None and mask.any() and not (mask & inside).any():
            lost.append(sample.name)
    if not lost:
        return []
    return [
        f"{_named(lost)}: all that is defective lies outside the region of interest, so it cannot be found, and counts "
        "as missed."
    ]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SAID} more" if len(names) > SAID else ""
    return ", ".join(names[:SAID]) + more
