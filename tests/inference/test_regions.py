from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from blemish.inference.regions import components, find_regions, single_box
from blemish.types import Region

EIGHT = np.ones((3, 3), int)


def same_as_scipy(mask: npt.NDArray[np.bool_]) -> None:
    labels, count = components(mask)
    expected, expected_count = ndimage.label(mask, structure=EIGHT)
    assert count == expected_count
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)  # scipy, too, numbers in reading order


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
@settings(max_examples=300, deadline=None)
def test_components_are_those_of_scipy_on_small_masks(mask: npt.NDArray[np.bool_]) -> None:
    same_as_scipy(mask)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.35, 0.42, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("shape", [(97, 131), (1, 400), (400, 1), (256, 256)])
def test_components_are_those_of_scipy_on_random_masks(share: float, shape: tuple[int, int]) -> None:
    for seed in range(3):
        same_as_scipy(np.random.default_rng(seed).random(shape) < share)


def test_components_of_shapes_that_take_many_merges() -> None:
    spiral = np.zeros((101, 101), bool)
    row, column, (down, right) = 0, 0, (0, 1)
    spiral[0, 0] = True
    for length in [100, *[n for n in range(100, 1, -2) for _ in (0, 1)]]:
        for _ in range(length):
            row, column = row + down, column + right
            spiral[row, column] = True
        down, right = right, -down
    comb = np.zeros((100, 201), bool)
    comb[:, ::2] = True
    comb[-1] = True
    zigzag = np.zeros((200, 200), bool)
    zigzag[np.arange(200), np.abs(np.arange(200) % 14 - 7)] = True
    for mask in (spiral, comb, zigzag, zigzag[::-1], np.ones((5, 5), bool), np.zeros((5, 5), bool)):
        same_as_scipy(mask)
    assert components(comb)[1] == components(zigzag)[1] == 1


def test_components_of_anything_but_a_mask_are_refused() -> None:
    not_a_mask: Any = np.zeros((3, 3), np.uint8)
    with pytest.raises(ValueError, match="bool mask"):
        components(not_a_mask)
    with pytest.raises(ValueError, match="bool mask"):
        components(np.zeros((3, 3, 3), bool))


def test_a_box_by_hand() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[1, 1:3] = [5, 7]
    # 4 cells over 10 columns and 6 rows: cells 1..2 cover columns 2.5 to 7.5, row 1 covers rows 1.5 to 3.
    (region,) = find_regions(heat, 5.0, (10, 6))
    assert region.box == (2, 1, 8, 3)
    assert region.area == pytest.approx(2 / 16 * 60)
    assert region.peak == 7.0


def test_boxes_that_end_on_a_pixel_are_not_widened() -> None:
    heat = np.zeros((49, 49), np.float32)
    heat[48, 48] = 1  # 48 / 49 * 98 is not 96 in floating point
    assert find_regions(heat, 1.0, (98, 490))[0].box == (96, 480, 98, 490)


def test_a_map_finer_than_the_image_still_gives_boxes() -> None:
    heat = np.zeros((100, 100), np.float32)
    heat[50, 51] = 1
    (region,) = find_regions(heat, 0.5, (3, 3))
    assert region.box == (1, 1, 2, 2)


def test_regions_are_ordered_by_peak_and_then_by_area() -> None:
    heat = np.zeros((10, 10), np.float32)
    heat[0, 0] = 3
    heat[5, 5:8] = [2, 9, 2]
    heat[9, 0:2] = 3
    regions = find_regions(heat, 2.0, (10, 10))
    assert [(r.peak, r.area) for r in regions] == [(9.0, 3.0), (3.0, 2.0), (3.0, 1.0)]
    assert find_regions(heat, 2.0, (10, 10), max_regions=2) == regions[:2]
    assert find_regions(heat, 2.0, (10, 10), max_regions=0) == ()


