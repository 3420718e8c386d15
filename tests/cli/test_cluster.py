"""The program itself, with a Ray of its own, which a signal ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.cluster import lines

pytest.importorskip("pyarrow")
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


def test_ended_by_a_signal(tmp_path: Path) -> None:
    """As Ctrl-C and service managers send it: the exit code says so, and no process is left."""
    bundle = tiny.made(tmp_path / "bundle", tiny.model(lines.patient(20_000)))
    images, out, tag = tmp_path / "images", tmp_path / "out", str(tmp_path)
    lines.write(images, 400)
    command = ["cluster", "inspect", str(bundle), str(images), "--out", str(out), "--per-file", "10", "--actors", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "blemish", *command],
        env={**os.environ, TAG: tag},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + LONG
        while len(list(out.glob("verdicts/part-*"))) < 2 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 143, stderr
    assert stdout == ""
    *before, last = stderr.splitlines()
    assert all(line.startswith(("listing: 400 in", "inspecting: ")) for line in before), stderr
    assert last.startswith("Stopped at about ")
    assert last.endswith(" of 400 images; the same command goes on where it stopped.")
    while of_run(tag):
        assert time.monotonic() < end + LONG
        time.sleep(0.05)
    assert 2 <= len(list(out.glob("verdicts/part-*"))) < 40
    assert not (out / "attempts").exists()
