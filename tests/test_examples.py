"""The programs in examples/ say what blemish says of the same bundle and the same images."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blemish.images import load_image
from blemish.inference.inspector import Inspector
from tests.conftest import tile
from tests.parity import ODD, drawn
from tests.support import png, write_image

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).resolve().parent / "golden"
JAVASCRIPT = ROOT / "examples/javascript"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JavaScript program with what it needs: what lies beside it, or else what npm installs."""
    for tool in ("node", "npm"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed, so the JavaScript program cannot run")
    if (JAVASCRIPT / "node_modules").is_dir():
        return JAVASCRIPT / "inspect.mjs"
    folder = tmp_path_factory.mktemp("javascript")
    for name in ("inspect.mjs", "package.json"):
        shutil.copy(JAVASCRIPT / name, folder)
    command = ["npm", "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install took more than 240 seconds")
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if "npm error" in line]
        unreachable = any(sign in done.stderr for sign in ("ENOTFOUND", "ETIMEDOUT", "ECONNREFUSED", "EAI_AGAIN"))
        assert unreachable, done.stderr
        pytest.skip(f"npm cannot reach its registry ({reason[0] if reason else 'no reason given'})")
    return folder / "inspect.mjs"


def judged(program: Path, folder: Path, *images: Path, code: int = 0) -> list[dict[str, Any]]:
    command: list[str | Path] = ["node", program, folder, *images]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(program: Path, *arguments: Path) -> str:
    done = subprocess.run(["node", program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("inspect.mjs: ")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sizes of all kinds, grey, coloured, with a palette, and with transparent parts."""
    folder = tmp_path_factory.mktemp("images")
    found = [write_image(folder / f"good-{i}.png", tile(700 + i)[0][..., 0]) for i in range(6)]
    found += [write_image(folder / f"spot-{i}.png", tile(720 + i, (8 * i, 12 * i))[0]) for i in range(4)]
    for height, width in ODD:
        for number, colour in enumerate(("grey", "colour")):
            pixels = drawn(730 + number, (height, width))
            path = folder / f"{colour}-{height}x{width}.png"
            found.append(write_image(path, pixels if number else pixels[..., 0]))
    colours = Image.fromarray(drawn(741))
    colours.quantize(16).save(folder / "palette.png")
    alpha = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    colours.putalpha(Image.fromarray(alpha))
    colours.save(folder / "transparent.png")
    Image.fromarray(drawn(742)[..., 0] > 110).save(folder / "one-bit.png")
    return [*found, *(folder / f"{name}.png" for name in ("palette", "transparent", "one-bit"))]


def test_javascript_says_what_blemish_says(program: Path, all_teach: Path, images: list[Path]) -> None:
    inspector = Inspector(all_teach / "bundle")
    rule = inspector.card.decision
    rows, looks = judged(program, all_teach / "bundle", *images), [inspector.look(path) for path in images]
    assert [row["path"] for row in rows] == [str(path) for path in images]
    scores = np.array([look.verdict.score for look in looks])
    np.testing.assert_allclose([row["score"] for row in rows], scores, rtol=0, atol=1e-3 * float(np.ptp(scores)))
    assert [row["decision"] for row in rows] == [look.verdict.decision for look in looks]
    assert {row["decision"] for row in rows} >= {"good", "anomaly"}
    for row, look in zip(rows, looks, strict=True):
        assert look.map is not None
        assert look.image is not None
        down, across = np.nonzero(look.map >= rule.pixel_threshold)
        if row["decision"] == "good" or not len(down):
            assert row["box"] is None
            continue
        (height, width), (h, w) = look.image.shape[:2], look.map.shape
        first = [across.min() * width // w, down.min() * height // h]
        assert row["box"] == [*first, -(-(across.max() + 1) * width // w), -(-(down.max() + 1) * height // h)]
    assert any(row["box"] for row in rows)


def test_javascript_says_what_the_golden_file_says(program: Path) -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    rows = judged(program, GOLDEN / "bundle", *(GOLDEN / "images" / row["image"] for row in expected))
    scores = np.array([row["score"] for row in expected])
    np.testing.assert_allclose([row["score"] for row in rows], scores, rtol=0, atol=1e-3 * float(np.ptp(scores)))
    assert [row["decision"] for row in rows] == [row["decision"] for row in expected]


def test_javascript_goes_on_after_a_image_that_it_cannot_read(program: Path, tmp_path: Path) -> None:
    good = GOLDEN / "images/coloured.png"
    cut, text, deep = tmp_path / "cut.png", tmp_path / "text.png", tmp_path / "deep.png"
    cut.write_bytes(good.read_bytes()[:900])
    text.write_text("no image")
    deep.write_bytes(png(np.arange(24).reshape(4, 6) * 2000, 0, 16))
    assert load_image(deep).shape == (4, 6, 3)  # it is an image
    lost = tmp_path / "lost.png"
    rows = judged(program, GOLDEN / "bundle", cut, text, lost, deep, good, code=3)
    assert [row["decision"] == "error" for row in rows] == [True, True, True, True, False]
    for row in rows[:4]:
        assert row["path"] in row["error"]
        assert row["error"].endswith(("again.", "with 8."))
        assert "\n" not in row["error"]


def test_javascript_refuses_what_is_no_sound_bundle(program: Path, tmp_path: Path) -> None:
    image = GOLDEN / "images/coloured.png"
    assert "give a bundle and at least one image" in refused(program, GOLDEN / "bundle")
    assert "not a readable bundle" in refused(program, tmp_path / "lost", image)
    damaged = tmp_path / "damaged"
    shutil.copytree(GOLDEN / "bundle", damaged)
    model = bytearray((damaged / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(model)
    said = refused(program, damaged, image)
    assert said == f"{damaged}: model.onnx is damaged (its SHA-256 is not the card's); copy the bundle again."
    (damaged / "card.json").write_text('{"format": "something else"}')
    assert "not blemish bundle 2" in refused(program, damaged, image)
