"""One corrupted image: what changed, where, from which source, how kinds and areas are distributed, and how fast."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from blemish.data.corrupt import AREA, FEWEST, KINDS, SEEN, VISIBLE, corrupt
from blemish.types import BlemishError
from tests.support import grey, shared_folder

Pixels = npt.NDArray[np.uint8]


def colourful(seed: int, height: int = 64, width: int = 80) -> Pixels:
    """Noise: no two places are alike, so the source of a pasted piece can be found."""
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def ramp(height: int = 128, width: int = 128) -> Pixels:
    """A smooth grey image with a little noise, as cameras give it."""
    light = np.linspace(40, 200, width) + np.random.default_rng(0).normal(0, 3, (height, width))
    return grey(np.clip(light, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(28, 28), (128, 128), (200, 61), (3, 90)])
def test_pixels_change_visibly_inside_the_mask_and_not_outside(kind: str, shape: tuple[int, int]) -> None:
    image, other = colourful(1, *shape), colourful(2, 20, 33)
    kept = image.copy()
    for seed in range(60):
        made = corrupt(image, np.random.default_rng(seed), others=[other], kinds=[kind])
        assert made.kind == kind
        assert made.image.dtype == np.uint8
        assert made.mask.dtype == np.bool_
        assert made.mask.shape == shape
        change = np.abs(made.image.astype(int) - image).max(axis=2)
        assert not change[~made.mask].any()
        assert (change[made.mask] >= VISIBLE).mean() >= SEEN
        assert made.mask.sum() >= FEWEST
        largest = max(AREA[1] * made.mask.size, FEWEST)
        assert made.mask.sum() <= 1.25 * largest + 4  # rounded to whole pixels
    assert (image == kept).all()


def test_areas_are_log_uniform() -> None:
    image = colourful(3, 200, 200)
    shares = [corrupt(image, np.random.default_rng(seed), kinds=["rectangle"]).mask.mean() for seed in range(400)]
    assert 0.0016 < min(shares) < 0.0024  # the faintest pixels of a soft edge are not part of the mask
    assert 0.026 < max(shares) < 0.032
    middle = np.sqrt(AREA[0] * AREA[1])  # 0.77 %: half of the draws lie below
    assert np.mean(np.array(shares) < middle) == pytest.approx(0.5, abs=0.08)
    large = corrupt(image, np.random.default_rng(0), kinds=["rectangle"], area=(0.25, 0.25)).mask.mean()
    assert large == pytest.approx(0.25, rel=0.05)


def test_an_opaque_rectangle_has_one_colour() -> None:
    image = colourful(4)
    single, blended = 0, 0
    for seed in range(200):
        made = corrupt(image, np.random.default_rng(seed), kinds=["rectangle"])
        colours = np.unique(made.image[made.mask], axis=0)
        single += len(colours) == 1
        blended += len(colours) > made.mask.sum() / 2
    # A quarter is hard-edged and opaque, half is translucent, and the rest has a soft edge around one colour.
    assert 0.15 < single / 200 < 0.45
    assert 0.35 < blended / 200 < 0.75


@pytest.mark.parametrize("kind", ["crop", "foreign"])
def test_a_piece_is_a_rotated_copy_of_its_source(kind: str) -> None:
    image, other = colourful(5), colourful(6, 50, 50)
    source = other if kind == "foreign" else image
    known = {tuple(pixel) for pixel in source.reshape(-1, 3).tolist()}  # 24-bit noise: hardly a colour occurs twice
    directions, hard = Counter[tuple[int, ...]](), 0
    for seed in range(60):
        made = corrupt(image, np.random.default_rng(seed), others=[other], kinds=[kind])
        pasted = [tuple(pixel) for pixel in made.image[made.mask].tolist()]
        assert sum(pixel in known for pixel in pasted) > 0.2 * len(pasted)  # within any soft edge
        if not all(pixel in known for pixel in pasted):
            continue
        hard += 1
        # Two neighbours in the result are neighbours in the source, in one of four directions.
        rows, columns = np.nonzero(made.mask & np.roll(made.mask, 1, axis=1))
        y, x = rows[0], columns[0]
        (first,), (second,) = (np.argwhere((source == made.image[y, x - d]).all(axis=2)) for d in (1, 0))
        step = tuple(second - first)
        assert step in {(0, 1), (1, 0), (0, -1), (-1, 0)}
        directions[step] += 1
    assert hard > 15
    assert len(directions) == 4


def test_a_grey_image_stays_grey_and_a_colour_image_does_not() -> None:
    image = ramp()
    for seed in range(30):
        made = corrupt(image, np.random.default_rng(seed), kinds=["rectangle"])
        assert (made.image == made.image[..., :1]).all()
    coloured = image.copy()
    coloured[..., 0] //= 2
    made = corrupt(coloured, np.random.default_rng(0), kinds=["rectangle"])
    assert (made.image[made.mask][:, 1] != made.image[made.mask][:, 2]).any()


def test_kinds_are_equally_likely_and_seeds_repeat() -> None:
    image = colourful(7)
    rng = np.random.default_rng(0)
    kinds = Counter(corrupt(image, rng, others=[colourful(8)]).kind for _ in range(600))
    assert all(160 <= kinds[kind] <= 240 for kind in KINDS)  # 200 expected; 3.5 standard deviations
    first, again = (corrupt(image, np.random.default_rng(11)) for _ in range(2))
    assert first.kind == again.kind
    assert (first.image == again.image).all()
    assert (first.mask == again.mask).all()


def test_without_other_images_there_are_no_foreign_pieces() -> None:
    image = colourful(9)
    kinds = {corrupt(image, np.random.default_rng(seed)).kind for seed in range(40)}
    assert kinds == {"rectangle", "crop"}
    with pytest.raises(BlemishError, match="there are none"):
        corrupt(image, np.random.default_rng(0), kinds=["foreign"])


def test_a_uniform_image_gets_a_kind_that_is_visible() -> None:
    uniform = np.full((40, 40, 3), 90, np.uint8)
    assert {corrupt(uniform, np.random.default_rng(seed)).kind for seed in range(20)} == {"rectangle"}
    with pytest.raises(BlemishError, match="kind crop is visible"):
        corrupt(uniform, np.random.default_rng(0), kinds=["crop"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 3), (3, 3)])
def test_tiny_images_can_be_corrupted(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    made = corrupt(image, np.random.default_rng(0), others=[image + np.uint8(200)])
    assert made.mask.sum() >= min(FEWEST, image.shape[0] * image.shape[1])


def test_invalid_arguments_are_refused() -> None:
    image, rng = colourful(10), np.random.default_rng(0)
    with pytest.raises(BlemishError, match="no kind of defect 'dent'; choose from rectangle, crop, foreign"):
        corrupt(image, rng, kinds=["crop", "dent"])
    with pytest.raises(BlemishError, match="no kind of defect ''"):
        corrupt(image, rng, kinds=[])
    for area in ((0.0, 0.1), (0.2, 0.1), (0.5, 1.5)):
        with pytest.raises(BlemishError, match="two shares"):
            corrupt(image, rng, area=area)
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        corrupt(image[..., 0], rng)


def test_corrupting_is_fast_enough_for_a_training_loop() -> None:
    images, rng = [ramp(), ramp()[::-1].copy()], np.random.default_rng(0)
    corrupt(images[0], rng, others=images)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        corrupt(images[0], rng, others=images)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.002  # 0.3 ms when written; the machine may be busy


@pytest.mark.real
def test_real_digits_can_be_corrupted_in_every_kind() -> None:
    from blemish.data.idx import read_split

    digits = read_split(shared_folder("data/mnist-idx"), "test")
    fives = [grey(image) for image in digits.images[digits.labels == 5]]
    for kind in KINDS:
        made = [corrupt(p, np.random.default_rng(i), others=fives, kinds=[kind]) for i, p in enumerate(fives)]
        assert all(m.kind == kind for m in made)
