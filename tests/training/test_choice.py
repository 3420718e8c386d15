from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blemish.training.choice import choose
from blemish.training.config import configure
from blemish.types import Sample, SplitName
from tests.support import write_image


def samples(good: int, bad: int, *, split: SplitName = "", masks: int = 0, per_item: int = 1) -> list[Sample]:
    def item(kind: str, number: int) -> str:
        return f"{kind} {number // per_item}" if per_item > 1 else ""

    found = [Sample(Path(f"g{i}"), f"g{i}", "good", group=item("g", i)) for i in range(good)]
    for i in range(bad):
        mask = Path("mask") if i < masks else None
        found.append(Sample(Path(f"b{i}"), f"b{i}", "anomaly", "crack", mask, split, item("b", i)))
    return found


@pytest.mark.parametrize(
    ("data", "detector", "words"),
    [
        (samples(300, 0), "patchcore", "There are no defective images to learn from"),
        (samples(300, 37, masks=12), "hybrid", "37 defective images, 12 with masks: the detector is hybrid"),
        (samples(300, 37), "hybrid", "tested on those that it does not learn from"),
        (samples(300, 12), "patchcore", "12 defective images: fewer than 10 of them"),  # a fifth is tested
        (samples(300, 13), "hybrid", "13 defective images: the detector is hybrid"),
        (samples(300, 40, per_item=10), "patchcore", "fewer than 10 of them (or of their items)"),
        (samples(300, 20, split="test"), "patchcore", "All 20 defective images are in the folder's own test split"),
        (samples(300, 20, split="train"), "hybrid", "20 defective images: the detector is hybrid"),
        (samples(200, 37), "patchcore", "200 good images (or items) are too few"),  # 32 held out, and 39 are wanted
        (samples(900, 45, per_item=3), "hybrid", "45 defective"),
        (samples(600, 45, per_item=3), "patchcore", "200 good images (or items) are too few"),
    ],
)
def test_what_the_folder_holds_decides(data: list[Sample], detector: str, words: str) -> None:
    choice = choose(data)
    assert choice.detector == detector
    assert words in choice.sentence


def test_a_looser_guarantee_or_a_larger_share_needs_fewer_good_images() -> None:
    data = samples(200, 37)
    assert choose(data).detector == "patchcore"
    assert choose(data, false_alarms=0.1).detector == "hybrid"
    assert choose(data, calibration=0.3).detector == "hybrid"
    assert choose(data, false_alarms=0.1, confidence=0.95).detector == "patchcore"


def test_defects_are_left_to_test() -> None:
    each = [replace(sample, defect=sample.name if sample.label == "anomaly" else "") for sample in samples(300, 20)]
    assert "of which none would be left to test" in choose(each).sentence
    assert choose(samples(300, 20), test=0).detector == "patchcore"


def test_good_images_of_defective_items_do_not_count() -> None:
    """They are learned from, with their item, and so cannot be held out."""
    parts = samples(300, 60)
    paired = [replace(sample, group=sample.name.lstrip("gb")) for sample in parts]
    assert "240 good images (or items) are too few" in choose(paired).sentence
    assert choose(parts).detector == "hybrid"


@pytest.mark.parametrize(
    ("asked", "detector"),
    [
        ({"false_alarms": "20%"}, "hybrid"),
        ({}, "patchcore"),
        ({"detector": "patchcore"}, "patchcore"),
        ({"calibrate": "leave-one-out"}, "patchcore"),
        ({"calibrate": "split", "false_alarms": 0.2}, "hybrid"),
        ({"budget": 20.0}, "patchcore"),
        ({"test": "0.5", "false_alarms": 0.2}, "patchcore"),  # 8 good images would be held out, and 9 are wanted
        ({"test": 0.0, "false_alarms": 0.2}, "patchcore"),
        ({"tile": 32, "false_alarms": 0.2}, "patchcore"),  # no masks, so no tile can be called defective
    ],
)
def test_options_decide_too(tmp_path: Path, asked: dict[str, Any], detector: str) -> None:
    import numpy as np

    for folder, count in (("good", 80), ("crack", 40)):
        for number in range(count):
            write_image(tmp_path / f"data/{folder}/{number}.png", np.full((8, 8, 3), number, np.uint8))
    config = configure(tmp_path / "data", tmp_path / "run", **asked)
    assert config.detector == detector
    assert bool(config.why) == (not {"detector", "budget"} & set(asked) and asked.get("calibrate") != "leave-one-out")


def test_a_folder_that_is_not_there_is_refused_later(tmp_path: Path) -> None:
    config = configure(tmp_path / "nowhere", tmp_path / "run")
    assert (config.detector, config.why) == ("patchcore", "")
