import math

import pytest
import torch
from torch import Tensor

from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.hybrid.head import PAIRS, Head, Known, _drawn, focal, map_loss, train, untrained
from blemish.detectors.nn.loop import fabric_on


def test_a_head_is_the_adaptor_of_standardised_patches_and_its_score_the_mean_of_its_highest_cells() -> None:
    """Against the published order: standardise, append the deviation, 1x1 convolution, LeakyReLU, 1x1 convolution."""
    torch.manual_seed(0)
    mean, std = torch.randn(4), torch.rand(4) + 0.5
    head = Head(mean, std, hidden=5, top=0.25)
    torch.nn.init.constant_(head.offset, 0.7)
    patches, deviations = torch.randn(2, 8, 4), torch.randn(2, 8)
    inputs = torch.cat([(patches - mean) / std, deviations[..., None] / 3], 2)
    cells = head.cell(torch.nn.functional.leaky_relu(head.adaptor(inputs), 0.2))[..., 0]
    found, scores = head(patches, deviations)
    torch.testing.assert_close(found, cells)
    torch.testing.assert_close(scores, cells.sort(1, descending=True).values[:, :2].mean(1) + 0.7)


def test_focal_loss_by_hand() -> None:
    """At logit 0 the right answer has probability 1/2, so cross-entropy log 2 counts (1 - 1/2)^2."""
    torch.testing.assert_close(focal(torch.zeros(2), torch.tensor([0.0, 1.0])), torch.full((2,), math.log(2) / 4))
    sure = focal(torch.tensor([6.0]), torch.ones(1))
    assert 0 < float(sure) < 1e-7


def test_map_loss_by_hand() -> None:
    """Cells: normal at -1 (beyond the truncation), normal at 0.5 (1 is missing), defective at 0 (0.5 is missing)."""
    cells = torch.tensor([[-1.0, 0.5, 0.0]])
    defective = torch.tensor([[False, False, True]])
    of = [float(focal(cells[0, i], defective[0, i].float())) for i in range(3)]
    expected = (0 + of[0] + 1 + of[1]) / 2 + 0.5 + of[2]
    assert float(map_loss(cells, defective, torch.tensor([True]))) == pytest.approx(expected)


def test_where_nothing_is_located_the_map_learns_nothing() -> None:
    cells = torch.randn(2, 3, requires_grad=True)
    loss = map_loss(cells, torch.zeros(2, 3, dtype=torch.bool), torch.tensor([True, False]))
    (gradient,) = torch.autograd.grad(loss, cells)
    assert gradient[0].abs().min() > 0
    assert not gradient[1].any()


def test_every_image_is_drawn_as_often_as_the_others() -> None:
    rows = torch.tensor([3, 8, 9])
    counts = torch.bincount(_drawn(rows, torch.Generator().manual_seed(0)), minlength=10)
    assert sorted(counts[rows].tolist()) == [PAIRS // 3, PAIRS // 3, PAIRS // 3 + 1]
    assert counts.sum() == PAIRS


def known(*, located: bool) -> tuple[Known, Tensor]:
    """40 images of 30 cells; the last 10 are defective: one of their cells differs, and no deviation shows it."""
    random = torch.Generator().manual_seed(1)
    patches = torch.randn(40, 30, 6, generator=random)
    where = torch.randint(30, (10,), generator=random)
    patches[torch.arange(30, 40), where, 2] += 6
    defective = torch.arange(40) >= 30
    cells = torch.zeros(40, 30, dtype=torch.bool)
    cells[torch.arange(30, 40), where] = True
    sure = ~defective | located
    none = torch.zeros(40, 30)
    return Known(patches, torch.arange(40), none, defective, cells, sure, torch.zeros(6), torch.ones(6), ()), where


@pytest.mark.parametrize("located", [False, True])
def test_the_word_defect_is_enough_to_find_where_it_is(located: bool) -> None:
    data, where = known(located=located)
    config = HybridConfig(hidden=8, epochs=6, learning_rate=1e-2)
    learned, new = torch.tensor([*range(24), *range(30, 38)]), torch.tensor([*range(24, 30), 38, 39])
    head = untrained(data, config, 0)
    records = train(fabric_on("cpu"), head, data, learned, config, 0)
    assert records[-1]["loss"] < records[0]["loss"] / 2
    assert records[-1]["right"] > 0.9
    with torch.inference_mode():
        cells, scores = head(*data.inputs(new))
    assert scores[6:].min() > scores[:6].max()
    assert cells[6:].argmax(1).tolist() == where[-2:].tolist()
