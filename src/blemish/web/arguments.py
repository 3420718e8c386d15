"""What `blemish serve` is given, looked at before anything is written."""

from __future__ import annotations

from pathlib import Path

from blemish.inference import bundle
from blemish.types import BlemishError, readable
from blemish.web import users, watching
from blemish.web.config import ServeConfig
from blemish.web.database import Database, shown

SHOWN = 3  # bundles in a folder that are named
KINDS = ("sqlite", "postgresql")  # of databases


def check(config: ServeConfig) -> None:
    """Reads the bundles, looks at the folders, and asks the database. Raises `BlemishError` for the first that will not
    do."""
    sources = {_checked(path).card.data.source for path in config.bundles}
    new = not (config.database or config.folder.database.is_file())
    for folder in config.images:
        name = readable(folder.resolve().name)
        if not folder.is_dir():
            state = "is a file, not a folder" if folder.exists() else "does not exist"
            raise BlemishError(f"--images {folder}: {state}; give the folder of images that a bundle was trained on.")
        if new and name not in sources:  # else `bring_images` asks the bundles of the page too
            raise BlemishError(f"--images {folder}: no bundle here learned from a folder {name}; give its run too.")
    watching.check(config.watch, config.data)
    if config.database:
        _check_database(config.database)


def _checked(path: Path) -> bundle.Bundle:
    if not path.exists():
        raise bundle.BundleError(f"{path}: does not exist; give a run of `blemish train`, its bundle, or a .zip of it.")
    if path.is_dir() and not any((folder / bundle.CARD).exists() for folder in (path, path / "bundle")):
        inner = sorted({card.parent for way in ("*", "*/bundle") for card in path.glob(f"{way}/{bundle.CARD}")})
        if inner:
            names = " ".join(map(str, inner[:SHOWN])) + (" ..." if len(inner) > SHOWN else "")
            raise bundle.BundleError(f"{path}: is no bundle, but holds some; give them one by one: {names}")
    return bundle.read(path)


def _check_database(url: str) -> None:
    if not url.startswith(KINDS):
        raise BlemishError(
            f"--database {shown(url)}: is neither SQLite nor PostgreSQL; write postgresql+psycopg://USER@HOST/NAME."
        )
    database = Database(url)
    database.tables()
    database.close()


def check_users(config: ServeConfig) -> None:
    """Raises `BlemishError` where people log in and nobody can. The folder's database is not made for that."""
    if config.local:
        return
    nobody = True
    if config.database or config.folder.database.is_file():
        database = Database(config.url)
        database.upgrade()
        nobody = not users.listed(database)
        database.close()
    if nobody:
        raise BlemishError(
            "Where others can reach it, people log in, and nobody can yet; make the first user with: "
            f"blemish user NAME --role admin --data {config.data}{' --database ...' if config.database else ''}."
        )
