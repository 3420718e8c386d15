"""The one training loop: epochs, batches, a step or several each, a checkpoint after every epoch, in one process or
several.

Everything random in an epoch follows from the seed and the epoch's number, so the epoch is all the random state there
is: a killed run that goes on with its last checkpoint ends in the same bits (on the CPU).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException
from torch.optim import Optimizer

from blemish.files import replacing
from blemish.types import BlemishError, Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Its banners ("Initializing distributed", ports, hints) are logged before any function of ours runs in a new process.
# Each logger by itself: when it is imported it sets the level of all, here or later.
for _talkative in ("distributed", "rank_zero"):
    logging.getLogger(f"lightning_fabric.utilities.{_talkative}").setLevel(logging.WARNING)

# Of a detector's config, what says how to work and not what comes of it.
HANDLING = ("checkpoint", "resume", "log", "memory", "processes", "device")

_TOTAL, _WEIGHT = " total", " weight"  # beside the names of counts
Records = list[dict[str, float]]
Log = Callable[[int, Mapping[str, float]], None]  # epoch, counted from 1, and its record
Work = Callable[..., tuple[Records, Mapping[str, Tensor]]]


class Terms(NamedTuple):
    """What a loss says of some samples. Sums, not means, so that the parts of a batch that several processes hold add
    up to what one process would have: the batch's loss is sum(total) / sum(weight)."""

    total: Tensor  # (), differentiable
    weight: Tensor  # ()
    counts: Mapping[str, Tensor] = {}  # more sums, reported per sample


Loss = Callable[[nn.Module, Tensor, int], Terms]  # model, indices (n,) of samples, epoch


class Step(NamedTuple):
    """What is done for every batch: one step of `optimiser` down `loss`. `name` is its loss's in the records."""

    optimiser: Optimizer
    loss: Loss
    name: str = "loss"


def unlogged(epoch: int, record: Mapping[str, float]) -> None:
    """The `Log` that keeps nothing."""


def _never(_: Mapping[str, float]) -> bool:
    return False


@dataclass(frozen=True)
class Plan:
    """How to descend. `stop(record)` ends the training after the epoch for which it is true."""

    epochs: int
    batch: int
    seed: int = 0
    one_cycle: bool = False  # the rate rises and falls along a cosine (Smith & Topin 2019), else it stays
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

    `samples` is how many there are; every epoch takes each once, in batches as even as `plan.batch` allows. For every
    batch the steps are taken in turn, each on what the one before it left. With several processes each takes its share
    of every batch, and every loss must then touch every parameter that is trained, if only by adding 0 times its sum:
    DistributedDataParallel waits for all gradients.

    `checkpoint` is a .safetensors file, written after each epoch (weights, optimisers, and as JSON in its header epoch
    and records); `resume` goes on from it where it exists, and refuses one of another `identity`. `log` is called after
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
    for epoch in range(len(records), plan.epochs):
        if records and plan.stop(records[-1]):
            break
        torch.manual_seed(plan.seed * 1_000_003 + epoch)
        order = torch.randperm(samples)
        sums: list[dict[str, float]] = [{} for _ in steps]
        parts = progress(order.tensor_split(batches), f"epoch {epoch + 1}/{plan.epochs}", batches)
        for batch, chosen in enumerate(parts):
            if plan.one_cycle:
                factor = one_cycle((epoch * batches + batch) / (plan.epochs * batches))
                for optimiser, highest in zip(optimisers, rates, strict=True):
                    for group, rate in zip(optimiser.param_groups, highest, strict=True):
                        group["lr"] = rate * factor
            own = chosen[fabric.global_rank :: fabric.world_size].to(fabric.device)
            for step, stepper, kept in zip(steps, steppers, sums, strict=True):
                stepper.zero_grad()
                terms = step.loss(wrapped, own, epoch)
                found = {_TOTAL: terms.total.detach(), _WEIGHT: terms.weight, **terms.counts}
                whole = {key: _sum(fabric, value) for key, value in found.items()}
                # Processes average their gradients; times their number it is the sum, over the whole batch's weight.
                fabric.backward(terms.total * fabric.world_size / whole[_WEIGHT])
                stepper.step()
                for key, value in whole.items():
                    kept[key] = kept.get(key, 0.0) + float(value)
                if not math.isfinite(kept[_TOTAL]):
                    raise BlemishError(
                        f"training diverged in epoch {epoch + 1}: the loss is no longer a number; take a lower --rate."
                    )
        records.append(_record(steps, sums, samples))
        if checkpoint and fabric.is_global_zero:
            _save(checkpoint, model, optimisers, identity, records)
        if fabric.is_global_zero:
            log(len(records), records[-1])
        fabric.barrier()
    return records


