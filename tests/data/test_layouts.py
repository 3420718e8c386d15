"""Folders of files that are no images: how each layout reads their names, and which are refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from blemish.data.layouts import LAYOUTS, Dataset, read
from blemish.data.reading import LayoutError
from blemish.types import Sample
from tests.support import shared_folder, touch


def rows(dataset: Dataset) -> list[tuple[str, str | None, str, str, str]]:
    """(name, label, defect, split, mask's name) of every sample, in order."""

    def mask(sample: Sample) -> str:
        return sample.mask.relative_to(dataset.root).as_posix() if sample.mask else ""

    assert all(s.path == dataset.root / s.name for s in dataset.samples)
    return [(s.name, s.label, s.defect, s.split, mask(s)) for s in dataset.samples]


def refusal(path: Path, layout: str = "auto") -> str:
    with pytest.raises(LayoutError) as caught:
        read(path, layout)
    text = str(caught.value)
    assert "\n" not in text
    return text


MVTEC = [
    "train/good/000.png",
    "train/good/001.png",
    "test/good/000.png",
    "test/crack/000.png",
    "test/crack/010.png",
    "test/crack/2.png",
    "ground_truth/crack/000_mask.png",
    "ground_truth/crack/010_mask.png",
    "license.txt",
]


def test_mvtec(tmp_path: Path) -> None:
    dataset = read(touch(tmp_path, *MVTEC))
    assert (dataset.root, dataset.layout) == (tmp_path, "mvtec")
    assert rows(dataset) == [
        ("test/crack/000.png", "anomaly", "crack", "test", "ground_truth/crack/000_mask.png"),
        ("test/crack/2.png", "anomaly", "crack", "test", ""),
        ("test/crack/010.png", "anomaly", "crack", "test", "ground_truth/crack/010_mask.png"),
        ("test/good/000.png", "good", "", "test", ""),
        ("train/good/000.png", "good", "", "train", ""),
        ("train/good/001.png", "good", "", "train", ""),
    ]
    assert "3 good, 3 defective, 2 masks" in dataset.why
    assert "only layout that fits" in dataset.why


def test_masks_that_belong_to_no_image_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, *MVTEC, "ground_truth/crack/2-gt.png", "ground_truth/good/000_mask.png")
    why = read(tmp_path).why
    assert "(1 files beside them belong to no image)" in why
    assert "not read" not in why


def test_folders_that_are_not_read_are_reported(tmp_path: Path) -> None:
    assert "; not read: validation." in read(touch(tmp_path, *MVTEC, "validation/good/0.png")).why


def test_btad(tmp_path: Path) -> None:
    touch(tmp_path, "train/ok/0.bmp", "test/ok/5.bmp", "test/ko/7.bmp", "test/ko/8.bmp", "ground_truth/ko/7.png")
    dataset = read(tmp_path)
    assert dataset.layout == "btad"
    assert rows(dataset) == [
        ("test/ko/7.bmp", "anomaly", "ko", "test", "ground_truth/ko/7.png"),
        ("test/ko/8.bmp", "anomaly", "ko", "test", ""),
        ("test/ok/5.bmp", "good", "", "test", ""),
        ("train/ok/0.bmp", "good", "", "train", ""),
    ]


def test_defects_in_train_are_anomalies_without_the_masks_of_the_test_split(tmp_path: Path) -> None:
    dataset = read(touch(tmp_path, *MVTEC, "train/crack/000.png"))
    assert ("train/crack/000.png", "anomaly", "crack", "train", "") in rows(dataset)
    assert len(dataset.samples) == 7


