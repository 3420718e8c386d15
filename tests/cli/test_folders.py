"""Whose folder is it? What the commands refuse to write over, and what stays there."""

import json
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.files import kept, staged
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train
from blemish.types import BlemishError
from tests.conftest import tile
from tests.support import blemish, write_image

T = TypeVar("T")
SMALL = PatchCoreConfig(max_bank=50)


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A run of this test's own."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_image(tmp_path / "new/a.png", tile(900)[0])
    return tmp_path / "new"


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_zip_replaces_nothing_but_an_earlier_zip_of_a_bundle(own: Path, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups/precious").write_text("x")
    (tmp_path / "notes").write_text("x")
    (tmp_path / "link.zip").symlink_to("notes")
    before = content(tmp_path)
    targets = (tmp_path / "backups", own, own / "bundle", own / "bundle/new.zip", own / "bundle/card.json")
    others = (
        own / "metrics.json",
        tmp_path / "notes",
        tmp_path / "link.zip",
        tmp_path / "notes/x.zip",
        ".",
        "",
        "/",
        "..",
    )
    for target in (*targets, *others):
        for overwrite in ([], ["--overwrite"]):
            refusal = blemish("bundle", own, "--zip", target, *overwrite, code=2).stderr
            assert len(refusal.splitlines()) == 1
    assert content(tmp_path) == before
    blemish("bundle", own, "--zip", tmp_path / "b.zip")
    assert "--overwrite" in blemish("bundle", own, "--zip", tmp_path / "b.zip", code=2).stderr
    blemish("bundle", own, "--zip", tmp_path / "b.zip", "--overwrite")


def test_inspect_writes_into_a_new_folder_only(own: Path, images: Path, tmp_path: Path) -> None:
    journal = tmp_path / "watched"
    blemish("watch", images, "--bundle", own, "--out", journal, "--once")
    before = content(tmp_path)
    for out in (journal, own, own / "bundle", own / "bundle/seen", images, tmp_path, ".", "..", ""):
        for overwrite in ([], ["--overwrite"]):
            blemish("inspect", own, images, "--out", out, *overwrite, code=2)
    assert content(tmp_path) == before
    assert "--overwrite is about --out" in blemish("inspect", own, images, "--overwrite", code=2).stderr


def test_inspections_within_their_images_are_not_inspected(own: Path, images: Path) -> None:
    out = images / "seen"
    blemish("inspect", own, images, "--out", out)
    first = json.loads((out / "verdicts.jsonl").read_text())
    blemish("inspect", own, images, "--out", out, code=2)
    write_image(images / "b.png", tile(901)[0])
    (images / "a.png").unlink()
    blemish("inspect", own, images, "--out", out, "--overwrite")
    second = json.loads((out / "verdicts.jsonl").read_text())  # one line
    assert (first["path"], second["path"]) == (str(images / "a.png"), str(images / "b.png"))
    assert not list(out.rglob("a.png*"))


def test_training_images_are_never_deleted(own: Path, product: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(product, data)
    shutil.copytree(own / "bundle", data / "bundle")  # looks like a run
    shutil.copytree(product, own / "images")  # a run that holds them
    (own / "evidence/mine.txt").write_text("x")
    before = content(tmp_path)
    for source, out in ((data, data), (data / "train", data), (own / "images", own), (data, own), (data, tmp_path)):
        blemish("train", source, "-o", out, "--overwrite", code=2)
        blemish("sweep", source, "-o", out, "--grid", "coreset=0.1", "--detector", "patchcore", "--overwrite", code=2)
        blemish("corrupt", source, "-o", out, "--overwrite", code=2)
    assert content(tmp_path) == before


def test_a_report_replaces_only_a_report(own: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<html>")
    before = content(tmp_path)
    for option in ("-o", "--csv", "--junit"):
        for file in (tmp_path / "mine.html", own / "verdicts.jsonl", own / "bundle/x", own, tmp_path):
            blemish("report", own, option, file, "--json", code=2)
    blemish("report", own, "-o", tmp_path / "x", "--csv", tmp_path / "x", code=2)
    assert content(tmp_path) == before
    for _ in range(2):
        blemish("report", own, "-o", own / "report.html", "--csv", tmp_path / "x.csv", "--junit", tmp_path / "x.xml")


def test_a_drift_file_and_an_explanation_stay_out_of_what_is_not_theirs(
    own: Path, images: Path, tmp_path: Path
) -> None:
    before = content(tmp_path)
    for file in (own / "bundle/drift.json", own / "metrics.json", images, "."):
        blemish("inspect", own, images, "--drift", file, code=2)
    for out in (own, images, own / "bundle/x", "."):
        blemish("explain", own, images / "a.png", "--at", "1,1", "--out", out, code=2)
    assert content(tmp_path) == before
    for place in ("1,1", "2,2"):
        blemish("explain", own, images / "a.png", "--at", place, "--out", tmp_path / "why")
    assert len(list((tmp_path / "why").glob("*.jpg"))) == 2


def test_a_second_training_is_refused_and_a_folder_that_appears_stays(product: Path, tmp_path: Path) -> None:
    out, refusals = tmp_path / "runs/late", list[str]()
    config = TrainConfig(
        product,
        out,
        settings=SMALL,
        image_size=(64, 64),
        tile=48,
        overlap=16,
        calibrate="split",
        overlays=0,
        evidence=False,
    )

    def meanwhile(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        if what == "framing":
            yield from items
            with pytest.raises(BlemishError) as refusal:  # its tiles are written by now
                train(config)
            refusals.append(str(refusal.value))
            out.mkdir()
            (out / "important.txt").write_text("x")
        else:
            yield from items

    with pytest.raises(BlemishError, match=rf"The result is in {out}-2"):
        train(config, meanwhile)
    assert refusals == [f"{out}: another process writes there; let that one end, or choose another place."]
    assert content(out) == {"important.txt": b"x"}
    card = json.loads((out.with_name("late-2") / "bundle/card.json").read_text())
    metrics = json.loads((out.with_name("late-2") / "metrics.json").read_text())
    assert card["product"] == metrics["product"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["late", "late-2"]


@pytest.mark.parametrize("making", [partial(staged, kind="run"), partial(kept, kind="inspection", names=["verdicts"])])
def test_a_disk_without_room_for_the_mark_leaves_no_folder(making: Callable[[Path], Any], tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"), making(tmp_path / "new" / "run"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_being_made_is_not_begun_by_another_command(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with staged(target, "run") as folder:
        (folder / "metrics").write_text("x")
        with (
            pytest.raises(BlemishError, match="another process writes there"),
            kept(target, "inspection", ["overlays"]),
        ):
            pass
    assert (target / "metrics").exists()
    with kept(tmp_path / "seen", "inspection", ["overlays"]):
        pass
