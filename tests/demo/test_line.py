"""The demo line: deterministic, varied, with exact masks, complete, and with helpful refusals."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from time import monotonic

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from blemish.demo.line import COMBINED, LEAST, PRODUCTS, DemoError, draw, write_line

EVERY_DEFECT = [(product, defect) for product, made in PRODUCTS.items() for defect in made.defects]


@lru_cache(maxsize=64)
def _good(product: str, number: int, size: int) -> npt.NDArray[np.uint8]:
    return draw(product, number, size=size)[0]


def _difference(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.int_]:
    return np.asarray(np.abs(a.astype(int) - b.astype(int)).max(axis=2))


def test_three_products_of_at_least_four_defect_types() -> None:
    assert len(PRODUCTS) >= 3
    for made in PRODUCTS.values():
        assert len(made.defects) == len(set(made.defects)) >= 4
        assert COMBINED not in made.defects


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_seed_determines_an_image_whatever_else_is_drawn(product: str) -> None:
    first, mask = draw(product, 3, size=160)
    draw(product, 4, size=160, defects=PRODUCTS[product].defects[:1])
    again, _ = draw(product, 3, size=160)
    assert first.shape == (160, 160, 3)
    assert first.dtype == np.uint8
    assert mask.shape == (160, 160)
    assert not mask.any()
    assert np.array_equal(first, again)


@pytest.mark.parametrize("product", PRODUCTS)
def test_seed_number_and_place_each_give_another_good_part(product: str) -> None:
    """Not only by noise: averaged over 4 x 4 pixels, which reduces noise of 1.4 levels to 0.35, parts still differ."""
    drawn = [
        draw(product, 0, size=192)[0],
        draw(product, 1, size=192)[0],
        draw(product, 0, size=192, seed=1)[0],
        draw(product, 0, size=192, place="test/good")[0],
    ]
    smooth = [image.reshape(48, 4, 48, 4, 3).mean(axis=(1, 3)) for image in drawn]
    for first, second in combinations(smooth, 2):
        assert np.abs(first - second).mean() > 1.0


@pytest.mark.parametrize(("product", "defect"), EVERY_DEFECT)
def test_mask_is_what_the_defect_changed(product: str, defect: str) -> None:
    """The same part, camera and noise with and without the defect: the mask is where they differ, and not much more."""
    for number in (0, 3, 5):
        good = _good(product, number, 192)
        bad, mask = draw(product, number, size=192, defects=[defect])
        difference = _difference(good, bad)
        assert LEAST <= mask.mean() <= 0.12, (number, mask.mean())
        assert difference[mask].max() >= 12, (number, "invisible")
        # Rounding to whole levels changes a difference by up to one, so 6 levels are surely above the mask's 4.
        assert not (difference[~mask] >= 6).any(), number
        # Every pixel of the mask is at most 2 pixels from one that changed, and most of them changed.
        assert not (mask & ~binary_dilation(difference > 3, np.ones((5, 5)))).any(), number
        assert (difference[mask] > 2).mean() > 0.6, (number, (difference[mask] > 2).mean())


@pytest.mark.parametrize(("product", "defect"), EVERY_DEFECT)
def test_no_defect_is_ever_hidden(product: str, defect: str) -> None:
    for number in range(10, 16):
        _, mask = draw(product, number, size=128, defects=[defect])
        assert mask.mean() >= LEAST, number


@pytest.mark.parametrize("product", PRODUCTS)
def test_two_defects_on_one_part_keep_their_places(product: str) -> None:
    one, two = PRODUCTS[product].defects[:2]
    _, first = draw(product, 0, size=160, defects=[one])
    _, both = draw(product, 0, size=160, defects=[one, two])
    assert both.sum() > first.sum()
    assert (both & first).sum() > 0.9 * first.sum()


@pytest.mark.parametrize("product", PRODUCTS)
def test_severities_range_from_obvious_to_subtle(product: str) -> None:
    for defect in PRODUCTS[product].defects:
        strength = []
        for number in (0, 1, 2, 3):
            good = _good(product, number, 192)
            bad, _ = draw(product, number, size=192, defects=[defect])
            strength.append(float(_difference(good, bad).clip(6).sum() - 6 * 192 * 192))
        assert max(strength) > 1.5 * min(strength), (defect, strength)


def test_the_layout_is_complete_and_masks_have_the_size_of_their_images(tmp_path: Path) -> None:
    folders = write_line(tmp_path, train=2, good=1, defective=2, size=96, workers=2)
    assert folders == [tmp_path / name for name in PRODUCTS]
    for folder, made in zip(folders, PRODUCTS.values(), strict=True):
        kinds = {*made.defects, COMBINED}
        assert {p.name for p in folder.iterdir()} == {"train", "test", "ground_truth", "demo.json"}
        assert [p.name for p in sorted((folder / "train" / "good").iterdir())] == ["000.png", "001.png"]
        assert {p.name for p in (folder / "test").iterdir()} == {*kinds, "good"}
        assert {p.name for p in (folder / "ground_truth").iterdir()} == kinds
        for kind in kinds:
            assert [p.name for p in sorted((folder / "test" / kind).iterdir())] == ["000.png", "001.png"]
            for n in range(2):
                with Image.open(folder / "ground_truth" / kind / f"{n:03d}_mask.png") as mask:
                    assert (mask.mode, mask.size) == ("L", (96, 96))
                    assert set(np.unique(np.asarray(mask))) == {0, 255}
                with Image.open(folder / "test" / kind / f"{n:03d}.png") as image:
                    assert (image.mode, image.size) == ("RGB", (96, 96))


def test_written_images_are_those_that_draw_returns(tmp_path: Path) -> None:
    write_line(tmp_path, products=["cloth"], train=3, good=1, defective=1, size=96, workers=1, seed=5)
    for n in range(3):
        with Image.open(tmp_path / "cloth" / "train" / "good" / f"{n:03d}.png") as image:
            assert np.array_equal(np.asarray(image), draw("cloth", n, seed=5, size=96, place="train/good")[0])
    with Image.open(tmp_path / "cloth" / "ground_truth" / "stain" / "000_mask.png") as mask:
        drawn = draw("cloth", 0, seed=5, size=96, place="test/stain", defects=["stain"])[1]
        assert np.array_equal(np.asarray(mask) > 0, drawn)


def test_several_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        write_line(out, products=["flange"], train=5, good=1, defective=1, size=64, workers=workers)
    alone = sorted((tmp_path / "1").rglob("*.png"))
    assert len(alone) == 6 + 2 * 7
    for path in alone:
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


def test_an_error_of_a_helper_process_is_raised(tmp_path: Path) -> None:
    write_line(tmp_path, products=["cloth"], train=0, good=1, defective=0, size=64)
    (tmp_path / "cloth" / "train").write_text("in the way")
    with pytest.raises(DemoError, match=r"Cannot write the demo line to .*Choose a folder you may write to\.$"):
        write_line(tmp_path, products=["cloth"], train=9, good=1, defective=0, size=64, workers=2)


def test_what_is_half_drawn_is_removed_when_it_ends_early(tmp_path: Path) -> None:
    def stopping(items, what="", total=0):  # type: ignore[no-untyped-def]
        yield next(items)
        until = monotonic() + 10
        while not list(tmp_path.rglob(".*.partial")) and monotonic() < until:
            pass
        items.close()  # as a signal does that arrives while it waits for a helper

    write_line(tmp_path, products=["flange"], train=9, good=0, defective=0, size=1024, workers=4, progress=stopping)
    assert list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob(".*.partial"))


def test_a_rerun_draws_only_what_is_missing(tmp_path: Path) -> None:
    def digests() -> dict[str, tuple[str, int]]:
        return {
            p.relative_to(tmp_path).as_posix(): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
            for p in tmp_path.rglob("*.png")
        }

    write_line(tmp_path, products=["cloth"], train=2, good=1, defective=1, size=96, workers=1)
    before = digests()
    lost = tmp_path / "cloth" / "ground_truth" / "hole" / "000_mask.png"
    lost.unlink()
    write_line(tmp_path, products=["cloth"], train=3, good=1, defective=1, size=96, workers=1)
    after = digests()
    assert set(after) == {*before, "cloth/train/good/002.png"}
    redrawn = {"cloth/ground_truth/hole/000_mask.png", "cloth/test/hole/000.png"}
    for name, (digest, time) in before.items():
        assert after[name][0] == digest
        assert (after[name][1] == time) == (name not in redrawn), name
    assert not list(tmp_path.rglob("*.partial"))


def test_other_settings_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    write_line(tmp_path, products=["cloth"], train=1, good=0, defective=0, size=96)
    with pytest.raises(DemoError, match=r"cloth holds a demo line drawn with .*'seed': 0.* choose another folder"):
        write_line(tmp_path, products=["cloth"], train=1, good=0, defective=0, size=96, seed=1)
    foreign = tmp_path / "board"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DemoError, match="already holds other files"):
        write_line(tmp_path, products=["board"], train=1, good=0, defective=0, size=96)
    assert json.loads((tmp_path / "cloth" / "demo.json").read_text())["size"] == 96


def test_invalid_arguments_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="no demo product 'shoe': choose from flange, cloth, board"):
        draw("shoe", 0)
    with pytest.raises(DemoError, match="'cloth' has no defect 'rust': choose from hole, "):
        draw("cloth", 0, defects=["rust"])
    with pytest.raises(DemoError, match="at least 64"):
        draw("cloth", 0, size=8)
    with pytest.raises(DemoError, match="no demo product"):
        write_line(tmp_path, products=["shoe"])
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DemoError, match=r"Cannot write the demo line to .*file.*Choose a folder you may write to"):
        write_line(blocked, train=1, good=0, defective=0, size=96)


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def watching(items, what="", total=0):  # type: ignore[no-untyped-def]
        count = 0
        for item in items:
            count += 1
            yield item
        seen.append((what, total, count))

    write_line(tmp_path, products=["cloth"], train=2, good=1, defective=0, size=96, progress=watching)
    assert seen == [("drawing", 3, 3)]