def _record(steps: Sequence[Step], sums: Sequence[Mapping[str, float]], samples: int) -> dict[str, float]:
    """Of the epoch, from each step's sums."""
    found: dict[str, float] = {}
    for step, kept in zip(steps, sums, strict=True):
        means = [(key, value / samples) for key, value in kept.items() if key not in (_TOTAL, _WEIGHT)]
        for key, value in ((step.name, kept[_TOTAL] / kept[_WEIGHT]), *means):
            if key in found:
                raise ValueError(f"two steps or counts are called {key!r}")
            found[key] = value
    return found


def identity(settings: Any, *facts: Any) -> str:
    """Of all that decides about a result: the fields of a dataclass but for `HANDLING`, and `facts` that JSON can say.
    A checkpoint with another one is not gone on with."""
    decisive = {key: str(value) for key, value in asdict(settings).items() if key not in HANDLING}
    return hashlib.sha256(json.dumps([decisive, *facts]).encode()).hexdigest()


def _sum(fabric: Fabric, value: Tensor) -> Tensor:
    """Over all processes; `value` stays as it is."""
    found = fabric.all_reduce(value.clone(), reduce_op="sum")
    assert isinstance(found, Tensor)
    return found


def one_cycle(share: float, warm: float = 0.2, floor: float = 0.01) -> float:
    """The factor of the rate after `share` (0..1) of the training: from `floor` up to 1 at `warm`, and back to it."""
    at = share / warm if share < warm else 1 + (share - warm) / (1 - warm)  # 0..1 up, 1..2 down
    return floor + (1 - floor) * (1 - math.cos(math.pi * at)) / 2


def fabric_on(device: str, processes: int = 1) -> Fabric:
    """What runs the loop on a device ("cpu" or "cuda"), in so many new processes where that is more than one."""
    from lightning_fabric import Fabric  # seconds to import, with all that it looks for

    return Fabric(accelerator=device, devices=processes, strategy="ddp_spawn" if processes > 1 else "auto")


def in_processes(work: Work, *arguments: Any, device: str, processes: int) -> tuple[Records, dict[str, Tensor]]:
    """What `work(fabric, *arguments)`, run in several new processes, says in the first of them: records and tensors.

    Function and arguments are pickled. Raises the `BlemishError` that a process raises.
    """
    port = os.environ.get("MASTER_PORT")  # which Fabric sets for good, and a second run would find taken
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        fabric = fabric_on(device, processes)
        died: ProcessException | None = None
        run: Callable[..., None] = partial(_work, work, arguments, Path(folder))  # Fabric would look into arguments
        try:
            fabric.launch(run)
        except ProcessException as cause:
            died = cause
        finally:
            if port is None:
                os.environ.pop("MASTER_PORT", None)
        for refusal in sorted(Path(folder).glob("*.txt")):
            raise BlemishError(refusal.read_text(encoding="utf-8"))
        if died:
            last = str(died).strip().splitlines()[-1]
            raise BlemishError(f"a training process ended early ({last}); train with --processes 1.") from died
        header, tensors = _read(Path(folder, "result"), torch.device("cpu"))
    return header["records"], tensors


def _work(work: Work, arguments: tuple[Any, ...], folder: Path, fabric: Fabric) -> None:
    """Leaves its result in a file: what is larger than a pipe, Fabric would wait for to be read for ever."""
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

    whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(whole, file, {"training": json.dumps(header)})


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
        raise BlemishError(f"{file}: not a checkpoint that can be read ({cause}); train without --resume.") from None
    if made_for != identity or len(groups) != len(optimisers):
        raise BlemishError(f"{file}: made with other images or options; repeat those, or train without --resume.")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimisers]
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, index, name = key.split(".", 3)
            states[int(number)].setdefault(int(index), {})[name] = value
    for optimiser, state, its in zip(optimisers, states, groups, strict=True):
        optimiser.load_state_dict({"state": state, "param_groups": its})
    return records


def _tensors(state: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for index, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield f"{index}.{name}", value
            elif value is not None:
                raise TypeError(f"this optimiser keeps {name} as {type(value).__name__}; only tensors can be saved")
