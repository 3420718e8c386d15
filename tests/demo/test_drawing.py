"""The primitives of the drawings: by hand where that is short, else beside scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from blemish.demo import drawing


@pytest.mark.parametrize("sigma", [0.5, 2.0, 4.0])
def test_blur_is_scipys_gaussian_with_repeated_edges(sigma: float) -> None:
    layer = np.random.default_rng(0).random((2, 30, 41)).astype(np.float32)
    radius = math.ceil(2.7 * sigma)
    wanted = ndimage.gaussian_filter(layer, sigma, mode="nearest", radius=radius, axes=(1, 2))
    np.testing.assert_allclose(drawing.blur(layer, sigma), wanted, atol=1e-6)  # they sum in another order


def test_a_wide_blur_works_on_a_smaller_copy_and_is_nearly_a_gaussian() -> None:
    spot = np.zeros((121, 121), np.float32)
    spot[60, 60] = 1.0
    soft = drawing.blur(spot, 8.0)
    offsets = np.arange(121) - 60
    assert soft.sum() == pytest.approx(1.0, abs=0.01)
    assert float((soft.sum(axis=0) * offsets**2).sum()) == pytest.approx(64.0, rel=0.1)  # variance sigma²


def test_window_is_cut_at_the_edges_of_the_layer() -> None:
    assert drawing.window((20, 30), 10.5, 5.5, 2) == (slice(3, 8), slice(8, 13))
    assert drawing.window((20, 30), 29.0, 0.5, 3) == (slice(0, 4), slice(26, 30))
    assert np.zeros((20, 30))[drawing.window((20, 30), 50.0, 5.0, 3)].size == 0


def test_slopes_of_a_plane_and_distance_to_a_segment() -> None:
    x, y = drawing.grid(9, 9)
    sx, sy = drawing.slopes(0.25 * x - 0.5 * y + 0 * x * y)
    assert np.allclose(sx[1:-1, 1:-1], -0.25)
    assert np.allclose(sy[1:-1, 1:-1], 0.5)
    across, along = drawing.stroke(9, 9, [(1.5, 4.5), (7.5, 4.5)], 2.1)
    assert across[4, 4] == 0
    assert across[5, 4] == pytest.approx(1.0)  # to the right of the direction of travel is below
    assert across[3, 4] == pytest.approx(-1.0)
    assert across[8, 4] == drawing.FAR
    assert along[4, 4] == pytest.approx(0.5)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_grow_is_scipys_dilation_by_a_square(radius: int) -> None:
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    for seed, shape in enumerate([(40, 60), (5, 7), (1, 30)]):
        mask = np.random.default_rng(seed).random(shape) < 0.03
        np.testing.assert_array_equal(drawing.grow(mask, radius), ndimage.binary_dilation(mask, square))


def test_changed_fills_small_gaps_only() -> None:
    before = np.zeros((20, 20, 3), np.float32)
    after = before.copy()
    after[5:8, 5:8, 1] = 9.0
    after[6, 6] = 0.0  # happens to look unchanged
    after[15, 15, 2] = 3.0  # below the threshold
    mask = drawing.changed(before, after, levels=4.0, close=1)
    expected = np.zeros((20, 20), bool)
    expected[5:8, 5:8] = True
    assert np.array_equal(mask, expected)
