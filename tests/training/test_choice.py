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
        (samples(100, 0), "patchcore", "There are no defective images to learn from"),
        (samples(100, 37, masks=12), "hybrid", "37 defective images, 12 with masks: the detector is hybrid"),
        (samples(100, 37), "hybrid", "tested on 20% of both"),
        (samples(100, 4), "patchcore", "4 defective images: fewer than 10 of them"),
        (samples(100, 40, per_item=10), "patchcore", "fewer than 10 of them (or of their items)"),
        (samples(100, 20, split="test"), "patchcore", "All 20 defective images are in the folder's own test split"),
        (samples(100, 20, split="train"), "hybrid", "20 defective images: the detector is hybrid"),
        (samples(40, 37), "patchcore", "40 good images (or items) are too few"),
        (samples(300, 37, per_item=3), "hybrid", "37 defective"),
    ],
)
def test_what_the_folder_holds_decides(data: list[Sample], detector: str, words: str) -> None:
    choice = choose(data)
    assert choice.detector == detector
    assert words in choice.sentence


def test_a_looser_guarantee_needs_fewer_good_images() -> None:
    assert choose(samples(40, 37)).detector == "patchcore"
    assert choose(samples(40, 37), false_alarms=0.1).detector == "hybrid"


@pytest.mark.parametrize(
    ("asked", "detector"),
    [
        ({}, "hybrid"),
        ({"detector": "patchcore"}, "patchcore"),
        ({"calibrate": "leave-one-out"}, "patchcore"),
        ({"calibrate": "split"}, "hybrid"),
        ({"budget": 20.0}, "patchcore"),
        ({"test": "0.5"}, "patchcore"),  # 20 of 60 defects would do, 30 of 60 good images would not
        ({"tile": 32}, "patchcore"),  # no masks, so no tile can be called defective
    ],
)
def test_options_decide_too(tmp_path: Path, asked: dict[str, Any], detector: str) -> None:
    import numpy as np

    for folder, count in (("good", 80), ("crack", 40)):
        for number in range(count):
            write_image(tmp_path / f"data/{folder}/{number}.png", np.full((8, 8, 3), number, np.uint8))
    config = configure(tmp_path / "data", tmp_path / "run", **asked)
    assert config.detector == detector
    assert bool(config.why) == (
        not {"detector", "calibrate", "budget"} & set(asked) or asked.get("calibrate") == "split"
    )


def test_a_folder_that_is_not_there_is_refused_later(tmp_path: Path) -> None:
    config = configure(tmp_path / "nowhere", tmp_path / "run")
    assert (config.detector, config.why) == ("patchcore", "")
