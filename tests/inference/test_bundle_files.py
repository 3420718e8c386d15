"""Folders and .zip files as a stranger may send them."""

from __future__ import annotations

import os
import shutil
import stat
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blemish.inference import bundle, bundle_files
from blemish.inference.bundle_files import BundleError, shown
from tests import tiny

LIMIT = 32 * 2**20  # bytes that reading a bundle of two kilobytes may take


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.made(tmp_path / "b")


def refusal(path: Path) -> str:
    """The sentence with which a bundle is refused, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(BundleError) as caught:
            bundle.read(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < LIMIT
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    return sentence


def zipped(folder: Path, change: Callable[[zipfile.ZipFile], object] = lambda _: None, method: int = 0) -> Path:
    """The bundle's files in a .zip, after `change` has added its own."""
    path = folder.parent / "b.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        change(archive)
        for file in folder.iterdir():
            if file.name not in archive.namelist():
                archive.write(file, file.name)
    return path


# Folders


def test_what_systems_leave_in_a_folder_is_no_part_of_it(folder: Path) -> None:
    for name in (".blemish", ".DS_Store", "Thumbs.db", "desktop.ini", "._card.json"):
        (folder / name).write_bytes(b"x")
    (folder / "@eaDir").mkdir()
    assert set(bundle.read(folder).card.files) == {"model.onnx"}
    bundle.pack(folder, folder.parent / "b.zip")
    with zipfile.ZipFile(folder.parent / "b.zip") as archive:
        assert archive.namelist() == ["card.json", "model.onnx"]
    bundle.write(folder, tiny.card())
    assert set(bundle.read(folder).card.files) == {"model.onnx"}


@pytest.mark.parametrize("name", ["model.onnx", "card.json"])
@pytest.mark.parametrize("what", ["fifo", "folder", "loop", "nowhere", "device", "nothing"])
def test_what_is_no_file_counts_as_missing(folder: Path, name: str, what: str) -> None:
    path = folder / name
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(name)
    elif what == "nowhere":
        path.symlink_to("elsewhere")
    elif what == "device":
        path.symlink_to("/dev/zero")
    assert ("model.onnx is missing or no file" if name == "model.onnx" else "has no card.json") in refusal(folder)


def test_a_link_to_the_file_will_do(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "kept.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "kept.onnx")
    assert bundle.read(folder).model == tiny.model()


@pytest.mark.parametrize("name", ["model.onnx", "card.json"])
@pytest.mark.parametrize("size", [0, 100, 8 * 2**30])
def test_a_file_of_another_size_is_not_read(folder: Path, name: str, size: int) -> None:
    os.truncate(folder / name, size)  # beyond its end it is sparse, and takes no disk
    message = refusal(folder)
    if name == "model.onnx":
        assert f"model.onnx is damaged ({size:,} bytes, the card says 480)" in message
    else:
        assert "card" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(folder: Path) -> None:
    (folder / "model.onnx").chmod(0)
    assert "model.onnx cannot be read (Permission denied)" in refusal(folder)


def test_a_path_that_is_no_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", "x" * 300, "a\0b"):
        assert "\n" not in refusal(tmp_path / name)
    assert "device or pipe" in refusal(Path("/dev/zero"))
    (tmp_path / "file").write_bytes(b"")
    assert "no such bundle" in refusal(tmp_path / "file/below")


# Zips


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_that_a_person_made_will_do(folder: Path, method: int) -> None:
    path = zipped(folder, lambda archive: archive.writestr("__MACOSX/._card.json", "x"), method)
    assert bundle.read(path).model == tiny.model()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(folder: Path, method: int) -> None:
    assert "packed by another method" in refusal(zipped(folder, method=method))


def test_a_name_that_is_there_twice(folder: Path) -> None:
    def twice(archive: zipfile.ZipFile) -> None:
        archive.write(folder / "model.onnx", "model.onnx")
        archive.writestr("model.onnx", b"other")

    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(folder, twice)
    assert "two of one name" in refusal(path)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "sub/model.onnx", "a\nb", "C:\\x", "run.py", "é" * 300]
)
def test_other_names_are_refused(folder: Path, name: str) -> None:
    message = refusal(zipped(folder, lambda archive: archive.writestr(name, "x")))
    assert "does not belong to it" in message
    assert len(message) < len(str(folder)) + 250


def test_a_link_in_a_zip_is_refused(folder: Path) -> None:
    def link(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("model.onnx")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")

    assert "model.onnx is a link" in refusal(zipped(folder, link))


def test_an_encrypted_zip_is_refused(folder: Path) -> None:
    path = zipped(folder)
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            data[start + at] |= 1
    path.write_bytes(data)
    assert "is encrypted" in refusal(path)


def test_a_bomb_is_not_unpacked(folder: Path) -> None:
    """128 MiB of zeros in some kilobytes, as the model and as the card."""
    for name in ("model.onnx", "card.json"):

        def bomb(archive: zipfile.ZipFile, name: str = name) -> None:
            with archive.open(name, "w") as file:
                for _ in range(128):
                    file.write(bytes(2**20))

        message = refusal(zipped(folder, bomb, zipfile.ZIP_DEFLATED))
        assert ("bytes, the card says 480" if name == "model.onnx" else "more than 67,108,864 bytes") in message


def test_a_bomb_that_lies_about_its_size(folder: Path) -> None:
    """Its table of contents has the size that the card says."""

    def bomb(archive: zipfile.ZipFile) -> None:
        archive.writestr("model.onnx", bytes(64 * 2**20))

    path = zipped(folder, bomb, zipfile.ZIP_DEFLATED)
    data, large, small = path.read_bytes(), (64 * 2**20).to_bytes(4, "little"), (480).to_bytes(4, "little")
    assert data.count(large) == 2
    path.write_bytes(data.replace(large, small))
    assert "not a readable .zip (Bad CRC-32" in refusal(path)


def test_a_damaged_deflated_zip(folder: Path) -> None:
    path = zipped(folder, method=zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            assert bundle.read(path).model == tiny.model()
        except BundleError as cause:
            sentence = str(cause)
            assert "\n" not in sentence


def test_a_zip_of_many_files(folder: Path) -> None:
    def many(archive: zipfile.ZipFile) -> None:
        for number in range(bundle_files.MAX_MEMBERS):
            archive.writestr(f"{number}", b"")

    assert "too many files" in refusal(zipped(folder, many))


def test_a_long_table_of_contents_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "MAX_DIRECTORY", 10_000)

    def many(archive: zipfile.ZipFile) -> None:
        for number in range(500):
            archive.writestr(f"{number}", b"")

    assert "its table of contents is too long" in refusal(zipped(folder, many))


def test_a_large_file_that_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "b.zip").touch()
    os.truncate(tmp_path / "b.zip", 8 * 2**30)
    assert "not a readable .zip" in refusal(tmp_path / "b.zip")


def test_a_zip_of_the_folder_itself_names_the_card(folder: Path) -> None:
    path = Path(shutil.make_archive(str(folder.parent / "whole"), "zip", folder.parent, "b"))
    assert "has no card.json" in refusal(path)


def test_names_are_shown_short_and_in_one_line() -> None:
    assert shown("a\nb\x1b[31m\u202ec") == "a?b?[31m?c"
    assert shown("ü" * 200) == "ü" * 100 + "..."
