"""What tests of several detectors share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def randomise_norms(net: nn.Module) -> None:
    """Draws the statistics and parameters of all norms, so that none is the identity."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.2)


class StoppedError(Exception):
    pass


def killed_in(epoch: int) -> Any:
    """A `Progress` that stops the training when this epoch begins, counted from 1."""

    def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        if what.startswith(f"epoch {epoch}/"):
            raise StoppedError
        return iter(items)

    return progress
