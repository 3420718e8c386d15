"""Large images, and files that claim to be: what decoding them may take."""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish import Inspector, decoding
from blemish.decoding import PER_PIXEL, SMALL, take, turn
from blemish.images import ImageError, load_image
from tests import tiny
from tests.support import eventually, put, save

LARGE = 2 * SMALL
SIZE = 8 * 2**30  # bytes of a sparse file, which takes no disk


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the budget, in large images."""

    def set_to(images: float) -> None:
        monkeypatch.setattr(decoding, "budget", lambda: int(images * LARGE * PER_PIXEL))

    return set_to


def chunk(kind: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    """A PNG's chunk; with another size it is cut short."""
    head = struct.pack(">I", len(body) if size is None else size) + kind + body
    return head if size else head + struct.pack(">I", zlib.crc32(kind + body))


START = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
PIXELS = chunk(b"IDAT", zlib.compress(b"\0" * 72))


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("nothing.png", b""),
        ("text.png", START + chunk(b"tEXt", size=2**31 - 1)),
        ("unknown.png", START + chunk(b"abCd", size=2**31 - 1)),
        ("pixels.png", START + chunk(b"IDAT", size=2**31 - 1)),
        ("after.png", START + PIXELS + chunk(b"abCd", size=2**31 - 1)),
        ("start.jpg", b"\xff\xd8\xff"),
        ("head.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9)),
        ("riff.webp", b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8 "),
        ("blocks.gif", b"GIF89a\x08\0\x08\0\x80\0\0\0\0\0\xff\xff\xff"),
        ("far.tif", b"II*\0" + struct.pack("<I", 2**31 - 1)),
        ("tags.tif", b"II*\0\x08\0\0\0" + b"\x01\0" + struct.pack("<HHII", 256, 4, 2**31 - 1, 8)),
        ("head.bmp", b"BM" + struct.pack("<4I", 0, 0, 54, 40) + struct.pack("<iiHHIIiiII", 8, 8, 1, 24, *[0] * 6)),
    ],
)  # fmt: skip
def test_a_sparse_file_is_not_read_whole(tmp_path: Path, name: str, start: bytes) -> None:
    path = put(tmp_path / name, start)
    os.truncate(path, SIZE)
    begun = time.monotonic()
    if name == "head.bmp":  # it is one: 8 x 8 black pixels, and much behind them
        assert load_image(path).shape == (8, 8, 3)
    else:
        with pytest.raises(ImageError, match=name):
            load_image(path)
    assert time.monotonic() - begun < 10


def test_every_kind_of_image_is_read_in_bands_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 255, (37, 23, 4), np.uint8), "RGBA")
    palette = colour.convert("RGB").quantize(20)
    images = {
        "rgba.png": colour,
        "rgba.webp": colour,
        "palette.png": palette,
        **{f"{mode}.png": colour.convert(mode) for mode in ("RGB", "L", "LA", "1")},
        "cmyk.jpg": colour.convert("CMYK"),
    }
    paths = [save(tmp_path / name, image) for name, image in images.items()]
    paths.append(save(tmp_path / "seen.png", palette, transparency=3))
    whole = [load_image(path) for path in paths]
    monkeypatch.setattr("blemish.images.BAND", 50)  # two rows
    for path, expected in zip(paths, whole, strict=True):
        np.testing.assert_array_equal(load_image(path), expected)
        assert load_image(path).flags.writeable


def test_large_images_wait_for_each_other(room: Callable[[float], None]) -> None:
    """Of eight threads no more than two hold a large image at a time, and all have their turn."""
    room(2.5)
    holding, most, done = set[int](), list[int](), list[int]()

    def work(number: int) -> None:
        with turn():
            take(LARGE)
            holding.add(number)
            most.append(len(holding))
            time.sleep(0.01)
            holding.remove(number)
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(done) == list(range(8))
    assert max(most) == 2


def test_the_largest_is_not_passed_by(room: Callable[[float], None]) -> None:
    """One that is larger than the budget waits until it is alone, and those that come later wait behind it."""
    room(2)
    order, first = list[str](), threading.Event()

    def work(name: str, pixels: int) -> None:
        with turn():
            take(pixels)
            order.append(name)
            if name == "first":
                first.wait(20)

    threads = []
    for name, pixels in (("first", LARGE), ("huge", 50 * LARGE), ("last", LARGE)):
        threads.append(threading.Thread(target=work, args=(name, pixels)))
        threads[-1].start()
        eventually(lambda: order or decoding._waiting)
        time.sleep(0.05)
    assert order == ["first"]
    first.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "huge", "last"]
    assert decoding._taken == 0


def test_small_images_never_wait(room: Callable[[float], None]) -> None:
    room(1)
    with turn():
        take(LARGE)

        def small() -> None:
            with turn():
                take(SMALL)

        thread = threading.Thread(target=small)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


def test_a_turn_in_a_turn_never_waits(room: Callable[[float], None]) -> None:
    room(1)
    with turn():
        take(LARGE)
        with turn():
            take(100 * LARGE)
        assert decoding._taken == LARGE * PER_PIXEL
    assert decoding._taken == 0


def _fails() -> None:
    with turn():
        take(LARGE)
        raise ZeroDivisionError


def test_what_fails_gives_its_memory_back(room: Callable[[float], None]) -> None:
    room(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            _fails()
    assert decoding._taken == 0


def test_the_budget_is_half_of_the_memory() -> None:
    decoding.budget.cache_clear()
    assert (
        decoding.LEAST
        <= decoding.budget()
        <= max(decoding.LEAST, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    )


def test_an_inspector_takes_fewer_large_images_ahead(
    room: Callable[[float], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads on images of 2.1 million pixels, of which the budget holds two."""
    room(2.5)
    monkeypatch.setattr("blemish.inference.inspector.budget", decoding.budget)
    most = list[int]()
    real = decoding.take

    def counted(pixels: int) -> None:
        real(pixels)
        most.append(decoding._taken)

    monkeypatch.setattr("blemish.images.take", counted)
    path = tmp_path / "a.png"
    Image.new("L", (1500, 1400), 50).save(path)
    inspector = Inspector(tiny.made(tmp_path / "b"), threads=8)
    assert [look.verdict.decision for look in inspector.look_many([path] * 12)] == ["good"] * 12
    assert max(most) <= 2.5 * LARGE * PER_PIXEL
    assert inspector._ahead() == 3
    assert decoding._taken == 0


def test_a_large_image_among_small_ones_loses_none(
    room: Callable[[float], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of small images many are taken ahead; when the large one has come, so few that none may follow for a while."""
    room(2.5)
    monkeypatch.setattr("blemish.inference.inspector.budget", decoding.budget)
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("L", (8, 8), 50).save(small)
    Image.new("L", (2800, 1400), 50).save(large)
    inspector = Inspector(tiny.made(tmp_path / "b"), threads=4)
    paths = [*[small] * 3, large, *[small] * 20]
    assert [Path(look.verdict.path) for look in inspector.look_many(paths)] == paths
