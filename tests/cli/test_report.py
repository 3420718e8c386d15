"""From the command line: what is guaranteed, evaluate, report and compare, and the test for drift."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish import Inspector
from blemish.evaluation.evaluate_bundle import labelled, measure
from blemish.inference import bundle
from blemish.inference.drift import Drift
from tests.support import blemish, refused


def printed(*arguments: object) -> Any:
    """The output of `--json`."""
    return json.loads(blemish(*arguments, "--json").stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--review 10% --confidence 95%", r"20 held-out good images .* 5\.00% .* with 95% confidence: that takes 59"),
        ("--review 3%", r"The review rate, 3\.00%, must be larger than the rate of false alarms, 5\.00%"),
        ("--review many", "'many' is not a rate"),
        ("--false-alarms 1%", r"^40 good images cannot guarantee 1\.00% .* add 59 more"),
        ("--calibrate twice", "--calibrate takes auto, split or leave-one-out, not 'twice'"),
        ("--calibrate leave-one-out --confidence 90%", "holds on average; omit --confidence"),
        ("--calibrate leave-one-out --detector attention", "is for --detector patchcore"),
        ("--detector cam --decide class --review 10%", "belong to a guarantee, and --decide class gives none"),
        ("--detector cam --decide class --confidence 90%", "belong to a guarantee, and --decide class gives none"),
    ],
)
def test_guarantees_that_cannot_be_kept_are_refused(product: Path, tmp_path: Path, options: str, message: str) -> None:
    assert re.search(message, refused("train", product, "-o", tmp_path / "run", *options.split()))
    assert list(tmp_path.iterdir()) == []


def test_all_good_images_train_and_calibrate(all_teach: Path, product: Path) -> None:
    card = bundle.read(all_teach).card
    rule = card.decision
    assert (card.data.train, card.data.calibration, len(rule.scores)) == (40, 0, 40)
    assert (rule.calibrated_by, rule.items) == ("leave-one-out", ())
    ranked = sorted(rule.scores, reverse=True)
    assert (rule.threshold, rule.review_threshold) == (ranked[1], ranked[3])  # 5 % and 10 % of 41
    assert "each scored without its own item" in rule.guarantee
    inspector = Inspector(all_teach, threads=1)
    known = [inspector.inspect(product / f"train/good/{i:03}.png").score or 0 for i in range(40)]
    # Each is nearer to a memory that has it, or as near where nothing of it is left in the thinned one.
    assert np.mean(np.array(known) < np.array(rule.scores) + 1e-4) > 0.9
    assert np.mean(np.array(known) < np.array(rule.scores) - 1e-2) > 0.3
    verdicts = [json.loads(line) for line in (all_teach / "verdicts.jsonl").read_text("utf-8").splitlines()]
    assert [v["decision"] for v in verdicts if v["label"] == "anomaly"] == ["anomaly"] * 6
    assert "tiles" in (all_teach / "report.html").read_text("utf-8")
    assert "Share of good parts" not in blemish("bundle", all_teach).stdout


def test_evaluate_prints_what_it_measures(run: Path, product: Path) -> None:
    output = blemish("evaluate", run, product, "--costs", "1,50,2%").stdout
    assert "tested on 6 good and 6 defective" in output
    assert "Image AUROC" in output
    assert "Measured on the test images of the run." in output
    assert "Missed 0 of 6 spot: 0 %; of all defects like these, 0 to 46 %." in output  # 1 - 0.025^(1/6)
    assert "At the guaranteed threshold, " in output
    assert "estimate on the low side" in output
    found = printed("evaluate", run / "bundle", product, "--costs", "1,50,2%")
    wanted = measure(Inspector(run), labelled(product).samples)
    assert found["detection"]["auroc"] == wanted["detection"]["auroc"]
    assert found["costs"]["prices"] == {"false_alarm": 1, "miss": 50, "defective": 0.02}
    assert found["misses"]["by_defect"]["spot"]["high"] == pytest.approx(1 - 0.025 ** (1 / 6))
    assert "costs" not in printed("evaluate", run, product)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--costs", "1,50"], "--costs takes FALSE_ALARM,MISS,SHARE"),
        (["--randomised", "x"], "--randomised is a control for --faithfulness"),
        (["--layout", "visa"], "visa"),
    ],
)
def test_evaluate_refuses_in_a_sentence(run: Path, product: Path, options: list[str], message: str) -> None:
    assert re.search(message, refused("evaluate", run, product, *options))


def test_an_image_that_cannot_be_read_is_named(run: Path, product: Path, tmp_path: Path) -> None:
    data = shutil.copytree(product / "test", tmp_path / "some")
    (data / "spot/001.png").write_bytes(b"x")
    output = blemish("evaluate", run, data).stdout
    assert "Left out, because unreadable: spot/001.png." in output
    assert "tested on 6 good and 5 defective" in output


def test_measured_faithfulness_is_in_the_report(all_teach: Path, product: Path, tmp_path: Path) -> None:
    run = shutil.copytree(all_teach, tmp_path / "run")
    assert printed("report", run)["faithfulness"] is None
    options = ("--faithfulness", "--most", 2, "--randomised", all_teach)
    found = printed("evaluate", run, product, *options)["faithfulness"]
    assert (found["images"], found["replaced_by"]) == (2, "the most similar good image of the bundle")
    assert found == json.loads((run / "faithfulness.json").read_text("utf-8"))
    assert {measure["name"] for measure in found["measures"]} >= {"deletion", "insertion", "inpainting"}
    assert all(measure["explains"] is None for measure in found["measures"])  # two are too few for a verdict
    randomised = [n for m in found["measures"] for n in m["controls"] if "random" in n and n != "a random map"]
    assert randomised
    reported = printed("report", run)["faithfulness"]
    assert reported["sentences"] == found["sentences"]
    assert [row["measure"] for row in reported["rows"]][:2] == ["Deletion", "Insertion"]
    blemish("report", run, "-o", tmp_path / "page.html")
    assert "Inpainting rate" in (tmp_path / "page.html").read_text("utf-8")
    text = blemish("evaluate", run / "bundle", product, "--faithfulness", "--most", 1).stdout
    assert "Are the heatmaps faithful?" in text
    assert found == json.loads((run / "faithfulness.json").read_text("utf-8"))  # a bundle alone keeps nothing


def test_report_writes_what_it_is_asked_for(
    run: Path, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = printed("report", run)
    assert list(tmp_path.iterdir()) == []  # facts alone, no page
    assert blemish("report", run).stdout.startswith(facts["verdict"])
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    blemish("report", run, "-o", "page.html", "--data", product, "--junit", "out.xml", "--csv", "out.csv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.csv", "out.xml", "page.html", "report.html"]
    assert len((tmp_path / "out.csv").read_text("utf-8").splitlines()) == 13
    assert 'tests="12"' in (tmp_path / "out.xml").read_text("utf-8")
    assert (tmp_path / "page.html").stat().st_size > (tmp_path / "report.html").stat().st_size  # images and a curve
    assert "is no run" in refused("report", run / "bundle")


def test_compare_prints_what_changed(run: Path, all_teach: Path) -> None:
    found = printed("compare", run, all_teach)
    assert len(found["runs"]) == 2
    assert "12" in blemish("compare", run, all_teach).stdout
    assert "takes two runs or more" in refused("compare", run)


@pytest.fixture(scope="module")
def moved(all_teach: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose calibration scores are all lower than the score of any image, as after a change of the line."""
    path = tmp_path_factory.mktemp("moved") / "bundle"
    shutil.copytree(all_teach / "bundle", path)
    card = bundle.read(path).card
    rule = card.decision.model_copy(
        update={"calibrated_by": "split", "scores": tuple(i / 1e4 for i in range(100)), "threshold": 1e6}
    )
    bundle.write(path, card.model_copy(update={"decision": rule}))
    return path


