"""`blemish backup`, `restore` and `log` of a page, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from blemish.web.config import ServeConfig
from blemish.web.database import Database
from tests.support import blemish, refused
from tests.web.support import PRODUCT, grey, made_site


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a server that runs, with three verdicts."""
    site = made_site(tmp_path_factory.mktemp("page"))
    for value in (60, 95, 130):
        site.line.inspect(grey(value), f"{value}.png", PRODUCT, by="ann", source="api")
    return site.config.data


def test_saved_and_restored(data: Path, tmp_path: Path) -> None:
    head = blemish("log", "head", data).stdout.strip()
    assert head.startswith("blemish log 1 5 ")
    said = blemish("backup", data, tmp_path / "saved.zip").stdout
    assert said.startswith(f"{tmp_path / 'saved.zip'}: ")
    assert said.endswith(f"; {head}\n")
    assert "--overwrite" in refused("backup", data, tmp_path / "saved.zip")
    blemish("backup", data, tmp_path / "saved.zip", "--overwrite")
    assert blemish("restore", tmp_path / "saved.zip", tmp_path / "again").stdout.endswith(f"; {head}\n")
    assert blemish("log", "verify", tmp_path / "again", "--head", head).stdout == f"5 entries, no problem; {head}\n"


def test_the_log_of_a_page_tells_what_was_changed(data: Path, tmp_path: Path) -> None:
    blemish("backup", data, tmp_path / "saved.zip")
    blemish("restore", tmp_path / "saved.zip", tmp_path / "again")
    database = Database(ServeConfig(tmp_path / "again").url)
    with database.writing() as session:
        session.execute(text("update verdict set decision = 'good' where id = 3"))
        session.execute(text("delete from log where seq = 4"))
    database.close()
    said = json.loads(blemish("log", "verify", tmp_path / "again", "--json", code=3).stdout)
    assert said["problems"] == [
        "Entry 4 is missing before entry 5.",
        "Entry 5: verdict 3 has been changed.",
        "Verdict 2 is not in the log.",
    ]
    url = f"sqlite:///{tmp_path / 'again/blemish.sqlite'}"
    assert "Entry 4 is missing" in blemish("log", "verify", "--database", url, code=3).stdout
    assert "3 problems" in blemish("log", "head", tmp_path / "again", code=3).stderr
    assert refused("log", "verify").startswith("Which log?")


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_database_is_no_page(tmp_path: Path, made: bool) -> None:
    data = tmp_path / "pgae"
    if made:
        data.mkdir()
    sentence = f"{data}: is no folder of `blemish serve`; give the one of its --data."
    assert refused("backup", data, tmp_path / "saved.zip") == sentence
    assert data.exists() == made
    assert not (tmp_path / "saved.zip").exists()
