"""Which files of a folder are images, which are left out and why: small trees, with links, litter and blemish's own."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from blemish import images
from blemish.images import find_images, load_image
from blemish.listing import OTHER_FORMATS, REASONS, SUFFIXES, has_suffix, is_litter, natural, walk
from tests.support import touch


def left(root: Path) -> dict[str, tuple[str, int]]:
    return {entry.name: (entry.reason, entry.files) for entry in walk(root).left_out}


def test_every_suffix_is_a_format_that_is_read(tmp_path: Path) -> None:
    Image.init()
    known = Image.registered_extensions()  # without some names of JPEG
    for suffix in SUFFIXES:
        stored = known.get(suffix, "JPEG")
        assert stored in {*images._FORMATS, "MPO"}
        buffer = io.BytesIO()
        Image.new("RGB", (4, 3), (9, 9, 9)).save(buffer, stored)
        path = tmp_path / f"image{suffix}"
        path.write_bytes(buffer.getvalue())
        assert load_image(path).shape == (3, 4, 3)
    assert not SUFFIXES & OTHER_FORMATS


def test_no_ending_is_no_image() -> None:
    assert has_suffix("a.PNG")
    assert not any(map(has_suffix, ("png", "a.png.txt", "a.", ".png", "a")))


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "@EADIR", "@tmp", "@Recycle", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "__MACOSX", "lost+found"),
        *("System Volume Information", "Thumbs.db", "thumbnails", "Catalog Previews.lrdata", "_vti_cnf", "@__thumb"),
        *("SYNOPHOTO_THUMB_M.jpg", "~snapshot"),
    ],
)
def test_litter_is_left_out_with_all_that_is_in_it(tmp_path: Path, name: str) -> None:
    assert is_litter(name)
    touch(tmp_path, "good/1.png", f"good/{name}/2.png", f"good/{name}/deep/3.png")
    assert walk(tmp_path).images == ["good/1.png"]
    assert left(tmp_path) == {f"good/{name}": ("litter", 2)}


def test_names_of_parts_are_no_litter() -> None:
    assert not any(map(is_litter, ("@1.png", "$5.png", "#3", "recycled", "trash", "thumb", "thumbs.png", "macosx")))


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "._1.png", ".DS_Store", ".git/2.png", ".git/objects/3.png")
    assert walk(tmp_path).images == ["1.png"]
    assert left(tmp_path) == {"._1.png": ("hidden", 1), ".DS_Store": ("hidden", 1), ".git": ("hidden", 2)}


@pytest.mark.parametrize(
    "files",
    [
        [".blemish"],
        ["verdicts.jsonl"],
        ["card.json", "model.onnx"],
        ["bundle/card.json"],
        ["sweep.csv", "sweep.json"],
    ],
)
def test_what_blemish_wrote_is_left_out(tmp_path: Path, files: list[str]) -> None:
    touch(tmp_path, "good/1.png", *(f"out/{file}" for file in files), "out/overlays/1.png.jpg")
    assert walk(tmp_path).images == ["good/1.png"]
    assert left(tmp_path) == {"out": ("own-output", len(files) + 1)}
    assert find_images(tmp_path, recursive=True) == [tmp_path / "good/1.png"]
    assert walk(tmp_path / "out").images == ["overlays/1.png.jpg"]  # asked for by name


def test_endings_of_other_formats_are_told_from_files_that_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.HEIC", "3.txt", "4", "5.png.part", "6.cr2")
    other, none = ("other-format", 1), ("no-image", 1)
    assert left(tmp_path) == {"2.HEIC": other, "3.txt": none, "4": none, "5.png.part": none, "6.cr2": other}


def test_a_link_to_what_is_listed_already_is_left_out(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "day/1.png", "day/2.png", ".store/3.png", ".store/4") / "."
    (root / "a-link").symlink_to("day", target_is_directory=True)  # before its target in the order of names
    (root / "day/again").symlink_to(root, target_is_directory=True)
    (root / "day/up").symlink_to(tmp_path, target_is_directory=True)
    (root / "0.png").symlink_to("day/1.png")
    (root / "3.png").symlink_to(".store/3.png")  # as git-annex and DVC keep files
    (root / "3b.png").symlink_to(".store/3.png")
    (root / "4.png").symlink_to(".store/4")
    assert walk(root).images == ["3.png", "4.png", "day/1.png", "day/2.png"]
    linked = ("linked", 1)
    assert left(root) == {
        **dict.fromkeys(("a-link", "day/again", "day/up", "0.png", "3b.png"), linked),
        ".store": ("hidden", 2),
    }


def test_links_to_folders_elsewhere_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a/1.png", "b/2.png")
    root = touch(tmp_path / "set", "0.png")
    (root / "one").symlink_to(tmp_path / "store" / "a", target_is_directory=True)
    (root / "two").symlink_to(tmp_path / "store", target_is_directory=True)
    (root / "three").symlink_to(tmp_path / "store", target_is_directory=True)
    tree = walk(root)
    assert tree.images == ["0.png", "one/1.png", "three/b/2.png"]
    assert sorted(tree.folders) == ["one", "three", "three/b"]
    assert left(root) == {"three/a": ("linked", 1), "two": ("linked", 1)}


def test_broken_links_and_self_links_are_listed_so_that_reading_them_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "self").symlink_to("self")
    assert walk(tmp_path).images == ["gone.png", "self.png"]
    assert left(tmp_path) == {"self": ("no-image", 1)}


def test_folders_that_are_too_deep_are_counted(tmp_path: Path) -> None:
    deep = "/".join("12345678")
    touch(tmp_path, f"{deep}/in.png", f"{deep}/9/out.png", f"{deep}/9/10/out.png")
    assert walk(tmp_path).images == [f"{deep}/in.png"]
    assert left(tmp_path) == {f"{deep}/9": ("too-deep", 2)}
    assert [entry.files for entry in walk(tmp_path, 0, count=False).left_out] == [1]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that may not be listed")
def test_litter_that_may_not_be_listed_stops_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "lost+found/2.png")
    (tmp_path / "lost+found").chmod(0)
    assert left(tmp_path) == {"lost+found": ("litter", 0)}
    (tmp_path / "lost+found").chmod(0o700)


def test_the_order_is_natural(tmp_path: Path) -> None:
    touch(tmp_path, "b10.png", "b2.png", "B1.png", "a/1.png")
    assert walk(tmp_path).images == ["a/1.png", "B1.png", "b2.png", "b10.png"]
    assert sorted(["10", "9", "a", "A"], key=natural) == ["9", "10", "A", "a"]


def test_every_reason_has_its_words() -> None:
    assert all(REASONS.values())
