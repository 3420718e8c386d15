"""Logs of a training, read back from the bytes on the disk."""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from blemish.detectors.nn.loggers import check, logger
from blemish.detectors.nn.loop import unlogged
from blemish.types import BlemishError


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = (found >> 1) ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    found = crc32c(data)
    return (((found >> 15) | (found << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(file: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and scalars of an event file: records of length, its checksum, an Event, and that one's checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(body)
        event = Event.FromString(body)
        if event.HasField("summary"):
            assert event.wall_time > 1.7e9
            found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
        else:
            assert event.file_version == "brain.Event:2"
        data = data[16 + length :]
    return found


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the published check value


def test_every_epoch_is_on_the_disk_at_its_end(tmp_path: Path) -> None:
    log = logger("tensorboard", tmp_path / "made" / "here", "fold")
    log(1, {"loss": 0.5, "right": 0.25})
    (file,) = (tmp_path / "made" / "here").iterdir()
    assert "tfevents" in file.name  # as TensorBoard requires
    assert read_events(file) == [(1, {"loss": 0.5, "right": 0.25})]
    log(2, {"loss": 0.125, "right": 1.0})
    assert read_events(file) == [(1, {"loss": 0.5, "right": 0.25}), (2, {"loss": 0.125, "right": 1.0})]


def test_earlier_logs_stay(tmp_path: Path) -> None:
    """Within the same second, in which tensorboardX would overwrite the file."""
    for start in (1, 3, 5):
        log = logger("tensorboard", tmp_path, "fold")
        log(start, {"loss": start / 8})
        log(start + 1, {"loss": (start + 1) / 8})
    found = [read_events(file) for file in tmp_path.iterdir()]
    assert len(found) == 3
    assert sorted(event for events in found for event in events) == [(n, {"loss": n / 8}) for n in range(1, 7)]


PROGRAM = """
import sys
from pathlib import Path
from blemish.detectors.nn.loggers import logger
if __name__ == "__main__":
    held = logger(sys.argv[1], Path(sys.argv[2]), "fold")
    held(1, {"loss": 0.5})
    if sys.argv[3] == "killed":
        raise SystemExit(3)
"""


def run_program(kind: str, folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Python ends while the logger is still held."""
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM, kind, str(folder), how],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(("how", "code"), [("ended", 0), ("killed", 3)])
def test_nothing_is_printed_when_python_ends(how: str, code: int, tmp_path: Path) -> None:
    done = run_program("tensorboard", tmp_path, how)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    (file,) = tmp_path.iterdir()
    assert read_events(file) == [(1, {"loss": 0.5})]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.parametrize(("how", "code"), [("ended", 0), ("killed", 3)])
def test_wandb_without_a_network(how: str, code: int, tmp_path: Path) -> None:
    for runs in (1, 2):
        done = run_program("wandb", tmp_path, how)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
        assert len(files) == runs
        assert {file.stem for file in files} == {f"run-{(tmp_path / 'wandb-id.txt').read_text()}"}  # one run, resumed


def test_no_log(tmp_path: Path) -> None:
    assert logger("", tmp_path / "none", "fold") is unlogged
    assert not list(tmp_path.iterdir())
    check("", None)


@pytest.mark.parametrize(
    ("kind", "package", "remedy"),
    [("tensorboard", "tensorboardX", r'pip install "blemish\[log\]"'), ("wandb", "wandb", "pip install wandb")],
)
def test_a_missing_package_is_named_with_the_remedy(
    kind: str, package: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(BlemishError, match=rf"^--log {kind} needs .* {package}, which is not installed: {remedy}\.$"):
        logger(kind, tmp_path, "fold")
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=r"^--log takes tensorboard or wandb, not 'comet'\.$"):
        logger("comet", tmp_path, "fold")
    with pytest.raises(BlemishError, match="kept beside the checkpoints"):
        check("tensorboard", None)
