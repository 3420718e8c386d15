"""Two versions on held-out images, counted by hand: only those that nobody chose by a verdict are a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blemish.inference.inspector import Inspector
from blemish.types import Label, silent
from blemish.web import corrections
from blemish.web.comparison import UNTESTED, Compared, as_they_came, compared, counted, earlier, few
from blemish.web.config import Folder
from blemish.web.dataset import is_imported, write_folder
from blemish.web.store import Store, sha256
from blemish.web.tables import Image, Job, now
from tests import tiny
from tests.web.rows import image_row
from tests.web.support import grey, made_site

IMPORTED = [("good", 40), ("good", 50), ("good", 60), ("anomaly", 120), ("anomaly", 130), ("anomaly", 140)]
# What a person corrected: version 1 (anomaly above 100) took these for anomalies or good, wrongly.
CORRECTED = [("good", 105), ("good", 107), ("good", 109), ("anomaly", 70), ("good", 95)]


def versions(folder: Path, images: list[tuple[str, int, str]]) -> Compared:
    """Version 1 flags above 100 and puts aside above 90; the new one flags above 110, and puts nothing aside. `images`
    are labels, greys and items, all held out."""
    store = Store(Folder(folder / "page"))
    rows = []
    for number, (label, value, item) in enumerate(images, start=1):
        content = grey(value, number)
        store.put(content, sha256(content), ".png")
        image = Image(id=number, sha256=sha256(content), product="tiny", name=f"{value}.png", ending=".png", width=24)
        image.height, image.label, image.defect, image.shapes, image.mask = 16, label, "", [], ""
        image.split, image.item = "test", item
        rows.append(image)
    written = write_folder(store, rows, folder / "job/tiny")
    tiny.made(folder / "old/bundle")
    rule = tiny.card().decision.model_dump() | {"threshold": 110.0, "review": None, "review_threshold": None}
    tiny.made(folder / "job/run/bundle", decision=rule, created="later")
    (folder / "job/run/metrics.json").write_text("{}")
    judge = Inspector(folder / "job/run")
    lines = []
    for name, image in written.images.items():
        verdict = judge.look(written.folder / name, name).verdict
        lines.append({**verdict.to_json(), "predicted_defect": "", "label": image.label, "defect": ""})
    (folder / "job/run/verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    came = {image.id for image in rows if is_imported(image.item)}
    return compared(folder / "old", written, folder / "job", silent, came)


def test_what_people_corrected_is_counted_apart_and_is_no_test(tmp_path: Path) -> None:
    imported = [(label, value, f"test/{value}.png") for label, value in IMPORTED]
    corrected = [(label, value, "pixels:" + str(value)) for label, value in CORRECTED]
    found = versions(tmp_path, [*imported, *corrected])
    told = found.told
    # On the images that nobody chose both versions are right on all, so that no difference is seen.
    assert (told["images"], told["good"], told["anomalies"]) == (6, 3, 3)
    assert told["differences"][0]["mcnemar"] == {"only_first_right": 0, "only_second_right": 0, "p_value": None}
    assert [run["recall"]["value"] for run in told["runs"]] == [1.0, 1.0]
    assert [run["false_alarm_rate"]["value"] for run in told["runs"]] == [0.0, 0.0]
    assert [run["review"] for run in told["runs"]] == [0, 0]
    # On those that version 1 got wrong or put aside, the new one is right on four; it misses the 70 too.
    assert told["corrected"] == {"images": 5, "right": [0, 4], "review": [1, 0], "wrong": [4, 1]}
    changed = {entry["shown"]: (entry["decisions"], entry["corrected"]) for entry in told["changed"]}
    assert changed == {
        "105.png": (["anomaly", "good"], True),
        "107.png": (["anomaly", "good"], True),
        "109.png": (["anomaly", "good"], True),
        "95.png": (["review", "good"], True),
    }
    assert set(found.thumbnails) == {entry["sha256"] for entry in told["changed"]}
    assert all(picture.startswith(b"\xff\xd8") for pair in found.thumbnails.values() for picture in pair)


@pytest.mark.parametrize("item", ["", "pixels:"], ids=["of an older page", "with its pixels"])
def test_corrected_images_alone_give_no_interval_and_no_test(tmp_path: Path, item: str) -> None:
    told = versions(tmp_path, [(label, value, item and item + str(value)) for label, value in CORRECTED]).told
    assert not {"runs", "differences", "images"} & set(told)
    assert told["words"] == [UNTESTED]
    assert told["corrected"]["right"] == [0, 4]
    assert len(told["changed"]) == 4


def test_without_held_out_images_only_words_are_told(tmp_path: Path) -> None:
    assert versions(tmp_path, []).told == {"words": few(0, 0)}


def test_counts_by_hand() -> None:
    images = [("anomaly", "good", "anomaly"), ("good", "anomaly", "anomaly"), ("anomaly", "review", "review")]
    assert counted([*images, ("good", "error", "good")]) == {
        **{"images": 4, "right": [0, 2], "review": [1, 1], "wrong": [3, 1]},
    }


def test_a_label_that_was_changed_in_sight_of_a_verdict_is_no_test(tmp_path: Path) -> None:
    """Of what came with its label, what a person confirmed is tested still, and what one changed is not."""
    site = made_site(tmp_path)
    names = ("kept", "confirmed", "changed", "changed back", "came when it was skipped", "dropped in")
    with site.database.writing() as session:
        for number, name in enumerate(names[:5]):
            came = {"item": f"test/{name}.png", "labelled_by": "import", "label": "anomaly", "split": "test"}
            image_row(session, "tiny", number, name=name, **came)
        image_row(session, "tiny", 5, name=names[5], item="pixels:1")
        session.get_one(Image, 5).labelled_by, session.get_one(Image, 5).label = "", None
    corrections.skip(site, 5, "ada")
    with site.database.writing() as session:
        session.get_one(Image, 5).labelled_by, session.get_one(Image, 5).label = "import", "anomaly"
    said: list[tuple[int, Label]] = [
        (2, "anomaly"),
        (3, "good"),
        (4, "good"),
        (4, "anomaly"),
        (5, "anomaly"),
        (6, "good"),
    ]
    for number, label in said:
        corrections.label(site, number, "ada", label)
    with site.database.reading() as session:
        images = session.scalars(select(Image)).all()
        assert {image.name for image in images if image.id in as_they_came(session, images)} == {
            *("kept", "confirmed", "changed back", "came when it was skipped"),
        }
    site.database.close()


def test_how_often_the_held_out_images_were_compared_on_is_told(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    kept: list[dict[str, Any]] = [{"images": 8}, {"words": []}, {"images": 8}, {"images": 9}]
    with site.database.writing() as session:
        for comparison, state in zip(kept, ("done", "done", "failed", "done"), strict=True):
            job = Job(product="tiny", state=state, by="ada", created=now(), settings={}, before_id=1)
            job.comparison, job.stage, job.error = comparison, "", ""
            session.add(job)
        session.flush()
        jobs = session.scalars(select(Job).order_by(Job.id)).all()
    assert earlier(site.database, jobs[0]) == ""
    assert "1 earlier training was compared on these held-out images too." in earlier(site.database, jobs[3])
    site.database.close()
