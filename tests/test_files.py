"""What blemish writes: whole or not at all, and never over what is not its own."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blemish import atomic, files
from blemish.files import check_file, kept, replacing, staged, write_text
from blemish.ownership import MARK, Mark, mark_of, not_own
from blemish.types import BlemishError


def run_at(target: Path, text: str, *, overwrite: bool = False) -> None:
    """A run of two files."""
    with staged(target, "run", overwrite=overwrite) as folder:
        (folder / "sub").mkdir()
        (folder / "sub/x").write_text(text)
        (folder / "y").write_text(text)


def text_of(target: Path) -> str:
    """The text of both files, which must be one run's."""
    texts = {(target / name).read_text() for name in ("sub/x", "y")}
    assert len(texts) == 1
    return texts.pop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_staged_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "a/b/run"
    with staged(target, "run") as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert names(target.parent) == ["run"]
    assert names(target) == [MARK, "x"]
    mark = mark_of(target)
    assert mark is not None
    assert (mark.kind, mark.complete, mark.files) == ("run", True, frozenset({"x"}))

    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "c/d/run", "run"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a"]  # not even the folders above it


def test_only_a_run_whose_files_are_all_ours_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "run"
    run_at(target, "old")
    with pytest.raises(BlemishError, match="--overwrite"):
        run_at(target, "new")
    assert text_of(target) == "old"
    run_at(target, "new", overwrite=True)
    assert text_of(target) == "new"
    assert names(tmp_path) == ["run"]

    for place in ("notes.txt", "sub/notes.txt", "more/notes.txt"):
        (target / place).parent.mkdir(exist_ok=True)
        (target / place).write_text("mine")
        with pytest.raises(BlemishError, match=rf"holds {place}, which is not its own"):
            run_at(target, "newer", overwrite=True)
        assert (target / place).read_text() == "mine"
        (target / place).unlink()
    (target / "link").symlink_to(tmp_path)
    with pytest.raises(BlemishError, match="holds link"):
        run_at(target, "newer", overwrite=True)
    (target / "link").unlink()
    (target / ".DS_Store").touch()  # no user's file
    (target / MARK).write_text('{"kind": ')  # damaged: nothing is known to be ours
    with pytest.raises(BlemishError, match="is not its own"):
        run_at(target, "newer", overwrite=True)
    assert names(tmp_path) == ["run"]
    run_at(tmp_path / "other", "")
    with (
        pytest.raises(BlemishError, match=r"of another kind \(run, not images\)"),
        staged(tmp_path / "other", "images", overwrite=True),
    ):
        pass


