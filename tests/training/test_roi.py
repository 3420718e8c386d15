"""Region-of-interest files: what is read, and what is refused, as far as possible before any image is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from blemish import BlemishError
from blemish.training.roi import check_file, check_seen, read_roi
from tests.support import refused, write_image

TRIANGLE = '{"polygons": [[[2, 2], [20, 2], [2, 15]]]}'


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_a_region_is_read_from_polygons_and_from_a_mask(tmp_path: Path, suffix: str) -> None:
    expected = np.zeros((20, 30), bool)
    expected[2:11, 4:25] = True
    expected[5:8, 10:16] = False
    file = tmp_path / f"roi.{suffix}"
    if suffix == "png":
        write_image(file, expected.astype(np.uint8) * 255)
    else:
        box = [[4, 2], [24, 2], [24, 10], [4, 10]]
        file.write_text(json.dumps({"polygons": [box], "holes": [[[10, 5], [15, 5], [15, 7], [10, 7]]]}), "utf-8")
    np.testing.assert_array_equal(read_roi(file, (30, 20)), expected)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", r'must be \{"polygons"'),
        ('{"polygons": []}', r'must be \{"polygons"'),
        ('{"polygons": [[[0, 0], [5, 5], [0, 5]]], "circles": []}', r'must be \{"polygons"'),
        ('{"polygons": [[[0, 0], [5, 5]]]}', "at least three points"),
        ('{"polygons": [["a", "b", "c"]]}', "at least three points"),
        ('{"polygons": 7}', "at least three points"),
        ('{"polygons": {"a": 1}}', "at least three points"),
        ('{"polygons": [[["2", "2"], ["9", "2"], ["2", "9"]]]}', "at least three points"),
        ('{"polygons": [[[true, 2], [9, 2], [2, 9]]]}', "at least three points"),
        ('{"polygons": [[[0, 0, 1], [9, 2, 1], [2, 9, 1]]]}', "at least three points"),
        ('{"polygons": [[[0, 0], [Infinity, 5], [0, 5]]]}', "at least three points"),
        ('{"polygons": [[[0, 0], [1e300, 5], [0, 5]]]}', "at least three points"),
        ('{"polygons": [[[0, 0], [1' + "0" * 400 + ", 5], [0, 5]]]}", "at least three points"),
        ('{"polygons": [[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]]}', "shares of the image"),
        ('{"polygons": [[[0, 0], [1, 0], [1, 1]]]}', "shares of the image"),
        (TRIANGLE[:-1] + ', "holes": [[[0.2, 0.2], [0.4, 0.2], [0.4, 0.4]]]}', "shares of the image"),
        ('{"shapes": [], "imagePath": "a.png"}', "is a file of LabelMe; its polygons must be"),
        ('{"images": [], "annotations": [], "categories": []}', "is a file of COCO"),
        ('[{"annotations": []}]', "Label Studio"),
        ('{"type": "FeatureCollection", "features": []}', "GeoJSON"),
        ('{"polygons": [[[2, 2], [20, 2], [2, 15]], [[90, 2], [99, 2], [99, 15]]]}', "polygon 2 is outside"),
        ('{"polygons": [[[0, 0], [NaN, 5], [0, 5]]]}', "at least three points"),
        ('{"polygons": [[[40, 40], [50, 50], [40, 50]]]}', "nothing of the images is inside"),
        ('{"polygons": [[[-1, -1], [31, -1], [31, 21], [-1, 21]]]}', "the whole image is inside"),
    ],
)
def test_invalid_polygons_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "roi.json"
    file.write_text(content, "utf-8")
    with pytest.raises(BlemishError, match=sentence) as refusal:
        read_roi(file, (30, 20))
    assert str(refusal.value).startswith(str(file))


def test_invalid_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=r"has 8 x 8 pixels, the images 30 x 20"):
        read_roi(write_image(tmp_path / "a.png", np.full((8, 8), 255)), (30, 20))
    with pytest.raises(BlemishError, match="nothing of the images is inside"):
        read_roi(write_image(tmp_path / "b.png", np.zeros((20, 30))), (30, 20))
    with pytest.raises(BlemishError, match="the whole image is inside"):
        read_roi(write_image(tmp_path / "c.png", np.full((20, 30), 255)), (30, 20))
    (tmp_path / "d.png").write_bytes(b"broken")
    with pytest.raises(BlemishError, match=r"d\.png is not an image"):
        read_roi(tmp_path / "d.png", (30, 20))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_from_another_editor_is_read(tmp_path: Path, encoding: str) -> None:
    plain, other = tmp_path / "plain.json", tmp_path / "other.JSON"
    plain.write_text(TRIANGLE, "utf-8")
    other.write_text(TRIANGLE, encoding)
    np.testing.assert_array_equal(read_roi(other, (30, 20)), read_roi(plain, (30, 20)))


def test_a_file_too_large_for_polygons_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "roi.json").open("wb") as file:
        file.truncate(20_000_000_000)  # sparse
    with pytest.raises(BlemishError, match="is it the right file"):
        check_file(tmp_path / "roi.json")


def test_a_region_of_which_the_detector_sees_nothing_is_refused(tmp_path: Path) -> None:
    roi = np.zeros((200, 300), bool)
    roi[10:20, 10:20] = True  # 100 pixels, of which 25 are left at half the size
    check_seen(tmp_path / "roi.png", roi, (1.0, 1.0))
    with pytest.raises(BlemishError, match=r"100 pixels of the images are inside, 25 of those that the detector sees"):
        check_seen(tmp_path / "roi.png", roi, (0.5, 0.5))
    roi[:] = False
    roi[3, 3] = True
    with pytest.raises(BlemishError, match="1 pixel of the images is inside"):
        check_seen(tmp_path / "roi.png", roi, (1.0, 1.0))


def test_it_is_refused_before_the_work(product: Path, tmp_path: Path) -> None:
    """What the file alone shows, before any image is read: even where there is none."""
    shares, one = tmp_path / "shares.json", tmp_path / "one.json"
    shares.write_text('{"polygons": [[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]]}', "utf-8")
    (tmp_path / "mask.png").write_bytes(b"no image")
    (tmp_path / "nothing").mkdir()
    for file, sentence in ((shares, "shares of the image"), (tmp_path / "mask.png", "is not an image")):
        said = refused("train", tmp_path / "nothing", "-o", tmp_path / "run", "--roi", file)
        assert sentence in said
    one.write_text('{"polygons": [[[5, 5], [5.2, 5], [5, 5.2]]]}', "utf-8")
    assert "1 pixel of the images is inside" in refused("train", product, "-o", tmp_path / "run", "--roi", one)
    assert not (tmp_path / "run").exists()
