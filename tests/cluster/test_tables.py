"""Tables of images: Parquet and CSV as people and programs write them, read row by row."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blemish.cluster.places import place
from blemish.cluster.tables import rows_of
from blemish.types import BlemishError
from tests.cluster.support import put

ODD = ("/a b.png", "/a#1%20?.png", '/[x], or so; "y".png', "/two\nlines.png", "/\xe9\u4e2d.png")


def read(file: Path | str, column: str = "") -> list[tuple[str, int | None, str]]:
    return list(rows_of(place(str(file)), column))


def write(folder: Path, kind: str, **columns: Any) -> Path:
    """A table of these columns."""
    file = folder / f"images.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), file)
    else:
        pd.DataFrame(columns).to_csv(file, index=False)
    return file


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_paths_of_every_kind_sizes_and_sources(tmp_path: Path, kind: str) -> None:
    paths = [*ODD, "s3://bucket/a?b.png", "file:///x%FF.png", "sub/1.png", "./2.png", "NA"]
    sizes = [7, None, 0, 2**40, None, 1, 1, 1, 1, 1]
    sources = ["left", "001", "NA", None, "", "left", "left", "left", "left", "left"]
    file = write(tmp_path, kind, label=[0] * 9 + [1], path=paths, bytes=sizes, source=sources)
    expected = [*paths[:7], f"{tmp_path}/sub/1.png", f"{tmp_path}/./2.png", f"{tmp_path}/NA"]
    assert read(file) == list(zip(expected, sizes, [source or "" for source in sources], strict=True))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_missing_path_is_a_row_too(tmp_path: Path, kind: str) -> None:
    assert read(write(tmp_path, kind, uri=["/1.png", None, ""])) == [
        ("/1.png", None, ""),
        ("", None, ""),
        ("", None, ""),
    ]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_which_column_it_is(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, kind, image=["/4.png"], path=["/2.png"], uri=["/1.png"], other=["/5.png"], source=["/6.png"])
    assert read(file) == [("/1.png", None, "/6.png")]
    assert read(file, "other") == [("/5.png", None, "/6.png")]
    assert read(file, "source") == [("/6.png", None, "")]
    with pytest.raises(BlemishError) as caught:
        read(file, "lost")
    assert str(caught.value) == (
        f"{file} has no column lost; it has image, path, uri, other, source: name the one of the paths with --column."
    )
    with pytest.raises(
        BlemishError, match="has no column named uri, path, file, filename, image or image_path; it has x"
    ):
        read(write(tmp_path, kind, x=["/1.png"]))


@pytest.mark.parametrize(
    "text",
    [
        "path,source\n/1.png,a\n/2.png,b\n",
        "\ufeffpath,source\r\n/1.png,a\r\n/2.png,b\r\n",
        "source;path\na;/1.png\nb;/2.png",
        '"source","path"\n"a","/1.png"\n"b","/2.png"\n',
        "n,path,source\n1,/1.png,a\nx,/2.png,b\n",
    ],
    ids=["plain", "excel", "semicolons", "quoted", "mixed"],
)
def test_csv_as_programs_write_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "Images.CSV"
    file.write_text(text, encoding="utf-8", newline="")
    assert read(file) == [("/1.png", None, "a"), ("/2.png", None, "b")]


def test_a_long_csv_is_read_as_pythons_own_reader_does(tmp_path: Path) -> None:
    """Longer than what pyarrow guesses types from: numbers first, text below."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["label", "path", "bytes"])
    writer.writerows(
        [number if number < 50_000 else "none", f"/{number:05}, a.png", number] for number in range(60_000)
    )
    file = tmp_path / "long.csv"
    file.write_text(text.getvalue())
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert read(file) == [(row["path"], int(row["bytes"]), "") for row in rows]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.binary(), pa.string_view()]
)
def test_text_of_any_type(tmp_path: Path, kind: Any) -> None:
    uri, source = pa.array(["/1.png", "/2.png"]).cast(kind), pa.array(["a", None]).cast(kind)
    assert read(write(tmp_path, "parquet", uri=uri, source=source)) == [("/1.png", None, "a"), ("/2.png", None, "")]


@pytest.mark.parametrize("sizes", [["12 kB", "?"], [[1], [2]], [-1, -5], [1.5, 2.5]])
def test_a_column_of_bytes_that_is_no_size_is_not_one(tmp_path: Path, sizes: list[Any]) -> None:
    assert [row[1] for row in read(write(tmp_path, "parquet", uri=["/1.png", "/2.png"], bytes=sizes))] == [None, None]


def test_images_in_a_table_are_not_read(tmp_path: Path) -> None:
    """The row groups are larger than a batch, and a column that nobody asked for cannot be read at all."""
    table = pa.table({"path": [f"/{i}.png" for i in range(20_000)], "content": [b"x" * 50] * 20_000})
    file = tmp_path / "with.parquet"
    pq.write_table(table, file, compression="none", use_dictionary=False)
    column = pq.read_metadata(file).row_group(0).column(1)
    damaged = bytearray(file.read_bytes())
    damaged[column.data_page_offset : column.data_page_offset + 64] = bytes(64)
    file.write_bytes(damaged)
    with pytest.raises(OSError, match=r"\w"):
        pq.read_table(file)
    assert [row[0] for row in read(file)] == [f"/{i}.png" for i in range(20_000)]


def test_a_table_in_a_bucket(bucket: tuple[str, Any]) -> None:
    name, system = bucket
    put(system, f"{name}/tables/of it.csv", b"uri\n1.png\nsub/2 #.png\n/3.png\ns3://other/4.png\n")
    assert [row[0] for row in read(f"s3://{name}/tables/of it.csv")] == [
        f"s3://{name}/tables/1.png",
        f"s3://{name}/tables/sub/2 #.png",
        "/3.png",
        "s3://other/4.png",
    ]
    with pytest.raises(BlemishError, match=rf"^s3://{name}/no.csv: there is no such file; check the path\.$"):
        read(f"s3://{name}/no.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("t.parquet", b"PAR1 but not really"),
            ("t.parquet", b""),
            ("t.csv", b""),
            ("t.csv", b"path\n\xff\xfe.png\n"),
        ),
        ("t.csv", b"path,b\n/1.png,2\n/2.png\n"),
    ],
)
def test_what_is_no_table_is_said(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BlemishError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: is no table of paths (")
    assert str(caught.value).endswith("); give a Parquet or CSV file with a column of paths or URIs.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [[{"bytes": b"1", "path": "a"}], [[1, 2]]])
def test_a_column_that_holds_no_text_is_said(tmp_path: Path, column: list[Any]) -> None:
    with pytest.raises(BlemishError, match=r"is no table of paths \(.*\); give a Parquet or CSV file"):
        read(write(tmp_path, "parquet", image=column))


def test_a_missing_table_is_said(tmp_path: Path) -> None:
    for name in ("no.csv", "no.parquet"):
        with pytest.raises(BlemishError, match=rf"/{name}: there is no such file; check the path\.$"):
            read(tmp_path / name)
