from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from blemish.detectors.cam.config import CamConfig
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.options import setting
from blemish.training.config import size
from blemish.training.grid import cell_settings, parse_grid
from blemish.types import BlemishError


def test_all_combinations_with_the_last_option_varying_fastest() -> None:
    assert parse_grid("model=unet,vae; attention-loss = mse , mse+ssim ;seed=0") == [
        {"model": "unet", "attention_loss": "mse", "seed": "0"},
        {"model": "unet", "attention_loss": "mse+ssim", "seed": "0"},
        {"model": "vae", "attention_loss": "mse", "seed": "0"},
        {"model": "vae", "attention_loss": "mse+ssim", "seed": "0"},
    ]


def test_a_value_with_commas_stands_in_parentheses() -> None:
    assert parse_grid("layers=(2,3),(3),4") == [{"layers": "2,3"}, {"layers": "3"}, {"layers": "4"}]
    assert parse_grid("--loss=mse=1;") == [{"loss": "mse=1"}]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "num_neighbours",
            "'num_neighbours' in the grid is not name=value,value; write it like place=yes,no;seed=0,1",
        ),
        ("=1", "'=1' in the grid is not name=value"),
        ("image-size=64;image_size=96", "image-size is in the grid twice"),
        ("seed=0,,1", "seed has an empty value"),
        ("seed=", "seed has an empty value"),
        ("layers=()", r"'\(\)', of layers in the grid, has parentheses without a value"),
        ("layers=(2,3", r"'\(2', of layers in the grid"),
        (" ; ", "The grid is empty"),
    ],
)
def test_text_that_is_not_a_grid_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(BlemishError, match=sentence):
        parse_grid(text)


def test_text_becomes_values_of_the_config() -> None:
    cell = {
        "coreset": "0.02",
        "place": "no",
        "layers": "2, 3",
        "random_weights": "yes",
        "weights": "w.safetensors",
    }
    assert cell_settings("patchcore", cell, (64, 96), 5) == PatchCoreConfig(
        coreset=0.02,
        place="no",
        layers=("2", "3"),
        random_weights=True,
        weights=Path("w.safetensors"),
        image_size=(64, 96),
        seed=5,
    )
    config = cell_settings("patchcore", {"seed": "7", "image_size": "128"}, (64, 96), 5)
    assert (config.seed, config.image_size) == (7, (128, 128))
    assert cell_settings("patchcore", {"image_size": "auto"}, (64, 96), 5).image_size == (64, 96)
    config = cell_settings("cam", {"pool": "deviations", "head_weights": "1,3", "epochs": "2"}, (64, 96), 0)
    assert config == CamConfig(pool="deviations", head_weights=(1.0, 3.0), epochs=2, image_size=(64, 96))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ({"max_bank": "1.5"}, "--max-bank takes a whole number, not '1.5'"),
        ({"coreset": "a tenth"}, "--coreset takes a number, not 'a tenth'"),
        ({"coreset": "nan"}, "--coreset takes a number"),
        ({"random_weights": "perhaps"}, "--random-weights takes yes or no"),
        ({"image_size": "16"}, "both sides must be at least 32"),
        ({"image_size": "64x"}, "'64x' is not an image size"),
        ({"max_banks": "1"}, "--max-banks is not an option of --detector patchcore"),
        ({"resume": "yes"}, "--resume is not an option of --detector patchcore"),
        ({"seed": "one"}, "--seed takes a whole number"),
    ],
)
def test_invalid_values_are_refused(cell: dict[str, str], sentence: str) -> None:
    with pytest.raises(BlemishError, match=sentence):
        cell_settings("patchcore", cell, (64, 96), 0)


@dataclass(frozen=True)
class Odd:
    kind: Literal["a", "b"] = setting("a", "Kind.")
    scales: tuple[float, ...] = setting((), "Scales.")
    threshold: int | None = setting(None, "Threshold.")
    seed: int = 0
    image_size: tuple[int, int] = (64, 64)


def test_choices_tuples_and_optional_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blemish.detectors.registry.config_of", lambda _: Odd)
    cell = {"kind": "b", "scales": "0.5, 2", "threshold": "3"}
    config: object = cell_settings("odd", cell, (64, 96), 1)
    assert config == Odd("b", (0.5, 2.0), 3, 1, (64, 96))
    with pytest.raises(BlemishError, match="--kind takes a or b, not 'c'"):
        cell_settings("odd", {"kind": "c"}, (64, 96), 1)


def test_sizes() -> None:
    assert size("48x64") == (48, 64)
