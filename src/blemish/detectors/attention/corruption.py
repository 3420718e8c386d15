"""Corrupted images for an autoencoder to reconstruct. From uncorrupted ones it would learn to copy, defects included.

`noise` on all pixels, `mask` (grey squares, as in He et al. 2022) and `patches` (synthetic defects, as in Zavrtanik et
al. 2021 and Li et al. 2021) are applied in training alone. `blur` is applied in inspection too: it removes detail,
which the network has to restore as in normal images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blemish.data.corrupt import corrupt

CORRUPTIONS = ("patches", "mask", "noise", "blur", "none")
NOISE = 0.15  # standard deviation, as a share of the range of pixels
SIDE, MASKED = 16, 0.25  # a grid of SIDE x SIDE squares, and the share of grey ones
SPARED = 0.2  # share of the images that get no patches
AREA = (0.002, 0.08)  # of a patch, as a share of the image


def corrupted_images(
    images: Tensor, how: str, keys: Sequence[tuple[int, ...]], others: Sequence[npt.NDArray[np.uint8]]
) -> tuple[Tensor, Tensor]:
    """float32 `(N, 3, H, W)` in 0..1 -> the same corrupted, and `(N, 1, H, W)`: 1 where nothing was replaced, else 0.

    Each image's randomness follows from its key alone. `others`: images (h, w, 3) that foreign patches are cut from.
    `blur` is a part of the detector's graph and changes nothing here.
    """
    corrupted, spared = images.clone(), torch.ones_like(images[:, :1])
    if how in ("none", "blur"):
        return corrupted, spared
    height, width = images.shape[2:]
    for i, key in enumerate(keys):
        rng = np.random.default_rng(key)
        if how == "noise":
            corrupted[i] += torch.from_numpy(rng.normal(0, NOISE, images.shape[1:]).astype(np.float32)).to(corrupted)
        elif how == "mask":
            grey = torch.from_numpy(rng.random((SIDE, SIDE)) < MASKED)
            rows, columns = (torch.arange(length) * SIDE // length for length in (height, width))
            at = grey[rows][:, columns].to(corrupted.device)
            corrupted[i][:, at] = 0.5
            spared[i][:, at] = 0
        elif how == "patches" and rng.random() >= SPARED:
            pixels = pixels_of(images[i])
            for _ in range(int(rng.integers(1, 4))):
                defect = corrupt(pixels, rng, others=others, area=AREA)
                pixels = defect.image
                spared[i][:, torch.from_numpy(defect.mask).to(spared.device)] = 0
            corrupted[i] = torch.from_numpy(pixels).permute(2, 0, 1).to(corrupted) / 255
    return corrupted.clamp(0, 1), spared


def pixels_of(image: Tensor) -> npt.NDArray[np.uint8]:
    """`(3, H, W)` in 0..1 -> uint8 `(H, W, 3)`."""
    pixels: npt.NDArray[np.uint8] = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels
