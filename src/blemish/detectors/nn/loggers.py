"""Logs of a training's losses: event files for TensorBoard, or a run of Weights & Biases."""

from __future__ import annotations

import math
import time
import uuid
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blemish.detectors.nn.loop import Log, unlogged
from blemish.types import BlemishError

# Kind of log -> the package that writes it, and how it is installed.
KINDS = {"tensorboard": ("tensorboardX", 'pip install "blemish[log]"'), "wandb": ("wandb", "pip install wandb")}


def check(kind: str, folder: Path | None) -> None:
    """Raises `BlemishError` where such a log cannot be written to `folder`. "" is no log."""
    if not kind:
        return
    if kind not in KINDS:
        raise BlemishError(f"--log takes {' or '.join(KINDS)}, not '{kind}'.")
    package, remedy = KINDS[kind]
    if find_spec(package) is None:
        raise BlemishError(f"--log {kind} needs the package {package}, which is not installed: {remedy}.")
    if folder is None:
        raise BlemishError(f"a log for {kind} is kept beside the checkpoints; set the config's checkpoint folder.")


def logger(kind: str, folder: Path, run: str) -> Log:
    """Writes every number of an epoch's record to `folder`; `run` is its name in wandb. TensorBoard's are on the disk
    before the next epoch begins.

    Earlier logs stay, so that a resumed training continues its log. Build the logger in the process that uses it: it
    holds an open file, which is closed when the logger is dropped, at the latest when Python ends. Raises as `check`
    does, and `BlemishError` where wandb does not start.
    """
    check(kind, folder)
    if not kind:
        return unlogged
    folder.mkdir(parents=True, exist_ok=True)
    return _tensorboard(folder) if kind == "tensorboard" else _wandb(folder, run)


def _tensorboard(folder: Path) -> Log:
    # Not tensorboardX's SummaryWriter, whose flush does not wait for its queue.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    # The writer's own file name ends in the second: a training resumed within the same one would overwrite the file.
    writer = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")

    def log(epoch: int, record: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items()]
        writer.write_event(Event(wall_time=time.time(), step=epoch, summary=Summary(value=values)))
        writer.flush()

    weakref.finalize(log, writer.close)
    return log


def _wandb(folder: Path, run: str) -> Log:
    import wandb

    identifier = folder / "wandb-id.txt"
    if not identifier.exists():
        identifier.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    try:
        started: Any = wandb.init(
            project="blemish",
            name=run,
            id=identifier.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            reinit="create_new",  # every fold is a run of its own
            settings=wandb.Settings(console="off"),  # wandb must not write to our terminal
        )
    except (wandb.Error, OSError) as cause:
        reason = " ".join(str(cause).split())
        raise BlemishError(f"wandb does not start ({reason}); log in, or set WANDB_MODE=offline.") from None

    def log(epoch: int, record: Mapping[str, float]) -> None:
        started.log({key: value for key, value in record.items() if math.isfinite(value)}, step=epoch)

    weakref.finalize(log, started.finish).atexit = False  # at the end of Python wandb finishes it itself
    return log
