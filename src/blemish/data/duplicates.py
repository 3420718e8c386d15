"""Images that show the same thing twice, told apart from images of different parts that merely look alike.

Images of a production line share almost everything a thumbnail shows, so what *all* images share (their mean) is
subtracted, and so is what light alone changes: the low frequencies and the contrast. What is left is the image's own
texture. Two images are near duplicates where these textures correlate at SAME or more, or at ALIKE or more while the
grey thumbnails differ by no more than re-encoding causes. The thresholds were chosen on real pairs; see docs/data.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt

SIDE = 32  # pixels of a thumbnail's side
SAME = 0.98  # correlation of textures
ALIKE, CLOSE = 0.95, 2.0  # correlation, and root mean square difference in grey levels
FEWEST = 20  # images: the mean of fewer does not show what they share
_HASH = 64  # numbers per image in the fast first comparison
_SCREEN = 0.9  # their correlation; four standard deviations (1 - ALIKE**2) / sqrt(_HASH) below ALIKE


def thumbnail(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`uint8 (H, W, 3)` -> grey `uint8 (SIDE, SIDE)`, each the mean of its area (whole pixels of it)."""
    grey = Image.fromarray(pixels).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def near_pairs(thumbnails: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """`uint8 (N, SIDE, SIDE)` -> index pairs i < j of near duplicates; none for fewer than FEWEST images.

    Exact but for a first comparison of 64 random projections (seeded), which costs N² * 64 multiplications.
    """
    count = len(thumbnails)
    if count < FEWEST:
        return []
    textures = _textures(thumbnails)
    grey = thumbnails.reshape(count, -1).astype(np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    projection = np.random.default_rng(0).standard_normal((SIDE * SIDE, _HASH)).astype(np.float32)
    hashes = _unit(textures @ projection)
    pairs = []
    for start in range(0, count, 256):
        close = hashes[start : start + 256] @ hashes[start:].T >= _SCREEN
        for first, second in np.argwhere(np.triu(close, 1)) + start:
            correlation = float(textures[first] @ textures[second])
            difference = float(np.sqrt(np.mean((grey[first] - grey[second]) ** 2)))
            if correlation >= SAME or (correlation >= ALIKE and difference <= CLOSE):
                pairs.append((int(first), int(second)))
    return pairs


def _textures(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Each image's own high frequencies: unit vectors `(N, SIDE * SIDE)`; zero where it has none."""
    grey = thumbnails.astype(np.float32)
    padded = np.pad(grey, ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    blurred = windows.mean(axis=(3, 4), dtype=np.float32)
    textures = _unit((grey - blurred).reshape(len(grey), -1))
    own = _unit(textures - textures.mean(axis=0))
    own[~textures.any(axis=1)] = 0  # else a flat image's texture would be the negative mean of the others
    return own


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 1e-6, vectors / np.maximum(length, np.float32(1e-6)), np.float32(0))
