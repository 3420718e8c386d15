"""What a data set does not read, and what its pixels and headers say: each problem on a small folder that has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.audit import Audit, audit
from blemish.data.checks import Files, Problem
from blemish.data.layouts import read
from tests.support import blemish, png, shared_folder, touch, write_image


def texture(seed: int, height: int = 32, width: int = 48) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(60, 190, (height, width)).astype(np.uint8)


def good(root: Path, count: int = 4) -> Path:
    for i in range(count):
        write_image(root / "good" / f"{i}.png", texture(i))
    return root


def kinds(result: Audit) -> set[str]:
    return {p.kind for p in result.problems} - {"few-good", "no-defects", "few-of-defect", "mask-missing"}


def only(result: Audit, kind: str) -> Problem:
    (problem,) = [p for p in result.problems if p.kind == kind]
    return problem


def test_the_sums_hold_all_files(tmp_path: Path) -> None:
    good(tmp_path)
    write_image(tmp_path / "NG/0.png", texture(10))
    write_image(tmp_path / "NG/1.png", texture(11))
    for i in range(3):
        write_image(tmp_path / f"masks/NG/{i}.png", np.eye(32, 48) * 255)
    write_image(tmp_path / "masks/NG/1.png", np.eye(30) * 255)
    (tmp_path / "good/broken.png").write_bytes(b"x")
    touch(tmp_path, "good/Thumbs.db", "good/.hidden.png", "a.txt", "b.heic", "c.heic", "good/@eaDir/0.png/1.jpg")
    files = audit(read(tmp_path)).files
    left = {"hidden": 1, "litter": 2, "other-format": 2, "no-image": 1, "mask-unused": 1}
    assert files == Files(all=16, images=6, masks=1, refused=2, left_out=left)  # type: ignore[arg-type]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 16
    assert "6 images and 1 masks are read, 7 left out (1 hidden" in files.sentence()


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    good(tmp_path / "train")
    good(tmp_path / "test", 2)
    write_image(tmp_path / "validation/good/7.png", texture(7))
    write_image(tmp_path / "test/stray.png", texture(8))
    touch(tmp_path, "train/good/x.heic", "train/good/y.pgm", "train/good/@eaDir/0.png", "masks/8.png", "run/.blemish")
    (tmp_path / "train/good/again").symlink_to(tmp_path / "test")
    (tmp_path / "train/good/old.bak").write_bytes((tmp_path / "train/good/0.png").read_bytes())
    deep = "/".join("12345678")
    touch(tmp_path, f"train/good/{deep}/deep.png")
    result = audit(read(tmp_path))
    said = {p.kind: (p.severity, p.names) for p in result.problems}
    assert said["other-format"] == ("warning", ("train/good/x.heic", "train/good/y.pgm"))
    assert said["other-ending"] == ("warning", ("train/good/old.bak",))
    assert said["mask-unused"] == ("warning", ("masks/8.png",))
    assert said["too-deep"] == ("warning", ("train/good/1/2/3/4/5/6/7",))
    assert said["litter"] == ("note", ("train/good/@eaDir",))
    assert said["own-output"] == ("note", ("run",))
    assert said["linked"] == ("note", ("train/good/again",))
    places = [p.names for p in result.problems if p.kind == "not-in-layout"]
    assert places == [("test/stray.png",), ("validation/good/7.png",)]


def test_pages_of_a_file(tmp_path: Path) -> None:
    good(tmp_path)
    pages = [Image.fromarray(texture(seed)) for seed in (20, 21, 22)]
    pages[0].save(tmp_path / "good/pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "good/moving.gif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "good/stereo.jpg", "MPO", save_all=True, append_images=pages[1:])
    problem = only(audit(read(tmp_path)), "several-pages")
    assert problem.names == ("good/moving.gif", "good/pages.tif")
    assert "only the first" in problem.sentence


def test_12_bits_in_16_with_a_stuck_pixel(tmp_path: Path) -> None:
    good(tmp_path)
    values = np.random.default_rng(0).integers(500, 4096, (32, 48)).astype(np.uint16)
    values[3, 4] = 65535
    (tmp_path / "good/stuck.png").write_bytes(png(values, 0, 16))
    (tmp_path / "good/bright.png").write_bytes(png(values * 16, 0, 16))
    (tmp_path / "good/dark.png").write_bytes(png(values // 400, 0, 8))
    problem = only(audit(read(tmp_path)), "dark-16-bit")
    assert (problem.severity, problem.names) == ("warning", ("good/stuck.png",))


def test_shapes_that_are_squeezed(tmp_path: Path) -> None:
    good(tmp_path, 5)
    assert kinds(audit(read(tmp_path))) == set()
    write_image(tmp_path / "good/upright.png", texture(1).T)
    write_image(tmp_path / "good/line.png", texture(2, 20, 100))
    result = audit(read(tmp_path))
    assert only(result, "mixed-shapes").names == ("good/line.png", "good/upright.png")
    assert "2 of 7 images have another shape" in only(result, "mixed-shapes").sentence
    assert "6 are wider than high, 1 higher than wide" in only(result, "mixed-shapes").sentence
    assert only(result, "long-images").names == ("good/line.png",)


def test_masks_of_several_values_and_inverted_ones(tmp_path: Path) -> None:
    good(tmp_path)
    drawn = np.zeros((32, 48))
    drawn[5:10, 5:10], drawn[5:10, 10:15] = 100, 150
    for name, mask in (("greys", drawn), ("inverted", 255 - (drawn > 0) * 255.0), ("sound", (drawn > 0) * 255.0)):
        write_image(tmp_path / f"NG/{name}.png", texture(ord(name[0])))
        write_image(tmp_path / f"masks/NG/{name}.png", mask)
    result = audit(read(tmp_path))
    assert kinds(result) == {"mask-values", "mask-covers-most"}
    assert "several grey values (100 and brighter)" in only(result, "mask-values").sentence
    assert only(result, "mask-covers-most").names == ("NG/inverted.png",)
    assert "97% of NG/inverted.png, most of the image: it may be inverted" in only(result, "mask-covers-most").sentence


def test_the_command_exits_with_3_where_there_is_an_error(tmp_path: Path) -> None:
    good(tmp_path, 40)
    assert "40 images and 0 masks are read, 0 left out, 0 refused" in blemish("data", tmp_path).stdout
    (tmp_path / "good/broken.png").write_bytes(b"x")
    assert "1 refused" in blemish("data", tmp_path, code=3).stdout
    files = json.loads(blemish("data", tmp_path, "--json", code=3).stdout)["files"]
    assert files == {"all": 41, "images": 40, "masks": 0, "refused": 1, "left_out": {}}


@pytest.mark.real
@pytest.mark.parametrize("name", ["cookies", "kolektorsdd"])
def test_real_data_sets_are_read_whole_and_have_none_of_these_problems(name: str) -> None:
    result = audit(read(shared_folder("data") / name))
    assert kinds(result) <= {"copies", "copies-across-items"}
    assert set(result.files.left_out) <= {"no-image"}
