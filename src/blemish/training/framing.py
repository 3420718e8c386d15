"""How training shows images to the detector: as they are, or in a frame (`--tile`, `--roi`, `--align`). Framed images
or tiles are made by the same `inference.framing.Framing` that inference uses, and written as files for the detector to
learn from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from blemish.data.split import Split
from blemish.detectors.interface import DetectorConfig, Traits
from blemish.images import decode, load_mask, read_size
from blemish.inference import alignment
from blemish.inference.bundle import REFERENCE, ROI, Frame, made
from blemish.inference.framing import Framing, Mask
from blemish.inference.resizing import resized
from blemish.inference.tiling import map_size, tile_corners
from blemish.training.config import FrameRule
from blemish.training.roi import check_file, check_seen, read_roi
from blemish.training.splits import auto_size, shape_for
from blemish.types import BlemishError, Progress, Runner, Sample, silent

SMALLEST_TILE = 32  # pixels
REFERENCE_CANDIDATES = 50  # at most so many good images are compared to choose the reference
LEAST_CORRELATION = 0.5  # of an image with the reference, as a share of the good images' median
NAMES_SHOWN = 5  # in a sentence
LEFT_OUT = "they are left out of learning"


@dataclass(frozen=True)
class Seen:
    """How the detector sees images: `image_size` (height, width) of an image or a tile and, with a frame, its
    `framing`, the poses by image name, and the names of images that cannot be aligned. Without a frame, images go to
    the graph as they are."""

    image_size: tuple[int, int]
    framing: Framing | None = None
    poses: Mapping[str, alignment.Pose] = field(default_factory=dict)
    unaligned: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    @property
    def frame(self) -> Frame | None:
        return self.framing.frame if self.framing else None

    def over(self, run: Runner) -> Runner:
        """Wraps a graph's `run` so that it takes whole images of any size."""
        return self.framing.wrap(run) if self.framing else run

    def training_samples(
        self, samples: Sequence[Sample], folder: Path, items: Mapping[str, str], progress: Progress = silent
    ) -> dict[str, list[Sample]]:
        """The training samples of each image, by the image's name: the image itself or, with a frame, the framed image
        or tiles, written into `folder` with their masks. `items` are the items by image name; tiles belong to the item
        of their image. Of a defective image only the tiles with a defect are used: where it is, is known only with a
        mask. A defective image has no samples where none of its mask is in the region of interest, or where it cannot
        be aligned."""
        if self.framing is None:
            return {s.name: [replace(s, group=items.get(s.name, s.group))] for s in samples}
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, list[Sample]] = {}
        for number, sample in enumerate(progress(samples, "framing", len(samples))):
            if sample.name in self.unaligned:
                continue
            framed, pose = self.framing.to_frame(decode(sample), self.poses.get(sample.name))
            mask = self._framed_mask(sample, pose)
            item = items.get(sample.name) or sample.item
            whole = replace(sample, group=item, pixels=None, sha256="")
            tiles = []
            for left, top, right, bottom in self.framing.boxes:
                part = None if mask is None else mask[top:bottom, left:right]
                name = sample.name
                tiled = self.framing.frame.tile is not None
                if sample.label == "anomaly" and (not part.any() if part is not None else tiled):
                    continue
                if tiled:
                    name = f"{sample.name}@{left},{top}"
                file = folder / f"{number:06}-{left}-{top}.png"
                Image.fromarray(framed[top:bottom, left:right]).save(file, compress_level=1)
                drawn = None
                if part is not None:
                    drawn = file.with_name(f"{file.stem}-mask.png")
                    Image.fromarray(part.astype(np.uint8) * np.uint8(255)).save(drawn)
                tiles.append(replace(whole, path=file, name=name, mask=drawn))
            written[sample.name] = tiles
        return written

    def _framed_mask(self, sample: Sample, pose: alignment.Pose | None) -> Mask | None:
        if sample.mask is None or self.framing is None:
            return None
        width, height = read_size(sample.path)
        return self.framing.mask_to_frame(load_mask(sample.mask, (height, width)), pose)

    def write(self, folder: Path) -> None:
        """Writes the region of interest and the reference into a bundle, which inference needs besides the card."""
        if self.framing and self.framing.roi is not None:
            Image.fromarray(self.framing.roi.astype(np.uint8) * np.uint8(255)).save(folder / ROI, optimize=True)
        if self.framing and self.framing.reference is not None:
            Image.fromarray(self.framing.reference).save(folder / REFERENCE, optimize=True)


