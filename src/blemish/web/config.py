"""What `blemish serve` is started with, and the folder that it keeps everything in. Light: no web package is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blemish.images import MAX_PIXELS

DATABASE = "blemish.sqlite"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
KIND = "page"  # what `files.kept` calls the data folder
WRITTEN = ("images", "thumbnails", "detectors", "jobs", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")
RESTORING = ".restoring"  # a file that is there until a restore has ended


@dataclass(frozen=True)
class Limits:
    """What one upload may be, and how long an image may take."""

    megabytes: float = 64.0  # of one image's file
    pixels: int = MAX_PIXELS
    files: int = 1000  # of one form
    form_megabytes: float = 2000.0  # of all images of one form
    timeout: float = 60.0  # seconds that the graph may take


@dataclass(frozen=True)
class Folder:
    """The places in the data folder. Images and masks are named by the SHA-256 of their bytes, bundles by that of their
    card; nothing that a user wrote becomes a path."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / DATABASE

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def thumbnails(self) -> Path:
        return self.path / "thumbnails"

    @property
    def detectors(self) -> Path:
        """`<sha256 of the card>/`: a bundle, or a run with its bundle."""
        return self.path / "detectors"

    def learned(self, sha256: str) -> Path:
        """The hashes of the images that a version learned from, one a line; no file where that is not known."""
        return self.detectors / f"{sha256}.learned"

    @property
    def jobs(self) -> Path:
        """`<number>/`: what a training reads and writes."""
        return self.path / "jobs"


@dataclass(frozen=True)
class ServeConfig:
    """The arguments of `blemish serve`. `images` are labelled folders that bundles were trained on, `watch` folders
    that a camera writes into."""

    data: Path
    bundles: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    watch: tuple[Path, ...] = ()
    database: str = ""  # "" = SQLite in the data folder
    host: str = "127.0.0.1"
    port: int = 8477
    proxy: bool = False  # a reverse proxy stands before it, and says who asks and whether by https
    threads: int = 0  # images that are judged at once; 0 = one for each core
    limits: Limits = Limits()

    @property
    def folder(self) -> Folder:
        return Folder(self.data)

    @property
    def url(self) -> str:
        """Of the database."""
        return self.database or f"sqlite:///{self.folder.database.absolute()}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it: then nobody needs a password."""
        return self.host in LOOPBACK and not self.proxy
