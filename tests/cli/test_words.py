"""What reaches a terminal: no control of a name, one line for one name, and no text that the encoding lacks raises."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from blemish.cli.words import ERRORS, escaped, say, say_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("零件 Größe é.png", "零件 Größe é.png"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x1b[31m\x07\x00\x7f", "\\x1b[31m\\x07\\x00\\x7f"),
        ("\x85\x9b", "\\u0085\\u009b"),  # C1: the next line, and the start of a command as one character
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\u202egnp.exe\u2066\u200f", "\\u202egnp.exe\\u2066\\u200f"),  # right to left
        ("\ufeff\u200b\u00ad", "\\ufeff\\u200b\\u00ad"),  # invisible
        ("\U000e0041", "\\U000e0041"),  # an invisible letter, as tags have them
        (os.fsdecode(b"a\xff\xfe.png"), "a\\xff\\xfe.png"),  # no UTF-8
        ("\ud800", "\\ud800"),
        ("[red]:smile:[/]\\n", "[red]:smile:[/]\\n"),
    ],
)
def test_what_is_unsafe_is_shown_as_python_writes_it(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("in/a\ngood  score 0.0  fake.png")
    say("no\r\x1b[2Kyes", err=True)
    said = capsys.readouterr()
    assert said.out == "in/a\\ngood  score 0.0  fake.png\n"
    assert said.err == "no\\r\\x1b[2Kyes\n"


def test_json_is_ascii_and_keeps_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["零.png", "a\nb\x1b\x7f\x85\u202e.png", os.fsdecode(b"\xff.png"), "\U0001f600"]
    say_json(names)
    line = capsys.readouterr().out
    assert line.isascii()
    assert line.count("\n") == 1
    assert json.loads(line) == names
    assert os.fsencode(json.loads(line)[2]) == b"\xff.png"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", b"5 x 6 +/-0.1 - \\u96f6 \\xe9\n"),
        ("cp1252", "5 × 6 ±0.1 – \\u96f6 é\n".encode("cp1252")),
        ("latin-1", "5 × 6 ±0.1 - \\u96f6 é\n".encode("latin-1")),
        ("utf-8", "5 × 6 ±0.1 – 零 é\n".encode()),
    ],
)
def test_what_the_encoding_lacks_becomes_plain(encoding: str, written: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, errors=ERRORS, newline="\n")
    stream.write("5 × 6 ±0.1 – 零 é\n")
    stream.flush()
    assert raw.getvalue() == written


def test_nothing_is_printed_around_it() -> None:
    """Everything that reaches a terminal is made safe by `words` or by `tables`."""
    source = Path(__file__).resolve().parents[2] / "src/blemish"
    for file in source.rglob("*.py"):
        text = file.read_text("utf-8")
        assert "typer.echo" not in text.replace("# Not typer.echo", ""), file
        assert not re.search(r"sys\.std(out|err)\.write", text), file
        assert file.name == "tables.py" or not re.search(r"(?<!\w)Console\(", text), file
