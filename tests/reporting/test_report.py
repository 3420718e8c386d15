import csv
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from blemish import reporting
from blemish.evaluation.bootstrap import wilson
from blemish.reporting.figures import with_interval
from blemish.reporting.gallery import BYTES, gallery
from blemish.reporting.report import facts, report
from blemish.reporting.run import OUTCOMES, read_run
from blemish.types import BlemishError
from tests.reporting.recording import GOOD, THRESHOLD, Elements, draw, verdict, write_run

REPORTING = Path(reporting.__file__).parent
ODD = 'test/x/<script>alert("1")</script>\'é\u2028#50%.png'
EVIL = "=1+<img src=x onerror=alert(1)>"

VERDICTS = [
    verdict("test/good/1.png", "good", 1.2),
    verdict("test/good/2.png", "good", 2.5),
    verdict("test/good/10.png", "good", 1.4),
    verdict("test/good/3.png", "good", 3.5),
    verdict("test/dent/1.png", "anomaly", 1.3, "dent"),
    verdict("test/dent/2.png", "anomaly", 1.1, "dent"),
    verdict("test/dent/3.png", "anomaly", 4.0, "dent"),
    verdict("test/dent/4.png", "anomaly", 2.1, "dent"),
    verdict("test/dent/5.png", "anomaly", 1.85, "dent", decision="review"),
    verdict(ODD, "anomaly", 3.0, EVIL),
    verdict("test/new.png", None, 1.0),
    verdict("test/torn.png", "good", None, decision="error", error="test/torn.png is <no> image"),
]
ORDER = [
    *("test/dent/2.png", "test/dent/1.png"),  # missed, the most certain first
    *("test/good/3.png", "test/good/2.png"),  # false alarms
    "test/dent/5.png",  # review
    "test/torn.png",
    *("test/dent/4.png", ODD, "test/dent/3.png"),  # found, the narrowest first
    *("test/good/10.png", "test/good/1.png"),
    "test/new.png",
]


