"""The cells of a sweep on a Ray of this machine: the rows of `blemish sweep`, and what is killed is gone on with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
import torch

from blemish import __version__
from blemish.cluster import sweep as on_cluster
from blemish.cluster.start import connected
from blemish.cluster.sweep import first_missing, measure_on_cluster, sweep_on_cluster
from blemish.detectors import registry
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.training.cell import Cell
from blemish.training.sweep import sweep
from blemish.types import BlemishError, Sample, silent
from tests.support import blemish, eventually
from tests.training.test_sweep import config_for, read_table

T = TypeVar("T")
GRID = "coreset=0.02,0.2;seed=0,1"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """The address of a Ray with two processors, whose workers can import the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        with connected(cpus=2):
            yield ray.get_runtime_context().gcs_address


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(registry.OURS, "mortal", "tests.cluster.mortal:MortalConfig")
    registry.config_of.cache_clear()
    return "mortal"


def sample(path: Path) -> Sample:
    return Sample(path, path.name, "good")


def measured(*samples: Sample, cpus: int = 1, **settings: Any) -> list[str]:
    """The errors of the rows of one cell."""
    cell = Cell({}, PatchCoreConfig(**settings), Path("unfinished"), "cell 1/1")
    rows = measure_on_cluster([cell], samples, samples, silent, address="", cpus=cpus)
    return [row.error for _, row in rows]


