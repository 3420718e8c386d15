"""Locally aware patch features: what PatchCore compares (Roth et al. 2022, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.nn.backbones import load_backbone
from blemish.detectors.nn.memory_bank import as_rows, aware
from blemish.detectors.nn.resampling import Resize
from blemish.detectors.patchcore.config import PatchCoreConfig


class Features(nn.Module):
    """Resized float32 images `(N, 3, H, W)` -> locally aware patch features `(N, cells, channels)`, row by row."""

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__()
        height, width = config.image_size
        self.resize = Resize(height, width)
        self.backbone = load_backbone(
            config.backbone,
            layers=config.layers,
            image_size=config.image_size,
            weights=config.weights,
            random=config.random_weights,
            seed=config.seed,
        )
        self.patch_size = config.patch_size
        self.channels = sum(tap.channels for tap in self.backbone.taps)
        with torch.inference_mode():
            first = self.backbone(torch.zeros(1, 3, height, width))[0]
        self.grid: tuple[int, int] = (first.shape[2], first.shape[3])

    def forward(self, images: Tensor) -> Tensor:
        maps = []
        for features in self.backbone(images):
            patches = aware(features, self.patch_size)
            if patches.shape[2:] != self.grid:  # deeper taps are enlarged to the finest grid (section 3.1)
                patches = F.interpolate(patches, self.grid, mode="bilinear", align_corners=False)
            maps.append(patches)
        return as_rows(torch.cat(maps, 1))
