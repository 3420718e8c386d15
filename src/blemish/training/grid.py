"""Parses the text of a sweep's grid into cells, and a cell into a detector's config, as the command line does."""

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

EXAMPLE = "place=yes,no;seed=0,1"


def parse_grid(text: str) -> list[dict[str, str]]:
    """`"model=unet,vae;seed=0,1"` -> one dict from option names (with underscores) to values for every combination; the
    last option varies fastest. Semicolons separate options, commas separate values, and a value that contains commas
    stands in parentheses: `layers=(2,3),(3)`. Raises `BlemishError` if the text is not a grid."""
    options: dict[str, list[str]] = {}
    for assignment in text.split(";"):
        if not assignment.strip():
            continue
        name, equals, values = (piece.strip() for piece in assignment.partition("="))
        name = name.removeprefix("--").replace("-", "_")
        if not (name and equals):
            raise BlemishError(f"'{assignment.strip()}' in the grid is not name=value,value; write it like {EXAMPLE}.")
        if name in options:
            raise BlemishError(f"{_shown(name)} is in the grid twice; give all of its values at once.")
        options[name] = [value.strip() for value in re.split(r",(?![^()]*\))", values)]
        if not all(options[name]):
            raise BlemishError(f"{_shown(name)} has an empty value in the grid; write it like {EXAMPLE}.")
        options[name] = [_without_parentheses(value, name) for value in options[name]]
    if not options:
        raise BlemishError(f"The grid is empty; write it like {EXAMPLE}.")
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def cell_settings(detector: str, cell: Mapping[str, str], image_size: tuple[int, int], seed: int) -> DetectorConfig:
    """The config of `detector` for one cell; `image_size` (height, width) and `seed` apply if the cell names none.

    Raises `BlemishError` for an option that the detector does not have, and for an invalid value.
    """
    options: dict[str, Any] = dict(cell)
    if "image_size" in options:
        image_size = size(options.pop("image_size")) or image_size
    if not (number := options.pop("seed", str(seed))).isdigit():
        raise BlemishError(f"--seed takes a whole number, not '{number}'.")
    config = settings_for(detector, options)
    return replace(config, image_size=image_size, seed=int(number))  # type: ignore[type-var]


def _shown(name: str) -> str:
    return name.replace("_", "-")


def _without_parentheses(value: str, name: str) -> str:
    bare = value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value
    if not bare or set(bare) & set("()"):
        raise BlemishError(
            f"'{value}', of {_shown(name)} in the grid, has parentheses without a value; write it as (2,3)."
        )
    return bare
