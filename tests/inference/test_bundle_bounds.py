"""Cards with every number out of its range, and texts that are no card. `inference/bundle.py` refuses them by field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blemish import Inspector
from blemish.inference import bundle
from blemish.inference.bundle import BundleError
from blemish.types import BlemishError
from tests import tiny
from tests.support import blemish, refused

FRAME = {"size": [64, 48], "map_size": [4, 5], "tile": [16, 16], "overlap": 4, "tiles": [[0, 0], [48, 32]]}
NOT_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.made(tmp_path / "b")


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        bundle.read(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < len(str(folder)) + 500
    return sentence


def test_a_frame_of_usual_size_is_read(folder: Path) -> None:
    card = bundle.read(tiny.sealed(folder, tiny.content_of(folder) | {"frame": FRAME})).card
    assert card.frame is not None
    assert card.frame.tile_share == 256 / (64 * 48)


FIELDS = [
    "threshold",
    "review_threshold",
    "pixel_threshold",
    "normal_median",
    "min_area",
    "false_alarms",
    "review",
    "confidence",
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_a_rule_that_is_no_number_is_refused(folder: Path, field: str, text: str) -> None:
    content = tiny.content_of(folder)
    content["decision"][field] = "HERE"
    for sealed in (json.dumps(content).replace('"HERE"', text), json.dumps(content).replace("HERE", text)):
        (folder / bundle.CARD).write_text(sealed, "utf-8")  # as a number, and as a string that pydantic reads as one
        assert "the card is not one that blemish can read" in refusal(folder)


@pytest.mark.parametrize("field", ["scores", "map_maxima", "distances", "color_range"])
@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_a_calibration_score_that_is_no_number_is_refused(folder: Path, field: str, text: str) -> None:
    content = tiny.content_of(folder)
    content["decision"][field] = [1.0, "HERE"]
    (folder / bundle.CARD).write_text(json.dumps(content).replace('"HERE"', text), "utf-8")
    assert "the card is not one that blemish can read" in refusal(folder)


@pytest.mark.parametrize("part", ["parity", "settings"])
def test_other_parts_hold_numbers_too(folder: Path, part: str) -> None:
    content = tiny.content_of(folder)
    content[part] = {"a": float("inf")}
    (folder / bundle.CARD).write_text(json.dumps(content).replace("Infinity", "1e999"), "utf-8")
    assert "the card is not one that blemish can read" in refusal(folder)


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *parents, last, value = path

    def change(content: dict[str, Any]) -> None:
        part: Any = content
        for key in parents:
            part = part[key]
        part[last] = value

    return change


def _framed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(frame=copy.deepcopy(FRAME) | changes)


def _files(count: int, size: int) -> dict[str, Any]:
    return {str(i): {"sha256": "0" * 64, "bytes": size} for i in range(count)}


def _long_tiles(content: dict[str, Any]) -> None:
    content.update(image_size=[4, 16_000], frame=FRAME | {"map_size": [4, 5000]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("image_size", [0, 64]), "image_size.0"),
        (_set("image_size", [-4, 64]), "image_size.0"),
        (_set("image_size", [200_000, 200_000]), "image_size.0"),
        (_set("image_size", [90_000, 90_000]), "image_size of 90000 x 90000"),
        (_set("image_size", [64]), "image_size.1"),
        (_framed(size=[200_000, 200_000]), "frame.size.0"),
        (_framed(size=[20_000, 20_000]), "size of 20000 x 20000, more than 100,000,000"),
        (_framed(size=[0, 48]), "frame.size.0"),
        (_framed(map_size=[100_000, 100_000]), "map_size of 100000 x 100000"),
        (_framed(map_size=[1, 50_000_000]), "frame.map_size.1"),
        (_framed(tile=[0, 16]), "frame.tile.0"),
        (_framed(tile=[65, 16]), "tiles are larger"),
        (_framed(overlap=16), "overlap by more than a tile"),
        (_framed(overlap=-1), "frame.overlap"),
        (_framed(tiles=[[0, -1]]), "frame.tiles.0.1"),
        (_framed(tiles=[[0, 0]] * (bundle.MAX_TILES + 1)), "frame.tiles"),
        (_framed(tiles=[[0, 0], [0, 8], [0, 0]]), "a tile is there twice"),
        (_framed(least_correlation=7), "frame.least_correlation"),
        (_framed(align="sift"), "frame.align"),
        (_long_tiles, "too large for tiles"),
        (_set("data", "train", -1), "data.train"),
        (_set("data", "calibration", 2**60), "data.calibration"),
        (_set("data", "seed", 10**100), "data.seed"),
        (_set("data", "test_share", 1.5), "data.test_share"),
        (_set("decision", "false_alarms", -0.1), "decision.false_alarms"),
        (_set("decision", "min_area", 2), "decision.min_area"),
        (_set("decision", "review_threshold", 100.1), "review_threshold is above threshold"),
        (_set("decision", "color_range", [2.0, 1.0]), "color_range is no range"),
        (_set("decision", "color_range", [1.0, 1.0]), "color_range is no range"),
        (_set("decision", "color_range", [0.0, 5e-324]), "color_range is no range"),
        (_set("decision", "color_range", [-1e308, 1e308]), "color_range is no range"),
        (_set("decision", "items", [0, 1]), "not as many items as scores"),
        (_set("decision", "items", [0, 1, -1]), "decision.items.2"),
        (_set("decision", "guarantee", "x" * 200_000), "decision.guarantee"),
        (_set("product", "x" * 200_000), "product"),
        (_set("backbone", {}), "no name or no licence"),
        (_set("backbone", {"name": "x"}), "no name or no licence"),
        (_set("classes", ["good"]), "one class only"),
        (_set("classes", ["x"] * 10_001), "classes"),
        (_set("files", {}), "is not one that blemish can read|has no model.onnx|does not belong"),
        (_set("files", "model.onnx", "bytes", -1), "files.model.onnx.bytes"),
        (_set("files", "model.onnx", "bytes", 2**31), "files.model.onnx.bytes"),
        (_set("files", "model.onnx", "sha256", "0"), "files.model.onnx.sha256"),
        (_set("files", "../model.onnx", {"sha256": "0" * 64, "bytes": 1}), "a name with a folder in it"),
        (_set("files", _files(4, 2**31 - 1)), "more than 4294967296 bytes"),
        (_set("files", _files(17, 1)), "files"),
        (_set("a\nb" * 1000, 1), r"a?ba?b"),
    ],
)  # fmt: skip
def test_a_card_out_of_bounds_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    content = tiny.content_of(folder)
    change(content)
    sentence = refusal(tiny.sealed(folder, content))
    assert any(part in sentence for part in message.split("|")), sentence


SHORT = [b"", b"{", b"null", b"[]", b"7", b'"card"', b"\xff\xfe", b"\0\0", b'{"format": "blemish bundle 1"}']
LONG = [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'{"format": "blemish bundle 1", "decision": []}']


@pytest.mark.parametrize("text", [*SHORT, *LONG], ids=lambda text: text[:30])
def test_what_is_no_card_is_refused(folder: Path, text: bytes) -> None:
    (folder / bundle.CARD).write_bytes(text)
    assert "the card is not one that blemish can read" in refusal(folder)


def test_a_key_that_is_there_twice_is_refused(folder: Path) -> None:
    """Its hash is that of the last of the two, which is what Python reads."""
    text = (folder / bundle.CARD).read_text("utf-8")
    (folder / bundle.CARD).write_text(text.replace('"threshold":', '"threshold": 1e9, "threshold":', 1), "utf-8")
    assert "a key is there twice" in refusal(folder)


def test_a_card_with_another_encoding_is_the_same_card(folder: Path) -> None:
    """An editor's BOM changes nothing."""
    text = (folder / bundle.CARD).read_text("utf-8")
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / bundle.CARD).write_text(text, encoding)
        assert bundle.read(folder).card.product == "tiny"


