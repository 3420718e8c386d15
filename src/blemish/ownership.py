"""The mark of a folder that blemish writes: the file `.blemish`, which says what wrote it and which files in it
are its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = ".blemish"  # the file that marks a folder as written by blemish; such a folder is never read as data
LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})  # what a file manager leaves; no user's file


@dataclass(frozen=True)
class Mark:
    """The content of a folder's mark. `files` are its own files, relative to it; None where they are not known, because
    the folder is still written or the process was killed: then everything below `names` is its own."""

    kind: str
    names: tuple[str, ...] = ()
    files: frozenset[str] | None = None
    complete: bool = False

    def content(self) -> bytes:
        files = None if self.files is None else sorted(self.files)
        facts = {"kind": self.kind, "complete": self.complete, "names": self.names, "files": files}
        return json.dumps({"blemish": "wrote this folder", **facts}, indent=1).encode() + b"\n"


def mark_of(folder: Path) -> Mark | None:
    """The folder's mark; None where it has none. A damaged one is of no kind, and incomplete."""
    try:
        text = (folder / MARK).read_bytes().decode()
        content, _ = json.JSONDecoder().raw_decode(text)  # a kill may leave the end of an older mark behind it
        files = None if content["files"] is None else frozenset(map(str, content["files"]))
        return Mark(str(content["kind"]), tuple(map(str, content["names"])), files, content["complete"] is True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Mark("")


def not_own(folder: Path) -> str | None:
    """The first file below a marked folder that is not its own, relative to it; None where all are."""
    mark = mark_of(folder) or Mark("")
    if mark.files is not None:
        return next((name for name in files_in(folder) if name not in mark.files), None)
    for name in files_in(folder):
        if name.partition("/")[0] not in mark.names:
            return name
    for first in mark.names:  # such as the runs of a sweep
        if mark_of(folder / first) and (inner := not_own(folder / first)):
            return f"{first}/{inner}"
    return None


def files_in(folder: Path) -> Iterator[str]:
    """Files and links below a folder, relative to it, without marks and litter; no link is followed."""
    for top, folders, files in os.walk(folder):
        for name in sorted([*files, *(name for name in folders if Path(top, name).is_symlink())]):
            if name not in LITTER and name != MARK:
                yield Path(top, name).relative_to(folder).as_posix()


def is_empty(folder: Path) -> bool:
    """Whether no file is in it or below it, but for marks and litter."""
    return next(files_in(folder), None) is None