def test_small_regions_are_dropped_unless_there_is_no_other() -> None:
    heat = np.zeros((10, 10), np.float32)
    heat[0, 0] = 9
    heat[9, 9] = 8
    heat[4:6, 4:6] = 3
    assert [r.peak for r in find_regions(heat, 3.0, (10, 10), min_area=0.02)] == [3.0]
    assert [r.peak for r in find_regions(heat, 3.0, (10, 10), min_area=0.05)] == [9.0]
    assert [r.peak for r in find_regions(heat, 3.0, (10, 10), min_area=0.04)] == [3.0]  # just large enough
    assert find_regions(heat, 9.5, (10, 10)) == ()
    assert find_regions(heat, float("inf"), (10, 10)) == ()


def test_the_threshold_is_not_rounded_to_float32() -> None:
    heat = np.full((2, 2), 0.1, np.float32)  # 0.100000001490116...
    assert find_regions(heat, 0.1000000014, (2, 2))
    assert not find_regions(heat, 0.1000000016, (2, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused(bad: float) -> None:
    heat = np.zeros((3, 3), np.float32)
    heat[1, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        find_regions(heat, 0.5, (3, 3))
    with pytest.raises(ValueError, match="number"):
        find_regions(np.zeros((3, 3), np.float32), float("nan"), (3, 3))


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=32)),
    st.integers(1, 40),
    st.integers(1, 40),
)
@settings(max_examples=150, deadline=None)
def test_boxes_are_inside_the_image_and_cover_every_high_cell(
    heat: npt.NDArray[np.float32], width: int, height: int
) -> None:
    regions = find_regions(heat, 0.5, (width, height), min_area=0, max_regions=1000)
    assert len(regions) == ndimage.label(heat >= 0.5, structure=EIGHT)[1]
    assert sum(r.area for r in regions) == pytest.approx((heat >= 0.5).mean() * width * height)
    for region in regions:
        assert region.box[2] <= width
        assert region.box[3] <= height
    for row, column in np.argwhere(heat >= 0.5):
        x, y = (column + 0.5) * width / heat.shape[1], (row + 0.5) * height / heat.shape[0]
        assert any(r.box[0] <= x <= r.box[2] and r.box[1] <= y <= r.box[3] for r in regions)


def test_a_region_ends_at_a_share_of_its_peaks_height() -> None:
    heat = np.zeros((3, 12), np.float32)
    heat[1] = [0, 3, 4, 6, 10, 5, 3.9, 0, 0, 7, 2.9, 2.7]
    # Threshold 6.5 is above 0.4 of both heights (normal median 0): the regions end at 4 and at 2.8.
    high, low = find_regions(heat, 6.5, (12, 3), normal_median=0.0)
    assert (high.box, high.peak, high.area) == ((2, 1, 6, 2), 10.0, 4.0)
    assert (low.box, low.peak, low.area) == ((9, 1, 11, 2), 7.0, 2.0)
    # With a normal median of 2 at 5.2 and 4: narrower.
    assert [r.box for r in find_regions(heat, 6.5, (12, 3), normal_median=2.0)] == [(3, 1, 5, 2), (9, 1, 10, 2)]
    # Threshold 3.5 is between 0.3 and 0.4 of the high peak's height, so that region ends there; the other at 2.8.
    assert [r.box for r in find_regions(heat, 3.5, (12, 3), normal_median=0.0)] == [(2, 1, 7, 2), (9, 1, 11, 2)]
    # Threshold 0.5 is below 0.3 of both heights: they end at 3 and at 2.1.
    assert [r.box for r in find_regions(heat, 0.5, (12, 3), normal_median=0.0)] == [(1, 1, 7, 2), (9, 1, 12, 2)]
    # Without a normal median they end at the threshold. A good map has no region.
    assert [r.box for r in find_regions(heat, 6.5, (12, 3))] == [(4, 1, 5, 2), (9, 1, 10, 2)]
    assert find_regions(heat, 10.5, (12, 3), normal_median=0.0) == ()


def test_a_second_peak_of_one_component_is_kept() -> None:
    heat = np.array([[0, 10, 2.5, 6, 0]], np.float32)  # joined above the threshold 2, apart above the foot 3
    assert [r.box for r in find_regions(heat, 2.0, (5, 1), normal_median=0.0)] == [(1, 0, 2, 1), (3, 0, 4, 1)]


