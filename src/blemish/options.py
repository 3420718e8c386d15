"""Options as dataclass fields: the help text, the range and the panel of an option are defined beside its default.

The command line, docs/commands.md, `blemish detectors`, the grid of a sweep, the card and "how to repeat" are all made
from these fields. Light: no torch, no numpy.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from blemish.types import BlemishError

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    panel: str = "",
    parse: Callable[[str], Any] | None = None,
    machine: bool = False,
) -> Any:
    """A dataclass field that is an option. `help` is one sentence; `low` and `high` are inclusive bounds of a number;
    `panel` is its panel in --help; `parse` reads its text if the type does not define how. `machine` marks an option
    that changes where or how fast the work is done, but not the result. A field without `setting` is not an option."""
    metadata = {"help": help, "low": low, "high": high, "panel": panel, "parse": parse, "machine": machine}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One option as the command line and the documentation show it. `type` is that of the field, without None."""

    field: str
    name: str  # as on the command line, without its dashes
    type: Any
    default: Any
    help: str
    low: float | None
    high: float | None
    panel: str
    parse: Callable[[str], Any] | None
    machine: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a Literal, otherwise ()."""
        return tuple(map(str, typing.get_args(self.type))) if typing.get_origin(self.type) is typing.Literal else ()

    @property
    def shown(self) -> str:
        """The default as text, "" if there is none."""
        if self.default in (None, "", ()):
            return ""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def options(config: type[Any]) -> list[Option]:
    """The options of a dataclass, in the order of its fields."""
    hints = typing.get_type_hints(config)
    return [_option(field, hints[field.name]) for field in fields(config) if field.metadata.get("help")]


def _option(config_field: Field[Any], hint: Any) -> Option:
    metadata = config_field.metadata
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # `Path | None`
        hint = next(member for member in typing.get_args(hint) if member is not type(None))
    return Option(
        field=config_field.name,
        name=config_field.name.replace("_", "-"),
        type=hint,
        default=None if config_field.default is MISSING else config_field.default,
        help=metadata["help"],
        low=metadata["low"],
        high=metadata["high"],
        panel=metadata["panel"],
        parse=metadata["parse"],
        machine=metadata["machine"],
    )


def read(option: Option, value: Any) -> Any:
    """The value of the field: text is parsed by the option's type. Raises `BlemishError` for invalid text."""
    if option.type is Path and value == "":
        raise BlemishError(f"--{option.name} takes a file, not ''.")
    if isinstance(value, list):
        value = tuple(value)
    if option.parse and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # such as image_size=256
    if isinstance(value, str):
        value = option.parse(value) if option.parse else _typed(option, option.type, value)
    return value


def _typed(option: Option, hint: Any, text: str) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(_typed(option, typing.get_args(hint)[0], item.strip()) for item in text.split(",") if item.strip())
    if option.choices and text not in option.choices:
        raise BlemishError(f"--{option.name} takes {either(option.choices)}, not '{text}'.")
    if hint is bool:
        if text.lower() not in YES + NO:
            raise BlemishError(f"--{option.name} takes yes or no, not '{text}'.")
        return text.lower() in YES
    if hint in (int, float):
        try:
            number = hint(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            expected = "a whole number" if hint is int else "a number"
            raise BlemishError(f"--{option.name} takes {expected}, not '{text}'.")
        return number
    return Path(text) if hint is Path else text


def either(choices: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def check(config: Any) -> None:
    """Raises `BlemishError` if a setting is outside its range or is not one of its choices."""
    for option in options(type(config)):
        value = getattr(config, option.field)
        if option.choices and value is not None and value not in option.choices:
            raise BlemishError(f"--{option.name} takes {either(option.choices)}, not '{value}'.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = option.low, option.high
        if not (low is None or value >= low) or not (high is None or value <= high):
            bounds = f"from {low:g} to {high:g}" if low is not None and high is not None else ""
            bounds = bounds or (f"of at least {low:g}" if low is not None else f"of at most {high:g}")
            raise BlemishError(f"--{option.name} takes a number {bounds}, not {value:g}.")


def as_json(config: Any, *, machine: bool = False) -> dict[str, Any]:
    """The settings as in a card: those that the result depends on, and with `machine` the other options too."""
    internal = ("checkpoint", "resume")
    values = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in internal and (machine or not field.metadata.get("machine"))
    }
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def words(field: str, value: Any) -> list[str]:
    """The command line arguments for a field's value; [] for an empty value."""
    name = field.replace("_", "-")
    if value is None or value == [] or value == () or value == "":
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
