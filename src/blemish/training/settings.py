"""What was asked of a detector on the command line -> its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from blemish.detectors.attention import config as attention_config
from blemish.detectors.cam import config as cam_config
from blemish.training.pipeline import DETECTORS
from blemish.types import BlemishError

STUDIES: dict[str, Callable[[Any], Any]] = {"cam": cam_config.case_study, "attention": attention_config.case_study}
POOLING: dict[str, dict[str, Any]] = {
    "mean": {"moments": 1, "deviations": False},
    "moments": {"moments": 2, "deviations": False},
    "deviations": {"deviations": True},
}


def settings_for(detector: str, asked: Mapping[str, Any], *, published: bool = False) -> Any:
    """The config of `detector`: its defaults, or the published ones, changed by what was asked (None = was not).

    Raises `BlemishError` for an unknown detector, an option that is another detector's, and a value that is none.
    """
    if detector not in DETECTORS:
        raise BlemishError(f"there is no detector '{detector}'; choose one of {', '.join(DETECTORS)}.")
    config = DETECTORS[detector][0]()
    if published:
        if detector not in STUDIES:
            raise BlemishError(f"the recipe case-study is for --detector {' or '.join(STUDIES)}, not {detector}.")
        config = STUDIES[detector](config)
    known = {field.name for field in fields(config)}
    changes: dict[str, Any] = {}
    for name, value in asked.items():
        if value is None:
            continue
        made = READ[name](value) if name in READ else {name: value}
        if not set(made) <= known:
            raise BlemishError(f"--{name.replace('_', '-')} is not an option of --detector {detector}.")
        changes |= made
    return replace(config, **changes)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _classes(text: str) -> dict[str, Any]:
    if text not in ("binary", "types"):
        raise BlemishError(f"--classes takes binary or types, not '{text}'.")
    return {"types": text == "types"}


def _pool(text: str) -> dict[str, Any]:
    if text not in POOLING:
        raise BlemishError(f"--pool takes {', '.join(POOLING)}, not '{text}'.")
    return POOLING[text]


def _head_weights(text: str) -> dict[str, Any]:
    try:
        return {"head_weights": text if text == "auto" else tuple(float(part) for part in _names(text))}
    except ValueError:
        raise BlemishError(f"--head-weights takes auto, or a number for each class: 1,3; not '{text}'.") from None


READ: dict[str, Callable[[str], dict[str, Any]]] = {
    "layers": lambda text: {"layers": _names(text)},
    "layer": lambda text: {"layers": (text,)},
    "may": lambda text: {"may": _names(text)},
    "classes": _classes,
    "pool": _pool,
    "head_weights": _head_weights,
}
