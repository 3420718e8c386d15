"""The text of a grid -> its cells, and a cell's text -> a detector's config, read as the command line reads it."""

from __future__ import annotations

import itertools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from blemish.training.settings import READ, settings_for
from blemish.types import BlemishError

EXAMPLE = "neighbours=1,9;seed=0,1"
SMALLEST_SIDE = 32
HANDLED = ("checkpoint", "resume")  # by the sweep itself
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_grid(text: str) -> list[dict[str, str]]:
    """`"model=unet,vae;seed=0,1"` -> a dict of option names (with underscores) to values for every combination, the
    last option varying fastest. Semicolons separate options, commas values; parentheses hold a value that has commas
    of its own: `layers=(2,3),(3)`. Raises `BlemishError` where the text is no grid."""
    options: dict[str, list[str]] = {}
    for part in text.split(";"):
        if not part.strip():
            continue
        name, equals, values = (piece.strip() for piece in part.partition("="))
        name = name.removeprefix("--").replace("-", "_")
        if not (name and equals):
            raise BlemishError(f"'{part.strip()}' in the grid is not name=value,value; write it like {EXAMPLE}.")
        if name in options:
            raise BlemishError(f"{_shown(name)} is in the grid twice; give all of its values at once.")
        options[name] = [value.strip() for value in re.split(r",(?![^()]*\))", values)]
        if not all(options[name]):
            raise BlemishError(f"{_shown(name)} has an empty value in the grid; write it like {EXAMPLE}.")
        options[name] = [_bare(value, name) for value in options[name]]
    if not options:
        raise BlemishError(f"The grid is empty; write it like {EXAMPLE}.")
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def cell_settings(detector: str, cell: Mapping[str, str], image_size: tuple[int, int], seed: int) -> Any:
    """The config of `detector` for one cell; `image_size` (height, width) and `seed` hold where it names none.

    Raises `BlemishError` for an option that the detector does not have, and a value that is none of the option's.
    """
    hints = typing.get_type_hints(type(settings_for(detector, {})))
    asked: dict[str, Any] = {}
    for name, text in cell.items():
        if name in HANDLED:
            raise BlemishError(f"{name} is set by the sweep itself; leave it out of the grid.")
        if name == "image_size":
            image_size = size(text) or image_size
        else:
            asked[name] = text if name in READ or name not in hints else _typed(text, hints[name], name)
    asked = {"seed": seed} | asked
    return replace(settings_for(detector, asked), image_size=image_size)


def size(text: str) -> tuple[int, int] | None:
    """`auto` -> None, `256` -> (256, 256), `192x320` -> (192, 320): height, width."""
    if text == "auto":
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else (sides[0], sides[0])
    except ValueError:
        raise BlemishError(f"'{text}' is not an image size; write auto, 256, or HEIGHTxWIDTH.") from None
    if min(height, width) < SMALLEST_SIDE or len(sides) > 2:
        raise BlemishError(f"'{text}' is not an image size: both sides must be at least {SMALLEST_SIDE} pixels.")
    return height, width


def has_checkpoint(settings: Any) -> bool:
    """Whether the detector can go on within a training that was killed."""
    return {field.name for field in fields(settings)} >= set(HANDLED)


def _shown(name: str) -> str:
    return name.replace("_", "-")


def _bare(value: str, name: str) -> str:
    """The value without its parentheses."""
    bare = value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value
    if not bare or set(bare) & set("()"):
        raise BlemishError(f"'{value}', of {_shown(name)} in the grid, has parentheses that hold no value.")
    return bare


def _typed(text: str, hint: Any, name: str) -> Any:
    """`text` as the type that the config's field has."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return _typed(text, next(each for each in inner if each is not type(None)), name)
    if kind is tuple:
        return tuple(_typed(part.strip(), inner[0], name) for part in text.split(","))
    if kind is typing.Literal:
        if text not in inner:
            raise BlemishError(f"--{_shown(name)} takes {', '.join(map(str, inner))}, not '{text}'.")
        return text
    if hint is bool:
        if text.lower() not in YES + NO:
            raise BlemishError(f"--{_shown(name)} takes yes or no, not '{text}'.")
        return text.lower() in YES
    if hint in (int, float):
        try:
            number = hint(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            what = "a whole number" if hint is int else "a number"
            raise BlemishError(f"--{_shown(name)} takes {what}, not '{text}'.")
        return number
    return Path(text) if hint is Path else text
