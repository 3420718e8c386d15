"""Files in folders and in a bucket: whole or not at all, under their names, and refusals in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from blemish.cluster.places import Place, file_system, place, reason_of, split_uri, uri_of, without_options
from blemish.types import BlemishError
from tests.cluster.support import put

HERE = {"a/b.txt": b"1", "a/c": b"", "a/d/e": b"3", "top #1?.txt": b"x" * 100_000, "é [1] %41": b"5"}


@pytest.fixture(params=["folder", "bucket"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind."""
    if request.param == "folder":
        return place(str(tmp_path / "results"))
    name, _ = request.getfixturevalue("bucket")
    return place(f"s3://{name}/some/results/")


def test_what_is_written_is_read(there: Place) -> None:
    for name, content in HERE.items():
        there.write(name, content)
    assert {name: there.read(name) for name in HERE} == HERE
    assert there.names("a") == ["b.txt", "c"]
    assert there.names("lost") == []
    there.write("a/c", b"again")
    assert there.read("a/c") == b"again"
    there.remove_file("a/c")
    there.remove_file("a/lost")
    assert there.names("a") == ["b.txt"]
    there.remove("a")
    there.remove("a")
    assert there.names("a") == []
    with pytest.raises(FileNotFoundError):
        there.read("a/b.txt")
    assert there.at("x") == f"{there.uri}/x"


def test_a_file_is_uploaded_and_gone_here(there: Place, tmp_path: Path) -> None:
    file = tmp_path / "made here"
    for content in (b"1" * 3_000_000, b""):
        file.write_bytes(content)
        there.upload("sub/file", file)
        assert there.read("sub/file") == content
        assert not file.exists()
    assert there.names("sub") == ["file"]


def test_a_file_comes_from_another_disk(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    file = other / f"blemish-{os.getpid()}"
    file.write_bytes(b"content")
    place(str(tmp_path)).upload("file", file)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert not file.exists()


def test_a_place_is_tried_without_a_trace(there: Place) -> None:
    there.check()
    assert there.names("") == []


def test_two_writers_of_one_name_leave_one_whole_file(there: Place) -> None:
    contents = [bytes([number]) * 300_000 for number in range(4)]

    def write(content: bytes) -> None:
        for _ in range(4):
            there.write("same", content)

    there.write("same", contents[0])
    seen = []
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, content) for content in contents]
        while there.local and not all(writer.done() for writer in writers):
            seen.append(there.read("same"))  # in a bucket, it may be replaced between two requests of one reader
    assert all(writer.exception() is None for writer in writers)
    assert set(seen) <= set(contents)
    assert there.read("same") in contents
    assert there.names("") == ["same"]


