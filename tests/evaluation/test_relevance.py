"""Each measure of one map, worked out by hand and for random maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from blemish.evaluation.relevance import (
    area_under,
    centre_map,
    deletion,
    edge_map,
    energy_inside,
    hottest,
    insertion,
    moved,
    pointing,
    random_map,
    ranked,
    road,
)

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blank(image: Pixels, mask: Mask) -> Pixels:
    return np.where(mask[..., None], 0, image).astype(np.uint8)


def brightness(image: Pixels) -> tuple[float, npt.NDArray[np.float32]]:
    return float(image.mean() / 255), image.mean(2).astype(np.float32)


def test_pixels_are_ranked_hottest_first_and_equals_at_random() -> None:
    heat = np.array([[3, 1], [1, 9]], np.float32)
    ranks = ranked(heat, (2, 2), chance())
    assert ranks[1, 1] == 0
    assert ranks[0, 0] == 1
    assert sorted(ranks.ravel().tolist()) == [0, 1, 2, 3]
    firsts = {int(ranked(heat, (2, 2), chance(seed))[0, 1]) for seed in range(20)}
    assert firsts == {2, 3}


def test_a_small_map_is_enlarged_bilinearly() -> None:
    ranks = ranked(np.array([[0, 1]], np.float32), (1, 4), chance())
    assert ranks.tolist() == [[3, 2, 1, 0]]  # 0, 1/4, 3/4, 1


def test_the_hottest_area_is_at_least_a_pixel() -> None:
    ranks = np.arange(10).reshape(2, 5)
    assert hottest(ranks, 0.001).sum() == 1
    assert hottest(ranks, 0.3).tolist() == [[True, True, True, False, False], [False] * 5]


def test_curves_by_hand_on_four_pixels() -> None:
    image = np.array([[40, 30], [20, 10]], np.uint8)[..., None].repeat(3, 2)
    ranks = ranked(brightness(image)[1], (2, 2), chance())
    areas = (0.25, 0.5, 0.75)
    out = deletion(brightness, image, ranks, blank, areas) * 255 * 4
    back = insertion(brightness, image, ranks, blank, areas) * 255 * 4
    assert out == pytest.approx([60, 30, 10])
    assert back == pytest.approx([40, 70, 90])
    # 0.25 * (100 + 60) / 2 + 0.25 * (60 + 30) / 2 + ...
    assert area_under((0, *areas, 1), np.array([100, 60, 30, 10, 0])) == pytest.approx(20 + 11.25 + 5 + 1.25)


def test_pixels_taken_out_in_random_order_leave_a_share_of_the_score() -> None:
    image = np.full((20, 20, 3), 255, np.uint8)
    image[:, 10:] = 0
    areas = (0.1, 0.4, 0.8)
    flat = np.zeros((20, 20), np.float32)  # all equal: ranked at random
    scores = [deletion(brightness, image, ranked(flat, (20, 20), chance(s)), blank, areas) for s in range(200)]
    mean = np.mean(scores, 0) / 0.5
    assert mean == pytest.approx([0.9, 0.6, 0.2], abs=0.01)
    assert area_under((0, *areas, 1), np.array([1, *mean, 0])) == pytest.approx(0.5, abs=0.01)


def test_road_of_a_detector_that_is_one_square() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[12:20, 20:28] = 255

    def square(shown: Pixels) -> tuple[float, npt.NDArray[np.float32]]:
        return float(shown[12:20, 20:28].mean() / 255), shown.mean(2).astype(np.float32)

    ranks = ranked(square(image)[1], (40, 40), chance())
    least, most = road(square, image, ranks, chance())
    assert least == pytest.approx(np.ones(5), abs=0.01)
    assert most == pytest.approx(np.zeros(5), abs=0.01)
    least, most = road(square, image, ranks.max() - ranks, chance())
    assert least == pytest.approx(np.zeros(5), abs=0.01)
    assert most == pytest.approx(np.ones(5), abs=0.01)


def test_a_region_is_moved_anywhere_and_keeps_its_area() -> None:
    mask = np.zeros((6, 7), bool)
    mask[0, :3] = True
    places = np.zeros((6, 7))
    for seed in range(2000):
        shifted = moved(mask, chance(seed))
        assert shifted.sum() == 3
        places += shifted
    assert places / 2000 == pytest.approx(np.full((6, 7), 3 / 42), abs=0.025)


def test_pointing_counts_the_tolerance_from_the_mask() -> None:
    heat = np.zeros((100, 100), np.float32)
    heat[50, 40] = 1
    mask = np.zeros((100, 100), bool)
    mask[50, 43:60] = True
    assert pointing(heat, mask)  # 3 pixels of 100
    assert not pointing(heat, mask, 0.029)
    assert not pointing(heat, mask, 0)
    mask[50, 40] = True
    assert pointing(heat, mask, 0)


def test_pointing_takes_the_centre_of_a_small_maps_cell() -> None:
    heat = np.array([[0, 0], [0, 1]], np.float32)
    mask = np.zeros((40, 40), bool)
    mask[30, 30] = True
    assert pointing(heat, mask, 0)
    mask[:] = False
    mask[20, 20] = True
    assert not pointing(heat, mask, 0)


def test_energy_counts_what_exceeds_the_median_wherever_zero_is() -> None:
    heat = np.array([[0, 0, 0, 0], [0, 0, 3, 1]], np.float32)
    mask = np.zeros((2, 4), bool)
    mask[1, 2] = True
    assert energy_inside(heat, mask) == pytest.approx(0.75)
    assert energy_inside(-7 + 0.25 * heat, mask) == pytest.approx(0.75)
    heat[0, 0] = -100  # a cold spot is no energy elsewhere
    assert energy_inside(heat, mask) == pytest.approx(0.75)
    assert energy_inside(np.ones((2, 4), np.float32), mask) == pytest.approx(1 / 8)


def test_a_random_map_gets_what_chance_gives() -> None:
    mask = np.zeros((50, 50), bool)
    mask[:25, 25:] = True  # a quarter, in a corner: nor are edges favoured
    maps = [random_map((50, 50), chance(seed)) for seed in range(600)]
    pointed = np.mean([pointing(one, mask, 0) for one in maps])
    assert pointed == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 600) ** 0.5)
    assert np.mean([energy_inside(one, mask) for one in maps]) == pytest.approx(0.25, abs=0.01)
    assert (maps[3] == random_map((50, 50), chance(3))).all()


def test_the_blob_is_in_the_middle() -> None:
    blob = centre_map((21, 31))
    assert int(blob.argmax()) == 10 * 31 + 15
    assert blob[10, 0] == pytest.approx(np.exp(-2))
    assert blob == pytest.approx(blob[::-1, ::-1])


def test_edges_are_where_the_grey_image_changes() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[:, 30:] = 90
    edges = edge_map(image)
    assert set(edges.argmax(1).tolist()) <= {29, 30}
    # Sobel's 4 * 90 in two columns, spread by a Gaussian of 1.2 pixels.
    kernel = np.exp(-0.5 * (np.arange(-30, 30) / 1.2) ** 2)
    kernel /= kernel.sum()
    assert edges[30, 30] == pytest.approx(360 * (kernel[30] + kernel[29]), rel=1e-3)
    assert edges[:, :20].max() < 1e-3
