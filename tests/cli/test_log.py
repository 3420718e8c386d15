"""`blemish log` on what `blemish watch` wrote, and on what somebody made of it afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from blemish import Inspector
from blemish.station.chain import GENESIS
from tests.conftest import tile
from tests.support import blemish, refused, write_image

Tamper = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def watched(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The --out of a watch over two starts, five images in all, and what it printed."""
    folder = tmp_path_factory.mktemp("watched")
    arguments = ["watch", folder / "in", "--bundle", run, "--out", folder / "out", "--once", "--settle", "0", "--json"]
    printed = ""
    for numbers in (range(3), range(3, 5)):
        for i in numbers:
            write_image(folder / f"in/{i}.png", tile(900 + i, (20, 30) if i == 1 else None)[0])
        printed += blemish(*arguments).stdout
    assert (folder / "out/verdicts.jsonl").read_text() == printed
    return folder / "out"


@pytest.fixture
def journal(watched: Path, tmp_path: Path) -> Path:
    """A copy of its journal, to be tampered with."""
    file = tmp_path / "verdicts.jsonl"
    file.write_bytes((watched / "verdicts.jsonl").read_bytes())
    return file


def head_of(path: Path) -> str:
    return blemish("log", "head", path).stdout.strip()


def tampered(file: Path, change: Tamper) -> list[str]:
    """What `verify` prints of the file with its lines changed, but for the line on --head."""
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))
    return [line for line in blemish("log", "verify", file, code=3).stdout.splitlines() if "--head" not in line]


def test_what_watch_wrote_verifies_against_its_head(run: Path, watched: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (watched / "verdicts.jsonl").read_text().splitlines()]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["previous"] for row in rows] == [GENESIS, *(row["hash"] for row in rows[:-1])]
    assert {row["bundle"] for row in rows} == {Inspector(run).card.sha256}
    text = head_of(watched)
    assert text == f"blemish log 1 5 {rows[-1]['hash']}"
    kept = tmp_path / "kept.txt"
    kept.write_text(f"{text}\n")
    for head in (kept, text, f"blemish log 1 2 {rows[1]['hash']}"):
        printed = blemish("log", "verify", watched, "--head", head)
        assert printed == (f"5 entries, no problem; {text}\n", "")
    plain = blemish("log", "verify", watched / "verdicts.jsonl").stdout.splitlines()
    assert plain[0].startswith("Without --head, a cut end")
    assert plain[1:] == [f"5 entries, no problem; {text}"]


def changed(row: int, **fields: object) -> Tamper:
    def change(lines: list[str]) -> list[str]:
        lines[row] = json.dumps(json.loads(lines[row]) | fields) + "\n"
        return lines

    return change


CHANGED = "Entry 2 was changed: what it says and its hash do not belong together."
TAMPERED: list[tuple[Tamper, str]] = [
    (changed(1, decision="good"), CHANGED),
    (changed(1, sha256="a" * 64), CHANGED),
    (changed(1, bundle="a" * 64), CHANGED),
    (changed(1, time="2020-01-01T00:00:00.000+00:00"), CHANGED),
    (changed(1, seq=4), CHANGED),
    (lambda lines: [lines[0], lines[1].replace("{", '{"decision": "good", ', 1), *lines[2:]], CHANGED),  # twice
    (lambda lines: [lines[0], lines[1].replace(": ", ":"), *lines[2:]], CHANGED),
    (lambda lines: [lines[0], *lines[2:]], "Entry 2 is missing before entry 3."),
    (lambda lines: lines[1:], "Entry 1 is missing before entry 2."),
    (lambda lines: [*lines[:2], *lines[1:]], "Entry 2 stands there twice."),
    (lambda lines: [*lines[:4], lines[0], lines[4]], "Entry 1 stands after entry 4: it was moved or copied there."),
    (lambda lines: [*lines[:2], '{"id": "' + "0" * 32 + '"}\n', *lines[2:]], "After entry 2 stands something"),
    (lambda lines: [*lines[:2], "text\n", *lines[2:]], "After entry 2 stands something"),
    (lambda lines: [*lines, "[" * 100_000 + "\n"], "After entry 5 stands something"),
]


@pytest.mark.parametrize(("change", "sentence"), TAMPERED, ids=range(len(TAMPERED)))
def test_each_tampering_is_a_sentence_and_ends_with_3(change: Tamper, sentence: str, journal: Path) -> None:
    first, last = tampered(journal, change)
    assert first.startswith(sentence)
    assert re.fullmatch(r"[4-6] entries, 1 problem; blemish log 1 5 [0-9a-f]{64}", last)


