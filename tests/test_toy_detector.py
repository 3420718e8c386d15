"""A detector of another package, tests/toy, found by its entry point: trained, exported, inspected and reported with no
line of blemish changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from blemish.detectors.registry import OURS, config_of, names, others
from blemish.images import load_image
from blemish.inference.inspector import Inspector
from blemish.types import BlemishError
from tests.support import blemish, refused, write_image

TOY = Path(__file__).parent / "toy"


Install = Callable[[Path], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """As if the packages in a folder had been installed with pip."""

    def forget() -> None:
        others.cache_clear()
        config_of.cache_clear()

    def add(folder: Path) -> None:
        monkeypatch.syspath_prepend(folder)
        forget()

    yield add
    monkeypatch.undo()
    forget()


@pytest.fixture
def toy(install: Install) -> None:
    install(TOY)


def package(folder: Path, name: str, module: str = "") -> Path:
    """An installed package whose entry point `name` is `module:Config`; with "" there is no such module."""
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    where = f"{name}_package"
    (info / "entry_points.txt").write_text(f"[blemish.detectors]\n{name} = {where}:Config\n")
    if module:
        (folder / f"{where}.py").write_text(module)
    return folder


def config_module(name: str, field: str) -> str:
    return f"""
from dataclasses import dataclass
from typing import ClassVar
from blemish.detectors.interface import Traits
from blemish.options import setting

@dataclass(frozen=True)
class Config:
    traits: ClassVar[Traits] = Traits(name={name!r}, title="A", summary="B.")
    {field}: int = setting(1, "Something.")
    image_size: tuple[int, int] | None = None
    seed: int = 0
"""


@pytest.fixture
def dim(tmp_path: Path) -> Path:
    """24 good tiles without stripes, and 4 with a bright spot."""
    random = np.random.default_rng(0)
    for i in range(24):
        write_image(tmp_path / f"dim/good/{i:02}.png", random.integers(80, 120, (60, 80)))
    for i in range(4):
        pixels = random.integers(80, 120, (60, 80))
        pixels[10 + i : 25 + i, 30:45] = 250
        write_image(tmp_path / f"dim/spot/{i}.png", pixels)
    return tmp_path / "dim"


def test_it_is_listed_beside_ours(toy: None) -> None:
    assert names() == [*OURS, "mean-image"]
    said = blemish("detectors").stdout
    assert "mean-image: Distance to the mean image" in said
    assert "--gain" in said
    found = json.loads(blemish("detectors", "--json").stdout)
    assert found["mean-image"]["settings"]["gain"]["default"] == 1.0


def test_trained_exported_inspected_reported(toy: None, dim: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    blemish("train", dim, "-o", run, "--detector", "mean-image", "--false-alarms", "20%", "--overlays", 4)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["detector"] == "mean-image"
    assert metrics["detection"]["auroc"]["value"] == 1.0
    assert (run / "report.html").is_file()
    card = Inspector(run).card
    assert card.settings == {"gain": 1.0, "image_size": list(card.image_size), "seed": 0}
    # By hand: the mean absolute distance to the mean of the training images, at the detector's own size.
    image = load_image(dim / "spot/1.png")
    prediction = Inspector(run).predict(image)
    assert prediction.scores[0] == pytest.approx(prediction.maps.max())
    assert Inspector(run).inspect(image).decision == "anomaly"
    assert blemish("inspect", run, dim / "spot", "--json", code=0).stdout.count('"anomaly"') == 4
    assert "mean-image" in blemish("report", run, "--json").stdout


def test_its_settings_are_options(dim: Path, tmp_path: Path) -> None:
    """In a process of its own: the options of `blemish train` are made when it starts."""
    program = f"import sys; sys.path.insert(0, {str(TOY)!r}); from blemish.cli.app import main; main()"

    def said(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "Factor of the anomaly map." in " ".join(said("train", "--help").stdout.replace("│", " ").split())
    done = said("train", dim, "-o", tmp_path / "r", "--detector", "mean-image", "--gain", "-1")
    assert done.returncode == 2
    done = said("train", dim, "-o", tmp_path / "r", "--detector", "patchcore", "--gain", "2")
    assert done.returncode == 2
    assert "--gain is not an option of --detector patchcore" in done.stderr


def test_a_package_that_cannot_load_stops_only_its_own_detector(install: Install, tmp_path: Path, dim: Path) -> None:
    install(package(tmp_path / "packages", "broken"))
    assert "broken" not in blemish("detectors", "--json").stdout
    assert "--gain" not in blemish("train", "--help").stdout
    sentence = refused("train", dim, "-o", tmp_path / "r", "--detector", "broken")
    assert "'broken' cannot be loaded from broken_package:Config (No module named" in sentence
    with pytest.raises(
        BlemishError, match="there is no detector 'other'; choose one of patchcore, hybrid, cam, attention"
    ):
        config_of("other")


def test_a_detector_is_called_as_its_entry_point(install: Install, tmp_path: Path) -> None:
    install(package(tmp_path, "one", config_module("another", "gain")))
    with pytest.raises(BlemishError, match="its traits call it 'another'"):
        config_of("one")


def test_an_option_of_the_training_cannot_be_that_of_a_detector(install: Install, tmp_path: Path, dim: Path) -> None:
    install(package(tmp_path / "packages", "clash", config_module("clash", "overlap")))
    sentence = refused("train", dim, "-o", tmp_path / "r", "--detector", "clash")
    assert "the detector 'clash' has the option --overlap, which blemish train has itself" in sentence