def test_another_folder_is_never_touched(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(BlemishError, match="not written by this version"):
            run_at(mine, "", overwrite=overwrite)
        with (
            pytest.raises(BlemishError, match="not written by this version"),
            kept(mine, "w", ["y"], overwrite=overwrite),
        ):
            pass
    assert names(mine) == ["precious"]
    hidden = tmp_path / ".run.partial"  # where the run would be made
    hidden.mkdir()
    (hidden / "precious").write_text("x")
    with pytest.raises(BlemishError, match=r"\.run\.partial: is in the way"):
        run_at(tmp_path / "run", "")
    assert names(hidden) == ["precious"]
    assert names(tmp_path) == [".run.partial", "mine"]


def test_what_is_no_place_to_write_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/below").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "bundle/more").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name in ("card.json", "model.onnx"):
        (tmp_path / "bundle" / name).touch()
    monkeypatch.chdir(tmp_path / "here/below")
    refused = {
        "": "no name",
        ".": "no name",
        "..": "no name",
        "/": "no name",
        " ": "no name",
        "x/..": "no name",
        "../../here": "the current folder, or one above it",
        "../../link": "is a link",
        "../../file": "no folder",
        "../../file/x": "is no folder",
        "../../bundle/x": "in the bundle",
        "../../bundle/more/x": "in the bundle",
        "../../data": "is read by this command",
        "/proc/x": r"may not write|No such file|Permission",
    }
    reads = [tmp_path / "data"]
    for text, why in refused.items():
        with pytest.raises((BlemishError, OSError), match=why), staged(Path(text), "run", reads=reads):
            pytest.fail(f"the work began for {text!r}")
        with pytest.raises((BlemishError, OSError), match=why), kept(Path(text), "run", [], reads=reads):
            pytest.fail(f"the work began for {text!r}")
    assert names(tmp_path) == ["bundle", "data", "file", "here", "link"]
    long = Path("x" * 255)  # the longest name that there is, whose temporary name would be longer
    run_at(long, "1")
    assert text_of(long) == "1"


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(BlemishError, match="The current folder has been deleted"), staged(tmp_path / "run", "run"):
        pass
    monkeypatch.chdir(tmp_path)


def test_data_inside_a_run_are_not_deleted_with_it(tmp_path: Path) -> None:
    run_at(tmp_path / "run", "old")
    (tmp_path / "run/data").mkdir()
    with (
        pytest.raises(BlemishError, match=r"holds .*data, which is read"),
        staged(tmp_path / "run", "run", overwrite=True, reads=[tmp_path / "run/data"]),
    ):
        pass
    assert (tmp_path / "run/data").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("appears", ["folder", "empty", "file", "link", "foreign file in it"])
def test_what_appears_during_the_work_stays_and_so_does_the_work(overwrite: bool, appears: str, tmp_path: Path) -> None:
    target = tmp_path / "run"
    (tmp_path / "run-2").touch()  # is not free
    if appears == "foreign file in it":
        if not overwrite:
            return
        run_at(target, "old")
    if appears == "empty" and overwrite:
        return  # may be replaced

    def work() -> None:
        with staged(target, "run", overwrite=overwrite) as folder:
            (folder / "x").write_text("new")
            if appears == "file":
                target.touch()
            elif appears == "link":
                target.symlink_to("nowhere")
            else:
                target.mkdir(exist_ok=True)
                if appears != "empty":
                    (target / "precious").write_text("mine")

    with pytest.raises(BlemishError, match=r"The result is in .*run-3, since .*run has changed"):
        work()
    assert (tmp_path / "run-3/x").read_text() == "new"
    assert os.path.lexists(target)
    assert (target / "precious").exists() == ("fo" in appears)
    assert names(tmp_path) == ["run", "run-2", "run-3"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with staged(target, "run") as folder:
        (folder / "x").write_text("first")
        with pytest.raises(BlemishError, match="another process writes there"):
            run_at(target, "second")
        assert (folder / "x").read_text() == "first"
    with kept(tmp_path / "seen", "inspection", ["v"]) as seen:
        (seen.path / "v").write_text("first")
        for overwrite, resume in (True, False), (False, True):
            with (
                pytest.raises(BlemishError, match="another process writes there"),
                kept(tmp_path / "seen", "inspection", ["v"], overwrite=overwrite, resume=resume),
            ):
                pytest.fail("both write")
        assert names(tmp_path) == ["run", "seen"]
    assert (tmp_path / "seen/v").read_text() == "first"
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("first")
        with pytest.raises(BlemishError, match="another process writes there"), replacing(tmp_path / "file"):
            pytest.fail("both write")
    assert (tmp_path / "file").read_text() == "first"


DRIVER = """
import os, shutil, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from blemish import atomic, files
from test_files import run_at, text_of
target = Path({folder!r}) / "run"
if {two_steps}:
    atomic._system_rename = lambda *_: 38  # ENOSYS
os.fsync = lambda _: None  # which matters to a power cut only
ours = {{files.__file__, atomic.__file__}}
if {overwrite}:
    run_at(target, "old")
step = ends = 0
while not ends:
    step += 1
    child = os.fork()
    if child == 0:
        count = 0
        def trace(frame, event, argument):
            global count
            if frame.f_code.co_filename in ours and event in ("line", "return"):
                count += 1
                if count == step:
                    os._exit(9)  # as kill -9 does: nothing is cleaned up
            return trace
        sys.settrace(trace)
        run_at(target, "new", overwrite={overwrite})
        sys.settrace(None)
        os._exit(0)
    ends = os.waitpid(child, 0)[1] == 0
    if target.exists():
        before = text_of(target)
    else:
        before = "moved" if {overwrite} else "none"
    try:
        run_at(target, "next")  # without --overwrite: what is whole must be in its place now, and stay
        after = text_of(target)
    except files.BlemishError as refusal:
        after = text_of(target)
        assert "--overwrite" in str(refusal), refusal
    assert sorted(os.listdir(target.parent)) in (["run"], [".run.partial", "run"]), os.listdir(target.parent)
    print(before, after)
    run_at(target, "old", overwrite=True)
    assert text_of(target) == "old" and os.listdir(target.parent) == ["run"], os.listdir(target.parent)
    if not {overwrite}:
        shutil.rmtree(target)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process at each line")
@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_any_line_leaves_the_old_or_the_new_one_whole(
    overwrite: bool, two_steps: bool, tmp_path: Path
) -> None:
    code = DRIVER.format(
        tests=str(Path(__file__).parent), folder=str(tmp_path), two_steps=two_steps, overwrite=overwrite
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = [tuple(line.split()) for line in done.stdout.splitlines()]
    assert len(outcomes) > 50  # lines
    if overwrite:
        allowed = {("old", "old"), ("new", "new")}
        if two_steps:  # for a moment it is in .run.old, from where the next call brings it back
            allowed |= {("moved", "old"), ("moved", "new")}
    else:
        allowed = {("none", "next"), ("none", "new"), ("new", "new")}
    assert set(outcomes) <= allowed
    assert {before for before, _ in outcomes} >= ({"old", "new"} if overwrite else {"none", "new"})


def test_a_kept_folder_is_marked_from_the_start_and_says_what_is_its_own(tmp_path: Path) -> None:
    target = tmp_path / "seen"
    with kept(target, "inspection", ["v", "overlays"]) as folder:
        (target / "v").write_text("1")
        running = mark_of(target)
        folder.adopted.add("v")
    assert running is not None
    assert running == Mark("inspection", ("v", "overlays"))
    assert mark_of(target) == Mark("inspection", ("v", "overlays"), frozenset({"v"}), complete=True)
    with pytest.raises(BlemishError, match="--overwrite"), kept(target, "inspection", ["v"]):
        pass
    with pytest.raises(BlemishError, match="another kind"), kept(target, "watch", ["v"], resume=True):
        pass
    (target / "notes").touch()
    with pytest.raises(BlemishError, match="holds notes"), kept(target, "inspection", ["v"], overwrite=True):
        pass
    (target / "notes").unlink()
    with kept(target, "inspection", ["v", "overlays"], overwrite=True):
        assert names(target) == [MARK]  # nothing of the earlier one is left among the new
        (target / "v").write_text("2")
        (target / MARK).rename(tmp_path / "as a kill leaves it")
    (tmp_path / "as a kill leaves it").rename(target / MARK)
    (target / MARK).write_bytes(Mark("inspection", ("v", "overlays")).content())
    with kept(target, "inspection", ["v", "overlays"], overwrite=True):
        assert names(target) == [MARK]
    with pytest.raises(RuntimeError), kept(tmp_path / "new", "inspection", ["v"]):
        raise RuntimeError
    assert names(tmp_path) == ["seen"]  # nothing was written, so nothing stays


def test_a_kept_folder_is_resumed(tmp_path: Path) -> None:
    with kept(tmp_path / "w", "watch", ["v"], resume=True):
        (tmp_path / "w/v").write_text("1")
    with kept(tmp_path / "w", "watch", ["v"], resume=True) as folder:
        assert (folder.path / "v").read_text() == "1"
    (tmp_path / "empty/folders").mkdir(parents=True)
    with kept(tmp_path / "empty", "watch", ["v"], resume=True):
        pass
    assert names(tmp_path / "empty") == [MARK, "folders"]
    (tmp_path / "older").mkdir()
    (tmp_path / "older/v").touch()  # without a mark, but known by what is in it
    with kept(tmp_path / "older", "watch", ["v"], resume=True, foreign=lambda path: not (path / "v").exists()):
        pass
    assert names(tmp_path / "older") == [MARK, "v"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "page"
    (tmp_path / ".page.partial").write_text("what a kill left, which is longer")
    write_text(file, "one")
    assert file.read_text() == "one"

    def fail() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_text() == "one"
    assert names(tmp_path) == ["page"]
    with pytest.raises(BlemishError, match="is a folder"):
        write_text(tmp_path, "x")
    write_text(tmp_path / ("x" * 255), "long")


def test_what_blemish_adds_to_a_run_is_the_runs_own(tmp_path: Path) -> None:
    run_at(tmp_path / "run", "1")
    write_text(tmp_path / "run/page", "later")
    run_at(tmp_path / "run", "2", overwrite=True)
    assert names(tmp_path / "run") == [MARK, "sub", "y"]


def test_a_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    check_file(file, "ours")
    file.write_text("<html> ours")
    check_file(file, "ours")
    file.write_text("<html> mine")
    with pytest.raises(BlemishError, match="is something else"):
        check_file(file, "ours")
    with pytest.raises(BlemishError, match="folder or device"):
        check_file(tmp_path, "ours")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BlemishError, match="folder or device"):
        check_file(tmp_path / "pipe", "ours")


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "page"
    with pytest.raises(OSError, match="No space left") as error, replacing(file), Path("/dev/full").open("w") as full:
        full.write("x")
    assert error.value.filename == str(file)
    with pytest.raises(OSError, match="File too large") as error, replacing(file) as temporary:
        raise OSError(27, "File too large", str(temporary))
    assert error.value.filename == str(file)


def test_without_the_systems_help_folders_are_exchanged_in_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_system_rename", lambda *_: 38)  # ENOSYS
    run_at(tmp_path / "run", "old")
    run_at(tmp_path / "run", "new", overwrite=True)
    assert text_of(tmp_path / "run") == "new"
    assert names(tmp_path) == ["run"]
    assert json.loads((tmp_path / "run" / MARK).read_text())["kind"] == "run"


def test_another_process_that_comes_first_between_check_and_lock_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, lock = tmp_path / "seen", files._lock

    def late(folder: Path, named: Path) -> atomic.Lock:
        monkeypatch.setattr(files, "_lock", lock)
        with kept(target, "inspection", ["v"]) as first:
            (target / "v").write_text("first")
            first.adopted.add("v")
        return lock(folder, named)

    monkeypatch.setattr(files, "_lock", late)
    with pytest.raises(BlemishError, match="--overwrite"), kept(target, "inspection", ["v"]):
        pytest.fail("writes over the first one's")
    assert (target / "v").read_text() == "first"


def test_what_was_written_when_an_inspection_was_interrupted_is_its_own(tmp_path: Path) -> None:
    def interrupted() -> None:
        with kept(tmp_path / "seen", "inspection", ["v", "overlays"]) as folder:
            (folder.path / "v").touch()
            folder.adopted.add("v")
            (folder.path / "overlays").mkdir()
            (folder.path / "overlays/of a thread that was faster").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with kept(tmp_path / "seen", "inspection", ["v", "overlays"], overwrite=True):
        assert names(tmp_path / "seen") == [MARK]


def test_a_mark_that_a_power_cut_emptied_does_not_stop_a_watch(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 80):
        (tmp_path / "w").mkdir(exist_ok=True)
        (tmp_path / "w/v").touch()
        (tmp_path / "w" / MARK).write_bytes(content)
        with kept(tmp_path / "w", "watch", ["v"], resume=True, foreign=lambda _: False):
            pass
        assert mark_of(tmp_path / "w") == Mark("watch", ("v",), None, complete=True)
        with pytest.raises(BlemishError, match="another kind"), kept(tmp_path / "w", "sweep", ["v"], resume=True):
            pass


def test_an_empty_folder_of_the_users_stays_when_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine/sub").mkdir(parents=True)
    with pytest.raises(RuntimeError), kept(tmp_path / "mine", "inspection", ["v"]):
        raise RuntimeError
    assert names(tmp_path / "mine") == ["sub"]


def refusing(number: int, *places: Path) -> Callable[[bytes, bytes, int], int]:
    """The system's rename where these places cannot be moved."""
    really = atomic._system_rename

    def rename(source: bytes, target: bytes, flag: int) -> int:
        moved = {Path(os.fsdecode(name)) for name in (source, target)}
        return number if moved & set(places) else really(source, target, flag)

    return rename


def test_a_result_is_never_lost_because_a_folder_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, partial = tmp_path / "run", tmp_path / ".run.partial"
    run_at(run, "old")
    monkeypatch.setattr(atomic, "_system_rename", refusing(errno.EXDEV, run))  # a lower layer of a container's disk
    with pytest.raises(BlemishError, match=r"The result is in .*run-2, since .*run cannot be replaced: Invalid cross"):
        run_at(run, "new", overwrite=True)
    assert (text_of(run), text_of(tmp_path / "run-2")) == ("old", "new")
    monkeypatch.setattr(atomic, "_system_rename", refusing(errno.EACCES, partial))
    with pytest.raises(BlemishError, match=r"The result is in .*\.run\.partial, since"):
        run_at(run, "newer", overwrite=True)
    assert (text_of(run), text_of(partial)) == ("old", "newer")


@pytest.mark.parametrize("two_steps", [False, True])
def test_what_comes_into_the_old_folder_while_it_is_replaced_stays(
    two_steps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = files._exchange

    def late(partial: Path, target: Path) -> None:
        (target / "mine").write_text("x")
        exchange(partial, target)

    if two_steps:
        monkeypatch.setattr(atomic, "_system_rename", lambda *_: errno.ENOSYS)
    run_at(tmp_path / "run", "old")
    monkeypatch.setattr(files, "_exchange", late)
    with pytest.raises(BlemishError, match=r"is new, and what was there before is in .*run-2, as mine has come into"):
        run_at(tmp_path / "run", "new", overwrite=True)
    assert (text_of(tmp_path / "run"), text_of(tmp_path / "run-2")) == ("new", "old")
    assert (tmp_path / "run-2/mine").read_text() == "x"
    with kept(tmp_path / "seen", "inspection", ["v"]):
        pass
    with (
        pytest.raises(BlemishError, match=r"before is in .*seen-2, as mine has"),
        kept(tmp_path / "seen", "inspection", ["v"], overwrite=True),
    ):
        pass
    assert names(tmp_path) == ["run", "run-2", "seen", "seen-2"]


def test_a_file_in_what_a_kill_left_stays(tmp_path: Path) -> None:
    left = tmp_path / ".run.partial"
    run_at(tmp_path / "run", "new")
    run_at(tmp_path / "old", "old")
    (tmp_path / "old").rename(left)  # as a kill between the swap and the removal leaves it
    (left / "mine").write_text("x")
    with pytest.raises(BlemishError, match="is in the way"):
        run_at(tmp_path / "run", "newer", overwrite=True)
    assert (text_of(tmp_path / "run"), (left / "mine").read_text()) == ("new", "x")


def test_a_kept_folder_that_cannot_be_moved_is_emptied_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "seen"
    with kept(target, "inspection", ["v"]) as folder:
        (target / "v").touch()
        folder.adopted.add("v")
    monkeypatch.setattr(atomic, "_system_rename", refusing(errno.EBUSY, target))  # a volume of a container's
    with kept(target, "inspection", ["v"], overwrite=True):
        assert names(target) == [MARK]
        assert names(tmp_path) == ["seen"]


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_without_locks_nothing_is_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where an open file and its folder cannot be moved or removed."""
    monkeypatch.setattr(atomic, "LOCKS", False)
    monkeypatch.setattr(atomic, "_system_rename", lambda *_: errno.ENOSYS)
    before = open_files()
    with staged(tmp_path / "run", "run") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/x").write_text("old")
        (folder / "y").write_text("old")
        assert open_files() == before
    run_at(tmp_path / "run", "new", overwrite=True)
    write_text(tmp_path / "run/page", "text")
    with kept(tmp_path / "seen", "inspection", ["v"]) as seen:
        assert open_files() == before
        (seen.path / "v").touch()
    assert text_of(tmp_path / "run") == "new"
    mark = mark_of(tmp_path / "run")
    assert mark is not None
    assert mark.files == frozenset({"sub/x", "y", "page"})
    assert names(tmp_path) == ["run", "seen"]


def test_a_zip_in_a_run_is_the_runs_own_and_a_mark_of_another_user_stops_no_report(tmp_path: Path) -> None:
    run_at(tmp_path / "run", "1")
    with replacing(tmp_path / "run/bundle.zip") as temporary:
        temporary.write_bytes(b"x")
    assert not_own(tmp_path / "run") is None
    (tmp_path / "run" / MARK).unlink()
    (tmp_path / "run" / MARK).mkdir()  # as root, who may write every file, the next best that cannot be opened
    write_text(tmp_path / "run/page", "text")
    assert (tmp_path / "run/page").read_text() == "text"
