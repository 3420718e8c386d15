"""What corruption changes, and where it says that it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.detectors.attention.corruption import CORRUPTIONS, NOISE, corrupted_images, pixels_of
from tests.conftest import tile

HALF = 0.5 / 255 + 1e-6  # patches are made on pixels of 256 levels


def tiles(n: int) -> Tensor:
    """`(n, 3, 60, 80)` in 0..1, with values between the levels."""
    images = torch.from_numpy(np.stack([tile(i)[0] for i in range(n)])).permute(0, 3, 1, 2) / 255
    return (images * 0.97).contiguous()


KEYS = [(0, 3, i) for i in range(12)]
OTHERS = [tile(50)[0], tile(51, (20, 30))[0]]


@pytest.mark.parametrize("how", CORRUPTIONS)
def test_corruption_depends_on_the_key_and_not_on_the_batch(how: str) -> None:
    images = tiles(12)
    before = images.clone()
    corrupted, spared = corrupted_images(images, how, KEYS, OTHERS)
    assert torch.equal(images, before)
    assert (corrupted.shape, spared.shape) == ((12, 3, 60, 80), (12, 1, 60, 80))
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    back = torch.arange(11, -1, -1)
    again, again_spared = corrupted_images(images[back], how, [KEYS[i] for i in back.tolist()], OTHERS)
    assert torch.equal(again[back], corrupted)
    assert torch.equal(again_spared[back], spared)
    alone = corrupted_images(images[4:5], how, KEYS[4:5], OTHERS)[0]
    assert torch.equal(alone[0], corrupted[4])
    other = corrupted_images(images, how, [(0, 4, i) for i in range(12)], OTHERS)[0]
    assert torch.equal(other, corrupted) == (how in ("none", "blur"))


@pytest.mark.parametrize("how", ["none", "blur"])
def test_blur_is_left_to_the_graph(how: str) -> None:
    images = tiles(2)
    corrupted, spared = corrupted_images(images, how, KEYS[:2], ())
    assert torch.equal(corrupted, images)
    assert torch.equal(spared, torch.ones(2, 1, 60, 80))
    assert corrupted.data_ptr() != images.data_ptr()


def test_noise_is_on_all_pixels_and_none_counts_as_replaced() -> None:
    images = torch.full((2, 3, 60, 80), 0.5)
    corrupted, spared = corrupted_images(images, "noise", KEYS[:2], ())
    assert (corrupted != images).float().mean() > 0.99
    assert float((corrupted - images).mean()) == pytest.approx(0, abs=0.01)
    assert float((corrupted - images).std()) == pytest.approx(NOISE, rel=0.03)
    assert torch.equal(spared, torch.ones(2, 1, 60, 80))


def test_masked_squares_are_grey_and_nothing_else_changes() -> None:
    images = tiles(12)
    corrupted, spared = corrupted_images(images, "mask", KEYS, ())
    masked = (spared == 0).expand_as(images)
    assert set(spared.flatten().tolist()) == {0, 1}
    assert (corrupted[masked] == 0.5).all()
    assert torch.equal(corrupted[~masked], images[~masked])
    assert float(masked.float().mean()) == pytest.approx(0.25, abs=0.04)  # 12 x 256 squares
    # 80 pixels across are 16 squares of 5.
    assert torch.equal(spared, spared[..., ::5].repeat_interleave(5, -1))


def test_patches_are_where_spared_is_zero() -> None:
    images = tiles(12)
    corrupted, spared = corrupted_images(images, "patches", KEYS, OTHERS)
    assert set(spared.flatten().tolist()) == {0, 1}
    good = (spared == 1).expand_as(images)
    assert float((corrupted - images).abs()[good].max()) <= HALF
    changed = ((corrupted - images).abs() > HALF).any(1, keepdim=True)
    untouched = spared.flatten(1).all(1)
    assert 0 < untouched.sum() < 7  # one in five, by chance
    assert torch.equal(corrupted[untouched], images[untouched])
    for i in (~untouched).nonzero()[:, 0].tolist():
        share = float((spared[i] == 0).float().mean())
        assert 0.001 < share < 0.25  # at most three of 8 % each
        assert float(changed[i][spared[i] == 0].float().mean()) > 0.5


def test_pixels() -> None:
    image = torch.tensor([0.0, 0.499 / 255, 0.501 / 255, 1.0]).view(1, 1, 4).expand(3, 2, 4)
    pixels = pixels_of(image)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[0] * 3, [0] * 3, [1] * 3, [255] * 3]] * 2
