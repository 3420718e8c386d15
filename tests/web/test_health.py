"""Alive, ready, and what was counted; and what becomes of a server whose disk, database or bundle is in trouble."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from blemish.web import database, health
from blemish.web.site import Site
from tests.web.support import PRODUCT, client_of, grey, made_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = made_site(tmp_path)
    yield site
    site.database.close()


def test_a_server_that_can_judge_is_ready(site: Site) -> None:
    client = client_of(site)
    assert client.get("/healthz").json() == {"ready": True, "reasons": [], "watching": []}
    assert (client.get("/readyz").status_code, client.get("/readyz").json()["reasons"]) == (200, [])
    for path in ("/healthz", "/readyz"):  # as load balancers ask
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_where_people_log_in_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "camera").mkdir()
    site = made_site(tmp_path, host="0.0.0.0", watch=(tmp_path / "camera",))
    client = client_of(site, "http://line.example")
    assert client.get("/readyz").json() == {"ready": True, "reasons": [], "watching": []}
    shutil.rmtree(site.detectors.place(site.detectors.version(1)))
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "reasons": [health.LOGGED], "watching": []}
    assert "cannot be loaded any more" in caplog.text
    site.database.close()


def test_what_was_counted(site: Site) -> None:
    client = client_of(site)
    for value in (60, 61, 95, 130):
        client.post("/api/v1/inspect", content=grey(value))
    client.post("/api/v1/inspect", content=b"no image")
    client.get("/api/v1/verdicts/99")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        f'blemish_verdicts_total{{decision="good",product="{PRODUCT}"}} 2.0',
        f'blemish_verdicts_total{{decision="review",product="{PRODUCT}"}} 1.0',
        f'blemish_verdicts_total{{decision="anomaly",product="{PRODUCT}"}} 1.0',
        f'blemish_verdicts_total{{decision="error",product="{PRODUCT}"}} 1.0',
        f'blemish_inspect_seconds_count{{product="{PRODUCT}"}} 5.0',
        'blemish_errors_total{status="404"} 1.0',
        'blemish_jobs{state="running"} 0.0',
        "blemish_log_entries 7.0",  # detector, promotion, five verdicts
    ):
        assert line in lines
    # The one to be reviewed, and the anomaly, whose p (1 of 4 with itself) is at the rate of 25% exactly.
    assert f'blemish_queue{{product="{PRODUCT}"}} 2.0' in lines


def test_two_servers_of_one_process_count_for_themselves(tmp_path: Path) -> None:
    first, second = made_site(tmp_path / "a"), made_site(tmp_path / "b")
    client_of(first).post("/api/v1/inspect", content=grey(60))
    assert "blemish_verdicts_total{" not in client_of(second).get("/metrics").text


def test_a_bundle_that_is_gone_is_told_and_judges_on_from_memory(site: Site) -> None:
    client = client_of(site)
    assert client.post("/api/v1/inspect", content=grey(60)).status_code == 200
    place = site.detectors.place(site.detectors.judging(PRODUCT))
    shutil.move(place, place.with_name("away"))
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"][0].startswith("Version 1 of 'tiny' cannot be loaded any more.")
    assert client.post("/api/v1/inspect", content=grey(61)).json()[0]["decision"] == "good"
    assert client.get("/healthz").status_code == 200
    shutil.move(place.with_name("away"), place)
    assert client.get("/readyz").status_code == 200


def test_a_bundle_that_was_replaced_is_told(tmp_path: Path) -> None:
    site = made_site(tmp_path, bundles=2)
    first, second = (site.detectors.place(version) for version in reversed(site.detectors.versions(PRODUCT)))
    shutil.rmtree(first)
    shutil.copytree(second, first)
    assert "holds another bundle" in client_of(site).get("/readyz").json()["reasons"][0]
    (first / "bundle/model.onnx").write_bytes(b"damaged")
    assert "model.onnx is damaged" in client_of(site).get("/readyz").json()["reasons"][0]


def test_a_bundle_that_is_not_in_memory_either_is_a_state_of_the_server(site: Site) -> None:
    shutil.rmtree(site.detectors.place(site.detectors.judging(PRODUCT)))
    answer = client_of(site).post("/api/v1/inspect", content=grey(60))
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert "cannot be loaded now" in answer.json()["error"]["message"]


def test_a_database_that_is_locked_is_a_state_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT", 0.2)
    site = made_site(tmp_path)
    other = sqlite3.connect(site.config.folder.database, isolation_level=None)
    other.execute("begin immediate")
    client = client_of(site)
    answer = client.post("/api/v1/inspect", content=grey(60), headers={"Idempotency-Key": "k"})
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert "database is locked" in answer.json()["error"]["message"]
    assert client.get("/readyz").status_code == 200  # it reads, and the writer has its turn in a moment
    other.execute("rollback")
    assert client.post("/api/v1/inspect", content=grey(60), headers={"Idempotency-Key": "k"}).json()[0]["id"] == 1


def test_a_folder_that_cannot_be_written_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(site)
    monkeypatch.setattr(health, "ROOM", 10**18)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "MB left" in answer.json()["reasons"][0]
    site.database.close()
    shutil.rmtree(site.config.data)
    reasons = client.get("/readyz").json()["reasons"]
    assert reasons[0].startswith("The data folder cannot be written to (No such file or directory)")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted ({done.stderr.decode().strip()})")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_records_nothing_and_is_told(small_disk: Path) -> None:
    site = made_site(small_disk)
    client = client_of(site)
    assert client.post("/api/v1/inspect", content=grey(60)).status_code == 200
    assert client.get("/readyz").status_code == 503
    rest = small_disk / "rest"
    with rest.open("wb", buffering=0) as file, suppress(OSError):  # all that is left
        while True:
            file.write(bytes(4096))
    large = grey(61) + bytes(300_000)
    answer = client.post("/api/v1/inspect", content=large, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 507
    assert "full" in answer.json()["error"]["message"]
    small = client.post("/api/v1/inspect", content=b"no image")  # nothing but the database is written
    assert small.status_code in (200, 507)  # where SQLite had room in its file
    with site.database.reading() as session:
        assert not session.execute(text("select 1 from verdict where request like 'k%'")).all()
    assert not list(small_disk.rglob("*.unfinished"))
    rest.unlink()
    assert client.post("/api/v1/inspect", content=large, headers={"Idempotency-Key": "k"}).status_code == 200
    site.database.close()
