import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from blemish import BlemishError
from blemish.station.journal import Journal, identity
from blemish.station.scan import File

CONTENT = "ab" * 32  # a SHA-256


def row(name: str = "a.png", size: int = 10, modified: int = 1, content: str = CONTENT) -> dict[str, Any]:
    file = File(name, size, modified, 0)
    return {"id": identity(file, content), "name": name, "bytes": size, "modified": modified, "sha256": content}


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
    assert json.loads(line) == row()
    seen: list[dict[str, Any]] = []
    with Journal(tmp_path / "deep/out", seen.append) as journal:
        assert journal.knows(file)
        assert journal.has("a.png")
        assert not journal.has("A.png")
        assert seen == [row()]
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


@pytest.mark.parametrize("rest", [b'{"id": "0', b'{"', b"\0" * 500, b'{"id": 1}\n'[:-1], b'{"id\0\0\0\n'])
def test_an_incomplete_last_line_after_a_kill_or_power_cut_is_cut_off(rest: bytes, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        first = journal.add(row())
    journal.file.write_bytes(first + rest)
    with Journal(tmp_path) as journal:
        assert journal.file.read_bytes() == first
        second = journal.add(row("b.png"))
    assert journal.file.read_bytes() == first + second


@pytest.mark.parametrize("foreign", ["text\n", "text", '{"path": "a.png", "decision": "good"}\n', '{"id": "1"}\n'])
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
