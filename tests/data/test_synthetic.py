"""A data set with synthetic defects: which images go where, none twice, and nothing is written by half."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from blemish.data.audit import audit
from blemish.data.corrupt import KINDS
from blemish.data.layouts import read
from blemish.data.synthetic import write_corrupted
from blemish.images import load_image, load_mask
from blemish.types import BlemishError, Sample
from tests.conftest import tile
from tests.support import grey, shared_folder, write_image


def noise(seed: int, height: int = 32, width: int = 40) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def digits(folder: Path, counts: tuple[int, int] = (6, 5)) -> Path:
    """idx files of three classes, with `counts` different images of each in the training and the test split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", counts[0], 1), ("t10k", counts[1], 2)):
        labels = np.tile(np.array([0, 3, 7], np.uint8), count)
        images = np.random.default_rng(seed).integers(256, size=(len(labels), 12, 10), dtype=np.uint8)
        header = b"\0\0\x08\x03" + struct.pack(">III", *images.shape)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + struct.pack(">I", len(labels)) + labels.tobytes()
        )
    return folder


def by_place(out: Path) -> dict[str, list[Sample]]:
    places: dict[str, list[Sample]] = {}
    for sample in read(out).samples:
        places.setdefault(sample.name.rpartition("/")[0], []).append(sample)
    return places


def check(out: Path, source: Path, card: dict[str, Any]) -> None:
    """What must hold for every written folder, checked against the pixels of the source."""
    assert json.loads((out / "corrupted.json").read_text()) == card
    dataset = read(out)
    assert dataset.layout == "mvtec"
    assert {s.name for s in dataset.samples} == set(card["images"])
    assert len(set(card["images"].values())) == len(card["images"])  # no source image twice
    for sample in dataset.samples:
        pixels, before = load_image(sample.path), load_image(source / card["images"][sample.name])
        assert (sample.label == "good") == (sample.mask is None)
        if sample.mask is None:
            assert (pixels == before).all()
        else:
            assert sample.defect in KINDS
            mask = load_mask(sample.mask, pixels.shape[:2])
            assert (pixels[~mask] == before[~mask]).all()
            assert (pixels[mask] != before[mask]).any()


def test_splits_of_the_data_set_are_kept(product: Path, tmp_path: Path) -> None:
    card = write_corrupted(product, tmp_path / "out", seed=3)
    check(tmp_path / "out", product, card)
    places = {name: {s.name for s in samples} for name, samples in by_place(tmp_path / "out").items()}
    assert {name: len(names) for name, names in places.items()} == {
        "train/good": 40,
        "test/good": 3,
        "test/rectangle": 1,
        "test/crop": 1,
        "test/foreign": 1,
    }
    came_from = card["images"]
    assert {came_from[name] for name in places["train/good"]} == {f"train/good/{i:03}.png" for i in range(40)}
    tested = {came_from[name] for place in places if place.startswith("test") for name in places[place]}
    assert tested == {f"test/good/{i:03}.png" for i in range(6)}  # no defective image
    assert card["counts"]["test/good"] == 3


