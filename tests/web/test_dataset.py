"""Labelled images as a folder: read back by the layouts, masks to the pixel, splits that stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pixels

from blemish.data import layouts
from blemish.images import load_image, load_mask, read_size
from blemish.web.config import Folder
from blemish.web.dataset import item_of, mask_of, split_of, write_folder
from blemish.web.store import Store, sha256
from blemish.web.tables import Image
from tests.support import write_image


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Folder(tmp_path / "page"))


def stored(store: Store, number: int, **columns: object) -> Image:
    """A new image of 20 x 30 pixels in the store, and its row."""
    file = write_image(store.folder.path / "made.png", np.full((20, 30), number))
    digest = sha256(file.read_bytes())
    store.put(file.read_bytes(), digest, ".png")
    given = {"label": "good", "name": f"line/{number}.png", "split": "train", "shapes": [], "defect": "", "mask": ""}
    return Image(
        **{"sha256": digest, "product": "p", "ending": ".png", "width": 30, "height": 20, "item": ""} | given | columns
    )


def test_the_split_is_of_the_item_and_one_of_five_is_held_out() -> None:
    digests = [sha256(str(number).encode()) for number in range(2000)]
    held_out = [split_of(digest) for digest in digests].count("test")
    assert abs(held_out - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5  # four standard deviations
    assert {split_of(digest, "part 7") for digest in digests} == {split_of("", "part 7")}
    assert split_of(digests[0]) == split_of(digests[0])


def test_the_same_pixels_in_two_formats_are_one_item(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = []
    for number in range(3):
        pixels = rng.integers(0, 256, (16, 24, 3), np.uint8)
        files = [tmp_path / f"{number}{ending}" for ending in (".png", ".bmp", ".tiff")]
        for file in files:
            Pixels.fromarray(pixels).save(file)
        assert len({sha256(file.read_bytes()) for file in files}) == 3
        (item,) = {item_of(load_image(file)) for file in files}
        items.append(item)
    assert len(set(items)) == 3
    flat = np.zeros((2, 6, 3), np.uint8)
    assert item_of(flat) != item_of(flat.reshape(6, 2, 3))  # the shape counts


def test_a_box_is_half_open_and_a_polygon_holds_the_centres_inside() -> None:
    box = {"points": [[3, 4], [10, 4], [10, 9], [3, 9]]}
    mask = mask_of([box], (20, 30))
    expected = np.zeros((20, 30), bool)
    expected[4:9, 3:10] = True
    np.testing.assert_array_equal(mask, expected)
    # By hand, with cross products: a triangle holds the centres to the left of each of its sides.
    corners = [(2.0, 1.0), (25.5, 6.0), (9.0, 18.7)]
    y, x = np.mgrid[:20, :30] + 0.5
    inside = np.ones((20, 30), bool)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    np.testing.assert_array_equal(mask_of([{"points": [list(c) for c in corners]}], (20, 30)), inside)
    np.testing.assert_array_equal(mask_of([box, box], (20, 30)), expected)
    between = mask_of([{"points": [[5.6, 5.6], [5.9, 5.6], [5.9, 5.9]]}], (20, 30))
    assert between.sum() == 1
    assert between[5, 5]
    outside = mask_of([{"points": [[-5, -5], [40, -5], [40, 2], [-5, 2]]}], (20, 30))
    assert outside[:2].all()
    assert outside.sum() == 60


def test_the_folder_is_read_back_as_it_was_labelled(store: Store, tmp_path: Path) -> None:
    drawn = np.zeros((20, 30), bool)
    drawn[5:9, 7:20] = True
    mask = write_image(tmp_path / "mask.png", drawn.astype(np.uint8) * 255).read_bytes()
    store.put(mask, sha256(mask), ".png")
    box = {"points": [[3, 4], [10, 4], [10, 9], [3, 9]]}
    images = [
        *(stored(store, n) for n in range(4)),
        stored(store, 10, split="test"),
        stored(store, 20, label="anomaly", defect="torn label/ü", shapes=[box]),
        stored(store, 21, label="anomaly", defect="scratch", mask=sha256(mask), split="test"),
        stored(store, 22, label="anomaly", defect="", split="test"),
        stored(store, 23, label="anomaly", defect="OK", split="test", mask=sha256(mask)),
        stored(store, 24, label="anomaly", defect="../../etc", name="../mask.png"),
        stored(store, 30, label=None),
        stored(store, 31, ending=""),
    ]
    written = write_folder(store, images, tmp_path / "out")
    read = layouts.read(tmp_path / "out")
    assert read.layout == "mvtec"
    assert not read.left_out
    assert {sample.name for sample in read.samples} == set(written.images)
    assert len(written.images) == 10
    defects = {"torn label/ü": "defect-", "scratch": "scratch", "": "defect", "OK": "defect-", "../../etc": "etc"}
    for sample in read.samples:
        image = written.images[sample.name]
        assert (sample.label, sample.split) == (image.label, image.split)
        assert sample.path.read_bytes() == store.image(image.sha256, ".png").read_bytes()
        assert sample.path.resolve().is_relative_to(tmp_path / "out")
        assert (sample.mask is not None) == bool(image.mask or image.shapes)
        if sample.label == "anomaly":
            assert sample.defect.startswith(defects[image.defect])
        if sample.mask:
            expected = drawn if image.mask else mask_of([box], (20, 30))
            np.testing.assert_array_equal(load_mask(sample.mask, (20, 30)), expected)
    assert len({sample.defect for sample in read.samples if sample.label == "anomaly"}) == 5


def test_images_of_one_item_are_read_as_one(store: Store, tmp_path: Path) -> None:
    images = [stored(store, n, item=f"test/{n // 2}.png", name="synophoto_a.png") for n in range(4)]
    images.append(stored(store, 9, item="alone"))
    read = layouts.read(write_folder(store, images, tmp_path / "out", link=True).folder, "mvtec")
    assert len(read.samples) == 5
    assert sorted(map([sample.item for sample in read.samples].count, {sample.item for sample in read.samples})) == [
        1,
        2,
        2,
    ]


def test_a_file_that_is_gone_is_told_and_links_are_the_store_s(store: Store, tmp_path: Path) -> None:
    images = [stored(store, n) for n in range(2)]
    store.image(images[1].sha256, ".png").unlink()
    written = write_folder(store, images, tmp_path / "out", link=True)
    assert written.missing == (images[1],)
    (name,) = written.images
    assert (tmp_path / "out" / name).samefile(store.image(images[0].sha256, ".png"))
    copied = write_folder(store, images[:1], tmp_path / "copy")
    assert not (copied.folder / name).samefile(store.image(images[0].sha256, ".png"))
    assert read_size(copied.folder / name) == (30, 20)


def test_a_folder_is_read_where_nothing_is_held_out(store: Store, tmp_path: Path) -> None:
    images = [*(stored(store, n) for n in range(3)), stored(store, 9, label="anomaly", defect="scratch")]
    read = layouts.read(write_folder(store, images, tmp_path / "out").folder)
    assert (read.layout, {sample.split for sample in read.samples}) == ("mvtec", {"train"})
