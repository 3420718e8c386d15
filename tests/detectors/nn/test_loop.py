"""The training loop against one written by hand, killed and resumed, and in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors import safe_open
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException

from blemish.detectors.nn.loop import (
    Log,
    Plan,
    Records,
    Step,
    Terms,
    descend,
    identity,
    in_processes,
    one_cycle,
    unlogged,
)
from blemish.options import setting
from blemish.types import BlemishError, Progress, silent

T = TypeVar("T")
SAMPLES = 11
FEATURES = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 0, 0, 1, 0, 0, 1, 2])
WEIGHTS = torch.tensor([0.5, 2.0, 3.0])


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def loss(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
    targets = TARGETS[chosen]
    logits = model(FEATURES[chosen] * (1 + 0.1 * epoch))  # something that changes with the epoch
    right = (logits.argmax(1) == targets).sum().float()
    return Terms(F.cross_entropy(logits, targets, WEIGHTS, reduction="sum"), WEIGHTS[targets].sum(), {"right": right})


def train(
    plan: Plan,
    checkpoint: Path | None = None,
    *,
    resume: bool = False,
    loss: Callable[[nn.Module, Tensor, int], Terms] = loss,
    identity: str = "this",
    progress: Progress = silent,
    optimiser: type[torch.optim.Optimizer] = torch.optim.AdamW,
    log: Log = unlogged,
) -> tuple[nn.Module, Records]:
    model = network()
    stepper = optimiser(model.parameters(), lr=0.05)  # type: ignore[call-arg]
    records = descend(
        model,
        [Step(stepper, loss)],
        SAMPLES,
        plan,
        fabric=Fabric(accelerator="cpu", devices=1),
        checkpoint=checkpoint,
        resume=resume,
        identity=identity,
        log=log,
        progress=progress,
    )
    return model, records


def slope(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
    """A second step's loss: the outputs' distance to 1, with other weights, depending on every parameter."""
    outputs = model(FEATURES[chosen])
    return Terms(((outputs - 1) ** 2).sum(), torch.tensor(2.0 * len(chosen)), {"above": (outputs > 1).sum().float()})


def two_steps(model: nn.Module, first: Callable[[nn.Module, Tensor, int], Terms] = loss) -> list[Step]:
    """The first trains all layers, the second the last layer alone, with another optimiser."""
    assert isinstance(model, nn.Sequential)
    return [
        Step(torch.optim.AdamW(model.parameters(), lr=0.05), first, "kind"),
        Step(torch.optim.Adam(model[2].parameters(), lr=0.02), slope, "slope"),
    ]


def alternate(
    plan: Plan,
    checkpoint: Path | None = None,
    *,
    resume: bool = False,
    first: Callable[[nn.Module, Tensor, int], Terms] = loss,
) -> tuple[nn.Module, Records]:
    model = network()
    fabric = Fabric(accelerator="cpu", devices=1)
    steps = two_steps(model, first)
    return model, descend(model, steps, SAMPLES, plan, fabric=fabric, checkpoint=checkpoint, resume=resume)


def same(one: nn.Module, other: nn.Module) -> bool:
    """To the bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_one_cycle_by_hand() -> None:
    assert one_cycle(0.0) == pytest.approx(0.01)
    assert one_cycle(0.05) == pytest.approx(0.01 + 0.99 * (1 - 0.5**0.5) / 2)  # a quarter of the way up
    assert one_cycle(0.1) == pytest.approx(0.505)
    assert one_cycle(0.2) == pytest.approx(1.0)
    assert one_cycle(0.6) == pytest.approx(0.505)
    assert one_cycle(1.0) == pytest.approx(0.01)
    assert one_cycle(0.25, warm=0.5, floor=0.2) == pytest.approx(0.6)