def test_an_unreadable_line_and_two_that_changed_places(journal: Path) -> None:
    lines = tampered(journal, lambda lines: [lines[0], lines[1][:50] + "\n", lines[3], lines[2], lines[4]])
    assert [line.partition(":")[0].partition(" is missing")[0] for line in lines[:-1]] == [
        "After entry 1 stands something that is no entry",
        "Entries 2 to 3 are missing before entry 4.",
        "Entry 3 stands after entry 4",
    ]
    assert "4 entries, 3 problems; " in lines[-1]


def test_a_cut_end_is_found_by_the_head_alone(journal: Path) -> None:
    text = head_of(journal)
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    assert "3 entries, no problem" in blemish("log", "verify", journal).stdout
    printed = blemish("log", "verify", journal, "--head", text, code=3).stdout
    assert printed.startswith(
        "The log ends with entry 3, and the kept head is entry 5: its end was cut off.\n3 entries"
    )


def test_lines_whose_places_were_removed_look_older_and_the_head_tells(journal: Path) -> None:
    text, places = head_of(journal), ("seq", "previous", "hash")
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    bare = [{key: value for key, value in row.items() if key not in places} for row in rows]
    sentences = tampered(journal, lambda _: [json.dumps(row) + "\n" for row in [*bare[:2], *rows[2:]]])
    assert sentences[0].startswith("What stands before entry 3 is not what it was linked to")
    journal.write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert "0 entries after 5 older lines, no problem" in blemish("log", "verify", journal).stdout
    printed = blemish("log", "verify", journal, "--head", text, code=3).stdout
    assert printed.startswith("Entry 5, the kept head, is not in the log.\n")


def test_a_line_that_is_being_written_is_no_entry(journal: Path) -> None:
    text, whole = head_of(journal), journal.read_bytes()
    for rest in (whole[:40], b"{", b"\0" * 9):
        journal.write_bytes(whole + rest)
        assert blemish("log", "verify", journal, "--head", text).stdout == f"5 entries, no problem; {text}\n"


def test_json_has_the_count_the_head_and_every_problem(journal: Path) -> None:
    text = head_of(journal)
    assert json.loads(blemish("log", "verify", journal, "--json").stdout) == {
        "entries": 5,
        "older": 0,
        "head": text,
        "problems": [],
    }
    changed(1, score=0)(lines := journal.read_text().splitlines(keepends=True))
    journal.write_text("".join(lines))
    printed = json.loads(blemish("log", "verify", journal, "--json", "--head", text, code=3).stdout)
    assert (printed["entries"], printed["problems"]) == (5, [CHANGED])


def test_the_head_of_a_log_with_problems_is_printed_with_a_warning(journal: Path) -> None:
    text = head_of(journal)
    tampered(journal, changed(1, decision="good"))
    printed = blemish("log", "head", journal, code=3)
    assert printed.stdout.strip() == text
    assert printed.stderr.strip() == f"{journal}: the log has 1 problem already; see: blemish log verify {journal}"


def test_older_lines_and_an_empty_journal(journal: Path) -> None:
    older = '{"id": "00", "name": "a.png"}\n'
    journal.write_text(older * 2)
    head = head_of(journal)
    assert head.startswith("blemish log 1 2 ")
    assert f"0 entries after 2 older lines, no problem; {head}" in blemish("log", "verify", journal).stdout
    journal.write_text("")
    assert head_of(journal) == f"blemish log 1 0 {GENESIS}"


def test_what_is_no_log_and_no_head_is_refused(journal: Path, tmp_path: Path) -> None:
    assert "missing: cannot be read (No such file or directory)" in refused("log", "verify", tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "verdicts.jsonl: cannot be read" in refused("log", "head", tmp_path / "empty")
    for text in ("text\n", '{"path": "a.png", "decision": "good"}\n'):  # as `blemish inspect` writes
        (tmp_path / "other.jsonl").write_text(text)
        assert "was not written by `blemish watch`" in refused("log", "verify", tmp_path / "other.jsonl")
    for head in (tmp_path / "missing", "text", "", "a\0b"):
        assert "is no head and no file that can be read" in refused("log", "verify", journal, "--head", head)
    assert "holds no head of a log" in refused("log", "verify", journal, "--head", journal)
    assert "is no head of a log" in refused("log", "verify", journal, "--head", "blemish log 1 5 abc")
