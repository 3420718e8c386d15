"""A bundle measured on labelled images: the run's own figures, misses, costs, and the choice of imputer."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from blemish import Inspector
from blemish.evaluation.bootstrap import clopper_pearson
from blemish.evaluation.cost import Prices, cost_at
from blemish.evaluation.evaluate_bundle import imputer_of, measure
from blemish.evaluation.evaluate_bundle import labelled as chosen_of
from blemish.evaluation.imputation import inpaint
from blemish.inference.calibration import item_weights
from blemish.reporting.run import names_tested
from blemish.types import BlemishError, Sample
from tests.conftest import tile
from tests.support import write_image


def labelled_in(data: Path) -> list[Sample]:
    return chosen_of(data).samples


@pytest.fixture(scope="module")
def inspector(run: Path) -> Inspector:
    return Inspector(run, threads=1)


def by_rule(inspector: Inspector, **changes: Any) -> Inspector:
    """The same graph with another decision rule."""
    other = copy.copy(inspector)
    rule = inspector.card.decision.model_copy(update=changes)
    other.card = inspector.card.model_copy(update={"decision": rule})
    return other


def alike(first: Any, second: Any) -> bool:
    """Equal up to rounding."""
    if isinstance(first, dict):
        return set(first) == set(second) and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(alike, first, second))
    return bool(first == pytest.approx(second, rel=1e-4, abs=1e-6)) if isinstance(first, float) else first == second


def test_the_test_split_or_else_all_labelled_images(product: Path, labelled: Path, tmp_path: Path) -> None:
    names = {sample.name for sample in labelled_in(product)}
    assert names == {f"test/{kind}/{i:03}.png" for kind in ("good", "spot") for i in range(6)}
    assert len(labelled_in(labelled)) == 61
    write_image(tmp_path / "only/good/1.png", tile(1)[0])
    with pytest.raises(BlemishError, match="has not both good and defective images"):
        labelled_in(tmp_path / "only")


def test_a_run_is_not_tested_on_its_training_images(
    run: Path, classified: Path, labelled: Path, product: Path, tmp_path: Path
) -> None:
    rows = (classified / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    kept = {json.loads(row)["path"] for row in rows}
    assert 0 < len(kept) < 61
    for given in (classified, classified / "bundle"):
        samples, description = chosen_of(labelled, tested=names_tested(given))
        assert {sample.name for sample in samples} == kept
        assert description == "the test images of the run"
    assert chosen_of(product, tested=names_tested(classified)).description == "the test split of the folder"
    elsewhere = shutil.copytree(classified / "bundle", tmp_path / "somewhere")  # without its run
    samples, description = chosen_of(labelled, tested=names_tested(elsewhere))
    assert len(samples) == 61
    assert "if some of them were trained on" in description
    assert chosen_of(product, tested=names_tested(run)).description == "the test images of the run"


def test_the_figures_are_those_of_the_run(run: Path, product: Path, inspector: Inspector) -> None:
    wanted = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    found = measure(inspector, labelled_in(product))
    for group in ("detection", "recall_by_defect", "localisation"):
        assert alike(wanted[group], json.loads(json.dumps(found[group]))), group
    assert found["counts"] == {"test_good": 6, "test_anomaly": 6}
    assert found["unreadable"] == []
    rows = [json.loads(line) for line in (run / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    good = [row["score"] for row in rows if row["label"] == "good"]
    assert found["median_good_score"] == pytest.approx(np.median(good), rel=1e-5)
    assert "costs" not in found


def test_what_cannot_be_read_is_left_out_by_name(product: Path, inspector: Inspector, tmp_path: Path) -> None:
    data = shutil.copytree(product / "test", tmp_path / "some")
    (data / "good/002.png").write_bytes(b"broken")
    found = measure(inspector, labelled_in(data))
    assert found["unreadable"] == ["good/002.png"]
    assert found["counts"] == {"test_good": 5, "test_anomaly": 6}
    for file in (data / "good").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(BlemishError, match=r"Of 12 images 6 cannot be read or judged.*the first: .*is not an image"):
        measure(inspector, labelled_in(data))


def test_misses_are_defects_called_good(product: Path, inspector: Inspector) -> None:
    """With thresholds between the scores of the defective images: two called good, two review, two anomalies."""
    samples = labelled_in(product)
    scores = sorted(inspector.inspect(s.path).score or 0 for s in samples if s.label == "anomaly")
    thresholds = {"review_threshold": (scores[1] + scores[2]) / 2, "threshold": (scores[3] + scores[4]) / 2}
    found = measure(by_rule(inspector, **thresholds), samples)
    interval = clopper_pearson(2, 6)
    row = {"missed": 2, "defects": 6, "value": 1 / 3, "low": interval.low, "high": interval.high}
    assert alike(found["misses"], {"all": row, "by_defect": {"spot": row}})
    assert found["detection"]["miss_rate"]["value"] == pytest.approx(4 / 6)  # not flagged


def test_costs_use_the_calibration_scores_and_these_defective_images(product: Path, inspector: Inspector) -> None:
    samples = labelled_in(product)
    items = tuple(i // 2 for i in range(19))  # nine pairs, and one alone
    other = by_rule(inspector, items=items, threshold=float(np.median(inspector.card.decision.scores)))
    prices = Prices(2, 30, 0.1)
    found = measure(other, samples, prices=prices)["costs"]
    good = np.array(inspector.card.decision.scores)
    defective = np.array([inspector.inspect(s.path).score for s in samples if s.label == "anomaly"])
    weights = item_weights([str(item) for item in items])
    wanted = cost_at(other.card.decision.threshold, good, defective, prices, weights)
    assert found["guaranteed"]["cost"] == pytest.approx(wanted.cost)
    alarmed = sum(w for w, s in zip(weights, good, strict=True) if s > other.card.decision.threshold) / 10
    assert found["guaranteed"]["false_alarms"] == pytest.approx(alarmed)
    assert found["guaranteed"]["missed"] == 0
    assert found["guaranteed"]["cost"] == pytest.approx(900 * 2 * alarmed)
    assert found["cheapest"]["cost"] == 0  # every defect scores higher than every good one
    assert found["cheapest"]["threshold"] >= good.max()
    with pytest.raises(BlemishError, match="--costs needs calibration scores"):
        measure(by_rule(inspector, scores=()), samples, prices=prices)


def test_a_classifiers_probabilities_are_measured_too(classified: Path, labelled: Path) -> None:
    found = measure(Inspector(classified, threads=1), labelled_in(labelled))
    assert found["classes"]["names"] == ["good", "bright", "dark"]
    assert np.sum(found["classes"]["matrix"]) == 61
    assert 0 <= found["reliability"]["brier"]["value"] <= 1


def test_the_imputer_is_the_best_that_the_bundle_allows(inspector: Inspector) -> None:
    image, mask = tile(700, (20, 30))
    impute, by = imputer_of(inspector)
    assert by == "the most similar good image of the bundle"
    reconstruction = impute(image, mask > 0)
    assert reconstruction[mask > 0].max() < 240  # the spot has 245
    np.testing.assert_array_equal(reconstruction[:, 60:], image[:, 60:])  # elsewhere nothing changed

    bare = copy.copy(inspector)
    bare.evidence = None
    assert imputer_of(bare) == (inpaint, "the surrounding pixels")

    painted = np.full((60, 80, 3), 77, np.uint8)
    paints = SimpleNamespace(reconstructs=True, reconstruct=lambda _: painted, evidence=inspector.evidence)
    impute, by = imputer_of(cast("Inspector", paints))
    assert by == "the autoencoder's reconstruction"
    assert (impute(image, mask > 0)[mask > 0] == 77).all()