def test_the_seed_determines_every_byte(product: Path, tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> dict[str, bytes]:
        write_corrupted(product, tmp_path / name, seed=seed)
        files = (f for f in (tmp_path / name).rglob("*") if f.is_file())
        return {f.relative_to(tmp_path / name).as_posix(): f.read_bytes() for f in files}

    first = contents("a", 0)
    assert contents("b", 0) == first
    assert contents("c", 1) != first


def test_without_splits_a_fifth_is_held_out_and_items_and_copies_stay_together(tmp_path: Path) -> None:
    data = tmp_path / "source"
    for i in range(60):
        write_image(data / f"good/it{i // 3}_Part{i % 3}.png", noise(i))
    for i in range(30):  # pairs: the same image under two names
        write_image(data / f"good/twin{i}.png", noise(1000 + i // 2))
    write_image(data / "scratched/x.png", noise(2000))
    for seed in range(3):
        out = tmp_path / f"out{seed}"
        card = write_corrupted(data, out, seed=seed)
        check(out, data, card)
        counts = card["counts"]
        held = 90 - counts["train/good"]
        assert 15 <= held <= 18  # a fifth of 90, in whole items
        assert abs(counts["test/good"] - held / 2) <= 2
        side: dict[str, set[str]] = {}
        for written, source in card["images"].items():
            stem = Path(source).stem
            item = f"twins {int(stem[4:]) // 2}" if "twin" in stem else stem.split("_")[0]
            place = written.split("/")
            side.setdefault(item, set()).add("train" if place[0] == "train" else str(place[1] == "good"))
        assert len(side) == 35
        assert all(len(places) == 1 for places in side.values())
        # Twins corrupted in two ways may be reported as "copies-across-labels"; good and corrupted twins cannot occur.
        problems = {problem.kind for problem in audit(read(out)).problems}
        assert not problems & {"copies-across-splits", "item-across-splits", "mask-empty", "mask-unusable"}


def test_a_plain_folder_counts_as_good_and_broken_images_are_left_out(tmp_path: Path) -> None:
    for i in range(10):
        write_image(tmp_path / f"in/{i}.png", tile(i)[0])
    (tmp_path / "in/broken.png").write_bytes(b"no image")
    card = write_corrupted(tmp_path / "in", tmp_path / "out", kinds=["crop"])
    check(tmp_path / "out", tmp_path / "in", card)
    assert card["skipped"] == ["broken.png"]
    assert card["counts"] == {"test/crop": 1, "test/good": 1, "train/good": 8}


def test_images_of_the_same_name_get_different_names(tmp_path: Path) -> None:
    for i in range(12):
        write_image(tmp_path / f"in/good/day{i}/{'part' if i % 2 else 'Part'}.png", noise(i))
    card = write_corrupted(tmp_path / "in", tmp_path / "out")
    check(tmp_path / "out", tmp_path / "in", card)
    assert sum(card["counts"].values()) == 12
    assert len({name.casefold() for name in card["images"]}) == 12


def test_at_most_as_many_images_as_asked_for(product: Path, tmp_path: Path) -> None:
    card = write_corrupted(product, tmp_path / "out", train=7, test=3)
    check(tmp_path / "out", product, card)
    assert card["counts"]["train/good"] == 7
    assert card["counts"]["test/good"] == 2
    assert sum(n for name, n in card["counts"].items() if name.startswith("test/")) == 3


def test_uniform_images_get_the_kind_that_is_visible(tmp_path: Path) -> None:
    for i in range(10):
        write_image(tmp_path / f"in/{i}.png", np.full((30, 30), 20 * i))
    card = write_corrupted(tmp_path / "in", tmp_path / "out", kinds=["crop", "rectangle"])
    assert card["counts"] == {"test/good": 1, "test/rectangle": 1, "train/good": 8}
    with pytest.raises(BlemishError, match=r"\d.png: No defect of kind crop is visible"):
        write_corrupted(tmp_path / "in", tmp_path / "other", kinds=["crop"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]  # nothing is left behind


def test_one_class_of_idx_files(tmp_path: Path) -> None:
    data = digits(tmp_path / "digits")
    card = write_corrupted(data, tmp_path / "out", one_class=3)
    assert card["layout"] == "idx"
    assert card["counts"] == {
        "test/crop": 1,
        "test/good": 3,
        "test/rectangle": 1,
        "train/good": 6,
    }
    raw = gzip.decompress((data / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    images = np.frombuffer(raw, np.uint8).reshape(-1, 12, 10)
    places = by_place(tmp_path / "out")
    for sample, index in zip(places["train/good"], range(1, 18, 3), strict=True):  # labels 0, 3, 7, 0, 3, 7 ...
        assert card["images"][sample.name] == f"train/{index}"
        assert (load_image(sample.path) == grey(images[index])).all()
    tested = {source for name, source in card["images"].items() if name.startswith("test/")}
    assert tested == {f"t10k/{index}" for index in range(1, 15, 3)}


def test_requirements_of_idx_files(tmp_path: Path, product: Path) -> None:
    data = digits(tmp_path / "digits")
    with pytest.raises(BlemishError, match="holds the classes 0, 3, 7: say which class is good with --one-class"):
        write_corrupted(data, tmp_path / "out")
    with pytest.raises(BlemishError, match="classes 0, 3, 7: there is no class 5"):
        write_corrupted(data, tmp_path / "out", one_class=5)
    with pytest.raises(BlemishError, match="leave --layout out"):
        write_corrupted(data, tmp_path / "out", one_class=3, layout="flat")
    with pytest.raises(BlemishError, match="holds no idx files, so it has no class 3"):
        write_corrupted(product, tmp_path / "out", one_class=3)
    small = digits(tmp_path / "small", counts=(2, 1))
    with pytest.raises(BlemishError, match="2 good images to learn from and 1 held out"):
        write_corrupted(small, tmp_path / "out", one_class=3)
    assert not (tmp_path / "out").exists()


def test_invalid_arguments_are_refused(product: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BlemishError, match="does not exist"):
        write_corrupted(tmp_path / "none", out)
    with pytest.raises(BlemishError, match="'dent'"):
        write_corrupted(product, out, kinds=["dent"])
    with pytest.raises(BlemishError, match="at least 1"):
        write_corrupted(product, out, train=0)
    with pytest.raises(BlemishError, match="at least 2"):
        write_corrupted(product, out, test=1)
    for wrong in (product, product / "inside", product.parent):
        with pytest.raises(BlemishError, match="overlap; choose a folder outside"):
            write_corrupted(product, wrong, overwrite=True)
    write_image(tmp_path / "few/good/a.png", noise(0))
    write_image(tmp_path / "few/good/b.png", noise(1))
    with pytest.raises(BlemishError, match="too few good images"):
        write_corrupted(tmp_path / "few", out)
    write_image(tmp_path / "few/good/c.png", noise(2))
    with pytest.raises(BlemishError, match="no other to take from"):
        write_corrupted(tmp_path / "few", out, kinds=["foreign"])
    assert not out.exists()
    write_corrupted(tmp_path / "few", out)


def test_only_its_own_folder_is_replaced(product: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write_corrupted(product, out)
    with pytest.raises(BlemishError, match="--overwrite"):
        write_corrupted(product, out)
    with pytest.raises(BlemishError, match="no kind of defect"):
        write_corrupted(product, out, kinds=["dent"], overwrite=True)
    assert json.loads((out / "corrupted.json").read_text()) == first
    write_corrupted(product, out, kinds=["crop"], overwrite=True)
    assert not (out / "test/rectangle").exists()
    (out / "mine.txt").touch()
    with pytest.raises(BlemishError, match=r"holds mine\.txt, which is not its own"):
        write_corrupted(product, out, overwrite=True)
    file = write_image(tmp_path / "file.png", noise(0))
    with pytest.raises(BlemishError, match="is no folder"):
        write_corrupted(product, file, overwrite=True)
    assert file.exists()


@pytest.mark.real
def test_one_class_of_the_real_digits(tmp_path: Path) -> None:
    card = write_corrupted(shared_folder("data/mnist-idx"), tmp_path / "fives", one_class=5)
    counts = card["counts"]
    assert (counts["train/good"], counts["test/good"]) == (800, 50)
    assert sum(counts[f"test/{kind}"] for kind in KINDS) == 50
    assert read(tmp_path / "fives").layout == "mvtec"