VISA = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0.JPG,
candle,test,normal,candle/Data/Images/Normal/1.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png
pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,
"""
CANDLE = ["Images/Normal/0.JPG", "Images/Normal/1.JPG", "Images/Anomaly/0.JPG", "Masks/Anomaly/0.png"]


def visa(root: Path, table: str = VISA, objects: tuple[str, ...] = ("candle", "pcb1")) -> Path:
    for name in objects:
        touch(root, *(f"{name}/Data/{file}" for file in CANDLE))
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_text(table, encoding="utf-8-sig")
    return root


def test_visa_object_folder(tmp_path: Path) -> None:
    dataset = read(visa(tmp_path) / "candle")
    assert dataset.layout == "visa"
    assert rows(dataset) == [
        ("Data/Images/Anomaly/0.JPG", "anomaly", "anomaly", "test", "Data/Masks/Anomaly/0.png"),
        ("Data/Images/Normal/0.JPG", "good", "", "train", ""),
        ("Data/Images/Normal/1.JPG", "good", "", "test", ""),
    ]


def test_visa_root_with_one_or_more_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = visa(tmp_path / "one", objects=("candle",))
    assert rows(read(one))[0][0] == "candle/Data/Images/Anomaly/0.JPG"
    monkeypatch.chdir(one / "candle")
    assert len(read(".").samples) == 3
    text = refusal(visa(tmp_path / "two"))
    assert "2 products (candle and pcb1)" in text
    assert str(tmp_path / "two" / "candle") in text


@pytest.mark.parametrize(
    "image",
    ["../../etc/passwd", "candle/../../x.png", "/etc/passwd", "candle\\..\\x.png", "C:/x.png", "pcb1/Data/x.png", ""],
)
def test_visa_names_that_lead_out_are_refused(tmp_path: Path, image: str) -> None:
    table = f"object,split,label,image,mask\ncandle,train,normal,{image},\n"
    text = refusal(visa(tmp_path, table) / "candle")
    assert "line 2" in text
    mask = f"object,split,label,image,mask\ncandle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,{image or '../x'}\n"
    assert "leads out" in refusal(visa(tmp_path, mask) / "candle")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("object,label\ncandle,normal\n", "needs the columns"),
        ("", "needs the columns"),
        ("object,split,label,image,mask\n", "at least one row"),
        (VISA.replace("test,anomaly", "test,broken"), "line 4"),
        (VISA.replace("train,normal", "val,normal"), "line 2"),
        (VISA.replace("Normal/1.JPG", "Normal/9.JPG"), "not there"),
        (VISA.replace("Normal/1.JPG", "Normal/0.JPG"), "twice"),
    ],
)
def test_wrong_visa_tables_are_refused(tmp_path: Path, table: str, message: str) -> None:
    assert message in refusal(visa(tmp_path, table) / "candle")


def test_a_visa_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    visa(tmp_path)
    (tmp_path / "split_csv" / "1cls.csv").write_bytes(b"\xff\xfe\x00object")
    assert "cannot be read as CSV" in refusal(tmp_path / "candle")


def test_folders(tmp_path: Path) -> None:
    touch(tmp_path, "good/a.png", "good/day2/b.png", "scratch/1.png", "scratch/2.jpg", "Dent/1.png", "notes/n.txt")
    touch(tmp_path, "ground_truth/scratch/1_mask.png", "masks/Dent/1.png", "masks/2.png")
    dataset = read(tmp_path)
    assert dataset.layout == "folders"
    assert rows(dataset) == [
        ("Dent/1.png", "anomaly", "Dent", "", "masks/Dent/1.png"),
        ("good/a.png", "good", "", "", ""),
        ("good/day2/b.png", "good", "", "", ""),
        ("scratch/1.png", "anomaly", "scratch", "", "ground_truth/scratch/1_mask.png"),
        ("scratch/2.jpg", "anomaly", "scratch", "", "masks/2.png"),  # of one type alone there is a 2
    ]
    assert "Dent and scratch for defect types" in dataset.why


@pytest.mark.parametrize("name", ["OK", "Normal", "good"])
def test_names_for_good_and_masks_of_one_defect_type(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/a.png", "bad/a.png", "masks/a.png")
    assert (
        rows(read(tmp_path))
        == [
            ("bad/a.png", "anomaly", "bad", "", "masks/a.png"),
            (f"{name}/a.png", "good", "", "", ""),
        ]
        or name != "good"
    )
    assert [s.label for s in read(tmp_path).samples if s.name.startswith(name)] == ["good"]


def test_good_alone_is_enough_and_two_goods_are_too_many(tmp_path: Path) -> None:
    assert [s.label for s in read(touch(tmp_path, "good/a.png")).samples] == ["good"]
    assert "good and ok are all names for good" in refusal(touch(tmp_path, "ok/a.png"))


def test_views_of_one_item_share_a_group(tmp_path: Path) -> None:
    touch(tmp_path, "good/kos01_Part3.jpg", "good/kos02_Part3.jpg", "bad/kos01_Part5.jpg", "good/x_Party.jpg")
    groups = {s.name: s.group for s in read(tmp_path).samples}
    assert groups == {
        "bad/kos01_Part5.jpg": "kos01",
        "good/kos01_Part3.jpg": "kos01",
        "good/kos02_Part3.jpg": "kos02",
        "good/x_Party.jpg": "",
    }


def test_magnetic_tile(tmp_path: Path) -> None:
    files = ["MT_Free/Imgs/1", "MT_Crack/Imgs/2"]
    touch(tmp_path, *(f"{f}{end}" for f in files for end in (".jpg", ".png")), "MT_Crack/Imgs/3.jpg", "README.md")
    dataset = read(tmp_path)
    assert dataset.layout == "magnetic-tile"
    assert rows(dataset) == [
        ("MT_Crack/Imgs/2.jpg", "anomaly", "Crack", "", "MT_Crack/Imgs/2.png"),
        ("MT_Crack/Imgs/3.jpg", "anomaly", "Crack", "", ""),
        ("MT_Free/Imgs/1.jpg", "good", "", "", ""),
    ]


def test_magnetic_tiles_are_grouped_by_the_frames_of_their_film(tmp_path: Path) -> None:
    """A tile ends where more than 200 frames are without an image, counted over all classes."""
    groups = {
        "MT_Free/Imgs/exp1_num_90.jpg": "tile90",
        "MT_Crack/Imgs/exp3_num_290.jpg": "tile90",  # exactly 200 later
        "MT_Free/Imgs/exp6_num_1000.jpg": "tile1000",
        "MT_Fray/Imgs/exp1_num_1100.jpg": "tile1000",  # the link between the other two
        "MT_Free/Imgs/exp2_num_1300.jpg": "tile1000",
        "MT_Free/Imgs/exp1_num_1501.jpg": "tile1501",  # 201 later
        "MT_Free/Imgs/other.jpg": "",
        "MT_Free/Imgs/exp1_num_5_again.jpg": "",
    }
    touch(tmp_path, *groups)
    assert {sample.name: sample.group for sample in read(tmp_path).samples} == groups


def test_flat(tmp_path: Path) -> None:
    dataset = read(touch(tmp_path, "10.png", "9.png", "A.png", "a.png", ".hidden.png", "empty/readme.txt"))
    assert dataset.layout == "flat"
    assert rows(dataset) == [(name, None, "", "", "") for name in ("9.png", "10.png", "A.png", "a.png")]


def test_ambiguous_folders_are_refused_without_layout(tmp_path: Path) -> None:
    touch(tmp_path, "stray.png", "good/a.png", "bad/b.png")
    assert "could be folders or flat; say which with --layout" in refusal(tmp_path)
    assert len(read(tmp_path, "folders").samples) == 2
    flat = read(tmp_path, "flat")
    assert [s.name for s in flat.samples] == ["stray.png"]
    assert "as asked" in flat.why
    mixed = touch(tmp_path / "mixed", "1.png", "broken/2.png")
    assert "broken" in refusal(mixed)
    assert "--layout flat" in refusal(mixed)
    assert len(read(mixed, "flat").samples) == 1


def test_a_parent_of_products_is_refused_with_their_names(tmp_path: Path) -> None:
    for product in ("bottle", "cable"):
        touch(tmp_path / product, *MVTEC)
    text = refusal(tmp_path)
    assert "2 products (bottle and cable)" in text
    assert str(tmp_path / "bottle") in text
    assert "2 products" in refusal(tmp_path, "mvtec")


def test_a_parent_of_one_product_is_refused_with_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "only", *MVTEC)
    assert f"give {tmp_path / 'only'}" in refusal(tmp_path)


def test_the_refusal_of_an_unknown_folder_lists_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "alpha/x.txt", "beta/y.png")
    text = refusal(tmp_path)
    for words in ("folder alpha and folder beta", "mvtec: no images in train/good", "into a folder good"):
        assert words in text
    assert "no folders" in refusal(touch(tmp_path / "none", "x.txt"))


def test_missing_folders_and_unknown_layouts_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "gone")
    assert "is a file" in refusal(touch(tmp_path, "a.png") / "a.png")
    text = refusal(tmp_path, "coco")
    assert "'coco'" in text
    assert all(name in text for name in LAYOUTS)
    assert "no images in train/good" in refusal(tmp_path, "mvtec")


def test_every_layout_is_documented() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    (listed,) = (
        line for line in (docs / "commands.md").read_text("utf-8").splitlines() if line.startswith("| `--layout N")
    )
    rows = (docs / "data.md").read_text("utf-8").partition("| `--layout` |")[2].partition("\n\n")[0]
    for name in LAYOUTS:
        assert f"\n| `{name}` |" in rows, f"docs/data.md has no row for the layout {name}"
        assert f"`{name}`" in listed, f"docs/commands.md does not name the layout {name}"


def test_the_order_of_the_listing_does_not_matter(tmp_path: Path) -> None:
    names = [f"good/{i}.png" for i in range(30)] + [f"bad/{i}.png" for i in range(30)]
    one, two = touch(tmp_path / "one", *names), touch(tmp_path / "two", *reversed(names))
    assert rows(read(one)) == rows(read(two))


def test_links_are_followed_and_link_cycles_end(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a.png")
    root = touch(tmp_path / "set", "good/1.png")
    (root / "bad").symlink_to(tmp_path / "store", target_is_directory=True)
    (root / "good" / "again").symlink_to(root / "good", target_is_directory=True)
    names = [sample.name for sample in read(root).samples]
    assert "bad/a.png" in names
    assert len(names) == len(set(names)) < 20


def test_files_are_listed_but_not_opened(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    for i in range(2000):
        (tmp_path / "good" / f"{i}.png").touch()  # empty: opening one would fail
    started = time.process_time()
    assert len(read(tmp_path).samples) == 2000
    assert time.process_time() - started < 3  # 20,000 took 0.8 s of processor time


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "layout", "good", "defective", "masks"),
    [
        ("magnetic-tile", "magnetic-tile", 952, 392, 392),
        ("kolektorsdd", "folders", 347, 52, 52),
        ("casting", "folders", 519, 781, 0),
        ("cookies", "folders", 45, 40, 32),
    ],
)
def test_real_data_sets_have_the_counts_of_their_readme(
    name: str, layout: str, good: int, defective: int, masks: int
) -> None:
    dataset = read(shared_folder("data") / name)
    labels = [sample.label for sample in dataset.samples]
    assert dataset.layout == layout
    assert (labels.count("good"), labels.count("anomaly")) == (good, defective)
    assert sum(sample.mask is not None for sample in dataset.samples) == masks


@pytest.mark.real
def test_kolektor_has_50_items() -> None:
    samples = read(shared_folder("data") / "kolektorsdd").samples
    assert {sample.group for sample in samples} == {f"kos{i:02}" for i in range(1, 51)}


@pytest.mark.real
def test_magnetic_tiles_have_six_exposures_each() -> None:
    """Each tile was filmed under six exposures; the grouping rule does not use them."""
    exposures: dict[str, set[str]] = {}
    for sample in read(shared_folder("data") / "magnetic-tile").samples:
        exposures.setdefault(sample.group, set()).add(Path(sample.name).name.partition("_")[0])
    whole = sum({f"exp{i}" for i in range(1, 7)} <= seen for seen in exposures.values())
    assert (whole, len(exposures)) == (187, 202)


@pytest.mark.real
def test_the_parent_of_the_real_data_sets_is_refused_with_their_names() -> None:
    assert "casting, cookies, kolektorsdd and magnetic-tile" in refusal(shared_folder("data"))


def test_a_type_whose_name_is_no_utf8_is_readable(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.png", "good/2.png", "N\udcfeG/1.png")
    (sample,) = [sample for sample in read(tmp_path).samples if sample.label == "anomaly"]
    assert sample.defect == "N\\xfeG"
    assert sample.path.is_file()
