"""Reads the files of a bundle, a folder or .zip, that may come from strangers: sizes first, and never more bytes than
were announced. Nothing is unpacked: no name in a .zip ever becomes a path.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from blemish.atomic import open_regular
from blemish.ownership import LITTER, MARK
from blemish.types import BlemishError

NO_PART = {MARK, "Desktop.ini", *LITTER}  # of a bundle, wherever it lies
MAX_MEMBERS = 100  # of a bundle's .zip
MAX_DIRECTORY = 16 * 2**20  # bytes of the table of contents of a .zip
# What zipfile raises on damaged files; RuntimeError: encrypted, or packed in a way that Python does not know.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
)


class BundleError(BlemishError):
    """The bundle is missing, damaged, or not one."""


@dataclass(frozen=True)
class Files:
    """The files in a folder or .zip: their sizes in bytes by name, and `read`, which gives the bytes of a file of this
    size. Raises `BundleError` where it has another."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


def shown(text: str) -> str:
    """A name from a foreign file, fit for a sentence: short, and without control characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text[:100])
    return clean + ("..." if len(text) > 100 else "")


@contextmanager
def opened(path: Path) -> Iterator[Files]:
    """The files of the folder or .zip at `path`."""
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as cause:
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise BundleError(f"{path}: no such bundle; give the folder or .zip that `blemish train` wrote.") from None
        raise BundleError(f"{path}: cannot be read ({_cause(cause)}); check the path and its permissions.") from None
    if stat.S_ISDIR(kind):
        yield _folder(path)
        return
    if not stat.S_ISREG(kind):
        raise BundleError(f"{path}: is a device or pipe, not a bundle; give what `blemish train` wrote.")
    try:
        file = path.open("rb")
    except OSError as cause:
        raise BundleError(f"{path}: cannot be read ({_cause(cause)}); check its permissions.") from None
    with file, opened_zip(file, str(path), MAX_MEMBERS) as files:
        yield files


def _folder(path: Path) -> Files:
    """Sub-folders, pipes and devices are no files, so they count as missing; links are followed."""
    sizes: dict[str, int] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except OSError:  # a link to nowhere, or to itself
                    continue
                if stat.S_ISREG(status.st_mode) and not is_litter(entry.name):
                    sizes[entry.name] = status.st_size
    except OSError as cause:
        raise BundleError(f"{path}: cannot be read ({_cause(cause)}); check its permissions.") from None

    def read(name: str) -> bytes:
        try:
            with open_regular(path / name) as file:
                return _exactly(file, sizes[name], f"{path}: {shown(name)}")
        except OSError as cause:
            raise BundleError(
                f"{path}: {shown(name)} cannot be read ({_cause(cause)}); check its permissions."
            ) from None

    return Files(sizes, read)


@contextmanager
def opened_zip(file: IO[bytes], name: str, most: int) -> Iterator[Files]:
    """The files in an open .zip of at most `most` members; `name` is for the sentences. Raises `BundleError`."""
    try:
        archive = zipfile.ZipFile(_Bounded(file))
    except _ZIP_ERRORS as cause:
        raise _damaged(name, cause) from None
    with archive:
        infos = archive.infolist()
        if len(infos) > most or len(infos) != len(set(archive.namelist())):
            raise BundleError(f"{name}: holds too many files, or two of one name; copy the bundle again.")
        members = {info.filename: info for info in infos if not (info.is_dir() or is_litter(info.filename))}
        for info in members.values():
            _check_member(info, name)

        def read(member: str) -> bytes:
            try:
                with archive.open(members[member]) as content:
                    return _exactly(content, members[member].file_size, f"{name}: {shown(member)}")
            except _ZIP_ERRORS as cause:
                raise _damaged(name, cause) from None

        yield Files({member: info.file_size for member, info in members.items()}, read)


def _check_member(info: zipfile.ZipInfo, name: str) -> None:
    problem = ""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = "packed by another method than store or deflate"
    elif info.flag_bits & 1:
        problem = "encrypted"
    elif stat.S_ISLNK(info.external_attr >> 16):
        problem = "a link"
    if problem:
        raise BundleError(f"{name}: {shown(info.filename)} is {problem}; pack the bundle with `blemish bundle --zip`.")


def without(card: str, files: Files, path: Path) -> BundleError:
    """Why there is no bundle at `path`: no file `card` at the top."""
    inner = min((name for name in files.sizes if name.endswith(f"/{card}")), default="")
    if inner:
        return BundleError(
            f"{path}: it has no {card} at its top, only {shown(inner)}; pack the bundle with `blemish bundle --zip`."
        )
    return BundleError(f"{path}: not a blemish bundle, it has no {card}; give what `blemish train` wrote.")


def is_litter(name: str) -> bool:
    """Whether a file is what blemish or an operating system leaves in folders, and no part of a bundle."""
    return name in NO_PART or name.startswith(("._", "__MACOSX/"))


class _Bounded(io.RawIOBase):
    """A file of which no more than a table of contents is read at once: one of 4 GB would fill the memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile("its table of contents is too long")
        return self._file.read(MAX_DIRECTORY if size < 0 else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _exactly(file: IO[bytes], size: int, name: str) -> bytes:
    """All of a file of `size` bytes."""
    content = io.BytesIO()  # holds a large file once, where joined pieces would hold it twice
    while content.tell() <= size and (piece := file.read(min(2**20, size + 1 - content.tell()))):
        content.write(piece)
    if content.tell() != size:
        raise BundleError(f"{name} has not the {size} bytes that it should have; copy the bundle again.")
    return content.getvalue()


def _damaged(name: str, cause: BaseException) -> BundleError:
    return BundleError(f"{name}: not a readable .zip ({shown(_cause(cause))}); copy the bundle again.")


def _cause(cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
