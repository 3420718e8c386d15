"""Which images train, which calibrate, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blemish.detectors.attention.config import AttentionConfig
from blemish.training import splits as module
from blemish.training.config import TrainConfig
from blemish.types import BlemishError
from tests.conftest import tile
from tests.support import divided, write_image


def sizes(data: Path, **changes: Any) -> tuple[bool, int, int, int]:
    images = divided(TrainConfig(data, Path("unused"), **changes))
    return images.left_out, len(images.split.train), len(images.split.calibration), len(images.split.test)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 good tiles, and a copy of each."""
    root = tmp_path_factory.mktemp("data") / "twice"
    for i in range(24):
        file = write_image(root / f"{i:02}a.png", tile(i)[0])
        (root / f"{i:02}b.png").write_bytes(file.read_bytes())
    return root


def test_with_few_images_all_of_them_train(product: Path) -> None:
    assert sizes(product) == (True, 40, 0, 12)
    assert sizes(product, calibrate="split") == (False, 21, 19, 12)  # 5 % needs 19
    assert sizes(product, calibrate="split", false_alarms=0.2) == (False, 32, 8, 12)


def test_with_enough_some_are_held_out_unless_asked(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 0.45)  # 5 % of 8 + 1
    assert sizes(product) == (False, 21, 19, 12)
    assert sizes(product, calibrate="leave-one-out") == (True, 40, 0, 12)
    monkeypatch.setattr(module, "FEW", 0.46)
    assert sizes(product) == (True, 40, 0, 12)


def test_only_patchcore_and_only_on_average(product: Path) -> None:
    assert sizes(product, settings=AttentionConfig()) == (False, 21, 19, 12)
    # 0.8^11 = 0.086 <= 0.1 < 0.8^10
    assert sizes(product, false_alarms=0.2, confidence=0.9) == (False, 29, 11, 12)


def test_copies_are_one_item(twice: Path) -> None:
    images = divided(TrainConfig(twice, Path("unused")))
    names = sorted(images.items)
    assert len(names) == 48
    assert all(images.items[f"{i:02}a.png"] == images.items[f"{i:02}b.png"] for i in range(24))
    assert len({images.items[name] for name in names}) == 24
    with pytest.raises(
        BlemishError, match=r"24 good items .* cannot guarantee 2\.50% .* takes 39; add 15 more, or ask"
    ):
        divided(TrainConfig(twice, Path("unused"), false_alarms=0.025))


def test_enough_items_are_held_out(twice: Path) -> None:
    """10 % needs 9 items, which are 18 images; the default share of a fifth would be 10 images of 5 items."""
    images = divided(TrainConfig(twice, Path("unused"), false_alarms=0.1, calibrate="split"))
    assert len(images.split.calibration) == 18
    calibrating = {images.items[sample.name] for sample in images.split.calibration}
    assert len(calibrating) == 9
    assert not calibrating & {images.items[sample.name] for sample in images.split.train}
    with pytest.raises(BlemishError, match=r"12 good items \(with all their images\) cannot guarantee 5\.00%"):
        divided(TrainConfig(twice, Path("unused"), calibrate="split"))  # at most half of them are held out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"false_alarms": 0.01},
            r"^40 good images cannot guarantee 1\.00% .* takes 99; add 59 more, or ask for .* 2\.5%",
        ),
        ({"false_alarms": 0.01, "calibrate": "split"}, r"^20 held-out good images .* hold out 79 more \(add good"),
        (
            {"confidence": 0.95},
            r"20 held-out .* with 95% confidence: that takes 59; .* or ask for the guarantee on average",
        ),
        ({"review": 0.05}, r"review rate, 5\.00%, must be larger than the rate of false alarms, 5\.00%"),
        ({"review": 1.5}, "a review rate lies between"),
        ({"confidence": 1.0}, "a confidence lies between"),
    ],
)
def test_refused_before_the_work(product: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BlemishError, match=sentence):
        divided(TrainConfig(product, Path("unused"), **changes))


def test_a_threshold_that_depends_on_one_part_is_warned_of(product: Path) -> None:
    def warnings(**changes: Any) -> list[str]:
        images = divided(TrainConfig(product, Path("unused"), **changes))
        return [warning for warning in images.warnings if "threshold is the highest score" in warning]

    assert warnings() == []  # 5 % of 41 is two
    (warning,) = warnings(calibrate="split")
    assert warning.startswith("The threshold is the highest score of 19 good parts")
    assert warnings(calibrate="split", false_alarms=0.3) == []
