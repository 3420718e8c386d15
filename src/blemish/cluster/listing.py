"""Which images a SOURCE names: a folder, a glob, a bucket's prefix, or a table with a column of paths or URIs.

They come one at a time and are not held, so that ten million take little more memory than a thousand. The rules of
`blemish.listing` hold: hidden files, litter, what blemish wrote and other formats are left out, and counted.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from blemish.cluster.folders import Found, Walk, in_order, matching
from blemish.cluster.places import LOCAL, Place, place, reason_of, split_uri, uri_of, without_options
from blemish.cluster.tables import is_table, rows_of
from blemish.listing import Reason, is_own, no_image, passed_over
from blemish.types import BlemishError

_OWN = {"plan.json", "manifest.parquet"}  # this command's; a bucket has no mark of `blemish.ownership`


class Entry(NamedTuple):
    """An image to be inspected. `source` is what it belongs to, such as a line or a camera: the first folder below
    SOURCE, or what the table says."""

    uri: str
    bytes: int | None = None
    source: str = ""


@dataclass
class Listed:
    """The images of a SOURCE, to be gone through once; `left_out` counts what was passed over (a folder as one),
    complete after that."""

    entries: Iterator[Entry]
    left_out: Counter[Reason] = field(default_factory=Counter)


def listed(source: str, column: str = "") -> Listed:
    """The images of a SOURCE; `column` is that of a table's paths (without: the first one of `tables.COLUMNS` that it
    has). An existing folder or file is that, whatever else its name could mean.

    Raises `BlemishError` where SOURCE is missing, is of no such kind or cannot be listed; also while they are gone
    through.
    """
    found = Listed(iter(()))
    scheme, path = split_uri(source)
    folder = scheme == LOCAL and Path(path).is_dir()
    if is_table(without_options(source)[0]) and not folder:
        found.entries = (Entry(*row) for row in rows_of(place(source), column))
    elif column:
        raise BlemishError(
            f"--column is about a table of paths, and {source} is none; give a .parquet or .csv, or omit it."
        )
    elif scheme != LOCAL:
        found.entries = _bucket(place(source), found.left_out)
    elif folder:
        found.entries = _entries(Walk(str(Path(path).resolve()), found.left_out).images())
    elif Path(path).exists():
        found.entries = _entries(iter([(str(Path(path).resolve()), "")]))
    elif glob.has_magic(path):
        found.entries = _entries(matching(path, found.left_out))
    else:
        raise BlemishError(f"{source}: there is no such file or folder; check the path.")
    return found


def _entries(found: Iterator[Found]) -> Iterator[Entry]:
    for path, source in found:
        try:
            size = os.stat(path).st_size  # noqa: PTH116  a Path for each of ten million would take its time
        except (OSError, ValueError):
            size = None  # reading it says what is wrong
        yield Entry(uri_of(path), size, os.fsencode(source).decode(errors="backslashreplace"))


def _bucket(where: Place, left_out: Counter[Reason]) -> Iterator[Entry]:
    """The images below a bucket's prefix, listed folder by folder: pyarrow holds one folder's names at a time. A prefix
    that is an object's key is that object."""
    system, root = where.system()
    scheme = split_uri(where.uri)[0]
    waiting = [root]
    while waiting:
        here = waiting.pop()
        source = here[len(root) :].strip("/").partition("/")[0]
        inside = []
        for info in in_order(_infos(system, scheme, here, left_out, top=here == root), lambda one: one.base_name):
            if info.type == fs.FileType.Directory:
                if reason := passed_over(info.base_name):
                    left_out[reason] += 1
                else:
                    inside.append(info.path)
            elif reason := no_image(info.base_name):
                left_out[reason] += 1
            else:
                yield Entry(f"{scheme}://{info.path}", info.size, source)
        waiting.extend(reversed(inside))


def _infos(system: fs.FileSystem, scheme: str, here: str, left_out: Counter[Reason], *, top: bool) -> list[fs.FileInfo]:
    """What is directly in one folder of a bucket; nothing of one that blemish wrote."""
    try:
        infos: list[fs.FileInfo] = system.get_file_info(fs.FileSelector(here, allow_not_found=top))
        if not infos and top:
            infos = [info for info in [system.get_file_info(here)] if info.type == fs.FileType.File]
            if not infos:
                raise BlemishError(f"{scheme}://{here}: there is nothing; check bucket and prefix.")
    except (OSError, pa.ArrowException) as cause:
        raise BlemishError(
            f"{scheme}://{here}: cannot be listed ({reason_of(cause)}); check its name, your access and options."
        ) from None
    if any(info.path == here and info.type == fs.FileType.Directory for info in infos):  # it would be its own folder
        raise BlemishError(
            f"{scheme}://{here}: holds keys with an empty name between two slashes, which pyarrow cannot read; rename "
            "them, or give the prefixes beside it one by one."
        )
    # `is_own` would look for a bundle on this machine.
    names = {info.base_name for info in infos if no_image(info.base_name)} - {"bundle"}
    if not top and (is_own(here, names) or names >= _OWN):
        left_out["own-output"] += 1
        return []
    return infos
