"""Where images are read and results written: a folder, or a prefix of a bucket, by pyarrow's file systems."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa
from pyarrow import fs

from blemish.types import BlemishError

LOCAL = "file"
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://(.*)", re.DOTALL)
_BUCKETS = ("s3", "gs")


def split_uri(text: str) -> tuple[str, str]:
    """The scheme of a URI and what follows it; that of a path is "file", and what follows it the path.

    >>> split_uri("s3://bucket/a b#1.png"), split_uri("/data/a.png")
    (('s3', 'bucket/a b#1.png'), ('file', '/data/a.png'))
    >>> split_uri("file:///data/%FF.png")
    ('file', '/data/\\udcff.png')
    """
    match = _SCHEME.fullmatch(text)
    if not match:
        return LOCAL, text
    scheme, rest = match[1].lower(), match[2]
    return (LOCAL, os.fsdecode(unquote_to_bytes(rest.removeprefix("localhost")))) if scheme == LOCAL else (scheme, rest)


def uri_of(path: str) -> str:
    """A file's path as it stands in a manifest, which is UTF-8: itself, or as file:// URI where it is not."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"file://{quote_from_bytes(os.fsencode(path))}"
    return path


def without_options(text: str) -> tuple[str, str]:
    """A bucket's URI without its options (`?region=...&endpoint_override=...`), and the options with their `?`."""
    if split_uri(text)[0] == LOCAL or "?" not in text:
        return text, ""
    bare, _, options = text.rpartition("?")
    # A key may hold a question mark too; options look like options.
    return (bare, f"?{options}") if re.fullmatch(r"\w+=[^&]*(&\w+=[^&]*)*", options) else (text, "")


@lru_cache(maxsize=64)  # making one asks the bucket for its region
def file_system(scheme: str, bucket: str, options: str) -> Any:
    """pyarrow's file system for a bucket. Raises `BlemishError` where it cannot be used."""
    try:
        if scheme not in _BUCKETS:
            raise ValueError(f"{scheme}:// is not known")
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}{options}")[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError) as cause:
        raise BlemishError(
            f"{scheme}://{bucket}: cannot be used ({reason_of(cause)}); give a folder, s3://BUCKET/PREFIX or gs://BUCKET/"
            "PREFIX, with options such as ?region=eu-central-1."
        ) from None


@dataclass(frozen=True)
class Place:
    """A folder or a bucket's prefix. `uri` is its path, absolute, or its URI without options."""

    uri: str
    options: str = ""

    @property
    def local(self) -> bool:
        return split_uri(self.uri)[0] == LOCAL

    def at(self, name: str) -> str:
        """The URI of a file in it."""
        return f"{self.uri.rstrip('/')}/{name}"

    def system(self) -> tuple[Any, str]:
        """pyarrow's file system, and the path in it."""
        scheme, path = split_uri(self.uri)
        if scheme == LOCAL:
            return fs.LocalFileSystem(), path
        return file_system(scheme, path.partition("/")[0], self.options), path.rstrip("/")

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError, and `BlemishError` where it cannot be read."""
        system, path = self.system()
        with _named(self.at(name)), system.open_input_stream(f"{path}/{name}") as file:
            content: bytes = file.read()
            return content

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all, over an earlier one. Raises `BlemishError` where it cannot."""
        system, path = self.system()
        with _named(self.at(name)):
            if self.local:
                with _written(Path(path, name)) as file:
                    file.write(content)
                return
            # One object appears when it is complete.
            with system.open_output_stream(f"{path}/{name}") as stream:
                stream.write(content)

    def check(self) -> None:
        """Raises `BlemishError` where nothing can be written."""
        name = f".blemish-{secrets.token_hex(4)}"
        self.write(name, b"")
        self.remove_file(name)

    def upload(self, name: str, file: Path) -> None:
        """Moves a file of this machine to `name`."""
        system, path = self.system()
        with _named(self.at(name)):
            if self.local:
                with file.open("rb") as read, _written(Path(path, name)) as write:  # it may be on another disk
                    shutil.copyfileobj(read, write, 2**20)
                file.unlink()
                return
            fs.copy_files(str(file), f"{path}/{name}", fs.LocalFileSystem(), system)
            file.unlink()

    def names(self, folder: str) -> list[str]:
        """The names of the files in one of its folders, sorted; none where that is missing."""
        system, path = self.system()
        selector = fs.FileSelector(f"{path}/{folder}", allow_not_found=True)
        with _named(self.at(folder)):
            return sorted(one.base_name for one in system.get_file_info(selector) if one.type == fs.FileType.File)

    def holds(self) -> set[str]:
        """The names of the files and folders that are directly in it."""
        system, path = self.system()
        with _named(self.uri):
            return {one.base_name for one in system.get_file_info(fs.FileSelector(path, allow_not_found=True))}

    def remove_file(self, name: str) -> None:
        """Removes a file, if it is there."""
        system, path = self.system()
        with suppress(OSError):
            system.delete_file(f"{path}/{name}")

    def remove(self, folder: str) -> None:
        """Removes one of its folders, if it is there."""
        system, path = self.system()
        with suppress(OSError):
            system.delete_dir(f"{path}/{folder}")


def place(text: str) -> Place:
    """A place as a user names it: a folder, relative or not, or a URI. Raises `BlemishError` for what cannot be one."""
    scheme, path = split_uri(text)
    if scheme == LOCAL:
        resolved = str(Path(path).resolve())
        if uri_of(resolved) != resolved:
            raise BlemishError(f"{resolved!a}: its name is not UTF-8, which pyarrow needs; rename it.")
        return Place(resolved)
    bare, options = without_options(text)
    bucket, _, prefix = split_uri(bare)[1].partition("/")
    if not bucket:
        raise BlemishError(f"{text}: names no bucket; give {scheme}://BUCKET/PREFIX.")
    if "@" in bucket:  # it would stand in every row
        raise BlemishError(
            f"{scheme}://...@{bucket.rpartition('@')[2]}: a key does not belong into the name; set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY."
        )
    return Place(f"{scheme}://{bucket}/{prefix.strip('/')}".rstrip("/"), options)


@contextmanager
def _written(file: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which gets its name when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")  # two workers may write the same file
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut may leave it empty under its name
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """A refusal of a file system as a sentence; a missing file stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as cause:
        raise BlemishError(f"{what}: {reason_of(cause)}; check that place, and who may read and write there.") from None


def reason_of(cause: BaseException) -> str:
    """What a file system, or pyarrow, says is wrong, without what only its authors need."""
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
    text = str(said).strip().partition("\n")[0]
    text = re.sub(r".*AWS Error (\w+)(?: \(.*?\))? during \w+ operation: ", _plain, text)
    return re.sub(r"\s*\(Request ID: \w+\)", "", text).rstrip(". ") or type(cause).__name__


def _plain(match: re.Match[str]) -> str:
    return f"{match[1].lower().replace('_', ' ')}: "
