"""How to repeat a run: the command, as far as the card knows it, and the hashes by which to tell that it is the
same."""

from __future__ import annotations

import shlex
from typing import Any

from blemish.inference.bundle import EVIDENCE, ROI, Card
from blemish.options import words

# Set by the training, or of the machine, or an option that there was once.
SET_OTHERWISE = ("image_size", "seed", "device", "processes", "num_neighbours")


def repeat(card: Card) -> dict[str, Any]:
    """`command`, `seed`, `versions`, and `sha256` of data, files and card."""
    settings, rule, data = card.settings, card.decision, card.data
    command = ["blemish", "train", data.source, "-o", "again", "--detector", card.detector]
    asked: dict[str, Any] = {
        "layout": data.layout,
        "pooled": data.pooled or None,
        "seed": data.seed,
        "image_size": "x".join(map(str, card.image_size)),
        "test": f"{data.test_share:g}",
        "calibration": f"{data.calibration_share:g}",
        "decide": rule.rule,
        "boxes": rule.boxes,
        "min_area": f"{rule.min_area / (card.frame.tile_share if card.frame else 1):g}",  # with tiles, of one tile
        "false_alarms": rule.false_alarms,
        "review": rule.review,
        "confidence": rule.confidence,
        "calibrate": rule.calibrated_by if rule.rule == "guarantee" else None,
        "evidence": EVIDENCE in card.files,
        **{name: value for name, value in settings.items() if name not in SET_OTHERWISE},
    }
    if isinstance(asked.get("alternate"), bool):  # of the autoencoder, once a yes or no
        asked["alternate"] = "every" if asked["alternate"] else "no"
    command += [*_framed(card), *(word for name, value in asked.items() for word in words(name, value))]
    return {
        "command": shlex.join(command),
        "seed": card.data.seed,
        "versions": dict(card.versions),
        "sha256": {
            "training images": card.data.sha256,
            **{name: file.sha256 for name, file in card.files.items()},
            "card": card.sha256,
        },
    }


def _framed(card: Card) -> list[str]:
    frame = card.frame
    if frame is None:
        return []
    tiles = ["--tile", str(max(frame.tile)), "--overlap", str(frame.overlap)] if frame.tile else []
    return [*tiles, *(["--roi", f"bundle/{ROI}"] if frame.roi else []), *(["--align"] if frame.align else [])]
