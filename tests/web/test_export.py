"""Exports read back: the table, the lines, and the folder by the layouts of `blemish data`."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from blemish.data import layouts
from blemish.images import load_mask
from blemish.reporting.run import read_run
from blemish.types import BlemishError
from blemish.web import export, history
from blemish.web.database import Database
from blemish.web.dataset import mask_of
from blemish.web.export import COLUMNS, as_csv, as_jsonl, as_zip
from blemish.web.history import Filters
from blemish.web.site import Site
from blemish.web.store import sha256
from blemish.web.tables import Image
from tests import tiny
from tests.web.rows import image_row, verdict_row
from tests.web.support import PRODUCT, client_of, grey, made_site

ALL = Filters(PRODUCT)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    (detector,) = site.detectors.versions(PRODUCT)
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", 'plain, with "quotes"\nand a line', "a=1"]
    with site.database.writing() as session:
        for number, name in enumerate(names):
            image = image_row(session, PRODUCT, number, label="anomaly", defect="=cmd")
            verdict_row(session, image, detector.id, name=name, score=-1.5, p_value=None)
    rows = list(csv.DictReader(io.StringIO("".join(as_csv(site.database, ALL)))))
    assert tuple(rows[0]) == COLUMNS
    escaped = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\tx", *names[5:]]
    assert [row["name"] for row in reversed(rows)] == escaped
    assert {row["defect"] for row in rows} == {"'=cmd"}
    assert {(row["score"], row["p_value"]) for row in rows} == {("-1.5", "")}  # numbers stay numbers
    lines = [json.loads(line) for line in as_jsonl(site.database, ALL)]
    assert [line["path"] for line in reversed(lines)] == names
    assert {line["label"] for line in lines} == {"anomaly"}


def test_the_lines_are_those_of_a_run(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    for value in (60, 95, 130):
        site.line.inspect(grey(value), f"{value}.png", PRODUCT, by="me", source="page")
    site.line.inspect(b"none", "none.png", PRODUCT, by="me", source="page")
    tiny.made(tmp_path / "run/bundle")
    (tmp_path / "run/metrics.json").write_text("{}")
    (tmp_path / "run/verdicts.jsonl").write_text("".join(as_jsonl(site.database, ALL)))
    read = {image.name: image for image in read_run(tmp_path / "run").images}
    assert {name: image.decision for name, image in read.items()} == {
        "60.png": "good",
        "95.png": "review",
        "130.png": "anomaly",
        "none.png": "error",
    }
    assert read["130.png"].score == 130.0
    assert read["130.png"].size == (24, 16)
    assert len(read["130.png"].regions) == 1


def labelled(site: Site) -> dict[str, Image]:
    """Inspected images with labels, by their hashes: two good, a scratch with a drawn box, a dent without a mask, one
    without a label."""
    given: dict[int, dict[str, Any]] = {
        61: {"label": "good", "split": "train"},
        62: {"label": "good", "split": "test"},
        131: {"label": "anomaly", "defect": "scratch", "split": "test"},
        132: {"label": "anomaly", "defect": "dent", "split": "train"},
        63: {"label": None},
    }
    for value, columns in given.items():
        verdict = site.line.inspect(grey(value), f"{value}.png", PRODUCT, by="me", source="page")
        with site.database.writing() as session:
            image = session.get_one(Image, verdict.image_id)
            for key, content in columns.items():
                setattr(image, key, content)
            if value == 131:
                image.shapes = [{"points": [[2, 3], [9, 3], [9, 8], [2, 8]]}]
    with site.database.reading() as session:
        return {image.sha256: image for image in session.query(Image)}


def test_the_folder_is_read_back_with_the_same_labels(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    images = labelled(site)
    answer = client_of(site).get(f"/history/export.zip?product={PRODUCT}")
    assert answer.headers["content-disposition"] == 'attachment; filename="verdicts.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
    data = layouts.read(tmp_path / "out" / PRODUCT)
    assert len(data.samples) == 4
    for sample in data.samples:
        image = images[sha256(sample.path.read_bytes())]
        assert (sample.label, sample.split) == (image.label, image.split)
        assert sample.defect == image.defect
        if image.defect == "scratch":
            assert sample.mask is not None
            np.testing.assert_array_equal(load_mask(sample.mask, (16, 24)), mask_of(image.shapes, (16, 24)))
    assert list(site.store.folder.jobs.iterdir()) == []


def test_the_folder_follows_the_filters_and_is_gone_when_nobody_reads_on(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    labelled(site)
    content = b"".join(as_zip(site.store, site.database, Filters(PRODUCT, name="62")))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert len([name for name in archive.namelist() if name.endswith(".png")]) == 1
    half = as_zip(site.store, site.database, ALL)
    next(half)
    assert list(site.store.folder.jobs.iterdir())
    half.close()  # type: ignore[attr-defined]
    assert list(site.store.folder.jobs.iterdir()) == []
    with pytest.raises(BlemishError, match="None of these images has a label"):
        as_zip(site.store, site.database, Filters(PRODUCT, label="none"))


@pytest.mark.parametrize(
    ("filters", "good", "kinds", "layout"),
    [
        (ALL, 2, {"", "scratch", "dent"}, "mvtec"),
        (Filters(PRODUCT, name="61"), 1, {""}, "mvtec"),  # nothing is held out
        (Filters(PRODUCT, name="2.png"), 1, {"", "dent"}, "folders"),  # the only good image is held out
        (Filters(PRODUCT, label="good", name="62"), 1, {""}, "folders"),
    ],
)
def test_every_folder_is_read_by_itself(
    tmp_path: Path, filters: Filters, good: int, kinds: set[str], layout: str
) -> None:
    site = made_site(tmp_path)
    labelled(site)
    data = unpacked(site, filters, tmp_path / "out")
    assert data.layout == layout
    assert sum(sample.label == "good" for sample in data.samples) == good
    assert {sample.defect for sample in data.samples} == kinds
    assert not data.left_out


def test_without_a_good_image_to_learn_from_the_folder_has_no_split(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    images = labelled(site)
    with site.database.writing() as session:
        for image in session.query(Image).where(Image.label.is_not(None)):
            image.split = "test" if image.label == "good" else image.split
            if image.defect == "dent":
                image.defect, image.shapes = "Train", [{"points": [[1, 1], [4, 1], [4, 4], [1, 4]]}]
    client = client_of(site)
    shown = client.get(f"/history?product={PRODUCT}").text
    assert "No good image to learn from is among these: the folder has no split." in shown
    data = unpacked(site, ALL, tmp_path / "out")
    assert data.layout == "folders"
    assert sorted((sample.label, sample.defect, sample.mask is not None) for sample in data.samples) == [
        ("anomaly", "Train-", True),  # "Train" would be a split
        ("anomaly", "scratch", True),
        ("good", "", False),
        ("good", "", False),
    ]
    (scratch,) = (sample for sample in data.samples if sample.defect == "scratch")
    assert scratch.mask is not None
    shapes = images[sha256(scratch.path.read_bytes())].shapes
    np.testing.assert_array_equal(load_mask(scratch.mask, (16, 24)), mask_of(shapes, (16, 24)))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("decision=anomaly", "None of these images is labelled good, and a folder needs good ones;"),
        ("name=63", "None of these images has a label, so there is no folder to write;"),
    ],
)
def test_a_folder_that_could_not_be_read_is_refused_before_it_is_written(
    tmp_path: Path, query: str, sentence: str
) -> None:
    site = made_site(tmp_path)
    labelled(site)
    client = client_of(site)
    shown = client.get(f"/history?product={PRODUCT}&{query}").text
    assert f'id="no-folder">{sentence}' in shown
    assert "export.zip" not in shown
    answer = client.get(f"/history/export.zip?product={PRODUCT}&{query}", headers={"Accept": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(sentence)
    assert not site.store.folder.jobs.exists()


def unpacked(site: Site, filters: Filters, out: Path) -> layouts.Dataset:
    """The folder of an export, as `blemish data` reads it."""
    content = b"".join(as_zip(site.store, site.database, filters))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(out)
    return layouts.read(out / PRODUCT)


def test_what_a_killed_export_left_is_deleted_by_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = made_site(tmp_path)
    labelled(site)
    left = site.store.folder.jobs / ".export-left"
    left.mkdir(parents=True)
    b"".join(as_zip(site.store, site.database, ALL))
    assert left.is_dir()  # somebody may be downloading it
    monkeypatch.setattr(export, "FORGOTTEN", -1)
    b"".join(as_zip(site.store, site.database, ALL))
    assert not left.exists()


def test_exports_follow_the_filters_and_say_what_they_are(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    for value in (60, 130):
        site.line.inspect(grey(value), f"{value}.png", PRODUCT, by="me", source="page")
    client = client_of(site)
    table = client.get("/history/export.csv?decision=good")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert [row["name"] for row in csv.DictReader(io.StringIO(table.text))] == ["60.png"]
    lines = client.get("/history/export.jsonl?name=130").text.splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["130.png"]


@pytest.mark.parametrize("export_of", [as_csv, as_jsonl])
def test_who_reads_slowly_holds_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_of: Callable[[Database, Filters], Iterator[str]]
) -> None:
    """25 slow downloads took all connections: every page answered 503, and later exports broke off after their 200."""
    monkeypatch.setattr(history, "BATCH", 2)
    monkeypatch.setattr(export, "BLOCK", 16)
    site = made_site(tmp_path)
    for value in range(60, 66):
        site.line.inspect(grey(value), f"{value}.png", PRODUCT, by="me", source="page")
    slow = [export_of(site.database, ALL) for _ in range(25)]
    begun = [next(export) for export in slow]
    assert site.database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    site.line.inspect(grey(70), "70.png", PRODUCT, by="me", source="page")
    texts = {start + "".join(rest) for start, rest in zip(begun, slow, strict=True)}
    assert len(texts) == 1
    (text,) = texts
    assert [f"{value}.png" in text for value in range(60, 66)] == [True] * 6
    assert "70.png" not in text  # it came later
    site.database.close()


def test_an_export_without_a_connection_is_an_error_from_its_beginning(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    site.database.engine.pool._timeout = 0.2  # type: ignore[attr-defined]
    held = [site.database.engine.connect() for _ in range(20)]
    for export_of in (as_csv, as_jsonl):
        with pytest.raises(PoolTimeoutError):
            export_of(site.database, ALL)
    for connection in held:
        connection.close()
    site.database.close()
