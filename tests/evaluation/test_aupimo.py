from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from blemish.evaluation.aupimo import RATES, aupimo, aupimo_figures, resolved
from blemish.evaluation.bootstrap import Interval
from blemish.evaluation.localisation import collect, localisation_metrics, reduce_mask, resize_map, thresholds_for

Floats = npt.NDArray[np.float64]
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def at(share: float) -> float:
    """The rate that lies `share` of the way from 1e-5 to 1e-4, on the logarithmic scale."""
    return 10 ** (-5 + share)


def test_the_area_worked_out_by_hand() -> None:
    # Nothing of a good image is flagged while 0.2 of the defect is; from a quarter of the way on 0.6 is, from half 0.9.
    rates = np.array([[0.0, at(0.25), at(0.5), 1.0]])
    assert aupimo(rates, np.array([[0.2, 0.6, 0.9, 1.0]]))[0, 0] == pytest.approx(0.25 * 0.2 + 0.25 * 0.6 + 0.5 * 0.9)
    # What is flagged below 1e-5 and above 1e-4 does not count, whatever it is.
    rates = np.array([[1e-7, 5e-6, 2e-4, 1.0]])
    assert aupimo(rates, np.array([[0.1, 0.3, 0.9, 1.0]]))[0, 0] == pytest.approx(0.3)
    # Several images share the rates; two resamples have rates of their own.
    rates = np.array([[0.0, at(0.5), 1.0], [0.0, at(0.1), 1.0]])
    recalls = np.array([[0.0, 1.0, 1.0], [0.5, 0.5, 1.0]])
    np.testing.assert_allclose(aupimo(rates, recalls), [[0.5, 0.5], [0.9, 0.5]])


def test_the_best_and_the_worst_map() -> None:
    assert aupimo(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]]))[0, 0] == pytest.approx(1)
    assert aupimo(np.array([[1.0]]), np.array([[1.0]]))[0, 0] == 0  # a constant map: all or nothing
    assert math.isnan(aupimo(np.array([[np.nan]]), np.array([[1.0]]))[0, 0])
    # Chance: as much of the defect as of the good images. The mean of x over log x is (U - L) / ln(U / L).
    x = np.geomspace(1e-7, 1, 20_001)[None]
    assert aupimo(x, x)[0, 0] == pytest.approx((RATES[1] - RATES[0]) / math.log(10), rel=2e-3)


def counts(*rows: list[float]) -> Floats:
    return np.array(rows, np.float64)


def test_mean_and_percentile_worked_out_by_hand() -> None:
    # Two good images of 50,000 pixels; the third bin is reached at a mean rate of (0 + 2 at(0.5)) / 2.
    step = 50_000 * 2 * at(0.5)
    good = counts([0, 0, 50_000], [0, step, 50_000 - step], [9, 9, 9], [9, 9, 9], [9, 9, 9])
    defect = counts([0, 0, 0], [0, 0, 0], [8, 2, 0], [0, 4, 6], [0, 0, 3])
    normal = np.array([True, True, False, False, False])
    # Recalls 0.8 | 1, 0 | 0.4 and 0 | 0: areas 0.9, 0.2, 0.
    found = aupimo_figures(good, defect, normal, np.ones((1, 5)))
    assert found["aupimo"][0] == pytest.approx(1.1 / 3)
    assert found["aupimo_p33"][0] == pytest.approx(0)  # one of three is 33.3 %
    weights = counts([1, 1, 3, 2, 0], [1, 1, 0, 1, 0], [0, 2, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0])
    found = aupimo_figures(good, defect, normal, weights)
    # Third: both good images drawn are the one with the step, at 2 at(0.5) > at(0.5), so that it comes later.
    late = 0.5 + math.log10(2)
    np.testing.assert_allclose(
        found["aupimo"], [(3 * 0.9 + 2 * 0.2) / 5, 0.2, (0.8 * late + 1 - late + 0.4 * (1 - late)) / 3, np.nan, np.nan]
    )
    np.testing.assert_allclose(found["aupimo_p33"], [0.2, 0.2, 0, np.nan, np.nan], atol=1e-12)


def test_images_without_pixels_that_count_are_left_out() -> None:
    good = counts([0, 0], [1, 99_999], [5, 5], [5, 5])
    defect = counts([0, 0], [0, 0], [0, 0], [1, 1])  # the first defect lies outside of what is judged
    found = aupimo_figures(good, defect, np.array([True, True, False, False]), np.ones((1, 4)))
    assert found["aupimo"][0] == pytest.approx(0.5)


def test_too_few_good_pixels_leave_it_undefined() -> None:
    assert resolved(np.full(10, 10_000.0))
    assert not resolved(np.full(10, 9_999.0))
    assert not resolved(np.array([1e6, 30_000.0, 30_000.0]))  # a pixel of the smaller ones is a rate of 1.1e-5
    assert resolved(np.array([1e6, 0.0]))  # none of its pixels counts
    assert not resolved(np.zeros(3))
    assert not resolved(np.zeros(0))
    good, defect = counts([0, 9_999], [5, 5]), counts([0, 0], [2, 0])
    assert np.isnan(aupimo_figures(good, defect, np.array([True, False]), np.ones((1, 2)))["aupimo"]).all()


