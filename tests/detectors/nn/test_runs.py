"""A run's checkpoint and log stand where the config says, under the run's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from blemish.detectors.nn.loop import Plan, Records, Step, Terms
from blemish.detectors.nn.runs import descend_run
from blemish.types import BlemishError, silent
from tests.detectors.nn.test_loggers import read_events


@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    checkpoint: Path | None = None
    resume: bool = False
    log: str = ""


def loss(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
    outputs = model(torch.ones(len(chosen), 2))
    return Terms(outputs.square().sum(), torch.tensor(float(len(chosen))))


def run(name: str, config: Config, epochs: int = 2, facts: Sequence[Any] = (["a", "b", "c"],)) -> Records:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
    step = Step(torch.optim.Adam(model.parameters(), lr=config.rate), loss)
    fabric = Fabric(accelerator="cpu", devices=1)
    return descend_run(name, config, facts, model, [step], 3, Plan(epochs, 2), fabric=fabric, progress=silent)


def test_checkpoint_and_log_have_the_runs_name(tmp_path: Path) -> None:
    config = Config(checkpoint=tmp_path, log="tensorboard")
    records = {name: run(name, config) for name in ("first", "second")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.safetensors", "log", "second.safetensors"]
    for name, of_run in records.items():
        (file,) = (tmp_path / "log" / name).iterdir()
        epochs, logged = zip(*read_events(file), strict=True)
        assert epochs == (1, 2)
        for ours, record in zip(logged, of_run, strict=True):
            assert ours == pytest.approx(record)


def test_without_a_folder_nothing_is_written_and_the_result_is_the_same(tmp_path: Path) -> None:
    assert run("first", Config()) == run("first", Config(checkpoint=tmp_path))


def test_a_run_is_resumed_with_the_same_config_and_facts_only(tmp_path: Path) -> None:
    config = Config(checkpoint=tmp_path)
    begun = run("first", config, epochs=1)
    resumed = replace(config, resume=True)
    for other, facts in ((replace(resumed, rate=0.2), (["a", "b", "c"],)), (resumed, (["a", "b", "d"],))):
        with pytest.raises(BlemishError, match="other images or options"):
            run("first", other, facts=facts)
    records = run("first", resumed)
    assert records == run("whole", config)
    assert records[:1] == begun
