"""What a SOURCE names: folders, patterns, single images, tables, and a bucket's prefix on a real S3 server."""

from __future__ import annotations

import os
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from blemish.cluster.listing import Entry, listed
from blemish.cluster.places import place
from blemish.cluster.plan import MANIFEST_FILE, Plan, make
from blemish.images import find_images
from blemish.types import BlemishError, silent
from tests.cluster.support import put
from tests.support import touch

SIZE = len(b"not an image")


def uris(source: object, column: str = "") -> list[str]:
    return [entry.uri for entry in listed(str(source), column).entries]


def put_key(server: str, path: str, content: bytes = b"x") -> None:
    """Writes a key as it is, as other programs do; pyarrow's file system has no place for some."""
    request = urllib.request.Request(f"{server}/{quote(path)}", data=content, method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/left/1.png", "set/left/b/2.png", "set/3 #.png", "set/4.txt", "set/.5.png")
    monkeypatch.chdir(tmp_path)
    expected = [
        Entry(f"{tmp_path}/set/3 #.png", SIZE, ""),
        Entry(f"{tmp_path}/set/left/1.png", SIZE, "left"),
        Entry(f"{tmp_path}/set/left/b/2.png", SIZE, "left"),
    ]
    for source in (f"{tmp_path}/set", "set", "./set/", f"file://{tmp_path}/set"):
        found = listed(source)
        assert list(found.entries) == expected
        assert found.left_out == {"no-image": 1, "hidden": 1}
    assert uris("set") == [str(path) for path in find_images(tmp_path / "set", recursive=True)]


def test_names_that_are_not_utf8_are_uris(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    touch(tmp_path, f"{name}/%1.png", f"{name}/\xfc.png")
    assert list(listed(str(tmp_path)).entries) == [
        Entry(f"file://{tmp_path}/caf%E9/%251.png", SIZE, "caf\\xe9"),
        Entry(f"file://{tmp_path}/caf%E9/%C3%BC.png", SIZE, "caf\\xe9"),
    ]


def test_a_folder_or_file_that_exists_wins(tmp_path: Path) -> None:
    touch(tmp_path, "[ab] *?/1.png", "a.csv/2.png", "what.dat", "b.png", "[b].png")
    assert uris(tmp_path / "[ab] *?") == [f"{tmp_path}/[ab] *?/1.png"]
    assert uris(tmp_path / "a.csv") == [f"{tmp_path}/a.csv/2.png"]
    assert uris(tmp_path / "[b].png") == [f"{tmp_path}/[b].png"]
    assert list(listed(str(tmp_path / "what.dat")).entries) == [Entry(f"{tmp_path}/what.dat", SIZE)]


def test_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "left/10.png", "left/9.png", "right/1.png", "right/1.txt")
    found = listed(f"{tmp_path}/*/*")
    assert [(Path(entry.uri).name, entry.bytes, entry.source) for entry in found.entries] == [
        ("9.png", SIZE, "left"),
        ("10.png", SIZE, "left"),
        ("1.png", SIZE, "right"),
    ]
    assert found.left_out == {"no-image": 1}


def test_a_manifest_is_a_table_that_gives_the_same_ids_in_the_same_order(tmp_path: Path) -> None:
    touch(tmp_path / "set", *(f"line-{i % 3}/{i}.png" for i in range(100)), "top.png")
    (tmp_path / "set" / "gone.png").symlink_to("nowhere")
    asked = Plan("0" * 64, "x", "", maps=False, overlays=False, max_pixels=1, timeout=1.0)
    first, second = place(str(tmp_path / "first")), place(str(tmp_path / "second"))
    plan = make(asked, listed(str(tmp_path / "set")), first, 7, silent)
    again = make(asked, listed(first.at(MANIFEST_FILE)), second, 7, silent)
    assert pq.read_table(first.at(MANIFEST_FILE)).equals(pq.read_table(second.at(MANIFEST_FILE)))
    assert replace(again, id="") == replace(plan, id="")
    assert plan.rows == 102


@pytest.mark.parametrize("source", ["lost", "lost.png", "s3:bucket"])
def test_what_is_missing_is_said(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BlemishError) as caught:
        listed(source)
    assert str(caught.value) == f"{source}: there is no such file or folder; check the path."


def test_a_column_is_about_tables(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=r"^--column is about a table of paths, and .* is none; give a \.parquet or"):
        listed(str(tmp_path), "path")


ODD = ("sp ace", "h#sh", "q?x=1", "100%41", "[b]*", "\xfc\u4e2d", "a+b&c=d", "back\\slash", "tab\t", "x<y>'\"")


def test_a_prefix_with_all_kinds_of_keys(bucket: tuple[str, Any]) -> None:
    name, system = bucket
    for key in ODD:
        put(system, f"{name}/in/{key}/{key}.png", key.encode())
    for key in (
        "in/10.png",
        "in/9.PNG",
        "in/a/b/c/1.jpg",
        "inside/no.png",
        "in/.hid.png",
        "in/@eaDir/1.png",
        "in/n.txt",
    ):
        put(system, f"{name}/{key}", b"xx")
    found = listed(f"s3://{name}/in/")
    entries = list(found.entries)
    assert [entry for entry in entries if entry.bytes == 2][:3] == [
        Entry(f"s3://{name}/in/9.PNG", 2, ""),
        Entry(f"s3://{name}/in/10.png", 2, ""),
        Entry(f"s3://{name}/in/a/b/c/1.jpg", 2, "a"),
    ]
    assert {entry.source for entry in entries} == {"", "a", *ODD}
    assert len(entries) == len({entry.uri for entry in entries}) == len(ODD) + 3
    assert found.left_out == {"hidden": 1, "litter": 1, "no-image": 1}
    for entry in entries:  # each URI leads to its object
        content = place(f"s3://{name}").read(entry.uri.removeprefix(f"s3://{name}/"))
        assert len(content) == entry.bytes
        assert content in (b"xx", entry.source.encode())


def test_a_bucket_a_key_and_options(bucket: tuple[str, Any], s3: str) -> None:
    name, system = bucket
    for key in ("1.png", "a/2.png"):
        put(system, f"{name}/{key}", b"x")
    assert uris(f"s3://{name}") == uris(f"s3://{name}/") == [f"s3://{name}/1.png", f"s3://{name}/a/2.png"]
    assert list(listed(f"s3://{name}/a/2.png").entries) == [Entry(f"s3://{name}/a/2.png", 1)]
    assert uris(f"S3://{name}/a?region=eu-west-1&endpoint_override={s3}") == [f"s3://{name}/a/2.png"]


def test_more_keys_than_a_page_of_the_server(bucket: tuple[str, Any], s3: str) -> None:
    name, _ = bucket
    for number in range(1005):
        put_key(s3, f"{name}/p/{number:04}.png", b"")
    put_key(s3, f"{name}/p/folder/", b"")  # as consoles mark an empty folder
    put_key(s3, f"{name}/p/", b"")
    assert uris(f"s3://{name}/p") == [f"s3://{name}/p/{number:04}.png" for number in range(1005)]


@pytest.mark.parametrize(
    "written",
    [["plan.json", "manifest.parquet", "overlays/part-000000/1.jpg"], ["card.json", "model.onnx", "example.png"]],
)
def test_what_blemish_wrote_into_a_bucket_is_left_out(bucket: tuple[str, Any], written: list[str]) -> None:
    name, system = bucket
    for key in ("1.png", "deep/2.png", *(f"deep/out/{key}" for key in written)):
        put(system, f"{name}/set/{key}")
    found = listed(f"s3://{name}/set")
    assert [entry.uri for entry in found.entries] == [f"s3://{name}/set/1.png", f"s3://{name}/set/deep/2.png"]
    assert found.left_out == {"own-output": 1}
    assert len(uris(f"s3://{name}/set/deep/out")) == 1  # asked for by name


def test_a_table_in_a_bucket_may_name_what_is_anywhere(bucket: tuple[str, Any], tmp_path: Path) -> None:
    name, system = bucket
    table = pa.table(
        {"where": ["1.png", "/2.png", "s3://other/3.png"], "source": ["a", "b", None], "bytes": [1, 2, None]}
    )
    pq.write_table(table, tmp_path / "table.parquet")
    fs.copy_files(str(tmp_path / "table.parquet"), f"{name}/in/table.parquet", fs.LocalFileSystem(), system)
    assert list(listed(f"s3://{name}/in/table.parquet?region=eu-central-1", "where").entries) == [
        Entry(f"s3://{name}/in/1.png", 1, "a"),
        Entry("/2.png", 2, "b"),
        Entry("s3://other/3.png", None, ""),
    ]


def test_what_is_missing_in_a_bucket_is_said(bucket: tuple[str, Any]) -> None:
    name, _ = bucket
    for source in (f"s3://{name}/lost/prefix", f"s3://{name}", "s3://no-such-bucket/prefix"):
        with pytest.raises(BlemishError, match=rf"^{source}: there is nothing; check bucket and prefix\.$"):
            uris(source)


def test_a_key_that_pyarrow_cannot_name_is_said(bucket: tuple[str, Any], s3: str) -> None:
    name, _ = bucket
    put_key(s3, f"{name}/p/a//b.png")
    with pytest.raises(BlemishError, match=rf"^s3://{name}/p/a: holds keys with an empty name between two slashes"):
        uris(f"s3://{name}/p")


class _Forbidden(BaseHTTPRequestHandler):
    """What S3 answers to those without access."""

    def do_GET(self) -> None:
        content = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("keys", [True, False], ids=["wrong keys", "no keys"])
def test_a_bucket_without_access_is_said(s3: str, monkeypatch: pytest.MonkeyPatch, *, keys: bool) -> None:
    if not keys:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with HTTPServer(("127.0.0.1", 0), _Forbidden) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(BlemishError) as caught:
                uris(f"s3://closed-{keys}/set?endpoint_override=http://127.0.0.1:{server.server_port}".lower())
        finally:
            server.shutdown()
    assert str(caught.value) == (
        f"s3://closed-{str(keys).lower()}/set: cannot be listed (access denied: Access Denied); check its name, your "
        "access and options."
    )
