import numpy as np
import pytest
from PIL import Image

from blemish.inference.resizing import grown, resized, resized_mask, size_of


def test_a_mask_grows_by_the_eight_neighbours_of_each_cell() -> None:
    cells = np.zeros((4, 5), bool)
    cells[0, 0] = cells[3, 3] = True
    expected = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(grown(cells), expected)


def test_fine_stripes_become_grey_in_a_reduced_image_and_an_enlarged_map_is_linear() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, ::2] = 200
    smaller = resized(image, (8, 4))
    assert smaller.shape == (4, 8, 3)
    assert np.abs(smaller.astype(int) - 100).max() <= 3
    larger = resized(np.array([[0, 1]], np.float32), (4, 1))
    np.testing.assert_allclose(larger, [[0, 0.25, 0.75, 1]])  # pixel centres at -1/4, 1/4, 3/4 and 5/4
    assert size_of(image) == (80, 40)


def test_nothing_is_copied_where_the_size_is_right() -> None:
    image, mask = np.zeros((4, 8, 3), np.uint8), np.zeros((4, 8), bool)
    assert resized(image, (8, 4)) is image
    assert resized_mask(mask, (8, 4)) is mask


def test_a_pixel_of_a_resized_mask_is_the_one_that_its_centre_is_in() -> None:
    mask = np.array([[1, 0, 0]], bool)
    # Pixel centres at 0.3, 0.9, 1.5, 2.1 and 2.7 of the three pixels.
    assert resized_mask(mask, (5, 1)).tolist() == [[True, True, False, False, False]]
    assert resized_mask(np.array([[0, 1, 0, 0, 1]], bool), (2, 1)).tolist() == [[True, False]]  # at 1.25 and 3.75


@pytest.mark.parametrize("factor", [1, 2, 3, 8, 16])
def test_a_mask_is_enlarged_as_pillow_does_it(factor: int) -> None:
    mask = np.random.default_rng(factor).random((9, 14)) < 0.5
    size = (14 * factor, 9 * factor)
    expected = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    np.testing.assert_array_equal(resized_mask(mask, size), expected)
