"""Images on which distances find little and labels say much: noise of varying strength, and a faint dark spot."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from blemish.types import Sample
from tests.support import write_image

SIDE, SPOT = 64, 16


def noisy(number: int, spot: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 3) and its mask. `spot`: top and left of the defect. Bright spots are normal."""
    random = np.random.default_rng(number)
    pixels = 120 + random.normal(0, random.uniform(4, 20), (SIDE, SIDE))
    for _ in range(int(random.integers(3))):
        top, left = random.integers(SIDE - SPOT, size=2)
        pixels[top : top + SPOT, left : left + SPOT] += random.uniform(20, 100)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if spot:
        where = (slice(spot[0], spot[0] + SPOT), slice(spot[1], spot[1] + SPOT))
        pixels[where] -= 30
        mask[where] = 255
    return np.repeat(np.clip(pixels, 0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


def written(folder: Path, label: Literal["good", "anomaly"], start: int, count: int) -> list[Sample]:
    samples = []
    for number in range(start, start + count):
        place = (7 * number % (SIDE - SPOT), 11 * number % (SIDE - SPOT)) if label == "anomaly" else None
        image, mask = noisy(number, place)
        name = f"{label}/{number}.png"
        file = write_image(folder / name, image)
        drawn = write_image(folder / "masks" / name, mask) if place else None
        samples.append(Sample(file, name, label, "spot" if place else "", mask=drawn))
    return samples
