"""The training loop: epochs of batches, one or more optimiser steps per batch, a checkpoint after every epoch, in one
or several processes.

Everything random in an epoch follows from the seed and the epoch's number, so that number is the whole random state: a
killed run that is resumed from its last checkpoint ends with the same weights to the bit (on the CPU).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException
from torch.optim import Optimizer

from blemish.files import replacing
from blemish.options import as_json
from blemish.types import BlemishError, Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Fabric logs banners ("Initializing distributed", ports, hints) before any function of ours runs in a new process. They
# are silenced logger by logger, as Fabric sets the level of their parent when it is imported.
for _module in ("distributed", "rank_zero"):
    logging.getLogger(f"lightning_fabric.utilities.{_module}").setLevel(logging.WARNING)

# Keys of an epoch's sums, beside the names of counts.
_TOTAL, _WEIGHT, _SEEN = " total", " weight", " samples"
Records = list[dict[str, float]]
Log = Callable[[int, Mapping[str, float]], None]  # epoch, counted from 1, and its record
Work = Callable[..., tuple[Records, Mapping[str, Tensor]]]


class Terms(NamedTuple):
    """A loss over some samples, as sums: those of several processes add up to those of one process for the whole batch,
    whose loss is sum(total) / sum(weight)."""

    total: Tensor  # (), differentiable
    weight: Tensor  # ()
    counts: Mapping[str, Tensor] = {}  # more sums, reported per sample


Loss = Callable[[nn.Module, Tensor, int], Terms]  # model, indices (n,) of samples, epoch


class Step(NamedTuple):
    """One step of `optimiser` down `loss` for every batch, or with `Plan.remainder` only for full batches or only for
    the remainder. `name` is the loss's in the records."""

    optimiser: Optimizer
    loss: Loss
    name: str = "loss"
    batches: Literal["all", "full", "remainder"] = "all"


def unlogged(epoch: int, record: Mapping[str, float]) -> None:
    """The `Log` that writes nothing."""


def _never(_: Mapping[str, float]) -> bool:
    return False


@dataclass(frozen=True)
class Plan:
    """The schedule: `cycles` times `epochs`. `stop(record)` ends the training after the first epoch for which it is
    true."""

    epochs: int
    batch: int
    seed: int = 0
    # In every cycle the learning rate rises and falls along a cosine (Smith & Topin 2019), else it is constant.
    one_cycle: bool = False
    cycles: int = 1
    remainder: bool = False  # batches are of `batch` samples and the last one is what remains, else they are even
    stop: Callable[[Mapping[str, float]], bool] = _never


