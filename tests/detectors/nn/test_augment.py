"""Augmentations by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from blemish.detectors.nn.augment import check, jitter, turn, variants
from blemish.types import BlemishError

SQUARE, OBLONG = (4, 4), (4, 6)


def all_variants(augmentations: tuple[str, ...], size: tuple[int, int]) -> list[list[float]]:
    """An image without two equal pixels, in all variants."""
    image = torch.arange(size[0] * size[1], dtype=torch.float32).reshape(1, *size)
    turned = [turn(image, variant) for variant in variants(augmentations, size)]
    assert all(other.shape == image.shape for other in turned)
    assert torch.equal(turned[0], image)
    return [other.flatten().tolist() for other in turned]


@pytest.mark.parametrize(
    ("augmentations", "size", "count"),
    [
        ((), SQUARE, 1),
        (("shift", "brighten"), SQUARE, 1),
        (("rotate",), SQUARE, 4),
        (("rotate",), OBLONG, 2),
        (("flip",), SQUARE, 4),
        (("flip",), OBLONG, 4),
        (("rotate", "flip"), SQUARE, 8),
        (("flip", "rotate"), OBLONG, 4),
    ],
)
def test_variants_are_distinct_and_closed(augmentations: tuple[str, ...], size: tuple[int, int], count: int) -> None:
    turned = all_variants(augmentations, size)
    assert len(turned) == count
    assert len({tuple(pixels) for pixels in turned}) == count
    for pixels in turned:  # a variant of a variant is one of them
        for variant in variants(augmentations, size):
            assert turn(torch.tensor(pixels).reshape(1, *size), variant).flatten().tolist() in turned


def test_both_mirrors_are_flips() -> None:
    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    turned = [turn(image, variant)[0].tolist() for variant in variants(("flip",), SQUARE)]
    assert turned == [[[1, 2], [3, 4]], [[2, 1], [4, 3]], [[3, 4], [1, 2]], [[4, 3], [2, 1]]]


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [
        ((0, False), [[1, 2], [3, 4]]),
        ((1, False), [[2, 4], [1, 3]]),
        ((2, False), [[4, 3], [2, 1]]),
        ((3, False), [[3, 1], [4, 2]]),
        ((0, True), [[2, 1], [4, 3]]),
        ((1, True), [[4, 2], [3, 1]]),
        ((3, True), [[1, 3], [2, 4]]),
    ],
)
def test_turns_to_the_left_and_then_mirrors(variant: tuple[int, bool], wanted: list[list[int]]) -> None:
    assert turn(torch.tensor([[1, 2], [3, 4]])[None], variant)[0].tolist() == wanted


@pytest.mark.parametrize(
    ("down", "right", "rows", "columns"),
    [
        (1.0, 0.0, [0, 0, *range(38)], range(60)),  # 5 % of 40 rows are 2
        (-1.0, 0.0, [*range(2, 40), 39, 39], range(60)),
        (0.0, 1.0, range(40), [0, 0, 0, *range(57)]),  # 3 of 60 columns
        (0.0, -1.0, range(40), [*range(3, 60), 59, 59, 59]),
        (0.5, -0.34, [0, *range(39)], [*range(1, 60), 59]),  # 1.0 and 1.02 pixels
        (0.2, 0.1, range(40), range(60)),  # 0.4 and 0.3
    ],
)
def test_shifts_repeat_the_border(down: float, right: float, rows: Iterable[int], columns: Iterable[int]) -> None:
    image = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0)) * 255
    found = jitter(image, ("shift",), torch.tensor([[down, right, 1.0, 1.0]]))
    assert torch.equal(found, image[:, :, list(rows)][:, :, :, list(columns)])


def test_each_image_is_brightened_by_its_own_factor_and_stays_in_range() -> None:
    images = torch.tensor([0.0, 100.0, 200.0, 240.0]).expand(3, 3, 1, 4)
    found = jitter(images, ("brighten",), torch.tensor([[9.0, 9.0, light, 9.0] for light in (1.0, -1.0, 0.2)]))
    wanted = torch.tensor([[0, 115, 230, 255], [0, 85, 170, 204], [0, 103, 206, 247.2]])
    for channel in range(3):
        torch.testing.assert_close(found[:, channel, 0], wanted)


def test_shift_and_brighten_together_and_none() -> None:
    images = torch.arange(40.0).reshape(1, 1, 1, 40).expand(1, 3, 20, 40)
    random = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    both = jitter(images, ("shift", "brighten"), random)
    assert both[0, 0, 0, :4].tolist() == pytest.approx([0, 0, 0, 1.15])
    assert torch.equal(jitter(images, ("rotate", "flip"), random), images)


def test_a_tilt_is_a_turn_by_half_a_degree_at_most() -> None:
    """Against a turn of every pixel by hand, in an oblong image; what comes from outside is black."""
    image = torch.rand(1, 3, 300, 200, generator=torch.Generator().manual_seed(0)) + 1
    for share in (1.0, -0.6):
        found = jitter(image, ("tilt",), torch.tensor([[0.0, 0.0, 0.0, share]]))[0]
        angle = math.radians(share * math.pi / 6)
        y, x = np.mgrid[:300, :200] - np.array([149.5, 99.5])[:, None, None]
        rows = np.sin(angle) * x + np.cos(angle) * y + 149.5
        columns = np.cos(angle) * x - np.sin(angle) * y + 99.5
        inside = (rows > -0.5) & (rows < 299.5) & (columns > -0.5) & (columns < 199.5)
        at = rows.round().clip(0, 299).astype(int), columns.round().clip(0, 199).astype(int)
        wanted = np.where(inside, image[0].numpy()[:, at[0], at[1]], 0)
        agree = (found.numpy() == wanted).all(0)
        assert agree.mean() > 0.999  # where a coordinate is halfway, either neighbour may be taken
        assert not (found == image[0]).all()


def test_an_unknown_augmentation_is_refused() -> None:
    check(("rotate", "flip", "shift", "brighten", "tilt"))
    with pytest.raises(BlemishError, match="--augmentations takes rotate, flip, shift, brighten, tilt, not 'stretch'"):
        check(("flip", "stretch"))
