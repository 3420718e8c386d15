"""The program itself, with a Ray of its own: killed, ended, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blemish import Inspector
from tests import tiny
from tests.cluster import lines

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("ray")
LONG = 120.0  # seconds that nothing here takes, also where other tests run beside it
TAG = "BLEMISH_TEST_OF"  # in the environment of all processes that a run starts

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


def of_run(tag: str) -> list[int]:
    """The processes that a run has started, and itself."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                environment = (process / "environ").read_bytes()
                zombie = b") Z " in (process / "stat").read_bytes()
            except OSError:  # another user's, or gone
                continue
            if f"{TAG}={tag}".encode() in environment and not zombie:
                found.append(int(process.name))
    return found


def test_killed_ended_and_gone_on_with(tmp_path: Path) -> None:
    """After each, no process is left; what was written is not touched, and in the end all is there, once."""
    bundle = tiny.made(tmp_path / "bundle", tiny.model(lines.patient(20_000)))
    images, out = tmp_path / "images", tmp_path / "out"
    files = lines.write(images, 400)
    command = ["cluster", "inspect", str(bundle), str(images), "--out", str(out), "--per-file", "10", "--actors", "2"]
    tag = str(tmp_path)
    for number, parts, code in ((signal.SIGKILL, 2, -9), (signal.SIGTERM, 12, 143), (None, 99, 0)):
        before = {file: file.stat().st_mtime_ns for file in out.glob("verdicts/*")}
        process = subprocess.Popen(
            [sys.executable, "-m", "blemish", *command, *([] if number else ["--json"])],
            env={**os.environ, TAG: tag},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + LONG
        while number and len(list(out.glob("verdicts/part-*"))) < parts and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        if number:
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=LONG)
        assert process.returncode == code, stderr
        while of_run(tag):
            assert time.monotonic() < end + LONG
            time.sleep(0.05)
        assert before.items() <= {file: file.stat().st_mtime_ns for file in out.glob("verdicts/*")}.items()
        assert "Traceback" not in stderr
        assert "WARNING" not in stderr
    found = json.loads(stdout)
    assert found["images"] == 400
    assert 12 <= found["resumed"] < 40
    rows = [row for file in sorted(out.glob("verdicts/part-*")) for row in pq.read_table(file).to_pylist()]
    assert [row["id"] for row in rows] == list(range(400))
    assert sorted(row["uri"] for row in rows) == sorted(map(str, files))
    inspector = Inspector(bundle, threads=1)
    for row in rows[::25]:
        verdict = inspector.inspect(row["uri"])
        assert (row["decision"], row["score"]) == (verdict.decision, verdict.score)
    assert not list(out.glob("verdicts/.*"))
