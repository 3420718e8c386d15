import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from blemish.evaluation.auroc_interval import auroc_difference
from blemish.reporting.compare import compare, mcnemar, sentences, table
from blemish.types import BlemishError
from tests.reporting.recording import verdict, write_run


def scored(seed: int, worth: float, good: int = 20, bad: int = 25) -> list[dict[str, object]]:
    """Verdicts on the same images; the higher `worth`, the better good and defective ones are separated."""
    easy = np.random.default_rng(0).normal(0, 0.3, good + bad)  # hard images are hard for every run
    noise = np.random.default_rng(seed).normal(0, 0.1, good + bad)
    scores = 1.5 + easy + noise + worth * (np.arange(good + bad) >= good)
    return [
        verdict(f"test/{i}.png", "anomaly" if i >= good else "good", float(scores[i]), "dent" if i >= good else "")
        for i in range(good + bad)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / f"run {i}", scored(i, worth), images=False) for i, worth in enumerate((0.3, 0.8, 0.3))]


def read(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]


def test_figures_agree_with_scikit_learn_and_scipy(runs: list[Path]) -> None:
    found = compare(runs)
    assert (found["images"], found["good"], found["anomalies"]) == (45, 20, 25)
    labels = np.array([v["label"] == "anomaly" for v in read(runs[0])])
    auroc, recall, right = [], [], []
    for run, figures in zip(runs, found["runs"], strict=True):
        verdicts = read(run)
        flagged = np.array([v["decision"] == "anomaly" for v in verdicts])
        auroc.append(roc_auc_score(labels, [v["score"] for v in verdicts]))
        recall.append(flagged[labels].mean())
        right.append(flagged == labels)
        assert figures["auroc"]["value"] == pytest.approx(auroc[-1])
        assert figures["recall"]["value"] == pytest.approx(recall[-1])
        assert figures["false_alarm_rate"]["value"] == pytest.approx(flagged[~labels].mean())
    for i, less in enumerate(found["differences"], start=1):
        assert less["auroc"]["value"] == pytest.approx(auroc[i] - auroc[0])
        assert less["recall"]["value"] == pytest.approx(recall[i] - recall[0])
        ours, theirs = int((right[0] & ~right[i]).sum()), int((right[i] & ~right[0]).sum())
        test = less["mcnemar"]
        assert (test["only_first_right"], test["only_second_right"]) == (ours, theirs)
        assert test["p_value"] == pytest.approx(binomtest(ours, ours + theirs, 0.5).pvalue)


def test_intervals_are_paired_by_image(runs: list[Path]) -> None:
    """Far narrower than the two runs' own intervals suggest, as both find the same images hard."""
    found = compare([runs[0], runs[2]])
    apart = found["differences"][0]["auroc"]
    own = [run["auroc"]["high"] - run["auroc"]["low"] for run in found["runs"]]
    assert apart["high"] - apart["low"] < 0.7 * np.hypot(*own)
    assert apart["low"] < 0 < apart["high"]
    labels = np.array([v["label"] == "anomaly" for v in read(runs[0])])
    scores = [np.array([v["score"] for v in read(run)]) for run in (runs[0], runs[2])]
    expected = auroc_difference(scores[1], scores[0], labels)
    assert (apart["low"], apart["high"]) == (expected.low, expected.high)
    assert compare(runs[:2])["differences"][0]["auroc"]["low"] > 0  # clearly better, and the images say so


def test_a_run_is_no_better_than_itself(runs: list[Path]) -> None:
    found = compare([runs[0], runs[0]])
    less = found["differences"][0]
    for name in ("auroc", "recall", "false_alarm_rate"):
        assert less[name]["value"] == 0.0
        assert less[name]["low"] == -less[name]["high"] < 0  # equal here is not equal elsewhere
    assert less["mcnemar"] == {"only_first_right": 0, "only_second_right": 0, "p_value": None}
    assert found["changed"] == []
    assert sentences(found) == ["No verdict changed."]


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 3), (1, 9), (0, 12), (400, 900)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    ours = np.array([True] * first + [False] * second + [True] * 5 + [False] * 3)
    theirs = np.array([False] * first + [True] * second + [True] * 5 + [False] * 3)
    found = mcnemar(ours, theirs)
    assert (found["only_first_right"], found["only_second_right"]) == (first, second)
    assert found["p_value"] == pytest.approx(binomtest(first, first + second, 0.5).pvalue, rel=1e-9)


def test_only_images_in_common_count(tmp_path: Path) -> None:
    both = [verdict("a.png", "good", 1.0), verdict("b.png", "anomaly", 3.0, "dent"), verdict("c.png", None, 1.0)]
    first = write_run(tmp_path / "first", [*both, verdict("only.png", "good", 1.0), verdict("d.png", "good", 1.0)])
    other = [verdict("a.png", "good", 1.2), verdict("b.png", "anomaly", 1.1, "dent"), verdict("c.png", None, 5.0)]
    relabelled = verdict("d.png", "anomaly", 1.0)
    broken = verdict("e.png", "good", None, decision="error", error="e.png is broken")
    second = write_run(tmp_path / "second", [*other, relabelled, broken], product="other [b]")
    found = compare([first, second])
    assert found["images"] == 3
    assert [run["left_out"] for run in found["runs"]] == [2, 2]
    assert (found["good"], found["anomalies"]) == (1, 1)  # c.png has no label
    assert found["changed"] == [
        {"name": "b.png", "label": "anomaly", "defect": "dent", "decisions": ["anomaly", "good"]},
        {"name": "c.png", "label": None, "defect": "", "decisions": ["good", "anomaly"]},
    ]
    assert "1 image has another label or size" in found["warnings"][0]
    assert "plates and other [b]" in found["warnings"][1]
    lines = "\n".join(sentences(found))
    assert "b.png (dent): anomaly, good" in lines
    assert "2 verdicts changed" in lines
    assert "and 1 more" in sentences(found, most=1)[-1]


def test_review_counts_as_not_flagged(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [verdict("a.png", "good", 1.0), verdict("b.png", "anomaly", 3.0)])
    second = write_run(
        tmp_path / "b", [verdict("a.png", "good", 1.0), verdict("b.png", "anomaly", 1.85, decision="review")]
    )
    found = compare([first, second])
    assert [run["review"] for run in found["runs"]] == [0, 1]
    assert found["differences"][0]["recall"]["value"] == -1
    assert found["changed"][0]["decisions"] == ["anomaly", "review"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", [verdict("a.png", "good", 1.0)])
    second = write_run(tmp_path / "second", [verdict("b.png", "good", 1.0)])
    third = write_run(tmp_path / "third", [verdict("a.png", "anomaly", 1.0)])
    with pytest.raises(BlemishError, match=r"no test image in common \(none has the same name\)"):
        compare([first, second])
    with pytest.raises(BlemishError, match="other labels or sizes"):
        compare([first, third])
    with pytest.raises(BlemishError, match="two runs or more"):
        compare([first])
    with pytest.raises(BlemishError, match="is no run"):
        compare([first, tmp_path])


def test_the_table_shows_names_unchanged(runs: list[Path], tmp_path: Path) -> None:
    odd = write_run(tmp_path / "[red]odd", scored(4, 0.4), images=False)
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(table(compare([runs[0], odd])))
    text = console.export_text()
    assert "1: run 0" in text
    assert "2: [red]odd" in text
    assert "45 images in common: 20 good, 25 defective" in text
    value = compare([runs[0], odd])["differences"][0]["auroc"]["value"]
    assert f"{value:+.3f}" in text
