"""Folders that are watched beside the page: real files, real threads, real restarts."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from blemish.types import BlemishError
from blemish.web import database, watching
from blemish.web.app import assembled
from blemish.web.config import Limits
from blemish.web.site import Site
from blemish.web.tables import Verdict
from blemish.web.watching import product_of
from tests import tiny
from tests.web.support import PRODUCT, client_of, grey, made_site


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SETTLE", 0.05), ("GIVE_UP", 0.4), ("POLL", 0.02)):
        monkeypatch.setattr(watching, name, seconds)


@contextmanager
def served(site: Site) -> Iterator[TestClient]:
    """While it serves, its folders are watched."""
    with client_of(site) as client:
        yield client


def verdicts(site: Site) -> dict[str, str]:
    with site.database.reading() as session:
        rows = session.scalars(select(Verdict).order_by(Verdict.id)).all()
    assert len({row.name for row in rows}) == len(rows), [row.name for row in rows]
    return {row.name: row.decision for row in rows}


def soon(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_each_file_is_judged_once_over_restarts(tmp_path: Path) -> None:
    folder = tmp_path / PRODUCT
    folder.mkdir()
    site = made_site(tmp_path / "site", watch=(folder,))
    (folder / "a.png").write_bytes(grey(60))
    with served(site) as client:
        soon(lambda: verdicts(site) == {"a.png": "good"})
        (folder / "sub").mkdir()
        (folder / "sub/b.png").write_bytes(grey(130))
        soon(lambda: verdicts(site) == {"a.png": "good", "sub/b.png": "anomaly"})
        soon(lambda: client.get("/readyz").json()["watching"] == [f"{folder}: watched, 2 judged."])
        assert f"{folder}: watched, 2 judged." in client.get("/").text
    (folder / "c.png").write_bytes(grey(95))
    again = assembled(site.config)
    with served(again):
        soon(lambda: verdicts(again).get("c.png") == "review")
        time.sleep(0.3)
        assert len(verdicts(again)) == 3
    with again.database.reading() as session:
        row = session.scalars(select(Verdict)).first()
    assert row is not None
    assert (row.source, row.by) == (f"folder {PRODUCT}", "watch")


def test_half_a_file_waits_and_a_broken_one_gets_its_verdict(tmp_path: Path) -> None:
    folder = tmp_path / "line"
    folder.mkdir()
    site = made_site(tmp_path / "site", watch=(folder,), limits=Limits(megabytes=0.01))
    whole = grey(60, size=(40, 40))
    with served(site):
        (folder / "half.png").write_bytes(whole[:60])
        (folder / "large.png").write_bytes(whole + bytes(20_000))
        time.sleep(0.2)
        assert verdicts(site) == {}
        (tmp_path / "whole").write_bytes(whole)
        (tmp_path / "whole").replace(folder / "half.png")  # at once, or a busy machine might see it grow
        soon(lambda: verdicts(site) == {"half.png": "good"})
        (folder / "broken.png").write_bytes(whole[:60])
        soon(lambda: verdicts(site) == {"half.png": "good", "broken.png": "error"})
        assert site.folders.said() == [f"{folder}: watched, 2 judged, 1 too large."]


def test_trouble_that_passes_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT", 0.1)
    folder = tmp_path / "line"
    folder.mkdir()
    site = made_site(tmp_path / "site", watch=(folder,))
    with served(site) as client:
        other = sqlite3.connect(site.config.folder.database, isolation_level=None)
        other.execute("begin immediate")
        (folder / "a.png").write_bytes(grey(60))
        soon(lambda: any(one.tries for one in site.folders._watchers[0]._arrivals._waiting.values()))
        assert verdicts(site) == {}
        other.execute("rollback")
        soon(lambda: verdicts(site) == {"a.png": "good"})
        folder.rename(tmp_path / "away")
        soon(lambda: "cannot be listed (No such file" in client.get("/readyz").json()["watching"][0])
        assert client.get("/readyz").status_code == 200  # what people send is judged
        (tmp_path / "away").rename(folder)
        (folder / "b.png").write_bytes(grey(61))
        soon(lambda: len(verdicts(site)) == 2)
        other.close()


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match="does not exist"):
        made_site(tmp_path, watch=(tmp_path / "none",))
    with pytest.raises(BlemishError, match="holds --data"):
        made_site(tmp_path, watch=(tmp_path,))


def test_whose_product_nobody_can_tell_is_refused(tmp_path: Path) -> None:
    """Its images were judged as the first product, without a word."""
    for name in ("cam1", "wide", "one"):
        (tmp_path / name).mkdir()
    other = tiny.made(tmp_path / "other", product="wide")
    one = made_site(tmp_path / "one", watch=(tmp_path / "cam1",))
    assert product_of(tmp_path / "cam1", one.detectors) == "tiny"  # the only one
    one.detectors.bring(other, by="ada")
    with pytest.raises(BlemishError, match=r"named after none of the products tiny, wide; name it after one\.$"):
        product_of(tmp_path / "cam1", one.detectors)
    assert product_of(tmp_path / "wide", one.detectors) == "wide"
    one.database.close()
    with pytest.raises(BlemishError, match=r"--watch .*cam1: is named after none"):
        made_site(tmp_path / "one", watch=(tmp_path / "cam1",))
    made_site(tmp_path / "one", watch=(tmp_path / "wide",)).database.close()
