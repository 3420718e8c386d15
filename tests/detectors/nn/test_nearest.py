from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blemish.detectors.nn.nearest import BLOCK, GROUP, Nearest, as_digits, candidates, integer_product
from blemish.detectors.nn.resampling import Resize
from blemish.inference.inspector import open_session
from blemish.training.export import export


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("entries", "share"), [(1, 1.0), (5, 1.0), (30, 0.98), (700, 0.98), (2500, 0.98)])
def test_the_nearest_entry_by_brute_force(entries: int, share: float) -> None:
    """Independent numbers without any structure are the worst case: all distances are much alike."""
    bank, patches = random(entries, 40), random(2, 150, 40, seed=1)
    nearest, distances = Nearest(bank)(patches)
    wanted = torch.cdist(patches.double(), bank.double())
    assert (nearest == wanted.argmin(2)).double().mean() >= share
    exact = wanted.gather(2, nearest[..., None])[..., 0]
    torch.testing.assert_close(distances.double(), exact, rtol=1e-5, atol=1e-6)  # the true distance, always
    torch.testing.assert_close(exact, wanted.min(2).values, rtol=0.02, atol=0)


def test_a_patch_far_outside_the_bank() -> None:
    """Its codes are clamped to 0..255; its distance is not."""
    bank = random(300, 16)
    patches = 30 * random(1, 40, 16, seed=2)
    distances = Nearest(bank)(patches)[1]
    wanted = torch.cdist(patches, bank).min(2).values
    assert ((distances >= wanted * (1 - 1e-5)) & (distances <= wanted * 1.1)).all()


def test_distances_do_not_cancel_far_from_zero() -> None:
    bank = 1000 + random(20, 5)
    _, distances = Nearest(bank)(bank[None, 3:5] + torch.tensor([0.01, 0, 0, 0, 0]))
    torch.testing.assert_close(distances, torch.full((1, 2), 0.01), rtol=0.02, atol=1e-4)


def test_a_bank_of_equal_entries_has_distance_zero() -> None:
    nearest, distances = Nearest(torch.ones(70, 3))(torch.ones(1, 4, 3))
    assert not distances.any()
    assert int(nearest.max()) < 70


def test_candidates_by_hand() -> None:
    """Groups of two columns: products 3 1 | 9 4 | 0 8 | 2 2; the best of the two best groups are columns 2 and 5."""
    bank = torch.tensor([[3, 1, 9, 4, 0, 8, 2, 2]], dtype=torch.int8)
    found = candidates(torch.ones(1, 1, 1, dtype=torch.uint8), bank, 2, 2)
    assert found.tolist() == [[[2, 5]]]


def test_the_worked_example() -> None:
    """The numbers in the module's docstring: bank (1, 1) and (-1, -1), patch (1, 0)."""
    nearest = Nearest(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    assert float(nearest.step) == pytest.approx(1 / 127)
    assert nearest.place_values.tolist() == [255, 255, 64, 1]
    assert nearest.codes.T.tolist() == [[63, 63, -63, 0, -1, 1], [-63, -63, 63, 0, 1, -1]]
    assert (nearest.codes.T[:, 2:].double() @ nearest.place_values.double()).tolist() == [-16128, 16128]
    patch = torch.tensor([[[1.0, 0.0]]])
    assert nearest.coded(patch).tolist() == [[[255, 128, 255, 255, 64, 1]]]
    assert integer_product(nearest.coded(patch), nearest.codes).tolist() == [[[8001, -8001]]]
    entry, distance = nearest(patch)
    assert (entry.tolist(), distance.tolist()) == ([[0]], [[1]])


def test_digits_by_hand() -> None:
    """The example in the docstring."""
    place_values, digits = as_digits(torch.tensor([20_000.0, 0, -14_000]))
    assert place_values.tolist() == [255, 255, 64, 1]
    assert digits.tolist() == [[63, 4, -1, -21], [-12, 0, 1, -4], [-63, -4, 1, 21]]
    assert (digits @ place_values).tolist() == [17_000, -3_000, -17_000]


def test_digits_and_place_values_fit_into_8_bits() -> None:
    offsets = torch.tensor([0.0, -123_456, 7, 1_000_000, 31_999])
    place_values, digits = as_digits(offsets)
    assert float(place_values.min()) >= 0
    assert float(place_values.max()) <= 255
    assert float(digits.abs().max()) <= 63
    difference = digits.double() @ place_values.double() - offsets.double()
    assert torch.equal(difference, difference[:1].expand(5))  # the middle


class Exportable(nn.Module):
    """`Nearest` with a graph's input, so that it can be exported."""

    outputs = ("nearest", "distances")
    gated = False

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.resize, self.nearest = Resize(10, 25), Nearest(bank)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        nearest, distances = self.nearest(self.resize(images).flatten(2).transpose(1, 2) / 20)  # 250 patches of 3
        return nearest, distances


@pytest.mark.parametrize("entries", [3, 900, 64 * GROUP + 1])
def test_in_onnx_the_same_entries_are_found(tmp_path: Path, entries: int) -> None:
    """The nodes in blocks against the operator; 250 patches leave a last block that is not full."""
    assert 250 % BLOCK
    graph = Exportable(random(entries, 3) * 4 + 6)
    export(graph, tmp_path / "model.onnx")
    session = open_session((tmp_path / "model.onnx").read_bytes(), 1)
    for number in (1, 3):
        images = np.random.default_rng(number).integers(0, 256, (number, 10, 25, 3), dtype=np.uint8)
        nearest, distances = session.run(None, {"images": images})
        ours = graph(torch.tensor(images))
        assert nearest.shape == (number, 250)
        np.testing.assert_allclose(distances, ours[1], rtol=1e-5, atol=1e-6)
        assert (nearest == ours[0].numpy()).mean() > 0.999  # among equals either may be named
