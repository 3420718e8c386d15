"""The detector: fit computes the mean of the good images, the graph the distance to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from blemish.detectors.interface import Origin
from blemish.detectors.nn.resampling import Resize, batches
from blemish.types import Progress, Sample, silent
from blemish_toy.config import MeanImageConfig


class MeanImageGraph(nn.Module):
    """uint8 `(N, H, W, 3)` of any size -> scores `(N,)`, maps `(N, *image_size)`."""

    outputs = ("scores", "maps")
    gated = False
    mean: Tensor

    def __init__(self, resize: Resize, mean: Tensor, gain: float) -> None:
        super().__init__()
        self.resize, self.gain = resize, gain
        self.register_buffer("mean", mean)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = (self.resize(images) - self.mean).abs().mean(1) * self.gain
        return maps.amax((1, 2)), maps


class MeanImage:
    """Made by `MeanImageConfig.build`."""

    origin = Origin("none", "no weights", "none needed")
    classes: tuple[str, ...] = ()

    def __init__(self, config: MeanImageConfig) -> None:
        self.config = config
        self.metrics: dict[str, Any] = {}

    def fit(
        self,
        samples: Sequence[Sample],
        progress: Progress = silent,
        *,
        held_out: Sequence[Sample] = (),  # of classifiers
    ) -> Self:
        resize = Resize(*self.config.image_size)
        read = progress(batches(samples, resize, 8), "mean image", -(-len(samples) // 8))
        mean = torch.cat(list(read)).mean(0)
        self._graph = MeanImageGraph(resize, mean, self.config.gain).eval()
        return self

    def graph(self) -> MeanImageGraph:
        return self._graph

    def sources(self) -> None:
        """It has no memory bank."""
