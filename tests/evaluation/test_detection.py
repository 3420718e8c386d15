from __future__ import annotations

import itertools
import time

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics

from blemish.evaluation.auroc_interval import auroc_interval
from blemish.evaluation.bootstrap import Interval
from blemish.evaluation.detection import (
    Confusion,
    Ranking,
    area_under_roc,
    auroc,
    average_precision,
    average_precision_of,
    best_f1,
    best_f1_of,
    confusion,
    detection_metrics,
    recall_by_defect,
)

Bools = npt.NDArray[np.bool_]


def images(seed: int, count: int = 200, steps: int = 25) -> tuple[npt.NDArray[np.float32], Bools, Bools]:
    """Scores with many ties, labels, decisions."""
    random = np.random.default_rng(seed)
    labels = random.random(count) < 0.3
    scores = np.round(random.normal(0, 1, count) * steps / 5 + labels * steps / 4).astype(np.float32)
    return scores, labels, scores > np.quantile(scores, 0.6)


def value(found: object) -> float:
    assert isinstance(found, Interval)
    assert found.value is not None
    return found.value


def test_figures_worked_out_by_hand() -> None:
    scores = np.array([4, 3, 3, 2, 1], np.float32)
    labels = np.array([1, 1, 0, 1, 0], bool)
    # Pairs (anomaly, good): 4>3 4>1 3=3 3>1 2<3 2>1: 4.5 of 6.
    assert auroc(scores, labels) == pytest.approx(4.5 / 6)
    # One anomaly at precision 1, one at 2/3 (the tie counts both), one at 3/4.
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # Flagging the first four catches 3 of 3 with one false alarm.
    assert best_f1(scores, labels) == pytest.approx(6 / 7)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    scores, labels, _ = images(0, 60, 8)
    pairs = [(a > g) + (a == g) / 2 for a, g in itertools.product(scores[labels], scores[~labels])]
    assert auroc(scores, labels) == pytest.approx(float(np.mean(pairs)))


@pytest.mark.parametrize("seed", range(20))
def test_figures_agree_with_scikit_learn(seed: int) -> None:
    scores, labels, flagged = images(seed, steps=[5, 25, 10**6][seed % 3])
    found = detection_metrics(scores, labels, flagged, resamples=10)
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        every_f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    tn, fp, fn, tp = metrics.confusion_matrix(labels, flagged).ravel()
    expected = {
        "auroc": metrics.roc_auc_score(labels, scores),
        "average_precision": metrics.average_precision_score(labels, scores),
        "best_f1": every_f1.max(),
        "f1": metrics.f1_score(labels, flagged),
        "precision": metrics.precision_score(labels, flagged),
        "recall": metrics.recall_score(labels, flagged),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, flagged),
        "accuracy": metrics.accuracy_score(labels, flagged),
        "false_alarm_rate": fp / (fp + tn),
        "miss_rate": fn / (fn + tp),
    }
    assert found.pop("confusion") == Confusion(caught=tp, missed=fn, false_alarms=fp, passed=tn)
    assert {name: value(v) for name, v in found.items()} == pytest.approx(expected)


def test_weights_are_repetitions() -> None:
    """The figures of weights are those that scikit-learn computes of images repeated so often."""
    scores, labels, _ = images(5, 80)
    drawn = np.random.default_rng(0).integers(0, 80, (6, 80))
    weights = np.stack([np.bincount(row, minlength=80) for row in drawn]).astype(np.float64)
    counts = Ranking.of(scores, labels).counts(weights)
    for i, row in enumerate(drawn):
        assert area_under_roc(*counts)[i] == pytest.approx(metrics.roc_auc_score(labels[row], scores[row]))
        expected = metrics.average_precision_score(labels[row], scores[row])
        assert average_precision_of(*counts)[i] == pytest.approx(expected)
        assert best_f1_of(*counts)[i] == pytest.approx(best_f1(scores[row], labels[row]))


def test_intervals_surround_their_values_and_narrow_with_more_images() -> None:
    few, many = (detection_metrics(*images(7, n)) for n in (60, 2000))
    for name in ("auroc", "average_precision", "f1", "balanced_accuracy", "recall", "accuracy"):
        a, b = few[name], many[name]
        assert isinstance(a, Interval)
        assert isinstance(b, Interval)
        assert a.low is not None
        assert a.high is not None
        assert b.low is not None
        assert b.high is not None
        assert a.low <= value(a) <= a.high
        assert b.low < value(b) < b.high
        assert b.high - b.low < (a.high - a.low) / 2


def test_undefined_figures_have_no_value() -> None:
    scores = np.array([1, 2, 3, 4], np.float32)
    for labels in (np.zeros(4, bool), np.ones(4, bool)):
        found = detection_metrics(scores, labels, np.zeros(4, bool))
        for name in ("auroc", "average_precision", "best_f1", "balanced_accuracy", "precision"):
            assert found[name] == Interval(None), name
    nobody = detection_metrics(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, bool))
    assert nobody["auroc"] == nobody["recall"] == Interval(None)


def test_perfect_separation_has_no_bootstrap_interval_but_those_of_auroc_and_recall() -> None:
    labels = np.arange(20) >= 10
    found = detection_metrics(np.arange(20, dtype=np.float32), labels, labels)
    assert found["f1"] == Interval(1.0)
    assert found["auroc"] == auroc_interval(np.arange(20.0), labels)
    recall = found["recall"]
    assert isinstance(recall, Interval)
    assert recall.low == pytest.approx(10 / (10 + 1.959964**2))  # Wilson at 10 of 10
    assert recall.high == 1.0


def test_one_anomaly_alone_gives_a_value_but_no_interval() -> None:
    labels = np.arange(20) == 18
    found = detection_metrics(np.arange(20, dtype=np.float32), labels, labels)
    assert found["auroc"] == Interval(pytest.approx(18 / 19))  # type: ignore[arg-type]


def test_no_resample_is_without_the_few_anomalies() -> None:
    labels = np.arange(200) >= 198  # 2 of 200: without strata, 13 % of the resamples would have none
    found = detection_metrics(np.random.default_rng(0).random(200).astype(np.float32), labels, labels)["auroc"]
    assert isinstance(found, Interval)
    assert found.low is not None


def test_recall_of_each_defect_type() -> None:
    defects = ["crack", "", "crack", "hole", "", "crack"]
    labels = np.array([1, 0, 1, 1, 1, 1], bool)
    found = recall_by_defect(defects, labels, np.array([1, 1, 0, 0, 1, 1], bool))
    assert {k: (v.caught, v.of) for k, v in found.items()} == {"": (1, 1), "crack": (2, 3), "hole": (0, 1)}
    assert found["crack"].recall.value == pytest.approx(2 / 3)


def test_wrong_arguments_are_refused() -> None:
    labels = np.array([True, False])
    with pytest.raises(ValueError, match="finite"):
        auroc(np.array([1, np.nan], np.float32), labels)
    with pytest.raises(ValueError, match="like the labels"):
        auroc(np.array([1, 2, 3], np.float32), labels)
    with pytest.raises(ValueError, match="flagged"):
        confusion(labels, labels[:1])


def test_a_thousand_resamples_of_a_thousand_images_take_under_two_seconds() -> None:
    scores, labels, flagged = images(1, 1000, 10**6)
    start = time.process_time()
    detection_metrics(scores, labels, flagged)
    assert time.process_time() - start < 2
