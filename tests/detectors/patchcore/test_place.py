import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.detectors.patchcore.place import LIES_STILL, eased, foreseen, left_out_deviations, normal, varying


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_normal_by_hand() -> None:
    """Two places: distances 1 and 3, mean 2, spread 1; and 10 and 10, whose spread of 0 is steadied by the mean
    spread of a half."""
    maps = torch.tensor([[[1.0, 10.0]], [[3.0, 10.0]]])
    by_place = normal(maps, by_place=True)
    assert by_place.centre.tolist() == [[2, 10]]
    torch.testing.assert_close(by_place.spread, torch.tensor([[1.5, 0.5]]))
    torch.testing.assert_close(by_place.deviations(torch.tensor([[5.0, 11.0]])), torch.tensor([[2.0, 2.0]]))
    alike = normal(maps, by_place=False)
    assert alike.centre.tolist() == [[6, 6]]
    torch.testing.assert_close(alike.spread, torch.full((1, 2), 2 * 16.5**0.5))


def test_identical_images_divide_by_no_zero() -> None:
    found = normal(torch.ones(3, 2, 2), by_place=True)
    assert torch.isfinite(found.deviations(torch.full((2, 2), 2.0))).all()


@pytest.mark.parametrize("seed", range(3))
def test_places_foresee_what_they_explain(seed: int) -> None:
    """A pattern of variance 3 at the same places and noise of variance 1: 3 of 4 parts, less what a mean of 39 images
    is off. Noise alone: nothing."""
    items = torch.arange(40)
    noise = random(40, 30, 30, seed=seed)
    pattern = random(30, 30, seed=seed + 10)
    pattern = 3**0.5 * (pattern - pattern.mean()) / pattern.std()
    assert foreseen(pattern + noise, items) == pytest.approx(0.75, abs=0.02)
    assert abs(foreseen(noise, items)) < LIES_STILL


def test_images_of_one_item_foresee_nothing_of_each_other() -> None:
    maps = random(1, 20, 20).repeat(4, 1, 1)
    assert foreseen(maps, torch.zeros(4, dtype=torch.long)) == 0
    assert foreseen(maps, torch.arange(4)) == pytest.approx(1)
    pairs = torch.cat([maps[:2], random(1, 20, 20, seed=1).repeat(2, 1, 1)])
    assert foreseen(pairs, torch.tensor([0, 0, 1, 1])) < 0.05


@pytest.mark.parametrize("by_place", [True, False])
def test_left_out_is_what_the_others_say(by_place: bool) -> None:
    maps, items = random(6, 3, 4).abs(), torch.tensor([0, 1, 0, 2, 3, 3])
    found, spreads = left_out_deviations(maps, items, by_place=by_place)
    others = maps[[1, 3, 4, 5]].numpy().astype(np.float64)
    centre, spread = (others.mean(0), others.std(0)) if by_place else (others.mean(), np.full((3, 4), others.std()))
    wanted = (maps[2].numpy() - centre) / (spread + spread.mean())
    np.testing.assert_allclose(found[2], wanted, rtol=1e-5)
    np.testing.assert_allclose(spreads[2], spread + spread.mean(), rtol=1e-5)


def test_good_images_seem_no_more_normal_than_new_ones() -> None:
    """Left out, the highest deviations of 10 training images are distributed as those of new images are; with their own
    share in mean and spread they would be lower."""
    maps, new = random(10, 10, 10).abs(), random(400, 10, 10, seed=5).abs()
    known = normal(maps, by_place=True)
    highest_new = known.deviations(new).flatten(1).amax(1).median()
    left_out = left_out_deviations(maps, torch.arange(10), by_place=True)[0].flatten(1).amax(1).median()
    own = known.deviations(maps).flatten(1).amax(1).median()
    assert abs(left_out - highest_new) < (highest_new - own) / 2


def test_places_ease_where_few_are_far_and_not_where_one_image_is_odd() -> None:
    """One place is always 10 away and varies; elsewhere distances are small. Alike, that place sets the threshold
    everywhere. Where all places are alike, places have less to go by."""
    maps = 1 + 0.1 * random(40, 8, 8)
    items = torch.arange(40)
    assert 0.8 < eased(maps, items) < 1.5
    maps[:, 3, 4] = 10 + random(40, seed=1)
    assert eased(maps, items) < 0.3


def test_eased_by_hand() -> None:
    """Three images of two places, each left out: (0, 4), (2, 6), (4, 8)."""
    maps = torch.tensor([[[0.0, 4.0]], [[2.0, 6.0]], [[4.0, 8.0]]])

    def needed(by_place: bool) -> float:
        deviations, units = [], []
        for i in range(3):
            others = np.delete(maps.numpy().astype(float), i, 0)
            centre, spread = (others.mean(0), others.std(0)) if by_place else (others.mean(), others.std() * np.ones(2))
            units.append(spread + spread.mean())
            deviations.append((maps[i].numpy() - centre) / units[-1])
        threshold = np.quantile(np.array(deviations).reshape(3, -1).max(1), 0.95)
        return float(((threshold - np.array(deviations)) * np.array(units).reshape(3, 1, 2)).mean())

    assert eased(maps, torch.arange(3)) == pytest.approx(needed(True) / needed(False), rel=1e-5)


def test_constant_cells_say_nothing_of_places() -> None:
    """Half of the cells outside a region of interest: alone they would make places foresee almost everything."""
    maps = random(30, 10, 10, seed=3)
    maps[:, :5] = 7
    assert foreseen(maps.flatten(1), torch.arange(30)) > 0.8
    assert varying(maps).shape == (30, 50)
    assert abs(foreseen(varying(maps), torch.arange(30))) < LIES_STILL
    assert eased(varying(torch.ones(3, 2, 2)), torch.arange(3)) == 1
