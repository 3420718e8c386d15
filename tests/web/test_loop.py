"""The whole loop as a quality engineer goes through it, in a real browser: inspect, look, correct, learn again, compare,
promote, inspect again. After the light has changed, good parts are flagged; with three of them corrected, they are not.

With BLEMISH_SCREENSHOTS=FOLDER in the environment, the images of the documents are taken on the way.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from blemish.inference.inspector import Inspector
from tests.conftest import made_once
from tests.web.accessibility import serious
from tests.web.browser import DESKTOP, TABLET, Visitor, visiting
from tests.web.kill import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BRIGHTER = 30  # grey levels
DROP = """async ([target, files]) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  document.querySelector(target).dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/flange`, the drawn product with few and small images, and `run`, PatchCore trained on it."""
    return made_once(tmp_path_factory, "loop", _draw_and_train)


def _draw_and_train(folder: Path) -> None:
    from blemish.demo.line import write_line
    from blemish.detectors.patchcore.config import PatchCoreConfig
    from blemish.training.config import TrainConfig
    from blemish.training.pipeline import train

    (data,) = write_line(folder / "data", products=["flange"], size=256, train=30, good=8, defective=2)
    settings = PatchCoreConfig(max_bank=2000)
    train(TrainConfig(data, folder / "run", settings=settings, image_size=(128, 128), false_alarms=0.1, overlays=4))


@pytest.fixture(scope="module")
def server(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("loop") / "page"
    with Server(data, drawn / "run", "--images", drawn / "data/flange") as server:
        yield server


def brighter(file: Path) -> bytes:
    pixels = np.asarray(Image.open(file).convert("RGB"), np.int64) + BRIGHTER
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def new_images(drawn: Path) -> dict[str, bytes]:
    """Twenty images, good ones in another light and defective ones, and a broken one."""
    test = drawn / "data/flange/test"
    good = {f"bright-{file.name}": brighter(file) for file in sorted((test / "good").glob("*.png"))}
    defective = {
        f"{file.parent.name}-{file.name}": file.read_bytes()
        for file in sorted(test.glob("*/*.png"))
        if file.parent.name != "good"
    }
    return dict([*good.items(), *defective.items()][:20]) | {"broken.png": b"\x89PNG\r\n\x1a\n, but no more"}


def drop(page: Page, files: dict[str, bytes]) -> None:
    page.evaluate(DROP, ["#drop", [[name, base64.b64encode(content).decode()] for name, content in files.items()]])


def shot(page: Page, name: str) -> None:
    """An image for the documents, where these are asked for."""
    if folder := os.environ.get("BLEMISH_SCREENSHOTS"):
        page.wait_for_timeout(600)
        page.screenshot(path=Path(folder) / f"page-{name}.png")
