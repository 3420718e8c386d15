"""Writes the options of `blemish train` into docs/commands.md, from the fields where they stand.

Run it with `python tools/commands.py`; a test says when the page is behind.
"""

from __future__ import annotations

from pathlib import Path

from blemish.cli.options import SEVERAL, detector_options
from blemish.detectors.registry import OURS, config_of
from blemish.options import Option, options
from blemish.training.config import TrainConfig

PAGE = Path(__file__).resolve().parents[1] / "docs/commands.md"
BEGIN, END = "<!-- options of blemish train: written by tools/commands.py -->\n", "<!-- end of options -->\n"


def tables() -> str:
    """A table for each panel of `blemish train --help`."""
    every = [*options(TrainConfig), *detector_options(tuple(OURS))]
    panels = dict.fromkeys([*(o.panel for o in options(TrainConfig)), SEVERAL, *(o.panel for o in every)])
    parts = []
    for panel in panels:
        rows = [_row(option) for option in every if option.panel == panel]
        parts += [f"{panel}:", "", "| option | default | what it does |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _row(option: Option) -> str:
    flag = f"`--{option.name}` / `--no-{option.name}`" if option.type is bool else f"`--{option.name}`"
    default = f"`{option.shown}`" if option.shown else ""
    return f"| {flag} | {default} | {option.help} |"


def page(text: str) -> str:
    """The page with its tables as they should be."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    assert set(OURS) == {config_of(name).traits.name for name in OURS}
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
