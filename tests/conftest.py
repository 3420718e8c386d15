"""A tiny product (striped tiles, a bright spot as defect) and detectors trained on it, made once per session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.support import write_image


def tile(number: int, spot: tuple[int, int] | None = None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A striped tile `(60, 80, 3)` with noise, and its mask; `spot` is the (top, left) of a 12 x 12 defect.

    The noise is strong enough that no two of them count as images of one item.
    """
    random = np.random.default_rng(number)
    stripes = 110 + 40 * np.sin(np.arange(80) / 3 + random.uniform(0, 6))
    pixels = stripes + random.normal(0, 8, (60, 80))
    mask = np.zeros((60, 80), np.uint8)
    if spot:
        where = (slice(spot[0], spot[0] + 12), slice(spot[1], spot[1] + 12))
        pixels[where] = 245
        mask[where] = 255
    return np.repeat(np.clip(pixels, 0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec AD layout: 40 good training images, 6 good and 6 defective test images."""
    root = tmp_path_factory.mktemp("data") / "tiles"
    for i in range(40):
        write_image(root / f"train/good/{i:03}.png", tile(i)[0])
    for i in range(6):
        write_image(root / f"test/good/{i:03}.png", tile(100 + i)[0])
        image, mask = tile(200 + i, (4 + 7 * i, 60 - 10 * i))
        write_image(root / f"test/spot/{i:03}.png", image)
        write_image(root / f"ground_truth/spot/{i:03}_mask.png", mask)
    return root


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product without a split: 40 good tiles and 10 of each of two defect types, a bright and a dark spot. One more
    tile with a bright spot is mislabelled as good."""
    root = tmp_path_factory.mktemp("data") / "labelled"
    for i in range(40):
        write_image(root / f"good/{i:03}.png", tile(i)[0])
    for i in range(10):
        image, mask = tile(200 + i, (4 + 4 * i, 64 - 6 * i))
        write_image(root / f"bright/{i:03}.png", image)
        write_image(root / f"ground_truth/bright/{i:03}_mask.png", mask)
        image, mask = tile(300 + i, (4 + 4 * i, 6 * i))
        image[mask > 0] = 5
        write_image(root / f"dark/{i:03}.png", image)
        write_image(root / f"ground_truth/dark/{i:03}_mask.png", mask)
    write_image(root / "good/wrong.png", tile(500, (20, 40))[0])
    return root


@pytest.fixture(scope="session")
def classified(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `blemish train --detector cam --classes types --folds 2` writes for `labelled`."""
    from blemish.detectors.cam.config import CamConfig
    from blemish.training.config import TrainConfig
    from blemish.training.pipeline import train

    out = tmp_path_factory.mktemp("runs") / "labelled"
    settings = CamConfig(epochs=2, classes="types")
    config = TrainConfig(labelled, out, settings=settings, image_size=(96, 128), false_alarms=0.1, folds=2)
    return train(config).folder


@pytest.fixture(scope="session")
def run(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `blemish train --calibrate split` writes for `product`: 19 of the good images are held out."""
    from blemish.detectors.patchcore.config import PatchCoreConfig
    from blemish.training.config import TrainConfig
    from blemish.training.pipeline import train

    out = tmp_path_factory.mktemp("runs") / "tiles"
    settings = PatchCoreConfig(max_bank=300)
    return train(TrainConfig(product, out, settings=settings, image_size=(192, 256), calibrate="split")).folder


@pytest.fixture(scope="session")
def all_teach(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `blemish train` writes for `product` with leave-one-out: all 40 good images are training images."""
    from blemish.detectors.patchcore.config import PatchCoreConfig
    from blemish.training.config import TrainConfig
    from blemish.training.pipeline import train

    out = tmp_path_factory.mktemp("runs") / "tiles"
    settings = PatchCoreConfig(max_bank=100)
    return train(TrainConfig(product, out, settings=settings, image_size=(64, 96), overlays=0, review=0.1)).folder
