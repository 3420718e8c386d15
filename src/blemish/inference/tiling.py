"""Large images in tiles: where the tiles lie, and how their maps are blended into one map of the whole image."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

COARSER = 4  # a cell of the whole image's map is so many times as wide as one of a tile's own: maps are smooth
MAX_CELLS = 2**18  # of the whole image's map: 1 MiB

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]  # left, top, right, bottom


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of `tile` pixels begin along `length` pixels. All are whole: the last one is moved inwards."""
    step = tile - overlap
    return [*range(0, length - tile, step), length - tile]


def tile_corners(
    size: tuple[int, int], tile: tuple[int, int], overlap: int, roi: Mask | None
) -> tuple[tuple[int, int], ...]:
    """(left, top) of the tiles of a frame of `size` (width, height), row by row, without those wholly outside the
    region of interest `roi` (H, W)."""
    return tuple(
        (left, top)
        for top in tile_starts(size[1], tile[1], overlap)
        for left in tile_starts(size[0], tile[0], overlap)
        if roi is None or roi[top : top + tile[1], left : left + tile[0]].any()
    )


def map_size(size: tuple[int, int], tile: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the map of a frame of `size` (width, height), whose tiles (width, height) the detector sees at
    `image_size` (height, width): `COARSER` than a tile's own map, and at most `MAX_CELLS`."""
    cells = [size[1 - axis] * image_size[axis] / (tile[1 - axis] * COARSER) for axis in (0, 1)]
    factor = min(1.0, (MAX_CELLS / (cells[0] * cells[1])) ** 0.5)
    return max(1, int(cells[0] * factor)), max(1, int(cells[1] * factor))


class TileAxis(NamedTuple):
    """One tile along one axis of the whole map."""

    cells: slice  # of the whole map, those whose centres lie in the tile
    interpolation: Floats  # (cells, samples): each cell from the tile's samples, linear between their centres
    weight: Floats  # (cells,): how much the tile counts in each, above 0 and at most 1


def tile_axis(start: int, end: int, length: int, cells: int, samples: int, overlap: int) -> TileAxis:
    """The tile from pixel `start` to `end`, with a map of `samples`, in a frame of `length` pixels, whose map has
    `cells`."""
    centres = (np.arange(cells) + 0.5) * (length / cells)
    first, last = np.searchsorted(centres, (start, end))
    centres = centres[first:last] - start
    step = (end - start) / samples
    position = np.clip(centres / step - 0.5, 0, samples - 1)  # in samples, counted from the first one's centre
    below = np.minimum(position.astype(int), max(0, samples - 2))
    interpolation = np.zeros((len(centres), samples), np.float32)
    rows = np.arange(len(centres))
    interpolation[rows, below] = 1 - (position - below)
    interpolation[rows, np.minimum(below + 1, samples - 1)] += position - below
    # Nothing is known beyond the centre of the outermost sample, so there another tile counts, if there is one.
    to_edge = np.minimum(centres, end - start - centres) - step / 2
    weight = np.clip(to_edge / overlap, 1e-6, 1) if overlap else np.ones(len(centres))
    return TileAxis(slice(int(first), int(last)), interpolation, weight.astype(np.float32))


class Blend:
    """Adds up the maps of tiles, (h, w) or (h, w, C), to one map `map_size` (height, width) of a frame of `size`
    (width, height).

    A tile's weight rises linearly from its edge inwards over `overlap` pixels, and the weights of all tiles in a cell
    are scaled to add up to 1: nothing changes where tiles agree, and no step is left where one ends. `known` may be
    shared by blends of the same frame, and spares them the work of `tile_axis`.
    """

    def __init__(
        self,
        size: tuple[int, int],
        map_size: tuple[int, int],
        overlap: int,
        known: dict[tuple[int, ...], TileAxis] | None = None,
    ) -> None:
        self.size, self.map_size, self.overlap = size, map_size, overlap
        self._known = {} if known is None else known
        self._sum: Floats | None = None
        self._weights = np.zeros(map_size, np.float32)

    @property
    def empty(self) -> bool:
        return self._sum is None

    def add(self, box: Box, values: npt.NDArray[Any]) -> None:
        """`values` is the map of the tile `box`, in pixels of the frame."""
        if self._sum is None:
            self._sum = np.zeros((*self.map_size, *values.shape[2:]), np.float32)
        down = self._axis(box[1], box[3], self.size[1], self.map_size[0], values.shape[0])
        across = self._axis(box[0], box[2], self.size[0], self.map_size[1], values.shape[1])
        rows = np.tensordot(down.interpolation, values.astype(np.float32), (1, 0))  # (cells down, samples across, ...)
        cells = np.tensordot(across.interpolation, rows, (1, 1)).swapaxes(0, 1)
        weight = down.weight[:, None] * across.weight[None]
        self._sum[down.cells, across.cells] += cells * weight.reshape(*weight.shape, *[1] * (values.ndim - 2))
        self._weights[down.cells, across.cells] += weight

    def result(self) -> Floats:
        """The blended map. Where there was no tile it has its lowest value. At least one tile must have been added."""
        assert self._sum is not None
        covered = self._weights > 0
        weights = np.where(covered, self._weights, np.float32(1))
        blended: Floats = (self._sum / weights.reshape(*covered.shape, *[1] * (self._sum.ndim - 2))).astype(np.float32)
        if not covered.all():
            blended[~covered] = blended[covered].min()
        return blended

    def _axis(self, start: int, end: int, length: int, cells: int, samples: int) -> TileAxis:
        key = (start, end, length, cells, samples)
        if key not in self._known:
            self._known[key] = tile_axis(start, end, length, cells, samples, self.overlap)
        return self._known[key]
