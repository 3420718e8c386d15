"""A training that is cancelled, faulty or killed at each stage: its page never contradicts what is there."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blemish.training import pipeline
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train as pipeline_train
from blemish.web import comparison, corrections, learning
from blemish.web import job as job_module
from blemish.web.dataset import Written
from blemish.web.detectors import Detectors
from blemish.web.learning import job_of, start
from blemish.web.site import Site
from blemish.web.store import Store
from blemish.web.tables import Image, Job
from tests.web.learned import left, site_of
from tests.web.support import client_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`train`, which trains once: all sites here learn from the same images, so that the next gets the same run."""
    kept: dict[str, Any] = {}
    copy = tmp_path_factory.mktemp("trained") / "run"

    def train(config: TrainConfig, told: Any) -> Any:
        if not kept:
            kept["run"] = pipeline_train(config, told)
            shutil.copytree(config.out, copy)
        else:
            shutil.copytree(copy, config.out)
        return replace(kept["run"], folder=config.out)

    return train


@pytest.fixture
def site(
    all_teach: Path, product: Path, trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """A site whose trainings run in this process, when `run` is called."""
    monkeypatch.setattr(pipeline, "train", trained)
    monkeypatch.setattr(learning, "_run", lambda *_: None)
    monkeypatch.setattr(os, "nice", lambda _: 0)
    made = site_of(tmp_path / "page", all_teach, product)
    monkeypatch.setenv(learning.DATABASE, made.config.url)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)
    made.database.close()


def run(site: Site) -> Job:
    begun = start(site.config, site.database, site.detectors, "tiles", "ada")
    job_module.main(str(site.config.data), begun.id)
    return job_of(site.config.folder, site.database, begun.id)


def versions(site: Site) -> list[int]:
    return [version.version for version in site.detectors.versions("tiles")]


def when(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], None]) -> None:
    """`act` is called at the end of a function."""
    real = getattr(owner, name)

    def both(*args: Any, **named: Any) -> Any:
        result = real(*args, **named)
        act()
        return result

    monkeypatch.setattr(owner, name, both)


def cancelled() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (job_module, "write_folder"),
        (job_module, "_name_images"),
        (job_module, "compared"),
        (job_module, "_keep"),
    ],
)
def test_cancelled_before_the_new_version_comes_nothing_is_changed(
    site: Site, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    when(monkeypatch, owner, name, cancelled)
    job = run(site)
    assert (job.state, job.error, job.detector_id, job.comparison) == ("cancelled", "", None, {})
    assert versions(site) == [1]
    assert left(site, job.id) == []
    assert "Nothing was changed" in client_of(site).get(f"/jobs/{job.id}", headers={"Accept": "text/html"}).text


def test_cancelled_just_after_it_began(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    when(monkeypatch, job_module, "_claim", cancelled)
    job = run(site)
    assert (job.state, job.error, versions(site)) == ("cancelled", "", [1])


def test_remarks_name_the_images_as_people_know_them() -> None:
    image = Image(id=7, name="a b.png")
    written = Written(Path("folder"), {"test/good/a-b-0123.png": image})
    said = "test/good/a-b-0123.png and train/good/gone.png show the same thing; see test/good/a-b-0123.png."
    assert job_module.remark(said, written) == {
        "sentence": "a b.png and train/good/gone.png show the same thing; see a b.png.",
        "images": [[7, "a b.png"]],
    }
    assert job_module.remark("Nothing.", written) == {"sentence": "Nothing.", "images": []}


def test_what_people_picked_of_the_test_images_is_counted(site: Site) -> None:
    with site.database.reading() as session:
        image = session.scalar(select(Image).where(Image.split == "test", Image.label == "anomaly"))
        assert image
    with site.database.writing() as session:
        session.get_one(Image, image.id).item = "pixels:0"  # as of one that was dropped on the page
    corrections.label(site, image.id, "ada", "anomaly", defect=image.defect)
    assert site.detectors.version(int(run(site).detector_id or 0)).metrics["counts"]["test_picked"] == 1


def test_a_fault_in_the_comparison_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty() -> None:
        raise RuntimeError("a fault")

    when(monkeypatch, job_module, "compared", faulty)
    job = run(site)
    assert (job.state, job.detector_id, versions(site)) == ("failed", None, [1])
    assert "fault of blemish" in job.error


@pytest.mark.parametrize(
    ("owner", "name", "act"),
    [(Detectors, "bring", "cancel"), (Store, "put_thumbnail", "fault"), (job_module, "named", "kill")],
)
def test_once_the_new_version_is_there_the_job_is_done(
    site: Site, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: str
) -> None:
    calls: list[str] = []

    def acts() -> None:
        calls.append(name)
        if act == "cancel":
            cancelled()
        elif len(versions(site)) == 2:
            raise KeyboardInterrupt if act == "kill" else RuntimeError("a fault")

    if act == "fault":  # the versions judge alike, so nothing would be drawn
        found = comparison.compared
        monkeypatch.setattr(
            job_module, "compared", lambda *args: comparison.Compared(found(*args).told, {"0" * 64: (b"1", b"2")})
        )
    when(monkeypatch, owner, name, acts)
    if act == "kill":
        with pytest.raises(KeyboardInterrupt):
            run(site)
        job = job_of(site.config.folder, site.database, 1)
    else:
        job = run(site)
    assert calls
    assert learning.heard(job) > str(job.started)  # each step tells the time
    assert (job.state, job.error, versions(site)) == ("done", "", [2, 1])
    assert job.detector_id == site.detectors.versions("tiles")[0].id
    assert job.comparison["images"] == 12
    assert job.comparison["runs"][0]["run"] == "version 1"
    assert left(site, job.id) == []
    page = client_of(site).get(f"/jobs/{job.id}", headers={"Accept": "text/html"}).text
    assert "Learned: version 2" in page
    assert "On the same 12 held-out images" in page