@pytest.mark.parametrize("cycle", [False, True])
def test_equals_a_loop_by_hand(cycle: bool) -> None:
    """Three epochs of batches 4, 4 and 3; each batch's loss is the weighted mean, as PyTorch computes it."""
    model, records = train(Plan(epochs=3, batch=4, seed=7, one_cycle=cycle))
    by_hand = network()
    stepper = torch.optim.AdamW(by_hand.parameters(), lr=0.05)
    for epoch in range(3):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(7 * 1_000_003 + epoch))
        losses, right = [], 0
        for step, chosen in enumerate((order[:4], order[4:8], order[8:])):
            if cycle:
                stepper.param_groups[0]["lr"] = 0.05 * one_cycle((3 * epoch + step) / 9)
            stepper.zero_grad()
            logits = by_hand(FEATURES[chosen] * (1 + 0.1 * epoch))
            value = F.cross_entropy(logits, TARGETS[chosen], WEIGHTS)
            value.backward()  # type: ignore[no-untyped-call]
            stepper.step()
            losses.append((value.item(), float(WEIGHTS[TARGETS[chosen]].sum())))
            right += int((logits.argmax(1) == TARGETS[chosen]).sum())
        mean = sum(one * weight for one, weight in losses) / sum(weight for _, weight in losses)
        assert records[epoch] == {"loss": pytest.approx(mean, abs=1e-6), "right": pytest.approx(right / SAMPLES)}
    for found, wanted in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (next(iter(model.parameters())) - next(iter(network().parameters()))).abs().max() > 0.05


@pytest.mark.parametrize("cycle", [False, True])
def test_two_steps_equal_a_loop_by_hand(cycle: bool) -> None:
    """Each batch: a step down the first loss, then from there one down the second."""
    model, records = alternate(Plan(epochs=3, batch=4, seed=7, one_cycle=cycle))
    by_hand = network()
    assert isinstance(by_hand, nn.Sequential)
    one = torch.optim.AdamW(by_hand.parameters(), lr=0.05)
    two = torch.optim.Adam(by_hand[2].parameters(), lr=0.02)
    for epoch in range(3):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(7 * 1_000_003 + epoch))
        pulled, above = 0.0, 0
        for batch, chosen in enumerate((order[:4], order[4:8], order[8:])):
            if cycle:
                factor = one_cycle((3 * epoch + batch) / 9)
                one.param_groups[0]["lr"], two.param_groups[0]["lr"] = 0.05 * factor, 0.02 * factor
            by_hand.zero_grad()
            value = F.cross_entropy(by_hand(FEATURES[chosen] * (1 + 0.1 * epoch)), TARGETS[chosen], WEIGHTS)
            value.backward()  # type: ignore[no-untyped-call]
            one.step()
            by_hand.zero_grad()
            outputs = by_hand(FEATURES[chosen])
            (((outputs - 1) ** 2).sum() / (2 * len(chosen))).backward()
            two.step()
            pulled += ((outputs - 1) ** 2).sum().item()
            above += int((outputs > 1).sum())
        assert list(records[epoch]) == ["kind", "right", "slope", "above"]
        assert records[epoch]["slope"] == pytest.approx(pulled / (2 * SAMPLES), abs=1e-6)
        assert records[epoch]["above"] == pytest.approx(above / SAMPLES)
    for ours, wanted in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)