def scene(seed: int, count: int = 16, side: int = 128) -> tuple[Map, list[Mask | None]]:
    """Maps of smooth noise; every other image has a defect that stands out more or less, also beyond its mask."""
    random = np.random.default_rng(seed)
    maps, masks = [], list[Mask | None]()
    for i in range(count):
        heat = ndimage.gaussian_filter(random.normal(0, 1, (side, side)), 2) * 4
        mask = np.zeros((side, side), bool)
        if i % 2:
            (y, x), r = random.integers(8, side - 8, 2).tolist(), random.integers(3, 20)
            mask = np.hypot(*np.ogrid[-y : side - y, -x : side - x]) <= r
            heat += ndimage.gaussian_filter(mask * random.uniform(0, 6), 4)
        maps.append(heat)
        masks.append(mask if i % 2 else None)
    return np.array(maps, np.float32), masks


def exact(maps: list[Map], masks: list[Mask | None]) -> list[float]:
    """Each defective image's AUPIMO from all pixels: at each of many rates, the lowest value of all maps at which the
    good images have no larger share."""
    normal = [np.sort(m.ravel()) for m, mask in zip(maps, masks, strict=True) if mask is None]
    values = np.unique(np.concatenate([m.ravel() for m in maps]))
    rate = np.mean([1 - np.searchsorted(m, values, side="left") / len(m) for m in normal], axis=0)  # falls
    found = []
    for heat, mask in zip(maps, masks, strict=True):
        if mask is not None:
            inside = np.sort(heat[mask])
            recall = [1 - np.searchsorted(inside, values[(rate <= at(s)).argmax()]) / len(inside) for s in MIDDLES]
            found.append(float(np.mean(recall)))
    return found


MIDDLES = (np.arange(400) + 0.5) / 400


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_exact_one(seed: int) -> None:
    maps, masks = scene(seed)
    labels = np.array([mask is not None for mask in masks])
    sizes = [(128, 128)] * len(maps)
    expected = exact(list(maps), masks)
    assert 0.1 < np.mean(expected) < 0.9
    found: dict[str, Any] = localisation_metrics(maps, masks, labels, [()] * len(maps), sizes, resamples=100)
    assert found["aupimo"].value == pytest.approx(np.mean(expected), abs=0.004)
    assert found["aupimo"].low < np.mean(expected) < found["aupimo"].high
    assert found["aupimo_p33"].value == pytest.approx(sorted(expected)[2], abs=0.01)  # 3 of 8 are 37.5 %
    thresholds = thresholds_for(list(maps), masks, sizes)
    pixels = collect(zip(maps, masks, sizes, strict=True), thresholds)
    drawn = np.array([2, 1, 0, 3, 1, 0, 1, 2, 1, 1, 0, 1, 2, 0, 1, 0])
    several = np.repeat(np.arange(16), drawn)
    weighted = aupimo_figures(pixels.good, pixels.defect, ~labels, drawn[None].astype(float))["aupimo"][0]
    again = np.mean(exact([maps[i] for i in several], [masks[i] for i in several]))
    assert weighted == pytest.approx(again, abs=0.006)


def test_coarse_maps_are_judged_at_the_size_of_the_image() -> None:
    random = np.random.default_rng(4)
    maps = random.normal(0, 1, (6, 16, 16)).astype(np.float32)
    mask = np.zeros((600, 800), bool)
    mask[100:220, 300:420] = True
    maps[3:, 3:6, 6:9] += np.array([1.5, 3, 5])[:, None, None]
    masks = [None, None, None, mask, mask, mask]
    labels = np.arange(6) > 2
    found: dict[str, Any] = localisation_metrics(maps, masks, labels, [()] * 6, [(800, 600)] * 6, resamples=10)
    large = [resize_map(m, (512, 384)) for m in maps]
    expected = exact(large, [None, None, None, *[reduce_mask(mask, (512, 384))] * 3])
    assert found["aupimo"].value == pytest.approx(np.mean(expected), abs=0.004)


def test_a_constant_map_finds_nothing() -> None:
    mask = np.zeros((400, 400), bool)
    mask[:50] = True
    flat = np.full((3, 20, 20), 0.3, np.float32)
    found = localisation_metrics(flat, [None, None, mask], np.arange(3) > 1, [()] * 3, [(400, 400)] * 3)
    assert found["aupimo"] == found["aupimo_p33"] == Interval(0.0)


def test_undefined_without_good_images_and_for_few_pixels_while_aupro_is_not() -> None:
    maps, masks = scene(0, 8)
    anomalies: dict[str, Any] = localisation_metrics(
        maps[1::2], masks[1::2], np.ones(4, bool), [()] * 4, [(128, 128)] * 4, resamples=10
    )
    assert anomalies["aupimo"] == anomalies["aupimo_p33"] == Interval(None)
    assert anomalies["aupro"].value is not None
    few: dict[str, Any] = localisation_metrics(  # 4 x 16,384 good pixels
        maps, masks, np.arange(8) % 2 == 1, [()] * 8, [(128, 128)] * 8, resamples=10
    )
    assert few["aupimo"] == Interval(None)
    assert few["aupro"].value is not None


def test_only_what_is_judged_counts() -> None:
    """A good image flagged where nothing counts sets no threshold."""
    maps, mask = np.zeros((2, 400, 400), np.float32), np.zeros((400, 400), bool)
    mask[200:220, 200:220] = True
    maps[1][mask], maps[0, :50] = 1, 2
    inside = np.ones((400, 400), bool)
    inside[:60] = False
    given = (maps, [None, mask], np.array([False, True]), [(), ()], [(400, 400)] * 2)
    everywhere: dict[str, Any] = localisation_metrics(*given, resamples=10)
    assert everywhere["aupimo"].value == 0
    judged: dict[str, Any] = localisation_metrics(*given, inside=[inside, inside], resamples=10)
    assert judged["aupimo"].value == 1
