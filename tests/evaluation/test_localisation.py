from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from sklearn import metrics

from blemish.evaluation import localisation
from blemish.evaluation.bootstrap import Interval
from blemish.evaluation.boxes import judge_boxes
from blemish.evaluation.localisation import (
    area_under_pro,
    collect,
    evaluation_size,
    localisation_metrics,
    pixel_figures,
    reduce_mask,
    resize_map,
    thresholds_for,
)
from blemish.types import Region

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
PIXEL_FIGURES = ("pixel_auroc", "aupro", "pixel_average_precision", "best_iou", "pointing_game")


def scene(seed: int, count: int = 24, side: int = 64, strength: float = 2.0) -> tuple[Map, list[Mask | None]]:
    """Maps of smooth noise; every other image has one or two defects to which the map responds more or less."""
    random = np.random.default_rng(seed)
    maps, masks = [], list[Mask | None]()
    for i in range(count):
        heat = ndimage.gaussian_filter(random.normal(0, 1, (side, side)), 2) * 4
        mask = np.zeros((side, side), bool)
        if i % 2:
            for _ in range(random.integers(1, 3)):
                (y, x), r = random.integers(8, side - 8, 2).tolist(), random.integers(2, 7)
                mask |= np.hypot(*np.ogrid[-y : side - y, -x : side - x]) <= r
            heat += ndimage.gaussian_filter(mask * strength * random.uniform(0.3, 2), 1.5)
        maps.append(heat)
        masks.append(mask if i % 2 else None)
    return np.array(maps, np.float32), masks


def exact(maps: Map, masks: list[Mask | None]) -> dict[str, float]:
    """The same figures from all pooled pixels, with every distinct value as a threshold."""
    full = [np.zeros(m.shape, bool) if mask is None else mask for m, mask in zip(maps, masks, strict=True)]
    truth, values = np.concatenate([m.ravel() for m in full]), maps.ravel()
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.diff(values[order], append=-np.inf))
    caught, alarms = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    overlaps = []
    for heat, mask in zip(maps, full, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, count + 1):
            inside = np.sort(heat[labels == region])
            overlaps.append(1 - np.searchsorted(inside, values[order][last], side="left") / len(inside))
    rate, pro = np.r_[0, alarms / alarms[-1]], np.r_[0, np.mean(overlaps, axis=0)]
    grid = np.unique(np.r_[rate[rate < 0.3], 0.3])
    # At equal rates the curve jumps: integrate with both ends of the jump.
    below = rate <= 0.3
    x, y = np.r_[rate[below], 0.3], np.r_[pro[below], np.interp(0.3, rate, pro)]
    assert len(grid) <= len(x)
    return {
        "pixel_auroc": metrics.roc_auc_score(truth, values),
        "aupro": np.trapezoid(y, x) / 0.3,
        "pixel_average_precision": metrics.average_precision_score(truth, values),
        "best_iou": (caught / (truth.sum() + alarms)).max(),
        "pointing_game": np.mean([m.ravel()[h.argmax()] for h, m in zip(maps, full, strict=True) if m.any()]),
    }


def statistics(maps: Map, masks: list[Mask | None]) -> localisation.PixelStatistics:
    sizes = [(m.shape[1], m.shape[0]) for m in maps]
    thresholds = thresholds_for(list(maps), masks, sizes)
    assert len(thresholds) <= 2702
    return collect(zip(maps, masks, sizes, strict=True), thresholds)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strength", [0.5, 2.0, 8.0])
def test_pixel_figures_are_the_exact_ones(seed: int, strength: float) -> None:
    maps, masks = scene(seed, strength=strength)
    found = pixel_figures(statistics(maps, masks), np.ones((1, len(maps))))
    assert {k: float(v[0]) for k, v in found.items()} == pytest.approx(exact(maps, masks), abs=1e-3)


def test_pixel_figures_with_outliers_and_few_distinct_values() -> None:
    maps, masks = scene(5)
    maps[0, 3, 3] = 1e6
    found = pixel_figures(statistics(maps, masks), np.ones((1, len(maps))))
    assert {k: float(v[0]) for k, v in found.items()} == pytest.approx(exact(maps, masks), abs=1e-3)
    coarse = np.round(scene(6)[0])
    found = pixel_figures(statistics(coarse, masks), np.ones((1, len(coarse))))
    assert {k: float(v[0]) for k, v in found.items()} == pytest.approx(exact(coarse, masks), abs=1e-6)


def test_weights_are_repetitions_of_images() -> None:
    maps, masks = scene(8, count=10)
    weights = np.array([0, 3, 1, 0, 2, 1, 0, 2, 0, 1])
    drawn = np.repeat(np.arange(10), weights)
    found = pixel_figures(statistics(maps, masks), weights[None].astype(float))
    expected = exact(maps[drawn], [masks[i] for i in drawn])
    assert {k: float(v[0]) for k, v in found.items()} == pytest.approx(expected, abs=1e-3)


