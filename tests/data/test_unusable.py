"""Refusals for too few images say why they are few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.audit import audit
from blemish.data.layouts import read
from blemish.data.unusable import explained, unusable
from blemish.training.config import TrainConfig
from blemish.types import BlemishError, TooFewError
from tests.support import divided, refused, write_image


def put(folder: Path, count: int, seed: int = 0) -> None:
    for i in range(count):
        write_image(folder / f"{i}.png", np.random.default_rng(seed + i).integers(90, 130, (40, 40)))


def large(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1", (12_000, 9_000)).save(file)


def why(folder: Path) -> str:
    dataset = read(folder)
    return unusable(folder, dataset, audit(dataset))


def test_reasons_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "a/good", 9)
    assert why(tmp_path / "a") == ""
    for i in (1, 2):
        (tmp_path / f"a/good/{i}.png").write_bytes(b"cut short")
    large(tmp_path / "a/good/x.png")
    (tmp_path / "a/good/copy.png").write_bytes((tmp_path / "a/good/0.png").read_bytes())
    assert why(tmp_path / "a") == (
        f"of the 11 images in {tmp_path / 'a'} 2 cannot be read, 1 has more than 100,000,000 pixels and 1 shows the "
        f"same as another, which counts once: see blemish data {tmp_path / 'a'}"
    )
    with pytest.raises(TooFewError) as refusal, explained(why(tmp_path / "a")):
        raise TooFewError("Add more.")
    assert str(refusal.value).startswith("Add more (of the 11 images in ")
    with pytest.raises(BlemishError) as other, explained("why"):
        raise BlemishError("No OpenCV.")
    assert str(other.value) == "No OpenCV."


def test_images_in_formats_that_are_not_read(tmp_path: Path) -> None:
    put(tmp_path / "a/good", 2)
    for name in ("1.heic", "2.HEIC", "3.pgm"):
        (tmp_path / "a/good" / name).write_bytes(b"x")
    assert why(tmp_path / "a") == (
        f"images in formats that are not read: 2 .heic, 1 .pgm: see blemish data {tmp_path / 'a'}"
    )
    for i in range(2):
        (tmp_path / f"a/good/{i}.png").unlink()
    assert "Images in formats that are not read (2 .heic, 1 .pgm): convert" in refused("data", tmp_path / "a")


def test_where_no_image_can_be_used(tmp_path: Path) -> None:
    for i in range(2):
        large(tmp_path / f"big/good/{i}.png")
    text = refused("train", tmp_path / "big", "-o", tmp_path / "run")
    assert text == (
        f"None of the 2 images in {tmp_path / 'big'} can be used: 2 have more than 100,000,000 pixels; make them "
        f"smaller, and see blemish data {tmp_path / 'big'}."
    )
    sentence = audit(read(tmp_path / "big")).problems[0].sentence  # in `blemish data`, which has no such option either
    assert sentence.endswith("pixels, more than the limit of 100,000,000; make it smaller, or cut it into pieces.")
    put(tmp_path / "cut/good", 3)
    for file in (tmp_path / "cut/good").iterdir():
        file.write_bytes(file.read_bytes()[:90])
    for command in ("train", "corrupt"):
        assert "None of the 3 images" in refused(command, tmp_path / "cut", "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_refusal_for_too_few_says_why(tmp_path: Path) -> None:
    data = tmp_path / "mixed"
    put(data / "good", 26)
    put(data / "dent", 4, 100)
    for i in range(8):
        (data / f"good/{i}.png").write_bytes(b"")
    with pytest.raises(TooFewError, match=r"14 good images cannot guarantee .*8 cannot be read: see blemish data"):
        divided(TrainConfig(data, tmp_path / "run"))
    for file in (data / "dent").iterdir():
        file.write_bytes(b"")
    text = refused("train", data, "-o", tmp_path / "run", "--detector", "cam", "--false-alarms", "30%")
    assert "there is no defective one; add some" in text
    assert "12 cannot be read" in text


def test_copies_of_one_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40))
    for i in range(25):
        write_image(tmp_path / f"same/good/{i}.png", pixels)
    text = refused("train", tmp_path / "same", "-o", tmp_path / "run")
    assert "24 show the same as another, which counts once" in text
