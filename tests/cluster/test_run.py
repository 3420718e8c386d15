"""`blemish cluster inspect` from end to end, on a Ray of two nodes of this machine, of which the last kills one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blemish import Inspector
from blemish.cluster import run, start
from blemish.cluster.places import place
from blemish.cluster.plan import Plan
from blemish.cluster.run import Config, inspect
from blemish.cluster.schema import map_values
from blemish.cluster.start import connected
from blemish.cluster.summary import Summary
from blemish.cluster.worker import Board, Inspect, Job
from blemish.images import load_image
from blemish.inference import bundle as bundles
from blemish.types import DECISIONS, BlemishError
from tests import tiny
from tests.cluster import lines, support
from tests.cluster.runs import (
    LONG,
    check_same,
    expected,
    expected_some,
    going,
    marks,
    told_of,
    until,
    verdicts,
    workers,
)
from tests.support import blemish, refused, write_image

ray = pytest.importorskip("ray")
MEMORY = 100 * 2**20  # of a node, for shared objects


@pytest.fixture(scope="module")
def nodes(s3: str) -> Iterator[Any]:  # the server's environment is the workers' too
    """Two nodes with one processor each; this process is connected to them."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in start.ENVIRONMENT.items():
            environment.setenv(name, value)
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
        # A node that is gone is noticed after 4 s instead of 15.
        noticed = {"health_check_period_ms": 1000, "health_check_failure_threshold": 4}
        cluster = Cluster(initialize_head=True, head_node_args={**options, "_system_config": noticed})
        try:
            cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            with connected(cluster.address):
                yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, with a graph that takes some 10 ms for an image, and hours for a bright one."""
    return tiny.made(tmp_path_factory.mktemp("bundles") / "patient", tiny.model(lines.patient(10_000)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    lines.write(folder, 320)
    return folder


@pytest.mark.usefixtures("nodes")
def test_the_verdicts_are_those_of_inspect(tmp_path: Path) -> None:
    bundle, folder, out = tiny.made(tmp_path / "bundle"), tmp_path / "images", tmp_path / "out"
    lines.write(folder, 60)
    (folder / "line0/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "line0/empty.png").touch()
    (folder / "line1/notes.jpg").write_text("no image")
    write_image(folder / "line1/wide.png", lines.pixels(50).repeat(30, axis=1))
    (folder / "line1/readme.txt").write_text("left out")
    options = ("--max-pixels", 1000)
    command = ("cluster", "inspect", bundle, folder, "--out", out, *options, "--maps", "--overlays", "--per-file", 20)
    planned = blemish(*command, "--plan-only").stdout.splitlines()
    assert planned[0].startswith("64 images (0.00 GB), 4 files of 20 verdicts.")
    assert not (out / "verdicts").exists()
    printed = blemish(*command, code=3).stdout
    rows = verdicts(out)
    check_same(rows, told_of(bundle, folder, *options, code=3))
    counts = {kind: sum(row["decision"] == kind for row in rows) for kind in ("good", "review", "anomaly", "error")}
    assert counts["error"] == 4
    assert printed.splitlines()[0] == ", ".join(
        [f"64 images: {counts['good']} good", f"{counts['review']} review", f"{counts['anomaly']} anomaly", "4 error."]
    )
    assert "Left out: 1" in printed
    inspector = Inspector(bundle, threads=1)
    for row in rows:
        if row["decision"] == "error":
            assert row["map"] is row["overlay"] is row["score"] is None
            continue
        content = Path(row["uri"]).read_bytes()
        assert row["bytes"] == len(content)
        seen = inspector.look(content).map
        assert seen is not None
        step = (row["map_high"] - row["map_low"]) / 65535
        assert abs(map_values(row["map"], row["map_low"], row["map_high"]) - seen).max() <= step * 0.51
        assert (row["overlay"] is not None) == (row["decision"] == "anomaly")
        if row["overlay"]:
            assert load_image(out / row["overlay"]).ndim == 3
    assert len(list(out.glob("overlays/*/*.jpg"))) == counts["anomaly"]
    assert {row["bundle"] for row in rows} == {inspector.card.sha256}
    before = {file: file.stat().st_mtime_ns for file in (out / "verdicts").iterdir()}
    again = json.loads(blemish(*command, "--json", code=3).stdout)
    assert again["counts"] == counts
    assert again["resumed"] == 4
    assert before == {file: file.stat().st_mtime_ns for file in (out / "verdicts").iterdir()}
    assert not (out / "attempts").exists()
    assert again["memory"] > 0  # of the run that did something
    assert "holds verdicts of another --per-file" in refused(*command, "--per-file", 9)
    assert "--column is about a table" in refused(*command, "--column", "x")
    (folder / "line0/broken.png").write_bytes((folder / "line0/0000.png").read_bytes())
    mended = json.loads(blemish(*command, "--retry-errors", "--json", code=3).stdout)
    assert (mended["images"], mended["counts"]["error"]) == (64, 3)
    same = {file for file, time in before.items() if file.stat().st_mtime_ns == time}
    assert 0 < len(same) < 4  # parts without errors are not touched
    lines.write(tmp_path / "others", 3)
    elsewhere = refused("cluster", "inspect", bundle, tmp_path / "others", "--out", out, *options, "--maps")
    assert f"holds verdicts of another source, {folder}" in elsewhere
    other = tiny.made(tmp_path / "other", product="other")
    assert "holds verdicts of another bundle;" in refused("cluster", "inspect", other, *command[3:])
    anew = ("cluster", "inspect", bundle, tmp_path / "others", "--out", out, "--overwrite")
    assert "no Ray cluster to use at 127.0.0.1:1" in refused(*anew, "--address", "127.0.0.1:1")
    assert "no such file or folder" in refused(*anew[:3], tmp_path / "typo", *anew[4:])
    assert len(verdicts(out)) == 64  # nothing is replaced for a request that cannot be carried out
    blemish(*anew, "--plan-only")
    assert not (out / "verdicts").exists()


@pytest.mark.usefixtures("nodes")
def test_a_table_in_a_bucket_and_verdicts_there(bucket: tuple[str, Any], tmp_path: Path) -> None:
    """Also a missing image; what another run wrote there is gone on with."""
    name, system = bucket
    bundle, folder = tiny.made(tmp_path / "bundle"), tmp_path / "images"
    lines.write(folder, 36)
    support.put_folder(system, f"{name}/in", folder)
    out = f"s3://{name}/out"
    found = inspect(Config(bundle, f"s3://{name}/in", out, overlays=True, per_file=12))
    assert isinstance(found, Summary)

    def rows() -> list[dict[str, Any]]:
        return [
            row
            for number in range(3)
            for row in pq.read_table(f"{name}/out/verdicts/part-{number:06}.parquet", filesystem=system).to_pylist()
        ]

    first = rows()
    local = [
        {**verdict, "path": f"s3://{name}/in/{Path(verdict['path']).relative_to(folder)}"}
        for verdict in expected(bundle, folder)
    ]
    check_same(first, local)
    for row in first:
        if row["decision"] == "anomaly":
            with system.open_input_stream(f"{name}/out/{row['overlay']}") as file:
                assert file.read(2) == b"\xff\xd8"
    times = {info.path: info.mtime for info in system.get_file_info(pa.fs.FileSelector(f"{name}/out/verdicts"))}
    system.delete_file(f"{name}/out/verdicts/part-000001.parquet")
    again = inspect(Config(bundle, f"s3://{name}/in", out, overlays=True, per_file=12))
    assert isinstance(again, Summary)
    assert (again.resumed, again.counts) == (2, found.counts)
    steady = ("id", "uri", "decision", "score", "regions", "sha256")
    assert [[row[key] for key in steady] for row in rows()] == [[row[key] for key in steady] for row in first]
    after = {info.path: info.mtime for info in system.get_file_info(pa.fs.FileSelector(f"{name}/out/verdicts"))}
    changed = [path for path in times if times[path] != after[path]]
    assert set(changed) <= {f"{name}/out/verdicts/part-000001.parquet"}
    table = tmp_path / "table.parquet"
    uris = [f"s3://{name}/in/line0/0000.png", str(folder / "line1/0001.png"), f"s3://{name}/in/none.png", "none.png"]
    pq.write_table(pa.table({"uri": uris, "source": ["a", "b", "a", "b"]}), table)
    mixed = inspect(Config(bundle, str(table), str(tmp_path / "mixed")))
    assert isinstance(mixed, Summary)
    errors = [row["error"] for row in verdicts(tmp_path / "mixed")]
    assert errors[:2] == [None, None]
    assert errors[2] == f"s3://{name}/in/none.png: there is no such file; check the path."
    assert errors[3] == Inspector(bundle).inspect(tmp_path / "none.png").error
    assert mixed.sources["a"].get("error") == mixed.sources["b"].get("error") == 1
    with pytest.raises(BlemishError, match=r"s3://no-such-bucket/out/"):
        inspect(Config(bundle, str(folder), "s3://no-such-bucket/out"))


@pytest.mark.usefixtures("nodes")
def test_an_image_on_which_workers_die_is_an_error_and_the_rest_is_inspected(patient: Path, tmp_path: Path) -> None:
    """The worker is killed each time it is at that image, as a system does that is out of memory. It is killed once
    among others, and then twice alone with it."""
    folder, out = tmp_path / "images", tmp_path / "out"
    lines.write(folder, 12, lines=1)
    write_image(folder / "line0/0005x.png", lines.pixels(245))
    config = Config(patient, str(folder), str(out), actors=1, per_file=8, timeout=10_000, stall=LONG)
    with going(config) as ended:
        before: set[int] = set()  # processes that were killed
        for death in range(3):
            until(partial(marks, out, "try", death + 1), ended)
            if death:
                until(partial(marks, out, "at-6", death), ended)
            (pid,) = until(lambda: {pid for pid, _ in workers().values()} - before)
            before.add(pid)
            os.kill(pid, signal.SIGKILL)
    assert isinstance(ended[0], Summary), ended
    rows = verdicts(out)
    assert [row["id"] for row in rows] == list(range(13))
    assert rows[6]["error"] == (
        f"{folder}/line0/0005x.png: the process that inspected it ended 2 times (killed, or out of memory); look at "
        "the image, or give workers more memory."
    )
    check_same(rows[:6], expected_some(patient, rows[:6]))
    assert [row["decision"] == "error" for row in rows] == [row["id"] == 6 for row in rows]
    assert not (out / "attempts").exists()


@pytest.mark.usefixtures("nodes")
def test_nothing_comes_any_more(patient: Path, tmp_path: Path) -> None:
    """The watchdog: the worker is at an image for hours."""
    folder, out = tmp_path / "images", tmp_path / "out"
    lines.write(folder, 4)
    write_image(folder / "line1/9.png", lines.pixels(245))
    config = Config(patient, str(folder), str(out), actors=1, per_file=2, timeout=10_000, stall=10)
    with pytest.raises(BlemishError) as refusal:
        inspect(config)
    assert re.fullmatch(  # Ray Data gives the row of a part when the next one is there
        r"nothing has come from the workers for 10 s \([12] of 3 parts are done; at work: part-00000\d.parquet"
        r"(, part-00000\d.parquet)?\); look at the nodes \(`ray status`\), "
        r"and run it again: it goes on where it stopped\.",
        str(refusal.value),
    )
    until(lambda: len(workers()) == 0)  # the pool does not go on where nobody waits for it


@pytest.mark.usefixtures("nodes")
def test_a_worker_that_is_dead_for_good_ends_the_run_in_words(patient: Path, images: Path, tmp_path: Path) -> None:
    """Ray #62746, where a pool of a fixed size waits for ever."""
    from ray._private.worker import global_worker

    out = tmp_path / "out"
    with going(Config(patient, str(images), str(out), actors=2, per_file=16, stall=LONG)) as ended:
        until(lambda: len(list(out.glob("verdicts/part-*"))) >= 2, ended)
        for actor in workers():
            global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor), True)
    assert re.fullmatch(
        r"Ray ended the work \(The actor is dead because it was killed by `ray.kill`.\) after \d+ of 20 parts; run it "
        r"again: it goes on where it stopped\.",
        str(ended[0]),
    )


