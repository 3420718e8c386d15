"""A table of images: a Parquet or CSV file with a column of paths or URIs, and maybe their `bytes` and `source`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from blemish.cluster.places import LOCAL, Place, reason_of, split_uri
from blemish.types import BlemishError

ROWS = 8_192  # of a Parquet file that are read at once
BUFFER = 2**20  # bytes of a column that are read at once, or all of a row group would be
COLUMNS = ("uri", "path", "file", "filename", "image", "image_path")
SIZE, SOURCE = "bytes", "source"
Row = tuple[str, int | None, str]


def is_table(path: str) -> bool:
    """Whether a file's name is that of a table.

    >>> is_table("images.CSV"), is_table("s3://bucket/images.parquet"), is_table("images.csv.png")
    (True, True, False)
    """
    return path.casefold().endswith((".parquet", ".csv"))


def rows_of(file: Place, column: str) -> Iterator[Row]:
    """URI, size and source of each row; `column` is that of the paths (without: the first one of COLUMNS that is
    there). Relative paths start at the table's folder; "" stands for a missing one, None for an unknown size.

    Raises `BlemishError` where it is no such table.
    """
    folder = file.uri.rpartition("/")[0]
    for path, size, source in _rows(file, column):
        uri = path or ""
        if uri and split_uri(uri)[0] == LOCAL and not uri.startswith("file://") and not os.path.isabs(uri):  # noqa: PTH117
            uri = f"{folder}/{uri}"
        yield uri, size if size is not None and size >= 0 else None, source or ""


def _rows(file: Place, column: str) -> Iterator[tuple[str | None, int | None, str | None]]:
    system, path = file.system()
    try:
        batches = _csv if path.casefold().endswith(".csv") else _parquet
        for batch, chosen in batches(system, path, column, file.uri):
            sizes, sources = _sizes(batch, chosen), [None] * batch.num_rows
            if SOURCE in batch.schema.names and chosen != SOURCE:
                sources = batch.column(SOURCE).cast(pa.string()).to_pylist()
            yield from zip(batch.column(chosen).cast(pa.string()).to_pylist(), sizes, sources, strict=True)
    except FileNotFoundError:
        raise BlemishError(f"{file.uri}: there is no such file; check the path.") from None
    except (OSError, pa.ArrowException, KeyError) as cause:  # KeyError: two columns named bytes
        raise BlemishError(
            f"{file.uri}: is no table of paths ({reason_of(cause)}); give a Parquet or CSV file with a column of paths "
            "or URIs."
        ) from None


def _parquet(system: Any, path: str, column: str, table: str) -> Iterator[tuple[Any, str]]:
    parquet = pq.ParquetFile(system.open_input_file(path), buffer_size=BUFFER, pre_buffer=False)
    names = parquet.schema_arrow.names
    chosen = _column(names, column, table)
    # Nothing else is read: another column may hold the images themselves.
    for batch in parquet.iter_batches(ROWS, columns=_used(names, chosen)):
        yield batch, chosen


def _csv(system: Any, path: str, column: str, table: str) -> Iterator[tuple[Any, str]]:
    with system.open_input_stream(path) as start:
        first = start.read(4096).partition(b"\n")[0]
    semicolons = first.count(b";") > first.count(b",")
    parse = pa.csv.ParseOptions(delimiter=";" if semicolons else ",", newlines_in_values=True)
    with pa.csv.open_csv(system.open_input_stream(path), parse_options=parse) as opened:
        names = opened.schema.names
    chosen = _column(names, column, table)
    used = _used(names, chosen)
    # As text, or paths such as 001 would be numbers; and nothing else, whose type may change further down.
    convert = pa.csv.ConvertOptions(
        include_columns=used,
        column_types=dict.fromkeys(used, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    options = {"parse_options": parse, "convert_options": convert}
    with pa.csv.open_csv(system.open_input_stream(path), **options) as opened:
        for batch in opened:
            yield batch, chosen


def _used(names: list[str], chosen: str) -> list[str]:
    return [chosen, *(name for name in (SIZE, SOURCE) if name in names and name != chosen)]


def _sizes(batch: Any, chosen: str) -> list[int | None]:
    """The column `bytes`; None where it is missing or holds something else."""
    if SIZE in batch.schema.names and chosen != SIZE:
        try:
            # pandas writes whole numbers with gaps as 1024.0
            return batch.column(SIZE).cast(pa.float64()).cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return [None] * batch.num_rows


def _column(names: list[str], column: str, table: str) -> str:
    """The column of paths."""
    chosen = column if column else next((name for name in COLUMNS if name in names), "")
    if chosen not in names:
        what = (
            f"has no column {column}" if column else f"has no column named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
        )
        raise BlemishError(f"{table} {what}; it has {', '.join(names[:10])}: name the one of the paths with --column.")
    if names.count(chosen) > 1:
        raise BlemishError(f"{table} has {names.count(chosen)} columns named {chosen}; rename all but one.")
    return chosen
