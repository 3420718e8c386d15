"""The text of a grid -> its cells, and a cell's text -> a detector's config, read as the command line reads it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blemish.detectors.interface import DetectorConfig
from blemish.detectors.registry import settings_for
from blemish.training.config import size
from blemish.types import BlemishError

EXAMPLE = "num_neighbours=1,9;seed=0,1"


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


def cell_settings(detector: str, cell: Mapping[str, str], image_size: tuple[int, int], seed: int) -> DetectorConfig:
    """The config of `detector` for one cell; `image_size` (height, width) and `seed` hold where it names none.

    Raises `BlemishError` for an option that the detector does not have, and a value that is none of the option's.
    """
    asked: dict[str, Any] = dict(cell)
    if "image_size" in asked:
        image_size = size(asked.pop("image_size")) or image_size
    if not (number := asked.pop("seed", str(seed))).isdigit():
        raise BlemishError(f"--seed takes a whole number, not '{number}'.")
    config = settings_for(detector, asked)
    return replace(config, image_size=image_size, seed=int(number))  # type: ignore[type-var]


def _shown(name: str) -> str:
    return name.replace("_", "-")


def _bare(value: str, name: str) -> str:
    """The value without its parentheses."""
    bare = value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value
    if not bare or set(bare) & set("()"):
        raise BlemishError(f"'{value}', of {_shown(name)} in the grid, has parentheses that hold no value.")
    return bare
