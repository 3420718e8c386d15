"""The one training loop: epochs, batches, one step each, a checkpoint after every epoch, in one process or several.

Everything random in an epoch follows from the seed and the epoch's number, so the epoch is all the random state there
is: a killed run that goes on with its last checkpoint ends in the same bits (on the CPU).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from blemish.bundle import replacing
from blemish.types import BlemishError, Progress, silent


class Terms(NamedTuple):
    """What a loss says of some samples. Sums, not means, so that the parts of a batch that several processes hold add
    up to what one process would have: the batch's loss is sum(total) / sum(weight)."""

    total: Tensor  # (), differentiable
    weight: Tensor  # ()
    counts: Mapping[str, Tensor] = {}  # more sums, reported per sample


Loss = Callable[[nn.Module, Tensor, int], Terms]  # model, indices (n,) of samples, epoch


@dataclass(frozen=True)
class Plan:
    """How to descend. `stop(record)` ends the training after the epoch for which it is true."""

    epochs: int
    batch: int
    seed: int = 0
    one_cycle: bool = False  # the rate rises and falls along a cosine (Smith & Topin 2019), else it stays
    stop: Callable[[Mapping[str, float]], bool] = field(default=lambda _: False)


def descend(
    model: nn.Module,
    optimiser: Optimizer,
    loss: Loss,
    samples: int,
    plan: Plan,
    *,
    fabric: Fabric,
    checkpoint: Path | None = None,
    resume: bool = False,
    identity: str = "",
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Trains `model` in place. Returns one record an epoch: `loss`, and each count's mean.

    `samples` is how many there are; every epoch takes each once, in batches as even as `plan.batch` allows. With
    several processes each takes its share of every batch. `checkpoint` is a .safetensors file, written after each epoch
    (weights, optimiser, and as JSON in its header epoch and records); `resume` goes on from it where it exists, and
    refuses one of another `identity`. Raises `BlemishError` where the loss is no longer a number.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise BlemishError("there is nothing to train: every parameter is frozen.")
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    wrapped, stepper = fabric.setup(model, optimiser)
    records: list[dict[str, float]] = []
    if resume and checkpoint and checkpoint.is_file():
        records = _load(checkpoint, model, optimiser, identity, fabric.device)
    batches = math.ceil(samples / plan.batch)
    for epoch in range(len(records), plan.epochs):
        if records and plan.stop(records[-1]):
            break
        torch.manual_seed(plan.seed * 1_000_003 + epoch)
        order = torch.randperm(samples)
        sums: dict[str, float] = {}
        parts = progress(order.tensor_split(batches), f"epoch {epoch + 1}/{plan.epochs}", batches)
        for step, chosen in enumerate(parts):
            if plan.one_cycle:
                share = (epoch * batches + step) / (plan.epochs * batches)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * one_cycle(share)
            stepper.zero_grad()
            terms = loss(wrapped, chosen[fabric.global_rank :: fabric.world_size].to(fabric.device), epoch)
            found = {"total": terms.total.detach(), "weight": terms.weight, **terms.counts}
            whole = {key: _sum(fabric, value) for key, value in found.items()}
            # Processes average their gradients; times their number it is the sum, over the whole batch's weight.
            fabric.backward(terms.total * fabric.world_size / whole["weight"])
            stepper.step()
            for key, value in whole.items():
                sums[key] = sums.get(key, 0.0) + float(value)
            if not math.isfinite(sums["total"]):
                raise BlemishError(
                    f"training diverged in epoch {epoch + 1}: the loss is no longer a number; take a lower --rate."
                )
        counts = {key: value / samples for key, value in sums.items() if key not in ("total", "weight")}
        records.append({"loss": sums["total"] / sums["weight"], **counts})
        if checkpoint and fabric.is_global_zero:
            _save(checkpoint, model, optimiser, identity, records)
        fabric.barrier()
    return records


def _sum(fabric: Fabric, value: Tensor) -> Tensor:
    """Over all processes."""
    found = fabric.all_reduce(value, reduce_op="sum")
    assert isinstance(found, Tensor)
    return found


def one_cycle(share: float, warm: float = 0.2, floor: float = 0.01) -> float:
    """The factor of the rate after `share` (0..1) of the training: from `floor` up to 1 at `warm`, and back to it."""
    at = share / warm if share < warm else 1 + (share - warm) / (1 - warm)  # 0..1 up, 1..2 down
    return floor + (1 - floor) * (1 - math.cos(math.pi * at)) / 2


def _save(file: Path, model: nn.Module, optimiser: Optimizer, identity: str, records: list[dict[str, float]]) -> None:
    from safetensors.torch import save_file

    state = optimiser.state_dict()
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"optimiser.{key}": value for key, value in _tensors(state["state"])}
    header = {"identity": identity, "records": records, "groups": state["param_groups"]}
    with replacing(file) as temporary:
        save_file(
            {key: value.detach().contiguous().cpu().clone() for key, value in tensors.items()},
            temporary,
            {"training": json.dumps(header)},
        )


def _load(
    file: Path, model: nn.Module, optimiser: Optimizer, identity: str, device: torch.device
) -> list[dict[str, float]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt", device=str(device)) as opened:
            header = json.loads(opened.metadata()["training"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as cause:
        raise BlemishError(f"{file}: not a checkpoint that can be read ({cause}); train without --resume.") from None
    if header["identity"] != identity:
        raise BlemishError(f"{file}: made with other pictures or options; repeat those, or train without --resume.")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": header["groups"]})
    records: list[dict[str, float]] = header["records"]
    return records


def _tensors(state: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for index, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield f"{index}.{name}", value
            elif value is not None:
                raise TypeError(f"this optimiser keeps {name} as {type(value).__name__}; only tensors can be saved")
