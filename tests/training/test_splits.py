"""Who teaches, who calibrates, and what is refused before any work."""

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
    found = divided(TrainConfig(data, Path("unused"), **changes))
    return found.left_out, len(found.split.train), len(found.split.calibration), len(found.split.test)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 good tiles, each there twice, as a copy."""
    root = tmp_path_factory.mktemp("data") / "twice"
    for i in range(24):
        file = write_image(root / f"{i:02}a.png", tile(i)[0])
        (root / f"{i:02}b.png").write_bytes(file.read_bytes())
    return root


def test_with_few_images_all_of_them_teach(product: Path) -> None:
    assert sizes(product) == (True, 40, 0, 12)
    assert sizes(product, calibrate="split") == (False, 21, 19, 12)  # 5 % takes 19
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
    found = divided(TrainConfig(twice, Path("unused")))
    names = sorted(found.items)
    assert len(names) == 48
    assert all(found.items[f"{i:02}a.png"] == found.items[f"{i:02}b.png"] for i in range(24))
    assert len({found.items[name] for name in names}) == 24
    with pytest.raises(
        BlemishError, match=r"24 good items .* cannot guarantee 2\.50% .* takes 39; add 15 more, or ask"
    ):
        divided(TrainConfig(twice, Path("unused"), false_alarms=0.025))


def test_so_many_images_are_held_out_that_there_are_items_enough(twice: Path) -> None:
    """10 % takes 9 items, which are 18 images; the usual fifth would be 10 images of 5."""
    found = divided(TrainConfig(twice, Path("unused"), false_alarms=0.1, calibrate="split"))
    assert len(found.split.calibration) == 18
    calibrating = {found.items[sample.name] for sample in found.split.calibration}
    assert len(calibrating) == 9
    assert not calibrating & {found.items[sample.name] for sample in found.split.train}
    with pytest.raises(BlemishError, match=r"12 good items \(with all their images\) cannot guarantee 5\.00%"):
        divided(TrainConfig(twice, Path("unused"), calibrate="split"))  # half of all is the most


@pytest.mark.parametrize(
    ("changes", "said"),
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
def test_refused_before_the_work(product: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BlemishError, match=said):
        divided(TrainConfig(product, Path("unused"), **changes))


def test_a_threshold_that_hangs_on_one_part_is_said(product: Path) -> None:
    def said(**changes: Any) -> list[str]:
        found = divided(TrainConfig(product, Path("unused"), **changes)).warnings
        return [warning for warning in found if "alone sets the threshold" in warning]

    assert said() == []  # 5 % of 41 is two
    (warning,) = said(calibrate="split")
    assert warning.startswith("The highest score of 19 good parts alone sets the threshold")
    assert said(calibrate="split", false_alarms=0.3) == []