def test_the_rows_are_those_of_a_sweep_in_one_process(product: Path, tmp_path: Path, monkeypatch: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = sweep(config_for(product, tmp_path / "alone", GRID, test=False))
    torch.set_num_threads(threads)
    monkeypatch.chdir(product.parent)  # the tasks run elsewhere
    stages = list[str]()

    def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        stages.append(f"{what}: {total}")
        return iter(items)

    out = tmp_path / "out"
    spread = sweep_on_cluster(config_for(Path(product.name), out, GRID, test=False), progress)
    assert read_table(out) == read_table(tmp_path / "alone")
    assert stages[-1] == "cells, 2 at a time: 4"
    assert spread.chosen.figures == alone.chosen.figures
    assert sorted(p.name for p in out.iterdir()) == [".blemish", "sweep.csv", "sweep.json", "validation"]
    # What the one has measured, the other does not measure again.
    before = (out / "sweep.csv").read_bytes()
    sweep(config_for(product, out, GRID, test=False))
    sweep_on_cluster(config_for(product, out, GRID, test=False), progress)
    assert (out / "sweep.csv").read_bytes() == before
    assert stages[-1] == "images: 52"
    words = (product, "-o", out, "--grid", GRID, "--detector", "patchcore", "--image-size", "64x96", "--no-test")
    assert blemish("cluster", "train", *words).stdout == blemish("sweep", *words).stdout


def test_a_cell_whose_process_dies_is_begun_again_but_not_for_ever(
    product: Path, tmp_path: Path, mortal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(product, tmp_path / "out", "coreset=0.02;deaths=1", detector=mortal, test=False)
    sweep_on_cluster(config)
    (once,) = read_table(config.out)
    assert (once["deaths"], once["error"]) == ("1", "")
    assert float(once["choice"]) > 0.5
    monkeypatch.setattr(on_cluster, "RETRIES", 0)
    sweep_on_cluster(replace(config, grid="coreset=0.02;deaths=1,9"))
    again, always = read_table(config.out)
    assert again == once
    assert (always["deaths"], always["choice"]) == ("9", "")
    killed = "its process was killed, which the system does where memory is short, or crashed."
    assert always["error"] == f"It was begun 1 times, and the last time {killed}"


def test_a_cell_has_as_many_threads_as_processors_and_a_refusal_is_a_row(
    product: Path, tmp_path: Path, mortal: str
) -> None:
    config = config_for(product, tmp_path / "out", "count=yes", detector=mortal, test=False)
    with pytest.raises(BlemishError, match="the first error: 2 threads, begun 0 times before"):
        sweep_on_cluster(config, cpus_per_cell=2)
    assert not (config.out / ".cells").exists()


def test_a_killed_command_is_gone_on_with(product: Path, tmp_path: Path, cluster: str) -> None:
    """The command is another process at the same cluster, with one cell at a time."""
    out = tmp_path / "out"
    script = f"""
from dataclasses import replace
from pathlib import Path
from blemish.cluster.sweep import sweep_on_cluster
from blemish.training.sweep import SweepConfig
config = SweepConfig(Path({str(product)!r}), Path({str(out)!r}), {GRID!r}, "patchcore", (64, 96), test=False)
sweep_on_cluster(config, address={cluster!r}, cpus_per_cell=2)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as command:
        eventually((out / "sweep.csv").exists, 60)
        command.kill()
    before = (out / "sweep.csv").read_text(encoding="utf-8")
    assert 1 <= len(read_table(out)) < 4
    sweep_on_cluster(config_for(product, out, GRID, test=False))
    rows = read_table(out)
    assert [(row["coreset"], row["seed"]) for row in rows] == [("0.02", "0"), ("0.02", "1"), ("0.2", "0"), ("0.2", "1")]
    assert not any(row["error"] for row in rows)
    # The same rows with the same seconds: they were not measured again.
    assert (out / "sweep.csv").read_text(encoding="utf-8").startswith(before)


def test_a_node_that_does_not_see_the_images_ends_the_run(tmp_path: Path) -> None:
    gone = tmp_path / "drive"
    with pytest.raises(BlemishError, match=re.escape(f"does not see {gone}; put the images and the folder of -o")):
        measured(sample(gone / "good/1.png"))
    with pytest.raises(BlemishError, match=re.escape(f"does not see {gone}; put")):
        measured(weights=gone / "weights.safetensors")


def test_first_missing(tmp_path: Path) -> None:
    there = tmp_path / "a" / "1.png"
    there.parent.mkdir()
    there.touch()
    assert first_missing([there]) is None
    assert first_missing([there, tmp_path / "a/2.png"]) == tmp_path / "a/2.png"
    assert first_missing([there, tmp_path / "b/c/2.png"]) == tmp_path / "b"


def test_a_node_with_other_versions_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {**on_cluster._versions(), "torch": "1.0", "blemish": "0"}
    monkeypatch.setattr(on_cluster, "_versions", lambda: here)
    has = f"has blemish {__version__}, torch {torch.__version__}; install the versions of the machine"
    with pytest.raises(BlemishError, match=re.escape(has)):
        measured()


def test_a_node_without_blemish_ends_the_run() -> None:
    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'blemish'")

    sentence = r"cannot load what is here \(No module named 'blemish'\); install the same version"
    with pytest.raises(BlemishError, match=sentence):
        on_cluster._result(ray.remote(lacking).remote())


def test_cells_that_no_node_can_run_are_refused() -> None:
    with pytest.raises(BlemishError, match="no node of the cluster has more than 2; give fewer with --cpus-per-cell"):
        measured(cpus=3)
    with pytest.raises(BlemishError, match="no node of the cluster has a GPU"):
        measured(device="cuda")
    nodes: list[dict[str, Any]] = [
        {"Alive": True, "Resources": {"CPU": 7.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 32.0}},
        {"Alive": True, "Resources": {}},
    ]
    assert on_cluster._at_once(nodes, 3, False) == 2


@pytest.mark.parametrize(
    ("nodes", "cpus", "expected"),
    [
        ([{"CPU": 64.0, "GPU": 1.0}], 1, 1),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 2.0}, {"CPU": 64.0}], 2, 5),  # 4 + 1 + 0
        ([{"CPU": 8.0, "GPU": 0.5}, {"CPU": 8.0, "GPU": 1.0}], 4, 1),
    ],
)
def test_cells_on_a_gpu_have_one_each(nodes: list[dict[str, float]], cpus: int, expected: int) -> None:
    assert on_cluster._at_once([{"Alive": True, "Resources": has} for has in nodes], cpus, True) == expected


def test_processors_and_gpus_on_different_nodes_are_refused() -> None:
    """Ray would wait for ever for a node with both."""
    nodes = [{"Alive": True, "Resources": has} for has in ({"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0})]
    with pytest.raises(BlemishError, match="no node of the cluster with a GPU has more than 1; give fewer with --cpus"):
        on_cluster._at_once(nodes, 4, True)


def test_ctrl_c_ends_the_tasks_and_what_was_done_stays(product: Path, tmp_path: Path, mortal: str) -> None:
    config = config_for(product, tmp_path / "out", "coreset=0.02;sleep=0,99", detector=mortal, test=False)

    def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        for item in items:
            yield item
            if what.startswith("cells"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep_on_cluster(config, progress)
    assert [(row["sleep"], row["error"]) for row in read_table(config.out)] == [("0", "")]
    eventually(lambda: ray.available_resources().get("CPU") == 2)  # though the other cell would take 99 s
