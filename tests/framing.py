"""A tiny product for tests of frames: plates (160, 240) with a hole and a bar, in place or each shifted and turned, and
bright spots as defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.support import write_image

HEIGHT, WIDTH = 160, 240
Pixels = npt.NDArray[np.uint8]


def plate(
    number: int, spot: tuple[int, int] | None = None, moved: tuple[float, float, float] = (0, 0, 0)
) -> tuple[Pixels, Pixels]:
    """A plate (160, 240, 3) and its mask; `spot` is the (top, left) of a 12 x 12 defect on the plate. `moved` is by how
    many pixels the plate is shifted right and down, and by how many degrees it is turned."""
    random = np.random.default_rng(number)
    right, down, turn = moved
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    x, y = x - WIDTH / 2 - right, y - HEIGHT / 2 - down
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    x, y = x * c + y * s + WIDTH / 2, y * c - x * s + HEIGHT / 2
    pixels = 90 + 30 * np.sin(x / 3)
    pixels[(x - 90) ** 2 + (y - 70) ** 2 < 30**2] = 40
    pixels[(np.abs(x - 160) < 40) & (np.abs(y - 115) < 10)] = 170
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if spot:
        inside = (np.abs(x - spot[1] - 6) < 6) & (np.abs(y - spot[0] - 6) < 6)
        pixels[inside], mask[inside] = 245, 255
    # Uneven light and noise, so that no two count as images of one item.
    light = Image.fromarray(random.normal(0, 7, (16, 24)).astype(np.float32))
    pixels += np.asarray(light.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    pixels += random.normal(0, 5, pixels.shape)
    return np.repeat(np.clip(pixels, 0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


def anywhere(number: int) -> tuple[float, float, float]:
    """A random shift and turn for `plate`, the same for each number."""
    random = np.random.default_rng((number, 1))
    return float(random.uniform(-18, 18)), float(random.uniform(-12, 12)), float(random.uniform(-12, 12))


SPOTS = ((20, 200), (40, 150), (70, 20), (125, 60))


def write_product(root: Path, *, moved: bool = False, train: int = 20) -> Path:
    """MVTec AD layout: good plates for training, four good and four defective ones for testing."""

    def place(number: int) -> tuple[float, float, float]:
        return anywhere(number) if moved else (0, 0, 0)

    for i in range(train):
        write_image(root / f"train/good/{i:03}.png", plate(i, moved=place(i))[0])
    for i, spot in enumerate(SPOTS):
        write_image(root / f"test/good/{i:03}.png", plate(100 + i, moved=place(100 + i))[0])
        image, mask = plate(200 + i, spot, place(200 + i))
        write_image(root / f"test/spot/{i:03}.png", image)
        write_image(root / f"ground_truth/spot/{i:03}_mask.png", mask)
    return root


def region() -> Pixels:
    """A region of interest: white, but black at the right edge, where the first spot is, and in a strip at the top."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:, :190] = 255
    return mask