def descend(
    model: nn.Module,
    steps: Sequence[Step],
    samples: int,
    plan: Plan,
    *,
    fabric: Fabric,
    checkpoint: Path | None = None,
    resume: bool = False,
    identity: str = "",
    log: Log = unlogged,
    progress: Progress = silent,
) -> Records:
    """Trains `model` in place. Returns one record an epoch: each step's loss by its name, and each count's mean.

    `samples` is their number. Every epoch takes each once, in batches as even as `plan.batch` allows, and for every
    batch the steps one after the other. With several processes each takes its share of every batch. Every loss must
    then depend on every trained parameter, if only by adding 0 times its sum: DistributedDataParallel waits for all
    gradients.

    `checkpoint` is a .safetensors file, written after each epoch (weights, optimisers, and the records as JSON in its
    header). `resume` continues from it where it exists, and refuses one of another `identity`. `log` is called after
    that, in the first process. Raises `BlemishError` where a loss is no longer a number, `ValueError` where steps and
    counts share a name.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise BlemishError("there is nothing to train: every parameter is frozen.")
    optimisers = [step.optimiser for step in steps]
    rates = [[float(group["lr"]) for group in optimiser.param_groups] for optimiser in optimisers]
    wrapped, *steppers = fabric.setup(model, *optimisers)
    records: Records = []
    if resume and checkpoint and checkpoint.is_file():
        records = _load(checkpoint, model, optimisers, identity, fabric.device)
    batches = math.ceil(samples / plan.batch)
    last = plan.cycles * plan.epochs
    if len(records) > last:
        raise BlemishError(
            f"{checkpoint}: has {len(records)} epochs, and {last} are asked for; ask for as many, or train without "
            "--resume."
        )
    for epoch in range(len(records), last):
        if records and plan.stop(records[-1]):
            break
        torch.manual_seed(plan.seed * 1_000_003 + epoch)
        order = torch.randperm(samples)
        sums: list[dict[str, float]] = [{} for _ in steps]
        split = torch.split(order, plan.batch) if plan.remainder else order.tensor_split(batches)
        for batch, chosen in enumerate(progress(split, f"epoch {epoch + 1}/{last}", batches)):
            if plan.one_cycle:
                into = epoch % plan.epochs * batches + batch
                _set_rates(optimisers, rates, one_cycle(into / (plan.epochs * batches)))
            full = "full" if len(chosen) == plan.batch else "remainder"
            for step, stepper, total in zip(steps, steppers, sums, strict=True):
                if step.batches in ("all", full):
                    _take(step, stepper, wrapped, chosen, epoch, total, fabric)
        records.append(_record(steps, sums))
        if fabric.is_global_zero:
            if checkpoint:
                _save(checkpoint, model, optimisers, identity, records)
            log(len(records), records[-1])
        fabric.barrier()
    return records


def _take(
    step: Step, stepper: Any, model: nn.Module, batch: Tensor, epoch: int, sums: dict[str, float], fabric: Fabric
) -> None:
    """One optimiser step on this process's share of the batch. The sums over all processes are added to `sums`."""
    share = batch[fabric.global_rank :: fabric.world_size].to(fabric.device)
    stepper.zero_grad()
    terms = step.loss(model, share, epoch)
    own = {_TOTAL: terms.total.detach(), _WEIGHT: terms.weight, **terms.counts}
    whole = {key: _sum(fabric, value) for key, value in own.items()}
    # Processes average their gradients: times their number that is the sum, divided by the whole batch's weight.
    fabric.backward(terms.total * fabric.world_size / whole[_WEIGHT])
    stepper.step()
    for key, value in whole.items():
        sums[key] = sums.get(key, 0.0) + float(value)
    sums[_SEEN] = sums.get(_SEEN, 0.0) + len(batch)
    if not math.isfinite(sums[_TOTAL]):
        raise BlemishError(
            f"training diverged in epoch {epoch + 1}: the loss is no longer a number; take a lower --learning-rate."
        )


def _set_rates(optimisers: Sequence[Optimizer], rates: Sequence[Sequence[float]], factor: float) -> None:
    """Sets the learning rate of each optimiser's parameter groups to `factor` times its rate in `rates`."""
    for optimiser, highest in zip(optimisers, rates, strict=True):
        for group, rate in zip(optimiser.param_groups, highest, strict=True):
            group["lr"] = rate * factor


