"""Settings written once: what becomes of a dataclass field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from blemish.options import as_json, check, either, options, read, setting, words
from blemish.types import BlemishError


@dataclass(frozen=True)
class Config:
    kind: Literal["a", "b", "c"] = setting("a", "Kind.")
    count: int = setting(3, "How many.", low=1, high=9)
    rate: float | None = setting(None, "Rate.", low=0)
    scales: tuple[float, ...] = setting((), "Scales.")
    file: Path | None = setting(None, "A file.")
    on: bool = setting(True, "Switch.")
    special: str = setting("x", "Special.", parse=str.upper)
    device: str = setting("cpu", "Where.", machine=True)
    seed: int = 0  # no option
    checkpoint: Path | None = None


OPTIONS = {option.field: option for option in options(Config)}


def test_fields_with_a_help_text_are_options() -> None:
    assert list(OPTIONS) == ["kind", "count", "rate", "scales", "file", "on", "special", "device"]
    assert OPTIONS["kind"].choices == ("a", "b", "c")
    assert OPTIONS["rate"].type is float
    assert OPTIONS["file"].type is Path
    assert [option.shown for option in OPTIONS.values()] == ["a", "3", "", "", "", "yes", "x", "cpu"]


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("kind", "b", "b"),
        ("count", "7", 7),
        ("rate", "0.5", 0.5),
        ("scales", "0.5, 2", (0.5, 2.0)),
        ("file", "a/b", Path("a/b")),
        ("on", "no", False),
        ("special", "y", "Y"),
        ("count", 8, 8),  # a value stays
    ],
)
def test_text_is_read_by_the_fields_type(field: str, text: Any, value: Any) -> None:
    assert read(OPTIONS[field], text) == value


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("kind", "d", "--kind takes a, b or c, not 'd'"),
        ("count", "1.5", "--count takes a whole number, not '1.5'"),
        ("rate", "nan", "--rate takes a number, not 'nan'"),
        ("on", "perhaps", "--on takes yes or no, not 'perhaps'"),
    ],
)
def test_text_that_is_none_is_refused(field: str, text: str, sentence: str) -> None:
    with pytest.raises(BlemishError, match=sentence):
        read(OPTIONS[field], text)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(count=0), "--count takes a number from 1 to 9, not 0"),
        (Config(count=10), "--count takes a number from 1 to 9, not 10"),
        (Config(rate=-0.1), "--rate takes a number of at least 0, not -0.1"),
        (Config(rate=float("nan")), "--rate takes a number of at least 0, not nan"),
        (Config(kind="d"), "--kind takes a, b or c, not 'd'"),  # type: ignore[arg-type]
    ],
)
def test_ranges_and_choices_are_checked(config: Config, sentence: str) -> None:
    with pytest.raises(BlemishError, match=sentence):
        check(config)


def test_ends_of_ranges_belong_to_them() -> None:
    check(Config(count=1))
    check(Config(count=9, rate=0.0))


def test_the_card_holds_what_the_result_depends_on() -> None:
    config = Config(file=Path("w.bin"), checkpoint=Path("x"), device="cuda")
    wanted = {"kind": "a", "count": 3, "rate": None, "scales": (), "file": "w.bin", "on": True, "special": "x"}
    wanted |= {"seed": 0}
    assert as_json(config) == wanted
    assert as_json(config, machine=True) == wanted | {"device": "cuda"}


def test_words_of_the_command_line() -> None:
    assert words("many_scales", [0.5, 2]) == ["--many-scales", "0.5,2"]
    assert words("on", False) == ["--no-on"]
    assert words("on", True) == ["--on"]
    assert words("rate", None) == words("scales", ()) == words("log", "") == []
    assert words("count", 0) == ["--count", "0"]


def test_either() -> None:
    assert [either(["a"]), either(["a", "b"]), either(["a", "b", "c"])] == ["a", "a or b", "a, b or c"]
