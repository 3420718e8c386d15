"""bench/studies.py: published figures beside ours, on tiny images in the layout of MVTec AD."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from blemish.reporting.figures import NAMED
from blemish.types import BlemishError
from tests.conftest import tile
from tests.support import shared_folder, write_image

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from bench import studies

CLASSIFIER, EXPVAE, STUDY = (studies.STUDIES[name] for name in ("classifier", "expvae", "study"))
SMALL = {"image_size": (64, 64), "overlays": 2}


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """Two classes, pill and tiles: 16 good training images each, 4 good and 5 defective test images."""
    root = tmp_path / "mvtec"
    for first, name in ((0, "pill"), (1000, "tiles")):
        for i in range(16):
            write_image(root / name / f"train/good/{i:03}.png", tile(first + i)[0])
        for i in range(5):
            image, mask = tile(first + 200 + i, (4 + 8 * i, 60 - 10 * i))
            write_image(root / name / f"test/spot/{i:03}.png", image)
            write_image(root / name / f"ground_truth/spot/{i:03}_mask.png", mask)
            if i < 4:
                write_image(root / name / f"test/good/{i:03}.png", tile(first + 100 + i)[0])
    return root


def test_both_studies_on_a_folder(mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def once(*arguments: str) -> str:
        options = studies.parse(["--mvtec", str(mvtec), "--work", str(tmp_path / "work"), "--epochs", "1", *arguments])
        return studies.run_all(options, tmp_path, study=SMALL)

    text = once("--study", "classifier", "--only", "cable")
    assert f"Not in {mvtec}: cable." in text
    assert "Not in" in capsys.readouterr().out
    kept = json.loads((tmp_path / "studies.json").read_text(encoding="utf-8"))["studies"]
    (cable,) = (row for row in kept["classifier"] if row["class"] == "cable")
    assert (cable["figures"], cable["published"]["accuracy"]) == ({}, 0.947)

    one = ("--study", "study", "--only", "tiles", "--false-alarms", "20%")
    text = once(*one)
    file = tmp_path / "work/study/tiles/epochs-1/metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    (row,) = (line for line in text.splitlines() if line.startswith("| tiles"))
    assert row.startswith(f"| tiles, epochs 1 | – | {metrics['localisation']['pixel_auroc']['value']:.3f} [")
    assert f"] | {metrics['counts']['train']} | 4 / 5 | 1 |" in row

    capsys.readouterr()
    before = file.stat().st_mtime_ns
    assert once(*one) == text
    assert "study, tiles: done before" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    only_collected = studies.parse(["--table", "--work", str(tmp_path / "work"), "--study", "study", "--only", "tiles"])
    assert studies.run_all(only_collected, tmp_path) == text


def test_what_is_not_ours_is_left_alone(mvtec: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    options = studies.parse(["--mvtec", str(mvtec), "--work", str(work), "--study", "paper", "--only", "pill"])
    studies.own(work, mvtec)
    run = studies.run_of(work, "paper", "pill", {})
    note = run / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    assert f"pill: not measured. {run}" in studies.run_all(options, tmp_path / "out")
    assert [path.name for path in run.iterdir()] == ["note.txt"]
    with pytest.raises(BlemishError, match="holds runs of another folder"):
        studies.own(work, tmp_path)
    with pytest.raises(BlemishError, match="not of this script"):
        studies.own(run, mvtec)


def test_the_classes_of_a_folder(mvtec: Path) -> None:
    (mvtec / "bottle/train/good").mkdir(parents=True)
    (mvtec / "notes").mkdir()
    assert (found := studies.classes_in(mvtec)) == ["bottle", "pill", "tiles"]
    assert CLASSIFIER.classes(found, None) == ["pill", "tiles"]  # the source has no bottle
    assert CLASSIFIER.classes(found, ["bottle"]) == ["bottle"]
    assert EXPVAE.classes(found, None) == STUDY.classes(found, None) == found
    assert CLASSIFIER.missing(found, None) == ["hazelnut", "leather", "cable", "toothbrush"]
    assert STUDY.missing(found, ["tiles", "wood"]) == ["wood"]
    with pytest.raises(BlemishError, match="is one class"):
        studies.classes_in(mvtec / "pill")
    with pytest.raises(BlemishError, match="holds no class"):
        studies.classes_in(mvtec / "notes")


def test_the_published_figures_follow_from_the_published_counts() -> None:
    for figures in CLASSIFIER.published.values():
        of = figures["confusion"]
        good, defective = of["false_alarms"] + of["passed"], of["caught"] + of["missed"]
        assert figures["accuracy"] == pytest.approx((of["caught"] + of["passed"]) / (good + defective), abs=6e-4)
        balanced = (of["caught"] / defective + of["passed"] / good) / 2
        assert figures["balanced_accuracy"] == pytest.approx(balanced, abs=6e-4)
    assert {*EXPVAE.published} == {*studies.MVTEC}


@pytest.mark.real
def test_the_maintainers_rows_are_those_of_their_files() -> None:
    folder = shared_folder("measured")
    files = {"classifier": "cs-pill", "expvae": "att-bottle", "study": "att-bottle", "paper": "att-bottle-study"}
    for name, file in files.items():
        (row,) = studies.STUDIES[name].measured
        metrics = json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
        for figure, measured in row["figures"].items():
            theirs = metrics[NAMED[figure].group][figure]
            assert {key: round(value, 3) for key, value in theirs.items()} == measured
        assert row.get("confusion", metrics["detection"]["confusion"]) == metrics["detection"]["confusion"]
        assert [row[key] for key in ("train", "test_good", "test_anomaly")] == [
            metrics["counts"][key] for key in ("train", "test_good", "test_anomaly")
        ]
        assert row["epochs"] == len(metrics["training"])
