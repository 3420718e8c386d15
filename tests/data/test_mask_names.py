"""Which folders are masks, and whose: every spelling and place, on small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blemish.data.audit import audit
from blemish.data.layouts import Dataset, read
from blemish.data.mask_names import masks_beside, names_masks, words
from blemish.data.reading import LayoutError
from blemish.images import load_mask
from tests.support import write_image

GOOD = 3


def picture(path: Path, seed: int = 0) -> None:
    write_image(path, np.random.default_rng([seed, len(str(path))]).integers(60, 190, (24, 24)))


def mask(path: Path, size: int = 4) -> None:
    drawn = np.zeros((24, 24))
    drawn[5 : 5 + size, 5 : 5 + size] = 255
    write_image(path, drawn)


def data(root: Path, kinds: tuple[str, ...] = ("NG",), good: str = "good", count: int = 2) -> Path:
    for i in range(GOOD):
        picture(root / good / f"g{i}.png", i)
    for kind in kinds:
        for i in range(count):
            picture(root / kind / f"{i}.png", 10 + i)
    return root


def pairs(dataset: Dataset) -> dict[str, str]:
    """The mask of each defective image."""
    root = dataset.root
    return {
        s.name: s.mask.relative_to(root).as_posix() if s.mask else "" for s in dataset.samples if s.label == "anomaly"
    }


def reasons(dataset: Dataset) -> dict[str, str]:
    return {entry.name: entry.reason for entry in dataset.left_out}


def test_words_of_a_name() -> None:
    assert words("NGMask") == ["ng", "mask"] == words("ng-mask") == words("ngmask") == words("NG_MASK 2")
    assert words("Ground-Truth") == ["groundtruth"] == words("groundTruth") == words("GROUND_TRUTH")
    assert words("OKmask")[-1] == "mask"
    assert names_masks("pixel_labels") == "labels"
    assert not any(map(names_masks, ("NG_mask", "solder_mask", "scratch", "weight", "segment", "images")))


@pytest.mark.parametrize(
    "name",
    [
        *("mask", "Masks", "MASK", "gt", "GT", "ground_truth", "groundtruth", "Ground Truth", "label", "labels"),
        *("annotation", "Annotations", "annotated", "seg", "segmentation", "mask_png", "gt_masks", "binary masks"),
        *("SegmentationClass", "NG_mask", "mask_NG", "NGMask", "ngmasks", "masks-ng", "gt NG", "masks2"),
    ],
)
def test_a_folder_of_masks_beside_the_types_in_any_spelling(tmp_path: Path, name: str) -> None:
    root = data(tmp_path)
    for i in range(2):
        mask(root / name / f"{i}.png")
    dataset = read(root)
    assert pairs(dataset) == {f"NG/{i}.png": f"{name}/{i}.png" for i in range(2)}
    assert dataset.masks == 2


@pytest.mark.parametrize("end", ["_mask", "_MASK", "-gt", "_GT", "_label", ".mask", " seg", "_ground_truth"])
@pytest.mark.parametrize("place", ["NG", "masks", "NG/mask", "masks/NG", "masks/ng"])
def test_endings_of_a_masks_name_in_every_place(tmp_path: Path, place: str, end: str) -> None:
    root = data(tmp_path)
    mask(root / place / f"0{end}.png")
    assert pairs(read(root)) == {"NG/0.png": f"{place}/0{end}.png", "NG/1.png": ""}


def test_masks_of_good_images_are_no_images(tmp_path: Path) -> None:
    root = data(tmp_path)
    for name in ("good/mask/g0.png", "good/g1_mask.png", "masks/good/g2.png", "good_mask/g0.png", "masks/g1.png"):
        mask(root / name)
    dataset = read(root)
    assert [s.name for s in dataset.samples if s.label == "good"] == ["good/g0.png", "good/g1.png", "good/g2.png"]
    assert set(reasons(dataset).values()) == {"mask-of-good"}
    assert len(reasons(dataset)) == 5


def test_words_with_two_meanings_are_decided_by_the_content(tmp_path: Path) -> None:
    root = data(tmp_path, ("NG", "solder_mask", "label_torn"))
    assert {s.defect for s in read(root).samples} == {"", "NG", "solder_mask", "label_torn"}
    for i in range(2):
        mask(root / "solder_mask" / f"{i}.png")
    assert {s.defect for s in read(root).samples} == {"", "NG", "label_torn"}
    (root / "solder_mask" / "0.png").write_bytes(b"x")
    (root / "solder_mask" / "1.png").write_bytes(b"x")
    with pytest.raises(LayoutError, match="solder_mask could be a defect type or masks; rename it"):
        read(root)


@pytest.mark.parametrize("name", ["annotated", "label"])
def test_pictures_in_a_folder_that_is_named_like_masks_are_refused(tmp_path: Path, name: str) -> None:
    root = data(tmp_path, ("NG", name))
    with pytest.raises(LayoutError, match=f"{name} is named like masks but holds pictures; rename it"):
        read(root)


def test_annotated_pictures_inside_a_type_are_neither_images_nor_masks(tmp_path: Path) -> None:
    root = data(tmp_path)
    for i in range(2):
        picture(root / "NG" / "annotated" / f"{i}.png", 50 + i)
    result = audit(read(root))
    assert [row.count for row in result.rows if row.defect] == [2]
    assert [row.masks for row in result.rows if row.defect] == [0]
    assert "holds a picture, not a mask" in next(p for p in result.problems if p.kind == "mask-unusable").sentence


def test_a_camera_that_looks_at_the_label_is_no_mask(tmp_path: Path) -> None:
    root = data(tmp_path)
    picture(root / "good" / "label" / "1.png")
    assert "good/label/1.png" in [s.name for s in read(root).samples]


def test_masks_under_a_name_that_says_nothing_are_refused_or_named(tmp_path: Path) -> None:
    root = data(tmp_path)
    for i in range(2):
        mask(root / "bw" / f"{i}.png", 3 + i)
    with pytest.raises(LayoutError, match=r"bw looks like masks of NG: its images have the same names"):
        read(root)
    for i in range(2):
        (root / "bw" / f"{i}.png").rename(root / "bw" / f"drawn{i}.png")
    (problem,) = (p for p in audit(read(root)).problems if p.kind == "type-of-masks")
    assert (problem.severity, problem.names) == ("error", ("bw/drawn0.png", "bw/drawn1.png"))


def test_one_mask_for_several_images_is_given_to_none(tmp_path: Path) -> None:
    root = data(tmp_path, ("NG", "dent"))
    picture(root / "NG" / "0.jpg")
    picture(root / "NG" / "7.png")
    for name in ("masks/NG/0.png", "masks/1.png", "masks/7.png", "masks/NG/0.jpg.png"):
        mask(root / name)
    dataset = read(root)
    assert {name: found for name, found in pairs(dataset).items() if found} == {
        "NG/0.jpg": "masks/NG/0.jpg.png",  # the whole name says which
        "NG/7.png": "masks/7.png",
    }
    assert dict(dataset.ambiguous) == {
        "masks/NG/0.png": ("NG/0.jpg", "NG/0.png"),
        "masks/1.png": ("dent/1.png", "NG/1.png"),
    }
    said = [p.sentence for p in audit(dataset).problems if p.kind == "mask-ambiguous"]
    assert "one mask cannot show the defects of two images" in said[0]


def test_dated_folders(tmp_path: Path) -> None:
    root = data(tmp_path)
    for name in ("NG/2024-05-01/5.png", "NG/2024-05-02/5.png", "NG/2024-05-02/6.png"):
        picture(root / name)
    for name in ("masks/NG/2024-05-01/5.png", "masks/NG/6.png", "masks/NG/5_mask.png"):
        mask(root / name)
    dataset = read(root)
    assert pairs(dataset) == {
        **dict.fromkeys(("NG/0.png", "NG/1.png", "NG/2024-05-02/5.png"), ""),
        "NG/2024-05-01/5.png": "masks/NG/2024-05-01/5.png",
        "NG/2024-05-02/6.png": "masks/NG/6.png",
    }
    assert reasons(dataset) == {"masks/NG/5_mask.png": "mask-ambiguous"}


def test_mvtec_3d(tmp_path: Path) -> None:
    for name in ("train/good/rgb/0", "test/good/rgb/0", "test/hole/rgb/0", "test/hole/rgb/1"):
        picture(tmp_path / f"{name}.png")
        picture(tmp_path / f"{name.replace('rgb', 'xyz')}.tiff")
        if name.startswith("test"):
            mask(tmp_path / f"{name.replace('rgb', 'gt')}.png")
    dataset = read(tmp_path)
    assert pairs(dataset) == {f"test/hole/rgb/{i}.png": f"test/hole/gt/{i}.png" for i in range(2)}
    assert len(dataset.samples) == 4
    assert sorted(reasons(dataset).values()) == ["depth-map"] * 4 + ["mask-of-good"]


def test_black_masks_of_good_images_make_no_masks_of_the_types_beside(tmp_path: Path) -> None:
    """MVTec 3D names its images alike in every folder, and draws black masks of the good ones."""
    for i in range(4):
        for kind in ("good", "hole"):
            picture(tmp_path / f"test/{kind}/rgb/{i}.png", i)
            mask(tmp_path / f"test/{kind}/gt/{i}.png", 0 if kind == "good" else 4)
        picture(tmp_path / f"train/good/rgb/{i}.png", 9 + i)
    dataset = read(tmp_path)
    assert pairs(dataset) == {f"test/hole/rgb/{i}.png": f"test/hole/gt/{i}.png" for i in range(4)}
    assert reasons(dataset) == {f"test/good/gt/{i}.png": "mask-of-good" for i in range(4)}


def test_mvtec_loco_has_several_masks_of_an_image_which_are_united(tmp_path: Path) -> None:
    for name in ("train/good/000", "validation/good/000", "test/good/000", "test/logical/000", "test/logical/001"):
        picture(tmp_path / f"{name}.png")
    place = tmp_path / "ground_truth/logical"
    mask(place / "000/000.png", 2)
    mask(place / "000/001.png", 6)
    mask(place / "001/000.png", 3)
    dataset = read(tmp_path)
    assert pairs(dataset) == {f"test/logical/{i}.png": f"ground_truth/logical/{i}" for i in ("000", "001")}
    assert dataset.masks == 3
    assert load_mask(place / "000", (24, 24)).sum() == 36
    assert reasons(dataset) == {"validation/good/000.png": "not-in-layout"}
    result = audit(dataset)
    assert [row.masks for row in result.rows if row.defect] == [2]
    assert [p.kind for p in result.problems if p.kind in {"not-in-layout", "mask-unused"}] == ["not-in-layout"]


@pytest.mark.parametrize("halves", [("train/", "test/"), ("",)])
def test_kolektorsdd2(tmp_path: Path, halves: tuple[str, ...]) -> None:
    for half in halves:
        for i in range(4):
            picture(tmp_path / f"{half}1000{i}.png", i)
            mask(tmp_path / f"{half}1000{i}_GT.png", 4 * (i == 3))
    dataset = read(tmp_path)
    assert dataset.layout == "kolektorsdd2"
    assert pairs(dataset) == {f"{half}10003.png": f"{half}10003_GT.png" for half in sorted(halves)}
    assert {s.split for s in dataset.samples} == {half.rstrip("/") for half in halves}
    assert sum(s.label == "good" for s in dataset.samples) == 3 * len(halves)
    (tmp_path / f"{halves[0]}10001_GT.png").write_bytes(b"x")
    with pytest.raises(LayoutError, match="neither good nor defective"):
        read(tmp_path)


def test_masks_beside_unlabelled_images_are_no_images(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    mask(tmp_path / "0_mask.png")
    for i in range(1, 20):
        picture(tmp_path / f"{i}.png")
    with pytest.raises(LayoutError, match=r"0_mask\.png is a mask beside the images"):
        read(tmp_path)
    assert masks_beside(["a.png", "a_label.png", "b_label.png", "c_mask.png"]) == ["a_label.png", "c_mask.png"]


def test_masks_beside_the_types_of_a_test_split(tmp_path: Path) -> None:
    data(tmp_path / "train", ("crack",))
    data(tmp_path / "test", ("crack",))
    mask(tmp_path / "ground_truth/crack/0_mask.png")
    mask(tmp_path / "ground_truth/train/crack/1.png")
    mask(tmp_path / "test/crack_mask/1.png")
    dataset = read(tmp_path)
    assert {name: found for name, found in pairs(dataset).items() if found} == {
        "test/crack/0.png": "ground_truth/crack/0_mask.png",
        "test/crack/1.png": "test/crack_mask/1.png",
        "train/crack/1.png": "ground_truth/train/crack/1.png",
    }
