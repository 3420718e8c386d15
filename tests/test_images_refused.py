"""What is refused, with one sentence and no warning: damaged files, bombs, and files that are no images."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish import images
from blemish.images import ImageError, load_image, load_mask, read_size
from tests.support import png, put, refusal, save, tiff, write_image

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [0, 0, 0], [250, 255, 1]]], np.uint8)
GREYS = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)


def test_missing_empty_and_special_files_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing.png")
    assert "no such file" in refusal(tmp_path / "no-folder" / "nothing.png")
    assert "folder" in refusal(tmp_path)
    assert "0 bytes" in refusal(put(tmp_path / "empty.png", b""))
    assert "is not an image" in refusal(put(tmp_path / "text.png", b"good,bad\n1,2\n" * 9))
    assert "cannot be opened" in refusal(put(tmp_path / "file.png", b"x") / "inside.png")
    for call in (read_size, lambda path: load_mask(path, (1, 1))):
        with pytest.raises(ImageError, match="is not an image"):
            call(tmp_path / "text.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
        assert "pipe" in refusal(tmp_path / "pipe.png")


def test_a_broken_link_and_a_name_with_a_null_byte_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "no such file" in refusal(tmp_path / "link.png")
    refusal(tmp_path / "null\0.png")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "a.png", GREYS)
    if os.geteuid() == 0:  # root may read every file, so the refusal is simulated

        def refuse(path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(images, "open_regular", refuse)
    else:
        path.chmod(stat.S_IWUSR)
    assert "Permission denied" in refusal(path)


def test_other_formats_of_pillow_are_not_tried(tmp_path: Path) -> None:
    Image.init()  # other code in the process may have loaded every decoder
    for name, kind in (("a.png", "PPM"), ("b.png", "TGA"), ("c.png", "ICO"), ("d.png", "PCX")):
        assert "is not an image" in refusal(save(tmp_path / name, Image.fromarray(COLOURS), format=kind))


def _encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_a_truncated_file_is_read_whole_or_refused(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    data = _encoded(kind, **options)
    whole = load_image(put(tmp_path / "whole", data))
    path, survivors = tmp_path / "cut", []
    for length in range(1, len(data), 7):
        path.write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(load_image(path), whole)
            survivors.append(length)
        except ImageError:
            pass
    assert all(length > len(data) - 30 for length in survivors)  # only the end mark is missing


def test_the_cause_is_about_the_image_and_not_about_pillow_s_code(tmp_path: Path) -> None:
    start = b"\x89PNG\r\n\x1a\n"
    path = put(tmp_path / "a.png", start + b"\0\0")
    assert refusal(path) == f"{path} is damaged or cut short; write or copy it again."  # and no "unpack_from"
    path = put(tmp_path / "b.png", start + b"\0\0\0\x0dIHDR\0")
    assert refusal(path) == f"{path} is damaged or cut short (Truncated File Read); write or copy it again."


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_a_damaged_byte_gives_an_image_or_an_image_error(tmp_path: Path, kind: str) -> None:
    data = bytearray(_encoded(kind))
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged"
    for _ in range(150):
        changed = bytearray(data)
        changed[rng.integers(min(300, len(data)))] = rng.integers(256)
        path.write_bytes(changed)
        for read in (load_image, read_size):
            with contextlib.suppress(ImageError):  # anything else fails the test
                read(path)


def test_a_wrong_checksum_in_a_png_is_refused(tmp_path: Path) -> None:
    data = bytearray(_encoded("PNG"))
    data[data.index(b"IDAT") + 40] ^= 1
    refusal(put(tmp_path / "a.png", bytes(data)))


def test_images_without_pixels_are_refused(tmp_path: Path) -> None:
    refusal(put(tmp_path / "a.png", png(np.zeros((0, 3)), 0, 8)))
    refusal(put(tmp_path / "b.png", png(np.zeros((3, 0)), 0, 8)))
    refusal(put(tmp_path / "a.tif", tiff(b"", (0, 0), [8], 1)))
    refusal(
        put(tmp_path / "a.bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0))
    )


def test_the_limit_of_pixels_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "a.png", np.zeros((30, 40)))
    text = refusal(path, max_pixels=1199)
    assert "1,200" in text
    assert "make it smaller" in text
    assert "max_pixels" not in text  # not every command has that option
    assert load_image(path, max_pixels=1200).shape == (30, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow would refuse this, but only our limit counts
    assert load_image(path).shape == (30, 40, 3)
    assert read_size(path) == (40, 30)


def test_a_bomb_is_refused_from_its_header_without_a_warning(tmp_path: Path) -> None:
    bomb = bytearray(png(np.zeros((1, 1)), 0, 8))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    del bomb[29:33]
    bomb[29:29] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    path = put(tmp_path / "bomb.png", bytes(bomb))
    assert "3,600,000,000" in refusal(path)
    assert read_size(path) == (60_000, 60_000)


def test_no_warning_escapes_and_none_is_silenced_for_others(tmp_path: Path) -> None:
    entry = struct.pack("<HHII", 0x010E, 2, 100, 5000)  # a text outside the block
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)
    path = save(tmp_path / "a.jpg", Image.fromarray(GREYS), exif=exif)
    with pytest.warns(UserWarning, match="EXIF|Tag data"), Image.open(path) as image:  # Pillow warns of it
        image.getexif()
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_image(path).shape == (2, 3, 3)
        assert caught == []
        with images._quiet():
            warnings.warn("another's", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["another's"]
    assert list(warnings.filters) == before


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", np.zeros((200, 200)))
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [load_image(path) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