@pytest.mark.usefixtures("nodes")
def test_what_no_node_can_do_is_refused(tmp_path: Path) -> None:
    bundle, folder = tiny.made(tmp_path / "bundle"), tmp_path / "images"
    lines.write(folder, 3)
    command = ("cluster", "inspect", bundle, folder, "--out")
    assert refused(*command, tmp_path / "a", "--cpus-per-actor", 64) == (
        "no node has the 64 processors and 0 GPUs of a worker, but 1 processors and 0 GPUs; give fewer with "
        "--cpus-per-actor and --gpus-per-actor."
    )
    assert refused(*command, tmp_path / "b", "--gpus-per-actor", 1).startswith(
        "no node has the 1 processors and 1 GPUs"
    )
    assert "holds" in refused(*command, tmp_path)


@pytest.mark.usefixtures("nodes")
def test_a_node_that_differs_says_so(tmp_path: Path) -> None:
    loaded = bundles.read(tiny.made(tmp_path / "bundle"))
    folder, out = tmp_path / "images", place(str(tmp_path / "out"))
    lines.write(folder, 3)
    plan = inspect(Config(tmp_path / "bundle", str(folder), out.uri, plan_only=True))
    assert isinstance(plan, Plan)
    job = Job(plan=plan, out=out, options="", root=str(folder), cpus=1, max_pixels=1000, timeout=60.0)
    older = replace(plan, versions={**plan.versions, "onnxruntime": "1.2"})
    shipped, board = [ray.put(loaded)], ray.remote(Board).options(num_cpus=0).remote()
    for other, why in (
        (replace(job, plan=older), "the driver 1.2; install the same on every"),
        (replace(job, out=place(str(tmp_path / "elsewhere"))), f"does not see {tmp_path}/elsewhere; give a folder"),
        (replace(job, plan=replace(plan, rows=1)), f"does not see {out.uri}; give a folder that all nodes"),
        (replace(job, root=str(tmp_path / "none")), f"does not see {tmp_path}/none; give images that all nodes"),
    ):
        row = Inspect(other, shipped, board)({"part": [0]})
        assert why in row["refusal"][0]
        assert row["refusal"][0].startswith("node ")
        assert [row[kind] for kind in DECISIONS] == [[0], [0], [0], [0]]
    assert not (tmp_path / "out/verdicts").exists()
    row = Inspect(job, shipped, board)({"part": [0]})
    assert (row["refusal"], sum(row[kind][0] for kind in DECISIONS)) == ([""], 3)
    told = ray.get(board.state.remote())
    assert [one["part"] for one in told.values()] == [0]


