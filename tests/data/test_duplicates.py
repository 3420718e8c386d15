"""Copies are detected; images of different parts that merely look alike are not taken for copies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from blemish.data.duplicates import ALIKE, FEWEST, SAME, SIDE, near_pairs, thumbnail


def textures(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Thumbnails of unrelated textures."""
    rng = np.random.default_rng(seed)
    return rng.integers(60, 190, (count, SIDE, SIDE)).astype(np.uint8)


def regular_parts(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """The same round part in the same place, under different light (gain and a gradient) and with sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:320, :320] - 159.5
    part = 120 + 60 * np.exp(-(x**2 + y**2) / 9000) + 40 * (np.hypot(x, y) < 100) - 30 * (np.hypot(x, y) < 33)
    thumbnails = []
    for _ in range(count):
        light = rng.normal(1, 0.05) * (1 + rng.normal(0, 0.02) * x / 160)
        image = np.clip(part * light + rng.normal(0, 2, part.shape), 0, 255).astype(np.uint8)
        thumbnails.append(thumbnail(np.repeat(image[..., None], 3, axis=2)))
    return np.stack(thumbnails)


def test_thumbnail_is_the_mean_of_each_area() -> None:
    image = np.zeros((2 * SIDE, 4 * SIDE, 3), np.uint8)
    image[0, 0] = image[1, 3] = 80  # two of the eight pixels of the first area
    image[2:4, :4] = 255
    small = thumbnail(image)
    assert small.shape == (SIDE, SIDE)
    assert small.dtype == np.uint8
    assert (small[0, 0], small[1, 0], small[0, 1]) == (20, 255, 0)


def test_light_noise_and_encoding_do_not_hide_a_copy() -> None:
    thumbnails = textures(40)
    rng = np.random.default_rng(1)
    x = np.arange(SIDE)
    copies = {
        30: thumbnails[0],
        31: thumbnails[1] * 1.2,  # brighter
        32: thumbnails[2] * 0.8 + 30,  # flatter
        33: thumbnails[3] + 20 * x / SIDE,  # light from one side
        34: thumbnails[4] + rng.normal(0, 3, (SIDE, SIDE)),  # encoded again
    }
    for index, image in copies.items():
        thumbnails[index] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    assert near_pairs(thumbnails) == [(i, 30 + i) for i in range(5)]


def test_regular_parts_under_changing_light_are_no_copies() -> None:
    thumbnails = regular_parts(120)
    plain = thumbnails.reshape(120, -1).astype(float)
    plain -= plain.mean(axis=0)
    correlations = np.corrcoef(plain)[np.triu_indices(120, 1)]
    assert (correlations > ALIKE).sum() > 20  # what plain correlation of the thumbnails would take for copies
    assert near_pairs(thumbnails) == []


def test_the_fast_comparison_misses_no_pair() -> None:
    thumbnails = textures(600, seed=2)  # more than two blocks of 256
    rng = np.random.default_rng(3)
    for i in range(300, 600):  # copies of every degree
        noisy = thumbnails[i - 300] + rng.normal(0, rng.uniform(0, 25), (SIDE, SIDE))
        thumbnails[i] = np.clip(noisy, 0, 255).astype(np.uint8)
    pairs = near_pairs(thumbnails)
    assert pairs == slow_pairs(thumbnails)
    assert 50 < len(pairs) < 300  # both outcomes occur


def slow_pairs(thumbnails: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """The rule of the module's docstring, with scipy, one pair at a time."""
    features = []
    for image in thumbnails.astype(float):
        high = image - uniform_filter(image, 5, mode="nearest")
        features.append((high - high.mean()).ravel() / np.linalg.norm(high - high.mean()))
    correlations = np.corrcoef(np.array(features) - np.mean(features, axis=0))
    pairs = []
    for i, j in zip(*np.nonzero(np.triu(correlations >= ALIKE, 1)), strict=True):
        first, second = thumbnails[i].astype(float), thumbnails[j].astype(float)
        apart = np.sqrt(np.mean(((first - first.mean()) - (second - second.mean())) ** 2))
        if correlations[i, j] >= SAME or apart <= 2:
            pairs.append((int(i), int(j)))
    return pairs


def test_too_few_images_have_no_mean_to_subtract() -> None:
    thumbnails = textures(FEWEST)
    thumbnails[1] = thumbnails[0]
    assert near_pairs(thumbnails) == [(0, 1)]
    assert near_pairs(thumbnails[:-1]) == []
    assert near_pairs(thumbnails[:0]) == []


def test_images_without_texture_are_no_copies_of_each_other() -> None:
    thumbnails = textures(30)
    thumbnails[:10] = np.arange(10, dtype=np.uint8)[:, None, None] * 20  # flat: nothing to compare
    assert near_pairs(thumbnails) == []
