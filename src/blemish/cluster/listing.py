"""Which images a SOURCE names: a folder, a glob, a bucket's prefix, or a table with a column of paths or URIs.

Nothing is held of what has been listed, so that ten million images take no more memory than a thousand; only a folder
with fewer than `SORTED` entries is sorted. The rules of `blemish.listing` hold: hidden files, litter, what blemish
wrote and other formats are left out, and counted. A link is followed unless it leads back into the folder.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

from blemish.cluster.places import LOCAL, Place, place, split_uri, uri_of, without_options
from blemish.listing import OTHER_FORMATS, Reason, ending, has_suffix, is_hidden, is_litter, is_own_folder, natural
from blemish.types import BlemishError

SORTED = 100_000  # entries of a folder that are sorted in memory
ROWS = 65_536  # rows of a table that are read at once
COLUMNS = ("uri", "path", "file", "filename", "image", "image_path")
T = TypeVar("T")


class Entry(NamedTuple):
    """An image to be inspected. `source` is what it belongs to, such as a line or a camera: the first folder below
    SOURCE, or what the table says."""

    uri: str
    bytes: int | None = None
    source: str = ""


@dataclass
class Listed:
    """The images of a SOURCE, to be gone through once; `left_out` counts what was passed over, complete after that."""

    entries: Iterator[Entry]
    left_out: Counter[Reason] = field(default_factory=Counter)


def listed(source: str, column: str = "") -> Listed:
    """The images of a SOURCE; `column` is that of a table's paths (without: the first one of COLUMNS that it has).

    Raises `BlemishError` where SOURCE is missing, is of no such kind or cannot be listed; also while they are gone
    through.
    """
    found = Listed(iter(()))
    scheme, path = split_uri(source)
    bare = without_options(source)[0]
    if bare.casefold().endswith((".parquet", ".csv")):
        found.entries = _table(place(source), column)
    elif column:
        raise BlemishError(
            f"--column is about a table of paths, and {source} is none; give a .parquet or .csv, or omit it."
        )
    elif scheme != LOCAL:
        found.entries = _bucket(place(source), found.left_out)
    elif Path(path).is_dir():
        root = str(Path(path).resolve())
        found.entries = _folder(root, "", found.left_out)
    elif Path(path).exists():
        found.entries = iter([_entry(str(Path(path).resolve()), "")])
    elif glob.has_magic(path):
        found.entries = _glob(path, found.left_out)
    else:
        raise BlemishError(f"{source}: there is no such file or folder; check the path.")
    return found


def _entry(path: str, source: str) -> Entry:
    try:
        size = os.stat(path).st_size  # noqa: PTH116  a Path for each of ten million would take its time
    except (OSError, ValueError):
        size = None  # reading it says what is wrong
    return Entry(uri_of(path), size, uri_of(source))


def _ordered(entries: Iterable[T], name: Any) -> Iterator[T]:
    """In natural order, where they are few enough."""
    rest = iter(entries)
    first = list(islice(rest, SORTED))
    return chain(sorted(first, key=lambda one: natural(name(one))) if len(first) < SORTED else first, rest)


def _reason(name: str) -> Reason | None:
    """Why a file of this name is left out; None for an image."""
    if is_hidden(name) or is_litter(name):
        return "hidden" if is_hidden(name) else "litter"
    if has_suffix(name):
        return None
    return "other-format" if ending(name) in OTHER_FORMATS else "no-image"


def _folder(root: str, source: str, left_out: Counter[Reason]) -> Iterator[Entry]:
    """The images below a folder; those in a folder of it have that one's name as `source`."""
    waiting, seen = [(root, source)], {root}
    while waiting:
        here, source = waiting.pop()
        inside: list[tuple[str, str]] = []
        try:
            with os.scandir(here) as scanned:
                for entry in _ordered(scanned, lambda one: one.name):
                    yield from _scanned(entry, root, source, inside, seen, left_out)
        except OSError as cause:
            raise BlemishError(f"{here}: cannot be listed ({cause.strerror}); check who may read it.") from None
        waiting.extend(reversed(inside))


def _scanned(
    entry: os.DirEntry[str],
    root: str,
    source: str,
    inside: list[tuple[str, str]],
    seen: set[str],
    left_out: Counter[Reason],
) -> Iterator[Entry]:
    """An entry of a folder, if it is an image; a folder to search is added to `inside`, with its source."""
    target = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
    if entry.is_dir():
        reason: Reason | None = None
        if is_hidden(entry.name) or is_litter(entry.name):
            reason = "hidden" if is_hidden(entry.name) else "litter"
        elif entry.is_symlink() and (target in seen or _below(target, root) or _below(root, target)):
            reason = "linked"
        elif is_own_folder(target):
            reason = "own-output"
        if reason:
            left_out[reason] += 1
        else:
            inside.append((target if entry.is_symlink() else entry.path, source or entry.name))
            if entry.is_symlink():
                seen.add(target)
        return
    reason = _reason(entry.name)
    if reason is None and entry.is_symlink() and _below(target, root) and Path(target).is_file():
        reason = "linked" if _reason(os.path.basename(target)) is None else None  # noqa: PTH119
    if reason:
        left_out[reason] += 1
    else:
        yield _entry(entry.path, source)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _glob(pattern: str, left_out: Counter[Reason]) -> Iterator[Entry]:
    """What a pattern matches: images, and folders of them."""
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    root, matched = str(fixed.resolve()), False
    for name in glob.iglob(pattern, recursive=True):  # noqa: PTH207  Path.glob would hold them all
        path = os.path.abspath(name)  # noqa: PTH100  not resolved: a link keeps its name
        matched = True
        if Path(path).is_dir():
            if "**" not in pattern:  # else what is in it is matched by itself
                yield from _folder(path, _first(path, root), left_out)
        elif reason := _reason(os.path.basename(path)):  # noqa: PTH119
            left_out[reason] += 1
        else:
            yield _entry(path, _first(os.path.dirname(path), root))  # noqa: PTH120
    if not matched:
        raise BlemishError(f"{pattern}: nothing matches; check the pattern, and quote it.")


