"""Helpers for several tests: running the program, the real images, and writers for image files that Pillow cannot
write."""

from __future__ import annotations

import io
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from blemish.cli import train as train  # its options are made now, without the packages that tests install
from blemish.cli.app import main
from blemish.images import MAX_PIXELS, ImageError, load_image
from blemish.training.config import TrainConfig
from blemish.training.splits import Divided, divide, read_data
from blemish.types import Prediction

SHARED = Path(__file__).resolve().parents[2] / "shared"


class Output(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def blemish(*arguments: object, code: int = 0) -> Output:
    """Runs the program in this process and checks its exit code; an unexpected exception is raised here."""
    out, err, exited = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["blemish", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            exited = int(end.code or 0)
    output = Output(out.getvalue(), err.getvalue())
    assert exited == code, output
    return output


def refused(*arguments: object) -> str:
    """The sentence with which the program refuses these arguments, run in this process."""
    last = blemish(*arguments, code=2).stderr.splitlines()[-1]
    assert last.startswith("blemish: "), last
    return last.removeprefix("blemish: ")


def shared_folder(name: str) -> Path:
    """`../shared/<name>` beside the repository; skips the test if it is missing. For tests marked `real`."""
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    return folder


def write_image(path: Path, pixels: npt.ArrayLike) -> Path:
    """Writes `uint8 (H, W)` or `(H, W, 3)` in the format of the suffix, and makes the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def grey(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def predicted(score: float, anomaly_map: npt.NDArray[np.float32]) -> Prediction:
    """A prediction for one image."""
    return Prediction(scores=np.array([score], np.float32), maps=anomaly_map[None])


def divided(config: TrainConfig) -> Divided:
    """The images of a training by their use."""
    data = read_data(config.data, config.layout, pooled=config.pooled)
    return divide(data, config.split_rule, config.decision_rule, config.settings.traits)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def refusal(path: Path, *, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path, max_pixels=max_pixels)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def touch(root: Path, *names: str) -> Path:
    """Writes files that are not images, for tests that read only names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not an image")
    return root


def png(values: npt.ArrayLike, colour: int, bits: int, extra: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A PNG (ISO 15948) of `values` (H, W * channels), by colour type and bit depth 8 or 16, with extra chunks."""
    data = np.asarray(values, dtype=">u2" if bits == 16 else "u1")
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    height, width = data.shape[0], data.shape[1] // channels
    lines = b"".join(b"\0" + line.tobytes() for line in data)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def tiff(
    pixels: bytes,
    size: tuple[int, int],
    bits: Sequence[int],
    photometric: int,
    *,
    order: str = "<",
    sample_format: int = 1,
    compression: int = 1,
    extra: Sequence[tuple[int, int, int]] = (),
) -> bytes:
    """A one-strip TIFF 6.0 of raw `pixels`; `extra` are more entries (tag, type 3 or 4, value)."""
    width, height = size
    if compression == 8:  # deflate
        pixels = zlib.compress(pixels)
    count = len(bits)
    long_bits = struct.pack(f"{order}{count}H", *bits)
    formats = struct.pack(f"{order}{count}H", *[sample_format] * count)
    strip = 8
    after = strip + len(pixels) + len(pixels) % 2
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, count, bits[0] if count == 1 else after),
        (259, 3, 1, compression),
        (262, 3, 1, photometric),
        (273, 4, 1, strip),
        (277, 3, 1, count),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
        (339, 3, count, sample_format if count == 1 else after + len(long_bits)),
        *((tag, kind, 1, value) for tag, kind, value in extra),
    ]
    directory = after + len(long_bits) + len(formats)
    directory += directory % 2
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory) + pixels
    out = out.ljust(after, b"\0") + long_bits + formats
    out = out.ljust(directory, b"\0") + struct.pack(f"{order}H", len(entries))
    for tag, kind, number, value in sorted(entries):
        inline = kind == 3 and number * 2 <= 4
        body = (
            struct.pack(f"{order}HH", value, value if number == 2 else 0) if inline else struct.pack(f"{order}I", value)
        )
        out += struct.pack(f"{order}HHI", tag, kind, number) + body
    return out + b"\0\0\0\0"


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until `holds()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)
