"""A site over the two-kilobyte bundle of tests/tiny.py: the score of an image is its mean grey, above 90 it is put
aside for review, above 100 it is an anomaly."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from blemish.web.app import application, assembled
from blemish.web.config import Limits, ServeConfig
from blemish.web.site import Site
from tests import tiny

PRODUCT = "tiny"
HERE = "http://127.0.0.1:8477"  # on loopback, no name of another machine is answered
DEFAULT = Limits()


def made_site(folder: Path, *, limits: Limits = DEFAULT, bundles: int = 1, **config: Any) -> Site:
    """A site in `folder`/data, with so many versions of the product `tiny`."""
    made = []
    for number in range(bundles):
        path = folder / f"bundle{number}"
        made.append(path if path.exists() else tiny.made(path, created=f"2026-01-0{1 + number}T00:00:00+00:00"))
    return assembled(ServeConfig(data=folder / "data", bundles=tuple(made), limits=limits, **config))


def client_of(site: Site, base: str = HERE) -> TestClient:
    """A program on the same machine, until it gets a page: then it has a cookie, and needs the page's token to write,
    as a browser does."""
    return TestClient(application(site), base_url=base, raise_server_exceptions=False, follow_redirects=False)


def csrf_in(html: str) -> str:
    """The token that a page's forms and scripts send."""
    found = re.search(r'name="csrf" (?:value|content)="([0-9a-f]{64})"', html)
    assert found, html[:500]
    return found[1]


def log_in(client: TestClient, name: str, password: str, after: str = "/") -> Any:
    """Fills in the login form; returns the answer."""
    csrf = csrf_in(client.get("/login").text)
    return client.post("/login", data={"csrf": csrf, "name": name, "password": password, "next": after})


def grey(value: int, spot: int | None = None, size: tuple[int, int] = (24, 16)) -> bytes:
    """A PNG of that grey; `spot` is the value of one pixel, so that images of one grey are not the same image."""
    pixels = np.full((size[1], size[0], 3), value, np.uint8)
    if spot is not None:
        pixels[0, 0] = spot
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
