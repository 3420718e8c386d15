from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from blemish.detectors.nn.moments import mean_and_spread


def test_by_hand() -> None:
    """1, 1 and 7, 7 in batches of three and one: mean 4, mean square 25, deviation 3."""
    ((mean, spread),) = mean_and_spread([(torch.tensor([[1.0], [1.0], [7.0]]),), (torch.tensor([[7.0]]),)])
    assert mean.tolist() == [4]
    assert spread.tolist() == [3]
    assert mean.dtype == spread.dtype == torch.float64


def test_several_tensors_equal_numpy() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(7, 2, 3, generator=random) + 100, torch.randn(7, 4, generator=random)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
            yield first[rows], second[rows]

    for (mean, spread), values in zip(mean_and_spread(batches()), (first, second), strict=True):
        np.testing.assert_allclose(mean, values.double().numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(spread, values.double().numpy().std(0), rtol=1e-9)


def test_equal_values_have_no_spread() -> None:
    """Rounding must not make the variance negative."""
    ((_, spread),) = mean_and_spread([(torch.full((9, 5), 0.1),)])
    assert float(spread.max()) < 1e-7
