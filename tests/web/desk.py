"""A page over a tiny bundle, whose score is an image's mean: good up to 90, for review up to 100, then an anomaly."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image as Pixels

from blemish.station import chain
from blemish.web import ledger
from blemish.web.app import application, assembled
from blemish.web.config import ServeConfig
from blemish.web.site import Site
from blemish.web.tables import Image, Verdict
from tests import tiny

SIZE = (40, 30)  # width, height


def opened(folder: Path, database: str = "") -> Site:
    """A site over a new data folder."""
    bundle = tiny.made(folder / "tiny")
    return assembled(ServeConfig(folder / "data", (bundle,), database=database))


def picture(mean: int, number: int = 0) -> bytes:
    """A grey PNG; `number` makes it another one of the same mean."""
    pixels = np.full((SIZE[1], SIZE[0], 3), mean, np.uint8)
    pixels[number // 10, 2 * (number % 10)] += 1
    pixels[number // 10, 2 * (number % 10) + 1] -= 1
    buffer = io.BytesIO()
    Pixels.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def judged(site: Site, mean: int, number: int = 0) -> Verdict:
    return site.line.inspect(picture(mean, number), f"{mean}-{number}.png", "tiny", by="anna", source="api")


def image(site: Site, image_id: int) -> Image:
    with site.database.reading() as session:
        return session.get_one(Image, image_id)


def troubles(site: Site) -> list[str]:
    """What is wrong with the log."""
    with site.database.reading() as session:
        return [*chain.problems(ledger.entries(session)), *ledger.differences(session)]


@contextmanager
def served(site: Site) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(application(site), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