def test_cycles_and_a_remainder_of_its_own_by_hand() -> None:
    """Two cycles of two epochs; batches of 4, 4 and 3; the second loss takes its step with the three alone."""
    model = network()
    one, two = two_steps(model)
    steps = [one._replace(batches="full"), two._replace(batches="remainder")]
    plan = Plan(epochs=2, batch=4, seed=7, one_cycle=True, cycles=2, remainder=True)
    records = descend(model, steps, SAMPLES, plan, fabric=Fabric(accelerator="cpu", devices=1))
    by_hand = network()
    assert isinstance(by_hand, nn.Sequential)
    mine = torch.optim.AdamW(by_hand.parameters(), lr=0.05)
    theirs = torch.optim.Adam(by_hand[2].parameters(), lr=0.02)
    for epoch in range(4):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(7 * 1_000_003 + epoch))
        right = 0
        for batch, chosen in enumerate((order[:4], order[4:8])):
            mine.param_groups[0]["lr"] = 0.05 * one_cycle((3 * (epoch % 2) + batch) / 6)
            by_hand.zero_grad()
            logits = by_hand(FEATURES[chosen] * (1 + 0.1 * epoch))
            F.cross_entropy(logits, TARGETS[chosen], WEIGHTS).backward()  # type: ignore[no-untyped-call]
            mine.step()
            right += int((logits.argmax(1) == TARGETS[chosen]).sum())
        theirs.param_groups[0]["lr"] = 0.02 * one_cycle((3 * (epoch % 2) + 2) / 6)
        by_hand.zero_grad()
        outputs = by_hand(FEATURES[order[8:]])
        pulled = ((outputs - 1) ** 2).sum() / 6
        pulled.backward()
        theirs.step()
        assert records[epoch]["right"] == pytest.approx(right / 8)
        assert records[epoch]["slope"] == pytest.approx(pulled.item(), abs=1e-6)
        assert records[epoch]["above"] == pytest.approx(int((outputs > 1).sum()) / 3)
    for found, wanted in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_step_without_its_kind_of_batch_is_not_recorded() -> None:
    model = network()
    one, two = two_steps(model)
    steps = [one._replace(batches="full"), two._replace(batches="remainder")]
    plan = Plan(epochs=1, batch=SAMPLES, remainder=True)
    (record,) = descend(model, steps, SAMPLES, plan, fabric=Fabric(accelerator="cpu", devices=1))
    assert list(record) == ["kind", "right"]


def test_names_must_not_clash() -> None:
    model = network()

    def refused(*steps: Step) -> str:
        with pytest.raises(ValueError) as refusal:
            descend(model, steps, SAMPLES, Plan(1, 4), fabric=Fabric(accelerator="cpu", devices=1))
        return str(refusal.value)

    def adam() -> torch.optim.Adam:
        return torch.optim.Adam(model.parameters(), lr=0.0)

    assert "'loss'" in refused(Step(adam(), loss), Step(adam(), slope))
    assert "'right'" in refused(Step(adam(), loss, "one"), Step(adam(), loss, "two"))
    assert "'right'" in refused(Step(adam(), loss, "right"))
    assert "'above'" in refused(Step(adam(), loss, "above"), Step(adam(), slope, "two"))