def test_a_writer_that_is_killed_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = f"""
from blemish.cluster import places
def slow(number):  # all is written, and not yet on the disk
    print("here", flush=True)
    import time
    time.sleep(60)
places.os.fsync = slow
places.place({str(tmp_path)!r}).write("part", b"x" * 1_000_000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".part.")
    place(str(tmp_path)).write("part", b"whole")
    assert (tmp_path / "part").read_bytes() == b"whole"


def test_relative_folders_and_other_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("out") == place("./x/../out/") == place(f"file://{tmp_path}/out") == Place(str(tmp_path / "out"))
    assert place(f"file://localhost{tmp_path}/a%20b") == Place(str(tmp_path / "a b"))
    assert place("out?region=x") == Place(str(tmp_path / "out?region=x"))  # a folder may be called so
    assert place("S3://Bucket/A/b/") == Place("s3://Bucket/A/b")
    assert place("s3://bucket") == place("s3://bucket/") == Place("s3://bucket")


def test_options_are_told_from_keys() -> None:
    both = "?region=eu-central-1&endpoint_override=http%3A%2F%2Flocalhost%3A9000"
    assert without_options(f"s3://bucket/prefix{both}") == ("s3://bucket/prefix", both)
    assert without_options("s3://bucket/what?.png") == ("s3://bucket/what?.png", "")
    assert without_options("s3://bucket/a?b?region=x") == ("s3://bucket/a?b", "?region=x")
    assert without_options("/data/a?region=x") == ("/data/a?region=x", "")
    assert place(f"s3://bucket/prefix/{both}") == Place("s3://bucket/prefix", both)


def test_options_lead_to_the_server(bucket: tuple[str, Any], s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, system = bucket
    put(system, f"{name}/a/q?.txt", b"found")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    server = s3.removeprefix("http://")
    for options in (f"?scheme=http&endpoint_override={server}", f"?region=eu-central-1&endpoint_override={s3}"):
        assert place(f"s3://{name}/a{options}").read("q?.txt") == b"found"


def test_paths_and_uris() -> None:
    for path in ("/data/a b#?%.png", os.fsdecode(b"/data/\xff%41.png"), "/data/\xe9.png"):
        uri_of(path).encode()
        assert split_uri(uri_of(path)) == ("file", path)
    assert split_uri("C:\\images\\1.png") == ("file", "C:\\images\\1.png")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("s3://", "s3://: names no bucket; give s3://BUCKET/PREFIX."),
        ("s3:///prefix", "s3:///prefix: names no bucket; give s3://BUCKET/PREFIX."),
        (
            "s3://AKIA:secret@bucket/a",
            "s3://...@bucket: a key does not belong into the name; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ),
    ],
)
def test_what_is_no_place_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(BlemishError) as caught:
        place(text)
    assert str(caught.value) == sentence


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=r"/\\udcff': its name is not UTF-8, which pyarrow needs; rename it\.$"):
        place(str(tmp_path / os.fsdecode(b"\xff")))


@pytest.mark.parametrize(
    ("scheme", "options", "why"),
    [("ftp", "", "ftp:// is not known"), ("s3", "?regoin=x", "Unexpected query parameter in S3 URI: 'regoin'")],
)
def test_what_pyarrow_has_no_file_system_for_is_refused(scheme: str, options: str, why: str) -> None:
    with pytest.raises(BlemishError) as caught:
        file_system(scheme, "bucket", options)
    assert str(caught.value).startswith(f"{scheme}://bucket: cannot be used ({why}); give a folder, s3://BUCKET/PREFIX")


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    there = place(str(tmp_path / "file"))
    with pytest.raises(
        BlemishError, match=r"/file/\.blemish-\w+: .*; check that place, and who may read and write there\.$"
    ):
        there.check()
    (tmp_path / "folder").mkdir()
    with pytest.raises(BlemishError, match=r"/folder: .*; check that place"):
        place(str(tmp_path)).read("folder")
    with pytest.raises(BlemishError, match=r"/folder: Is a directory; check that place"):
        place(str(tmp_path)).write("folder", b"")
    assert [path.name for path in (tmp_path).iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that may not be written to")
def test_a_folder_that_is_read_only_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BlemishError, match="Permission denied; check that place, and who may read and write there"):
        place(str(tmp_path)).check()
    tmp_path.chmod(0o700)


def test_a_bucket_that_is_not_there_is_said(s3: str) -> None:
    there = place("s3://no-such-bucket/out")
    with pytest.raises(FileNotFoundError):
        there.read("a")
    with pytest.raises(BlemishError) as caught:
        there.check()
    assert str(caught.value).endswith(
        ": no such bucket: The specified bucket does not exist; check that place, and who may read and write there."
    )


def test_a_server_that_does_not_answer_is_said_within_seconds(s3: str) -> None:
    start = time.monotonic()
    with pytest.raises(BlemishError, match=r"^s3://bucket/out/a: network connection: .*[Cc]ould not connect to server"):
        place("s3://bucket/out?endpoint_override=http://127.0.0.1:9").read("a")
    assert time.monotonic() - start < 20


def test_reasons_are_without_what_only_authors_need() -> None:
    said = (
        "When listing objects under key 'p/' in bucket 'b': AWS Error ACCESS_DENIED (HTTP status 403) during "
        "ListObjectsV2 operation: Access Denied. (Request ID: x1Y)\nmore"
    )
    assert reason_of(OSError(said)) == "access denied: Access Denied"
    assert reason_of(OSError(13, "Permission denied")) == "Permission denied"
    assert reason_of(ValueError()) == "ValueError"
