"""Anomaly map -> boxes: 8-connected components by union-find over runs, in numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from blemish.types import Region

if TYPE_CHECKING:
    import numpy.typing as npt

# A region around a peak ends where the map falls to a share of the peak's height over the normal median: where the
# threshold is, but not above REACH of the height and not below STEEP. Chosen on the demo line, see docs/metrics.md.
REACH, STEEP = 0.4, 0.3
ONE = 0.7  # the level of the one box around a class activation map, see `single_box`


class Runs(NamedTuple):
    """The horizontal runs of a mask (H, W), half-open, in reading order. Cells are counted as if each row had one empty
    cell more at its end, so that no run wraps around: cell (row, column) is row * (W + 1) + column."""

    starts: npt.NDArray[np.intp]
    ends: npt.NDArray[np.intp]
    number: npt.NDArray[np.intp]  # of each run its component, from 0, in reading order
    total: int  # components


def components(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """Numbers the 8-connected components of `mask` (H, W) bool, in reading order of their first cells.

    Returns int32 labels (H, W), 0 = background, and the number of components.
    """
    labels = np.zeros(mask.shape, np.int32)
    runs = runs_of(mask)
    if runs.total:
        labels[mask] = np.repeat(runs.number.astype(np.int32) + 1, runs.ends - runs.starts)
    return labels, runs.total


def runs_of(mask: npt.NDArray[np.bool_]) -> Runs:
    """The runs of `mask` (H, W) bool and their 8-connected components.

    Neighbouring runs are found by binary search, and merged by hooking each root on its smallest neighbour with full
    path compression (Shiloach & Vishkin 1982), so that every step is one numpy call over all runs, not pixels.
    """
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask (H, W); got {mask.dtype} {mask.shape}")
    height, width = mask.shape
    stride = width + 1
    padded = np.zeros(height * stride + 2, bool)
    padded[1:-1].reshape(height, stride)[:, :width] = mask
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    starts, ends = edges[0::2], edges[1::2]
    if not len(starts):
        return Runs(starts, ends, starts, 0)

    # A run touches, one row below and one pixel wider on both sides, the runs first..last-1.
    first = np.searchsorted(ends, starts + stride - 1, side="right")
    last = np.searchsorted(starts, ends + stride + 1, side="left")
    touching = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(starts)), touching)
    offset = np.arange(len(above)) - np.repeat(np.cumsum(touching) - touching, touching)
    below = np.repeat(first, touching) + offset

    root = np.arange(len(starts))
    while len(above):
        low, high = np.minimum(root[above], root[below]), np.maximum(root[above], root[below])
        apart = low < high
        above, below, low, high = above[apart], below[apart], low[apart], high[apart]
        np.minimum.at(root, high, low)
        while not np.array_equal(root, compressed := root[root]):
            root = compressed
    roots, number = np.unique(root, return_inverse=True)
    return Runs(starts, ends, number, len(roots))


def find_regions(
    anomaly_map: npt.NDArray[np.float32],
    threshold: float,
    image_size: tuple[int, int],
    *,
    normal_median: float | None = None,
    min_area: float = 0.0002,
    max_regions: int = 20,
    always: bool = False,
) -> tuple[Region, ...]:
    """The regions in which `anomaly_map` (h, w) reaches `threshold`, highest peak first, at most `max_regions`.

    Without `normal_median` a region is a component of the cells at or above the threshold. With it, the map's median on
    good parts, a region is what is connected to such cells and above the *foot* of their peak: the threshold, but at
    least `STEEP` and at most `REACH` of the peak's height over the normal median. The threshold alone would show no
    more than the tip of a low peak, and too much around a high one.

    Boxes are scaled to an image of `image_size` (width, height) and rounded outwards; areas are in its pixels.
    Components smaller than `min_area` (a share of the image) are dropped as noise, but where all are that small, the
    one with the highest peak stays, so that a flagged part always has a region. A map below the threshold, as that of a
    good part is, has none; an infinite threshold is allowed.

    `always` is for parts that were flagged by something other than the map's highest cell, such as its mean: where no
    cell reaches the threshold there is still one region, around the highest (first) cell down to `REACH` of its
    height. It takes `normal_median`. A constant map has no region even so.

    Raises ValueError for a map that is not finite, for which no threshold means anything, and for `always` without
    `normal_median`.
    """
    _check(anomaly_map, threshold, image_size)
    if always and normal_median is None:
        raise ValueError("expected `normal_median` with `always`: without it a peak has no height")
    image_width, image_height = image_size
    # In float64: a float32 comparison would round the threshold, and might disagree with the decision.
    mask = anomaly_map.astype(np.float64) >= threshold
    if always and not mask.any() and np.ptp(anomaly_map) > 0:
        mask.flat[anomaly_map.argmax()] = True  # its foot is at REACH, since the threshold is above the peak
    if normal_median is not None:
        mask = _around_peaks(anomaly_map, mask, threshold, normal_median, max_regions)
    runs = runs_of(mask)
    if not runs.total or max_regions < 1:
        return ()

    fraction = np.bincount(runs.number, runs.ends - runs.starts) / mask.size
    peak = _peaks(runs, anomaly_map[mask])
    left, top, right, bottom = _boxes(runs, mask.shape, image_size)

    order = np.lexsort((-fraction, -peak))  # by peak, then by area; stable, so reading order breaks ties
    kept = order[fraction[order] >= min_area]
    if not len(kept):
        kept = order[:1]
    return tuple(
        Region(
            box=(int(left[i]), int(top[i]), int(right[i]), int(bottom[i])),
            area=float(fraction[i] * image_width * image_height),
            peak=float(peak[i]),
        )
        for i in kept[:max_regions]
    )


def foot(peak: float, threshold: float, normal_median: float) -> float:
    """The value of the map down to which the region around a peak goes, see `find_regions`."""
    height = peak - normal_median
    return min(peak, float(np.clip(threshold, normal_median + STEEP * height, normal_median + REACH * height)))


def single_box(
    anomaly_map: npt.NDArray[np.float32], image_size: tuple[int, int], *, level: float = ONE
) -> tuple[Region, ...]:
    """One box around all high cells of a class activation map (h, w), however many components they form.

    The map is scaled to 0..1 by its own lowest and highest value. The box holds all cells at or above `level`
    (0 < level <= 1; 0.7 to 0.9 are common), scaled to (width, height) and rounded outwards. `area` counts those cells
    in pixels of the image; `peak` is the highest raw value. A constant map has no box. The level is relative, so a good
    part's map has a box as well: ask only for flagged parts. Raises ValueError as `find_regions` does.
    """
    _check(anomaly_map, level, image_size)
    if not 0 < level <= 1:
        raise ValueError(f"expected 0 < level <= 1; got {level}")
    values = anomaly_map.astype(np.float64)
    low, high = values.min(), values.max()
    if low == high:
        return ()
    mask = (values - low) / (high - low) >= level
    runs = runs_of(mask)
    runs = runs._replace(number=np.zeros_like(runs.number), total=1)  # all as one component
    left, top, right, bottom = _boxes(runs, mask.shape, image_size)
    area = np.count_nonzero(mask) * image_size[0] * image_size[1] / values.size
    return (Region((int(left[0]), int(top[0]), int(right[0]), int(bottom[0])), area, float(high)),)


def _check(anomaly_map: npt.NDArray[np.float32], threshold: float, image_size: tuple[int, int]) -> None:
    if anomaly_map.ndim != 2 or not anomaly_map.size:
        raise ValueError(f"expected a map (h, w) with at least one pixel; got {anomaly_map.shape}")
    if not np.isfinite(anomaly_map).all() or np.isnan(threshold):
        raise ValueError("expected a finite anomaly map and a threshold that is a number; got NaN or infinity")
    if min(image_size) < 1:
        raise ValueError(f"expected an image of at least 1 x 1 pixels; got {image_size}")


def _around_peaks(
    anomaly_map: npt.NDArray[np.float32], tips: npt.NDArray[np.bool_], threshold: float, normal_median: float, most: int
) -> npt.NDArray[np.bool_]:
    """The regions around the `most` highest of the components of `tips`, which are the cells at or above the threshold:
    for each, the components of the map above the foot of its peak that meet it."""
    tip_runs = runs_of(tips)
    tip_of = np.repeat(tip_runs.number, tip_runs.ends - tip_runs.starts)  # of each cell
    cells = np.flatnonzero(tips)
    by_value = np.argsort(-anomaly_map.flat[cells], kind="stable")
    _, first = np.unique(tip_of[by_value], return_index=True)  # each tip's highest cell
    regions = np.zeros((tips.shape[0], tips.shape[1] + 1), bool)
    for highest in by_value[np.sort(first)[:most]]:
        peak = float(anomaly_map.flat[cells[highest]])
        above = runs_of(anomaly_map >= foot(peak, threshold, normal_median))
        tip = cells[tip_of == tip_of[highest]]
        tip = tip + tip // tips.shape[1]  # as `Runs` counts cells
        run = np.searchsorted(above.starts, tip, side="right") - 1
        run = run[(run >= 0) & (tip < above.ends[run])]
        met = np.isin(above.number, above.number[run])
        lengths = above.ends[met] - above.starts[met]
        regions.flat[np.repeat(above.ends[met] - np.cumsum(lengths), lengths) + np.arange(lengths.sum())] = True
    return regions[:, :-1]


def _peaks(runs: Runs, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The highest value of each component; `values` are those of all cells in reading order."""
    lengths = runs.ends - runs.starts
    peaks = np.full(runs.total, -np.inf)
    np.maximum.at(peaks, runs.number, np.maximum.reduceat(values, np.cumsum(lengths) - lengths))
    return peaks


def _boxes(runs: Runs, shape: tuple[int, ...], image_size: tuple[int, int]) -> list[npt.NDArray[np.int64]]:
    """Left, top, right and bottom of each component of a map `shape` (h, w), in pixels of the image."""
    (height, width), (across, down) = shape, image_size
    row, column = np.divmod(runs.starts, width + 1)
    left, right = _extent(column, column + runs.ends - runs.starts, runs, width, across)
    top, bottom = _extent(row, row + 1, runs, height, down)
    return [left, top, right, bottom]


def _extent(
    first: npt.NDArray[np.intp], end: npt.NDArray[np.intp], runs: Runs, cells: int, pixels: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and past-the-last pixel of each component along one axis, where `first` and `end` are the cells of its
    runs, and `cells` cells of the map cover `pixels` pixels.

    In whole numbers, so that rounding outwards never adds a pixel to a box that ends exactly on one.
    """
    low, high = np.full(runs.total, cells, np.int64), np.zeros(runs.total, np.int64)
    np.minimum.at(low, runs.number, first)
    np.maximum.at(high, runs.number, end)
    return low * pixels // cells, -(-high * pixels // cells)
