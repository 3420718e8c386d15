"""Standard streams as they really are, with the program in a process of its own: not UTF-8, closed, full, unread."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blemish.cli.streams import trouble, unfailing
from tests.conftest import tile
from tests.support import write_image

# File names that are not ASCII, not UTF-8, and meant to harm; none of them begins a line of its own.
NAMES = [b"a\ngood     score 0.000  fake.png", "零件.png".encode(), b"e\x1b[2J\x07.png", b"\xff\xfe.png", b"[red]x.png"]
POSIX = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PROGRAM = f"{shlex.quote(sys.executable)} -m blemish"


def bash(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash in which `blemish` is the program; checks that there is no stack trace."""
    line = f'blemish() {{ {PROGRAM} "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, env={**os.environ, **env}, check=False)
    for what in (b"Traceback", b"Exception ignored", b"UnicodeEncodeError"):
        assert what not in done.stdout + done.stderr, done.stderr
    return done


@pytest.fixture
def place(tmp_path: Path, run: Path) -> Path:
    """A folder with the run, and 30 images in `new`, the last one of a defective part."""
    (tmp_path / "run").symlink_to(run)
    for i in range(30):
        write_image(tmp_path / f"new/{i:02}.png", tile(900 + i, (20, 30) if i == 29 else None)[0])
    return tmp_path


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("ascii").splitlines()]


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, POSIX, {}], ids=["ascii", "cp1252", "C", "-"]
)
def test_every_name_on_every_terminal(tmp_path: Path, run: Path, env: dict[str, str]) -> None:
    (tmp_path / "run").symlink_to(run)
    (tmp_path / "in").mkdir()
    image = write_image(tmp_path / "one.png", tile(900)[0]).read_bytes()
    for name in NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"in", name))).write_bytes(image)  # noqa: PTH118
    text = bash("blemish inspect run in --out seen && blemish inspect run in --json", tmp_path, **env)
    assert text.returncode == 0, text.stderr
    assert b"\x1b" not in text.stdout + text.stderr
    lines = text.stdout.splitlines()
    assert len(lines) == 2 * len(NAMES) + 1
    assert not any(line.startswith(b"good     score 0.000") for line in lines)
    assert any(b"in/a\\ngood     score 0.000  fake.png" in line for line in lines)
    assert any(b"in/\\xff\\xfe.png" in line for line in lines)
    # For programs every name is what it was, byte for byte.
    for judged in (rows(tmp_path / "seen/verdicts.jsonl"), list(map(json.loads, lines[len(NAMES) + 1 :]))):
        assert sorted(os.fsencode(row["path"]) for row in judged) == sorted(b"in/" + name for name in NAMES)


def test_a_reader_that_stops_loses_no_verdict(place: Path) -> None:
    done = bash('blemish inspect run new --out seen | head -1; echo "${PIPESTATUS[0]}"', place)
    assert done.stdout.splitlines()[-1] == b"0"
    assert len(rows(place / "seen/verdicts.jsonl")) == 30
    done = bash('blemish inspect run new --fail-on anomaly | head -1; echo "${PIPESTATUS[0]}"', place)
    assert done.stdout.splitlines()[-1] == b"1"  # all have been judged
    done = bash('blemish inspect run new --json | head -1; echo "${PIPESTATUS[0]}"', place)
    assert done.stdout.splitlines()[-1] == b"141"  # nobody wants the rest
    assert done.stderr == b""
    done = bash('blemish data new --json | head -1; echo "${PIPESTATUS[0]}"', place)
    assert done.stdout.splitlines()[-1] != b"1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_standard_output_loses_no_verdict(place: Path) -> None:
    done = bash("blemish inspect run new --out seen > /dev/full", place)
    assert done.returncode == 2
    assert b"blemish: standard output: No space left on device; not everything" in done.stderr.splitlines()[-1]
    assert len(rows(place / "seen/verdicts.jsonl")) == 30
    assert bash("blemish --help > /dev/full", place).returncode == 2
    assert bash("blemish --version 2> /dev/full", place).returncode == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(place: Path, closed: str) -> None:
    done = bash(f"blemish inspect run new --out seen {closed}", place)
    assert done.returncode == 0, done.stderr
    assert len(rows(place / "seen/verdicts.jsonl")) == 30  # and nothing else: no file took the stream's number


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        ("<&-", "standard input, which is closed"),
        ("0> /dev/null", "standard input cannot be read"),
        (r"< <(printf '\xff\xfen\0e\0w\0')", "UTF-16"),
        ("< <(head -c 3000000 /dev/zero)", "is no list of paths"),
    ],
)
def test_standard_input_that_is_no_list(place: Path, stdin: str, sentence: str) -> None:
    done = bash(f"blemish inspect run - {stdin}", place)
    assert done.returncode == 2
    assert sentence in done.stderr.decode()


def test_a_list_with_a_byte_order_mark_or_a_nul(place: Path) -> None:
    done = bash(r"printf '\xef\xbb\xbfnew/01.png\na\0b\n' | blemish inspect run -", place)
    assert done.returncode == 3
    assert [line.split()[0] for line in done.stdout.splitlines()] == [b"good", b"error", b"2"]


def test_a_stream_that_fails_takes_everything_and_says_why_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as raw, io.TextIOWrapper(io.BufferedWriter(raw), "ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with unfailing():
            sys.stdout.write("± 零\n")
            assert trouble() is None
            assert os.read(reading, 99) == b"+/- \\u96f6\n"
            os.close(reading)
            sys.stdout.write("more\n" * 10_000)
            assert isinstance(trouble(), BrokenPipeError)
        assert sys.stdout is stdout


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    reader = subprocess.Popen(["sh", "-c", "sleep 0.2; wc -c"], stdin=reading, stdout=subprocess.PIPE)
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as raw, io.TextIOWrapper(io.BufferedWriter(raw), "utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with unfailing():
            sys.stdout.write("x" * 500_000)  # more than a pipe holds
            assert trouble() is None
        monkeypatch.undo()
    assert reader.communicate()[0].strip() == b"500000"


@pytest.mark.parametrize("columns", ["0", "-3", "wide", "", "²", "99999999999"])
def test_a_width_that_is_none_is_not_believed(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with unfailing():
        assert "COLUMNS" not in os.environ
