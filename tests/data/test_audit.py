"""Every kind of problem on a small data set that has it, and the known copies of the real data sets."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from rich.console import Console

from blemish.data import audit as module
from blemish.data.audit import Audit, Row, audit, render
from blemish.data.checks import Problem
from blemish.data.layouts import read
from blemish.data.split import split
from blemish.images import load_image
from tests.support import shared_folder, write_image

T = TypeVar("T")


def texture(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(60, 190, (64, 48, 3)).astype(np.uint8)


def folders(root: Path, good: int = 40, dents: int = 5) -> Path:
    for i in range(good):
        write_image(root / "good" / f"{i}.png", texture(i))
    for i in range(dents):
        write_image(root / "dent" / f"{i}.png", texture(1000 + i))
        write_image(root / "ground_truth" / "dent" / f"{i}_mask.png", np.eye(64, 48) * 255)
    return root


def only(result: Audit, kind: str) -> Problem:
    (problem,) = [p for p in result.problems if p.kind == kind]
    return problem


def test_a_sound_data_set_has_no_problems(tmp_path: Path) -> None:
    result = audit(read(folders(tmp_path)))
    assert result.problems == ()
    assert result.groups == ()
    assert result.rows == (
        Row("", "anomaly", "dent", 5, (48, 64), (48, 64), 5),
        Row("", "good", "", 40, (48, 64), (48, 64), 0),
    )
    assert result.layout == "folders"
    assert "No problems found" in rendered(result)


def test_rows_by_split_with_their_sizes(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / "train" / "good" / f"{i}.png", np.zeros((10 + i, 20)))
    write_image(tmp_path / "test" / "good" / "a.png", np.ones((5, 30)))
    (tmp_path / "test" / "dent").mkdir()
    (tmp_path / "test" / "dent" / "a.png").write_bytes(b"")
    assert audit(read(tmp_path)).rows == (
        Row("train", "good", "", 3, (20, 10), (20, 12), 0),
        Row("test", "anomaly", "dent", 1, None, None, 0),
        Row("test", "good", "", 1, (30, 5), (30, 5), 0),
    )


def test_unreadable_images_and_bad_masks(tmp_path: Path) -> None:
    root = folders(tmp_path)
    (root / "good" / "7.png").write_bytes((root / "good" / "8.png").read_bytes()[:500])
    (root / "good" / "9.png").write_text("not an image")
    write_image(root / "ground_truth" / "dent" / "0_mask.png", np.ones((48, 64)))
    write_image(root / "ground_truth" / "dent" / "1_mask.png", np.zeros((64, 48)))
    (root / "ground_truth" / "dent" / "2_mask.png").unlink()
    (root / "ground_truth" / "dent" / "3_mask.png").write_bytes(b"x")
    result = audit(read(root))
    assert [(p.kind, p.severity, p.names) for p in result.problems] == [
        ("unreadable", "error", ("good/7.png",)),
        ("unreadable", "error", ("good/9.png",)),
        ("mask-unusable", "error", ("dent/0.png",)),
        ("mask-unusable", "error", ("dent/3.png",)),
        ("mask-empty", "warning", ("dent/1.png",)),
        ("mask-missing", "note", ("dent/2.png",)),
    ]
    sentences = [p.sentence for p in result.problems]
    assert "cut short" in sentences[0]
    assert "64 × 48 pixels, image of 48 × 64" in sentences[2]
    assert "1 of 5 defective images have no mask" in sentences[5]
    assert [row.masks for row in result.rows] == [2, 0]


def test_the_same_pixels_in_another_file_format_are_a_copy(tmp_path: Path) -> None:
    root = folders(tmp_path)
    write_image(root / "good" / "copy.bmp", texture(3))
    result = audit(read(root))
    problem = only(result, "copies")
    assert (problem.severity, problem.names) == ("note", ("good/3.png", "good/copy.bmp"))
    assert "the same image" in problem.sentence
    samples = read(root).samples
    assert [[samples[i].name for i in group] for group in result.groups] == [["good/3.png", "good/copy.bmp"]]


def test_a_copy_that_was_encoded_again_is_a_near_duplicate(tmp_path: Path) -> None:
    root = folders(tmp_path)
    big = np.kron(texture(77), np.ones((4, 4, 1), np.uint8))
    write_image(root / "good" / "a.png", big)
    write_image(root / "good" / "small.png", big[::2, ::2])
    Image.fromarray(np.clip(big * 1.1, 0, 255).astype(np.uint8)).save(root / "good" / "again.jpg", quality=80)
    problem = only(audit(read(root)), "copies")
    assert problem.names == ("good/a.png", "good/again.jpg", "good/small.png")
    assert "show the same thing" in problem.sentence


def test_copies_across_labels_splits_and_items(tmp_path: Path) -> None:
    root = folders(tmp_path / "labels")
    write_image(root / "dent" / "0.png", texture(3))
    problem = only(audit(read(root)), "copies-across-labels")
    assert (problem.severity, problem.names) == ("warning", ("dent/0.png", "good/3.png"))
    assert "dent and good" in problem.sentence

    # What is called a defect only contradicts no type of defect, as two types do.
    root = folders(tmp_path / "types")
    write_image(root / "defect" / "0.png", texture(1003))
    write_image(root / "scratch" / "0.png", texture(1004))
    result = audit(read(root))
    assert only(result, "copies").names == ("defect/0.png", "dent/3.png")
    assert only(result, "copies-across-labels").names == ("dent/4.png", "scratch/0.png")

    root = tmp_path / "splits"
    for i in range(40):
        write_image(root / "train" / "good" / f"{i}.png", texture(i))
    write_image(root / "test" / "good" / "0.png", texture(5))
    problem = audit(read(root)).problems[0]
    assert (problem.kind, problem.severity) == ("copies-across-splits", "error")
    assert problem.names == ("test/good/0.png", "train/good/5.png")

    root = tmp_path / "items"
    for i in range(40):
        write_image(root / "good" / f"k{i // 4}_Part{i % 4}.png", texture(min(i, 38)))
    problem = only(audit(read(root)), "copies")  # two views of k9: the same item
    assert problem.names == ("good/k9_Part2.png", "good/k9_Part3.png")
    write_image(root / "good" / "k7_Part1.png", texture(0))
    problem = only(audit(read(root)), "copies-across-items")
    assert "(k0, k7)" in problem.sentence


def test_an_item_in_both_splits(tmp_path: Path) -> None:
    for i in range(40):
        write_image(tmp_path / "train" / "good" / f"k{i}_Part1.png", texture(i))
    write_image(tmp_path / "test" / "good" / "k5_Part2.png", texture(100))
    problem = only(audit(read(tmp_path)), "item-across-splits")
    assert problem.names == ("test/good/k5_Part2.png", "train/good/k5_Part1.png")
    assert "Item k5" in problem.sentence


def test_too_few_images_and_unbalanced_labels(tmp_path: Path) -> None:
    few = audit(read(folders(tmp_path / "few", good=37, dents=1)))
    assert [(p.kind, p.severity) for p in few.problems] == [
        ("few-good", "warning"),
        ("imbalance", "note"),
        ("few-of-defect", "note"),
    ]
    assert only(audit(read(folders(tmp_path / "one", good=1))), "few-good").severity == "error"
    alone = audit(read(folders(tmp_path / "alone", dents=0)))
    assert [p.kind for p in alone.problems] == ["no-defects"]


def test_5_percent_false_alarms_need_at_least_19_calibration_images() -> None:
    fewest = next(n for n in range(1, 100) if 1 / (n + 1) <= 0.05)
    assert module.ENOUGH_GOOD == 2 * fewest == 38


def test_a_crowd_of_similar_images_is_not_joined_into_one_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(30):  # two thirds are frames of one still scene
        frame = texture(0) + rng.normal(0, 1, (64, 48, 3)) if i % 3 else texture(i + 1)
        write_image(tmp_path / "good" / f"{i}.png", np.clip(frame, 0, 255).astype(np.uint8))
    write_image(tmp_path / "good" / "exact.png", texture(4))
    result = audit(read(tmp_path))
    assert only(result, "crowd").severity == "warning"
    assert [len(group) for group in result.groups] == [2]  # the exact copy alone
    assert split(read(tmp_path).samples, groups=result.groups).train


def test_each_image_is_decoded_once_and_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folders(tmp_path)
    decoded: list[Path] = []

    def counted(path: Path) -> npt.NDArray[np.uint8]:
        decoded.append(path)
        return load_image(path)

    monkeypatch.setattr("blemish.data.audit.load_image", counted)
    steps: list[tuple[str, int]] = []

    def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        for item in items:
            steps.append((what, total))
            yield item

    samples = read(root).samples
    audit(read(root), progress)
    assert sorted(decoded) == sorted(sample.path for sample in samples)
    assert steps == [("images", 45)] * 45


def test_the_number_of_threads_does_not_change_the_result(tmp_path: Path) -> None:
    root = folders(tmp_path)
    write_image(root / "good" / "copy.bmp", texture(3))
    assert audit(read(root), threads=1) == audit(read(root), threads=4)


def rendered(result: Audit) -> str:
    buffer = io.StringIO()
    render(result, Console(file=buffer, width=100))
    return buffer.getvalue()


def test_the_audit_as_json_and_as_text(tmp_path: Path) -> None:
    root = folders(tmp_path, dents=5)
    for i in range(12):
        (root / "good" / f"[red]{i}.png").write_bytes(b"x")  # file names are printed as they are, not as markup
    result = audit(read(root))
    text = rendered(result)
    assert text.count("is not an image") == 8
    assert "and 4 more like this (unreadable)" in text
    assert "[red]0.png" in text
    assert "48 × 64" in text
    back = json.loads(json.dumps(result.to_json()))
    assert set(back) == {"layout", "why", "files", "rows", "problems", "groups"}
    assert len(back["problems"]) == 12
    assert back["rows"][0] == {
        "split": "",
        "label": "anomaly",
        "defect": "dent",
        "count": 5,
        "smallest": [48, 64],
        "largest": [48, 64],
        "masks": 5,
    }


@pytest.mark.real
def test_kolektor_shows_its_copied_items() -> None:
    dataset = read(shared_folder("data") / "kolektorsdd")
    result = audit(dataset)
    pairs = Counter(tuple(sorted({dataset.samples[i].group for i in group})) for group in result.groups)
    assert pairs == {("kos01", "kos26"): 8, ("kos27", "kos34"): 8, ("kos38", "kos39"): 8}
    exact = [p for p in result.problems if "the same image" in p.sentence]
    assert len(exact) == 16  # two items are copies of files; the third was photographed twice
    sides = split(dataset.samples, groups=result.groups)
    items = [{s.group for s in side} for side in (sides.train, sides.calibration, sides.test)]
    for one, other in pairs:
        assert sum(bool({one, other} & side) for side in items) == 1
