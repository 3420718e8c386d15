"""The plan: how the work is cut, what is counted, when a run is gone on with, and what a kill leaves."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from blemish.cluster.listing import Entry, Listed
from blemish.cluster.places import Place, place
from blemish.cluster.plan import ID, MANIFEST_FILE, PLAN, SOURCES, Plan, begun, claim, done, make, same
from blemish.types import BlemishError, silent
from tests.cluster.support import put

ASKED = Plan("0" * 64, "/images", "", maps=False, overlays=False, max_pixels=100, timeout=1.5, versions={"numpy": "1"})


def entries(number: int) -> Iterator[Entry]:
    return (Entry(f"/images/{i}.png", i, f"line-{i % 3}") for i in range(number))


def planned(out: Place, number: int, per_file: int = 0) -> Plan:
    return make(ASKED, Listed(entries(number)), out, per_file, silent)


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return place(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("number", "asked", "per_file"),
    [
        *((1, 0, 32), (32, 0, 32), (33, 0, 32), (2048, 0, 32), (2049, 0, 33), (10_000, 0, 157), (63_999, 0, 1000)),
        *((64_001, 0, 1000), (100, 7, 7), (7, 7, 7), (8, 7, 7), (5, 1, 1), (70_001, 1000, 1000), (3, 5000, 5000)),
    ],
)
def test_the_work_is_cut_into_row_groups(out: Place, number: int, asked: int, per_file: int) -> None:
    """About 64 files of few images, with 32 images at least and 1000 at most."""
    plan = planned(out, number, asked)
    file = pq.ParquetFile(out.at(MANIFEST_FILE))
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert (plan.rows, plan.per_file, plan.files) == (number, per_file, len(sizes))
    assert sizes == [per_file] * (number // per_file) + ([number % per_file] if number % per_file else [])
    table = file.read()
    assert table["id"].to_pylist() == list(range(number))
    assert table["uri"].to_pylist() == [f"/images/{i}.png" for i in range(number)]
    assert file.read_row_group(len(sizes) - 1)["id"].to_pylist() == list(range(number))[(len(sizes) - 1) * per_file :]


def test_what_is_counted(out: Place) -> None:
    found = [Entry("/1.png", 5, "a"), Entry("/2.png", None, ""), Entry("", 7, "a")]
    plan = make(ASKED, Listed(iter(found), Counter({"hidden": 3})), out, 0, silent)
    assert (plan.bytes, plan.sources, plan.left_out) == (12, {"a": 2, "": 1}, {"hidden": 3})
    assert pq.read_table(out.at(MANIFEST_FILE)).to_pylist() == [
        {"id": 0, "uri": "/1.png", "bytes": 5, "source": "a"},
        {"id": 1, "uri": "/2.png", "bytes": None, "source": ""},
        {"id": 2, "uri": "", "bytes": 7, "source": "a"},
    ]
    assert begun(out) == plan
    assert json.loads(out.read(PLAN)) == plan.to_json()


def test_of_very_many_sources_the_rest_is_one(out: Place) -> None:
    found = (Entry(f"/{i}.png", 1, f"camera {i % (SOURCES + 50)}") for i in range(3 * (SOURCES + 50)))
    plan = make(ASKED, Listed(found), out, 0, silent)
    assert len(plan.sources) == SOURCES + 1
    assert plan.sources["camera 0"] == 3
    assert plan.sources["others"] == 150
    stored = pq.read_table(out.at(MANIFEST_FILE))["source"].to_pylist()
    assert len(Counter(stored)) == SOURCES + 50  # the rows keep their own


def test_nothing_to_do_is_said(out: Place) -> None:
    with pytest.raises(
        BlemishError, match=r"^/images: holds no images \(3 hidden, 1 no-image\); check what it names\.$"
    ):
        make(ASKED, Listed(iter(()), Counter({"hidden": 3, "no-image": 1})), out, 0, silent)
    with pytest.raises(BlemishError, match=r"^/images: holds no images; check what it names\.$"):
        make(ASKED, Listed(iter(())), out, 0, silent)
    assert out.names("") == []


def test_the_images_are_not_held(out: Place) -> None:
    """But 64,000 of them, to choose the size of a part, and a row group, and what the iterators have in hand."""

    class Followed(str):  # a string that can be told to be gone
        __slots__ = ("__weakref__",)

    alive = weakref.WeakSet[Followed]()
    most = 0

    def watched() -> Iterator[Entry]:
        nonlocal most
        for number in range(80_000):
            path = Followed(f"/{number}")
            alive.add(path)
            most = max(most, len(alive)) if number % 500 == 0 else most
            yield Entry(path, 1, "")

    assert make(ASKED, Listed(watched()), out, 0, silent).rows == 80_000
    assert 60_000 < most < 70_000


def test_a_run_is_gone_on_with_only_where_all_is_the_same(out: Place) -> None:
    plan = planned(out, 10)
    same(plan, ASKED, out)
    same(plan, replace(ASKED, max_pixels=101, timeout=2.0), out)  # as what was refused may be tried again with
    same(plan, ASKED, out, per_file=plan.per_file)
    with pytest.raises(BlemishError, match="holds verdicts of another --per-file; choose"):
        same(plan, ASKED, out, per_file=plan.per_file + 1)
    then = "other versions (numpy 1)"
    cases: list[tuple[str, Any, str]] = [
        ("bundle", "1" * 64, "another bundle"),
        ("source", "/other", "another source, /images"),
        ("column", "path", "another --column"),
        ("maps", True, "another --maps"),
        ("overlays", True, "another --overlays"),
        ("device", "cuda", "another --gpus-per-actor"),
        ("versions", {"numpy": "9"}, then),
        ("schema", 2, then),
        ("format", "blemish cluster 2", then),
    ]
    for name, value, words in cases:
        changed: dict[str, Any] = {name: value}
        with pytest.raises(BlemishError) as caught:
            same(plan, replace(ASKED, **changed), out)
        assert str(caught.value) == (
            f"{out.uri} holds verdicts of {words}; choose another --out, or start again with --overwrite."
        )


def test_a_plan_is_missing_or_damaged(out: Place) -> None:
    assert begun(out) is None
    whole = planned(out, 3).to_json()
    less: Any = {name: value for name, value in whole.items() if name != "files"}
    for content in ("", "{", "[]", "3", "null", json.dumps({**less, "rows": "3"}), '{"bundle": 1}'):
        out.write(PLAN, content.encode())
        with pytest.raises(BlemishError) as caught:
            begun(out)
        assert str(caught.value) == (
            f"{out.at(PLAN)} is damaged, or of another version; choose another --out, or start again with --overwrite."
        )


def test_the_manifest_says_which_plan_it_belongs_to(out: Place) -> None:
    first = planned(out, 3)
    assert pq.read_schema(out.at(MANIFEST_FILE)).metadata[ID.encode()] == first.id.encode()
    assert planned(out, 3).id != first.id


def test_what_is_in_a_bucket_already_is_not_written_over(bucket: tuple[str, Any]) -> None:
    """And a run that was killed while it listed is begun anew."""
    name, system = bucket
    put(system, f"{name}/out/attempts/photo.png", b"mine")
    with pytest.raises(BlemishError) as caught:
        planned(place(f"s3://{name}/out"), 3)
    assert str(caught.value) == (
        f"s3://{name}/out/attempts is there, and was not written by blemish; choose another --out."
    )
    claim(place(f"s3://{name}/other"))
    put(system, f"{name}/other/{MANIFEST_FILE}", b"half")
    assert planned(place(f"s3://{name}/other"), 3).rows == 3


def test_a_kill_before_the_plan_has_it_made_anew(out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Place, name: str, content: bytes) -> None:
        if name == PLAN:
            raise KeyboardInterrupt
        write(self, name, content)

    write = Place.write
    with monkeypatch.context() as patch:
        patch.setattr(Place, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            planned(out, 100)
    assert out.names("") == [MANIFEST_FILE]
    assert begun(out) is None
    assert planned(out, 50).rows == pq.read_metadata(out.at(MANIFEST_FILE)).num_rows == 50


def test_a_source_that_ends_with_a_refusal_leaves_no_plan(out: Place) -> None:
    def broken() -> Iterator[Entry]:
        yield from entries(5)
        raise BlemishError("x: cannot be listed.")

    with pytest.raises(BlemishError, match="cannot be listed"):
        make(ASKED, Listed(broken()), out, 0, silent)
    assert out.names("") == []


def test_a_place_that_cannot_be_written_to_is_said_before_anything_is_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    def never() -> Iterator[Entry]:
        pytest.fail("it was listed")
        yield Entry("")

    with pytest.raises(BlemishError, match="check that place, and who may read and write there"):
        make(ASKED, Listed(never()), place(str(tmp_path / "file")), 0, silent)


def test_in_a_bucket(bucket: tuple[str, Any]) -> None:
    name, _ = bucket
    there = place(f"s3://{name}/out")
    assert begun(there) is None
    assert done(there) == set()
    plan = planned(there, 100, 30)
    assert begun(there) == plan
    assert there.names("") == [".blemish", MANIFEST_FILE, PLAN]
    system, path = there.system()
    file = pq.ParquetFile(system.open_input_file(f"{path}/{MANIFEST_FILE}"))
    assert file.read_row_group(3)["id"].to_pylist() == list(range(90, 100))


def test_which_parts_are_done(out: Place) -> None:
    assert done(out) == set()
    for name in (
        "part-000003.parquet",
        "part-1234567.parquet",
        "part-4.parquet",
        "part-000005.parquet.tmp",
        "x.parquet",
    ):
        out.write(f"verdicts/{name}", b"")
    out.write("verdicts/part-000006.parquet/inside", b"")
    assert done(out) == {3, 1234567}
