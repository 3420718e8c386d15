"""A site over a small folder with the tiny bundle, and clients of it: what most tests of the page begin with."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from blemish.web.app import application, assembled
from blemish.web.config import ServeConfig
from blemish.web.site import Site
from tests import tiny

LOCAL = "http://localhost"  # on loopback, no other name is answered


def config_of(folder: Path, **more: Any) -> ServeConfig:
    bundle = folder / "tiny"
    if not bundle.exists():
        tiny.made(bundle)
    return ServeConfig(**{"data": folder / "data", "bundles": (bundle,), "threads": 1} | more)


def site_of(folder: Path, **more: Any) -> Site:
    """A site with the product "tiny" and its version 1; `more` as `ServeConfig` has it."""
    config = config_of(folder, **more)
    config.data.mkdir(exist_ok=True)
    return assembled(config)


def client_of(site: Site, base: str = LOCAL) -> TestClient:
    """A program, until it gets a page: then it has a cookie, and needs the page's token as a browser does."""
    return TestClient(application(site), base_url=base, follow_redirects=False)


def png(grey: int = 50, size: tuple[int, int] = (5, 4)) -> bytes:
    """An image whose score is `grey`, for the tiny bundle: good below 90, review to 100, else an anomaly."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def csrf_in(html: str) -> str:
    """The token of a page's first form, or of its head."""
    found = re.search(r'name="csrf" (?:value|content)="([0-9a-f]{64})"', html)
    assert found, html[:500]
    return found[1]


def log_in(client: TestClient, name: str, password: str, after: str = "/") -> Any:
    """Fills in the login form; the answer."""
    csrf = csrf_in(client.get("/login").text)
    return client.post("/login", data={"csrf": csrf, "name": name, "password": password, "next": after})
