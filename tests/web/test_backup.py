"""Backups of a running server, restored: from SQLite and PostgreSQL into both; and what is no backup is refused."""

from __future__ import annotations

import errno
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import func, select, text

from blemish.atomic import open_regular
from blemish.station.chain import Head, problems
from blemish.types import BlemishError
from blemish.web import backup, ledger, sessions, users
from blemish.web.app import assembled
from blemish.web.backup import CARD, save
from blemish.web.config import ServeConfig
from blemish.web.imports import learned_from
from blemish.web.restoring import restore
from blemish.web.site import Site
from blemish.web.tables import Base, Image, Job, Verdict
from tests.web.support import PRODUCT, grey, made_site

Change = Callable[[dict[str, bytes]], None]


def used(site: Site) -> Site:
    """With verdicts, a user, a session, and a job that runs."""
    for value in range(60, 72):
        site.line.inspect(grey(value), f"ä {value}.png", PRODUCT, by="ann", source="api", request=f"r{value}")
    site.line.inspect(b"no image", "x.png", PRODUCT, by="ann", source="api")
    users.add(site.database, "ada", "admin", "a password")
    sessions.begin(site.database, name="ann")
    with site.database.writing() as session:
        fields = {"product": PRODUCT, "by": "ann", "created": "t", "settings": {"epochs": 3}, "comparison": {}}
        session.add(Job(state="running", stage="", done=0, total=0, error="", **fields))
    return site


def content(site: Site) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables."""
    with site.database.reading() as session:
        return {
            table.name: [dict(row) for row in session.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in Base.metadata.sorted_tables
        }


def address(kind: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("postgres")()) if kind == "postgresql" else ""


@pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "sqlite"), ("sqlite", "postgresql"), ("postgresql", "sqlite")]
)
def test_a_backup_is_restored_into_either_database(
    source: str, target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    site = used(made_site(tmp_path, database=address(source, request)))
    version = site.detectors.judging(PRODUCT)
    site.config.folder.learned(version.sha256).write_text(f"{'a' * 64}\n")
    saved = save(site.config, tmp_path / "saved.zip")
    assert (saved.problems, saved.rows) == (
        [],
        sum(len(rows) for name, rows in content(site).items() if name != "session"),
    )
    assert (tmp_path / "saved.zip").stat().st_mode & 0o77 == 0
    config = ServeConfig(data=tmp_path / "again", database=address(target, request))
    restored = restore(tmp_path / "saved.zip", config)
    assert (restored.problems, restored.head, restored.rows) == ([], saved.head, saved.rows)
    again = assembled(config)
    before, after = content(site), content(again)
    assert (len(before["session"]), after["session"]) == (1, [])
    (job,) = after["job"]
    assert (job["state"], job["error"]) == ("cancelled", "It had not ended when the backup was made.")
    assert job["settings"] == {"epochs": 3}
    for name in set(before) - {"session", "job"}:
        assert after[name] == before[name], name
    for row in before["image"]:
        if row["ending"]:
            place = again.store.image(row["sha256"], row["ending"])
            assert place.read_bytes() == site.store.image(row["sha256"], row["ending"]).read_bytes()
    assert learned_from(again.detectors, version) == frozenset({"a" * 64})
    # It works on: the numbers of new rows are free, and the log goes on where it ended.
    new = again.line.inspect(grey(200), "new.png", PRODUCT, by="ann", source="api")
    assert new.id == before["verdict"][-1]["id"] + 1
    with again.database.reading() as session:
        assert not [*problems(ledger.entries(session), Head.from_text(saved.head)), *ledger.differences(session)]
    site.database.close()
    again.database.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_is_of_one_moment_while_others_write(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    site = made_site(tmp_path, database=address(kind, request))
    stop = threading.Event()

    def write(first: int) -> None:
        number = first
        while not stop.is_set():
            site.line.inspect(grey(60, spot=number % 250), f"{number}.png", PRODUCT, by="ann", source="api")
            number += 2

    writers = [threading.Thread(target=write, args=(first,)) for first in range(2)]
    for writer in writers:
        writer.start()
    try:
        for number in range(3):
            with site.database.reading() as session:
                before = session.scalar(select(func.count()).select_from(Verdict)) or 0
            saved = save(site.config, tmp_path / f"{number}.zip")
            config = ServeConfig(data=tmp_path / f"again{number}")
            restored = restore(tmp_path / f"{number}.zip", config)
            assert restored.problems == saved.problems == []
            again = assembled(config)
            rows = content(again)
            assert len(rows["verdict"]) >= before
            assert len(rows["log"]) == len(rows["verdict"]) + 2  # detector and promotion
            assert {row["image_id"] for row in rows["verdict"]} <= {row["id"] for row in rows["image"]}
            for row in rows["image"]:
                assert again.store.image(row["sha256"], row["ending"]).is_file()
            again.database.close()
            shutil.rmtree(tmp_path / f"again{number}")
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    site.database.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    site = used(made_site(folder))
    save(site.config, folder / "saved.zip")
    site.database.close()
    return folder / "saved.zip"


def test_where_a_backup_goes(saved: Path, tmp_path: Path) -> None:
    config = ServeConfig(data=saved.parent / "data")
    file = tmp_path / "saved.zip"
    file.write_text("something else")
    with pytest.raises(BlemishError, match="it is no backup, so it stays"):
        save(config, file, overwrite=True)
    shutil.copy(saved, file)
    with pytest.raises(BlemishError, match="replace it with --overwrite"):
        save(config, file)
    save(config, file, overwrite=True)
    with pytest.raises(BlemishError, match="is no folder of `blemish serve`"):
        save(ServeConfig(data=tmp_path / "none"), tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()
    with pytest.raises(BlemishError, match="is not empty"):
        restore(saved, config)


def test_what_is_missing_is_named_and_the_rest_is_saved(tmp_path: Path) -> None:
    site = used(made_site(tmp_path))
    with site.database.reading() as session:
        first, second = session.scalars(select(Image).where(Image.ending != "").limit(2)).all()
    site.store.image(first.sha256, first.ending).unlink()
    site.store.image(second.sha256, second.ending).write_bytes(b"damaged")
    saved = save(site.config, tmp_path / "saved.zip")
    assert len(saved.problems) == 2
    assert any("cannot be read (No such file" in said for said in saved.problems)
    assert any("is damaged" in said for said in saved.problems)
    restored = restore(tmp_path / "saved.zip", ServeConfig(data=tmp_path / "again"))
    assert restored.rows == saved.rows
    assert restored.files == saved.files
    site.database.close()


def test_what_a_restore_would_refuse_is_not_in_the_backup(tmp_path: Path) -> None:
    """A file manager's `.DS_Store` beside a bundle made a backup that named no problem, and could not be restored."""
    site = used(made_site(tmp_path))
    place = site.detectors.place(site.detectors.version(1))
    for name in (".DS_Store", ".nfs000000000001", "Kopie von report.html"):
        (place / name).write_bytes(b"x")
    saved = save(site.config, tmp_path / "saved.zip")
    assert saved.problems == [
        f"{place / name}: is no file of a version; it is not in the backup."
        for name in (".nfs000000000001", "Kopie von report.html")
    ]
    assert restore(tmp_path / "saved.zip", ServeConfig(data=tmp_path / "again")).files == saved.files
    site.database.close()


