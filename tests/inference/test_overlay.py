from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from blemish.inference import overlay as module
from blemish.inference.overlay import colours, fit, heat_layer, overlay, png, save, side_by_side
from blemish.types import BlemishError, Region

GREY = np.full((500, 800, 3), 128, np.uint8)


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image)


def lightness(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """CIE L* of sRGB (..., 3)."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_the_colour_scale_grows_lighter_evenly_between_its_ends() -> None:
    scale = colours()
    assert scale.shape == (256, 3)
    assert tuple(scale[0]) == module.ANCHORS[0]
    assert tuple(scale[-1]) == module.ANCHORS[-1]
    coarse = lightness(scale[::15])
    steps = np.diff(coarse)
    assert coarse[-1] - coarse[0] > 60
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()


def test_heat_is_transparent_up_to_low_and_full_from_high_on() -> None:
    heat = np.array([[0, 1], [2, 9]], np.float32)
    layer = pixels(heat_layer(heat, (2, 2), low=1, high=2))
    assert layer.shape == (2, 2, 4)
    assert layer[0, :, 3].tolist() == [0, 0]
    assert layer[1, 0].tolist() == layer[1, 1].tolist() == [*colours()[255], round(255 * module.OPACITY)]


def test_heat_is_on_the_common_scale_and_not_on_the_images_own() -> None:
    weak, strong = np.array([[0, 1]], np.float32), np.array([[0, 10]], np.float32)
    drawn = [pixels(heat_layer(m, (2, 1), low=0, high=10)) for m in (weak, strong)]
    assert drawn[0][0, 1].tolist()[:3] == colours()[round(25.5)].tolist()
    assert drawn[1][0, 1].tolist()[:3] == colours()[255].tolist()


def test_heat_is_enlarged_bilinearly() -> None:
    layer = pixels(heat_layer(np.array([[0, 1]], np.float32), (4, 1), low=-1, high=1))
    # pixel centres are at 0, 1/4, 3/4 and 1 of the way: levels 0.5, 0.625, 0.875, 1
    assert layer[0, :, :3].tolist() == [colours()[i].tolist() for i in (128, 159, 223, 255)]


def test_a_good_part_is_drawn_without_heat() -> None:
    cold = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    np.testing.assert_array_equal(pixels(overlay(GREY, cold, [], low=1, high=2)), GREY)
    np.testing.assert_array_equal(pixels(overlay(GREY, None, [], low=1, high=2)), GREY)


def test_boxes_are_drawn_around_their_region_and_not_over_it() -> None:
    region = Region((200, 150, 300, 250), 10.0, 4.25)
    for shade in (0, 128, 255):
        image = np.full((500, 800, 3), shade, np.uint8)
        drawn = pixels(overlay(image, None, [region], low=0, high=1))
        assert (drawn[150:250, 200:300] == shade).all()
        row = drawn[200].astype(int)
        left, right = row[190:200], row[300:310]
        for edge in (left, right):
            assert (edge == module.LINE).all(1).any()
            assert (edge == module.OUTLINE).all(1).any()
        outside = np.ones((500, 800), bool)
        outside[120:260, 190:310] = False
        assert (drawn[outside] == shade).all()


def test_heat_fades_in_and_is_soon_as_opaque_as_it_gets() -> None:
    levels = np.array([[0, module.FULL_AT / 2, module.FULL_AT, 0.7, 1]], np.float32)
    alpha = pixels(heat_layer(levels, (5, 1), low=0, high=1))[0, :, 3]
    full = round(255 * module.OPACITY)
    # Heat has 256 steps, so opacity may be one off where it still rises.
    assert np.abs(alpha.astype(int) - [0, full // 2, full, full, full]).max() <= 1
    assert alpha[0] == 0
    assert alpha[3] == alpha[4] == full


def test_each_box_has_its_own_label(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr(module, "_draw_label", lambda *arguments: drawn.append(arguments[1:3]))
    left, right = Region((10, 10, 20, 20), 1.0, 9.0), Region((600, 300, 700, 400), 1.0, 2.0)
    overlay(GREY, None, [left, right], low=0, high=1)
    assert drawn == [("9.00", (6, 6, 23, 23)), ("2.00", (596, 296, 703, 403))]


def test_labels_are_inside_the_image_and_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    plates: list[list[tuple[float, float, float, float]]] = []
    original = module._draw_label

    def spy(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        plates.append(arguments[-1])  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_draw_label", spy)
    boxes = [(0, 0, 30, 30), (770, 0, 800, 30), (0, 470, 30, 500), (770, 470, 800, 500), (0, 0, 800, 500)]
    crowd = [(300 + i, 200 + i, 330 + i, 230 + i) for i in range(12)]
    overlay(GREY, None, [Region(b, 1.0, 12.3456) for b in [*boxes, *crowd]], low=0, high=1)
    placed = plates[-1]
    assert len(placed) >= 8
    for i, (left, top, right, bottom) in enumerate(placed):
        assert left >= 0
        assert top >= 0
        assert right <= 800
        assert bottom <= 500
        for other in placed[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_boxes_are_scaled_with_the_image() -> None:
    region = Region((1000, 500, 2000, 1000), 1.0, 1.0)
    drawn = overlay(np.zeros((2000, 4000, 3), np.uint8), None, [region], low=0, high=1)
    assert drawn.size == (1600, 800)
    line = np.argwhere((pixels(drawn) == module.LINE).all(-1))
    assert line[:, 1].min() in range(390, 400)
    assert line[:, 1].max() in range(800, 810)
    tiny = overlay(np.zeros((28, 28, 3), np.uint8), None, [Region((14, 0, 28, 14), 1.0, 1.0)], low=0, high=1)
    assert tiny.size == (28 * 15, 28 * 15)
    line = np.argwhere((pixels(tiny) == module.LINE).all(-1))
    assert line[:, 1].min() in range(200, 210)


def test_enlarged_images_keep_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)
    large = pixels(fit(Image.fromarray(image)))
    np.testing.assert_array_equal(large, image.repeat(20, 0).repeat(20, 1))
    assert fit(Image.new("RGB", (400, 20))).size == (400, 20)
    assert fit(Image.new("RGB", (5000, 1))).size == (1600, 1)
    assert fit(Image.new("RGB", (300, 100)), max_side=200).size == (200, 67)


def test_caption_and_legend_are_below_the_image_in_full() -> None:
    words = "anomaly, score 4.1 above the threshold of 1.8. " * 6
    plain, drawn = (overlay(GREY, None, [], low=0, high=1, caption=c) for c in ("", words))
    np.testing.assert_array_equal(pixels(drawn)[:500], pixels(plain))
    one_line = overlay(GREY, None, [], low=0, high=1, caption="anomaly")
    assert drawn.height > one_line.height > 500
    strip = pixels(drawn)[500:]
    ink = (strip.max(-1) < 128).any(1)
    lines = np.count_nonzero(np.diff(ink.astype(int)) == 1)
    assert lines >= 4  # wrapped, not cut
    assert (strip[:, -8:] == module.PAPER).all()
    legend = pixels(overlay(GREY, None, [], low=0, high=1, legend=True))[500:]
    bar = legend[len(legend) // 2]
    last = np.flatnonzero((bar != module.PAPER).any(-1) & (bar.min(-1) < 200) & (bar.max(-1) > 200))[-1]
    mixed = np.array(colours()[255]) * module.OPACITY + np.array(module.QUIET) * (1 - module.OPACITY)
    assert bar[last] == pytest.approx(mixed, abs=4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(4, "4.00"), (12.3456, "12.3"), (9.999, "10.0"), (125.4, "125"), (0.03117, "0.0312"), (-2.5, "-2.50")],
        *[(12345, "12345"), (123456, "1.23e+05"), (0.00012345, "0.000123"), (0, "0")],
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert module._number(value) == text


def test_captions_are_drawn_in_characters_that_the_font_has() -> None:
    assert module._legible("Größe ≥ 3 × – señal 磁") == "Grosse >= 3 x - senal ?"
    assert module._legible("kos01_Part5.jpg: 0.25 [a]\nb") == "kos01_Part5.jpg: 0.25 [a]\nb"


def test_no_line_of_a_caption_is_cut() -> None:
    font = module._font(14)
    text = "a/very/long/path/without/any/space/in/it/at/all.jpg is an anomaly for the detector"
    lines = module._wrapped(text, font, 120)
    assert max(font.getlength(line) for line in lines) <= 120
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[-1].endswith("detector")
    assert module._wrapped("", font, 120) == [""]


def test_images_side_by_side_have_the_same_height() -> None:
    row = side_by_side([GREY, Image.new("L", (250, 250))], ["left", "right"])
    assert row.mode == "RGB"
    assert row.size[0] == 800 + 500 + max(4, 500 // 60)
    assert (pixels(row)[:500, -500:] == 0).all()
    assert side_by_side([GREY]).size == (800, 500)
    with pytest.raises(ValueError, match="caption"):
        side_by_side([GREY], ["a", "b"])


def test_png_keeps_the_heats_transparency() -> None:
    heat = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    read = Image.open(io.BytesIO(png(heat_layer(heat, (30, 20), low=0, high=1))))
    assert (read.format, read.mode, read.size) == ("PNG", "RGBA", (30, 20))
    np.testing.assert_array_equal(pixels(read), pixels(heat_layer(heat, (30, 20), low=0, high=1)))


def test_save_writes_whole_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(GREY)
    save(image, tmp_path / "a.jpg")
    save(image.convert("RGBA"), tmp_path / "b.JPEG")
    save(image, tmp_path / "c.png")
    assert [Image.open(io.BytesIO(p.read_bytes())).format for p in sorted(tmp_path.iterdir())] == [
        "JPEG",
        "JPEG",
        "PNG",
    ]
    before = (tmp_path / "a.jpg").read_bytes()

    def break_off(self: Image.Image, path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(BlemishError, match=r"a\.jpg.*No space left"):
        save(image, tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_save_refuses_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=r"end it in \.jpg or \.png"):
        save(Image.new("RGB", (2, 2)), tmp_path / "a.txt")
    save(Image.new("RGB", (2, 2)), tmp_path / "new" / "a.png")
    with pytest.raises(BlemishError, match=r"b\.png.*(Not a directory|File exists)"):
        save(Image.new("RGB", (2, 2)), tmp_path / "new" / "a.png" / "b.png")


def test_wrong_arguments_are_refused() -> None:
    heat = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="low < high"):
        heat_layer(heat, (2, 2), low=1, high=1)
    with pytest.raises(ValueError, match="finite"):
        heat_layer(heat * np.float32("nan"), (2, 2), low=0, high=1)
    with pytest.raises(ValueError, match="uint8"):
        overlay(GREY[..., 0], heat, [], low=0, high=1)
