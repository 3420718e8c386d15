from pathlib import Path

import numpy as np

from blemish.evaluation.evaluate import confusion_matrix, evaluate, targets
from blemish.types import Prediction, Region, Sample, Verdict
from tests.support import write_image


def sample(name: str, label: str | None, defect: str = "", mask: Path | None = None) -> Sample:
    return Sample(Path(name), name, label, defect, mask)  # type: ignore[arg-type]


def test_targets() -> None:
    some = [sample("a", "good"), sample("b", "anomaly", "dent"), sample("c", "anomaly", "rust"), sample("d", None)]
    assert targets(some, ("good", "anomaly")).tolist() == [0, 1, 1, 0]
    assert targets(some, ("good", "dent", "rust")).tolist() == [0, 1, 2, 0]
    assert targets(some, ("good", "rust")).tolist() == [0, 1, 1, 0]  # two classes: any anomaly is the second
    assert targets(some, ("good", "rust", "stain")).tolist() == [0, -1, 1, 0]


def test_confusion_matrix_by_hand() -> None:
    found = confusion_matrix(np.array([0, 0, 1, 2, 2, 1]), np.array([0, 0, 0, 2, 1, -1]), ["good", "dent", "rust"])
    assert found["matrix"] == [[2, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert abs(found["balanced_accuracy"] - (2 / 3 + 0 + 1) / 3) < 1e-12


def test_evaluate_gives_all_groups(tmp_path: Path) -> None:
    painted = np.zeros((8, 8), np.uint8)
    painted[:4, :4] = 255
    mask = write_image(tmp_path / "m.png", painted)
    samples = [sample("g", "good"), sample("h", "good"), sample("a", "anomaly", "dent", mask), sample("u", None)]
    maps = np.zeros((4, 8, 8), np.float32)
    maps[2, :4, :4] = 1
    likely = np.array([[0.9, 0.06, 0.04], [0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [1, 0, 0]], np.float32)
    found = Prediction(np.array([0.1, 0.6, 0.8, 0.2], np.float32), maps, likely)
    region = Region((0, 0, 4, 4), 16.0, 1.0)
    verdicts = [
        Verdict("g", "good", size=(8, 8)),
        Verdict("h", "anomaly", size=(8, 8)),
        Verdict("a", "anomaly", size=(8, 8), regions=(region,)),
        Verdict("u", "good", size=(8, 8)),
    ]
    figures = evaluate(samples, found, verdicts, ("good", "dent", "rust"), balanced=False)
    assert figures["detection"]["auroc"]["value"] == 1.0
    assert figures["detection"]["confusion"] == {"caught": 1, "missed": 0, "false_alarms": 1, "passed": 1}
    assert figures["localisation"]["pixel_auroc"]["value"] == 1.0
    assert figures["localisation"]["defects_hit"]["value"] == 1.0
    assert figures["reliability"]["images"] == 3  # the unlabelled one is left out
    brier = (0.1**2 + 0.6**2 + 0.2**2) / 3
    assert abs(figures["reliability"]["brier"]["value"] - brier) < 1e-6
    assert figures["classes"]["matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_without_anomalies_there_are_no_figures() -> None:
    found = Prediction(np.zeros(1, np.float32), np.zeros((1, 2, 2), np.float32))
    assert evaluate([sample("g", "good")], found, [Verdict("g", "good", size=(2, 2))]) == {}
