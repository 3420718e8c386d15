"""Images known by their content."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blemish.data import content
from blemish.data.content import FRESH, fingerprint, identified, preload, refuse_changed
from blemish.images import ImageError, decode
from blemish.types import BlemishError, Sample
from tests.support import write_image


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    random = np.random.default_rng(2)
    files = [write_image(tmp_path / f"{i}.bmp", random.integers(0, 256, (6, 8, 3))) for i in range(4)]
    return [Sample(file, file.name, "good") for file in files]


def swap(path: Path, *, age: int = 0) -> None:
    """Other content of the same size, with the same time of change where nothing else is asked for."""
    before, old = path.stat(), path.read_bytes()
    path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - age))


def test_the_fingerprint_is_that_of_the_files_bytes(samples: list[Sample]) -> None:
    for sample in samples:
        assert fingerprint(sample) == hashlib.sha256(sample.path.read_bytes()).hexdigest()
    old = fingerprint(samples[0])
    swap(samples[0].path)
    assert fingerprint(samples[0]) != old


def test_an_old_file_is_read_once_and_again_when_it_changed(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = content._read

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(content, "_read", counted)
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 2 * FRESH)  # the files are older than that
    path = samples[0].path
    first = [fingerprint(samples[0]) for _ in range(3)]
    assert len(read) == 1
    time.sleep(0.02)  # a tick of the file system's clock
    swap(path)
    assert fingerprint(samples[0]) not in first
    assert len(read) == 2


def test_pixels_have_a_fingerprint_too() -> None:
    wide, high = (Sample(Path("a"), "a", pixels=np.zeros(shape, np.uint8)) for shape in ((2, 4, 3), (4, 2, 3)))
    assert fingerprint(wide) != fingerprint(high)
    assert fingerprint(wide) == fingerprint(replace(wide, name="b", pixels=np.zeros((2, 4, 3), np.uint8)))


def test_a_file_that_changed_is_refused_and_one_with_new_links_is_not(samples: list[Sample], tmp_path: Path) -> None:
    known = [identified(sample) for sample in samples]
    os.link(samples[1].path, tmp_path / "backup.bmp")  # changes the inode's time, as chmod and touch do
    samples[1].path.touch()
    refuse_changed(known)
    swap(samples[2].path)
    with pytest.raises(BlemishError, match=r"2\.bmp changed during training; leave the images alone"):
        refuse_changed(known)
    samples[2].path.unlink()
    with pytest.raises(ImageError, match=r"2\.bmp cannot be read \(No such file"):
        refuse_changed(known)


def test_preloaded_samples_hold_the_pixels_of_the_bytes_that_were_hashed(samples: list[Sample]) -> None:
    held = preload(samples, 4 * 6 * 8 * 3)
    for before, after in zip(samples, held, strict=True):
        assert after.pixels is not None
        np.testing.assert_array_equal(after.pixels, decode(before))
        assert after.sha256 == fingerprint(before)
    old = fingerprint(samples[0])
    swap(samples[0].path)
    assert fingerprint(held[0]) == old
    refuse_changed(held)  # what was learned is in memory
    too_many = preload(samples, 4 * 6 * 8 * 3 - 1)
    assert all(sample.pixels is None and sample.sha256 for sample in too_many)
    assert preload([], 0) == []


def test_a_file_that_changes_between_its_hash_and_its_pixels_is_refused(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, first = threading.Lock(), [samples[3].path]

    def changing(sample: Sample) -> np.ndarray:
        with lock:
            if sample.path in first:
                first.clear()
                swap(sample.path)
        return decode(sample)

    monkeypatch.setattr(content, "decode", changing)
    with pytest.raises(BlemishError, match=r"3\.bmp changed during training"):
        preload(samples, 10**6)
