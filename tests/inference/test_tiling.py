from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from blemish.inference.tiling import Blend, map_size, tile_axis, tile_corners, tile_starts


def test_tiles_are_whole_and_cover_everything() -> None:
    assert tile_starts(10, 4, 1) == [0, 3, 6]
    assert tile_starts(11, 4, 1) == [0, 3, 6, 7]  # the last is moved inwards
    assert tile_starts(4, 4, 1) == [0]
    assert tile_starts(8, 4, 0) == [0, 4]
    assert (len(tile_starts(4000, 512, 64)), tile_starts(4000, 512, 64)[-1]) == (9, 3488)
    for length, tile, overlap in [(100, 7, 3), (97, 32, 16), (33, 32, 0), (640, 64, 8)]:
        starts = tile_starts(length, tile, overlap)
        covered = np.zeros(length, int)
        for start in starts:
            assert 0 <= start <= length - tile
            covered[start : start + tile] += 1
        assert covered.min() >= 1
        assert all(b - a <= tile - overlap for a, b in pairwise(starts))


def test_tiles_wholly_outside_the_region_are_left_out() -> None:
    roi = np.zeros((8, 12), bool)
    roi[1, 1] = roi[7, 11] = True
    assert tile_corners((12, 8), (4, 4), 0, None) == ((0, 0), (4, 0), (8, 0), (0, 4), (4, 4), (8, 4))
    assert tile_corners((12, 8), (4, 4), 0, roi) == ((0, 0), (8, 4))


def test_the_map_of_a_large_image_stays_small() -> None:
    assert map_size((4000, 3000), (512, 512), (256, 256)) == (375, 500)
    height, width = map_size((20_000, 10_000), (256, 256), (256, 256))
    assert height * width <= 2**18
    assert width / height == pytest.approx(2, rel=0.01)


def blended(
    size: tuple[int, int], tile: int, overlap: int, cells: tuple[int, int], field: Any
) -> npt.NDArray[np.float32]:
    """The maps of tiles that each see `field` (x, y) at the centres of 16 x 16 samples."""
    blend = Blend(size, cells, overlap)
    assert blend.empty
    centres = (np.arange(16) + 0.5) * tile / 16
    for left, top in tile_corners(size, (tile, tile), overlap, None):
        blend.add((left, top, left + tile, top + tile), field(left + centres[None], top + centres[:, None]))
    assert not blend.empty
    return blend.result()


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (64, 0), (48, 24), (60, 7)])
def test_a_constant_stays_constant_and_a_ramp_has_no_seams(tile: int, overlap: int) -> None:
    size, cells = (200, 150), (38, 50)
    np.testing.assert_allclose(blended(size, tile, overlap, cells, lambda x, y: 3.5 + 0 * (x + y)), 3.5, rtol=1e-6)
    if overlap:
        ramp = blended(size, tile, overlap, cells, lambda x, y: 0.7 * x - 0.4 * y)
        x, y = (np.arange(50) + 0.5) * 4, (np.arange(38) + 0.5) * 150 / 38
        inner = np.s_[1:-1, 1:-1]  # beyond the outermost samples a map is flat
        np.testing.assert_allclose(ramp[inner], (0.7 * x[None] - 0.4 * y[:, None])[inner], atol=1e-3)


def test_blending_equals_the_slow_sum() -> None:
    """Cell by cell: linear between the samples, weights that fall to the tile's edge, scaled to one."""
    random = np.random.default_rng(0)
    size, cells, tile, overlap = (50, 40), (20, 25), 24, 8
    boxes = [(left, top, left + tile, top + tile) for left, top in tile_corners(size, (tile, tile), overlap, None)]
    maps = [random.normal(size=(6, 6, 3)).astype(np.float32) for _ in boxes]
    blend = Blend(size, cells, overlap)
    for box, tile_map in zip(boxes, maps, strict=True):
        blend.add(box, tile_map)
    result = blend.result()

    def along(at: float) -> tuple[list[tuple[int, float]], float]:
        """The samples, with their shares, that make the value at a pixel of the tile, and the tile's weight there."""
        place = min(max(at / (tile / 6) - 0.5, 0), 5)
        low = min(int(place), 4)
        weight = min(max((min(at, tile - at) - tile / 12) / overlap, 1e-6), 1)
        return [(low, 1 - (place - low)), (low + 1, place - low)], weight

    for row in range(cells[0]):
        for column in range(cells[1]):
            x, y = (column + 0.5) * 2, (row + 0.5) * 2
            total, weights = np.zeros(3), 0.0
            for (left, top, right, bottom), tile_map in zip(boxes, maps, strict=True):
                if left <= x < right and top <= y < bottom:
                    (down, high), (across, wide) = along(y - top), along(x - left)
                    value = sum(tile_map[i, j] * a * b for i, a in down for j, b in across)
                    total, weights = total + high * wide * np.asarray(value), weights + high * wide
            np.testing.assert_allclose(result[row, column], total / weights, rtol=1e-4, atol=1e-5)


def test_where_there_is_no_tile_the_map_is_at_its_lowest() -> None:
    blend = Blend((20, 10), (2, 4), 0)
    blend.add((0, 0, 10, 10), np.array([[5, 4], [3, 2]], np.float32))
    np.testing.assert_allclose(blend.result(), [[5, 4, 2, 2], [3, 2, 2, 2]])


def test_a_tile_reads_its_own_samples_alone() -> None:
    axis = tile_axis(10, 34, 50, 25, 6, 8)
    assert (axis.cells.start, axis.cells.stop) == (5, 17)
    np.testing.assert_allclose(axis.interpolation.sum(1), 1, rtol=1e-6)
    assert (axis.interpolation >= 0).all()
    assert axis.weight.min() > 0
    assert axis.weight.max() == 1
