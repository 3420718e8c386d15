"""Boxes against drawn defects: which defects are hit, and which boxes are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blemish.inference.regions import components
from blemish.types import Region

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# When a box counts (see `judge_boxes`); docs/metrics.md says why, and what these values do to boxes of known worth.
IOU_ENOUGH = 0.3
HOLDS_ENOUGH = 0.5  # of a defect's pixels, or of a box's
HOLDS_SOME = 0.1  # of a defect's pixels
LARGEST_BOX = 0.25  # of the image


@dataclass(frozen=True, slots=True)
class BoxStatistics:
    """Numbers of one image: its defects and those `hit`, its boxes and those that are `right`."""

    defects: int
    hit: int
    boxes: int
    right: int


def judge_boxes(mask: Mask | None, regions: Sequence[Region], size: tuple[int, int]) -> BoxStatistics:
    """Which defects of `mask` (H, W) are hit, and which boxes are right, in an image of `size` (width, height) pixels.

    A defect is an 8-connected component of the mask; None is a mask without any. The IoU of two boxes is their common
    area over the area of both together. A box is *specific* if it covers at most a quarter of the image or has an IoU
    of at least 0.3 with a defect's bounding box; otherwise a box around the whole image would hit everything.

    A defect is hit if its bounding box has that IoU with a box, or if the specific boxes together hold at least half
    of its pixels, so that whoever looks into the boxes sees it. IoU alone would be unfair to small defects (a map cell
    is often larger than they are), any overlap at all too lax, and a long scratch may well be found in pieces.

    A box is right if it has that IoU with a defect, or if it is specific and either holds at least a tenth of a
    defect's pixels (a piece of a scratch) or is itself at least half defective (a place within a large stain).

    Raises ValueError for a box outside the image.

    >>> mask = np.zeros((100, 100), bool)
    >>> mask[10:20, 10:20] = True
    >>> judge_boxes(mask, [Region((10, 15, 40, 45), 900, 1), Region((0, 0, 100, 100), 10000, 1)], (100, 100))
    BoxStatistics(defects=1, hit=1, boxes=2, right=1)
    """
    if mask is None or not mask.any():
        return BoxStatistics(0, 0, len(regions), 0)
    labels, count = components(mask)
    pixels = np.bincount(labels.ravel(), minlength=count + 1)
    bounding = _bounding_boxes(labels, count)
    hit, right = np.zeros(count + 1, bool), 0
    covered = np.zeros(mask.shape, bool)  # by specific boxes
    for region in regions:
        box = _scaled(region, size, mask.shape)
        window = np.s_[box[1] : box[3], box[0] : box[2]]
        area = labels[window].size
        if not area:
            raise ValueError(f"the box {region.box} lies outside its image of {size}")
        inside = np.bincount(labels[window].ravel(), minlength=count + 1)[1:]  # of each defect's pixels
        alike = _iou(box, bounding) >= IOU_ENOUGH
        specific = bool(alike.any()) or area <= LARGEST_BOX * mask.size
        hit[1:] |= alike
        if specific:
            covered[window] = True
        shows = (inside / pixels[1:]).max() >= HOLDS_SOME or inside.sum() / area >= HOLDS_ENOUGH
        right += bool(alike.any() or (specific and shows))
    seen = np.bincount(labels[covered], minlength=count + 1)
    hit |= seen >= HOLDS_ENOUGH * pixels
    return BoxStatistics(count, int(hit[1:].sum()), len(regions), right)


def _scaled(region: Region, size: tuple[int, int], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The region's box (left, top, right, bottom) in pixels of a mask of `shape` (H, W), rounded outwards."""
    (height, width), (left, top, right, bottom) = shape, region.box
    return np.array(
        [
            left * width // size[0],
            top * height // size[1],
            -(-right * width // size[0]),
            -(-bottom * height // size[1]),
        ],
        np.int64,
    )


def _bounding_boxes(labels: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """Half-open boxes (count, 4) of the components 1..count."""
    rows, columns = np.nonzero(labels)
    number = labels[rows, columns] - 1
    boxes = np.tile(np.array([labels.shape[1], labels.shape[0], 0, 0], np.int64), (count, 1))
    for side, position in enumerate((columns, rows)):
        np.minimum.at(boxes[:, side], number, position)
        np.maximum.at(boxes[:, side + 2], number, position + 1)
    return boxes


def _iou(box: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> Floats:
    """(n,) of a box (4,) with others (n, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = sides.clip(0).prod(1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return np.asarray(common / (area - common), np.float64)
