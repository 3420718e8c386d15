"""Every format and bit depth, on images of a few pixels whose values are worked out by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.images import ImageError, find_images, load_image, load_mask, read_size
from tests.support import grey, png, put, refusal, save, shared_folder, tiff, write_image

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [0, 0, 0], [250, 255, 1]]], np.uint8)
GREYS = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "tiff_adobe_deflate"}),
        ("a.webp", {"lossless": True}),
        ("a.gif", {}),
        ("named.wrongly", {"format": "PNG"}),
    ],
)
def test_lossless_formats_keep_every_value(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    for pixels, expected in ((COLOURS, COLOURS), (GREYS, grey(GREYS))):
        path = save(tmp_path / name, Image.fromarray(pixels), **options)
        loaded = load_image(path)
        assert loaded.dtype == np.uint8
        assert loaded.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(loaded, expected)
        assert read_size(path) == (3, 2)


def test_jpeg_is_close_and_its_array_is_writable(tmp_path: Path) -> None:
    flat = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    loaded = load_image(save(tmp_path / "a.jpg", Image.fromarray(flat), quality=95))
    assert np.abs(loaded.astype(int) - flat).max() <= 2
    loaded[0, 0] = 0  # not a view of a decoder's buffer


def test_one_bit_and_palette_images(tmp_path: Path) -> None:
    bits = np.array([[True, False, True], [False, False, True]])
    for name in ("a.png", "a.bmp", "a.tif"):
        np.testing.assert_array_equal(load_image(save(tmp_path / name, Image.fromarray(bits))), grey(bits * 255))
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    indexed.putpalette([9, 8, 7, 60, 50, 40, 255, 0, 255])
    for name in ("p.png", "p.bmp", "p.tif", "p.gif"):
        np.testing.assert_array_equal(
            load_image(save(tmp_path / name, indexed)), [[[9, 8, 7], [60, 50, 40], [255, 0, 255]]]
        )


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [100, 0, 0, 128]]], np.uint8)
    half = [round((100 * 128 + 255 * 127) / 255), round(255 * 127 / 255), 127]
    for name, options in (("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True, "exact": True})):
        path = save(tmp_path / name, Image.fromarray(rgba), **options)
        np.testing.assert_array_equal(load_image(path), [[[100, 0, 0], [255, 255, 255], half]])
    la = np.array([[[100, 255], [100, 0], [100, 128]]], np.uint8)
    np.testing.assert_array_equal(
        load_image(save(tmp_path / "la.png", Image.fromarray(la))), grey([[100, 255, half[0]]])
    )
    palette = (b"PLTE", bytes([9, 8, 7, 60, 50, 40])), (b"tRNS", bytes([255, 0]))
    np.testing.assert_array_equal(
        load_image(put(tmp_path / "p.png", png([[0, 1]], 3, 8, palette))), [[[9, 8, 7], [255, 255, 255]]]
    )
    key = (b"tRNS", struct.pack(">H", 7))  # one grey value that means transparent
    np.testing.assert_array_equal(load_image(put(tmp_path / "k.png", png([[6, 7]], 0, 8, [key]))), grey([[6, 255]]))
    key = (b"tRNS", struct.pack(">HHH", 1, 2, 3))
    np.testing.assert_array_equal(
        load_image(put(tmp_path / "c.png", png([[1, 2, 3, 1, 2, 4]], 2, 8, [key]))), [[[255] * 3, [1, 2, 4]]]
    )


def test_premultiplied_tiff_is_divided_by_its_alpha(tmp_path: Path) -> None:
    data = tiff(bytes([50, 0, 0, 128, 100, 0, 0, 255]), (2, 1), (8, 8, 8, 8), 2, extra=[(338, 3, 1)])
    loaded = load_image(put(tmp_path / "a.tif", data))
    assert np.abs(loaded[0, 0].astype(int) - [177, 127, 127]).max() <= 1  # 50 + 255 * (1 - 128/255)
    assert loaded[0, 1].tolist() == [100, 0, 0]


def test_cmyk_with_and_without_adobe_inversion(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # full cyan
    np.testing.assert_array_equal(load_image(save(tmp_path / "a.tif", inks))[0, 0], [0, 255, 255])
    path = save(tmp_path / "a.jpg", inks, quality=95)
    assert b"Adobe" in path.read_bytes()  # Pillow writes CMYK JPEG as Adobe does: inverted
    assert np.abs(load_image(path)[8, 8].astype(int) - [0, 255, 255]).max() <= 3


SIXTEEN = np.array([[0, 128, 129, 257], [32767, 32768, 65407, 65535]])
ROUNDED = [[0, 0, 1, 1], [127, 128, 255, 255]]  # value / 257, rounded: 128 -> .498, 129 -> .502, 65407 -> 254.502


def test_16_bit_grey_is_rounded_not_truncated(tmp_path: Path) -> None:
    files = {"a.png": png(SIXTEEN, 0, 16)}
    for order in "<>":
        data = SIXTEEN.astype(f"{order}u2").tobytes()
        for compression in (1, 8):
            files[f"{'le' if order == '<' else 'be'}{compression}.tif"] = tiff(
                data, (4, 2), [16], 1, order=order, compression=compression
            )
    files["inverted.tif"] = tiff((65535 - SIXTEEN).astype("<u2").tobytes(), (4, 2), [16], 0)
    for name, data in files.items():
        np.testing.assert_array_equal(load_image(put(tmp_path / name, data)), grey(ROUNDED), err_msg=name)


def test_16_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535, 32768, 4660]])  # two RGB pixels
    expected = [[[0, 0, 1], [255, 128, 18]]]
    files = {"a.png": png(values, 2, 16)}
    for order in "<>":
        for compression in (1, 8):
            data = values.astype(f"{order}u2").tobytes()
            files[f"{ord(order)}{compression}.tif"] = tiff(
                data, (2, 1), (16, 16, 16), 2, order=order, compression=compression
            )
    for name, data in files.items():
        np.testing.assert_array_equal(load_image(put(tmp_path / name, data)), expected, err_msg=name)
    assert np.abs(np.array(expected).ravel() - values.ravel() * 255 / 65535).max() <= 1
    with_alpha = png([[65535, 0, 0, 65535, 65535, 0, 0, 0]], 6, 16)
    np.testing.assert_array_equal(load_image(put(tmp_path / "rgba.png", with_alpha)), [[[255, 0, 0], [255] * 3]])
    grey_alpha = png([[32768, 65535, 32768, 0]], 4, 16)
    np.testing.assert_array_equal(load_image(put(tmp_path / "la.png", grey_alpha)), grey([[128, 255]]))


def test_12_bit_values_are_scaled_by_4095_where_the_header_says_12_bits(tmp_path: Path) -> None:
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10])  # 12-bit values 0, 2048, 4095, 16
    loaded = load_image(put(tmp_path / "a.tif", tiff(packed, (4, 1), [12], 1)))
    np.testing.assert_array_equal(loaded, grey([[0, 128, 255, 1]]))  # 2048 * 255 / 4095 = 127.53


def test_12_bit_values_in_the_low_bits_of_16_are_refused(tmp_path: Path) -> None:
    for name, data in {
        "a.png": png([[0, 4095]], 0, 16),
        "rgb.png": png([[0, 1, 4095]], 2, 16),
        "a.tif": tiff(struct.pack("<2H", 7, 4095), (2, 1), [16], 1),
        "rgb.tif": tiff(struct.pack("<3H", 7, 256, 4095), (1, 1), (16, 16, 16), 2),
    }.items():
        assert "4095 of 65535" in refusal(put(tmp_path / name, data))
    assert load_image(put(tmp_path / "dark.png", png([[0, 0]], 0, 16))).max() == 0  # black stays black
    assert load_image(put(tmp_path / "enough.png", png([[0, 4096]], 0, 16))).max() == 16


def test_the_same_value_is_the_same_pixel_in_every_image(tmp_path: Path) -> None:
    dim = load_image(put(tmp_path / "dim.png", png([[10000, 12000]], 0, 16)))
    bright = load_image(put(tmp_path / "bright.png", png([[10000, 65535]], 0, 16)))
    assert dim[0, 0].tolist() == bright[0, 0].tolist() == [39, 39, 39]  # 10000 / 257 = 38.9


def test_float_tiff_with_values_outside_0_to_1_is_refused(tmp_path: Path) -> None:
    def write(values: Sequence[float], photometric: int = 1) -> Path:
        data = np.array(values, "<f4").tobytes()
        return put(tmp_path / "f.tif", tiff(data, (len(values), 1), [32], photometric, sample_format=3))

    np.testing.assert_array_equal(load_image(write([0, 0.5, 1, 0.25])), grey([[0, 128, 255, 64]]))  # 127.5 to even
    for values in ([0, 1.01], [-0.01, 1], [0, float("nan")], [float("inf")], [0, 255]):
        assert "0..1" in refusal(write(values))
    refusal(write([0, 1], photometric=0))


def test_integers_and_colours_without_a_defined_white_are_refused(tmp_path: Path) -> None:
    whole = np.array([1, 2], "<i4").tobytes()
    assert "signed integers" in refusal(put(tmp_path / "i.tif", tiff(whole, (2, 1), [32], 1, sample_format=2)))
    signed = np.array([1, -2], "<i2").tobytes()
    assert "signed integers" in refusal(put(tmp_path / "s.tif", tiff(signed, (2, 1), [16], 1, sample_format=2)))
    assert "LAB" in refusal(put(tmp_path / "lab.tif", tiff(bytes(6), (2, 1), (8, 8, 8), 8)))
    key = (b"tRNS", struct.pack(">H", 7))
    assert "transparent" in refusal(put(tmp_path / "key.png", png([[7, 65535]], 0, 16, [key])))
    refusal(put(tmp_path / "double.tif", tiff(bytes(8), (1, 1), [64], 1, sample_format=3)))


UPRIGHT = {  # EXIF orientation -> where the stored image [[1, 2, 3], [4, 5, 6]] belongs
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    stored = np.array([[10, 50, 90], [130, 170, 210]], np.uint8)
    expected = stored.ravel()[np.array(UPRIGHT[orientation]) - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.webp", "a.tif"):
        path = save(tmp_path / name, Image.fromarray(stored), exif=exif, **({"lossless": True} if "w" in name else {}))
        np.testing.assert_array_equal(load_image(path), grey(expected), err_msg=name)
        assert read_size(path) == (expected.shape[1], expected.shape[0])
        np.testing.assert_array_equal(load_mask(path, (expected.shape[0], expected.shape[1])), expected > 127)
    deep = tiff((stored.astype("<u2") * 257).tobytes(), (3, 2), [16], 1, extra=[(274, 3, orientation)])
    np.testing.assert_array_equal(load_image(put(tmp_path / "deep.tif", deep)), grey(expected))
    blocks = np.kron(stored, np.ones((16, 16), np.uint8))
    path = save(tmp_path / "a.jpg", Image.fromarray(blocks), exif=exif, quality=95)
    wanted = np.kron(expected, np.ones((16, 16), np.uint8))
    assert np.abs(load_image(path)[..., 0].astype(int) - wanted).max() <= 3
    assert read_size(path) == (wanted.shape[1], wanted.shape[0])


@pytest.mark.parametrize("block", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rubbish", b"Exif\0\0"])
def test_an_image_with_a_broken_exif_block_is_read(tmp_path: Path, block: bytes) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(GREYS), exif=block)
    assert load_image(path).shape == (2, 3, 3)


def test_the_first_frame_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 3), (0, 0, 255)), Image.new("RGB", (4, 3), (255, 0, 0))
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.tif", {})):
        path = save(tmp_path / name, first, save_all=True, append_images=[second], **options)
        with Image.open(path) as check:
            assert check.n_frames == 2  # type: ignore[attr-defined]
        assert load_image(path)[0, 0].tolist() == [0, 0, 255], name


def test_of_a_phones_jpeg_with_a_second_image_the_first_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), (0, 0, 255)), Image.new("RGB", (8, 8), (255, 0, 0))
    path = save(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert load_image(path).shape == (16, 16, 3)
    assert read_size(path) == (16, 16)


# -- masks ---------------------------------------------------------------------------------------------------------


def test_which_mask_values_are_defective(tmp_path: Path) -> None:
    def mask(values: list[int]) -> list[bool]:
        path = write_image(tmp_path / "m.png", [values])
        result = load_mask(path, (1, len(values)))
        assert result.dtype == np.bool_
        return [bool(v) for v in result[0]]

    assert mask([0, 255, 255]) == [False, True, True]
    assert mask([0, 1, 3, 127]) == [False, True, True, True]  # defects numbered 1, 2, 3: everything but 0
    assert mask([3, 100, 127, 128, 252]) == [False, False, False, True, True]  # soft edges are rounded
    assert mask([0, 0]) == [False, False]


def test_masks_of_every_mode(tmp_path: Path) -> None:
    expected = [[False, True, True]]
    files = {
        "one-bit.png": Image.fromarray(np.array([[False, True, True]])),
        "colour.png": Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0], [0, 200, 0]]], np.uint8)),
        "alpha.png": Image.fromarray(np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 255, 0, 255]]], np.uint8)),
    }
    indexed = Image.fromarray(np.array([[2, 0, 1]], np.uint8)).convert("P")
    indexed.putpalette([128, 0, 0, 0, 128, 0, 0, 0, 0])  # the background is number 2: colours count, not numbers
    files["palette.png"] = indexed
    for name, image in files.items():
        np.testing.assert_array_equal(load_mask(save(tmp_path / name, image), (1, 3)), expected, err_msg=name)
    raw = {
        "deep.png": png([[0, 65535, 40000]], 0, 16),
        "numbered.png": png([[0, 1, 255]], 0, 16),
        "float.tif": tiff(np.array([0, 1, 0.6], "<f4").tobytes(), (3, 1), [32], 1, sample_format=3),
        "whole.tif": tiff(np.array([0, 1, 2], "<i4").tobytes(), (3, 1), [32], 1, sample_format=2),
    }
    for name, data in raw.items():
        np.testing.assert_array_equal(load_mask(put(tmp_path / name, data), (1, 3)), expected, err_msg=name)


def test_a_jpeg_mask_is_cut_at_half(tmp_path: Path) -> None:
    values = np.zeros((40, 40), np.uint8)
    values[10:25, 8:30] = 255
    path = save(tmp_path / "m.jpg", Image.fromarray(values), quality=50)
    assert 0 < load_image(path)[..., 0][values == 0].max() < 128  # it rings
    np.testing.assert_array_equal(load_mask(path, (40, 40)), values > 0)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "m.png", np.zeros((4, 6)))
    with pytest.raises(ImageError, match=r"6 × 4 pixels, image of 4 × 6"):
        load_mask(path, (6, 4))


# -- folders -------------------------------------------------------------------------------------------------------


def test_find_images_sorts_naturally_and_skips_hidden(tmp_path: Path) -> None:
    names = ["b2.png", "b10.png", "b1.PNG", "B3.jpg", "a.tiff", ".hidden.png", "notes.txt", "c.webp", "d", "b02.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    for name in ("folder.png", "sub", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.gif").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")  # listed: reading it says what is wrong
    direct = ["a.tiff", "b1.PNG", "b02.png", "b2.png", "B3.jpg", "b10.png", "c.webp", "link.png"]
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == direct
    below = [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path, recursive=True)]
    assert below == [*direct[:7], "folder.png/x.gif", "link.png", "sub/x.gif"]
    with pytest.raises(ImageError, match="cannot be listed"):
        find_images(tmp_path / "none")


def test_a_link_cycle_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert 1 <= len(find_images(tmp_path, recursive=True)) <= 10


@pytest.mark.real
def test_masks_of_the_magnetic_tiles_are_cut_at_half() -> None:
    folder = shared_folder("data") / "magnetic-tile" / "MT_Blowhole" / "Imgs"
    path = folder / "exp1_num_108719.png"
    width, height = read_size(path.with_suffix(".jpg"))
    with Image.open(path) as image:
        values = np.asarray(image)
    assert len(np.unique(values)) > 2  # softened by JPEG once
    np.testing.assert_array_equal(load_mask(path, (height, width)), values >= 128)
