"""The card's decision from scores of good images, by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.data.content import identified
from blemish.data.split import Split
from blemish.training.card import counts, data, decision, digest
from blemish.training.config import DecisionRule, SplitRule
from blemish.types import BlemishError, Prediction, Sample
from tests.support import write_image

NAMES = [f"{i}.png" for i in range(19)]


def config(**changes: Any) -> DecisionRule:
    return DecisionRule(**changes)


def held_out(count: int = 19) -> Prediction:
    """Scores 1 to `count`; maps of 1 x 4 pixels: 0, 1, 1 and ten times the score."""
    scores = np.arange(1, count + 1, dtype=np.float32)
    maps = np.stack([np.array([[0, 1, 1, 10 * score]], np.float32) for score in scores])
    return Prediction(scores, maps, distances=maps / np.float32(2))


def test_thresholds_are_ranks() -> None:
    rule = decision(config(review=0.2), held_out(), NAMES, "split")
    # Of 20 good parts 1 may be above the threshold, and 4 above the review threshold.
    assert (rule.threshold, rule.review_threshold) == (19, 16)
    assert rule.pixel_threshold == 190
    assert (rule.false_alarms, rule.review, rule.confidence, rule.calibrated_by) == (0.05, 0.2, None, "split")
    assert rule.scores == tuple(range(1, 20))
    assert rule.map_maxima == tuple(range(10, 200, 10))
    assert rule.distances == tuple(range(5, 100, 5))
    assert rule.items == ()  # each image is an item
    assert rule.normal_median == 1
    assert rule.color_range == (100, 190 + 189)
    assert "at most 20.00% are called anomalies or put aside for review" in rule.guarantee


def test_without_review_there_is_one_threshold() -> None:
    rule = decision(config(false_alarms=0.1), held_out(), NAMES, "split")
    assert (rule.threshold, rule.review, rule.review_threshold) == (18, None, None)
    assert "review" not in rule.guarantee


def test_with_confidence_the_thresholds_are_higher() -> None:
    # P(Binomial(19, 0.2) >= 2) = 0.917 and >= 3: 0.763, so rank 2; on average it would be rank 4
    confident = decision(config(false_alarms=0.2, confidence=0.9), held_out(), NAMES, "split")
    assert (confident.threshold, confident.pixel_threshold, confident.confidence) == (18, 180, 0.9)
    assert decision(config(false_alarms=0.2), held_out(), NAMES, "split").threshold == 16
    assert confident.guarantee.startswith("With 90% confidence")


def test_each_item_counts_once() -> None:
    groups = ["b", "b", "a", "a", "c", "c", "d", "d", "e", "e"]
    rule = decision(config(false_alarms=0.25), held_out(10), groups, "split")
    assert rule.items == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)
    # At most 0.25 * 6 - 1 = half an item above: one of e's two images. Ten items would allow rank 2 too, nine 2.5.
    assert rule.threshold == 9
    assert decision(config(false_alarms=0.25), held_out(10), NAMES[:10], "split").threshold == 9
    assert decision(config(false_alarms=0.33), held_out(10), NAMES[:10], "split").threshold == 8  # 3 of 11
    assert decision(config(false_alarms=0.33), held_out(10), groups, "split").threshold == 9  # 0.98 items above
    assert "calibration sets of 10 images of 5 items" in rule.guarantee
    with pytest.raises(BlemishError, match="5 good items"):
        decision(config(false_alarms=0.1), held_out(10), groups, "split")


def test_the_guarantee_names_leave_one_out() -> None:
    rule = decision(config(), held_out(), NAMES, "leave-one-out")
    assert rule.calibrated_by == "leave-one-out"
    assert "each scored without its own item" in rule.guarantee
    with pytest.raises(BlemishError, match="needs calibration images that were held out"):
        decision(config(false_alarms=0.2, confidence=0.9), held_out(), NAMES, "leave-one-out")


def test_by_class_nothing_is_guaranteed() -> None:
    rule = decision(config(decide="class", boxes="one"), held_out(), NAMES, "split")
    assert (rule.rule, rule.boxes, rule.threshold, rule.false_alarms, rule.scores) == ("class", "one", 0, None, ())
    assert (rule.review_threshold, rule.items) == (None, ())
    assert rule.pixel_threshold == 190
    assert rule.color_range == (100, 379)


def test_counts_by_split_and_label() -> None:
    def some(name: str, good: int, bad: int) -> tuple[Sample, ...]:
        goods = [Sample(Path("x"), f"{name}/good/{i}", "good") for i in range(good)]
        bads = [Sample(Path("x"), f"{name}/bad/{i}", "anomaly", mask=Path("m") if i else None) for i in range(bad)]
        return (*goods, *bads)

    assert counts(Split(some("train", 5, 4), some("calibration", 3, 2), some("test", 1, 6))) == {
        "train": 9,
        "train_anomaly": 4,
        "calibration": 3,
        "calibration_anomaly": 2,
        "test_good": 1,
        "test_anomaly": 6,
        "test_masks": 5,
    }


def test_the_hash_is_of_what_was_read_and_a_changed_image_is_refused(tmp_path: Path) -> None:
    files = [write_image(tmp_path / f"{i}.png", np.full((4, 4, 3), i)) for i in range(3)]
    samples = [identified(Sample(file, file.name, "good")) for file in files]
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    found = data(tmp_path, "flat", Split(tuple(samples[:2]), (samples[2],), ()), SplitRule())
    assert digest(samples) == whole.hexdigest()
    assert found.sha256 == digest(samples[:2])
    for changed in (2, 0):  # one that calibrates, and one that was learned from
        write_image(files[changed], np.full((4, 4, 3), 99))
        with pytest.raises(BlemishError, match=rf"{changed}\.png changed during training; leave the images alone"):
            data(tmp_path, "flat", Split(tuple(samples[:2]), (samples[2],), ()), SplitRule())
    held = [replace(sample, pixels=np.zeros((4, 4, 3), np.uint8)) for sample in samples]
    assert data(tmp_path, "flat", Split(tuple(held[:2]), (held[2],), ()), SplitRule()).sha256 == found.sha256
