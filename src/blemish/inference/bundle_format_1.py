"""Cards of format 1, whose keys had other names, as of format 2."""

from __future__ import annotations

from typing import Any

# What had another name in format 1: keys of a card's parts, values of some of these keys, and outputs of the graph.
_KEYS = {
    "decision": {"usual": "normal_median", "peaks": "map_maxima", "heat": "color_range"},
    "settings": {
        "neighbourhood": "patch_size",
        "neighbours": "num_neighbours",
        "departures": "deviations",
        "rate": "learning_rate",
        "may": "augmentations",
        "spoil": "corruption",
    },
    "parity": {"pictures": "images"},
}
_VALUES = {"rule": {"promise": "guarantee"}, "boxes": {"hills": "regions"}, "input": {"picture": "image"}}
OUTPUTS = {"repaired": "reconstruction"}


def upgraded(content: Any) -> Any:
    """A card's content as of format 2; anything but a card of format 1 stays as it is."""
    if not isinstance(content, dict) or content.get("format") != "blemish bundle 1":
        return content
    parts = {part: _renamed(content[part], keys) for part, keys in _KEYS.items() if part in content}
    settings = parts.get("settings")
    if isinstance(settings, dict) and "types" in settings:  # a classifier's
        settings["classes"] = "types" if settings.pop("types") else "binary"
        pooled = "mean" if settings.pop("moments", 2) == 1 else "moments"
        settings["pool"] = "deviations" if settings.pop("deviations", False) else pooled
    return {**content, "format": "blemish bundle 2", **parts}


def _renamed(part: Any, keys: dict[str, str]) -> Any:
    if not isinstance(part, dict):
        return part
    part = {keys.get(key, key): value for key, value in part.items()}
    return {key: _VALUES.get(key, {}).get(str(value), value) for key, value in part.items()}
