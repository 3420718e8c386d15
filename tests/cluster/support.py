"""A real S3 server on the loopback for the tests of clusters: moto's, spoken to by pyarrow."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

REGION = "eu-central-1"


@contextmanager
def s3_server() -> Iterator[str]:
    """A server of its own, empty, until the block ends; yields its URL. The environment says where it is, also to
    processes that are started meanwhile, such as Ray's."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or each request is a line on standard error
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as environment:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            environment.delenv(name, raising=False)
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": url,
            "AWS_EC2_METADATA_DISABLED": "true",  # there is no machine to ask for credentials
        }.items():
            environment.setenv(name, value)
        try:
            yield url
        finally:
            server.stop()


def new_bucket(name: str) -> Any:
    """Makes an empty bucket; returns pyarrow's file system, in which its keys are `name/key`."""
    system, path = fs.FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")  # it reads AWS_ENDPOINT_URL
    system.create_dir(path)
    return system


def put(system: Any, path: str, content: bytes = b"") -> None:
    """Writes one object, `path` = bucket/key."""
    with system.open_output_stream(path) as file:
        file.write(content)


def put_folder(system: Any, path: str, folder: Path) -> None:
    """Writes all files below a folder as objects below `path` = bucket/prefix."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            put(system, f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())