def test_a_bundle_without_its_model(folder: Path) -> None:
    (folder / bundle.MODEL).unlink()
    with pytest.raises(BundleError, match=r"has no model\.onnx"):
        bundle.write(folder, tiny.card())
    content = tiny.content_of(folder)
    content["files"] = {}
    assert "has no model.onnx" in refusal(tiny.sealed(folder, content))
    for arguments in (["bundle", folder], ["bundle", folder, "--json"], ["inspect", folder, folder / "a.png"]):
        assert "has no model.onnx" in refused(*arguments)


def test_a_card_that_would_be_refused_is_not_written(folder: Path) -> None:
    """Also where it was changed without being checked."""
    before = (folder / bundle.CARD).read_bytes()
    for value in (float("nan"), float("inf")):
        rule = tiny.card().decision.model_copy(update={"pixel_threshold": value})
        with pytest.raises(BundleError, match=r"cannot be written \(decision\.pixel_threshold: .* finite number\)"):
            bundle.write(folder, tiny.card().model_copy(update={"decision": rule}))
    assert (folder / bundle.CARD).read_bytes() == before


def test_a_strip_may_overlap_by_more_than_its_height() -> None:
    """Images of 4000 x 40 pixels with --tile 448 --overlap 64."""
    frame = bundle.Frame(size=(4000, 40), map_size=(10, 1000), tile=(448, 40), overlap=64, tiles=((0, 0), (384, 0)))
    assert frame.tile_share == 448 / 4000


def test_what_training_may_not_write_is_said_in_a_sentence() -> None:
    with pytest.raises(BundleError, match=r"the data of this bundle cannot be written \(train: "):
        bundle.made(bundle.Data, **tiny.card().data.model_dump() | {"train": -1})


def test_every_command_refuses_a_hostile_bundle_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    content = tiny.content_of(folder)
    content["frame"] = FRAME | {"size": [200_000, 200_000]}
    tiny.sealed(folder, content)
    (tmp_path / "in").mkdir()
    for arguments in (
        ["bundle", folder],
        ["inspect", folder, tmp_path / "in"],
        ["explain", folder, tmp_path / "a.png", "--at", "1,1"],
        ["evaluate", folder, tmp_path / "in"],
        ["watch", tmp_path / "in", "--bundle", folder, "--out", tmp_path / "w", "--once"],
    ):
        assert blemish(*arguments, code=2).stderr.count("\n") == 1
    with pytest.raises(BlemishError):
        Inspector(folder)
