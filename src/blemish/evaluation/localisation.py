"""Does the detector point at the defect? Figures of pixels, and of the boxes that people see.

Each image is boiled down once to histograms of its map over shared thresholds. Every figure follows from
sums of these, so that a bootstrap over images is a matrix product, and memory does not grow with the
images' size.

Images are judged at their own size, reduced until no side is over 512 pixels: maps are enlarged bilinearly
to it, and each defect of a reduced mask keeps its share of the image, so that a hairline crack does not
vanish.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.evaluation.bootstrap import Interval, intervals
from blemish.evaluation.detection import area_under_roc, average_precision_of
from blemish.inference.framing import cells_of
from blemish.inference.regions import components
from blemish.types import Progress, Region, silent

Floats = npt.NDArray[np.float64]
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LONGEST_SIDE = 512
FALSE_POSITIVE_LIMIT = 0.3  # up to which AUPRO is integrated (Bergmann et al. 2020)
SAMPLE = 2_000_000  # values looked at to place the thresholds

# When a box counts (see `judge_boxes`).
IOU_ENOUGH = 0.3
HOLDS_ENOUGH = 0.5
HOLDS_SOME = 0.1
BOX_LIMIT = 0.25


@dataclass(frozen=True, slots=True)
class PixelStatistics:
    """All that the figures of pixels need of n images, over K bins of map values, highest first.

    `good` and `defect` (n, K) count pixels. `overlap` (n, K) sums, over an image's `regions` (n,), the share
    of each region's pixels in the bin. A region is an 8-connected component of the mask. `pointed` (n,) is 1
    where the centre of the map's highest cell, the first in reading order of equals, lies in a region.
    """

    good: Floats
    defect: Floats
    overlap: Floats
    regions: Floats
    pointed: Floats


@dataclass(frozen=True, slots=True)
class BoxStatistics:
    """Of one image: its defects and those hit, its boxes and those that are right."""

    defects: int
    hit: int
    boxes: int
    right: int


def evaluation_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) at which an image of `size` is judged."""
    factor = min(1.0, LONGEST_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize_map(anomaly_map: Map, size: tuple[int, int]) -> Map:
    """The map (h, w) at `size` (width, height), bilinear; averaged first where it is larger than that."""
    if anomaly_map.shape == (size[1], size[0]):
        return anomaly_map
    field = Image.fromarray(np.ascontiguousarray(anomaly_map, np.float32))
    return np.asarray(field.resize(size, Image.Resampling.BILINEAR))


def reduce_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """The mask (H, W) at `size` (width, height), in which no defect vanishes.

    A pixel is defective where a defect covers at least half of it. A defect (8-connected component) that
    would lose more than half of its area by this, as hairline cracks and dots do, keeps every pixel that it
    touches: a line cannot be thinner than a pixel, and must not fall into pieces, each of which AUPRO would
    count as a region.
    """
    if mask.shape == (size[1], size[0]):
        return mask
    rows = np.arange(mask.shape[0]) * size[1] // mask.shape[0]
    columns = np.arange(mask.shape[1]) * size[0] // mask.shape[1]
    if size[1] > mask.shape[0] or size[0] > mask.shape[1]:
        down = np.arange(size[1]) * mask.shape[0] // size[1]
        across = np.arange(size[0]) * mask.shape[1] // size[0]
        return np.asarray(mask[np.ix_(down, across)], bool)
    labels, count = components(mask)
    y, x = np.nonzero(mask)
    cells = size[0] * size[1]
    owned = (labels[y, x].astype(np.int64) - 1) * cells + rows[y] * size[0] + columns[x]
    owned, covered = np.unique(owned, return_counts=True)
    owner, cell = owned // cells, owned % cells
    room = np.bincount(rows)[cell // size[0]] * np.bincount(columns)[cell % size[0]]
    half = covered >= 0.5 * room
    left_over = np.bincount(owner, weights=half, minlength=count)
    area = np.bincount(owner, weights=covered, minlength=count) * cells / mask.size
    reduced = np.zeros(cells, bool)
    reduced[cell[half | (left_over < area / 2)[owner]]] = True
    return reduced.reshape(size[1], size[0])


def thresholds_for(maps: Sequence[Map], masks: Sequence[Mask | None], sizes: Sequence[tuple[int, int]]) -> Map:
    """Rising thresholds (at most 2,402) that cut N maps (h, w) finely wherever a curve can bend.

    Quantiles of defective and of good pixels apart, as the former are few; and of the good ones' upper tail
    once more, on a logarithmic scale, since there precision is decided. `masks` are at the evaluation size,
    None = good.
    """
    each = max(1, SAMPLE // max(1, len(maps)))
    good, defect = [], []
    for values, mask, size in zip(maps, masks, sizes, strict=True):
        if mask is None or not mask.any():
            good.append(_thinned(values.ravel(), each))
            continue
        enlarged = resize_map(values, evaluation_size(size))
        defect.append(_thinned(enlarged[mask], each))
        good.append(_thinned(enlarged[~mask], each))
    levels = np.linspace(0, 1, 1000)
    tail = 1 - np.geomspace(1e-6, 0.3, 400)
    cuts = [
        np.quantile(np.concatenate(good), np.concatenate([levels, tail])),
        [min(m.min() for m in maps), max(m.max() for m in maps)],
    ]
    if defect:
        cuts.append(np.quantile(np.concatenate(defect), levels))
    return np.unique(np.concatenate(cuts).astype(np.float32))


def _thinned(values: Map, most: int) -> Map:
    return values[:: -(-len(values) // most)] if len(values) else values


def cut(mask: Mask | None, counts: Mask | None) -> Mask | None:
    """The mask where pixels count; None of either stands for no mask, and for an image that counts as a whole."""
    return mask if mask is None or counts is None else mask & counts


def judged(counts: Mask | None, size: tuple[int, int]) -> Mask | None:
    """Where pixels of an image `size` (width, height) count, at the evaluation size."""
    width, height = evaluation_size(size)
    return None if counts is None else cells_of(counts, (height, width))


def collect(
    items: Iterable[tuple[Map, Mask | None, tuple[int, int]]],
    thresholds: Map,
    inside: Iterable[Mask | None] = repeat(None),
) -> PixelStatistics:
    """Histograms of images, each a map (h, w), a mask at the evaluation size or None, and (width, height).

    `thresholds` (K - 1,) rise; bin k, counted from the highest, holds the values from one of them up to the
    next. Of each image only the pixels count that `inside`, at the evaluation size, marks; None = all.
    """
    bins = len(thresholds) + 1
    good, defect, overlap = list[Floats](), list[Floats](), list[Floats]()
    regions, pointed = list[int](), list[bool]()
    for (anomaly_map, mask, size), counting in zip(items, inside, strict=False):
        values = resize_map(anomaly_map, evaluation_size(size))
        mask = cut(mask, counting)
        everything = _histogram(values.ravel() if counting is None else values[counting], thresholds)
        if mask is None or not mask.any():
            good.append(everything)
            defect.append(np.zeros(bins))
            overlap.append(np.zeros(bins))
            regions.append(0)
            pointed.append(False)
            continue
        if mask.shape != values.shape:
            raise ValueError(f"expected a mask {values.shape}, the evaluation size; got {mask.shape}")
        labels, count = components(mask)
        inside, region = bins - 1 - np.searchsorted(thresholds, values[mask], side="right"), labels[mask]
        defect.append(_histogram(values[mask], thresholds))
        good.append(everything - defect[-1])
        share = 1 / np.bincount(region)[region]
        overlap.append(np.bincount(inside, weights=share, minlength=bins).astype(np.float64))
        regions.append(count)
        # The cell's centre, since enlarged maps are flat between the outermost centres and the edge.
        row, column = divmod(int(anomaly_map.argmax()), anomaly_map.shape[1])
        (height, width), (rows, columns) = mask.shape, anomaly_map.shape
        pointed.append(bool(mask[(2 * row + 1) * height // (2 * rows), (2 * column + 1) * width // (2 * columns)]))
    return PixelStatistics(
        good=np.array(good).reshape(-1, bins),
        defect=np.array(defect).reshape(-1, bins),
        overlap=np.array(overlap).reshape(-1, bins),
        regions=np.array(regions, np.float64),
        pointed=np.array(pointed, np.float64),
    )


def _histogram(values: Map, thresholds: Map) -> Floats:
    """Counts per bin (K,), highest first. Sorting 512 x 512 pixels took 2 ms, looking each one up 36 ms."""
    at_least = len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
    return np.diff(at_least[::-1], prepend=0, append=len(values)).astype(np.float64)


def pixel_figures(pixels: PixelStatistics, weights: Floats) -> dict[str, Floats]:
    """`pixel_auroc`, `aupro`, `pixel_average_precision`, `best_iou` and `pointing_game`, each (R,), for weights
    (R, n) of images.
    """
    good, defect = weights @ pixels.good, weights @ pixels.defect
    overlap = np.cumsum(weights @ pixels.overlap, axis=1) / _or_nan(weights @ pixels.regions)[:, None]
    false_positives = np.cumsum(good, axis=1)
    best_iou = (np.cumsum(defect, axis=1) / (defect.sum(1)[:, None] + false_positives).clip(1)).max(1)
    return {
        "pixel_auroc": area_under_roc(defect, good),
        "aupro": area_under_pro(overlap, false_positives / _or_nan(good.sum(1))[:, None]),
        "pixel_average_precision": average_precision_of(defect, good),
        "best_iou": np.where(defect.sum(1) > 0, best_iou, np.nan),
        # Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop", without their 15 pixels of grace.
        "pointing_game": (weights @ pixels.pointed) / _or_nan(weights @ (pixels.regions > 0)),
    }


def area_under_pro(overlap: Floats, rate: Floats, limit: float = FALSE_POSITIVE_LIMIT) -> Floats:
    """Area under the overlap per region (R, K) over the false-positive rate (R, K) up to `limit`, as a share.

    Both rise with falling threshold and start at nothing flagged, (0, 0). By trapezoids, with the last cut at
    the limit, after Bergmann et al. 2020: 1 = every region wholly found before a single good pixel is
    flagged.
    """
    start = np.zeros((len(rate), 1))
    x, y = np.hstack([start, rate]), np.hstack([start, overlap])
    left, right = x[:, :-1], x[:, 1:]
    width = right - left
    share = np.clip(np.divide(limit - left, width, out=np.zeros_like(width), where=width > 0), 0, 1)
    area = share * width * (y[:, :-1] + share * (y[:, 1:] - y[:, :-1]) / 2)
    total: Floats = area.sum(1) / limit
    return np.where(np.isnan(x[:, -1]) | np.isnan(y[:, -1]), np.nan, total)


def _or_nan(values: Floats) -> Floats:
    return np.where(values > 0, values, np.nan)


def judge_boxes(mask: Mask | None, regions: Sequence[Region], size: tuple[int, int]) -> BoxStatistics:
    """Which defects of `mask` (H, W) are hit, and which boxes, in an image of (width, height), are right.

    A defect is an 8-connected component of the mask. A box is *telling* if it takes up at most a quarter of
    the image or has an IoU of at least 0.3 with a defect's own box: otherwise a box around the whole
    image would hit everything and tell nothing.

    A defect is hit if its own box has that IoU with one, or if the telling boxes together hold at least half
    of its pixels: whoever looks into the boxes then sees it. IoU alone would be unfair to small defects (a
    map cell is often larger than they are), any overlap at all would be too lax, and a long scratch may well
    be found in pieces.

    A box is right if it has that IoU with some defect, or if it is telling and holds at least a tenth of some
    defect's pixels (a piece of a scratch) or is itself at least half defective (a place within a large
    stain).
    """
    if mask is None or not mask.any():
        return BoxStatistics(0, 0, len(regions), 0)
    height, width = mask.shape
    labels, count = components(mask)
    pixels = np.bincount(labels.ravel(), minlength=count + 1)
    own = _boxes(labels, count)
    hit, right = np.zeros(count + 1, bool), 0
    looked_at = np.zeros(mask.shape, bool)
    for region in regions:
        left, top = region.box[0] * width // size[0], region.box[1] * height // size[1]
        end, bottom = -(-region.box[2] * width // size[0]), -(-region.box[3] * height // size[1])
        window = labels[top:bottom, left:end]
        if not window.size:
            raise ValueError(f"the box {region.box} lies outside its image of {size}")
        inside = np.bincount(window.ravel(), minlength=count + 1)
        alike = _iou(np.array([left, top, end, bottom]), own) >= IOU_ENOUGH
        telling = bool(alike.any()) or window.size <= BOX_LIMIT * mask.size
        hit[1:] |= alike
        holds = inside[1:] / pixels[1:]
        defective = inside[1:].sum() / window.size
        if telling:
            looked_at[top:bottom, left:end] = True
        points_there = holds.max() >= HOLDS_SOME or defective >= HOLDS_ENOUGH
        right += bool(alike.any() or (telling and points_there))
    seen = np.bincount(labels[looked_at], minlength=count + 1)
    hit |= seen >= HOLDS_ENOUGH * pixels
    return BoxStatistics(count, int(hit[1:].sum()), len(regions), right)


def _boxes(labels: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """Half-open boxes (count, 4) of the components 1..count."""
    rows, columns = np.nonzero(labels)
    number = labels[rows, columns] - 1
    boxes = np.tile(np.array([labels.shape[1], labels.shape[0], 0, 0], np.int64), (count, 1))
    for side, position in enumerate((columns, rows)):
        np.minimum.at(boxes[:, side], number, position)
        np.maximum.at(boxes[:, side + 2], number, position + 1)
    return boxes


def _iou(box: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> Floats:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = sides.clip(0).prod(1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return np.asarray(common / (area - common), np.float64)


def localisation_metrics(
    maps: Map,
    masks: Sequence[Mask | None],
    labels: npt.NDArray[np.bool_],
    regions: Sequence[Sequence[Region]],
    sizes: Sequence[tuple[int, int]],
    *,
    inside: Sequence[Mask | None] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: Progress = silent,
) -> dict[str, Interval | int]:
    """Every figure of localisation by name (docs/metrics.md explains each), with bootstrap intervals.

    `maps` (N, h, w) float32; `masks` of N, bool (H, W), True = defect, or None; `labels` (N,) bool, True =
    anomaly; `regions` and `sizes` (width, height) of the original images. Masks may be loaded lazily: each
    is asked for once. `inside` of N are the pixels that count, at the evaluation size, or None where all do.

    An anomaly without a mask, or with an empty one, says nothing about places: it is left out, boxes and all,
    and counted in `left_out`. All figures are undefined without any mask. `images`, `images_with_mask`,
    `defects` and `boxes` say how much the figures rest on. Raises ValueError where a good image's mask
    marks a defect.
    """
    count = len(labels)
    if not len(maps) == len(masks) == len(regions) == len(sizes) == count:
        raise ValueError(
            f"expected as many maps, masks, regions and sizes as labels ({count}); "
            f"got {len(maps)}, {len(masks)}, {len(regions)} and {len(sizes)}"
        )
    if maps.ndim != 3 or not np.isfinite(maps).all():
        raise ValueError(f"expected finite maps (N, h, w); got {maps.shape}")
    used: list[int] = []
    reduced: list[Mask | None] = []
    boxes: list[BoxStatistics] = []
    for i in progress(range(count), "masks and boxes", count):
        mask = masks[i]
        marked = mask is not None and bool(mask.any())
        if marked and not labels[i]:
            raise ValueError(f"image {i} is labelled good, but its mask marks a defect")
        if labels[i] and not marked:
            continue
        used.append(i)
        reduced.append(reduce_mask(mask, evaluation_size(sizes[i])) if mask is not None and marked else None)
        boxes.append(judge_boxes(mask, regions[i], sizes[i]))

    counted = np.array([[b.defects, b.hit, b.boxes, b.right] for b in boxes], np.float64).reshape(-1, 4)
    defects, _, all_boxes, _ = counted.sum(0)
    totals: dict[str, Interval | int] = {
        "images": len(used),
        "images_with_mask": int((counted[:, 0] > 0).sum()),
        "left_out": count - len(used),
        "defects": int(defects),
        "boxes": int(all_boxes),
    }
    if not defects:
        pixel_names = ("pixel_auroc", "aupro", "pixel_average_precision", "best_iou", "pointing_game")
        return {**dict.fromkeys((*pixel_names, "defects_hit", "boxes_right"), Interval(None)), **totals}

    thresholds = thresholds_for([maps[i] for i in used], reduced, [sizes[i] for i in used])
    stream = ((maps[i], mask, sizes[i]) for i, mask in zip(used, reduced, strict=True))
    counting = (inside[i] if inside else None for i in used)
    pixels = collect(progress(stream, "pixels", len(used)), thresholds, counting)

    def figures(weights: Floats) -> dict[str, Floats]:
        defects, hit, boxes, right = (weights @ counted).T
        return {
            **pixel_figures(pixels, weights),
            "defects_hit": hit / _or_nan(defects),
            "boxes_right": right / _or_nan(boxes),
        }

    return {**intervals(figures, labels[used], resamples=resamples, seed=seed, level=level), **totals}
