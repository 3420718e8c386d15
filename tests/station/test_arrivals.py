"""Which files are complete, and in what order. The tests give the clock, so that none has to wait."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.station import arrivals
from blemish.station.arrivals import Arrivals, has_end
from blemish.station.scan import File, is_unchanged
from tests.conftest import tile
from tests.support import write_image

IMAGE = tile(1)[0][:10, :12]


def coded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, kind)
    return file.getvalue()


def watcher(folder: Path, *known: str) -> Arrivals:
    return Arrivals(folder, lambda file: file.name in known, settle=1.0, give_up=10.0)


def names(files: list[File]) -> list[str]:
    return [file.name for file in files]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_complete_file_is_known_by_its_end_and_no_shorter_one_is(kind: str, tmp_path: Path) -> None:
    content, path = coded(kind), tmp_path / "a"
    path.write_bytes(content)
    assert has_end(path, len(content))
    ended = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        ended += has_end(path, length)
    # A part of a GIF may end in the two bytes of the end by chance; then the decoder decides.
    assert ended <= {"PNG": 0, "WEBP": 0, "GIF": 3, "JPEG": 0}[kind]
    for length in (0, len(content) // 2, len(content) - 12):  # a copy that is given its full length first
        path.write_bytes(content[:length].ljust(len(content), b"\0"))
        assert not has_end(path, len(content))


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_a_file_without_an_end_is_complete_when_it_has_settled(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{kind.lower()}").write_bytes(coded(kind))
    watched = watcher(tmp_path)
    assert watched.complete(100.0) == []
    assert watched.complete(100.9) == []
    assert len(watched.complete(101.0)) == 1


def test_a_file_that_grows_has_to_settle_again(tmp_path: Path) -> None:
    path, content = tmp_path / "a.png", coded("PNG")
    watched = watcher(tmp_path)
    path.write_bytes(content[:100])
    assert watched.complete(100.0) == []
    path.write_bytes(content[:200])
    assert watched.complete(100.9) == []
    assert watched.complete(101.5) == []
    path.write_bytes(content)
    assert names(watched.complete(101.6)) == ["a.png"]  # at once: its end is there


def test_a_file_that_cannot_be_decoded_is_tried_again_when_it_has_not_changed_for_long(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    watched = watcher(tmp_path)
    assert watched.complete(100.0) == []
    (file,) = watched.complete(101.0)
    assert not watched.failed(file, 101.1)
    assert watched.complete(101.2) == watched.complete(109.9) == []
    assert watched.waiting == 1
    assert watched.complete(110.0) == [file]
    assert watched.failed(file, 110.0)


def test_a_file_in_trouble_is_tried_at_growing_intervals_and_holds_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(coded("PNG"))
    watched = watcher(tmp_path)
    (file,) = watched.complete(100.0)
    assert not watched.stuck(120.0)
    assert watched.troubled(file, 100.0)  # the first time: a person is told
    (tmp_path / "b.png").write_bytes(coded("PNG"))
    assert names(watched.complete(100.4)) == ["b.png"]
    assert watched.complete(100.5)[0] == file
    assert not watched.troubled(file, 100.5)
    assert names(watched.complete(101.4)) == ["b.png"]
    assert watched.complete(101.5)[0] == file
    watched.done(next(f for f in watched.complete(101.5) if f != file))
    assert not watched.stuck(109.9)
    assert watched.stuck(110.0)
    (tmp_path / "a.png").chmod(0o600)  # such as a permission that was missing: tried at once
    assert "a.png" in names(watched.complete(101.6))
    assert not watched.troubled(file, 101.6)


def test_a_file_that_became_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    os.mkfifo(path)
    assert not has_end(path, 100)


def test_a_failure_is_forgotten_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    watched = watcher(tmp_path)
    watched.complete(100.0)
    (file,) = watched.complete(101.0)
    assert not watched.failed(file, 101.0)
    path.write_bytes(coded("PNG"))
    (whole,) = watched.complete(101.5)
    assert whole != file
    assert not watched.failed(file, 200.0)  # that was about the file before the change


def test_the_oldest_comes_first_and_then_natural_order(tmp_path: Path) -> None:
    for name, modified in [("b10.png", 5), ("b9.png", 5), ("a.png", 7), ("deep/z.png", 3)]:
        os.utime(write_image(tmp_path / name, IMAGE), ns=(modified, modified))
    assert names(watcher(tmp_path).complete()) == ["deep/z.png", "b9.png", "b10.png", "a.png"]


def test_hidden_temporary_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in (".a.png", "a.png.tmp", "a.png.part", "a.tmp", "a.txt", ".hidden/a.png", "known.png", "A.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(coded("PNG"))
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "folder.png").mkdir()
    assert names(watcher(tmp_path, "known.png").complete()) == ["A.PNG"]


def test_a_backlog_is_given_in_batches_and_files_that_wait_block_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "BATCH", 3)
    for i in range(4):  # older than the rest, and only half there
        half = tmp_path / f"half{i}.png"
        half.write_bytes(coded("PNG")[:100])
        os.utime(half, ns=(i, i))
    for i in range(7):
        os.utime(write_image(tmp_path / f"{i}.png", IMAGE), ns=(10 + i, 10 + i))
    known: set[str] = set()
    watched = Arrivals(tmp_path, lambda file: file.name in known, settle=1e6, give_up=1e6)
    seen: list[list[str]] = []
    for _ in range(10):
        seen.append(names(watched.complete()))
        known.update(seen[-1])
        assert watched.waiting <= 4 + 3 + 4
    assert [name for batch in seen for name in batch] == [f"{i}.png" for i in range(7)]
    assert max(map(len, seen)) == 3


def test_a_folder_below_that_cannot_be_listed_is_named_and_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", IMAGE)
    write_image(tmp_path / "locked/b.png", IMAGE)
    listed = os.scandir

    def refusing(path: Path) -> object:  # root may list everything
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    watched = watcher(tmp_path)
    assert names(watched.complete()) == ["a.png"]
    assert watched.scan.unlisted == {"locked": "Permission denied"}
    monkeypatch.undo()
    assert names(watched.complete()) == ["a.png", "locked/b.png"]
    assert watched.scan.unlisted == {}


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        watcher(tmp_path / "gone").complete()


def test_a_file_that_takes_the_name_of_another_is_another_file(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", np.zeros((4, 4)))
    (file,) = watcher(tmp_path).complete()
    assert is_unchanged(tmp_path, file) is True
    other = write_image(tmp_path / "b.png", np.zeros((4, 4)))
    os.utime(other, ns=(file.modified, file.modified))
    other.rename(path)
    assert path.stat().st_size == file.size
    assert is_unchanged(tmp_path, file) is False
    path.unlink()
    assert is_unchanged(tmp_path, file) is None