def test_a_file_that_the_disk_cannot_read_is_named_and_the_rest_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an error names no file, as one of the .zip's own disk does: the whole backup ended with it."""
    site = used(made_site(tmp_path))
    place = site.detectors.place(site.detectors.version(1)) / "bundle/model.onnx"

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def reading(file: Path) -> IO[bytes]:
        return Broken() if file == place else open_regular(file)

    monkeypatch.setattr(backup, "open_regular", reading)
    saved = save(site.config, tmp_path / "saved.zip")
    assert saved.problems == [f"{place}: cannot be read (Input/output error); it is not in the backup."]
    assert restore(tmp_path / "saved.zip", ServeConfig(data=tmp_path / "again")).files == saved.files
    site.database.close()


def changed(saved: Path, target: Path, change: Change) -> Path:
    """The backup with other contents."""
    with zipfile.ZipFile(saved) as packed:
        contents = {name: packed.read(name) for name in packed.namelist()}
    change(contents)
    with zipfile.ZipFile(target, "w") as packed:
        for name, data in contents.items():
            packed.writestr(name, data)
    return target


def of_card(change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(contents: dict[str, bytes]) -> None:
        card = json.loads(contents[CARD])
        change(card)
        contents[CARD] = json.dumps(card).encode()

    return apply


def first(contents: dict[str, bytes], start: str) -> str:
    return next(name for name in contents if name.startswith(start))


def flip(start: str) -> Change:
    def apply(contents: dict[str, bytes]) -> None:
        name = first(contents, start)
        contents[name] = contents[name][:-2] + b"x" + contents[name][-1:]

    return apply


STRANGE = [
    "../evil",
    "/etc/evil",
    "images/../../evil",
    "images/ab/../../../evil.png",
    "detectors/" + "a" * 64 + "/../evil",
    "detectors/" + "a" * 64 + "/.ssh/evil",
    "images\\evil.png",
    "C:evil",
    "blemish.sqlite",
    "tables/../x.jsonl",
]


@pytest.mark.parametrize("name", STRANGE)
def test_no_name_leads_out_of_the_folder(name: str, saved: Path, tmp_path: Path) -> None:
    def add(contents: dict[str, bytes]) -> None:
        contents[name] = b"evil"
        of_card(lambda card: card["contents"].update({name: {"bytes": 4, "sha256": "0" * 64}}))(contents)

    file = changed(saved, tmp_path / "strange.zip", add)
    with pytest.raises(BlemishError, match="which no backup does"):
        restore(file, ServeConfig(data=tmp_path / "new/again"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strange.zip"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip("images/"), "is not what was saved"),
        (flip("detectors/"), "is not what was saved"),
        (flip("tables/verdict"), "is not what was saved"),
        (lambda c: c.pop(first(c, "images/")), "does not hold the files"),
        (lambda c: c.update({"images/ab/" + "a" * 64 + ".png": b""}), "does not hold the files"),
        (lambda c: c.pop(CARD), "is no backup"),
        (of_card(lambda card: card.update(revision="9999")), "a newer one"),
        (of_card(lambda card: card.update(format=2)), "a newer one"),
        (of_card(lambda card: card.update(tables=3)), "cannot be read"),
        (of_card(lambda card: card.update(head="x")), "cannot be read"),
        (of_card(lambda card: card["tables"].pop("verdict")), "does not hold the files"),
    ],
)
def test_a_damaged_backup_is_refused_and_leaves_nothing(
    change: Change, words: str, saved: Path, tmp_path: Path
) -> None:
    file = changed(saved, tmp_path / "damaged.zip", change)
    with pytest.raises(BlemishError, match=words):
        restore(file, ServeConfig(data=tmp_path / "again"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.zip"]


def test_a_damaged_backup_leaves_an_empty_database_empty(
    saved: Path, tmp_path: Path, postgres: Callable[[], str]
) -> None:
    url = postgres()
    file = changed(saved, tmp_path / "damaged.zip", flip("tables/verdict"))
    with pytest.raises(BlemishError, match="is not what was saved"):
        restore(file, ServeConfig(data=tmp_path / "again", database=url))
    restore(saved, ServeConfig(data=tmp_path / "again", database=url))
    with pytest.raises(BlemishError, match="holds tables already"):
        restore(saved, ServeConfig(data=tmp_path / "once more", database=url))


def test_a_link_and_a_file_of_zeros_are_refused(saved: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("images/aa/" + "a" * 64 + ".png")
    link.external_attr = 0o120777 << 16
    for name, info, data, how in (
        ("link.zip", link, b"/etc/passwd", zipfile.ZIP_STORED),
        ("bomb.zip", "images/aa/" + "a" * 64 + ".png", bytes(10**6), zipfile.ZIP_DEFLATED),
        ("twice.zip", "tables/user.jsonl", b"", zipfile.ZIP_STORED),
    ):
        shutil.copy(saved, tmp_path / name)
        with zipfile.ZipFile(tmp_path / name, "a") as packed, pytest.warns() if name == "twice.zip" else nullcontext():
            packed.writestr(info, data, how)
        with pytest.raises(BlemishError, match=r"no backup does|packed again|twice"):
            restore(tmp_path / name, ServeConfig(data=tmp_path / "again"))
    (tmp_path / "half.zip").write_bytes(saved.read_bytes()[:20_000])
    (tmp_path / "text.zip").write_bytes(b"no zip")
    for name in ("half.zip", "text.zip", "none.zip"):
        with pytest.raises(BlemishError, match=name):
            restore(tmp_path / name, ServeConfig(data=tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_backup_never_becomes_more_than_it_is(saved: Path, tmp_path: Path) -> None:
    """A .zip of 625 KB, whose files overlap in it, wrote 154 MB before it was refused."""
    shutil.copy(saved, tmp_path / "bomb.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "a") as packed:
        largest = max(packed.infolist(), key=lambda info: info.file_size)
        many = saved.stat().st_size // largest.file_size + 1
        for number in range(many):
            again = copy(largest)
            again.filename = f"detectors/{'0' * 64}/f{number}"
            packed.filelist.append(again)
        packed._didModify = True  # type: ignore[attr-defined]
    assert (tmp_path / "bomb.zip").stat().st_size < saved.stat().st_size + 200 * many
    with pytest.raises(BlemishError, match="holds more than its own size"):
        restore(tmp_path / "bomb.zip", ServeConfig(data=tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_damaged_table_is_found_before_anything_is_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    opening = Path.open

    def noted(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "images" in self.parts:
            written.append(self)
        return opening(self, mode, *args, **more)

    file = changed(saved, tmp_path / "damaged.zip", flip("tables/verdict"))
    monkeypatch.setattr(Path, "open", noted)
    with pytest.raises(BlemishError, match="is not what was saved"):
        restore(file, ServeConfig(data=tmp_path / "again"))
    assert written == []
    restore(saved, ServeConfig(data=tmp_path / "again"))
    assert written


def test_what_was_tampered_with_before_is_said_when_it_is_restored(tmp_path: Path) -> None:
    site = used(made_site(tmp_path))
    with site.database.writing() as session:
        session.execute(text("update verdict set decision = 'good' where id = 3"))
        session.execute(text("update verdict set decision = 'anomaly' where id = 4"))
    save(site.config, tmp_path / "saved.zip")
    restored = restore(tmp_path / "saved.zip", ServeConfig(data=tmp_path / "again"))
    assert restored.problems == ["Entry 6: verdict 4 has been changed."]
    site.database.close()
