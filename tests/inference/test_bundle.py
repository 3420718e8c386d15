import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from blemish.inference import bundle
from blemish.inference.bundle import BundleError


def card() -> bundle.Card:
    return bundle.Card(
        created="2026-01-01T00:00:00+00:00",
        product="washer",
        detector="patchcore",
        settings={"coreset": 0.1},
        image_size=(64, 64),
        data=bundle.Data(source="x", layout="mvtec", train=3, calibration=19, test=2, seed=0, sha256="0"),
        decision=bundle.Decision(
            false_alarms=0.05,
            guarantee="…",
            threshold=1.5,
            pixel_threshold=1.25,
            normal_median=0.75,
            min_area=0.0,
            scores=(1.0, 1.5),
            map_maxima=(1.0,),
            color_range=(0.5, 2.0),
        ),
        parity={"scores": 0.0},
        backbone={"name": "bundled"},
        licences={},
        versions={},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "model.onnx").write_bytes(b"graph" * 100)
    bundle.write(path, card())
    return path


def test_what_is_written_is_read_back(folder: Path) -> None:
    loaded = bundle.read(folder)
    assert loaded.model == b"graph" * 100
    assert loaded.card.decision == card().decision
    assert loaded.card.files["model.onnx"].bytes == 500


def test_a_zip_is_the_same_bundle_and_always_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    bundle.pack(folder, tmp_path / "a.zip")
    bundle.pack(folder, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert bundle.read(tmp_path / "a.zip").card == bundle.read(folder).card


def test_the_run_folder_will_do(folder: Path, tmp_path: Path) -> None:
    assert bundle.read(tmp_path).path == folder


def test_one_flipped_bit_is_noticed(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[7] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        bundle.read(folder)


def test_a_moved_threshold_is_noticed(folder: Path) -> None:
    text = (folder / "card.json").read_text(encoding="utf-8")
    (folder / "card.json").write_text(text.replace("1.25", "9.25"), encoding="utf-8")
    with pytest.raises(BundleError, match="changed after it was written"):
        bundle.read(folder)


def test_a_card_from_before_a_field_was_added_is_whole(folder: Path) -> None:
    content = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    del content["decision"]["distances"], content["decision"]["boxes"]
    content["sha256"] = ""
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "card.json").write_text(json.dumps(content), encoding="utf-8")
    loaded = bundle.read(folder)
    assert loaded.card.decision == card().decision
    assert loaded.evidence is None


def test_evidence_is_read_and_hashed_like_the_rest(folder: Path) -> None:
    (folder / "card.json").unlink()
    (folder / "evidence.zip").write_bytes(b"images")
    bundle.write(folder, card())
    assert bundle.read(folder).evidence == b"images"
    (folder / "evidence.zip").write_bytes(b"other ones")
    with pytest.raises(BundleError, match=r"evidence\.zip is damaged"):
        bundle.read(folder)


def test_missing_and_foreign_files_are_named(folder: Path) -> None:
    (folder / "run.py").write_text("print(1)", encoding="utf-8")
    with pytest.raises(BundleError, match=r"run\.py does not belong"):
        bundle.read(folder)
    (folder / "run.py").unlink()
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="blemish bundle 9"), "format"),
        (lambda c: c.pop("decision"), "decision"),
        (lambda c: c.update(script="rm -rf"), "script"),
    ],
)
def test_a_foreign_card_is_refused_by_field(folder: Path, change: object, message: str) -> None:
    content = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert callable(change)
    change(content)
    (folder / "card.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"not one that blemish can read \({message}"):
        bundle.read(folder)


def test_what_is_no_bundle_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        bundle.read(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"has no card\.json"):
        bundle.read(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"PK not a zip")
    with pytest.raises(BundleError, match=r"not a readable \.zip"):
        bundle.read(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("../../escape", "x")
    with pytest.raises(BundleError, match=r"has no card\.json"):
        bundle.read(tmp_path / "y.zip")
    assert not (tmp_path.parent.parent / "escape").exists()


def test_a_card_from_before_frames_is_read(tmp_path: Path) -> None:
    (tmp_path / bundle.MODEL).write_bytes(b"graph")
    bundle.write(tmp_path, card())
    content = json.loads((tmp_path / bundle.CARD).read_text("utf-8"))
    assert content.pop("frame") is None
    content["sha256"] = bundle._digest(content)
    (tmp_path / bundle.CARD).write_text(json.dumps(content), "utf-8")
    assert bundle.read(tmp_path).card.frame is None
