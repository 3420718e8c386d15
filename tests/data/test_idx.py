"""The idx reader: files made by hand, real ones, and every kind of damage."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from blemish.data.idx import LARGEST, holds_idx, read_idx, read_split
from blemish.types import BlemishError
from tests.support import shared_folder

SIX = b"\0\0\x08\x03" + struct.pack(">III", 2, 1, 3) + bytes([1, 2, 3, 250, 251, 252])


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_values_by_hand(tmp_path: Path, packed: bool) -> None:
    # Compression is detected by content, so the name does not matter.
    values = read_idx(put(tmp_path / "any-name", gzip.compress(SIX, mtime=0) if packed else SIX))
    assert values.dtype == np.uint8
    assert values.tolist() == [[[1, 2, 3]], [[250, 251, 252]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file"),
        (b"\x89PNG and more", "no idx file"),
        (b"\0\0\x0d\x01" + struct.pack(">If", 1, 0.5), "type 13"),
        (b"\0\0\x08\x00", "1 to 3 dimensions"),
        (b"\0\0\x08\x04" + bytes(16), "1 to 3 dimensions"),
        (SIX[:9], "1 to 3 dimensions"),
        (b"\0\0\x08\x03" + struct.pack(">III", 0, 28, 28), "none or too many"),
        (b"\0\0\x08\x03" + struct.pack(">III", *[2**32 - 1] * 3), "none or too many"),
        (b"\0\0\x08\x01" + struct.pack(">I", LARGEST + 1), "none or too many"),
        (SIX[:-1], "5 of 6 values"),
        (SIX + b"\0", "more than the 6 values"),
        # Without a time stamp, which would give the test cases other names in another process.
        (gzip.compress(SIX, mtime=0)[:-9], "damaged or cut short"),
        (gzip.compress(SIX, mtime=0)[:-8] + bytes(8), "damaged or cut short"),  # checksum
        (b"\x1f\x8b" + bytes(30), "damaged or cut short"),
        (gzip.compress(SIX[:-1], mtime=0), "5 of 6 values"),
    ],
)
def test_damaged_files_are_refused_with_their_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = put(tmp_path / "train-images-idx3-ubyte", content)
    with pytest.raises(BlemishError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gzip_bomb_is_not_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "bomb.gz", gzip.compress(SIX + bytes(200_000_000), 1, mtime=0))
    asked: list[int] = []
    plain = gzip.GzipFile.read

    def counted(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(-1 if size is None else size)
        return plain(file, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(BlemishError, match="more than"):
        read_idx(path)
    assert min(asked) > 0
    assert sum(asked) == 4 + 12 + 6 + 1


def test_splits_under_all_their_names(tmp_path: Path) -> None:
    assert not holds_idx(tmp_path)
    put(tmp_path / "t10k-images.idx3-ubyte.gz", gzip.compress(SIX, mtime=0))
    assert holds_idx(tmp_path)
    with pytest.raises(BlemishError, match=r"t10k-labels-idx1-ubyte \(or its .gz\) is missing"):
        read_split(tmp_path, "test")
    labels = b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes([7, 9])
    put(tmp_path / "t10k-labels-idx1-ubyte", labels)
    test = read_split(tmp_path, "test")
    assert test.images.shape == (2, 1, 3)
    assert test.labels.tolist() == [7, 9]
    put(tmp_path / "t10k-labels-idx1-ubyte", labels[:7] + b"\x01\x07")
    with pytest.raises(BlemishError, match="1 labels for the 2 images"):
        read_split(tmp_path, "test")
    put(tmp_path / "t10k-labels-idx1-ubyte", SIX)
    with pytest.raises(BlemishError, match="3 dimensions instead of 1"):
        read_split(tmp_path, "test")


def test_a_missing_folder_holds_no_idx_files(tmp_path: Path) -> None:
    assert not holds_idx(tmp_path / "none")
    with pytest.raises(BlemishError, match="cannot be read"):
        read_idx(tmp_path)


@pytest.mark.real
def test_real_digits() -> None:
    folder = shared_folder("data/mnist-idx")
    train, test = read_split(folder, "train"), read_split(folder, "test")
    assert train.images.shape == (8000, 28, 28)
    assert test.images.shape == (1000, 28, 28)
    # Independent of the reader: the bytes behind the headers, counted and summed.
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert int(test.images.sum(dtype=np.int64)) == sum(raw[16:])
    assert np.bincount(test.labels).tolist() == [100] * 10