def test_regions_that_meet_are_one() -> None:
    heat = np.array([[0, 8, 5, 9, 0]], np.float32)
    (region,) = find_regions(heat, 7.0, (5, 1), normal_median=0.0)
    assert (region.box, region.peak) == ((1, 0, 4, 1), 9.0)


def test_always_gives_the_region_around_the_highest_cell_alone() -> None:
    heat = np.zeros((3, 12), np.float32)
    heat[1] = [0, 3, 4, 6, 10, 5, 3.9, 0, 0, 9.5, 2.9, 2.7]
    # Nothing reaches 20. The region ends at 0.4 of the peak's height: at 4 with a normal median of 0, at 5.2 with 2.
    (region,) = find_regions(heat, 20.0, (24, 3), normal_median=0.0, always=True)
    assert (region.box, region.peak, region.area) == ((4, 1, 12, 2), 10.0, 8.0)
    assert [r.box for r in find_regions(heat, 20.0, (12, 3), normal_median=2.0, always=True)] == [(3, 1, 5, 2)]
    assert find_regions(heat, float("inf"), (24, 3), normal_median=0.0, always=True) == (region,)
    assert find_regions(heat, 20.0, (12, 3), normal_median=0.0) == ()
    assert find_regions(heat, 20.0, (12, 3), normal_median=0.0, always=True, max_regions=0) == ()


def test_always_changes_nothing_where_the_threshold_is_reached() -> None:
    heat = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    for threshold in (0.5, 0.9, float(heat.max())):
        regions = find_regions(heat, threshold, (20, 20), normal_median=0.2)
        assert regions
        assert find_regions(heat, threshold, (20, 20), normal_median=0.2, always=True) == regions


def test_always_gives_a_region_however_small_and_low() -> None:
    heat = np.zeros((10, 10), np.float32)
    heat[[2, 7], [3, 8]] = 1  # two peaks alike: the first
    (region,) = find_regions(heat, 5.0, (10, 10), normal_median=0.0, min_area=0.5, always=True)
    assert region.box == (3, 2, 4, 3)
    assert [r.box for r in find_regions(heat, 5.0, (10, 10), normal_median=3.0, always=True)] == [(3, 2, 4, 3)]
    assert find_regions(np.full((4, 4), 2, np.float32), 5.0, (4, 4), normal_median=0.0, always=True) == ()
    with pytest.raises(ValueError, match="normal_median"):
        find_regions(heat, 5.0, (10, 10), always=True)


def test_a_single_box_by_hand() -> None:
    heat = np.full((4, 5), -3, np.float32)
    heat[0, 1], heat[2, 3], heat[3, 0] = 7, 4, 3.9  # normalised 1, 0.7, 0.69; the lowest is -3
    # Two cells reach 0.7: columns 1..3 of 5 over 12 pixels, rows 0..2 of 4 over 10.
    assert single_box(heat, (12, 10)) == (Region((2, 0, 10, 8), 2 / 20 * 120, 7.0),)
    assert [r.box for r in single_box(heat, (5, 4), level=0.69)] == [(0, 0, 4, 4)]
    assert [r.box for r in single_box(heat, (5, 4), level=1.0)] == [(1, 0, 2, 1)]
    # The scale of the map does not matter.
    assert [r.box for r in single_box(heat * 1e-30 + 0, (12, 10))] == [(2, 0, 10, 8)]
    assert single_box(np.full((4, 5), 8, np.float32), (12, 10)) == ()


def test_a_single_box_refuses_meaningless_arguments() -> None:
    heat = np.eye(3, dtype=np.float32)
    for level in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match="level"):
            single_box(heat, (3, 3), level=level)
    with pytest.raises(ValueError, match="number"):
        single_box(heat, (3, 3), level=float("nan"))
    with pytest.raises(ValueError, match="finite"):
        single_box(heat * np.float32("nan"), (3, 3))
    with pytest.raises(ValueError, match="1 x 1"):
        single_box(heat, (0, 3))
