"""The detectors by name: the built-in ones, and those that other packages add with an entry point of the group
`blemish.detectors` (name = "package.module:Config"). Light: the module of a config must not load torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from blemish.detectors.interface import DetectorConfig
from blemish.options import check, options, read
from blemish.types import BlemishError

GROUP = "blemish.detectors"
OURS = {
    "patchcore": "blemish.detectors.patchcore.config:PatchCoreConfig",
    "hybrid": "blemish.detectors.hybrid.config:HybridConfig",
    "cam": "blemish.detectors.cam.config:CamConfig",
    "attention": "blemish.detectors.attention.config:AttentionConfig",
}


@cache
def others() -> dict[str, str]:
    """The detectors of other packages: name -> "package.module:Config". Asked once, as it looks at every package."""
    return {point.name: point.value for point in entry_points(group=GROUP) if point.name not in OURS}


def names() -> list[str]:
    """The names of all detectors, the built-in ones first."""
    return [*OURS, *sorted(others())]


def loadable() -> list[str]:
    """The names of those that can be loaded: a package that is broken must not stop the others."""
    found = []
    for name in names():
        try:
            config_of(name)
        except BlemishError:
            continue
        found.append(name)
    return found


@cache
def config_of(name: str) -> type[DetectorConfig]:
    """The config class of a detector. Raises `BlemishError` if there is none of that name or it cannot be loaded."""
    where = OURS.get(name) or others().get(name, "")
    if not where:
        raise BlemishError(f"there is no detector '{name}'; choose one of {', '.join(names())}.")
    module, _, attribute = where.partition(":")
    try:
        config: type[DetectorConfig] = getattr(import_module(module), attribute)
        named = config.traits.name
    except Exception as cause:  # whatever a package of others does when it is imported
        raise BlemishError(
            f"the detector '{name}' cannot be loaded from {where} ({cause}); correct or remove its package."
        ) from cause
    if named != name:
        raise BlemishError(
            f"the detector '{name}' cannot be loaded from {where} (its traits call it '{named}'); correct its package."
        )
    return config


def settings_for(name: str, asked: Mapping[str, Any], recipe: str = "") -> DetectorConfig:
    """The config of a detector: the defaults, or the settings of a published recipe, with the changes in `asked`:
    values, or text as on the command line, by field name; None = not given.

    Raises `BlemishError` for an unknown detector or recipe, an option of another detector, and an invalid value.
    """
    kind = config_of(name)
    config = kind()
    if recipe:
        if recipe not in kind.traits.recipes:
            known = [
                f"{r} of --detector {detector}" for detector in loadable() for r in config_of(detector).traits.recipes
            ]
            raise BlemishError(f"there is no recipe '{recipe}' of --detector {name}; there is {', '.join(known)}.")
        config = kind.traits.recipes[recipe].settings(config)
    known_options = {option.field: option for option in options(kind)}
    changes: dict[str, Any] = {}
    for field, value in asked.items():
        if value is None:
            continue
        if field not in known_options:
            raise BlemishError(f"--{field.replace('_', '-')} is not an option of --detector {name}.")
        changes[field] = read(known_options[field], value)
    config = replace(config, **changes)  # type: ignore[type-var]
    check(config)
    return config