def check(rule: FrameRule, traits: Traits) -> None:
    """Raises `BlemishError`, before any work, for an impossible frame."""
    if rule.tile and traits.classifies:
        raise BlemishError(
            f"A label says nothing about the tiles of an image, so {traits.name} cannot learn from them; omit "
            "--tile, or use a detector that learns from good images alone."
        )
    if rule.tile and rule.tile < SMALLEST_TILE:
        raise BlemishError(f"--tile {rule.tile} is too small; give at least {SMALLEST_TILE} pixels.")
    if rule.tile and not 0 <= rule.overlap <= rule.tile // 2:
        raise BlemishError(f"--overlap {rule.overlap} must be between 0 and half of --tile {rule.tile}.")
    if rule.align:
        alignment.opencv()
    if rule.roi:
        check_file(rule.roi)


def how_seen(
    rule: FrameRule,
    split: Split,
    settings: DetectorConfig,
    image_size: tuple[int, int] | None = None,
    progress: Progress = silent,
) -> Seen:
    """The size and the frame in which the detector sees images. If `image_size` is None, the size is chosen from the
    images, with about as many pixels as in `settings`.

    Raises `BlemishError` for an invalid region of interest, for tiles that are not smaller than the images, and for
    training images that cannot be aligned.
    """
    area = settings.image_size[0] * settings.image_size[1]
    if not rule.asked:
        return Seen(image_size or auto_size(split.train, area))
    warnings = list[str]()
    learned = [*split.train, *split.calibration]
    sizes = Counter(read_size(sample.path) for sample in learned)
    size = max(sizes, key=lambda size: (sizes[size], size))
    if others := sum(sizes.values()) - sizes[size]:
        warnings.append(
            f"{others} of {len(learned)} good images are not of {size[0]} x {size[1]} pixels, as most are; they are "
            "resized to that."
        )
    roi = read_roi(rule.roi, size) if rule.roi else None
    frame = _frame(rule, size, roi, image_size, area)
    unlocated = sum(sample.label == "anomaly" and sample.mask is None for sample in split.train)
    if rule.tile and unlocated:
        warnings.append(
            f"{unlocated} defective training images have no mask, so which of their tiles are defective is not known; "
            "left out of learning."
        )
    width, height = frame.tile or size
    seen_at = image_size or shape_for(width / height, area)
    if rule.roi and roi is not None:
        check_seen(rule.roi, roi, (seen_at[1] / width, seen_at[0] / height))
    framing = Framing(frame, roi)
    poses: dict[str, alignment.Pose] = {}
    unaligned = frozenset[str]()
    if rule.align:
        reference = _reference([s for s in learned if s.label != "anomaly"], size, progress)
        framing, poses, unaligned = _aligned(framing, reference, learned, split.test, progress)
        lost = [sample.name for sample in learned if sample.name in unaligned and sample.label != "anomaly"]
        if left_out := [s.name for s in learned if s.name in unaligned and s.label == "anomaly"]:
            warnings.append(f"{_named(left_out)}: cannot be aligned; left out of learning.")
        if lost:
            raise BlemishError(
                f"{_named(lost)}: cannot be aligned with the other images; remove images without a whole part, or omit "
                "--align."
            )
        if untested := sorted(sample.name for sample in split.test if sample.name in unaligned):
            warnings.append(f"{_named(untested)}: cannot be aligned, so the verdict is 'error'; left out of the test.")
    if roi is not None:
        for samples, so in ((split.test, "they cannot be found and count as missed"), (split.train, LEFT_OUT)):
            if outside := _defects_outside(framing, [s for s in samples if s.name not in unaligned], poses):
                warnings.append(f"{_named(outside)}: all defects lie outside the region of interest, so {so}.")
    return Seen(seen_at, framing, poses, unaligned, tuple(warnings))


