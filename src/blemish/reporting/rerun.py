"""How to repeat a run: the command, as far as the card knows it, and the hashes by which to tell that it is the
same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from blemish.inference.bundle import EVIDENCE, ROI, Card

# Settings that no option sets, those of the machine instead of the detector, and those that other options set.
NO_OPTION = ("projection", "sigma", "decay", "one_cycle", "head_first", "contrast", "validation")
LEFT_OUT = ("device", "processes", "log")
OTHERWISE = ("image_size", "seed", "types", "moments", "deviations")


def repeat(card: Card) -> dict[str, Any]:
    """`command`, the `settings` that no option of it sets, `seed`, `versions`, and `sha256` of data, files and card."""
    settings, rule, data = card.settings, card.decision, card.data
    words = ["blemish", "train", data.source, "-o", "again", "--detector", card.detector]
    words += ["--layout", data.layout, "--seed", str(data.seed), "--image-size", "x".join(map(str, card.image_size))]
    words += ["--test", f"{data.test_share:g}", "--calibration", f"{data.calibration_share:g}"]
    words += ["--decide", rule.rule, "--boxes", rule.boxes, "--min-area", f"{_least_area(card):g}"]
    words += _framed(card)
    for name, rate in (("false-alarms", rule.false_alarms), ("review", rule.review), ("confidence", rule.confidence)):
        words += [f"--{name}", f"{rate:g}"] if rate is not None else []
    words += ["--calibrate", rule.calibrated_by] if card.detector == "patchcore" else []
    words += [] if EVIDENCE in card.files else ["--no-evidence"]
    for name, value in settings.items():
        automatic = name == "epochs" and not value  # chosen from the number of images
        words += [] if automatic or name in (*NO_OPTION, *LEFT_OUT, *OTHERWISE) else _option(name, value)
    if "types" in settings:
        words += ["--classes", "types" if settings["types"] else "binary"]
        pool = "deviations" if settings["deviations"] else "moments" if settings["moments"] == 2 else "mean"
        words += ["--pool", pool]
    return {
        "command": shlex.join(words),
        "settings": {name: settings[name] for name in NO_OPTION if name in settings},
        "seed": card.data.seed,
        "versions": dict(card.versions),
        "sha256": {
            "training images": card.data.sha256,
            **{name: file.sha256 for name, file in card.files.items()},
            "card": card.sha256,
        },
    }


def _least_area(card: Card) -> float:
    """As the option takes it: with tiles, as a share of one tile."""
    frame = card.frame
    if frame is None or frame.tile is None:
        return card.decision.min_area
    return card.decision.min_area * frame.size[0] * frame.size[1] / (frame.tile[0] * frame.tile[1])


def _framed(card: Card) -> list[str]:
    frame = card.frame
    if frame is None:
        return []
    tiles = ["--tile", str(max(frame.tile)), "--overlap", str(frame.overlap)] if frame.tile else []
    return [*tiles, *(["--roi", f"bundle/{ROI}"] if frame.roi else []), *(["--align"] if frame.align else [])]


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if value is None or value == [] or value == ():
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list | tuple):
        return [f"--{flag}", ",".join(map(str, value))]
    return [] if isinstance(value, Mapping) else [f"--{flag}", str(value)]
