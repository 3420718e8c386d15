"""Learn again, with the real process and a real training of the tiny product."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, select

from blemish.atomic import lock_file
from blemish.training.choice import choose
from blemish.types import BlemishError, Label, Sample, SplitName
from blemish.web import corrections, learning, thresholds
from blemish.web.comparison import as_they_came, earlier
from blemish.web.config import Folder
from blemish.web.learning import Holder, Rates, cancel, counts, holder, job_of, log_of, start
from blemish.web.site import Site
from blemish.web.tables import Correction, Detector, Image, Job, now
from tests import tiny
from tests.support import eventually
from tests.web.learned import ended, left, site_of
from tests.web.rows import image_row
from tests.web.support import client_of, grey, made_site


@pytest.fixture
def site(all_teach: Path, product: Path, tmp_path: Path) -> Iterator[Site]:
    made = site_of(tmp_path / "page", all_teach, product)
    yield made
    made.database.close()


def begin(site: Site, rates: Rates | None = None) -> Job:
    return start(site.config, site.database, site.detectors, "tiles", "ada", rates)


def test_learns_again_compares_promotes_and_rolls_back(site: Site) -> None:
    first = site.detectors.judging("tiles")
    assert counts(site.database, "tiles") == (40, 0, 6, 6, 0, 0)
    job = begin(site)
    with pytest.raises(BlemishError, match=rf"A training of 'tiles' runs already \(job {job.id}\)"):
        begin(site)
    job = ended(site, job.id)
    assert (job.state, job.error) == ("done", ""), log_of(site.config.folder, job.id)
    new = site.detectors.version(int(job.detector_id or 0))
    assert (new.version, new.kind, new.parent_id, new.job_id, new.by) == (2, "learned", first.id, job.id, "ada")
    card = site.detectors.inspector(new.id).card
    before = site.detectors.inspector(first.id).card
    assert (card.data.train + card.data.calibration, card.data.test) == (40, 12)
    assert card.settings == before.settings
    assert card.image_size == before.image_size
    assert (card.decision.false_alarms, card.decision.review) == (before.decision.false_alarms, 0.1)
    assert card.decision.threshold == pytest.approx(before.decision.threshold, rel=0.2)
    assert card.product == "tiles"
    assert len(thresholds.scored(site.database, site.detectors, new)) == 12
    # The same images and settings: both versions judge alike.
    assert (job.comparison["good"], job.comparison["anomalies"]) == (6, 6)
    assert [run["run"] for run in job.comparison["runs"]] == ["version 1", "version 2"]
    assert job.comparison["runs"][0]["auroc"]["value"] == new.metrics["detection"]["auroc"]["value"] == 1.0
    assert "Only 6 good images are held out" in job.comparison["words"][0]
    assert job.comparison["audit"] == []
    assert left(site, job.id) == ["log.txt"]
    assert holder(site.config.folder) is None
    assert site.detectors.judging("tiles").id == first.id
    site.detectors.promote(new.id, "ada")
    assert site.detectors.judging("tiles").id == new.id
    site.detectors.promote(first.id, "ada")
    assert [p.detector_id for p in site.detectors.promotions("tiles")] == [first.id, new.id, first.id]


def test_a_training_is_cancelled(site: Site) -> None:
    job = begin(site)
    eventually(lambda: job_of(site.config.folder, site.database, job.id).state == "running")
    cancel(site.config.folder, site.database, job.id)
    job = ended(site, job.id)
    assert (job.state, job.error, job.detector_id) == ("cancelled", "", None)
    assert left(site, job.id) == ["log.txt"]
    with pytest.raises(BlemishError, match="has ended already"):
        cancel(site.config.folder, site.database, job.id)


def test_a_killed_training_is_seen_as_failed_and_the_next_one_begins(site: Site) -> None:
    job = begin(site)
    eventually(lambda: (held := holder(site.config.folder)) and held.job == job.id)
    eventually(lambda: job_of(site.config.folder, site.database, job.id).state == "running")
    os.kill(holder(site.config.folder).process, signal.SIGKILL)  # type: ignore[union-attr]
    job = ended(site, job.id)
    assert (job.state, job.error) == ("failed", learning.DIED)
    assert left(site, job.id) == ["log.txt"]
    following = begin(site)
    assert following.id != job.id
    cancel(site.config.folder, site.database, following.id)  # before its process has begun, or after
    assert ended(site, following.id).state == "cancelled"


def test_a_job_that_never_began_is_seen_as_failed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_run", lambda *_: None)
    job = begin(site)
    assert job_of(site.config.folder, site.database, job.id).state == "queued"
    monkeypatch.setattr(learning, "STARTING", 0.0)
    assert job_of(site.config.folder, site.database, job.id).error == learning.NEVER_BEGAN


def test_a_job_of_another_machine_is_not_cancelled_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_run", lambda *_: None)
    site = made_site(tmp_path)
    with site.database.writing() as session:
        job = Job(product="tiny", state="running", by="ada", created=now(), settings={}, before_id=1)
        session.add(job)
    (site.config.folder.jobs).mkdir()
    lock = lock_file(site.config.folder.jobs / learning.LOCK, tmp_path)
    lock.write(learning.Holder(os.getpid(), job.id, "press 4").content())
    assert holder(site.config.folder) == (os.getpid(), job.id, "press 4")
    with pytest.raises(BlemishError, match="runs on the machine press 4"):
        cancel(site.config.folder, site.database, job.id)
    lock.close()
    # Its process has died after the new version had come, which is the last of its work: the job is done.
    new = site.detectors.bring(tiny.made(tmp_path / "new", created="later"), by="ada", kind="learned", job_id=job.id)
    job = job_of(site.config.folder, site.database, job.id)
    assert (job.state, job.error, job.detector_id) == ("done", "", new.id)
    site.database.close()


def test_what_the_training_refuses_is_the_job_s_error(site: Site) -> None:
    job = ended(site, begin(site, Rates(0.001)).id)
    assert job.state == "failed"
    assert "cannot guarantee 0.10% false alarms" in job.error


def test_nothing_to_learn_from_is_refused_in_words(all_teach: Path, tmp_path: Path) -> None:
    site = site_of(tmp_path / "page", all_teach)
    with pytest.raises(BlemishError, match="'tiles' has no good image to learn from"):
        begin(site)
    with site.database.reading() as session:
        assert not session.scalars(select(Job)).all()
    site.database.close()


def test_the_choice_of_the_detector_is_told_before(site: Site) -> None:
    told = learning.choice(site.database, "tiles", 0.05)
    assert told.detector == "patchcore"
    assert told.sentence.startswith("All 6 defective images are held out, so")
    with site.database.writing() as session:
        for image in session.scalars(select(Image).where(Image.split == "test")):
            session.add(
                Image(
                    sha256=image.sha256[::-1], product="tiles", name="x", ending=".png", width=80, height=60,
                    added=now(), label="anomaly", defect="spot", split="train", item=image.sha256, shapes=[], mask="",
                )
            )  # fmt: skip
    told = learning.choice(site.database, "tiles", 0.3)
    assert told.detector == "hybrid"
    assert "12 defective images" in told.sentence
    assert counts(site.database, "tiles")[:2] == (40, 12)


@pytest.mark.parametrize("least", [0, 6, 24])
def test_the_choice_is_that_of_the_images_one_by_one(tmp_path: Path, least: int) -> None:
    """`choose` of the same images as samples, for images that share items, and few or many that are defective."""
    site, draw = made_site(tmp_path), random.Random(least)
    samples = []
    with site.database.writing() as session:
        for number in range(least, 150):
            label: Label = "anomaly" if number < 40 else "good"
            item = draw.choice(["", "", f"part {draw.randrange(20)}", f"part {number}"])
            shapes = [{"points": [[0, 0], [1, 0], [1, 1]]}] if label == "anomaly" and number % 2 else []
            mask = "a" * 64 if label == "anomaly" and number % 3 == 0 else ""
            split: SplitName = "test" if draw.random() < 0.2 else "train"
            image_row(session, "tiny", number, label=label, split=split, item=item, shapes=shapes, mask=mask)
            masked = Path("mask") if shapes or mask else None
            samples.append(Sample(Path("x"), f"image {number}", label, "", masked, split, item))
        image_row(session, "tiny", 1000)  # without a label
        image_row(session, "tiny", 1001, label="anomaly", split="train", ending="")  # whose file is not kept
    for rate in (0.005, 0.05, 0.3):
        expected, told = choose(samples, false_alarms=rate), learning.choice(site.database, "tiny", rate)
        assert told.detector == expected.detector
        assert re.findall("[0-9]+", told.sentence) == re.findall("[0-9]+", expected.sentence)
    asked: list[str] = []
    event.listen(site.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    learning.choice(site.database, "tiny", 0.05)
    assert all("count(" in statement for statement in asked if statement != "BEGIN")  # no image is read
    site.database.close()


def test_it_is_said_before_a_training_that_it_learns_nothing_from_new_labels(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    numbers = [
        site.line.inspect(grey(n), f"{n}.png", "tiny", by="ada", source="page").image_id for n in (10, 20, 130, 140)
    ]
    with site.database.writing() as session:
        for number in numbers:
            session.get_one(Image, number).split = "train"
        session.get_one(Image, numbers[1]).split = "test"
    for number, said in zip(numbers[1:], ("good", "anomaly", "anomaly"), strict=True):
        corrections.label(site, number, "ada", "good" if said == "good" else "anomaly")
    page = client_of(site).get("/detectors", headers={"Accept": "text/html"}).text
    assert "No image is labelled as good yet" in page
    counted = counts(site.database, "tiny")
    assert (counted.new, counted.new_good) == (3, 0)  # a good one that is held out is not learned from
    corrections.label(site, numbers[0], "ada", "good")
    assert counts(site.database, "tiny").new_good == 1
    with site.database.writing() as session:
        session.get_one(Detector, 1).created = now()
        session.get_one(Image, numbers[2]).split = "train"
    corrections.label(site, numbers[2], "ada", "anomaly")
    page = client_of(site).get("/detectors", headers={"Accept": "text/html"}).text
    assert "No good image to learn from is among those newly labelled (1), and patchcore learns from good" in page
    corrections.label(site, numbers[0], "ada", "anomaly")  # one good image less is something new
    assert (counts(site.database, "tiny").new, counts(site.database, "tiny").new_good) == (2, 1)
    assert learning.nothing_from("hybrid", 3, 0) == learning.nothing_from("patchcore", 0, 0) == ""
    site.database.close()


def test_a_training_that_begins_between_two_looks_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made_site(tmp_path)
    with site.database.writing() as session:
        job = Job(product="tiny", state="queued", by="a", created="2026-01-01T00:00:00.000+00:00", settings={})
        job.before_id, job.stage, job.error, job.comparison = 1, "", "", {}
        session.add(job)
    model = site.config.folder.jobs / "1/run/model"
    look = learning.holder

    def begins(folder: Folder) -> Holder | None:
        held = look(folder)
        with site.database.writing() as session:
            session.get_one(Job, 1).state = "running"
        model.parent.mkdir(parents=True)
        model.write_text("x")
        return held

    monkeypatch.setattr(learning, "holder", begins)
    learning.settle(site.config.folder, site.database)
    assert model.is_file()
    site.database.close()


def test_postgresql_counts_and_keeps_jobs_too(
    postgres: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_run", lambda *_: None)
    site = made_site(tmp_path, database=postgres())
    seen = site.line.inspect(grey(80), "a.png", "tiny", by="ada", source="page")
    with site.database.writing() as session:
        image = session.get_one(Image, seen.image_id)
        image.label, image.split = "good", "test"
        image = Image(sha256="0" * 64, product="tiny", name="b", ending=".png", added=now(), label="good")
        image.split, image.shapes = "train", []
        session.add(image)
        said = Correction(image_id=seen.image_id, time=now(), by="ada", action="label", label="good")
        session.add(said)
    assert counts(site.database, "tiny") == (1, 0, 1, 0, 1, 0)
    assert learning.choice(site.database, "tiny", 0.05).sentence.startswith("There are no defective images")
    first = site.detectors.judging("tiny")
    assert [image.score for image in thresholds.scored(site.database, site.detectors, first)] == [80.0]
    job = start(site.config, site.database, site.detectors, "tiny", "ada", Rates(0.25, 0.5), "hybrid")
    with pytest.raises(BlemishError, match="runs already"):
        start(site.config, site.database, site.detectors, "tiny", "ada")
    assert cancel(site.config.folder, site.database, job.id).state == "cancelled"
    assert [row.state for row in learning.jobs_of(site.config.folder, site.database, "tiny")] == ["cancelled"]
    assert thresholds.save(site.detectors, first, 0.5, None, by="ada").version == 2
    with site.database.writing() as session:
        row = session.get_one(Job, job.id)
        row.state, row.comparison = "done", {"images": 8}
        row = Job(product="tiny", state="done", by="ada", created=now(), settings={}, before_id=1, comparison={})
        row.stage = row.error = ""
        session.add(row)
    assert "1 earlier training was compared" in earlier(site.database, row)
    corrections.label(site, seen.image_id, "ada", "anomaly")  # which was good
    assert counts(site.database, "tiny").new_good == 0  # and is held out
    with site.database.reading() as session:
        assert as_they_came(session, learning.labelled(session, "tiny")) == set()
    site.database.close()


def test_a_training_of_another_server_on_the_same_database_is_left_alone(
    postgres: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_run", lambda *_: None)
    address = postgres()
    own, other = (made_site(tmp_path / name, database=address) for name in ("own", "other"))
    with own.database.writing() as session:
        image = Image(sha256="0" * 64, product="tiny", name="a", ending=".png", added=now(), label="good")
        image.split, image.shapes = "train", []
        session.add(image)
    job = start(own.config, own.database, own.detectors, "tiny", "ada")
    with own.database.writing() as session:
        session.get_one(Job, job.id).state = "running"
    own.config.folder.jobs.mkdir()
    lock = lock_file(own.config.folder.jobs / learning.LOCK, tmp_path)
    lock.write(learning.here(job.id).content())
    for site in (own, other):
        assert job_of(site.config.folder, site.database, job.id).state == "running"
    page = client_of(other).get(f"/jobs/{job.id}", headers={"Accept": "text/html"}).text
    assert f"in its folder {own.config.data.resolve()}, and was last heard of at" in page
    assert "/cancel" not in page
    with pytest.raises(BlemishError, match=r"runs on the machine .* and was last heard of at .* cancel it on that one"):
        cancel(other.config.folder, other.database, job.id)
    with pytest.raises(BlemishError, match="runs already"):
        start(other.config, other.database, other.detectors, "tiny", "ada")
    # Its machine is gone for an hour: it can be given up, and no process gets a signal.
    monkeypatch.setattr(learning, "SILENT", -1.0)
    assert "Give it up" in client_of(other).get(f"/jobs/{job.id}", headers={"Accept": "text/html"}).text
    monkeypatch.setattr(os, "kill", None)
    given_up = cancel(other.config.folder, other.database, job.id)
    assert (given_up.state, given_up.error[:38]) == ("failed", "It was given up: it ran on the machine")
    lock.close()
    following = start(other.config, other.database, other.detectors, "tiny", "ada")
    with own.database.writing() as session:
        session.get_one(Job, following.id).state = "running"
    assert job_of(own.config.folder, own.database, following.id).state == "running"
    assert job_of(other.config.folder, other.database, following.id).error == learning.DIED  # one's own is seen
    own.database.close()
    other.database.close()
