"""Pixel-level figures: does the map point at the defect?

Each image is reduced once to histograms of its map over shared thresholds. Every figure follows from sums of these, so
that a bootstrap over images is a matrix product, and the memory needed does not grow with the images' size.

Images are judged at their own size, reduced until no side exceeds 512 pixels. Maps are enlarged to it bilinearly, and
each defect of a reduced mask keeps its share of the image, so that a hairline crack does not vanish.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.evaluation.aupimo import TAIL, aupimo_figures
from blemish.evaluation.bootstrap import Interval, intervals
from blemish.evaluation.boxes import BoxStatistics, judge_boxes
from blemish.evaluation.detection import area_under_roc, average_precision_of
from blemish.inference.framing import cells_of
from blemish.inference.regions import components
from blemish.types import Progress, Region, silent

Floats = npt.NDArray[np.float64]
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LONGEST_SIDE = 512  # pixels
FALSE_POSITIVE_LIMIT = 0.3  # rate up to which AUPRO is integrated (Bergmann et al. 2020)
FIGURES = (
    "pixel_auroc",
    "aupro",
    "aupimo",
    "aupimo_p33",
    "pixel_average_precision",
    "best_iou",
    "pointing_game",
    "defects_hit",
    "boxes_right",
)
SAMPLE = 2_000_000  # map values used to place the thresholds


@dataclass(frozen=True, slots=True)
class PixelStatistics:
    """All that the pixel figures need of n images, over K bins of map values, highest first.

    `good` and `defect` (n, K) count pixels. `overlap` (n, K) is the sum, over an image's `regions` (n,), of the share
    of each region's pixels in the bin. A region is an 8-connected component of the mask. `pointed` (n,) is 1 where the
    centre of the map's highest cell lies in a region; of equal cells the first in reading order counts.
    """

    good: Floats
    defect: Floats
    overlap: Floats
    regions: Floats
    pointed: Floats


def evaluation_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels at which an image of `size` is judged.

    >>> evaluation_size((2048, 1000)), evaluation_size((300, 200))
    ((512, 250), (300, 200))
    """
    factor = min(1.0, LONGEST_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize_map(anomaly_map: Map, size: tuple[int, int]) -> Map:
    """The map (h, w) float32 at `size` (width, height), bilinear; where it is larger, averaged over the pixels that
    fall together.

    >>> resize_map(np.array([[0, 1]], np.float32), (4, 1)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    if anomaly_map.shape == (size[1], size[0]):
        return anomaly_map
    field = Image.fromarray(np.ascontiguousarray(anomaly_map, np.float32))
    return np.asarray(field.resize(size, Image.Resampling.BILINEAR))


def reduce_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """The mask (H, W) at `size` (width, height), in which no defect vanishes.

    A pixel is defective where a defect covers at least half of it. A defect (8-connected component) that would lose
    more than half of its area by this, as hairline cracks and dots do, keeps every pixel that it touches: a line cannot
    be thinner than a pixel, and must not fall into pieces, each of which AUPRO would count as a region.
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
    """Rising thresholds (at most 2,702) that cut N maps (h, w) finely wherever a curve can bend.

    They are quantiles of defective and of good pixels separately, as the former are few, and of the good pixels' upper
    tail again on a logarithmic scale, since precision is decided there; and of that of good images alone, in which
    AUPIMO lies. `masks` are at the evaluation size, None = good; `sizes` are the images' (width, height).
    """
    each = max(1, SAMPLE // max(1, len(maps)))
    normal, good, defect = [], [], []
    for values, mask, size in zip(maps, masks, sizes, strict=True):
        if mask is None or not mask.any():
            normal.append(_thinned(values.ravel(), each))
            continue
        enlarged = resize_map(values, evaluation_size(size))
        defect.append(_thinned(enlarged[mask], each))
        good.append(_thinned(enlarged[~mask], each))
    levels = np.linspace(0, 1, 1000)
    tail = 1 - np.geomspace(1e-6, 0.3, 400)
    cuts = [
        np.quantile(np.concatenate([*normal, *good]), np.concatenate([levels, tail])),
        [min(m.min() for m in maps), max(m.max() for m in maps)],
    ]
    if normal:
        cuts.append(np.quantile(np.concatenate(normal), TAIL))
    if defect:
        cuts.append(np.quantile(np.concatenate(defect), levels))
    return np.unique(np.concatenate(cuts).astype(np.float32))


def _thinned(values: Map, most: int) -> Map:
    return values[:: -(-len(values) // most)] if len(values) else values


def cut(mask: Mask | None, counts: Mask | None) -> Mask | None:
    """The mask limited to the pixels that count. A mask of None stays None; `counts` of None means that all count."""
    return mask if mask is None or counts is None else mask & counts


def judged(counts: Mask | None, size: tuple[int, int]) -> Mask | None:
    """`counts` (H, W), the pixels that count of an image of `size` (width, height), at the evaluation size."""
    width, height = evaluation_size(size)
    return None if counts is None else cells_of(counts, (height, width))


def collect(
    items: Iterable[tuple[Map, Mask | None, tuple[int, int]]],
    thresholds: Map,
    inside: Iterable[Mask | None] = repeat(None),
) -> PixelStatistics:
    """Histograms of images, each given as a map (h, w), a mask at the evaluation size or None, and (width, height).

    `thresholds` (K - 1,) rise; each of the K bins, highest first, holds the values from one of them up to the next.
    Only the pixels that an image's `inside` marks, at the evaluation size, count; None = all. Raises ValueError for a
    mask of another size.
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
        # The cell's centre, since an enlarged map is flat between the outermost centres and the edge.
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
    """Counts per bin (K,), highest first. Sorting 512 x 512 pixels took 2 ms, searching for each one 36 ms."""
    at_least = len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
    return np.diff(at_least[::-1], prepend=0, append=len(values)).astype(np.float64)


def pixel_figures(pixels: PixelStatistics, weights: Floats) -> dict[str, Floats]:
    """Pixel figures, each (R,) in 0..1 and NaN where undefined, for weights (R, n) of images.

    `pixel_auroc` and `pixel_average_precision` are `area_under_roc` and `average_precision_of` pixels. `aupro` is
    `area_under_pro`. `best_iou` is the highest defective pixels flagged / (defective + good pixels flagged) over all
    thresholds (Jaccard 1901). `pointing_game` is the share of images with a mask whose highest map cell lies in it
    (Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop", without their 15 pixels of tolerance).
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
        "pointing_game": (weights @ pixels.pointed) / _or_nan(weights @ (pixels.regions > 0)),
    }


def area_under_pro(overlap: Floats, rate: Floats, limit: float = FALSE_POSITIVE_LIMIT) -> Floats:
    """AUPRO (Bergmann et al. 2020): area under the mean overlap per region (R, K) over the false-positive rate (R, K)
    up to `limit`, divided by `limit`: (R,) in 0..1.

    Both rise with falling threshold; the curve starts at (0, 0), nothing flagged. Integrated by trapezoids, the last of
    them cut at the limit. 1 = every region is covered before a single good pixel is flagged; chance gets limit / 2.

    >>> float(area_under_pro(np.array([[0.5, 1.0]]), np.array([[0.0, 1.0]]), limit=0.5)[0])  # (0.5 + 0.75) / 2
    0.625
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
    """All localisation figures by name (docs/metrics.md explains each), with bootstrap intervals over images: those of
    `pixel_figures` and `aupimo_figures`, `defects_hit` = defects hit / defects and `boxes_right` = right boxes / boxes
    (`judge_boxes`).

    `maps` (N, h, w) are finite float32; `masks` are N, each bool (H, W), True = defect, or None; `labels` (N,) bool,
    True = anomaly; `regions` and `sizes` (width, height) are of the original images. Masks may be loaded lazily: each
    is requested once. `inside` are N, the pixels that count at the evaluation size, or None where all do.

    An anomaly without a mask, or with an empty one, says nothing about places: it is left out, boxes included, and
    counted in `left_out`. Without any mask all figures are undefined. `images`, `images_with_mask`, `defects` and
    `boxes` say how much the figures rest on. Raises ValueError where lengths differ, maps are not finite, or a good
    image's mask marks a defect.
    """
    _check(maps, masks, labels, regions, sizes)
    used, reduced, boxes = _judged_images(masks, labels, regions, sizes, progress)
    counted = np.array([[b.defects, b.hit, b.boxes, b.right] for b in boxes], np.float64).reshape(-1, 4)
    totals: dict[str, Interval | int] = {
        "images": len(used),
        "images_with_mask": int((counted[:, 0] > 0).sum()),
        "left_out": len(labels) - len(used),
        "defects": sum(b.defects for b in boxes),
        "boxes": sum(b.boxes for b in boxes),
    }
    if not totals["defects"]:
        return {**dict.fromkeys(FIGURES, Interval(None)), **totals}

    thresholds = thresholds_for([maps[i] for i in used], reduced, [sizes[i] for i in used])
    stream = ((maps[i], mask, sizes[i]) for i, mask in zip(used, reduced, strict=True))
    counting = (inside[i] if inside else None for i in used)
    pixels = collect(progress(stream, "pixels", len(used)), thresholds, counting)

    def figures(weights: Floats) -> dict[str, Floats]:
        defects, hit, boxes, right = (weights @ counted).T
        return {
            **pixel_figures(pixels, weights),
            **aupimo_figures(pixels.good, pixels.defect, ~labels[used], weights),
            "defects_hit": hit / _or_nan(defects),
            "boxes_right": right / _or_nan(boxes),
        }

    return {**intervals(figures, labels[used], resamples=resamples, seed=seed, level=level), **totals}


def _check(
    maps: Map,
    masks: Sequence[Mask | None],
    labels: npt.NDArray[np.bool_],
    regions: Sequence[Sequence[Region]],
    sizes: Sequence[tuple[int, int]],
) -> None:
    if not len(maps) == len(masks) == len(regions) == len(sizes) == len(labels):
        raise ValueError(
            f"expected as many maps, masks, regions and sizes as labels ({len(labels)}); "
            f"got {len(maps)}, {len(masks)}, {len(regions)} and {len(sizes)}"
        )
    if maps.ndim != 3 or not np.isfinite(maps).all():
        raise ValueError(f"expected finite maps (N, h, w); got {maps.shape}")


def _judged_images(
    masks: Sequence[Mask | None],
    labels: npt.NDArray[np.bool_],
    regions: Sequence[Sequence[Region]],
    sizes: Sequence[tuple[int, int]],
    progress: Progress,
) -> tuple[list[int], list[Mask | None], list[BoxStatistics]]:
    """The indices of the images that say something about places, their masks at the evaluation size, and their
    boxes judged."""
    used: list[int] = []
    reduced: list[Mask | None] = []
    boxes: list[BoxStatistics] = []
    for i in progress(range(len(labels)), "masks and boxes", len(labels)):
        mask = masks[i]
        marked = mask is not None and bool(mask.any())
        if marked and not labels[i]:
            raise ValueError(f"image {i} is labelled good, but its mask marks a defect")
        if labels[i] and not marked:
            continue
        used.append(i)
        reduced.append(reduce_mask(mask, evaluation_size(sizes[i])) if mask is not None and marked else None)
        boxes.append(judge_boxes(mask, regions[i], sizes[i]))
    return used, reduced, boxes