def _record(steps: Sequence[Step], sums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """An epoch's record, from the sums of each step that was taken."""
    record: dict[str, float] = {}
    for step, total in zip(steps, sums, strict=True):
        if not total:
            continue
        seen = total[_SEEN]
        means = [(key, value / seen) for key, value in total.items() if key not in (_TOTAL, _WEIGHT, _SEEN)]
        for key, value in ((step.name, total[_TOTAL] / total[_WEIGHT]), *means):
            if key in record:
                raise ValueError(f"two steps or counts are called {key!r}")
            record[key] = value
    return record


def identity(settings: Any, *facts: Any) -> str:
    """A digest of all that the result depends on: the settings that a card holds, and `facts` that JSON can hold. A
    checkpoint with another one is not resumed."""
    decisive = {key: str(value) for key, value in as_json(settings).items()}
    return hashlib.sha256(json.dumps([decisive, *facts]).encode()).hexdigest()


def _sum(fabric: Fabric, value: Tensor) -> Tensor:
    """The sum of `value` over all processes."""
    total = fabric.all_reduce(value.clone(), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def one_cycle(share: float, warm: float = 0.2, floor: float = 0.01) -> float:
    """The learning rate's factor after `share` (0..1) of the training: from `floor` up to 1 at `warm`, and back."""
    at = share / warm if share < warm else 1 + (share - warm) / (1 - warm)  # 0..1 up, 1..2 down
    return floor + (1 - floor) * (1 - math.cos(math.pi * at)) / 2


def fabric_on(device: str, processes: int = 1) -> Fabric:
    """Runs the loop on a device ("cpu" or "cuda"): in this process, or in several new ones."""
    from lightning_fabric import Fabric  # takes seconds to import

    return Fabric(accelerator=device, devices=processes, strategy="ddp_spawn" if processes > 1 else "auto")


def in_processes(work: Work, *arguments: Any, device: str, processes: int) -> tuple[Records, dict[str, Tensor]]:
    """Runs `work(fabric, *arguments)` in several new processes and returns the first one's result: records and tensors.

    Function and arguments are pickled. Raises the `BlemishError` that a process raises.
    """
    port = os.environ.get("MASTER_PORT")  # Fabric sets it and leaves it, and a second run would find the port taken
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        fabric = fabric_on(device, processes)
        ended: ProcessException | None = None
        # Bound here, as Fabric searches arguments of its own for modules, which fails at a frozen dataclass.
        run: Callable[..., None] = partial(_work, work, arguments, Path(folder))
        try:
            fabric.launch(run)
        except ProcessException as cause:
            ended = cause
        finally:
            if port is None:
                os.environ.pop("MASTER_PORT", None)
        for refusal in sorted(Path(folder).glob("*.txt")):
            raise BlemishError(refusal.read_text(encoding="utf-8"))
        if ended:
            last = str(ended).strip().splitlines()[-1]
            raise BlemishError(f"a training process ended early ({last}); train with --processes 1.") from ended
        header, tensors = _read(Path(folder, "result"), torch.device("cpu"))
    return header["records"], tensors


def _work(work: Work, arguments: tuple[Any, ...], folder: Path, fabric: Fabric) -> None:
    """Writes its result to a file: Fabric would wait forever for a result that is larger than a pipe's buffer."""
    try:
        records, tensors = work(fabric, *arguments)
    except BlemishError as refusal:
        (folder / f"{fabric.global_rank}.txt").write_text(str(refusal), encoding="utf-8")
        return
    if fabric.is_global_zero:
        _write(folder / "result", tensors, {"records": records})


def _save(file: Path, model: nn.Module, optimisers: Sequence[Optimizer], identity: str, records: Records) -> None:
    states = [optimiser.state_dict() for optimiser in optimisers]
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    for number, state in enumerate(states):
        tensors |= {f"optimiser.{number}.{key}": value for key, value in _tensors(state["state"])}
    header = {"identity": identity, "records": records, "optimisers": [state["param_groups"] for state in states]}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        _write(temporary, tensors, header)


def _write(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(plain, file, {"training": json.dumps(header)})


def _read(file: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(file, "pt", device=str(device)) as opened:
        header: dict[str, Any] = json.loads(opened.metadata()["training"])
        return header, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _load(
    file: Path, model: nn.Module, optimisers: Sequence[Optimizer], identity: str, device: torch.device
) -> Records:
    from safetensors import SafetensorError

    try:
        header, tensors = _read(file, device)
        made_for, groups = header["identity"], header["optimisers"]
        records: Records = header["records"]
    except (SafetensorError, KeyError, TypeError, ValueError) as cause:
        raise BlemishError(f"{file}: this checkpoint cannot be read ({cause}); train without --resume.") from None
    if made_for != identity or len(groups) != len(optimisers):
        raise BlemishError(f"{file}: made with other images or options; use the same ones, or train without --resume.")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimisers]
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, index, name = key.split(".", 3)
            states[int(number)].setdefault(int(index), {})[name] = value
    for optimiser, state, own in zip(optimisers, states, groups, strict=True):
        optimiser.load_state_dict({"state": state, "param_groups": own})
    return records


def _tensors(state: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for index, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield f"{index}.{name}", value
            elif value is not None:
                raise TypeError(f"this optimiser keeps {name} as {type(value).__name__}; only tensors can be saved")
