"""What is in a watched folder now: its images with their state, each once, and what is left out, with the reason.

The rules are those of `blemish.listing`. Unlike it, a scan gives the files one after the other, so that a folder of a
million images takes no memory, and goes on where a folder below cannot be listed.

- Only regular files are images. Pipes, sockets and devices are named, and never opened.
- A link gives an image only where it leads to one that is not listed already: what is really in the folder comes first,
  then links to folders, then links to files, in natural order. So loops end.
- Hard links are not links here: each name is an image of its own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blemish.listing import DEPTH, has_suffix, is_hidden, is_litter, is_own, natural

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # since it was listed; a link to nowhere, or to itself


class File(NamedTuple):
    """An image as it was when it was listed; `name` is relative to the folder, with forward slashes."""

    name: str
    size: int  # bytes
    modified: int  # ns since 1970
    inode: int  # changes when another file is renamed to this name
    changed: int = 0  # ns since 1970: the last change of content, name or rights, which no program can set back


class Scan:
    """Scans of the folder `root`, without what is in the folder `out`."""

    def __init__(self, root: Path, out: Path | None = None) -> None:
        self.root, self.out = root, out
        self.unlisted: dict[str, str] = {}  # what could not be listed in the last scan: name -> cause
        self.skipped: dict[str, str] = {}  # what was left out although somebody may expect it: name -> reason
        self._searched: set[tuple[int, int]] = set()  # device and inode of folders
        self._links: list[tuple[str, int]] = []  # name, and levels of folders below it
        self._own: dict[Path, bool] = {}  # folders of which it is known whether blemish wrote them

    def files(self) -> Iterator[File]:
        """The images that are there now. Raises OSError where the folder itself cannot be listed."""
        self.unlisted.clear()
        self.skipped.clear()
        self._searched.clear()
        self._links.clear()
        self._own.clear()
        root = Path(os.path.realpath(self.root))
        out = Path(os.path.realpath(self.out)) if self.out else None
        yield from self._search("", DEPTH)
        files: list[str] = []
        while self._links:  # folders behind links may hold further links
            links, self._links = sorted(self._links, key=lambda link: natural(link[0])), []
            for name, levels in links:
                path = self.root / name
                target = Path(os.path.realpath(path))
                try:
                    folder = stat.S_ISDIR(path.stat().st_mode)
                except OSError as cause:
                    self._note(name, cause)
                    continue
                if out and target.is_relative_to(out):
                    continue
                # Of what blemish wrote, the images lie in a folder below it.
                if self._is_own(target.parent) or (not folder and self._is_own(target.parent.parent)):
                    self._skip(name, "leads to what blemish wrote")
                elif not folder:
                    files.append(name)
                elif root.is_relative_to(target):
                    self._skip(name, "is a link to the folder that is watched, or to one above it")
                elif levels < 0:
                    self._skip(name, f"is more than {DEPTH} folders down")
                else:
                    yield from self._below(name, levels)
        linked: set[tuple[int, int]] = set()
        for name in files:
            if has_suffix(name):
                yield from self._linked(name, linked)

    def _search(self, name: str, levels: int) -> Iterator[File]:
        """The images in one folder, and in its folders; its links are kept for later."""
        folder = self.root / name
        place = folder.stat()
        if (place.st_dev, place.st_ino) in self._searched:
            return
        if name and self._is_own(folder):
            self._skip(name, "was written by blemish")
            return
        if place.st_ino:  # some file systems have no inodes
            self._searched.add((place.st_dev, place.st_ino))
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name) or is_litter(entry.name):
                    continue
                inner = f"{name}/{entry.name}" if name else entry.name
                try:
                    if entry.is_symlink():
                        self._links.append((inner, levels - 1))
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(inner)
                    elif has_suffix(entry.name):
                        yield from self._file(inner, entry.stat(follow_symlinks=False))
                except OSError as cause:
                    self._note(inner, cause)
        for inner in folders:
            if levels:
                yield from self._below(inner, levels - 1)
            else:
                self._skip(inner, f"is more than {DEPTH} folders down")

    def _below(self, name: str, levels: int) -> Iterator[File]:
        try:
            yield from self._search(name, levels)
        except OSError as cause:
            self._note(name, cause)

    def _linked(self, name: str, linked: set[tuple[int, int]]) -> Iterator[File]:
        """The image behind a link to a file, unless it is listed already."""
        try:
            status = (self.root / name).stat()
            target = Path(os.path.realpath(self.root / name))
            place = target.parent.stat()
            listed = has_suffix(target.name) and not is_hidden(target.name) and not is_litter(target.name)
        except OSError as cause:
            self._note(name, cause)
            return
        inode = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and status.st_ino:
            if inode in linked or (listed and (place.st_dev, place.st_ino) in self._searched):
                return
            linked.add(inode)
        yield from self._file(name, status)

    def _file(self, name: str, status: os.stat_result) -> Iterator[File]:
        if stat.S_ISREG(status.st_mode):
            yield File(name, *state(status))
        else:
            self._skip(name, "is a pipe, a socket or a device, no image file")

    def _is_own(self, folder: Path) -> bool:
        """Whether blemish wrote this folder, or the watch itself writes there; not where it cannot be listed."""
        if folder not in self._own:
            try:
                with os.scandir(folder) as entries:
                    own = is_own(folder, {entry.name for entry in entries if not has_suffix(entry.name)})
                self._own[folder] = own or bool(self.out and self.out.exists() and self.out.samefile(folder))
            except OSError:
                return False
        return self._own[folder]

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason

    def _note(self, name: str, cause: OSError) -> None:
        if cause.errno not in _GONE:
            self.unlisted[name] = cause.strerror or str(cause)


def state(status: os.stat_result) -> tuple[int, int, int, int]:
    """`File`'s fields after the name."""
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def is_unchanged(root: Path, file: File) -> bool | None:
    """Whether the file is still as it was listed; None where it is gone."""
    try:
        return state((root / file.name).stat()) == file[1:]
    except OSError as cause:
        return None if cause.errno in _GONE else False
