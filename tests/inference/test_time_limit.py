from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from blemish import BlemishError, Inspector
from blemish.inference import bundle
from blemish.inference import time_limit as time_limits
from blemish.inference.time_limit import time_limit
from tests import tiny
from tests.support import blemish, eventually, refused, write_image


def grey(value: int, size: tuple[int, int] = (7, 9)) -> npt.NDArray[np.uint8]:
    return np.full((*size, 3), value, np.uint8)


def test_what_ends_in_time_is_left_alone() -> None:
    ended: list[int] = []
    for number in range(100):
        with time_limit(20, lambda number=number: ended.append(number)):  # type: ignore[misc]
            assert len(time_limits._watched) == 1
    assert not time_limits._watched
    assert ended == []


def test_each_block_has_its_own_limit() -> None:
    """A shorter one that begins later ends first."""
    order: list[str] = []
    with time_limit(0.4, lambda: order.append("long")), time_limit(0.1, lambda: order.append("short")):
        eventually(lambda: len(order) == 2)
    assert order == ["short", "long"]


def test_many_threads_are_watched_at_once() -> None:
    ended, done = set[int](), threading.Barrier(9)

    def work(number: int) -> None:
        over = threading.Event()
        with time_limit(0.05 + number / 100, over.set):
            assert over.wait(20)
        ended.add(number)
        done.wait(20)

    for number in range(8):
        threading.Thread(target=work, args=(number,)).start()
    done.wait(20)
    assert ended == set(range(8))
    assert sum(thread.name == "blemish-time-limit" for thread in threading.enumerate()) == 1


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.made(tmp_path_factory.mktemp("endless") / "b", tiny.model(tiny.endless))


def test_a_graph_that_never_ends_is_an_error_and_the_rest_goes_on(endless: Path) -> None:
    inspector = Inspector(endless, threads=1, timeout=0.3)
    assert inspector.inspect(grey(50)).decision == "good"
    begun = time.monotonic()
    verdict = inspector.inspect(grey(220), "a.png")
    assert time.monotonic() - begun < 10
    assert verdict.decision == "error"
    assert verdict.error == (
        "a.png: the detector took longer than 0.3 s; look at the image, or raise the limit with --timeout."
    )
    assert inspector.inspect(grey(150)).decision == "anomaly"


def test_in_threads_too(endless: Path, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", grey(220 if i % 3 == 1 else 50)) for i in range(6)]
    inspector = Inspector(endless, threads=2, timeout=0.3)
    assert [look.verdict.decision for look in inspector.look_many(paths)] == ["good", "error", "good"] * 2


def test_a_tile_that_never_ends_ends_the_image(tmp_path: Path) -> None:
    tiles = tuple((x, 0) for x in range(0, 64, 8))
    frame = bundle.Frame(size=(64, 8), map_size=(4, 40), tile=(8, 8), tiles=tiles)
    folder = tiny.made(tmp_path / "b", tiny.model(tiny.endless), frame=frame)
    inspector = Inspector(folder, threads=1, timeout=0.3)
    assert inspector.inspect(grey(50, (8, 64))).decision == "good"
    image = grey(50, (8, 64))
    image[:, 32:] = 255
    assert "took longer" in str(inspector.inspect(image).error)


def test_the_commands_have_a_time_limit(endless: Path, tmp_path: Path) -> None:
    for name, value in (("a", 50), ("b", 220), ("c", 50)):
        write_image(tmp_path / f"in/{name}.png", grey(value))
    printed = blemish("inspect", endless, tmp_path / "in", "--timeout", "0.3", code=3).stdout
    assert "2 good, 1 error" in printed
    watched = blemish(
        "watch", tmp_path / "in", "--bundle", endless, "--out", tmp_path / "w", "--once", "--timeout", "0.3",
        "--give-up", "1", code=3,
    ).stdout  # fmt: skip
    assert "2 good, 1 error" in watched
    assert "time limit" in refused("inspect", endless, tmp_path / "in", "--timeout", "0")


def test_preparing_a_graph_has_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants are computed on loading: here sixty products of matrices, of some tenths of a second each."""
    from onnx import helper

    def change(graph: object) -> None:
        nodes = [helper.make_node("Expand", ["half", "shape"], ["m0"])]
        nodes += [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(60)]
        nodes.append(helper.make_node("ReduceMax", ["m60"], ["top"], keepdims=0))
        graph.node.extend(nodes)  # type: ignore[attr-defined]
        graph.initializer.extend([tiny.tensor("half", 0.5, np.float32), tiny.tensor("shape", [700, 700])])  # type: ignore[attr-defined]
        graph.output.append(tiny.value("top", 1, []))  # type: ignore[attr-defined]

    monkeypatch.setattr("blemish.inference.inspector.LOADING", 0.05)
    with pytest.raises(BlemishError, match="cannot load the graph"):
        Inspector(tiny.made(tmp_path / "b", tiny.model(change)), threads=1)
