"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MARK = ".blemish"  # the file that marks a folder as written by blemish; such a folder is never read as data


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, for a file or a folder: it takes the place of `target` when the block ends, and
    is removed when the block raises. What a killed process left there is removed first."""
    temporary = target.with_name(f".{target.name}.partial")
    _remove(temporary)
    try:
        yield temporary
        if target.is_dir():  # a folder cannot be replaced in one step
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_regular(path: Path) -> IO[bytes]:
    """The file, open for reading. Never waits, as opening a pipe does, and opens no device. Raises OSError for what is
    no regular file."""
    descriptor = -1
    try:
        if stat.S_ISREG(path.stat().st_mode):
            # Without waiting, because a pipe may have taken its place since.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                file, descriptor = os.fdopen(descriptor, "rb"), -1
                return file
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    raise OSError(errno.EINVAL, "is no regular file", str(path))
