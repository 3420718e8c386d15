"""What is an image of a watched folder, and what is not: links, pipes, devices, litter, blemish's own outputs."""

import os
import socket
import sys
from pathlib import Path

import pytest

from blemish.station.scan import File, Scan, is_unchanged
from tests.support import touch


def listed(folder: Path, out: Path | None = None) -> tuple[list[str], dict[str, str]]:
    scan = Scan(folder, out)
    names = [file.name for file in scan.files()]
    assert len(names) == len(set(names))
    return sorted(names), scan.skipped


def test_a_link_gives_no_second_name_to_what_is_there(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "day/1.png", "day/2.png").absolute()
    (folder / "today").symlink_to("day")
    (folder / "0.png").symlink_to("day/1.png")
    (folder / "absolute.png").symlink_to(folder / "day/2.png")
    (folder / "of a link.png").symlink_to("0.png")
    (folder / "day/back").symlink_to("../day")
    assert listed(folder) == (["day/1.png", "day/2.png"], {})
    # Also where the folder that is watched is itself behind a link.
    (tmp_path / "alias").symlink_to("in")
    assert listed(tmp_path / "alias")[0] == ["day/1.png", "day/2.png"]


def test_circles_end(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a.png", "b/c.png")
    (folder / "self").symlink_to(".")
    (folder / "b/up").symlink_to("../..")
    (folder / "x.png").symlink_to("x.png")
    (folder / "b/root").symlink_to("/")
    names, skipped = listed(folder)
    assert names == ["a.png", "b/c.png"]
    assert set(skipped) == {"self", "b/up", "b/root"}
    assert all("a link to the folder that is watched, or to one above it" in reason for reason in skipped.values())


def test_links_to_what_is_elsewhere_are_followed_once(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a.png", ".hidden/h.png")
    touch(tmp_path / "elsewhere", "b.png", "deep/c.png", "more/d.png")
    (tmp_path / "elsewhere/deep/back").symlink_to("../../in")
    (folder / "one").symlink_to("../elsewhere")
    (folder / "two").symlink_to("../elsewhere")
    (folder / "ten.png").symlink_to("../elsewhere/b.png")
    (folder / "more").symlink_to("../elsewhere/more")
    (folder / "h.png").symlink_to(".hidden/h.png")  # it has no other name here
    (folder / "i.png").symlink_to(".hidden/h.png")
    assert listed(folder)[0] == ["a.png", "h.png", "more/d.png", "one/b.png", "one/deep/c.png"]


def test_hard_links_are_images_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    assert listed(tmp_path)[0] == ["a.png", "b.png"]


def test_pipes_sockets_and_devices_are_named_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, target in {"link.png": "pipe.png", "zero.png": "/dev/zero", "other.png": "/dev/zero"}.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)  # the path of a socket may have 108 bytes
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.png")
        names, skipped = listed(tmp_path)
    assert names == ["a.png"]
    assert set(skipped) == {"pipe.png", "link.png", "zero.png", "other.png", "socket.png"}


def test_litter_and_what_blemish_wrote_are_left_out(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a.png", "@eaDir/a.png/thumb.jpg", "$RECYCLE.BIN/b.png")
    touch(folder, "run/.blemish", "run/overlays/c.jpg", "old/verdicts.jsonl", "old/overlays/d.jpg")
    out = touch(tmp_path / "out", "overlays/e.jpg")
    seen = touch(tmp_path / "seen", "verdicts.jsonl", "overlays/f.jpg")
    (folder / "overlays").symlink_to(out / "overlays")
    (folder / "e.jpg").symlink_to(out / "overlays/e.jpg")
    (folder / "others").symlink_to(seen / "overlays")
    (folder / "f.jpg").symlink_to(seen / "overlays/f.jpg")
    (folder / "above").symlink_to(seen)
    names, skipped = listed(folder, out)
    assert names == ["a.png"]
    assert set(skipped) == {"run", "old", "others", "f.jpg", "above"}


def test_what_is_too_deep_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "1/2/3/4/5/6/7/8/a.png", "1/2/3/4/5/6/7/8/9/b.png")
    names, skipped = listed(tmp_path)
    assert names == ["1/2/3/4/5/6/7/8/a.png"]
    assert skipped == {"1/2/3/4/5/6/7/8/9": "is more than 8 folders down"}


@pytest.mark.skipif(sys.platform != "linux", reason="the file system of macOS takes no other bytes")
def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"b\xe4r.png")).write_bytes(b"")
    assert listed(tmp_path)[0] == [os.fsdecode(b"b\xe4r.png")]


def test_the_time_of_change_tells_what_the_other_times_hide(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    os.utime(path, ns=(5, 5))
    (file,) = Scan(tmp_path).files()
    assert is_unchanged(tmp_path, file) is True
    path.write_bytes(b"two")
    os.utime(path, ns=(5, 5))
    (now,) = Scan(tmp_path).files()
    assert now[:4] == file[:4]
    assert now.changed > file.changed
    assert is_unchanged(tmp_path, file) is False
    assert is_unchanged(tmp_path, File("b.png", 1, 1, 1)) is None
