import base64
import io
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blemish.options import as_json
from blemish.reporting.curves import pro_points
from blemish.reporting.figures import with_interval
from blemish.reporting.gallery import Gallery, gallery
from blemish.reporting.report import report
from blemish.reporting.rerun import repeat
from blemish.reporting.run import read_run
from blemish.training.config import TrainConfig
from blemish.types import BlemishError
from tests.reporting.recording import Elements
from tests.support import refused, write_image


@pytest.fixture(scope="module")
def beside(run: Path, product: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Elements, Gallery]:
    """The report of a trained run with its data: the page and its gallery."""
    out = tmp_path_factory.mktemp("beside") / "r.html"
    shown: list[Gallery] = []

    def kept(*arguments: Any, **options: Any) -> Gallery:
        shown.append(gallery(*arguments, **options))
        return shown[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blemish.reporting.report.gallery", kept)
        report(run, out, data=product)
    return Elements(out.read_text(encoding="utf-8")), shown[0]


def test_a_run_with_its_data(run: Path, beside: tuple[Elements, Gallery]) -> None:
    """Images, drawn outlines, boxes, and the curve of AUPRO, from inspecting the images again."""
    page, shown = beside
    assert len(page.all("img", "image")) == len(shown.cards) == 12
    assert len(page.all("img", "outline")) == 6
    reported = json.loads((run / "metrics.json").read_text())["localisation"]["aupro"]
    assert f"Per-region overlap, AUPRO {with_interval(reported)}" in [a.get("aria-label") for a in page.all("svg")]
    assert shown.pixels is not None
    x, y = pro_points(shown.pixels)
    assert np.trapezoid(y, x) / 0.3 == pytest.approx(reported["value"], abs=1e-4)
    drawn = [tuple(float(a[key] or 0) for key in ("x", "y", "width", "height")) for a in page.all("rect") if "x" in a]
    boxes = [region["box"] for image in read_run(run).images for region in image.regions]
    assert boxes
    assert drawn[-len(boxes) :] == [(box[0], box[1], box[2] - box[0], box[3] - box[1]) for box in boxes]


def test_other_data_is_refused(run: Path, product: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(product, other)
    name = read_run(run).images[-1].name
    write_image(other / name, np.full((60, 80, 3), 200))
    with pytest.raises(BlemishError, match="another image than the one"):
        report(run, tmp_path / "none.html", data=other)
    write_image(other / name, np.full((30, 80, 3), 200))
    with pytest.raises(BlemishError, match="another image than the one"):
        report(run, tmp_path / "none.html", data=other)
    (other / name).unlink()
    with pytest.raises(BlemishError, match="give the folder that it was made from"):
        report(run, tmp_path / "none.html", data=other)
    assert not list(tmp_path.glob("*none*"))


@pytest.mark.parametrize(
    ("detector", "changes", "rule"),
    [
        ("patchcore", {"max_bank": 70, "place": "no"}, {"review": 0.1, "calibrated_by": "leave-one-out"}),
        ("patchcore", {}, {"confidence": 0.9}),
        (
            "cam",
            {"classes": "types", "pool": "deviations", "augmentations": ("flip", "shift"), "head_weights": (1.0, 3.0)},
            {},
        ),
        ("attention", {"model": "vae", "map": "combined", "layers": ("encoder.11",), "alternate": "every"}, {}),
    ],
)
def test_the_command_repeats_the_configuration_of_the_card(
    run: Path, monkeypatch: pytest.MonkeyPatch, product: Path, detector: str, changes: Any, rule: Any
) -> None:
    """The command that the page gives, read by the command line itself, is the training that the run was."""
    from blemish.detectors.registry import config_of
    from blemish.training import pipeline as training

    card = read_run(run).card
    made: Any = config_of(detector)()
    settings = replace(made, **changes)
    data = card.data.model_copy(update={"test_share": 0.5, "calibration_share": 0.3, "seed": 7, "pooled": True})
    card = card.model_copy(
        update={
            "detector": detector,
            "settings": as_json(replace(settings, image_size=card.image_size, seed=7)),
            "data": data,
            "decision": card.decision.model_copy(update=rule),
            "files": {"model.onnx": card.files["model.onnx"]},
        }
    )
    arguments = shlex.split(repeat(card)["command"])[1:]
    assert arguments[1] == "tiles"
    arguments[1] = str(product)
    asked = []

    def kept(config: TrainConfig, progress: object = None) -> None:
        asked.append(config)
        raise BlemishError("enough")

    monkeypatch.setattr(training, "train", kept)
    assert refused(*arguments) == "enough"
    config, decision = asked[0], card.decision
    assert (config.detector, config.seed, config.image_size) == (detector, 7, card.image_size)
    assert (config.test, config.calibration, config.evidence, config.pooled) == (0.5, 0.3, False, True)
    wanted = (decision.false_alarms, decision.review, decision.confidence)
    assert (config.false_alarms, config.review, config.confidence) == wanted
    assert config.calibrate == decision.calibrated_by
    seen: Any = config.settings
    assert as_json(replace(seen, image_size=card.image_size)) == card.settings


def test_a_card_from_before_alternate_had_three_values(run: Path) -> None:
    card = read_run(run).card
    for before, now in ((True, "every"), (False, "no")):
        old = card.model_copy(update={"detector": "attention", "settings": {"alternate": before}})
        assert f"--alternate {now}" in repeat(old)["command"]


def test_an_outline_lies_around_the_defect(beside: tuple[Elements, Gallery]) -> None:
    cards = [card for card in beside[1].cards if card.outline]
    card = next(card for card in cards if card.image.name.endswith("000.png"))
    data = base64.b64decode((card.outline or "").partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        seen = np.asarray(image.convert("RGBA"))[..., 3] > 0
    rows, columns = np.nonzero(seen)
    assert seen.shape == (60, 80)
    # The defect is 12 x 12 at (4, 60); the line is two pixels wide and lies two pixels off it.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 19, 56, 75)
    assert not seen[4:16, 60:72].any()