def test_aupro_worked_out_by_hand() -> None:
    # The overlap rises from 0 to 0.5 at once, then evenly to 1 at a rate of 0.6: at 0.3 it is 0.75.
    rate, overlap = np.array([[0.0, 0.6, 1.0]]), np.array([[0.5, 1.0, 1.0]])
    assert area_under_pro(overlap, rate)[0] == pytest.approx((0.5 + 0.75) / 2)
    assert area_under_pro(overlap, rate, limit=1.0)[0] == pytest.approx(0.6 * 0.75 + 0.4)
    # All regions found without a false positive; and a map without information, whose curve is the diagonal.
    assert area_under_pro(np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]]))[0] == pytest.approx(1)
    assert area_under_pro(np.array([[1.0]]), np.array([[1.0]]))[0] == pytest.approx(0.15)


def test_a_small_region_counts_as_much_as_a_large_one_in_aupro() -> None:
    mask = np.zeros((20, 20), bool)
    mask[0:10, 0:10] = True  # 100 pixels
    mask[15, 15] = True  # 1 pixel
    heat = mask.astype(np.float32)
    heat[15, 15] = -1  # the small one is found last of all
    good = np.zeros((20, 20), np.float32)
    found = pixel_figures(statistics(np.stack([heat, good]), [mask, None]), np.ones((1, 2)))
    # Half of the overlap is there at rate 0; from there on straight to 0.5 at rate 1.
    assert found["aupro"][0] == pytest.approx(0.5)
    assert found["pixel_auroc"][0] == pytest.approx(100 / 101)
    assert found["best_iou"][0] == pytest.approx(100 / 101)


def test_the_pointing_game_worked_out_by_hand() -> None:
    corner = np.zeros((4, 4), bool)
    corner[:2, :2] = True
    inside, beside, tied_first, tied_last, flat = np.zeros((5, 4, 4), np.float32)
    inside[1, 1] = beside[1, 2] = 1
    tied_first[[0, 3], [0, 3]] = 1  # the first of two highest points counts: once inside the mask,
    tied_last[[0, 1], [2, 1]] = 1  # once outside
    heats = np.stack([inside, beside, tied_first, tied_last, flat, inside])
    masks = [corner, corner, corner, corner, corner[::-1, ::-1], None]  # a good image plays no part
    found = pixel_figures(statistics(heats, masks), np.array([[1.0] * 6, [1, 0, 0, 0, 1, 5], [0, 0, 0, 0, 0, 6]]))
    np.testing.assert_allclose(found["pointing_game"], [2 / 5, 1 / 2, np.nan])


def test_a_coarse_map_points_with_the_centre_of_its_highest_cell() -> None:
    small = np.array([[0, 1, 0], [0, 0, 0]], np.float32)
    # An image of 1200 x 400 is judged at 512 x 171: the centre is at (256, 42.75), in it at (600, 100).
    shares = []
    for left, top in ((596, 96), (640, 96), (596, 140), (0, 0)):
        mask = np.zeros((400, 1200), bool)
        mask[top : top + 8, left : left + 8] = True
        found = localisation_metrics(small[None], [mask], np.array([True]), [[]], [(1200, 400)])["pointing_game"]
        assert isinstance(found, Interval)
        shares.append(found.value)
    assert shares == [1, 0, 0, 0]


def test_evaluation_size_and_enlarged_maps() -> None:
    assert evaluation_size((300, 200)) == (300, 200)
    assert evaluation_size((2048, 1000)) == (512, 250)
    assert evaluation_size((5000, 2)) == (512, 1)
    heat = np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(resize_map(heat, (4, 1)), [[0, 0.25, 0.75, 1]])


def test_a_reduced_mask_loses_no_defect() -> None:
    mask = np.zeros((1024, 1024), bool)
    mask[100:300, 200:300] = True  # 20,000 pixels become 5,000
    mask[500, 100:900] = True  # a hairline: stays whole
    mask[700, 700] = True  # a dot: still there
    reduced = reduce_mask(mask, (512, 512))
    assert reduced[50:150, 100:150].all()
    assert reduced[250, 50:450].all()
    assert reduced[350, 350]
    assert reduced.sum() == 5000 + 400 + 1
    assert reduce_mask(reduced, (512, 512)) is reduced


