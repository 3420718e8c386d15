"""What the tests of runs share: a run beside the test, its workers, and its verdicts against an `Inspector`'s."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from blemish import Inspector
from blemish.cluster.run import Config, inspect
from tests.support import blemish

LONG = 60.0  # seconds that nothing here takes, also where other tests run beside it


def verdicts(out: Path) -> list[dict[str, Any]]:
    """All rows, by id."""
    rows = [row for file in sorted((out / "verdicts").iterdir()) for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def check_same(rows: list[dict[str, Any]], told: list[dict[str, Any]]) -> None:
    """Each row says what `blemish inspect --json` told of the same image, bit by bit; no image is twice."""
    by_path = {verdict["path"]: verdict for verdict in told}
    assert len(rows) == len(told) == len({row["uri"] for row in rows})
    assert [row["id"] for row in rows] == list(range(len(rows)))
    for row in rows:
        verdict = by_path[row["uri"]]
        for name in ("decision", "score", "threshold", "p_value", "error", "probability"):
            assert row[name] == verdict[name], (name, row, verdict)
        assert (row["defect"] or "") == verdict["defect"]
        assert [row["width"], row["height"]] == (verdict["size"] or [None, None])
        regions = [
            {"box": [r["left"], r["top"], r["right"], r["bottom"]]} | {k: r[k] for k in ("area", "peak", "p_value")}
            for r in row["regions"]
        ]
        assert regions == verdict["regions"]


def told_of(bundle: Path, images: Path, *options: object, code: int = 0) -> list[dict[str, Any]]:
    output = blemish("inspect", bundle, images, "--json", *options, code=code).stdout
    return [json.loads(line) for line in output.splitlines()]


def expected(bundle: Path, images: Path) -> list[dict[str, Any]]:
    """The verdicts of an `Inspector`, as `blemish inspect --json` prints them."""
    inspector = Inspector(bundle, threads=1)
    return [json.loads(json.dumps(inspector.inspect(file).to_json())) for file in sorted(images.rglob("*.png"))]


def workers() -> dict[str, tuple[int, str]]:
    """The living actors that inspect: their ids, with process and node."""
    from ray._private.state import state

    return {
        name: (actor["Pid"], actor["Address"]["NodeID"])
        for name, actor in state.actor_table(None).items()
        if "MapWorker" in actor["ActorClassName"] and actor["State"] == "ALIVE"
    }


def until(done: Callable[[], Any], ended: list[Any] | None = None) -> Any:
    """What `done` says as soon as it is true; no run may have `ended` before."""
    end = time.monotonic() + LONG
    while not (found := done()):
        assert not ended
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def going(config: Config) -> Iterator[list[Any]]:
    """A run in a thread; when the block has ended, the list holds its summary, or what it raised."""
    ended: list[Any] = []

    def work() -> None:
        try:
            ended.append(inspect(config))
        except BaseException as cause:  # the test looks at it
            ended.append(cause)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ended
    finally:
        thread.join(LONG)
    assert ended


def marks(out: Path, kind: str, number: int) -> bool:
    return len(list(out.glob(f"attempts/000000/{kind}-*"))) == number


def expected_some(bundle: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    inspector = Inspector(bundle, threads=1)
    return [json.loads(json.dumps(inspector.inspect(row["uri"]).to_json())) for row in rows]
