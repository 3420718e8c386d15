"""How a run can be had again: the command, as far as the card knows it, and what proves that it is the same."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from typing import Any

from blemish.bundle import Card

# Of the machine, not of the detector; and what the card says elsewhere.
LEFT_OUT = ("device", "processes", "log")
SAID = ("image_size", "seed")


def repeat(card: Card) -> dict[str, Any]:
    """`command`, `settings` that no option of it says, `seed`, `versions`, and hashes of data, files and card."""
    from blemish import cli_learn

    known = set(inspect.signature(cli_learn.train).parameters)
    options = {name: value for name, value in card.settings.items() if name in known and name not in (*LEFT_OUT, *SAID)}
    decision, height_width = card.decision, "x".join(map(str, card.image_size))
    words = ["blemish", "train", card.data.source, "-o", "again", "--detector", card.detector]
    words += ["--layout", card.data.layout, "--seed", str(card.data.seed), "--image-size", height_width]
    words += ["--decide", decision.rule, "--boxes", decision.boxes, "--min-area", f"{decision.min_area:g}"]
    if decision.false_alarms is not None:
        words += ["--false-alarms", f"{decision.false_alarms:g}"]
    words += [word for name, value in options.items() for word in _option(name, value)]
    if "types" in card.settings:
        words += ["--classes", "types" if card.settings["types"] else "binary"]
    return {
        "command": shlex.join(words),
        "settings": {name: value for name, value in card.settings.items() if name not in (*options, *SAID)},
        "seed": card.data.seed,
        "versions": dict(card.versions),
        "sha256": {
            "training pictures": card.data.sha256,
            **{name: file.sha256 for name, file in card.files.items()},
            "card": card.sha256,
        },
    }


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if value is None or value == [] or value == ():
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list | tuple):
        return [f"--{flag}", ",".join(map(str, value))]
    return [] if isinstance(value, Mapping) else [f"--{flag}", str(value)]
