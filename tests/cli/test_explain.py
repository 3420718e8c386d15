import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from blemish import Inspector
from blemish.inference import bundle
from tests.conftest import tile
from tests.support import blemish, refused, write_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("new")
    write_image(path / "bad.png", tile(901, (20, 30))[0])
    write_image(path / "good.png", tile(900)[0])
    (path / "broken.png").write_bytes(b"x")
    return path


@pytest.fixture(scope="module")
def old(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as a version without evidence would have written it."""
    path = tmp_path_factory.mktemp("old") / "bundle"
    shutil.copytree(run / "bundle", path)
    (path / "evidence.zip").unlink()
    model = onnx.load(path / "model.onnx")
    kept = [output for output in model.graph.output if output.name in ("scores", "maps")]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path / "model.onnx")
    bundle.write(path, bundle.read(run).card)
    card = json.loads((path / "card.json").read_text("utf-8"))
    del card["decision"]["distances"], card["parity"]["distances"]
    card["sha256"] = bundle._digest(card)
    (path / "card.json").write_text(json.dumps(card), "utf-8")
    return path


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "verdicts.jsonl").read_text("utf-8").splitlines()
    return {Path(row["path"]).name: row for row in map(json.loads, lines)}


def test_inspect_shows_the_evidence_of_anomalies(run: Path, folder: Path, tmp_path: Path) -> None:
    printed = blemish("inspect", run, folder, "--out", tmp_path / "out", code=3).stdout  # one image is broken
    assert "With this region inpainted, the verdict would be good (p = " in printed
    by_name = rows(tmp_path / "out")
    assert by_name["bad.png"]["counterfactual"]["decision"] == "good"
    assert by_name["bad.png"]["evidence"][0]["file"] == "evidence/bad.png.jpg"
    assert by_name["good.png"]["evidence"] == by_name["broken.png"]["evidence"] == []
    drawn = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.jpg"))
    assert drawn == ["evidence/bad.png.jpg", "inpainted/bad.png.jpg", "overlays/bad.png.jpg", "overlays/good.png.jpg"]


def test_evidence_can_be_left_out(run: Path, folder: Path, tmp_path: Path) -> None:
    printed = blemish("inspect", run, folder / "bad.png", "--out", tmp_path / "out", "--no-evidence").stdout
    assert "inpainted" not in printed
    assert [file.name for file in (tmp_path / "out").iterdir() if file.is_dir()] == ["overlays"]
    assert rows(tmp_path / "out")["bad.png"]["evidence"] == []
    assert "give a folder with --out" in refused("inspect", run, folder / "bad.png", "--evidence")


def test_bundles_of_versions_without_evidence_are_read(run: Path, old: Path, folder: Path, tmp_path: Path) -> None:
    printed = blemish("inspect", old, folder / "bad.png", folder / "good.png", "--out", tmp_path / "out").stderr
    assert printed.count("shows no nearest normal images") == 1
    row = rows(tmp_path / "out")["bad.png"]
    assert (row["decision"], row["evidence"], row["counterfactual"]) == ("anomaly", [], None)
    assert row["score"] == pytest.approx(Inspector(run).inspect(folder / "bad.png").score, rel=1e-5)
    printed = blemish("explain", old, folder / "bad.png", "--at", "36,26").stdout
    assert "the place is flagged" in printed
    assert "shows no nearest normal images" in printed


def test_explain_answers_for_a_place(run: Path, folder: Path, tmp_path: Path) -> None:
    inspector = Inspector(run)
    inspection = inspector.look(folder / "bad.png")
    rule = inspector.card.decision
    assert inspection.map is not None
    assert inspection.distances is not None
    for place, flagged in (((36, 26), True), ((75, 55), False)):
        at = f"{place[0]},{place[1]}"
        facts = json.loads(blemish("explain", run, folder / "bad.png", "--at", at, "--json", "--out", tmp_path).stdout)
        value = float(inspection.map[place[1] * 192 // 60, place[0] * 256 // 80])
        assert facts["value"] == pytest.approx(value, rel=1e-5)
        assert facts["threshold"] == rule.pixel_threshold
        assert facts["flagged"] is flagged
        assert facts["decision"] == "anomaly"
        assert facts["p_value"] == pytest.approx((1 + sum(peak >= value for peak in rule.map_maxima)) / 20)
        nearest = facts["nearest"]
        assert nearest["source"].startswith("train/good/")
        grid_rows, columns = inspection.distances.shape
        distance = float(inspection.distances[place[1] * grid_rows // 60, place[0] * columns // 80])
        assert nearest["distance"] == pytest.approx(distance, rel=1e-4)
        assert nearest["p_value"] == pytest.approx((1 + sum(d >= distance for d in rule.distances)) / 20)
        with Image.open(nearest["file"]) as image:
            assert image.width > image.height  # two crops side by side
            left = np.asarray(image.convert("L"), np.float32)[: image.height // 2, : image.width // 2]
            assert (left.max() > 235) is np.True_ if flagged else left.mean() < 200
    printed = blemish("explain", run, folder / "good.png", "--at", " 3, 4").stdout
    assert printed.startswith(f"{folder / 'good.png'}: good, score ")
    assert "the place is not flagged" in printed
    assert "It comes from train/good/" in printed


@pytest.mark.parametrize(
    ("image", "at", "message"),
    [
        ("bad.png", "80,5", "has 80 x 60 pixels, so there is no place 80,5"),
        ("bad.png", "here", "--at takes a place in pixels from the top left corner, as 120,80, not 'here'"),
        ("bad.png", "-1,5", "--at takes a place"),
        ("broken.png", "1,5", r"broken\.png"),
        ("missing.png", "1,5", r"missing\.png"),
    ],
)
def test_explain_refuses_in_a_sentence(run: Path, folder: Path, image: str, at: str, message: str) -> None:
    assert re.search(message, refused("explain", run, folder / image, "--at", at))


def test_a_bundle_without_images(product: Path, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--image-size", "64x96", "--max-bank", 50, "--overlays", 4)
    blemish("train", product, "-o", run, *options, "--no-evidence")
    assert sorted(file.name for file in (run / "bundle").iterdir()) == ["card.json", "model.onnx"]
    assert all(row["counterfactual"] is None for row in rows(run).values())
    inspection = Inspector(run).look(folder / "bad.png")
    assert inspection.neighbours is not None
    assert inspection.neighbours.dtype == np.int32
    assert inspection.distances is not None
    printed = blemish("inspect", run, folder / "bad.png", "--out", tmp_path / "out").stderr
    assert "shows no nearest normal images" in printed
    row = rows(tmp_path / "out")["bad.png"]
    assert row["evidence"][0]["source"] is None
    assert row["evidence"][0]["distance"] > 0
    assert row["counterfactual"] is None
