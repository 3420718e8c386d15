import sys

import numpy as np
import pytest

from blemish import BlemishError
from blemish.inference import alignment
from tests.framing import HEIGHT, WIDTH, anywhere, plate

CORNERS = np.array([[30, 200, 30, 200], [30, 30, 130, 130], [1, 1, 1, 1]], np.float64)


def true_pose(moved: tuple[float, float, float]) -> alignment.Pose:
    """From the plate that was not moved to one that `plate` has moved, by its own formula."""
    right, down, turn = moved
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    centre = np.array([WIDTH / 2, HEIGHT / 2])
    linear = np.array([[c, -s], [s, c]])
    return np.hstack([linear, (centre + np.array([right, down]) - linear @ centre)[:, None]])


@pytest.mark.parametrize("number", range(5))
def test_shift_and_turn_are_found_to_a_pixel_and_half_a_degree(number: int) -> None:
    reference = alignment.reference_of(plate(1000)[0])
    moved = anywhere(number)
    pose, correlation = alignment.find_pose(plate(number, moved=moved)[0], reference)
    assert correlation > 0.5
    assert np.abs(pose @ CORNERS - true_pose(moved) @ CORNERS).max() < 1
    assert abs(np.degrees(np.arctan2(pose[1, 0], pose[0, 0])) - moved[2]) < 0.5


def test_a_large_image_is_aligned_with_a_small_reference() -> None:
    """The reference has no side over 512; the pose is in the image's own pixels."""
    moved = (10.0, -8.0, 6.0)

    def enlarged(image: np.ndarray) -> np.ndarray:
        return image.repeat(4, 0).repeat(4, 1)

    reference = alignment.reference_of(enlarged(plate(1000)[0]))
    assert reference.shape == (341, 512, 3)
    pose, _ = alignment.find_pose(enlarged(plate(3, moved=moved)[0]), reference)
    # Pixel (x, y) of the small image has its centre at (4 x + 1.5, 4 y + 1.5) of the large one.
    large = CORNERS * [[4], [4], [1]] + [[1.5], [1.5], [0]]
    expected = (true_pose(moved) @ CORNERS) * 4 + 1.5
    assert np.abs(pose @ large - expected).max() < 4


def test_an_aligned_map_is_warped_back() -> None:
    smooth = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.float32)
    pose = true_pose((7.0, -5.0, 9.0))
    turned = alignment.warped(smooth, pose)
    back = alignment.warped_back(turned, pose, (WIDTH, HEIGHT), -1.0)
    middle = np.s_[50:110, 60:180]
    np.testing.assert_allclose(back[middle], smooth[middle], atol=0.1)
    assert back.dtype == np.float32
    assert (back == -1).any()  # what the aligned image does not show
    # At half the resolution it is the same map, coarser.
    half = alignment.warped_back(turned.reshape(80, 2, 120, 2).mean((1, 3)), pose, (WIDTH, HEIGHT), -1.0)
    coarse = smooth.reshape(80, 2, 120, 2).mean((1, 3))
    np.testing.assert_allclose(half[25:55, 30:90], coarse[25:55, 30:90], atol=0.2)


def test_what_an_image_does_not_show_is_filled_from_the_reference_at_the_images_brightness() -> None:
    random = np.random.default_rng(0)
    reference = random.integers(60, 120, (40, 60, 3), dtype=np.uint8)
    pose = np.array([[1.0, 0, 10], [0, 1, 0]])  # the last ten columns of the frame are right of the image
    image = np.roll(reference, 10, 1) * np.uint8(2)
    filled = alignment.aligned(image, pose, reference)
    np.testing.assert_array_equal(filled[:, :50], image[:, 10:])
    np.testing.assert_allclose(filled[:, 50:], 2.0 * reference[:, 50:], atol=1)
    np.testing.assert_array_equal(alignment.aligned(image, pose)[:, 50:], image[:, 59:].repeat(10, 1))
    still = np.eye(3)[:2]
    np.testing.assert_array_equal(alignment.aligned(image, still, reference), image)


def test_other_images_have_no_pose() -> None:
    reference = alignment.reference_of(plate(1000)[0])
    assert alignment.find_pose(np.zeros((HEIGHT, WIDTH, 3), np.uint8), reference)[1] == -1
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert alignment.find_pose(noise, reference)[1] < 0.25
    far = plate(5, moved=(0, 0, 80))[0]
    assert alignment.find_pose(far, reference)[1] < 0.6


def test_without_opencv_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BlemishError, match=r"needs OpenCV.*pip install 'blemish\[align\]'"):
        alignment.opencv()
