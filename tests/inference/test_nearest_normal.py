import io
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from blemish import Inspector
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection
from blemish.inference.nearest_normal import grown_box, map_window, nearest_normal, peak_of
from blemish.inference.tiling import Box
from blemish.types import Prediction, Region, Verdict
from tests.inference.conftest import with_outputs


def test_a_spot_is_shown_beside_the_normal_patch_nearest_to_it(
    inspector: Inspector, store: EvidenceStore, defective: Inspection
) -> None:
    nearest = nearest_normal(inspector, store, defective, defective.verdict.regions[0])
    assert nearest is not None
    assert nearest.region == defective.verdict.regions[0]
    assert defective.image is not None
    assert defective.distances is not None
    assert defective.neighbours is not None
    left, top, right, bottom = nearest.box
    assert left <= 36 < right  # the spot's centre
    assert top <= 26 < bottom
    np.testing.assert_array_equal(nearest.crop, defective.image[top:bottom, left:right])
    assert (nearest.crop == 245).any()
    # The cell of the map's peak, its distance and its neighbour, looked up again.
    assert defective.map is not None
    peak, shape, grid = defective.map.argmax(), defective.map.shape, defective.distances.shape
    row, column = (int(i) * g // n for i, g, n in zip(np.unravel_index(peak, shape), grid, shape, strict=True))
    assert nearest.distance == pytest.approx(float(defective.distances[row, column]))
    origin = store.origin(int(defective.neighbours[row, column]))
    assert origin is not None
    number, source_row, source_column = origin
    assert nearest.source == store.names[number]
    assert nearest.source.startswith("train/good/")
    # The normal crop is of that image, has the same size, and shows no spot.
    assert nearest.normal is not None
    assert nearest.normal.shape == nearest.crop.shape
    assert nearest.normal.max() < 200
    whole = np.asarray(Image.fromarray(store.image(number)).resize((80, 60), Image.Resampling.BICUBIC), np.float32)
    height, width = nearest.crop.shape[:2]
    y = min(max(top + round((source_row - row) / grid[0] * 60), 0), 60 - height)
    x = min(max(left + round((source_column - column) / grid[1] * 80), 0), 80 - width)
    assert np.abs(whole[y : y + height, x : x + width] - nearest.normal).mean() < 12  # to half a pixel


def test_the_normal_crop_is_shifted_as_the_patch_is(inspector: Inspector) -> None:
    """The place is in row 3 and column 4 of the grid, its nearest patch in row 5 and column 1 of the good image."""
    y, x = np.mgrid[:64, :64] * 4
    good = np.stack([y, x, y // 2 + x // 2], -1).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(good).save(jpeg, "JPEG", quality=98, subsampling=0)
    store = EvidenceStore(np.array([[0, 0, 0], [0, 5, 1]], np.int32), ("good.png",), (64, 64), (jpeg.getvalue(),))
    neighbours = np.zeros((1, 8, 8), np.int32)
    neighbours[0, 3, 4] = 1
    prediction = Prediction(
        scores=np.ones(1, np.float32),
        maps=np.ones((1, 64, 64), np.float32),
        neighbours=neighbours,
        distances=np.ones((1, 8, 8), np.float32),
    )
    inspection = Inspection(Verdict("a.png", "anomaly", 1.0, 0.5), good, prediction)
    nearest = nearest_normal(inspector, store, inspection, (36, 28))
    assert nearest is not None
    assert nearest.box == (24, 16, 48, 40)  # three cells of eight pixels around it
    assert nearest.normal is not None
    expected = good[16 + 16 : 40 + 16, 24 - 24 : 48 - 24].astype(int)
    assert np.abs(nearest.normal - expected).max() <= 6  # JPEG


def test_p_values_by_hand(inspector: Inspector, store: EvidenceStore, defective: Inspection) -> None:
    rule = inspector.card.decision
    assert len(rule.distances) == 19
    region = defective.verdict.regions[0]
    assert region.p_value == pytest.approx((1 + sum(peak >= region.peak for peak in rule.map_maxima)) / 20)
    assert defective.distances is not None
    distance = float(np.sort(rule.distances)[7])
    for row, column in ((0, 0), (12, 16)):
        distances = defective.distances.copy()
        distances[row, column] = distance
        place = round((column + 0.5) * 80 / distances.shape[1]), round((row + 0.5) * 60 / distances.shape[0])
        changed = with_outputs(defective, distances=distances[None])
        nearest = nearest_normal(inspector, store, changed, place)
        assert nearest is not None
        assert nearest.distance == pytest.approx(distance)
        assert nearest.p_value == pytest.approx((1 + sum(d >= nearest.distance for d in rule.distances)) / 20)
        assert nearest.region is None
    # A bundle without distances of calibration images has no p-value.
    blank = copy(inspector)
    blank.card = inspector.card.model_copy(update={"decision": rule.model_copy(update={"distances": ()})})
    nearest = nearest_normal(blank, store, defective, region)
    assert nearest is not None
    assert nearest.p_value is None


def test_a_patch_whose_image_is_not_in_the_bundle_has_a_distance_alone(
    inspector: Inspector, store: EvidenceStore, defective: Inspection
) -> None:
    table = store.table.copy()
    table[:, 0] = -1
    nearest = nearest_normal(inspector, replace(store, table=table), defective, (36, 26))
    assert nearest is not None
    assert (nearest.source, nearest.normal) == (None, None)
    assert nearest.distance > 0


def test_without_neighbours_there_is_nothing_to_compare(
    inspector: Inspector, store: EvidenceStore, defective: Inspection
) -> None:
    old = with_outputs(defective, neighbours=None, distances=None)
    assert nearest_normal(inspector, store, old, (36, 26)) is None


@pytest.mark.parametrize(
    ("box", "least", "expected"),
    [
        ((10, 10, 12, 12), (6, 4), (8, 9, 14, 13)),
        ((0, 0, 2, 2), (6, 4), (0, 0, 6, 4)),  # moved inside
        ((38, 18, 40, 20), (6.5, 4), (33, 16, 40, 20)),  # rounded up
        ((5, 5, 30, 15), (6, 4), (5, 5, 30, 15)),  # large enough
        ((0, 0, 40, 20), (99, 99), (0, 0, 40, 20)),
    ],
)
def test_grown_boxes_by_hand(box: Box, least: tuple[float, float], expected: Box) -> None:
    assert grown_box(box, (40, 20), least) == expected


def test_a_window_of_the_map_is_rounded_outwards() -> None:
    # Four cells over ten columns and six rows: columns 2..8 meet cells 0 to 3, rows 1..3 meet cells 0 and 1.
    assert map_window((2, 1, 8, 3), (10, 6), (4, 4)) == (slice(0, 2), slice(0, 4))
    assert map_window((5, 3, 10, 6), (10, 6), (4, 4)) == (slice(2, 4), slice(2, 4))


def test_where_boxes_overlap_each_region_has_its_own_peak() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[2, 2], heat[4, 5] = 5, 9
    assert peak_of(heat, Region((0, 0, 60, 50), 1.0, 5.0), (80, 80)) == (2.5 / 8, 2.5 / 8)
    assert peak_of(heat, Region((0, 0, 60, 50), 1.0, 9.0), (80, 80)) == (5.5 / 8, 4.5 / 8)
