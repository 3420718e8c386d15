"""The commands by name, in the order of --help. Some are loaded only when they are called, or all are listed: their
options are made from the detectors of every installed package, which takes time that `inspect` does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperGroup

ORDER = (
    *("data", "train", "detectors", "sweep", "corrupt", "inspect", "cluster", "watch", "serve"),
    *("user", "backup", "restore", "log", "explain"),
    *("bundle", "evaluate", "report", "compare", "demo"),
)
LATE = {
    "train": "blemish.cli.train:train",
    "detectors": "blemish.cli.train:detectors",
    "sweep": "blemish.cli.sweep:sweep",
}


class Commands(TyperGroup):
    """The commands of the program; those of `late` are functions in modules that are loaded then."""

    order: Sequence[str] = ORDER
    late: Mapping[str, str] = LATE

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(self.order)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:  # late, or unknown: what it may have meant is looked for in all
            for name, place in self.late.items():
                module, _, function = place.partition(":")
                alone = typer.Typer(add_completion=False, rich_markup_mode=self.rich_markup_mode)
                alone.command(name)(getattr(import_module(module), function))
                self.commands[name] = typer.main.get_command(alone)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, BrokenPipeError) as cause:  # typer would end with 1, which means that there is an anomaly
            raise RuntimeError(f"{type(cause).__name__}: {cause}") from cause


class ClusterCommands(Commands):
    """Those of `blemish cluster`."""

    order = ("inspect", "train")
    late = MappingProxyType({"train": "blemish.cli.sweep:cluster_train"})
