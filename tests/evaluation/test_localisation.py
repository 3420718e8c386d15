from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage
from sklearn import metrics

from blemish.evaluation import localisation
from blemish.evaluation.bootstrap import Interval
from blemish.evaluation.localisation import (
    BoxStatistics,
    area_under_pro,
    collect,
    evaluation_size,
    judge_boxes,
    localisation_metrics,
    pixel_figures,
    reduce_mask,
    resize_map,
    thresholds_for,
)
from blemish.inference.regions import find_regions
from blemish.types import Region
from tests.support import shared_folder

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
PIXEL_FIGURES = ("pixel_auroc", "aupro", "pixel_average_precision", "best_iou", "pointing_game")


def scene(seed: int, count: int = 24, side: int = 64, strength: float = 2.0) -> tuple[Map, list[Mask | None]]:
    """Smooth noise; every other image has one or two blobs of defect that the map sees more or less."""
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
    """The same figures from all pooled pixels and every distinct value as a threshold."""
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
    # at equal rates the curve jumps: integrate with the jump's both ends
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
    assert len(thresholds) <= 2402
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
    # All regions found with no false positive; and a map that tells nothing, whose curve is the diagonal.
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


def region(left: int, top: int, right: int, bottom: int) -> Region:
    return Region((left, top, right, bottom), 1.0, 1.0)


def test_which_boxes_hit() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:20, 10:20] = True
    mask[80, 10:90] = True  # a scratch 80 long

    def judged(*boxes: tuple[int, int, int, int]) -> tuple[int, int]:
        found = judge_boxes(mask, [region(*b) for b in boxes], (100, 100))
        assert (found.defects, found.boxes) == (2, len(boxes))
        return found.hit, found.right

    assert judged() == (0, 0)
    assert judged((10, 10, 20, 20)) == (1, 1)
    assert judged((15, 10, 45, 40)) == (1, 1)  # holds just half of it, IoU 0.05
    assert judged((16, 10, 46, 40)) == (0, 1)  # holds 40 %: it points there, but does not show it
    assert judged((19, 19, 60, 60)) == (0, 0)  # a corner
    assert judged((50, 30, 60, 40)) == (0, 0)  # next to it
    assert judged((0, 0, 100, 100)) == (0, 0)  # the whole image says nothing
    assert judged((10, 79, 30, 82), (40, 79, 60, 82)) == (1, 2)  # a scratch found in two pieces
    assert judged((10, 79, 30, 82)) == (0, 1)
    assert judged((10, 79, 50, 82), (10, 79, 50, 82), (60, 10, 70, 20)) == (1, 2)
    assert judged((10, 79, 49, 82), (10, 79, 49, 82)) == (0, 2)  # the same 39 pixels twice are no half


def test_boxes_of_large_defects() -> None:
    stain = np.zeros((100, 100), bool)
    stain[5:85, 5:85] = True
    # Larger than a quarter of the image, but alike; and a place well inside.
    assert judge_boxes(stain, [region(0, 0, 100, 100)], (100, 100)) == BoxStatistics(1, 1, 1, 1)
    assert judge_boxes(stain, [region(30, 30, 40, 40)], (100, 100)) == BoxStatistics(1, 0, 1, 1)


def test_a_large_box_that_fits_a_large_defect_shows_the_small_one_within() -> None:
    mask = np.zeros((100, 100), bool)
    mask[5:95, 5:45] = True
    mask[5:95, 45:95] = np.arange(45, 95) % 50 == 0  # a line at 50, apart from the stain
    assert judge_boxes(mask, [region(5, 5, 60, 95)], (100, 100)) == BoxStatistics(2, 2, 1, 1)


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "pattern", "least"),
    [
        ("data/kolektorsdd/ground_truth/defect", "*.png", 1.0),
        ("data/cookies/ground_truth/cracked", "*.png", 1.0),
        ("data/magnetic-tile", "MT_*/Imgs/*.png", 1.0),
    ],
)
def test_the_box_rule_on_real_defects(folder: str, pattern: str, least: float) -> None:
    """A map that marks just the cells with a defect must score near 1; a box around everything must not."""
    counts = {"exact": np.zeros(4), "everything": np.zeros(4), "elsewhere": np.zeros(4)}
    for path in sorted(shared_folder(folder).glob(pattern)):
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 127
        if not mask.any():
            continue
        size = (mask.shape[1], mask.shape[0])
        cells = Image.fromarray(mask.astype(np.float32)).resize((32, 32), Image.Resampling.BOX)
        exact_boxes = find_regions((np.asarray(cells) > 0).astype(np.float32), 0.5, size)
        turned = [region(*(size[0] - r.box[2], size[1] - r.box[3], size[0] - r.box[0], size[1] - r.box[1]))
                  for r in exact_boxes]  # fmt: skip
        boxes = {"exact": exact_boxes, "everything": [region(0, 0, *size)], "elsewhere": turned}
        for kind, drawn in boxes.items():
            found = judge_boxes(mask, drawn, size)
            counts[kind] += found.defects, found.hit, found.boxes, found.right
    shares = {kind: (hit / defects, right / boxes) for kind, (defects, hit, boxes, right) in counts.items()}
    assert min(shares["exact"]) >= least
    assert max(shares["everything"]) <= 0.25
    assert shares["elsewhere"][0] <= 0.4


def test_boxes_are_in_pixels_of_the_image_whatever_the_masks_size() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:20, 20:30] = True
    assert judge_boxes(mask, [region(200, 100, 300, 200)], (500, 500)) == BoxStatistics(1, 1, 1, 1)
    assert judge_boxes(None, [region(0, 0, 5, 5)] * 3, (500, 500)) == BoxStatistics(0, 0, 3, 0)
    with pytest.raises(ValueError, match="outside"):
        judge_boxes(mask, [region(600, 600, 700, 700)], (500, 500))


def test_all_figures_with_intervals_and_counts() -> None:
    maps, masks = scene(3, count=40)
    labels = np.arange(40) % 2 == 1
    masks[1] = None  # an anomaly that nobody marked
    masks[3] = np.zeros((64, 64), bool)  # or marked with nothing
    masks[2] = np.zeros((64, 64), bool)  # a good one with an empty mask is simply good
    one_box = [[region(i, 0, i + 24, 32)] for i in range(40)]
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
    assert all(found[name] == Interval(None) for name in (*PIXEL_FIGURES, "defects_hit", "boxes_right"))
    assert (found["images"], found["left_out"]) == (2, 2)


def test_contradictions_are_refused() -> None:
    maps, mask, sizes = np.zeros((1, 8, 8), np.float32), np.ones((8, 8), bool), [(8, 8)]
    with pytest.raises(ValueError, match="labelled good"):
        localisation_metrics(maps, [mask], np.array([False]), [[]], sizes)
    with pytest.raises(ValueError, match="as many"):
        localisation_metrics(maps, [], np.array([False]), [[]], sizes)
    with pytest.raises(ValueError, match="finite"):
        localisation_metrics(maps * np.float32("nan"), [mask], np.array([True]), [[]], sizes)
