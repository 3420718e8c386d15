"""Corrupted images for an autoencoder to reconstruct: what it only has to copy, it learns to copy, defects included.

`blur` holds in inspection too: every image loses its detail, and the network has to know the normal one. The others
are done in training alone: `noise` on all pixels, `mask` (squares made grey, as in He et al. 2022), `patches`
(synthetic defects, as in Zavrtanik et al. 2021 and Li et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blemish.data.corrupt import corrupt

CORRUPTIONS = ("patches", "mask", "noise", "blur", "none")
NOISE = 0.15  # deviation, of the range of pixels
SIDE, MASKED = 16, 0.25  # a grid of SIDE x SIDE squares, of which this share is grey
SPARED = 0.2  # of the images get no patches
AREA = (0.002, 0.08)  # of a patch


def corrupted_images(
    images: Tensor, how: str, keys: Sequence[tuple[int, ...]], others: Sequence[npt.NDArray[np.uint8]]
) -> tuple[Tensor, Tensor]:
    """float32 `(N, 3, H, W)` in 0..1 -> the same corrupted, and `(N, 1, H, W)` that is 1 where nothing was replaced.

    Each image's randomness follows from its key alone. `others`: images (h, w, 3) that foreign patches are cut
    from. `blur` is part of the detector's graph and does nothing here.
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
                found = corrupt(pixels, rng, others=others, area=AREA)
                pixels = found.image
                spared[i][:, torch.from_numpy(found.mask).to(spared.device)] = 0
            corrupted[i] = torch.from_numpy(pixels).permute(2, 0, 1).to(corrupted) / 255
    return corrupted.clamp(0, 1), spared


def pixels_of(image: Tensor) -> npt.NDArray[np.uint8]:
    """`(3, H, W)` in 0..1 -> uint8 `(H, W, 3)`."""
    found: npt.NDArray[np.uint8] = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return found
