"""A tiny product (striped tiles, a bright spot as defect) and detectors trained on it, made once per session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock

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


TRAINED = {"run", "classified", "all_teach", "tiled", "aligned"}  # fixtures that need a training


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make quick` leaves out what needs a training: pytest -m 'not trains'."""
    for item in items:
        if isinstance(item, pytest.Function) and TRAINED & set(item.fixturenames):
            item.add_marker("trains")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` that `make` writes, made by the first of xdist's workers that needs it, for all of them."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "shared" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec AD layout: 40 good training images, 6 good and 6 defective test images."""
    return made_once(tmp_path_factory, "data/tiles", _write_product)


def _write_product(root: Path) -> None:
    for i in range(40):
        write_image(root / f"train/good/{i:03}.png", tile(i)[0])
    for i in range(6):
        write_image(root / f"test/good/{i:03}.png", tile(100 + i)[0])
        image, mask = tile(200 + i, (4 + 7 * i, 60 - 10 * i))
        write_image(root / f"test/spot/{i:03}.png", image)
        write_image(root / f"ground_truth/spot/{i:03}_mask.png", mask)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product without a split: 40 good tiles and 10 of each of two defect types, a bright and a dark spot. One more
    tile with a bright spot is mislabelled as good."""
    return made_once(tmp_path_factory, "data/labelled", _write_labelled)


def _write_labelled(root: Path) -> None:
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


@pytest.fixture(scope="session")
def classified(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `blemish train --detector cam --classes types --folds 2` writes for `labelled`."""
    from blemish.detectors.cam.config import CamConfig
    from blemish.training.config import TrainConfig
    from blemish.training.pipeline import train

    settings = CamConfig(epochs=2, classes="types")

    def make(out: Path) -> None:
        train(TrainConfig(labelled, out, settings=settings, image_size=(96, 128), false_alarms=0.1, folds=2))

    return made_once(tmp_path_factory, "runs/labelled", make)


@pytest.fixture(scope="session")
def run(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `blemish train --calibrate split` writes for `product`: 19 of the good images are held out."""
    from blemish.detectors.patchcore.config import PatchCoreConfig
    from blemish.training.config import TrainConfig
    from blemish.training.pipeline import train

    settings = PatchCoreConfig(max_bank=300)

    def make(out: Path) -> None:
        train(TrainConfig(product, out, settings=settings, image_size=(192, 256), calibrate="split"))

    return made_once(tmp_path_factory, "runs/tiles", make)


@pytest.fixture(scope="session")
def all_teach(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `blemish train` writes for `product` with leave-one-out: all 40 good images are training images."""
    from blemish.detectors.patchcore.config import PatchCoreConfig
    from blemish.training.config import TrainConfig
    from blemish.training.pipeline import train

    settings = PatchCoreConfig(max_bank=100)

    def make(out: Path) -> None:
        train(TrainConfig(product, out, settings=settings, image_size=(64, 96), overlays=0, review=0.1))

    return made_once(tmp_path_factory, "all/tiles", make)
