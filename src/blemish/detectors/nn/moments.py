"""Mean and standard deviation over batches of tensors that do not fit into memory together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def mean_and_spread(batches: Iterable[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Each batch holds the same tensors `(n, ...)`, n of its own -> for each of these the mean and the standard
    deviation `(...)` over the first axis of all batches, float64."""
    count = 0
    sums: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        count += len(batch[0])
        sums = sums or [(torch.zeros(()), torch.zeros(()))] * len(batch)
        sums = [
            (total + values.double().sum(0), squares + values.double().square().sum(0))
            for (total, squares), values in zip(sums, batch, strict=True)
        ]
    means = [(total / count, squares / count) for total, squares in sums]
    return [(mean, (mean_square - mean.square()).clamp(min=0).sqrt()) for mean, mean_square in means]
