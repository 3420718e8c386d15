import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.data.layouts import read
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.cam.detector import Cam
from blemish.images import load_image
from blemish.training.crossval import cross_validate, mean_of, of_fold, spread
from tests.support import write_image

QUICK = CamConfig(image_size=(64, 96), unfreeze=0, backbone="test_resnet", random_weights=True)


def test_mean_of_figures() -> None:
    first = {"a": {"value": 1.0, "low": None}, "n": 3, "list": [1.0, 2.0], "only": 1, "name": "x"}
    second = {"a": {"value": 2.0, "low": 0.5}, "n": 5, "list": [3.0, 2.0], "name": "x"}
    assert mean_of([first, second]) == {"a": {"value": 1.5, "low": None}, "n": 4, "list": [2.0, 2.0], "name": "x"}


def test_figures_of_folds_by_hand() -> None:
    # One of two anomalies is caught, one of three good images is flagged, 5 of the 6 pairs are in order.
    first = of_fold(np.array([2.0, -1.0, 1.0, -2.0, -3.0]), np.array([True, True, False, False, False]))
    assert first == {"auroc": pytest.approx(5 / 6), "balanced_accuracy": pytest.approx((1 / 2 + 2 / 3) / 2)}
    assert spread([{"auroc": 0.5}, {"auroc": 0.9}]) == {
        "auroc": {"mean": pytest.approx(0.7), "std": pytest.approx(0.2)}
    }


def test_every_image_is_judged_out_of_fold(classified: Path) -> None:
    metrics = json.loads((classified / "metrics.json").read_text(encoding="utf-8"))["cross_validation"]
    rows = [json.loads(line) for line in (classified / "out_of_fold.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 61
    assert metrics["folds"] == 2
    # The figures can be computed from the rows.
    given = np.array([row["label"] == "anomaly" for row in rows])
    predicted = np.array([row["predicted_defect"] != "good" for row in rows])
    anomaly = np.array([1 - row["probabilities"]["good"] for row in rows])
    pairs = anomaly[given][:, None] - anomaly[~given]
    assert metrics["detection"]["auroc"]["value"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=0.02)
    assert metrics["detection"]["auroc"]["value"] > 0.9
    counts = metrics["detection"]["confusion"]
    assert (counts["caught"], counts["false_alarms"]) == ((given & predicted).sum(), (~given & predicted).sum())
    assert metrics["classes"]["names"] == ["good", "bright", "dark"]
    assert metrics["localisation"]["images_with_mask"] == 20
    assert metrics["localisation"]["pointing_game"]["value"] > 0.5
    assert 0 <= metrics["reliability"]["ece"]["value"] < 0.5


def test_the_mislabelled_image_is_named(labelled: Path) -> None:
    detector = Cam(CamConfig(image_size=(64, 96), unfreeze=0))
    suspects = cross_validate(detector, read(labelled).samples, folds=5).metrics["suspects"]
    assert [(s["name"], s["given"], s["likely"]) for s in suspects][:1] == [("good/wrong.png", "good", "anomaly")]


def test_a_killed_cross_validation_is_resumed(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = read(labelled).samples
    config = replace(QUICK, checkpoint=tmp_path, resume=True)
    whole = cross_validate(Cam(config), samples, folds=3)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    (tmp_path / "repeat-1-fold-2.npz").unlink()
    fitted: list[str] = []
    again = Cam(config)
    fit = again.fit

    def watched(*arguments: Any, run: str) -> Cam:
        fitted.append(run)
        return fit(*arguments, run=run)

    monkeypatch.setattr(again, "fit", watched)
    assert cross_validate(again, samples, folds=3).rows == whole.rows
    assert fitted == ["repeat-1-fold-2"]
    fitted.clear()
    for name in ("good/000.png", "bright/000.png"):  # other images of the same names
        (tmp_path / name).parent.mkdir()
        write_image(tmp_path / name, 255 - load_image(labelled / name))
    others = [replace(s, path=p) if (p := tmp_path / s.name).exists() else s for s in samples]
    cross_validate(again, others, folds=3)
    assert fitted == ["repeat-1-fold-1", "repeat-1-fold-2", "repeat-1-fold-3"]
    again.config = replace(config, contrast=not config.contrast)
    fitted.clear()
    cross_validate(again, others, folds=3)
    assert len(fitted) == 3  # other options


def test_repetitions_differ_and_are_averaged(labelled: Path) -> None:
    samples = read(labelled).samples
    detector = Cam(QUICK)
    once = cross_validate(detector, samples, folds=2)
    twice = cross_validate(detector, samples, folds=2, repeats=2)
    assert twice.metrics["repeats"] == 2
    assert len(twice.rows) == len(once.rows) == 61
    assert [r["probabilities"] for r in twice.rows] != [r["probabilities"] for r in once.rows]
