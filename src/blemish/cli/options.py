"""The options of a command, made from dataclass fields, which define their help texts, ranges and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from blemish.detectors.registry import config_of, loadable
from blemish.options import Option, options
from blemish.training.config import RESERVED

SEVERAL = "Several detectors"


def detector_options(detectors: Sequence[str] = ()) -> list[Option]:
    """The options of all detectors. Options that several detectors share are merged: the help names the detectors and,
    if they differ, their defaults."""
    by_name: dict[str, list[tuple[str, Option]]] = {}
    for detector in detectors or loadable():
        if RESERVED & {option.field for option in options(config_of(detector))}:
            continue  # it is refused, with a sentence, when it is chosen
        for option in options(config_of(detector)):
            by_name.setdefault(option.name, []).append((detector, option))
    return [_merged(same_name) for same_name in by_name.values()]


def _merged(same_name: Sequence[tuple[str, Option]]) -> Option:
    if len(same_name) == 1:
        detector, option = same_name[0]
        return replace(option, panel=config_of(detector).traits.title)
    texts = dict.fromkeys(option.help for _, option in same_name)
    detectors = ", ".join(detector for detector, _ in same_name)
    each = "; ".join(f"{detector}: {option.help.rstrip('.')}" for detector, option in same_name)
    help_text = f"{same_name[0][1].help} ({detectors})" if len(texts) == 1 else f"{each}."
    defaults = dict.fromkeys(option.shown for _, option in same_name)
    if len(defaults) > 1:
        shown = ", ".join(f"{detector} {option.shown or 'none'}" for detector, option in same_name)
        help_text += f" Default: {shown}."
    option = same_name[0][1]
    lows, highs = [o.low for _, o in same_name], [o.high for _, o in same_name]
    return replace(
        option,
        help=help_text,
        default=option.default if len(defaults) == 1 else None,
        panel=SEVERAL,
        low=None if None in lows else min(low for low in lows if low is not None),
        high=None if None in highs else max(high for high in highs if high is not None),
    )


def parameter(option: Option) -> inspect.Parameter:
    """A keyword parameter of a typer command; its value is None if the option was not given."""
    kind: Any = option.type if option.type in (int, float, bool, Path) and option.parse is None else str
    flags = [f"--{option.name}"]
    if kind is bool:
        flags = [f"--{option.name}/--no-{option.name}"]
    typer_option = typer.Option(
        *flags,
        help=f"{option.help} (default {option.shown})" if option.shown else option.help,
        min=option.low if kind in (int, float) else None,
        max=option.high if kind in (int, float) else None,
        rich_help_panel=option.panel or None,
        show_default=False,
    )
    return inspect.Parameter(
        option.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, typer_option]
    )


def with_options(
    fixed: Iterable[inspect.Parameter], made: Iterable[Option]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command `command(**asked)` the signature that typer reads: these parameters and options."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [*fixed, *map(parameter, made)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def fixed(name: str, kind: Any, about: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """A parameter that is not made from a field: an argument, or an option of the command line only."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, about])