def _frame(
    rule: FrameRule, size: tuple[int, int], roi: Mask | None, image_size: tuple[int, int] | None, area: int
) -> Frame:
    """The frame for images of `size` (width, height)."""
    tile = None
    if rule.tile:
        tile = min(rule.tile, size[0]), min(rule.tile, size[1])
        if tile == size:
            raise BlemishError(f"--tile {rule.tile} is no smaller than the images ({size[0]} x {size[1]}); omit it.")
    width, height = tile or size
    seen_at = image_size or shape_for(width / height, area)
    return made(
        Frame,
        size=size,
        map_size=map_size(size, tile, seen_at) if tile else seen_at,
        tile=tile,
        overlap=rule.overlap if tile else 0,
        tiles=tile_corners(size, tile, rule.overlap, roi) if tile else (),
        roi=roi is not None,
    )


def _resized(sample: Sample, size: tuple[int, int]) -> alignment.Pixels:
    return resized(decode(sample), size)


def _reference(goods: Sequence[Sample], size: tuple[int, int], progress: Progress) -> alignment.Pixels:
    """The good image whose part is closest to the median position, so that little is shifted out of the frame."""
    candidates = goods[:: -(-len(goods) // REFERENCE_CANDIDATES)]
    small = [
        alignment.reference_of(_resized(sample, size)) for sample in progress(candidates, "reference", len(candidates))
    ]
    poses = [alignment.find_pose(image, small[0]) for image in small]
    # The corners of the first image in the coordinates of each.
    height, width = small[0].shape[:2]
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    positions = np.array([pose @ corners for pose, _ in poses])
    correlations = np.array([correlation for _, correlation in poses])
    usable = np.flatnonzero(correlations >= LEAST_CORRELATION * np.median(correlations))
    distances = np.abs(positions[usable] - np.median(positions[usable], 0)).sum((1, 2))
    return small[int(usable[distances.argmin()])]


def _aligned(
    framing: Framing,
    reference: alignment.Pixels,
    learned: Sequence[Sample],
    tested: Sequence[Sample],
    progress: Progress,
) -> tuple[Framing, dict[str, alignment.Pose], frozenset[str]]:
    """The framing with its reference and least correlation, the poses by image name, and the names of the images whose
    correlation is lower."""
    samples = [*learned, *tested]
    poses = {
        sample.name: alignment.find_pose(_resized(sample, framing.frame.size), reference)
        for sample in progress(samples, "aligning", len(samples))
    }
    median = float(np.median([poses[sample.name][1] for sample in learned]))
    if median <= 0:
        raise BlemishError("The images are too different to be aligned; omit --align.")
    frame = framing.frame.model_copy(update={"align": "ecc", "least_correlation": round(LEAST_CORRELATION * median, 4)})
    unaligned = frozenset(name for name, (_, correlation) in poses.items() if correlation < frame.least_correlation)
    aligned = {name: pose for name, (pose, _) in poses.items() if name not in unaligned}
    return Framing(frame, framing.roi, reference), aligned, unaligned


def _defects_outside(framing: Framing, samples: Sequence[Sample], poses: Mapping[str, alignment.Pose]) -> list[str]:
    """The images whose defects lie wholly outside the region of interest."""
    outside = []
    for sample in samples:
        if sample.mask is None:
            continue
        size = read_size(sample.path)
        mask = load_mask(sample.mask, (size[1], size[0]))
        inside = framing.roi_in_image(size, poses.get(sample.name))
        if inside is not None and mask.any() and not (mask & inside).any():
            outside.append(sample.name)
    return outside


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
