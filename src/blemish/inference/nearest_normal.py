"""A place of an image beside the normal patch that comes nearest to it: the first half of the evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.inference.evidence_store import EvidenceStore, Pixels
from blemish.inference.framing import Framing, bounding_box, clipped, inverse
from blemish.inference.inspector import Inspection, Inspector, p_value_of
from blemish.inference.resizing import size_of
from blemish.inference.tiling import Box
from blemish.types import Region

CELLS = 3  # of the feature grid, that a crop is wide and high at least


@dataclass(frozen=True)
class NearestNormal:
    """A place of an image beside the nearest normal patch.

    `box` is in pixels of the original image and `crop` what it shows. `normal` shows as much around that patch in its
    own image, named `source` (both None where that image is not in the bundle). `distance` is how far the two are
    apart; `p_value` is the share of good images with a patch at least as far from the memory bank.
    """

    box: Box
    crop: Pixels
    normal: Pixels | None
    source: str | None
    distance: float
    p_value: float | None
    region: Region | None = None


class _Seen(NamedTuple):
    """What the detector saw, (H, W, 3), and its outputs for that, (gh, gw): an image, a frame or a tile."""

    image: Pixels
    distances: npt.NDArray[np.float32]
    neighbours: npt.NDArray[np.int32]


def nearest_normal(
    inspector: Inspector, store: EvidenceStore | None, inspection: Inspection, place: Region | tuple[int, int]
) -> NearestNormal | None:
    """A region, or the place (x, y) in pixels of the original image, beside the nearest normal patch of its peak.

    None where the image could not be read, or the bundle is so old that it gives no neighbours. Of an image that was
    aligned or cut into tiles, both crops are as the detector saw them.
    """
    image, distances, neighbours = inspection.image, inspection.distances, inspection.neighbours
    if image is None or inspection.map is None or distances is None or neighbours is None:
        return None
    width, height = size_of(image)
    if isinstance(place, Region):
        region, box = place, place.box
        x, y = peak_of(inspection.map, place, (width, height))
    else:
        region, box = None, (*place, place[0] + 1, place[1] + 1)
        x, y = (place[0] + 0.5) / width, (place[1] + 0.5) / height
    seen = _Seen(image, distances, neighbours)
    framing = inspector.framing  # with its reference, which fills what an aligned image does not show
    if framing is None:
        nearest = _compared(seen, store, box, (x, y))
    else:
        nearest = _compared_in_frame(framing, seen, inspection.pose, store, box, (x, y))
    return replace(nearest, p_value=p_value_of(inspector.card.decision, "distances", nearest.distance), region=region)


def _compared(seen: _Seen, store: EvidenceStore | None, box: Box, at: tuple[float, float]) -> NearestNormal:
    """What was seen around `box`, compared at the place `at` (shares of its width and height)."""
    size, grid = size_of(seen.image), size_of(seen.distances)
    column, row = (min(int(at[axis] * grid[axis]), grid[axis] - 1) for axis in (0, 1))
    box = grown_box(box, size, (CELLS * size[0] / grid[0], CELLS * size[1] / grid[1]))
    normal, source = None, None
    origin = store.origin(int(seen.neighbours[row, column])) if store else None
    if store and origin:
        number, source_row, source_column = origin
        source = store.names[number]
        # The patch is to stand in its crop where the peak stands in the region's.
        shift = (source_column - column) / grid[0], (source_row - row) / grid[1]
        normal = _same_crop(store.image(number), box, size, shift)
    crop = np.ascontiguousarray(seen.image[box[1] : box[3], box[0] : box[2]])
    return NearestNormal(box, crop, normal, source, float(seen.distances[row, column]), None)


def _compared_in_frame(
    framing: Framing,
    seen: _Seen,
    pose: npt.NDArray[np.float64] | None,
    store: EvidenceStore | None,
    box: Box,
    at: tuple[float, float],
) -> NearestNormal:
    """As `_compared`, in the tile whose centre is nearest to the place, or in the frame where it was not cut into
    tiles."""
    size, frame_size = size_of(seen.image), framing.frame.size
    to_image = framing.frame_to_image(size, pose)
    to_frame = inverse(to_image)
    x, y = np.clip(to_frame @ (at[0] * size[0], at[1] * size[1], 1), 0, np.array(frame_size) - 1e-3)
    tiles = framing.boxes
    number = min(
        range(len(tiles)),
        key=lambda i: abs((tiles[i][0] + tiles[i][2]) / 2 - x) + abs((tiles[i][1] + tiles[i][3]) / 2 - y),
    )
    left, top, right, bottom = tiles[number]
    frame_image, _ = framing.to_frame(seen.image, pose, fill=False)
    grid = seen.distances.shape[-2:]
    tile = _Seen(
        frame_image[top:bottom, left:right],
        seen.distances.reshape(-1, *grid)[number],
        seen.neighbours.reshape(-1, *grid)[number],
    )
    box_in_tile = clipped(_shifted(bounding_box(box, to_frame, frame_size), -left, -top), (right - left, bottom - top))
    across, down = float(np.clip((x - left) / (right - left), 0, 1)), float(np.clip((y - top) / (bottom - top), 0, 1))
    nearest = _compared(tile, store, box_in_tile, (across, down))
    return replace(nearest, box=bounding_box(_shifted(nearest.box, left, top), to_image, size))


def map_window(box: Box, size: tuple[int, int], cells: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a map of `cells` (rows, columns) that a box in an image of `size` (width, height)
    meets."""
    left, top, right, bottom = box
    rows = slice(top * cells[0] // size[1], -(-bottom * cells[0] // size[1]))
    return rows, slice(left * cells[1] // size[0], -(-right * cells[1] // size[0]))


def peak_of(anomaly_map: npt.NDArray[np.float32], region: Region, size: tuple[int, int]) -> tuple[float, float]:
    """Where a region's highest value is: x and y as shares of the image. Another region's peak may be in its box."""
    rows, columns = map_window(region.box, size, anomaly_map.shape)
    inside = anomaly_map[rows, columns]
    row, column = divmod(int(np.abs(inside - region.peak).argmin()), inside.shape[1])
    return (columns.start + column + 0.5) / anomaly_map.shape[1], (rows.start + row + 0.5) / anomaly_map.shape[0]


def grown_box(box: Box, size: tuple[int, int], least: tuple[float, float]) -> Box:
    """`box` grown evenly to at least `least` (width, height) pixels, and moved into an image of `size`."""
    starts, ends = [], []
    for axis in (0, 1):
        length = min(size[axis], max(box[axis + 2] - box[axis], math.ceil(least[axis])))
        start = min(max((box[axis] + box[axis + 2] - length) // 2, 0), size[axis] - length)
        starts.append(start)
        ends.append(start + length)
    return starts[0], starts[1], ends[0], ends[1]


def _shifted(box: Box, right: int, down: int) -> Box:
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down


def _same_crop(source: Pixels, box: Box, size: tuple[int, int], shift: tuple[float, float]) -> Pixels:
    """Of a source image the same share of the whole as `box` is of an image of `size`, moved by `shift` (shares of
    width and height) as far as it stays inside, and resized to the box's own pixels."""
    source_size = size_of(source)
    starts, ends = [], []
    for axis in (0, 1):
        length = (box[axis + 2] - box[axis]) * source_size[axis] / size[axis]
        start = min(max((box[axis] / size[axis] + shift[axis]) * source_size[axis], 0), source_size[axis] - length)
        starts.append(start)
        ends.append(min(start + length, source_size[axis]))
    cut = (starts[0], starts[1], ends[0], ends[1])
    crop = Image.fromarray(source).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC, box=cut)
    return np.asarray(crop)
