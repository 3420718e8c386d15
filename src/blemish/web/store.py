"""Images, masks and thumbnails in folders, under the SHA-256 of their bytes: whole or not at all, each once."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from blemish.atomic import naming
from blemish.web.config import Folder

# What a file begins with, and the ending that it gets.
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)
MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".webp": "image/webp",
    ".tif": "image/tiff",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ending_of(content: bytes) -> str:
    """By the bytes alone; "" for what is no image."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((ending for start, ending in _STARTS if content.startswith(start)), "")


class Store:
    """The files of a data folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def image(self, digest: str, ending: str) -> Path:
        """Where the image (or mask) of that hash is. Raises ValueError for what is no hash or ending of ours."""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or ending not in MEDIA:
            raise ValueError(f"expected a SHA-256 and an ending; got {digest!r} and {ending!r}")
        return self.folder.images / digest[:2] / f"{digest}{ending}"

    def thumbnail(self, digest: str, detector: int) -> Path:
        return self.folder.thumbnails / digest[:2] / f"{digest}-{detector}.jpg"

    def put(self, content: bytes, digest: str, ending: str) -> tuple[Path, bool]:
        """Keeps an image; returns its place, and whether it is new. It is on the disk when this returns. Raises
        `BlemishError` where the disk is full, or may not be written."""
        place = self.image(digest, ending)
        if place.is_file() and place.stat().st_size == len(content):
            return place, False
        self._write(place, content)
        return place, True

    def put_thumbnail(self, content: bytes, digest: str, detector: int) -> None:
        self._write(self.thumbnail(digest, detector), content, durable=False)

    def _write(self, place: Path, content: bytes, *, durable: bool = True) -> None:
        unfinished = place.with_name(f".{secrets.token_hex(8)}.unfinished")
        with naming(place, unfinished):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("wb") as file:
                    file.write(content)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                unfinished.replace(place)
                if durable:
                    _sync(place.parent)  # its name, too, survives a power cut
            finally:
                unfinished.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    with suppress(OSError):  # some systems and network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
