"""Reading runs: what is no run, and what older versions wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blemish.reporting.gallery import gallery
from blemish.reporting.report import facts, report
from blemish.reporting.run import FAITHFUL, read_run
from blemish.types import BlemishError
from tests.reporting.recording import draw, verdict, write_run


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("metrics.json", None, "is no run"),
        ("metrics.json", "{", "is damaged"),
        ("metrics.json", "[]", "no JSON object"),
        ("verdicts.jsonl", None, "cannot be read"),
        ("verdicts.jsonl", '{"path": "a"}\n', "line 1: is not a verdict"),
        ("verdicts.jsonl", "nonsense\n", "line 1: is damaged"),
        ("verdicts.jsonl", "twice", "judges a.png twice"),
        ("verdicts.jsonl", "perhaps", "unknown verdict 'perhaps'"),
        ("bundle/card.json", "{}", "card"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, file: str, text: str | None, says: str) -> None:
    run = write_run(tmp_path / "run", [verdict("a.png", "good", 1.0)])
    if text in ("twice", "perhaps"):
        line = (run / file).read_text()
        text = 2 * line if text == "twice" else line.replace('"good", "score"', '"perhaps", "score"')
    if text is None:
        (run / file).unlink()
    else:
        (run / file).write_text(text)
    with pytest.raises(BlemishError, match=says) as caught:
        report(run, tmp_path / "r.html")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r.html").exists()


def test_the_predicted_defect_of_older_runs_is_called_said(tmp_path: Path) -> None:
    newer, older = (verdict(name, "anomaly", 3.0, "dent", predicted_defect="stain") for name in ("a.png", "b.png"))
    older["said"] = older.pop("predicted_defect")
    run = read_run(write_run(tmp_path / "run", [newer, older], images=False))
    assert [image.predicted_defect for image in run.images] == ["stain", "stain"]
    del older["said"]
    run = read_run(write_run(tmp_path / "none", [older], images=False))
    assert run.images[0].predicted_defect == ""


@pytest.mark.parametrize(("detector", "view"), [("patchcore", "inpainted"), ("attention", "reconstruction")])
def test_older_runs_have_one_folder_for_both_kinds_of_painted_image(tmp_path: Path, detector: str, view: str) -> None:
    folder = write_run(tmp_path / "run", [verdict("a.png", "anomaly", 3.0, "dent")], detector=detector)
    draw(folder / "repaired/a.png.jpg", 1)
    assert list(gallery(read_run(folder), None).cards[0].views) == ["heatmap", view]
    draw(folder / f"{view}/a.png.jpg", 2)  # a newer one comes first
    assert list(gallery(read_run(folder), None).cards[0].views) == ["heatmap", view]


def test_faithfulness_that_was_measured_later_and_by_an_older_version(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [verdict("a.png", "anomaly", 3.0, "dent")], images=False)
    measure = {
        "name": "repair",
        "images": 3,
        "value": {"value": 0.5, "low": None, "high": None},
        "controls": {},
        "explains": None,
    }
    measured = {"images": 3, "asked": 3, "calls": 9, "measures": [measure], "sentences": ["Repair rate: no verdict"]}
    (folder / FAITHFUL).write_text(json.dumps(measured))
    known = facts(read_run(folder))["faithfulness"]
    assert [row["measure"] for row in known["rows"]] == ["Inpainting rate"]
    assert known["sentences"][1].startswith("Inpainting rate: no verdict, since it was measured on 3 images")
    for damaged in ("{}", '{"measures": [{}]}', '{"measures": ["repair"]}'):
        (folder / FAITHFUL).write_text(damaged)
        with pytest.raises(BlemishError, match=r"faithfulness\.json: is damaged; run blemish evaluate"):
            read_run(folder)