def test_every_epoch_takes_each_sample_once_in_even_batches_and_another_order() -> None:
    batches: list[list[int]] = []

    def recording(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        batches.append(chosen.tolist())
        return loss(model, chosen, epoch)

    _, records = train(Plan(epochs=2, batch=5), loss=recording)
    assert [len(batch) for batch in batches] == [4, 4, 3] * 2  # not 5, 5, 1
    first, second = ([index for batch in epoch for index in batch] for epoch in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(SAMPLES))
    assert first != second
    assert len(records) == 2


def test_training_stops_after_the_first_epoch_that_satisfies_stop() -> None:
    whole = train(Plan(epochs=20, batch=4))[1]
    enough = whole[4]["loss"]
    assert min(record["loss"] for record in whole[:4]) > enough
    assert train(Plan(epochs=20, batch=4, stop=lambda record: record["loss"] <= enough))[1] == whole[:5]


def test_progress_names_the_epoch_and_counts_batches() -> None:
    calls: list[tuple[str, int, int]] = []

    def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        items = list(items)
        calls.append((what, total, len(items)))
        return iter(items)

    train(Plan(epochs=2, batch=4), progress=progress)
    assert calls == [("epoch 1/2", 3, 3), ("epoch 2/2", 3, 3)]


def test_a_checkpoint_is_plain_tensors_with_records_in_its_header(tmp_path: Path) -> None:
    file = tmp_path / "made" / "here.safetensors"
    model, records = train(Plan(epochs=2, batch=4), file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing half written is left
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["training"])
        names = set(opened.keys())
        for name, value in model.state_dict().items():
            assert torch.equal(opened.get_tensor(f"model.{name}"), value)
    assert header["records"] == records
    assert header["identity"] == "this"
    assert {f"optimiser.0.{i}.{what}" for i in range(4) for what in ("step", "exp_avg", "exp_avg_sq")} <= names


class KilledError(Exception):
    pass


def killed_in(epoch: int, batch: int) -> Callable[[nn.Module, Tensor, int], Terms]:
    """A loss that ends the run in that epoch's batch, both counted from 0."""
    steps = iter(range(1000))

    def dying(model: nn.Module, chosen: Tensor, now: int) -> Terms:
        if next(steps) == 3 * epoch + batch:
            raise KilledError
        return loss(model, chosen, now)

    return dying


@pytest.mark.parametrize(("epoch", "batch"), [(0, 2), (1, 0), (3, 1)])
@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.Adam])
def test_killed_and_resumed_ends_in_the_same_bits(
    epoch: int, batch: int, optimiser: type[torch.optim.Optimizer], tmp_path: Path
) -> None:
    file = tmp_path / "run.safetensors"
    plan = Plan(epochs=5, batch=4, seed=3, one_cycle=True)
    with pytest.raises(KilledError):
        train(plan, file, loss=killed_in(epoch, batch), optimiser=optimiser)
    assert file.exists() is (epoch > 0)
    torch.randn(9)  # the global random state does not matter
    epochs: list[int] = []

    def recording(model: nn.Module, chosen: Tensor, now: int) -> Terms:
        epochs.append(now)
        return loss(model, chosen, now)

    resumed, records = train(plan, file, resume=True, loss=recording, optimiser=optimiser)
    assert sorted(set(epochs)) == list(range(epoch, 5))
    whole, wanted = train(plan, optimiser=optimiser)
    assert same(resumed, whole)
    assert records == wanted


