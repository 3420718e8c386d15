"""An S3 server for all tests of clusters, and a bucket for each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from tests.cluster.support import new_bucket, s3_server

NUMBERS = count()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a real S3 server on the loopback; the environment leads to it while any test of the session runs."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3: str) -> tuple[str, Any]:
    """The name of a new bucket, and pyarrow's file system for it."""
    name = f"bucket-{next(NUMBERS)}"
    return name, new_bucket(name)
