"""Paths on standard input, as a stream, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blemish.cli.verdicts import CHUNK, _stdin_paths
from tests.conftest import tile
from tests.support import refused, write_image


def program(run: Path, *more: object) -> list[str]:
    return [sys.executable, "-m", "blemish", *map(str, ["inspect", run, "-", "--threads", "1", *more])]


def test_no_verdict_waits_for_the_next_path(run: Path, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", tile(900 + i, (20, 30) if i == 1 else None)[0]) for i in range(3)]
    process = subprocess.Popen(
        program(run, "--json"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin
    assert process.stdout
    decisions = []
    for path in paths:  # each is written only after the verdict on the one before
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        decisions.append(json.loads(process.stdout.readline())["decision"])
    assert process.communicate()[0] == ""
    assert process.returncode == 0
    assert decisions == ["good", "anomaly", "good"]


def test_empty_lines_broken_files_and_equal_names(run: Path, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"in/{i}/part.png", tile(900 + i)[0]) for i in range(2)]
    paths += [tmp_path / "in", tmp_path / "missing.png"]
    stdin = f"\n{paths[0]}\r\n\n{paths[1]}\n{paths[2]}\n{paths[3]}"  # the last without an end
    done = subprocess.run(
        program(run, "--out", tmp_path / "out"), input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    printed = done.stdout.splitlines()
    assert [line.split()[0] for line in printed] == ["good", "good", "error", "error", "4"]
    assert "is a folder" in printed[2]
    assert printed[4].startswith("4 images: 2 good, 2 error.")
    assert "inspecting: 4 in" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/verdicts.jsonl").read_text("utf-8").splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["overlay"] for row in rows] == ["overlays/part.png.jpg", "overlays/part.png-2.jpg", None, None]


def test_paths_that_end_with_nul_may_hold_anything(run: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "two\nlines.png", tile(900)[0])
    stdin = f"{path}\0\0{path}\0"
    done = subprocess.run(program(run, "--json", "-0"), input=stdin, capture_output=True, text=True, check=True)
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == [str(path)] * 2


def test_no_paths_at_all_are_no_error(run: Path) -> None:
    done = subprocess.run(program(run), input="", capture_output=True, text=True, check=True)
    assert done.stdout == "0 images.\n"


def test_a_long_list_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "list"
    file.write_text("".join(f"images/{i}.png\n" for i in range(100_000)))
    assert file.stat().st_size > 20 * CHUNK
    with file.open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        paths = _stdin_paths(b"\n")
        assert next(paths) == Path("images/0.png")
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == CHUNK
        assert sum(path is not None for path in paths) == 99_999


def test_the_examples_of_pipes_in_the_docs_work(run: Path, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/commands.md").read_text("utf-8")
    examples = re.findall(r"^\$ (find .*blemish inspect .*)$", text, re.MULTILINE)
    assert len(examples) == 2
    for i in range(2):
        write_image(tmp_path / f"new/{i}.png", tile(900 + i)[0])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiles").symlink_to(run)
    for example in examples:
        line = f"set -o pipefail; {example.replace('blemish', f'{sys.executable} -m blemish')}"
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == (2 if "--json" in example else 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-", "a.png"], "- cannot be combined"),
        (["a.png", "-"], "- cannot be combined"),
        (["a.png", "-0"], "-0 applies to"),
    ],
)
def test_options_that_exclude_each_other_are_refused(run: Path, arguments: list[str], sentence: str) -> None:
    assert sentence in refused("inspect", run, *arguments)