def test_a_slanting_hairline_stays_in_one_piece() -> None:
    mask = np.zeros((1500, 1500), bool)
    mask[np.arange(1500) // 3, np.arange(1500)] = True
    reduced = reduce_mask(mask, (512, 512))
    assert ndimage.label(reduced, np.ones((3, 3)))[1] == 1
    assert reduced.any(0).all()
    assert reduced.sum() < 2.5 * 512  # not much fatter than a pixel


@pytest.mark.parametrize("size", [(333, 500), (512, 77), (40, 30), (1, 1)])
def test_reduced_masks_at_odd_scales(size: tuple[int, int]) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((700, 600)), 12) > 0.51
    reduced = reduce_mask(mask, size)
    assert reduced.shape == size[::-1]
    y, x = (np.arange(700) * size[1] // 700)[:, None], np.arange(600) * size[0] // 600
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert set(np.unique(labels[reduced[y, x]])) >= set(range(1, count + 1))
    if min(size) > 300:  # what is deep inside stays, what is far outside is not added
        assert reduced.mean() == pytest.approx(mask.mean(), rel=0.05)  # halves count as defective
        assert reduced[y, x][ndimage.binary_erosion(mask, iterations=2)].all()
        assert not reduced[y, x][~ndimage.binary_dilation(mask, iterations=2)].any()


def test_a_mask_smaller_than_its_image_is_enlarged() -> None:
    mask = np.array([[True, False], [False, False]])
    np.testing.assert_array_equal(reduce_mask(mask, (4, 2)), [[True, True, False, False], [False] * 4])


def test_all_figures_with_intervals_and_counts() -> None:
    maps, masks = scene(3, count=40)
    labels = np.arange(40) % 2 == 1
    masks[1] = None  # an anomaly that nobody marked
    masks[3] = np.zeros((64, 64), bool)  # or marked with nothing
    masks[2] = np.zeros((64, 64), bool)  # a good one with an empty mask is simply good
    one_box = [[Region((i, 0, i + 24, 32), 1.0, 1.0)] for i in range(40)]
    found = localisation_metrics(maps, masks, labels, one_box, [(64, 64)] * 40, resamples=200)
    used = [i for i in range(40) if i not in (1, 3)]
    expected = exact(maps[used], [masks[i] if i != 2 else None for i in used])
    for name in PIXEL_FIGURES:
        figure = found[name]
        assert isinstance(figure, Interval)
        assert figure.low is not None
        assert figure.high is not None
        assert figure.value == pytest.approx(expected[name], abs=1e-3)
        assert figure.low < expected[name] < figure.high
    regions = sum(ndimage.label(m, np.ones((3, 3)))[1] for m in masks if m is not None)
    counts = {"images": 38, "images_with_mask": 18, "left_out": 2, "defects": regions, "boxes": 38}
    assert {k: found[k] for k in counts} == counts
    truth = sum(judge_boxes(masks[i], one_box[i], (64, 64)).right for i in used if i != 2)
    boxes_right = found["boxes_right"]
    assert isinstance(boxes_right, Interval)
    assert 0 < truth < 18
    assert boxes_right.value == pytest.approx(truth / 38)  # boxes on good images count as wrong


def test_maps_are_judged_at_the_size_of_the_image() -> None:
    small = np.array([[[0, 0.4], [0, 0.6]], [[0, 0], [0.7, 0]]], np.float32)
    mask = np.zeros((600, 1200), bool)
    mask[450:, 900:] = True
    found = localisation_metrics(small, [mask, None], np.array([True, False]), [[], []], [(1200, 600), (1200, 600)])
    large = np.stack([resize_map(m, (512, 256)) for m in small])
    expected = exact(large, [reduce_mask(mask, (512, 256)), None])
    for name in PIXEL_FIGURES:
        figure = found[name]
        assert isinstance(figure, Interval)
        assert figure.value == pytest.approx(expected[name], abs=1e-3)


def test_without_masks_nothing_is_claimed() -> None:
    maps = np.zeros((4, 8, 8), np.float32)
    labels = np.array([True, True, False, False])
    found = localisation_metrics(maps, [None] * 4, labels, [[]] * 4, [(8, 8)] * 4)
    assert all(found[name] == Interval(None) for name in (*PIXEL_FIGURES, "aupimo", "defects_hit", "boxes_right"))
    assert (found["images"], found["left_out"]) == (2, 2)


def test_contradictions_are_refused() -> None:
    maps, mask, sizes = np.zeros((1, 8, 8), np.float32), np.ones((8, 8), bool), [(8, 8)]
    with pytest.raises(ValueError, match="labelled good"):
        localisation_metrics(maps, [mask], np.array([False]), [[]], sizes)
    with pytest.raises(ValueError, match="as many"):
        localisation_metrics(maps, [], np.array([False]), [[]], sizes)
    with pytest.raises(ValueError, match="finite"):
        localisation_metrics(maps * np.float32("nan"), [mask], np.array([True]), [[]], sizes)
