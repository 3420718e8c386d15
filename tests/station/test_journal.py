import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from blemish import BlemishError
from blemish.station.chain import GENESIS, Head, problems
from blemish.station.journal import Journal, identity
from blemish.station.lines import read
from blemish.station.scan import File

CONTENT = "ab" * 32  # a SHA-256


def row(name: str = "a.png", size: int = 10, modified: int = 1, content: str = CONTENT) -> dict[str, Any]:
    file = File(name, size, modified, 0)
    about = {"time": "2026-11-30T14:00:00.000+00:00", "name": name, "bytes": size, "modified": modified}
    return {"id": identity(file, content), **about, "sha256": content}


def said(line: bytes) -> dict[str, Any]:
    """A line without its place in the log."""
    return {key: value for key, value in json.loads(line).items() if key not in ("seq", "previous", "hash")}


def refused(folder: Path) -> str:
    with pytest.raises(BlemishError) as caught:
        Journal(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_an_added_row_is_known_and_read_again(tmp_path: Path) -> None:
    file = File("a.png", 10, 1, 5)
    with Journal(tmp_path / "deep/out") as journal:
        assert not journal.knows(file)
        line = journal.add(row())
        assert journal.knows(file)
    assert journal.file.read_bytes() == line
    assert said(line) == row()
    seen: list[dict[str, Any]] = []
    with Journal(tmp_path / "deep/out", seen.append) as journal:
        assert journal.knows(file)
        assert journal.has("a.png")
        assert not journal.has("A.png")
        assert seen == [json.loads(line)]
        assert journal.end == len(line)


@pytest.mark.parametrize("file", [File("a.png", 11, 1, 0), File("a.png", 10, 2, 0), File("b.png", 10, 1, 0)])
def test_another_size_time_or_name_is_another_file(file: File, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add(row())
        assert not journal.knows(file)


def test_a_file_that_was_only_touched_is_known_by_its_content(tmp_path: Path) -> None:
    touched = File("a.png", 10, 2, 0)
    with Journal(tmp_path) as journal:
        journal.add(row())
        assert not journal.same_content(touched, "cd" * 32)
        assert not journal.knows(touched)
        assert not journal.same_content(touched._replace(name="b.png"), CONTENT)
        assert journal.same_content(touched, CONTENT)
        assert journal.knows(touched)


REST = [b'{"id": "0', b'{"', b"{", b"\xc3", b"x", b"\0", b"\0" * 500, b'{"id": 1}', b'{"id\0\0\0\n', b"\0\n"]


@pytest.mark.parametrize("rest", REST)
def test_an_incomplete_last_line_after_a_kill_or_power_cut_is_cut_off(rest: bytes, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        first = journal.add(row())
    journal.file.write_bytes(first + rest)
    with Journal(tmp_path) as journal:
        assert journal.file.read_bytes() == first
        second = journal.add(row("b.png"))
    assert journal.file.read_bytes() == first + second


@pytest.mark.parametrize("rest", [b"{", b'{"id": "', b'{"id": "0123', b"\0", b"\0" * 500])
def test_a_first_line_that_is_incomplete_is_cut_off(rest: bytes, tmp_path: Path) -> None:
    (tmp_path / "verdicts.jsonl").write_bytes(rest)
    with Journal(tmp_path) as journal:
        line = journal.add(row())
    assert journal.file.read_bytes() == line


FOREIGN = [
    "text\n",
    "text",
    "é",
    "[1]\n",
    "{}\n",
    '{"path": "a',
    '{"path": "a", "decision": "good"}\n',
    '{"id": "1"}\n',
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(foreign: str, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    file.write_text(foreign)
    assert "line 1 " in refused(tmp_path)
    assert file.read_text() == foreign


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        lines = [journal.add(row(f"{i}.png")) for i in range(4)]
    damaged = lines[0] + lines[1][:20] + b"\n" + lines[2] + lines[3]
    journal.file.write_bytes(damaged)
    assert "line 2 " in refused(tmp_path)
    assert journal.file.read_bytes() == damaged


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path):
        assert "another `blemish watch` writes there" in refused(tmp_path)
    Journal(tmp_path).close()


def test_a_deleted_lock_file_admits_no_second_writer(tmp_path: Path) -> None:
    with Journal(tmp_path):
        (tmp_path / ".watch.lock").unlink()
        assert "another `blemish watch` writes there" in refused(tmp_path)
        assert "another `blemish watch` writes there" in refused(tmp_path)
    Journal(tmp_path).close()


def test_a_pipe_or_a_folder_in_the_place_of_the_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a/verdicts.jsonl").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b/verdicts.jsonl")
    assert "choose another --out" in refused(tmp_path / "a")
    assert "is a pipe or a device" in refused(tmp_path / "b")


def meddle(what: str, file: Path) -> str:
    """Does to the journal what somebody may do; returns how it is called."""
    other = file.with_name("other")
    if what == "delete":
        file.unlink()
    elif what == "delete its folder":
        file.parent.rename(file.parent.with_name("moved"))
    elif what == "move":
        file.rename(other)
    elif what == "replace":
        other.write_bytes(file.read_bytes())
        other.rename(file)
    elif what == "cut":
        os.truncate(file, 3)
    else:
        with file.open("ab") as appended:
            appended.write(b"x\n")
    return {"replace": "replaced", "cut": "cut off", "write": "written to"}.get(what, "deleted or moved")


@pytest.mark.parametrize("what", ["delete", "delete its folder", "move", "replace", "cut", "write"])
def test_nothing_is_written_into_a_journal_that_somebody_else_changed(what: str, tmp_path: Path) -> None:
    with Journal(tmp_path / "out") as journal:
        journal.add(row())
        journal.check()
        sentence = meddle(what, journal.file)
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
        for attempt in (journal.check, lambda: journal.add(row("b.png"))):
            with pytest.raises(BlemishError, match=sentence):
                attempt()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == kept


def test_another_time_of_change_asks_for_the_content(tmp_path: Path) -> None:
    file = File("a.png", 10, 1, 0, changed=7)
    with Journal(tmp_path) as journal:
        journal.add({**row(), "changed": 7})
        assert journal.knows(file)
        assert not journal.knows(file._replace(changed=8))
        assert journal.same_content(file._replace(changed=8), CONTENT)
        assert journal.knows(file._replace(changed=8))
    with Journal(tmp_path) as journal:
        assert journal.knows(file)
        assert not journal.knows(file._replace(changed=8))


def test_a_line_carries_its_place_in_the_log_and_starts_with_its_id(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        first, second = journal.add(row()), journal.add({**row("b.png"), "score": 0.1, "regions": [{"p": 1e-9}]})
    assert first.startswith(b'{"id": "fb2ec3ec367e2a582fbfd5677cf22381", ')
    # By hand: what the documents say that the hash is of.
    written = (
        rf'["blemish log 1","{GENESIS}",1,"2026-11-30T14:00:00.000+00:00","verdict","{{\"bytes\":10,'
        r"\"id\":\"fb2ec3ec367e2a582fbfd5677cf22381\",\"modified\":1,\"name\":\"a.png\","
        rf'\"sha256\":\"{CONTENT}\"}}"]'
    )
    assert json.loads(first)["hash"] == hashlib.sha256(written.encode()).hexdigest()
    assert (json.loads(first)["seq"], json.loads(first)["previous"]) == (1, "0" * 64)
    assert (json.loads(second)["seq"], json.loads(second)["previous"]) == (2, json.loads(first)["hash"])
    assert list(problems(read(tmp_path).entries)) == []


def test_the_chain_is_continued_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        whole = b"".join(journal.add(row(f"{i}.png")) for i in range(3))
    kept = list(read(tmp_path).entries)
    for end in range(0, len(whole), 37):
        journal.file.write_bytes(whole[:end])
        with Journal(tmp_path) as journal:
            assert journal.head.seq == whole[:end].count(b"\n")
            for i in range(journal.head.seq, 3):
                journal.add(row(f"{i}.png"))
        assert journal.file.read_bytes() == whole  # the same rows, so the same hashes
        assert list(read(tmp_path).entries) == kept


def test_a_journal_of_an_older_version_is_continued_and_what_it_held_is_covered(tmp_path: Path) -> None:
    file, older = tmp_path / "verdicts.jsonl", GOLDEN + GOLDEN.replace("a.png", "ä.png")
    file.write_text(older, "utf-8")
    before = hashlib.sha256(older.encode()).hexdigest()  # as sha256sum says of the file as it was
    assert read(tmp_path).before == (2, before)
    for name in ("c.png", "d.png"):  # over a restart
        with Journal(tmp_path) as journal:
            journal.add(row(name))
    third, fourth = (json.loads(line) for line in file.read_bytes().splitlines()[2:])
    assert (third["seq"], third["previous"]) == (3, before)
    assert (fourth["seq"], fourth["previous"]) == (4, third["hash"])
    log = read(file)
    assert list(problems(log.entries, Head(2, before), before=log.before)) == []
    text = file.read_text("utf-8")
    for tampered in (text.replace('"good"', '"anomaly"', 1), text[len(GOLDEN) :], GOLDEN + text):
        file.write_text(tampered, "utf-8")
        log = read(file)
        (sentence,) = problems(log.entries, before=log.before)
        assert "What stands before entry 3 is not what it was linked to" in sentence


def test_lines_that_an_older_version_adds_to_a_log_are_named_and_the_chain_goes_on(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add(row())
    with journal.file.open("a") as file:
        file.write(GOLDEN)
    with Journal(tmp_path) as journal:
        second = json.loads(journal.add(row("b.png")))
    assert second["seq"] == 2
    (sentence,) = problems(read(tmp_path).entries)
    assert sentence.startswith("After entry 1 stands something that is no entry")


GOLDEN = (  # a line as blemish wrote it before it recorded the time of change
    '{"id": "fb2ec3ec367e2a582fbfd5677cf22381", "time": "2025-01-01T00:00:00.000+00:00", "name": "a.png", "path": '
    '"in/a.png", "decision": "good", "score": 0.5, "threshold": 1.0, "p_value": 0.5, "regions": [], "error": null, '
    '"overlay": "overlays/a.png.jpg", "evidence": [], "counterfactual": null, "bytes": 10, "modified": 1, "sha256": "'
    + CONTENT
    + '", "bundle": "cd"}\n'
)


def test_journals_of_older_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "verdicts.jsonl").write_text(GOLDEN)
    file = File("a.png", 10, 1, 0, changed=7)
    with Journal(tmp_path) as journal:
        assert journal.knows(file)  # of an unknown time of change
        assert not journal.knows(file._replace(changed=8))  # and from then on of this one
    assert journal.file.read_text() == GOLDEN


def test_a_refused_journal_releases_its_lock(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    file.write_text("text\n")
    refused(tmp_path)
    file.unlink()
    Journal(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "choose another --out" in refused(tmp_path / "file" / "out")


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xe4r.png")
    with Journal(tmp_path) as journal:
        journal.add(row(name))
    with Journal(tmp_path) as journal:
        assert journal.knows(File(name, 10, 1, 0))


def test_identities_differ_for_all_files_and_never_change() -> None:
    file = File("a.png", 10, 1, 5)
    others = [file._replace(name="b.png"), file._replace(size=11), file._replace(modified=2)]
    identities = {identity(file, CONTENT), identity(file, "cd" * 32), *(identity(other, CONTENT) for other in others)}
    assert len(identities) == 5
    assert identity(file._replace(inode=6), CONTENT) == identity(file, CONTENT)
    assert identity(file, CONTENT) == "fb2ec3ec367e2a582fbfd5677cf22381"  # sha256sum's; receivers rely on it


def test_an_image_takes_as_few_bytes_of_memory_as_documented(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/watch.md").read_text("utf-8")
    assert "200 bytes" in text
    lines = "".join(json.dumps(row(f"line/part{i}.png", modified=i)) + "\n" for i in range(8_000))
    (tmp_path / "verdicts.jsonl").write_text(lines)
    tracemalloc.start()
    try:
        with Journal(tmp_path):
            taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 80 < taken / 8_000 < 200
