"""A detector's training as a run: the training loop with the checkpoint and the log that its config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from blemish.detectors.nn.loggers import logger
from blemish.detectors.nn.loop import Plan, Records, Step, descend, identity, unlogged
from blemish.types import Progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Config(Protocol):
    """The fields of a detector's config (a dataclass) that its run depends on."""

    @property
    def checkpoint(self) -> Path | None: ...
    @property
    def resume(self) -> bool: ...
    @property
    def log(self) -> str: ...


def descend_run(
    name: str,
    config: Config,
    facts: Sequence[Any],
    model: nn.Module,
    steps: Sequence[Step],
    samples: int,
    plan: Plan,
    *,
    fabric: Fabric,
    progress: Progress,
) -> Records:
    """`descend`, with the checkpoint `name`.safetensors and the log `name` in `config.checkpoint`, where that is given.
    A checkpoint of another config or other `facts`, which JSON can hold, is not resumed."""
    folder = config.checkpoint
    return descend(
        model,
        steps,
        samples,
        plan,
        fabric=fabric,
        checkpoint=folder / f"{name}.safetensors" if folder else None,
        resume=config.resume,
        identity=identity(config, *facts),
        log=logger(config.log, folder / "log" / name, name) if folder and fabric.is_global_zero else unlogged,
        progress=progress,
    )
