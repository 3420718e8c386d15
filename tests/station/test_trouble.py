"""Which errors pass, and which are the image's own."""

import errno
import os
from pathlib import Path

import pytest

from blemish.images import ImageError, load_image
from blemish.station.trouble import LONGEST, passing, wait
from tests.support import put


def system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class RuntimeException(Exception):  # noqa: N818 - as onnxruntime's
    """As onnxruntime raises for everything that happens while a graph runs."""


RuntimeException.__module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        *map(system, [errno.EACCES, errno.EPERM, errno.EIO, errno.ENFILE, errno.EMFILE, errno.ESTALE, errno.ENOMEM]),
        OSError("out of memory error when reading image file"),
        RuntimeException("Non-zero status code returned while running Conv: Failed to allocate memory for requested"),
        RuntimeException("std::bad_alloc"),
        RuntimeException("CUDA failure 2: out of memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_trouble_of_the_machine_passes_also_as_the_cause_of_a_refusal(error: Exception) -> None:
    assert passing(error)
    refusal = ImageError("a.png is damaged or cut short; write or copy it again.")
    refusal.__cause__ = error
    assert passing(refusal) == passing(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("bad"),
        OSError("image file is truncated (10 bytes not processed)"),
        system(errno.EINVAL),  # a seek to before the beginning
        system(errno.ENOENT),
        RuntimeException("Got invalid dimensions for input"),
        ImageError("out of memory.png is damaged or cut short; write or copy it again."),
    ],
)
def test_what_is_the_images_own_fault_does_not(error: Exception | None) -> None:
    assert passing(error) == ""


def test_a_damaged_file_is_the_images_own_fault(tmp_path: Path) -> None:
    path = put(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert passing(caught.value) == ""


def test_the_waits_grow_and_have_an_end() -> None:
    assert [wait(tries) for tries in (1, 2, 3, 4)] == [0.5, 1, 2, 4]
    assert wait(100) == wait(10_000) == LONGEST