def test_the_driver_is_killed(nodes: Any, patient: Path, images: Path, tmp_path: Path) -> None:
    """Its workers end too; what they wrote is not touched when the same command is given again."""
    out = tmp_path / "out"
    options = ["--out", str(out), "--per-file", "10", "--address", nodes.address]
    command = [sys.executable, "-m", "blemish", "cluster", "inspect", str(patient), str(images), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: len(list(out.glob("verdicts/part-*"))) >= 3)
        process.kill()
    until(lambda: len(workers()) == 0)
    before = {file: file.stat().st_mtime_ns for file in out.glob("verdicts/part-*")}
    assert 3 <= len(before) < 32
    found = inspect(Config(patient, str(images), str(out), per_file=10))
    assert isinstance(found, Summary)
    assert found.resumed == len(before)
    assert before.items() <= {file: file.stat().st_mtime_ns for file in out.glob("verdicts/part-*")}.items()
    check_same(verdicts(out), expected(patient, images))


def test_a_node_is_killed(nodes: Any, patient: Path, images: Path, tmp_path: Path) -> None:
    """Nothing is lost, nothing twice, and the verdicts are the same. What was written before is not touched."""
    out = tmp_path / "out"
    config = Config(patient, str(images), str(out), actors=2, per_file=10, stall=LONG)
    with going(config) as ended:
        until(lambda: len(list(out.glob("verdicts/part-*"))) >= 3, ended)
        until(lambda: len({node for _, node in workers().values()}) == 2, ended)
        with pytest.raises(BlemishError, match="another process"):  # one run at a time writes a folder
            inspect(config)
        (other,) = nodes.worker_nodes
        nodes.remove_node(other, allow_graceful=False)
        before = {file: file.stat().st_mtime_ns for file in out.glob("verdicts/part-*")}
        assert len(before) < 32
    assert isinstance(ended[0], Summary), ended
    check_same(verdicts(out), expected(patient, images))
    now = {file: file.stat().st_mtime_ns for file in out.glob("verdicts/part-*")}
    # Of a part that a node wrote just before it died, Ray may not know.
    assert sum(now[file] != before[file] for file in before) <= run.QUEUED
    assert len(now) == 32
    assert replace(ended[0], seconds=0.0).images == 320
