import hashlib
import json
import shutil
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish import Inspector
from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.inference import bundle
from blemish.inference.bundle import BundleError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


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
        backbone={"name": "bundled", "licence": "Apache-2.0"},
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


def test_a_runs_folder_will_do(folder: Path, tmp_path: Path) -> None:
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


def test_a_card_from_before_a_field_was_added_is_undamaged(folder: Path) -> None:
    content = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    del content["decision"]["distances"], content["decision"]["boxes"]
    assert changed(folder, content).decision == card().decision
    assert bundle.read(folder).evidence is None


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


def changed(folder: Path, content: dict[str, Any]) -> bundle.Card:
    """The card as it is read when the file holds `content`, with the digest of that."""
    content["sha256"] = ""
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "card.json").write_text(json.dumps(content), encoding="utf-8")
    return bundle.read(folder).card


@pytest.fixture
def format_1(folder: Path) -> dict[str, Any]:
    """The content of the card as format 1 had it: the old names, one by one."""
    content = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    content["format"] = "blemish bundle 1"
    content["parity"] = {"pictures": 4.0, "scores": 0.0}
    decision = content["decision"]
    decision |= {"rule": "promise", "boxes": "hills"}
    decision["usual"] = decision.pop("normal_median")
    decision["peaks"] = decision.pop("map_maxima")
    decision["heat"] = decision.pop("color_range")
    return dict(content)


def test_a_card_of_format_1_is_the_same_card(folder: Path, format_1: dict[str, Any]) -> None:
    upgraded = changed(folder, format_1)
    assert upgraded.format == "blemish bundle 2"
    assert upgraded.decision == card().decision
    assert upgraded.decision.rule == "guarantee"
    assert upgraded.decision.boxes == "regions"
    assert upgraded.decision.normal_median == 0.75
    assert upgraded.decision.map_maxima == (1.0,)
    assert upgraded.decision.color_range == (0.5, 2.0)
    assert upgraded.parity == {"images": 4.0, "scores": 0.0}
    assert upgraded.data == card().data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"neighbourhood": 3}, {"patch_size": 3}),
        ({"departures": True}, {"deviations": True}),
        ({"rate": 0.004}, {"learning_rate": 0.004}),
        ({"may": ["flip"]}, {"augmentations": ["flip"]}),
        ({"spoil": "patches"}, {"corruption": "patches"}),
        ({"input": "picture"}, {"input": "image"}),
        ({"input": "residual", "coreset": 0.1, "layers": []}, {"input": "residual", "coreset": 0.1, "layers": []}),
    ],
)
def test_settings_of_format_1_have_new_names(
    folder: Path, format_1: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert changed(folder, format_1 | {"settings": old}).settings == new


def test_rules_of_format_1_that_kept_their_name(folder: Path, format_1: dict[str, Any]) -> None:
    decision = format_1["decision"] | {"rule": "class", "boxes": "one"}
    upgraded = changed(folder, format_1 | {"decision": decision}).decision
    assert (upgraded.rule, upgraded.boxes) == ("class", "one")


# What `blemish train` of version 0.1 wrote of its three detectors.
SETTINGS_1 = {
    "patchcore": "backbone weights layers image_size neighbourhood coreset max_bank neighbours projection sigma memory "
    "batch random_weights seed device",
    "cam": "backbone weights image_size layers moments departures unfreeze outputs types head_weights may epochs batch "
    "rate decay one_cycle head_first stop_at map map_layer sigma contrast memory random_weights seed device processes",
    "attention": "model pretrained weights image_size width latent beta loss layers attention_loss attention_weight "
    "alternate spoil input map residual standardise score sigma may epochs batch rate decay validation memory seed "
    "device processes",
}


@pytest.mark.parametrize(
    ("detector", "config"), [("patchcore", PatchCoreConfig), ("cam", CamConfig), ("attention", AttentionConfig)]
)
def test_every_setting_of_format_1_is_one_that_the_detector_has(
    folder: Path, format_1: dict[str, Any], detector: str, config: Any
) -> None:
    """Or the command that makes the run again would lack it. Eq. 7 of PatchCore is no longer there."""
    upgraded = changed(folder, format_1 | {"settings": dict.fromkeys(SETTINGS_1[detector].split(), 1)})
    assert set(upgraded.settings) - {field.name for field in fields(config)} <= {"num_neighbours"}


def test_a_changed_card_of_format_1_is_noticed(folder: Path, format_1: dict[str, Any]) -> None:
    changed(folder, format_1)
    text = (folder / "card.json").read_text(encoding="utf-8")
    (folder / "card.json").write_text(text.replace("1.25", "9.25"), encoding="utf-8")
    with pytest.raises(BundleError, match="changed after it was written"):
        bundle.read(folder)


@pytest.mark.parametrize("part", ["decision", "settings", "parity"])
def test_a_damaged_card_of_format_1_is_refused_by_field(folder: Path, format_1: dict[str, Any], part: str) -> None:
    with pytest.raises(BundleError, match=rf"not one that blemish can read \({part}"):
        changed(folder, format_1 | {part: "none"})
    del format_1[part]
    with pytest.raises(BundleError, match=rf"not one that blemish can read \({part}"):
        changed(folder, format_1)


def test_a_graph_of_format_1_runs_with_its_old_input_and_output_names() -> None:
    assert json.loads((GOLDEN / "bundle/card.json").read_text("utf-8"))["format"] == "blemish bundle 1"
    inspector = Inspector(GOLDEN / "bundle", threads=1)
    assert [node.name for node in inspector._session.get_inputs()] == ["pictures"]
    assert "repaired" in [node.name for node in inspector._session.get_outputs()]
    assert inspector.reconstructs
    prediction = inspector.predict(np.full((40, 30, 3), 120, np.uint8))
    assert prediction.maps.shape == (1, 32, 32)
    assert prediction.reconstruction is not None
    assert prediction.reconstruction.shape == (1, 32, 32, 3)
    assert prediction.reconstruction.dtype == np.uint8


def test_a_bundle_of_format_1_may_be_packed(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bundle", tmp_path / "old")
    bundle.pack(tmp_path / "old", tmp_path / "old.zip")
    assert bundle.read(tmp_path / "old.zip").card == bundle.read(GOLDEN / "bundle").card


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
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("bundle/card.json", "{}")
    with pytest.raises(BundleError, match=r"no card\.json at its top, only bundle/card\.json; pack the bundle with"):
        bundle.read(tmp_path / "z.zip")


def test_a_card_from_before_frames_is_read(folder: Path) -> None:
    content = json.loads((folder / bundle.CARD).read_text("utf-8"))
    assert content.pop("frame") is None
    assert changed(folder, content).frame is None