def goods(product: Path, numbers: Iterable[int]) -> list[Path]:
    return [product / f"train/good/{i:03}.png" for i in numbers]


def test_drift_is_noticed_and_the_test_continues(moved: Path, product: Path, tmp_path: Path) -> None:
    file = tmp_path / "drift.json"
    inspector = Inspector(moved, threads=1)
    by_hand = Drift(inspector.card.decision.scores, threshold=1e6)
    for image in goods(product, range(30)):
        by_hand.see(inspector.inspect(image).score or 0)
    assert 5 < (by_hand.state.since or 0) < 30
    output = blemish("inspect", moved, *goods(product, range(5)), "--drift", file).stderr
    assert "Too few parts to tell of drift" in output
    assert "(5 parts seen, 0 anomalies left out)" in output
    output = blemish("inspect", moved, *goods(product, range(5, 30)), "--drift", file).stderr
    assert f"Drift since part {by_hand.state.since}: scores of good parts have become higher (30 parts seen" in output
    assert "train again" in output
    assert file.read_text("utf-8") == by_hand.to_json() + "\n"
    assert "Drift since" in blemish("inspect", moved, *goods(product, [31]), "--drift", file).stderr  # once is for ever


def test_anomalies_are_no_drift_and_errors_are_not_seen(run: Path, product: Path, tmp_path: Path) -> None:
    file = tmp_path / "drift.json"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    inspector = Inspector(run, threads=1)
    threshold = inspector.card.decision.threshold
    calm = [path for path in goods(product, range(10)) if (inspector.inspect(path).score or 0) < threshold][:2]
    arguments = ("inspect", run, product / "test/spot", *calm, broken, "--drift", file)
    assert re.search(r"Too few parts .* \(2 parts seen, 6 anomalies left out", blemish(*arguments, code=3).stderr)
    state = Drift.from_json(file.read_text("utf-8")).state
    assert (state.seen, state.left_out) == (2, 6)
    output = blemish(*arguments, "--json", code=3)
    assert len(output.stdout.splitlines()) == 9
    assert "Too few parts to tell of drift" in output.stderr


def test_drift_is_refused_where_it_has_no_meaning(
    run: Path, moved: Path, all_teach: Path, product: Path, tmp_path: Path
) -> None:
    file, image = tmp_path / "drift.json", goods(product, [0])[0]
    rule = bundle.read(run).card.decision
    pairs = rule.model_copy(update={"items": tuple(i // 2 for i in range(len(rule.scores)))})
    several = shutil.copytree(run / "bundle", tmp_path / "several")
    bundle.write(several, bundle.read(run).card.model_copy(update={"decision": pairs}))
    assert "on one image of each part" in refused("inspect", several, image, "--drift", file)
    assert not file.exists()
    blemish("inspect", run, image, "--drift", file)
    before = file.read_bytes()
    assert re.search(r"drift\.json: is of another bundle", refused("inspect", moved, image, "--drift", file))
    assert file.read_bytes() == before
    file.write_text("{}", encoding="utf-8")
    assert re.search(
        r"drift\.json: is no drift test that blemish saved", refused("inspect", run, image, "--drift", file)
    )
    assert "there is no folder" in refused("inspect", run, image, "--drift", tmp_path / "none/drift.json")
    assert "cannot be read" in refused("inspect", run, image, "--drift", tmp_path)
    output = blemish("inspect", all_teach, image, "--drift", tmp_path / "left-out.json").stderr
    assert "Too few parts to tell of drift" in output
