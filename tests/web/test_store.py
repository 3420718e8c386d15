"""Files under their hash: whole, once, and nowhere else."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from blemish.web.config import Folder
from blemish.web.store import Store, ending_of, sha256


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (b"\x89PNG\r\n\x1a\n....", ".png"),
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"GIF89a", ".gif"),
        (b"BM....", ".bmp"),
        (b"II*\0", ".tif"),
        (b"MM\0*", ".tif"),
        (b"RIFF\1\2\3\4WEBP", ".webp"),
        (b"RIFF\1\2\3\4WAVE", ""),
        (b"<svg onload=alert(1)>", ""),
        (b"", ""),
    ],
)
def test_an_ending_comes_from_the_bytes(content: bytes, ending: str) -> None:
    assert ending_of(content) == ending


def test_what_is_put_is_there_once(tmp_path: Path) -> None:
    store, digest = Store(Folder(tmp_path)), sha256(b"content")
    place, new = store.put(b"content", digest, ".png")
    again, not_new = store.put(b"content", digest, ".png")
    assert (place, new, not_new) == (again, True, False)
    assert place == tmp_path / "images" / digest[:2] / f"{digest}.png"
    assert place.read_bytes() == b"content"


def test_a_file_that_a_kill_cut_off_is_written_again(tmp_path: Path) -> None:
    store, digest = Store(Folder(tmp_path)), sha256(b"content")
    place, _ = store.put(b"content", digest, ".png")
    place.write_bytes(b"con")
    assert store.put(b"content", digest, ".png") == (place, True)
    assert place.read_bytes() == b"content"


@pytest.mark.parametrize(("digest", "ending"), [("../" * 21 + "x", ".png"), ("a" * 64, "/../x"), ("A" * 64, ".png")])
def test_nothing_else_is_a_place(tmp_path: Path, digest: str, ending: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        Store(Folder(tmp_path)).image(digest, ending)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("blemish.web.store.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Store(Folder(tmp_path)).put(b"content", sha256(b"content"), ".png")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
