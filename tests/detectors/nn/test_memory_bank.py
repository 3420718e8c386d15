import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blemish.detectors.nn.memory_bank import NormalPatches, aware, greedy_coreset, places, project, replacements, some


def slow_greedy(rows: np.ndarray, size: int, first: int) -> list[int]:
    """Eq. 5 to the letter: the next row is the one whose nearest selected row is farthest."""
    selected = [first]
    while len(selected) < size:
        rest = [i for i in range(len(rows)) if i not in selected]
        selected.append(max(rest, key=lambda i: min(float(np.linalg.norm(rows[i] - rows[j])) for j in selected)))
    return selected


@pytest.mark.parametrize("seed", range(5))
def test_greedy_selection_equals_the_slow_oracle(seed: int) -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))
    found = greedy_coreset(project(rows, 99), 15, seed=seed).tolist()
    assert found == slow_greedy(rows.double().numpy(), 15, found[0])


def test_greedy_selection_works_in_the_projected_space() -> None:
    rows = torch.randn(60, 50, generator=torch.Generator().manual_seed(1))
    found = greedy_coreset(project(rows, 8, 4), 20, seed=4).tolist()
    matrix = torch.randn(50, 8, generator=torch.Generator().manual_seed(4)) / 8**0.5
    assert found == slow_greedy((rows @ matrix).double().numpy(), 20, found[0])


def test_greedy_selection_takes_each_row_once_even_among_identical_rows() -> None:
    assert sorted(greedy_coreset(torch.ones(7, 3), 7).tolist()) == list(range(7))


@pytest.mark.parametrize("seed", range(5))
def test_replacements_equal_the_slow_oracle(seed: int) -> None:
    """Eq. 5 to the letter among the other items' rows, after those of the coreset that are left."""
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
    items = torch.arange(60) % 7
    kept = greedy_coreset(rows, 20, seed=seed)
    found = replacements(rows, kept, items)
    assert set(found) == set(items[kept].tolist())
    points = rows.double().numpy()
    for item, new in found.items():
        selected = [i for i in kept.tolist() if items[i] != item]
        while len(selected) < 20:
            rest = [i for i in range(60) if i not in selected and items[i] != item]
            selected.append(
                max(rest, key=lambda i: min(float(np.linalg.norm(points[i] - points[j])) for j in selected))
            )
        assert new.tolist() == selected[-len(new) :]


def test_replacements_end_where_there_are_no_more_rows() -> None:
    rows = torch.arange(6.0)[:, None]
    found = replacements(rows, torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert {item: new.tolist() for item, new in found.items()} == {0: [], 1: [], 2: []}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_patches_by_hand() -> None:
    features = torch.arange(12.0).view(1, 1, 3, 4)
    found = aware(features).view(3, 4)
    assert float(found[1, 1]) == 5.0  # the mean of 0 1 2, 4 5 6, 8 9 10
    assert float(found[0, 0]) == pytest.approx((0 + 1 + 4 + 5) / 9)  # five zeros beyond the edge


def test_places_by_hand() -> None:
    cells = torch.tensor([[5, 0], [3, 7]], dtype=torch.int32)  # two of each image, in a grid 4 wide
    assert places(torch.tensor([3, 0]), cells, 4).tolist() == [[1, 1, 3], [0, 1, 1]]
    assert places(torch.tensor([3]), cells, 4).dtype == np.int32


@pytest.mark.parametrize("images", [6, 300])
def test_a_small_bank_knows_where_its_patches_come_from(images: int) -> None:
    maps = random(images, 5, 8, 12) * torch.tensor([1.0, 10, 0.1, 1, 0]).view(1, 5, 1, 1)
    numbers = torch.arange(images) * 2
    normal = NormalPatches.of(torch.split(maps, 4), numbers, seed=1)
    bank = normal.nearest.bank
    assert len(bank) == (6 * 96 if images == 6 else 1024)
    found, distances = normal(maps[:2])
    assert (found.dtype, found.shape, distances.shape) == (torch.int32, (2, 8, 12), (2, 8, 12))
    averaged = F.pad(maps, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).mean((4, 5))  # zeros beyond the edge
    for entry, (image, row, column) in zip(bank, normal.table, strict=True):
        at = (averaged[image // 2, :, row, column] - normal.mean) / normal.scale
        torch.testing.assert_close(at, entry)
    spread = averaged.movedim(1, 0).flatten(1).std(1)
    ratio = normal.scale / spread
    torch.testing.assert_close(ratio[1:2], torch.ones(1), rtol=0.1, atol=0)  # each channel in its own units,
    assert float(normal.scale[4]) == pytest.approx(float(normal.scale[:5].sum() / 50), rel=0.5)  # no unit is zero
    if images == 6:  # the bank holds all patches
        assert float(distances.max()) < 1e-3
        assert [tuple(normal.table[i]) for i in found[1, 0].tolist()] == [(2, 0, column) for column in range(12)]


def test_some_images_evenly_spread() -> None:
    assert some(3).tolist() == [0, 1, 2]
    assert len(some(512)) == 512
    assert some(1000).tolist() == list(range(0, 1000, 2))
    assert len(some(100_000)) <= 512