def _first(path: str, root: str) -> str:
    """The first folder of a path below `root`; "" where it is `root` itself."""
    return "" if path == root else Path(os.path.relpath(path, root)).parts[0]


def _bucket(where: Place, left_out: Counter[Reason]) -> Iterator[Entry]:
    """The images below a bucket's prefix, listed folder by folder: pyarrow holds one folder's names at a time."""
    system, root = where.system()
    scheme = split_uri(where.uri)[0]
    waiting = [root]
    while waiting:
        here = waiting.pop()
        source = here[len(root) :].strip("/").partition("/")[0]
        inside = []
        try:
            infos = system.get_file_info(fs.FileSelector(here))
        except FileNotFoundError:
            raise BlemishError(f"{scheme}://{here}: there is nothing; check bucket and prefix.") from None
        except (OSError, pa.ArrowException) as cause:
            first = str(cause).partition("\n")[0]
            raise BlemishError(f"{scheme}://{here}: cannot be listed ({first}); check access and options.") from None
        for info in _ordered(infos, lambda one: one.base_name):
            if info.type == fs.FileType.Directory:
                hidden, litter = is_hidden(info.base_name), is_litter(info.base_name)
                if hidden or litter:
                    left_out["hidden" if hidden else "litter"] += 1
                else:
                    inside.append(info.path)
            elif reason := _reason(info.base_name):
                left_out[reason] += 1
            else:
                yield Entry(f"{scheme}://{info.path}", info.size, source)
        waiting.extend(reversed(inside))


def _table(file: Place, column: str) -> Iterator[Entry]:
    """The rows of a Parquet or CSV file. Relative paths start at its folder."""
    folder = file.uri.rpartition("/")[0]
    rows = _rows(file, column)
    for row in rows:
        uri = row[0] or ""
        if uri and split_uri(uri)[0] == LOCAL and not uri.startswith(("/", "file://")) and not Path(uri).is_absolute():
            uri = f"{folder}/{uri}"
        yield Entry(uri, row[1], row[2] or "")


def _rows(file: Place, column: str) -> Iterator[tuple[str | None, int | None, str | None]]:
    system, path = file.system()
    name = f"{file.uri}: is no table of paths"
    try:
        if path.casefold().endswith(".csv"):
            with system.open_input_stream(path) as start:
                first = start.read(4096).partition(b"\n")[0]
            semicolons = first.count(b";") > first.count(b",")
            opened = pa.csv.open_csv(
                system.open_input_stream(path),
                parse_options=pa.csv.ParseOptions(delimiter=";" if semicolons else ","),
                convert_options=pa.csv.ConvertOptions(strings_can_be_null=True),
            )
            names, batches = opened.schema.names, opened
        else:
            parquet = pq.ParquetFile(system.open_input_file(path))
            names, batches = parquet.schema_arrow.names, parquet.iter_batches(ROWS)
        chosen = _column(names, column, file.uri)
        for batch in batches:
            yield from _columns(batch, chosen)
    except FileNotFoundError:
        raise BlemishError(f"{file.uri}: there is no such file; check the path.") from None
    except (OSError, pa.ArrowException) as cause:
        first = str(cause).partition("\n")[0]
        raise BlemishError(f"{name} ({first}); give a Parquet or CSV file with a column of paths or URIs.") from None


def _columns(batch: Any, chosen: str) -> Iterator[tuple[str | None, int | None, str | None]]:
    """Path, size and source of each row of a batch."""

    def values(name: str, kind: Any) -> list[Any]:
        if name not in batch.schema.names or name == chosen:
            return [None] * batch.num_rows
        return batch.column(name).cast(kind).to_pylist()  # type: ignore[no-any-return]

    paths = batch.column(chosen).cast(pa.string()).to_pylist()
    yield from zip(paths, values("bytes", pa.int64()), values("source", pa.string()), strict=True)


def _column(names: list[str], column: str, table: str) -> str:
    """The column of paths."""
    chosen = column if column else next((name for name in COLUMNS if name in names), "")
    if chosen not in names:
        what = (
            f"has no column {column}" if column else f"has no column named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
        )
        raise BlemishError(f"{table} {what}; it has {', '.join(names[:10])}: name the one of the paths with --column.")
    return chosen