FAITHFUL = {
    "images": 9,
    "asked": 10,
    "calls": 1000,
    "measures": [
        {
            "name": name,
            "images": 5 if name == "energy" else 9,
            "value": {"value": value, "low": value - 0.1, "high": value + 0.1},
            "controls": {"a <random> map": {"value": 0.5, "low": None, "high": None}},
            "advantage": {"a <random> map": {"value": 0.25, "low": -0.25, "high": 0.75}},
            "beats": {"a <random> map": explains},
            "at_random": None,
            "explains": explains,
        }
        for name, value, explains in (("deletion", 0.25, True), ("road", 0.5, False), ("energy", 0.75, None))
    ],
}


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a run can have."""
    folder = tmp_path_factory.mktemp("plates") / "run"
    verdicts = [dict(line) for line in VERDICTS]
    place, normal = draw(folder / "evidence/a.jpg", 1), draw(folder / "evidence/b.jpg", 2)
    last = next(v for v in verdicts if v["path"] == "test/dent/3.png")
    last["evidence"] = [
        {
            "region": place.relative_to(folder).as_posix(),
            "normal": normal.relative_to(folder).as_posix(),
            "distance": 3.25,
            "typical": 1.5,
        },
        {"region": "../../../../etc/passwd", "distance": 9.0},
    ]
    last["counterfactual"] = {"score": 1.25, "p_value": 0.75, "decision": "good"}
    draw(folder / "inpainted/test/dent/3.png.jpg", 3)
    more = {
        "faithfulness": FAITHFUL,
        "cross_validation": {"suspects": [{"name": "a<b>.png", "given": "good", "likely": "dent", "sure": 0.1}]},
        "data_problems": ["3 images are <blurred>.", "2 are alike."],
    }
    run = write_run(folder, verdicts, product="plates & <b>co</b>", more=more)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["decision"]["review_threshold"] = 1.8
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture(scope="module")
def written(plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    report(plates, out / "sub/report.html", junit=out / "junit.xml", csv=out / "all.csv")
    return out


@pytest.fixture(scope="module")
def page(written: Path) -> Elements:
    return Elements((written / "sub/report.html").read_text(encoding="utf-8"))


def test_the_page_is_self_contained(written: Path, page: Elements) -> None:
    text = (written / "sub/report.html").read_text(encoding="utf-8")
    assert "http" not in text.lower()
    assert not page.all("link", "stylesheet")
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    for address in (a["href"] for a in page.all("a")):
        assert ids.count((address or "")[1:]) == 1
    labels = {a["for"] for a in page.all("label") if "for" in a}
    assert labels <= set(ids)


def test_every_image_is_there_once_and_mistakes_come_first(page: Elements) -> None:
    cards = page.all("li", "card")
    assert [card["data-name"] for card in cards] == ORDER
    outcomes = [card["data-outcome"] or "" for card in cards]
    assert outcomes == sorted(outcomes, key=list(OUTCOMES).index)
    assert len(page.all("img", "heatmap")) == len(VERDICTS) - 1  # but for the one that could not be read
    assert len(page.all("img", "inpainted")) == 1
    assert [a.get("value") for a in page.all("input") if a.get("name") == "show"] == ["", *dict.fromkeys(outcomes)]


def test_the_page_is_accessible(page: Elements) -> None:
    assert page.tags[0] == ("html", {"lang": "en"})
    assert all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(a.get("scope") for a in page.all("th"))
    form = page.all("form", "filters")[0]
    assert "hidden" in form  # useless without the script, which shows it
    assert "width=device-width" in str(page.all("meta"))


def test_the_style_has_a_rule_for_every_view_and_a_value_for_every_variable(page: Elements) -> None:
    styles = {name: (REPORTING / f"{name}.css").read_text("utf-8") for name in ("base", "report")}
    views = {a["value"] for a in page.all("input") if (a.get("name") or "").startswith("v") and a["name"] != "view"}
    assert views == {"heatmap", "inpainted"}
    for view in (*views, "image", "reconstruction"):
        assert f"[value={view}]:checked ~ .stack > .{view}" in styles["report"]
    pages = [REPORTING / "report.html.jinja", *(REPORTING.parent / "demo").glob("*.html*")]
    text = "".join([*styles.values(), *(file.read_text("utf-8") for file in pages)])
    assert set(re.findall(r"var\(--([\w-]+)", text)) <= set(re.findall(r"--([\w-]+): ?", text))


def luminance(colour: str) -> float:
    if len(colour) == 4:
        colour = "#" + "".join(2 * c for c in colour[1:])
    linear = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_light_and_dark_mode(written: Path) -> None:
    text = (written / "sub/report.html").read_text(encoding="utf-8")
    assert contrast("#fff", "#000000") == pytest.approx(21)
    schemes = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)[:2]
    for scheme, review in zip(schemes, re.findall(r"\.review \{ --colour: (#\w+)", text), strict=True):
        colours = dict(re.findall(r"--([\w-]+): (#\w+)", scheme))
        for name in ("ink", "quiet", "missed", "false-alarm", "found", "passed"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
            assert contrast(colours[name], colours["card"]) >= 4.5, name
        assert contrast(colours["ink"], colours["soft"]) >= 4.5
        assert contrast(review, "#fff") >= 4.5  # the chip's letters
    assert "@media print" in text


def test_names_are_text_and_never_markup(written: Path, page: Elements) -> None:
    text = (written / "sub/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "onerror=alert(1)>" not in text
    assert "<b>co" not in text
    assert len(page.all("script")) == 1
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert "<script>alert" in page.text  # but people read it
    assert "plates & <b>co</b>, inspected by patchcore" in page.text
    assert "test/torn.png is <no> image" in page.text
    assert "a<b>.png: labelled good, looks like dent" in page.text
    assert "3 images are <blurred>." in page.text
    assert "2 are alike." in page.text
    assert (
        "ROAD: the heatmaps do not explain the verdicts; 0.500 [0.400, 0.600], not better than a <random> map"
        in page.text
    )


def test_the_figures_are_those_of_the_run(plates: Path, page: Elements) -> None:
    metrics = json.loads((plates / "metrics.json").read_text())
    detection = metrics["detection"]
    interval = detection["auroc"]
    assert f"{interval['value']:.3f} {interval['low']:.3f} to {interval['high']:.3f}" in page.text
    alarms, recall = (with_interval(detection[name], percent=True) for name in ("false_alarm_rate", "recall"))
    summary = page.text[page.text.index("Flags at most") :]
    assert summary.startswith(
        f"Flags at most 5 % of good parts (guaranteed); flagged {alarms} of good test images; finds {recall} of "
        "defective ones; leaves 1 of 12 test images to a person; heatmaps beat their controls in 1 of 2 measures."
    )
    assert metrics["decision"]["guarantee"] in page.text
    assert "dent 3 of 5" not in page.text  # review is not found
    assert f"dent 2 of 5 {with_interval(wilson_json(2, 5), percent=True)}" in page.text
    assert "Deletion 0.250 [0.150, 0.350] 0.500" in page.text
    assert "Distance 3.250; typical of good parts: 1.500." in page.text
    assert "With its boxes inpainted: good, score 1.250, p 0.750." in page.text
    assert "Between the two thresholds a person decides." in page.text


def wilson_json(some: int, of: int) -> dict[str, float | None]:
    interval = wilson(some, of)
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def test_observed_false_alarms_at_each_rate(plates: Path) -> None:
    """Held out are 1.00, 1.05, ... 1.90: at 10 % two of twenty may lie above, so the threshold is the second
    highest."""
    rows = {row["rate"]: row for row in facts(read_run(plates))["false_alarms"]}
    assert list(rows) == [0.01, 0.02, 0.05, 0.1, 0.2]
    assert (rows[0.01]["threshold"], rows[0.01]["needed"], rows[0.02]["needed"]) == (None, 99, 49)
    assert rows[0.05]["threshold"] == THRESHOLD == GOOD[-1]
    assert rows[0.1]["threshold"] == GOOD[-2]
    assert rows[0.2]["threshold"] == GOOD[-4]
    assert (rows[0.05]["alarms"], rows[0.05]["of"]) == (2, 4)  # 2.5 and 3.5 of 1.2, 2.5, 1.4, 3.5
    assert rows[0.05]["observed"] == wilson_json(2, 4)
    assert rows[0.1]["found"] == wilson_json(
        3, 6
    )  # what was left to a person scored 1.85: at that threshold, not above it
    assert rows[0.2]["found"] == wilson_json(4, 6)


def test_json_holds_the_facts_of_the_page(plates: Path, tmp_path: Path) -> None:
    known = report(plates, None)
    assert json.loads(json.dumps(known)) == known
    assert [image["name"] for image in known["images"]] == ORDER
    assert known["outcomes"] == {
        "missed": 2,
        "false-alarm": 2,
        "review": 1,
        "error": 1,
        "found": 3,
        "passed": 2,
        "unlabelled": 1,
    }
    assert known["review"] == [1.8, THRESHOLD]
    assert known["faithfulness"]["columns"] == ["detector", "a <random> map"]
    assert not list(tmp_path.iterdir())


def test_junit_has_the_failures(written: Path) -> None:
    root = ElementTree.parse(written / "junit.xml").getroot()
    suite = root[0]
    for element in (root, suite):
        counts = {name: element.get(name) for name in ("tests", "failures", "errors", "skipped")}
        assert counts == {"tests": "12", "failures": "4", "errors": "1", "skipped": "1"}
    children = {case.get("name"): [child.tag for child in case] for case in suite}
    assert len(children) == 12
    assert children["test/dent/2.png"] == children["test/good/3.png"] == ["failure"]
    assert children["test/torn.png"] == ["error"]
    assert children["test/dent/5.png"] == ["skipped"]
    assert children[ODD] == children["test/good/1.png"] == children["test/new.png"] == []
    failure = suite[0][0]
    assert (failure.get("type"), failure.get("message")) == (
        "missed",
        "dent, called good: score 1.100, threshold 1.900",
    )


def test_csv_has_a_row_for_each_image_and_runs_no_formula(written: Path) -> None:
    assert (written / "all.csv").read_bytes().startswith(b"\xef\xbb\xbfimage,label,")  # as Excel knows UTF-8
    with (written / "all.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ORDER
    by_name = {row["image"]: row for row in rows}
    assert by_name[ODD]["defect"] == f"'{EVIL}"
    assert float(by_name["test/dent/3.png"]["score"]) == 4.0
    assert by_name["test/good/2.png"]["outcome"] == "false alarm"
    assert by_name["test/torn.png"]["score"] == ""
    assert by_name["test/torn.png"]["error"] == "test/torn.png is <no> image"


@pytest.mark.parametrize(
    "name", ["=1.png", "+1.png", "-1.png", "@a.png", "\t=1.png", "\n=1.png", "\r=1.png", "＝1.png"]
)
def test_no_name_begins_a_formula(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", [verdict(name, "good", 1.0)], images=False)
    report(run, None, junit=tmp_path / "r.xml", csv=tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [f"'{name}"]
    assert ElementTree.parse(tmp_path / "r.xml").getroot()[0][0].get("name") == name


def test_names_that_are_no_unicode_are_written_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [verdict("a\udcff\x01.png", "good", 1.0)], images=False)
    report(run, tmp_path / "r.html", junit=tmp_path / "r.xml", csv=tmp_path / "r.csv")
    root = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert root[0][0].get("name") == "a?\ufffd.png"
    assert "a?" in (tmp_path / "r.csv").read_text(encoding="utf-8")
    assert "a?" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_five_hundred_images_stay_under_fifteen_megabytes(tmp_path: Path) -> None:
    """Images of noise, which compress badly, each with an overlay and an inpainted image."""
    verdicts = [verdict(f"test/dent/{i}.png", "anomaly", 2 + i / 100, "dent") for i in range(500)]
    run = write_run(tmp_path / "run", verdicts, images=False)
    one = draw(tmp_path / "noise.jpg", 0, (200, 150), noise=60)
    for kind in ("overlays", "inpainted"):
        for line in verdicts:
            file = run / kind / f"{line['path']}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.hardlink_to(one)
    report(run, tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    assert 1_000_000 < size < 15_000_000
    assert len(Elements((tmp_path / "report.html").read_text(encoding="utf-8")).all("li", "card")) == 500


def test_the_last_images_go_without_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", [verdict(f"{i}.png", "good", 1 + i / 100) for i in range(9)])
    monkeypatch.setattr("blemish.reporting.gallery.BYTES", 4 * 2_500)
    shown = gallery(read_run(run), None)
    assert shown.without == 5
    assert [bool(card.views) for card in shown.cards] == [True] * 4 + [False] * 5
    assert BYTES * 4 / 3 < 13_000_000  # leaves room for the page itself
    report(run, tmp_path / "r.html")
    assert "The last 5 are listed without an image" in Elements((tmp_path / "r.html").read_text(encoding="utf-8")).text


def test_what_was_not_measured_is_not_claimed(tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare", [])
    found = report(bare, tmp_path / "bare.html")
    assert found["verdict"] == "Flags at most 5 % of good parts (guaranteed)."
    text = Elements((tmp_path / "bare.html").read_text(encoding="utf-8")).text
    assert "There are no test images." in text
    assert "This was not measured in this run" in text
    assert "Not searched for in this run" in text
    for absent in ("ROC", "AUROC", "Recall by defect type", "False alarms, guaranteed"):
        assert absent not in text
    good_only = write_run(tmp_path / "good", [verdict("a.png", "good", 1.0), verdict("b.png", "good", 2.0)])
    found = report(good_only, tmp_path / "good.html")
    assert found["figures"] == []
    assert found["false_alarms"][2]["found"] == {"value": None, "low": None, "high": None}
    assert "False alarms, guaranteed" in Elements((tmp_path / "good.html").read_text(encoding="utf-8")).text


def test_a_classifier_guarantees_nothing(tmp_path: Path) -> None:
    verdicts = [
        verdict("a.png", "good", -1.0, decision="good", p_value=None, probability=0.25),
        verdict(
            "b.png",
            "anomaly",
            2.0,
            "dent",
            decision="anomaly",
            p_value=None,
            probability=0.875,
            predicted_defect="stain",
        ),
    ]
    rule = {
        "rule": "class",
        "false_alarms": None,
        "guarantee": "No share is guaranteed.",
        "threshold": 0.0,
        "scores": (),
    }
    matrix = {"names": ["good", "dent"], "matrix": [[1, 0], [1, 0]], "balanced_accuracy": 0.5}
    run = write_run(tmp_path / "run", verdicts, decision=rule, classes=("good", "dent"), more={"classes": matrix})
    (run / "reliability.svg").write_text("<svg xmlns='x'><script>alert(1)</script></svg>")
    found = report(run, tmp_path / "r.html")
    page = Elements((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found["verdict"].startswith("Flagged 0 %")
    assert found["false_alarms"] == []
    assert "No guarantee" in page.text
    assert "probability 0.88" in page.text  # 0.875, rounded
    assert "predicted: stain" in page.text
    assert "Types, labelled and predicted" in page.text
    assert "False alarms, guaranteed" not in page.text
    assert len(page.all("script")) == 1  # the diagram is an image, in which nothing runs
    assert [a for a in page.all("img") if (a.get("alt") or "").startswith("Reliability")]


def test_a_damaged_overlay_leaves_the_old_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [verdict("a.png", "good", 1.0)])
    report(run, tmp_path / "r.html")
    old = (tmp_path / "r.html").read_text()
    (run / "overlays/a.png.jpg").write_bytes(b"torn")
    with pytest.raises(BlemishError, match=r"a\.png\.jpg"):
        report(run, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "run"]
    with pytest.raises(BlemishError, match="is a folder"):
        report(run, None, csv=tmp_path / "run")


def test_reading_runs_loads_no_training_libraries() -> None:
    code = "import sys, blemish.reporting.report, blemish.reporting.compare, blemish.cli.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "matplotlib", "jinja2", "sklearn", "scipy"}
