"""Losses as they fall, for people who watch: event files for TensorBoard, or a run of Weights & Biases."""

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

# What is asked for -> the package that writes it, and how it is had.
KINDS = {"tensorboard": ("tensorboardX", 'pip install "blemish[log]"'), "wandb": ("wandb", "pip install wandb")}


def check(kind: str, folder: Path | None) -> None:
    """Raises `BlemishError` where such a log cannot be kept in `folder`; before the work, not after. "" is no log."""
    if not kind:
        return
    if kind not in KINDS:
        raise BlemishError(f"--log takes {' or '.join(KINDS)}, not '{kind}'.")
    package, remedy = KINDS[kind]
    if find_spec(package) is None:
        raise BlemishError(f"--log {kind} needs the package {package}, which is not installed: {remedy}.")
    if folder is None:
        raise BlemishError(f"a log for {kind} is kept beside the checkpoints; give the config a folder for these.")


def logger(kind: str, folder: Path, run: str) -> Log:
    """Keeps every number of an epoch's record in `folder`; `run` is what wandb calls it. TensorBoard's are on the disk
    before the next epoch begins.

    What is there already stays, so that a training that goes on goes on in its log. Build it in the process that uses
    it: it holds an open file, which is closed when the logger is dropped, at the latest when Python ends. Raises as
    `check` does, and `BlemishError` where wandb cannot begin.
    """
    check(kind, folder)
    if not kind:
        return unlogged
    folder.mkdir(parents=True, exist_ok=True)
    return _tensorboard(folder) if kind == "tensorboard" else _wandb(folder, run)


def _tensorboard(folder: Path) -> Log:
    # Not its SummaryWriter: the flush of that one does not wait for its queue.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    # Its own name has the second; a training that is gone on with in the same one would begin the file anew.
    writer = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")

    def log(epoch: int, record: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items()]
        writer.write_event(Event(wall_time=time.time(), step=epoch, summary=Summary(value=values)))
        writer.flush()

    weakref.finalize(log, writer.close)
    return log


def _wandb(folder: Path, run: str) -> Log:
    import wandb

    name = folder / "wandb-id.txt"
    if not name.exists():
        name.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    try:
        begun: Any = wandb.init(
            project="blemish",
            name=run,
            id=name.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            reinit="create_new",  # a fold's run is its own
            settings=wandb.Settings(console="off"),  # the terminal is ours
        )
    except (wandb.Error, OSError) as cause:
        said = " ".join(str(cause).split())
        raise BlemishError(f"wandb does not begin ({said}); log in, or keep it here with WANDB_MODE=offline.") from None

    def log(epoch: int, record: Mapping[str, float]) -> None:
        begun.log({key: value for key, value in record.items() if math.isfinite(value)}, step=epoch)

    weakref.finalize(log, begun.finish).atexit = False  # when Python ends, wandb has finished it already
    return log
