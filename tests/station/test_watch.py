"""A real bundle watches a real folder, on a thread of this process. No test waits longer than for what must happen."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish import BlemishError, Inspector
from blemish.atomic import open_regular
from blemish.station.arrivals import Arrivals
from blemish.station.journal import Journal
from blemish.station.watch import UNJUDGED, WatchConfig, watch
from tests.conftest import tile
from tests.support import eventually, write_image

NEVER = 1000.0  # seconds


@pytest.fixture(scope="module")
def inspector(run: Path) -> Inspector:
    return Inspector(run, threads=1)


class Watched:
    """What a watcher has written, and of what it has notified, so far."""

    def __init__(self, out: Path) -> None:
        self.file = out / "verdicts.jsonl"
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()
        self.thread = threading.current_thread()

    @property
    def rows(self) -> list[dict[str, Any]]:
        text = self.file.read_text("utf-8") if self.file.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def names(self) -> list[str]:
        return [row["name"] for row in self.rows]


@contextmanager
def watching(inspector: Inspector, folder: Path, out: Path, **options: Any) -> Iterator[Watched]:
    """Watches while the block runs; what the watcher raises fails the test."""
    config = WatchConfig(folder, out, **{"settle": NEVER, "give_up": NEVER, "poll": 0.01, **options})
    stop, watched, raised = threading.Event(), Watched(out), list[BaseException]()

    def run() -> None:
        try:
            with Journal(out) as journal:
                watched.counts = watch(inspector, config, journal, stop, lambda *_: None, watched.notes.append)
        except BaseException as error:
            raised.append(error)

    thread = watched.thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watched
    finally:
        if not config.once:
            stop.set()
        thread.join(30)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def once(inspector: Inspector, folder: Path, out: Path, **options: Any) -> Watched:
    with watching(inspector, folder, out, **{"settle": 0.0, "give_up": 0.0, "once": True, **options}) as watched:
        pass
    return watched


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


def stamped(path: Path, number: int, second: int, spot: tuple[int, int] | None = None) -> Path:
    """A tile, changed last at that second."""
    write_image(path, tile(number, spot)[0])
    os.utime(path, ns=(second * 10**9, second * 10**9))
    return path


def test_a_row_is_the_verdict_of_inspect_and_names_its_file(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    path = stamped(folder / "deep/a.png", 901, 1_000_000_000, (20, 30))
    watched = once(inspector, folder, tmp_path / "out")
    (row,) = watched.rows
    verdict = json.loads(json.dumps(inspector.inspect(path).to_json()))
    assert {key: row[key] for key in verdict} == verdict
    assert row["decision"] == "anomaly"
    assert (row["name"], row["bytes"]) == ("deep/a.png", path.stat().st_size)
    assert row["modified"] == 1_000_000_000 * 10**9
    assert row["bundle"] == inspector.card.sha256
    assert row["time"].endswith("+00:00")
    assert row["evidence"]
    for drawn in (row["overlay"], row["inpainted"], row["evidence"][0]["file"]):
        assert (tmp_path / "out" / drawn).is_file()
    assert watched.counts == {"anomaly": 1}


def test_without_evidence_none_is_written(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    stamped(folder / "a.png", 901, 1, (20, 30))
    (row,) = once(inspector, folder, tmp_path / "out", evidence=False).rows
    assert row["decision"] == "anomaly"
    assert row["evidence"] == []
    assert not (tmp_path / "out/evidence").exists()


def test_the_order_is_by_time_then_by_name_and_a_second_run_repeats_nothing(
    inspector: Inspector, folder: Path, tmp_path: Path
) -> None:
    for name, second in [("a.png", 9), ("b10.png", 5), ("b9.png", 5), ("c.png", 1)]:
        stamped(folder / name, second, second)
    out = tmp_path / "out"
    assert once(inspector, folder, out).names == ["c.png", "b9.png", "b10.png", "a.png"]
    stamped(folder / "new.png", 20, 2)
    assert once(inspector, folder, out).names == ["c.png", "b9.png", "b10.png", "a.png", "new.png"]


def test_a_half_written_file_waits_and_nothing_waits_for_it(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    content = write_image(tmp_path / "whole.png", tile(900)[0]).read_bytes()
    slow = folder / "slow.png"
    slow.write_bytes(content[: len(content) // 2])
    with watching(inspector, folder, tmp_path / "out") as watched:
        for i in range(3):
            stamped(folder / f"{i}.png", i, 2_000_000_000 + i)
            eventually(lambda i=i: watched.names[-1:] == [f"{i}.png"])  # type: ignore[misc]
        assert "slow.png" not in watched.names
        with slow.open("ab") as file:
            file.write(content[len(content) // 2 :])
        eventually(lambda: len(watched.names) == 4)
    assert watched.rows[-1]["name"] == "slow.png"
    assert watched.rows[-1]["decision"] == "good"
    assert watched.counts == {"good": 4}


def test_files_renamed_into_place_are_seen_at_once(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    with watching(inspector, folder, tmp_path / "out") as watched:
        for hidden, name in [(".a.png", "a.png"), ("b.png.tmp", "b.png"), ("c.part", "deep/c.png")]:
            content = write_image(tmp_path / "whole.png", tile(len(name))[0]).read_bytes()
            (folder / hidden).write_bytes(content)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / hidden).rename(folder / name)
            eventually(lambda name=name: watched.names[-1:] == [name])  # type: ignore[misc]
    assert len(watched.names) == 3


def test_a_broken_image_is_an_error_only_after_giving_up(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    whole = stamped(tmp_path / "whole.png", 900, 1).read_bytes()
    for name, content in [("text.png", b"no image"), ("empty.png", b""), ("cut.png", whole[:-100])]:
        (folder / name).write_bytes(content)
    stamped(folder / "good.png", 901, 2_000_000_000)
    out = tmp_path / "out"
    with watching(inspector, folder, out, settle=0.01) as watched:
        eventually(lambda: watched.names == ["good.png"])
        stamped(folder / "good2.png", 902, 2_000_000_001)
        eventually(lambda: watched.names == ["good.png", "good2.png"])  # listed again, and still waiting
    again = once(inspector, folder, out, settle=0.01, give_up=0.1)
    assert {row["name"]: row["decision"] for row in again.rows[2:]} == dict.fromkeys(
        ("text.png", "empty.png", "cut.png"), "error"
    )
    assert again.counts == {"error": 3}
    assert all(row["name"] in row["error"] and row["overlay"] is None for row in again.rows[2:])
    (folder / "cut.png").write_bytes(whole)  # completed after all: another file
    assert once(inspector, folder, out).rows[5]["decision"] == "good"


def test_an_overwritten_file_is_a_new_image_and_a_touched_one_is_not(
    inspector: Inspector, folder: Path, tmp_path: Path
) -> None:
    path, out = stamped(folder / "a.png", 900, 1), tmp_path / "out"
    first = path.read_bytes()
    with watching(inspector, folder, out) as watched:
        eventually(lambda: len(watched.rows) == 1)
        (folder / ".new").write_bytes(write_image(tmp_path / "b.png", tile(901, (20, 30))[0]).read_bytes())
        (folder / ".new").rename(path)
        eventually(lambda: len(watched.rows) == 2)
        os.utime(path, ns=(5, 5))  # as copying tools do when they have written
        stamped(folder / "c.png", 902, 6)
        eventually(lambda: len(watched.rows) == 3)
        (folder / ".new").write_bytes(first)  # what it was at first is another image again
        (folder / ".new").rename(path)
        eventually(lambda: len(watched.rows) == 4)
    assert watched.names == ["a.png", "a.png", "c.png", "a.png"]
    assert [row["decision"] for row in watched.rows] == ["good", "anomaly", "good", "good"]
    assert len({row["id"] for row in watched.rows}) == 4
    overlays = [row["overlay"] for row in watched.rows]
    assert overlays[0] == "overlays/a.png.jpg"
    assert len(set(overlays)) == 4
    assert all((out / overlay).is_file() for overlay in overlays)
    assert once(inspector, folder, out).counts == {}


def test_watching_resumes_when_a_folder_comes_back(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    stamped(folder / "a.png", 900, 1)
    with watching(inspector, folder, tmp_path / "out") as watched:
        eventually(lambda: len(watched.rows) == 1)
        shutil.move(folder, tmp_path / "elsewhere")
        eventually(lambda: any("waiting until it is back" in sentence for sentence in watched.notes))
        stamped(tmp_path / "elsewhere/b.png", 901, 2)
        shutil.move(tmp_path / "elsewhere", folder)
        eventually(lambda: len(watched.rows) == 2)
    assert watched.names == ["a.png", "b.png"]
    assert [sentence.rpartition(": ")[2] for sentence in watched.notes[1:]] == ["is back."]


def test_a_file_that_was_removed_and_put_back_is_not_inspected_twice(
    inspector: Inspector, folder: Path, tmp_path: Path
) -> None:
    path = stamped(folder / "a.png", 900, 1)
    with watching(inspector, folder, tmp_path / "out") as watched:
        eventually(lambda: len(watched.rows) == 1)
        path.rename(tmp_path / "a.png")
        stamped(folder / "b.png", 901, 2)
        eventually(lambda: len(watched.rows) == 2)
        (tmp_path / "a.png").rename(path)
        stamped(folder / "c.png", 902, 3)
        eventually(lambda: len(watched.rows) == 3)
    assert watched.names == ["a.png", "b.png", "c.png"]


def test_a_file_without_an_end_mark_is_inspected_when_it_has_settled(
    inspector: Inspector, folder: Path, tmp_path: Path
) -> None:
    stamped(folder / "a.bmp", 900, 1)
    with watching(inspector, folder, tmp_path / "out", settle=0.05) as watched:
        eventually(lambda: watched.names == ["a.bmp"])
    with watching(inspector, folder, tmp_path / "never") as watched:
        stamped(folder / "b.png", 901, 2)
        eventually(lambda: watched.names == ["b.png"])


def test_an_image_that_changes_while_it_is_inspected_is_inspected_again(
    inspector: Inspector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, after = stamped(folder / "a.png", 900, 1), tile(901, (20, 30))[0]
    predict = Inspector.predict

    def overwriting(self: Inspector, *arguments: Any) -> Any:
        monkeypatch.undo()
        write_image(path, after)
        return predict(self, *arguments)

    monkeypatch.setattr(Inspector, "predict", overwriting)
    watched = once(inspector, folder, tmp_path / "out")
    assert [row["decision"] for row in watched.rows] == ["anomaly"]
    assert watched.rows[0]["bytes"] == path.stat().st_size


def test_a_name_that_is_too_long_for_an_overlay_gets_a_shorter_one(
    inspector: Inspector, folder: Path, tmp_path: Path
) -> None:
    names = ["x" * 250 + ".png", "é" * 123 + ".png", f"{'d' * 250}/{'e' * 250}.png", "a.png", "a.png.jpg/b.png"]
    for i, name in enumerate(names):
        stamped(folder / name, 900 + i, i + 1, (20, 30) if i == 0 else None)
    watched = once(inspector, folder, tmp_path / "out")
    assert watched.names == names
    assert watched.notes == []
    written = [row["overlay"] for row in watched.rows] + [watched.rows[0]["evidence"][0]["file"]]
    assert len(set(written)) == 6
    assert all((tmp_path / "out" / file).is_file() for file in written)


def test_an_image_that_cannot_be_drawn_gets_its_verdict(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for i, name in enumerate(["a.png", "b.png", "c.png"]):
        stamped(folder / name, 900 + i, i + 1, (20, 30))
    (out / "overlays/a.png.jpg").mkdir(parents=True)
    (out / "evidence/b.png.jpg").mkdir(parents=True)
    watched = once(inspector, folder, out)
    assert [row["decision"] for row in watched.rows] == ["anomaly"] * 3
    assert [row["overlay"] for row in watched.rows] == [None, "overlays/b.png.jpg", "overlays/c.png.jpg"]
    assert [len(row["evidence"]) > 0 for row in watched.rows] == [False, False, True]
    assert ["a.png: " in watched.notes[0], "b.png: " in watched.notes[1]] == [True, True]
    assert ["without images" in watched.notes[0], "without evidence" in watched.notes[1]] == [True, True]
    assert len(watched.notes) == 2


def test_a_full_disk_ends_it_before_a_line_is_written(
    inspector: Inspector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped(folder / "a.png", 900, 1)

    def full(*_: Any) -> None:
        raise BlemishError("no space left") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("blemish.inference.overlay.save", full)
    with pytest.raises(BlemishError, match="no space left"):
        once(inspector, folder, tmp_path / "out")
    assert (tmp_path / "out/verdicts.jsonl").read_bytes() == b""


def test_pipes_hold_nothing_and_are_named_once(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "1.png")
    (folder / "3.png").symlink_to("/dev/zero")
    stamped(folder / "2.png", 900, 1)
    with watching(inspector, folder, tmp_path / "out", settle=0.01) as watched:
        eventually(lambda: watched.names == ["2.png"])
        stamped(folder / "4.png", 901, 2)
        eventually(lambda: watched.names == ["2.png", "4.png"])
    assert len(watched.notes) == 2
    assert all("no image file; it is left out" in note for note in watched.notes)


def test_a_file_that_becomes_a_pipe_before_it_is_opened_holds_nothing(
    inspector: Inspector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stamped(folder / "a.png", 900, 1)
    listed = Arrivals.complete

    def swapping(self: Arrivals) -> Any:
        monkeypatch.undo()
        batch = listed(self)
        path.unlink()
        os.mkfifo(path)
        return batch

    monkeypatch.setattr(Arrivals, "complete", swapping)
    assert once(inspector, folder, tmp_path / "out").names == []


TROUBLE = [MemoryError(), PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error")]


@pytest.mark.parametrize("error", TROUBLE)
@pytest.mark.parametrize("where", ["blemish.station.watch.open_regular", "blemish.images.open_regular"])
def test_trouble_that_passes_is_told_once_and_never_recorded(
    error: Exception, where: str, inspector: Inspector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped(folder / "a.png", 900, 1)
    stamped(folder / "b.png", 901, 2)
    there = threading.Event()

    def opened(path: Path) -> Any:
        if path.name == "a.png" and not there.is_set():
            raise error
        return open_regular(path)

    monkeypatch.setattr(where, opened)
    monkeypatch.setattr("blemish.station.trouble.FIRST", 0.01)
    with watching(inspector, folder, tmp_path / "out", give_up=NEVER) as watched:
        eventually(lambda: watched.names == ["b.png"])
        stamped(folder / "c.png", 902, 3)
        eventually(lambda: watched.names == ["b.png", "c.png"])
        there.set()
        eventually(lambda: watched.names == ["b.png", "c.png", "a.png"])
    assert watched.rows[-1]["decision"] == "good"
    assert len(watched.notes) == 1
    assert "a.png: cannot be inspected now" in watched.notes[0]


@pytest.mark.parametrize("error", TROUBLE)
def test_once_ends_although_the_trouble_does_not(
    error: Exception, inspector: Inspector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped(folder / "a.png", 900, 1)
    stamped(folder / "b.png", 901, 2)
    predict = Inspector.predict

    def failing(self: Inspector, image: Any) -> Any:
        if np.array_equal(image, tile(900)[0]):
            raise error
        return predict(self, image)

    monkeypatch.setattr(Inspector, "predict", failing)
    watched = once(inspector, folder, tmp_path / "out")
    assert watched.names == ["b.png"]
    assert watched.counts == {"good": 1, UNJUDGED: 1}


def test_an_error_that_nobody_foresaw_is_recorded_after_giving_up(
    inspector: Inspector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped(folder / "a.png", 900, 1)

    def failing(*_: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Inspector, "predict", failing)
    (row,) = once(inspector, folder, tmp_path / "out", give_up=0.1).rows
    assert row["decision"] == "error"
    assert "(ZeroDivisionError: division by zero)" in row["error"]


def test_other_content_of_the_same_size_and_time_is_a_new_image(
    inspector: Inspector, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stamped(folder / "a.bmp", 900, 1)
    size = (folder / "a.bmp").stat().st_size
    with watching(inspector, folder, out, settle=0.01) as watched:
        eventually(lambda: len(watched.rows) == 1)
        stamped(folder / "a.bmp", 901, 1, (20, 30))
        eventually(lambda: len(watched.rows) == 2)
    stamped(folder / "a.bmp", 902, 1)  # also while nobody watches
    assert once(inspector, folder, out).counts == {"good": 1}
    (folder / "a.bmp").chmod(0o600)  # another time of change, the same content
    assert once(inspector, folder, out).counts == {}
    assert [row["decision"] for row in watched.rows] == ["good", "anomaly", "good"]
    assert {(row["bytes"], row["modified"]) for row in watched.rows} == {(size, 10**9)}


def test_a_journal_that_somebody_takes_away_ends_it(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    stamped(folder / "a.png", 900, 1)

    def taken_away() -> None:
        with watching(inspector, folder, tmp_path / "out") as watched:
            eventually(lambda: watched.rows)
            (tmp_path / "out").rename(tmp_path / "moved")
            stamped(folder / "b.png", 901, 2)
            eventually(lambda: not watched.thread.is_alive())

    with pytest.raises(BlemishError, match="was deleted or moved away"):
        taken_away()
    assert not (tmp_path / "out").exists()
    assert len((tmp_path / "moved/verdicts.jsonl").read_text().splitlines()) == 1


def test_after_stop_no_other_image_is_begun(inspector: Inspector, folder: Path, tmp_path: Path) -> None:
    for i in range(30):
        stamped(folder / f"{i}.png", i, i)
    stop, seen = threading.Event(), list[str]()
    with Journal(tmp_path / "out") as journal:
        config = WatchConfig(folder, tmp_path / "out", settle=NEVER, give_up=NEVER)

        def deliver(verdict: Any, line: bytes) -> None:
            assert journal.file.read_bytes().endswith(line)  # it is written before it is delivered
            seen.append(verdict.path)
            stop.set()

        counts = watch(inspector, config, journal, stop, deliver, seen.append)
    begun = [path for path in seen if path.endswith(".png")]
    assert begun == [str(folder / f"{i}.png") for i in range(len(begun))]
    assert 1 <= counts.total() == len(begun) < 30


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"folder": "missing"}, "is not a folder"),
        ({"folder": "in/a.txt"}, "is not a folder"),
        ({"out": "in"}, "would be inspected themselves"),
        ({"out": "in/deep/out"}, "would be inspected themselves"),
        ({"folder": "out/overlays/in"}, "would be inspected themselves"),
        ({"settle": 5.0, "give_up": 1.0}, "--give-up"),
    ],
)
def test_what_cannot_be_watched_is_refused(options: dict[str, Any], reason: str, folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("")
    (tmp_path / "out/overlays/in").mkdir(parents=True)
    config = {"folder": "in", "out": "out", **options}
    with pytest.raises(BlemishError, match=reason):
        WatchConfig(**{key: tmp_path / value if key in ("folder", "out") else value for key, value in config.items()})
