"""What the operating system does in one step: lock a file, rename without replacing, exchange two folders, open only
what is a regular file."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from blemish.types import BlemishError

_NOREPLACE, _EXCHANGE = 1, 2  # flags of Linux's renameat2
_MACOS = {_NOREPLACE: 4, _EXCHANGE: 2}  # the same of macOS's renamex_np
_MISSING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}  # the system, or the file system, has no such call
_AT_FDCWD = -100
LOCKS = os.name == "posix"  # whether the system has locks
TRIES = 100  # to lock a file that others move or remove, or whose number changes, as on some network file systems
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class Lock:
    """A file that this process has locked and holds open. The kernel unlocks it, however the process ends. Where there
    are no locks, as on Windows, it is not held open either: a folder with an open file could not be moved there."""

    def __init__(self, file: Path, descriptor: int) -> None:
        self._file, self._descriptor, self._status = file, descriptor, os.fstat(descriptor)
        self._closed = False
        if not LOCKS:
            os.close(descriptor)

    def holds(self, path: Path) -> bool:
        """Whether the path still is this file."""
        try:
            return not self._closed and os.path.samestat(path.lstat(), self._status)
        except OSError:
            return False

    def write(self, content: bytes) -> None:
        """Replaces the file's content in place, as another file would not be locked. A kill in between leaves the new
        content with the end of the old one behind it."""
        if not LOCKS:
            self._file.write_bytes(content)
            return
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.ftruncate(self._descriptor, len(content))
        if content:  # an empty mark after a power cut would be no mark
            os.fsync(self._descriptor)

    def close(self) -> None:
        if LOCKS and not self._closed:
            os.close(self._descriptor)
        self._closed = True


def lock_file(file: Path, target: Path) -> Lock:
    """Makes and locks a file; `target` is what the user named. Raises `BlemishError` where another process has locked
    it, and OSError where it cannot be made."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    for _ in range(TRIES):
        descriptor = os.open(file, flags, 0o666)
        free = try_lock(descriptor)
        lock = Lock(file, descriptor)
        if free and lock.holds(file):
            return lock
        lock.close()
        if not free:
            raise BlemishError(f"{target}: another process writes there; let that one end, or choose another place.")
        # It was moved or removed between opening and locking.
    raise BlemishError(f"{target}: {file.name} cannot be kept there; choose a place on another disk.")


def try_lock(descriptor: int) -> bool:
    """Locks an open file for this process; False where another one has it. True, without a lock, on Windows and on file
    systems that have none."""
    if not LOCKS:
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        return cause.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def rename(source: Path, target: Path) -> None:
    """Renames, and raises FileExistsError where the target exists, be it an empty folder."""
    if not _renamed(source, target, _NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def exchange(first: Path, second: Path) -> bool:
    """Both change places in one step; False where the system has no such step."""
    return _renamed(first, second, _EXCHANGE)


def _renamed(source: Path, target: Path, flag: int) -> bool:
    """Whether the system has the call; raises OSError where it has, and refuses."""
    failed = _system_rename(os.fsencode(source), os.fsencode(target), flag)
    if failed and failed not in _MISSING:
        raise OSError(failed, os.strerror(failed), str(target))
    return not failed


def _system_rename(source: bytes, target: bytes, flag: int) -> int:
    """The error's number, 0 for none."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        if hasattr(library, "renameat2"):
            arguments = _AT_FDCWD, source, _AT_FDCWD, target, ctypes.c_uint(flag)
            return ctypes.get_errno() if library.renameat2(*arguments) else 0
    elif sys.platform == "darwin":
        library = ctypes.CDLL(None, use_errno=True)
        if hasattr(library, "renamex_np"):
            return ctypes.get_errno() if library.renamex_np(source, target, ctypes.c_uint(_MACOS[flag])) else 0
    return errno.ENOSYS


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Gives `path` as its file to an OSError of the block that names `temporary`, or that is about the disk and names
    no file."""
    try:
        yield
    except OSError as cause:
        if (temporary and str(cause.filename) == str(temporary)) or (cause.filename is None and cause.errno in _DISK):
            cause.filename = str(path)
        raise


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
