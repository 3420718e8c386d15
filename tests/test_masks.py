"""Which values of a mask are defective: by hand, and on drawn masks that were softened by resizing and JPEG."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from blemish.masks import defective, greys, is_picture, looks_drawn


def drawn(*areas: tuple[int, int, int], size: int = 64) -> npt.NDArray[np.uint8]:
    """Squares (place, side, value) on black."""
    values = np.zeros((size, size), np.uint8)
    for place, side, value in areas:
        values[place : place + side, place : place + side] = value
    return values


@pytest.mark.parametrize(
    ("values", "found", "defect"),
    [
        (drawn((5, 10, 255)), [], 100),
        (drawn((5, 10, 1), (30, 5, 2)), [], 125),  # numbered
        (drawn((5, 10, 100), (15, 10, 150)), [100], 200),
        (drawn((5, 10, 1), (30, 5, 255)), [1], 125),
        (drawn((5, 2, 50), (20, 2, 100), (40, 5, 200)), [50, 100], 33),
        (drawn((5, 1, 90), (40, 5, 255)), [90], 26),  # a single pixel, apart
        (drawn((5, 10, 0)), [], 0),
        (np.full((4, 4), 255, np.uint8), [], 16),
    ],
)
def test_greys_of_their_own(values: npt.NDArray[np.uint8], found: list[float], defect: int) -> None:
    assert greys(values, 255) == found
    assert defective(values, 255).sum() == defect


def test_greys_of_16_bits_and_of_floats() -> None:
    values = drawn((5, 10, 100), (15, 10, 150))
    for scaled, white in ((values.astype(np.uint16) * 257, 65535), (values.astype(np.float32) / 255, 1.0)):
        assert np.round(np.array(greys(scaled, white)) * 255 / white).tolist() == [100]
        assert defective(scaled, white).sum() == 200


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_soft_edges_are_no_greys_of_their_own(quality: int) -> None:
    image = Image.new("L", (128, 128))
    ImageDraw.Draw(image).ellipse((20, 30, 80, 70), fill=255)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    softened = [np.asarray(Image.open(file))]
    softened += [np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for side in (50, 100, 200, 384)]
    for values in softened:
        assert ((values > 0) & (values < 128)).any()
        assert greys(values, 255) == []
        np.testing.assert_array_equal(defective(values, 255), values >= 128)


def test_drawings_are_told_from_pictures() -> None:
    def rgb(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.repeat(values[..., None], 3, axis=2)

    picture = np.random.default_rng(0).integers(60, 190, (64, 64)).astype(np.uint8)
    dark_field = np.random.default_rng(0).integers(3, 12, (64, 64)).astype(np.uint8)
    dark_field[10:20, 10:20] = 255
    speck = drawn((700, 2, 255), size=1000)  # so small that a coarse look misses it
    assert all(looks_drawn(rgb(values)) for values in (drawn((5, 10, 255)), drawn((5, 9, 1), (20, 9, 2)), speck))
    assert not any(looks_drawn(rgb(values)) for values in (picture, dark_field, drawn()))
    assert is_picture(picture, 255)
    assert not any(is_picture(values, 255) for values in (drawn((5, 50, 100)), dark_field, speck))