@pytest.mark.parametrize(("epoch", "batch"), [(1, 0), (3, 1)])
def test_two_optimisers_killed_and_resumed_end_in_the_same_bits(epoch: int, batch: int, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    plan = Plan(epochs=5, batch=4, seed=3, one_cycle=True)
    with pytest.raises(KilledError):
        alternate(plan, file, first=killed_in(epoch, batch))
    with safe_open(file, "pt") as opened:
        steps = [opened.get_tensor(f"optimiser.{number}.0.step") for number in (0, 1)]
        moments = [opened.get_tensor(f"optimiser.{number}.0.exp_avg").shape for number in (0, 1)]
    assert steps == [3 * epoch] * 2
    assert moments == [(6, 4), (3, 6)]  # of the first layer, of the last
    resumed, records = alternate(plan, file, resume=True)
    whole, wanted = alternate(plan)
    assert same(resumed, whole)
    assert records == wanted
    with pytest.raises(BlemishError, match="made with other images or options"):  # another number of optimisers
        train(plan, file, resume=True, identity="")


def test_each_epoch_is_logged_once_after_its_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    logged: list[tuple[int, Mapping[str, float]]] = []

    def log(epoch: int, record: Mapping[str, float]) -> None:
        with safe_open(file, "pt") as opened:
            assert json.loads(opened.metadata()["training"])["records"][epoch - 1 :] == [record]
        logged.append((epoch, record))

    with pytest.raises(KilledError):
        train(Plan(5, 4), file, loss=killed_in(2, 1), log=log)
    assert [epoch for epoch, _ in logged] == [1, 2]
    _, records = train(Plan(5, 4), file, resume=True, log=log)
    assert logged == list(enumerate(records, 1))


@dataclass(frozen=True)
class Settings:
    rate: float = setting(0.1, "Rate.")
    weights: Path | None = setting(None, "Weights.")
    checkpoint: Path | None = None
    resume: bool = False
    log: str = setting("", "Log.", machine=True)
    processes: int = setting(1, "Processes.", machine=True)


def test_an_identity_depends_on_what_the_result_depends_on() -> None:
    plain = identity(Settings(), ("a", "b"), [0, 1])
    assert plain == identity(Settings(), ("a", "b"), [0, 1])
    handled = Settings(checkpoint=Path("x"), resume=True, log="wandb", processes=2)
    assert plain == identity(handled, ("a", "b"), [0, 1])
    others = [
        identity(replace(Settings(), rate=0.2), ("a", "b"), [0, 1]),
        identity(replace(Settings(), weights=Path("x")), ("a", "b"), [0, 1]),
        identity(Settings(), ("b", "a"), [0, 1]),
        identity(Settings(), ("a", "b"), [0, 0]),
        identity(Settings(), ("a", "b")),
    ]
    assert len({plain, *others}) == 6


def test_finished_epochs_are_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    plan = Plan(epochs=3, batch=4)
    whole, records = train(plan, file)
    again, found = train(plan, file, resume=True, loss=killed_in(0, 0))
    assert same(whole, again)
    assert found == records
    enough = Plan(epochs=30, batch=4, stop=lambda record: record["loss"] <= records[-1]["loss"])
    assert train(enough, file, resume=True, loss=killed_in(0, 0))[1] == records
    with pytest.raises(KilledError):  # without `resume` it begins anew
        train(plan, file, loss=killed_in(0, 0))


def test_a_checkpoint_of_more_epochs_than_are_asked_for_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(Plan(epochs=2, cycles=2, batch=4), file)
    with pytest.raises(BlemishError, match="has 4 epochs, and 2 are asked for; ask for as many, or train without"):
        train(Plan(epochs=2, batch=4), file, resume=True)


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.safetensors"
    train(Plan(epochs=1, batch=4), file)
    before = file.read_bytes()

    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(before[:100])
        raise KilledError

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(KilledError):
        train(Plan(epochs=2, batch=4), file, resume=True)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_of_another_identity_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(Plan(epochs=1, batch=4), file, identity="another")
    with pytest.raises(BlemishError, match=r"run\.safetensors: made with other images or options; .* --resume\.$"):
        train(Plan(epochs=1, batch=4), file, resume=True)


def cut_short(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def text(whole: bytes) -> bytes:
    return b"epoch 3\n"


def empty(whole: bytes) -> bytes:
    return b""


def foreign(whole: bytes) -> bytes:
    from safetensors.torch import save

    return bytes(save({"a": torch.ones(2)}))


def bare_header(whole: bytes) -> bytes:
    from safetensors.torch import save

    return bytes(save({"a": torch.ones(2)}, {"training": "{}"}))


def list_header(whole: bytes) -> bytes:
    from safetensors.torch import save

    return bytes(save({"a": torch.ones(2)}, {"training": "[]"}))


@pytest.mark.parametrize("damage", [cut_short, text, empty, foreign, bare_header, list_header])
def test_a_damaged_checkpoint_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(Plan(epochs=1, batch=4), file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BlemishError) as refusal:
        train(Plan(epochs=2, batch=4), file, resume=True)
    message = str(refusal.value)
    assert message.startswith(f"{file}: this checkpoint cannot be read (")
    assert message.endswith("); train without --resume.")
    assert "\n" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_is_an_error_and_leaves_the_last_checkpoint(value: float, tmp_path: Path) -> None:
    def diverging(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        terms = loss(model, chosen, epoch)
        return terms if epoch < 1 else terms._replace(total=terms.total * value)

    file = tmp_path / "run.safetensors"
    with pytest.raises(BlemishError, match=r"diverged in epoch 2: .* --learning-rate"):
        train(Plan(epochs=3, batch=4), file, loss=diverging)
    with safe_open(file, "pt") as opened:
        assert len(json.loads(opened.metadata()["training"])["records"]) == 1


def test_nothing_to_train_is_refused() -> None:
    model = network().requires_grad_(False)
    optimiser = torch.optim.Adam(model.parameters())
    with pytest.raises(BlemishError, match="nothing to train"):
        descend(model, [Step(optimiser, loss)], SAMPLES, Plan(1, 4), fabric=Fabric(accelerator="cpu", devices=1))


# Spawned processes import the main file again, so this runs as a program of its own.
PROGRAM = """
import sys
from pathlib import Path
import torch
from blemish.detectors.nn.loop import Plan, Step, descend, in_processes
from tests.detectors.nn.test_loop import SAMPLES, loss, network, two_steps

def work(fabric, plan, folder):
    def log(epoch, record):
        with Path(folder, f"logged.{fabric.global_rank}").open("a") as file:
            file.write(f"{epoch} {record['slope']}\\n")
    other = network()
    alternating = descend(other, two_steps(other), SAMPLES, plan, fabric=fabric, log=log)
    model, shares = network(), []
    def recording(model, chosen, epoch):
        shares.append(len(chosen))
        return loss(model, chosen, epoch)
    steps = [Step(torch.optim.AdamW(model.parameters(), lr=0.05), recording)]
    records = descend(model, steps, SAMPLES, plan, fabric=fabric)
    tensors = {f"two.{key}": value for key, value in other.state_dict().items()} | model.state_dict()
    return records + alternating, {**tensors, "shares": torch.tensor(shares), "large": torch.ones(3_000_000)}

if __name__ == "__main__":
    records, tensors = in_processes(work, Plan(4, 4, seed=7), sys.argv[2], device="cpu", processes=2)
    torch.save({"records": records, "tensors": tensors}, Path(sys.argv[1]))
"""


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Batches 4, 4 and 3 with unequal class weights: the last one's halves have other sizes and other weights."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(tmp_path / "program.py"), str(tmp_path / "found"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")  # no banner, no hint
    found: dict[str, Any] = torch.load(tmp_path / "found", weights_only=True)
    model, records = train(Plan(4, 4, seed=7))
    assert found["tensors"]["shares"].tolist() == [2, 2, 2] * 4  # the first process's, of 4, 4 and 3
    assert found["tensors"]["large"].sum() == 3_000_000  # more than a pipe's buffer
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["tensors"][name], value, rtol=0, atol=1e-5)
    for one, two in zip(records, found["records"][:4], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert two["right"] == one["right"]
    model, records = alternate(Plan(4, 4, seed=7))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["tensors"][f"two.{name}"], value, rtol=0, atol=1e-5)
    for one, two in zip(records, found["records"][4:], strict=True):
        assert two == pytest.approx(one, abs=1e-6)
    assert not (tmp_path / "logged.1").exists()  # the first process logs for all
    logged = [line.split() for line in (tmp_path / "logged.0").read_text().splitlines()]
    assert [(int(epoch), float(value)) for epoch, value in logged] == [
        (epoch, record["slope"]) for epoch, record in enumerate(found["records"][4:], 1)
    ]


def refuse(fabric: Fabric, what: str) -> tuple[Records, dict[str, Tensor]]:
    raise BlemishError(f"{what} is refused.")


def give(fabric: Fabric, what: str) -> tuple[Records, dict[str, Tensor]]:
    return [{"loss": 0.25}], {what: torch.eye(2)}


def test_a_processs_error_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The work is done in this process; the test is of how results and errors come back."""

    def here(self: Fabric, run: Callable[[Fabric], None]) -> None:
        run(Fabric(accelerator="cpu", devices=1))

    monkeypatch.setattr(Fabric, "launch", here)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    records, tensors = in_processes(give, "it", device="cpu", processes=2)
    assert records == [{"loss": 0.25}]
    assert torch.equal(tensors["it"], torch.eye(2))
    with pytest.raises(BlemishError, match=r"^This is refused\.$"):
        in_processes(refuse, "This", device="cpu", processes=2)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Fabric, run: Callable[[Fabric], None]) -> None:
        os.environ["MASTER_PORT"] = "12345"  # as Fabric does
        raise ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 99, -9, "SIGKILL")

    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr(Fabric, "launch", killed)
    with pytest.raises(BlemishError, match=r"ended early \(process 1 .* SIGKILL\); train with --processes 1"):
        in_processes(give, "it", device="cpu", processes=2)
    assert "MASTER_PORT" not in os.environ
