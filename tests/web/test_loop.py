"""The whole loop as a quality engineer goes through it, in a real browser: inspect, look, correct, learn again,
compare, promote, inspect again. The light has changed, and good parts are flagged; with some corrected, they are not.

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

from tests.conftest import made_once
from tests.web.accessibility import serious
from tests.web.browser import TABLET, Visitor, visiting
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

SAID = "async (n) => (await (await fetch(`/api/v1/corrections?image_id=${n}`)).text()).includes('good')"


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
        page.screenshot(path=Path(folder) / f"page-{name}.jpg", type="jpeg", quality=72)


def accessible(page: Page) -> None:
    assert serious(page) == []


def test_from_a_drop_to_a_better_detector(server: Server, drawn: Path, desktop: Visitor, browser: Browser) -> None:
    images = new_images(drawn)
    page = desktop.new_page()
    page.goto(server.url)
    with visiting(browser, **TABLET) as colleague:
        other = colleague.new_page()
        other.goto(server.url)
        drop(page, images)
        for each in (page, other):  # the colleague sees what comes, too
            each.wait_for_function("() => document.querySelectorAll('#verdicts > li').length === 21", timeout=60_000)
        assert "broken.png" in page.inner_text("#verdicts .is-error")
        accessible(page)
        shot(page, "inspect")
        shot(other, "inspect-tablet")
        accessible(other)

        wrong = false_alarms(page)
        assert len(wrong) >= 3
        look_at(page, server.url, wrong[0])
        first = correct_in_the_grid(page, server.url, wrong[:-1])
        other.goto(f"{server.url}/review?show=labelled")
        last = correct_with_care(page, server.url, wrong[-1], other)
        learn_again(page, server.url)

    # The page says of each image whether it is learned from; of those that are, the new version knows the light.
    learned = [name for name in (*first, *last) if held_out(page, server.url, name) is False]
    assert learned
    page.goto(server.url)
    name = learned[0]
    before = page.locator("#verdicts > li").count()
    drop(page, {name: images[name]})
    page.wait_for_function("(n) => document.querySelectorAll('#verdicts > li').length > n", arg=before)
    newest = page.locator("#verdicts > li").first
    assert name in newest.inner_text()
    assert "GOOD" in newest.inner_text().upper()
    assert "version 2" in page.inner_text(".lead-line")


def false_alarms(page: Page) -> list[tuple[str, int, int]]:
    """Name, verdict and image of the good parts that are flagged."""
    answer = page.request.get(f"{page.url.rstrip('/')}/api/v1/verdicts?decision=anomaly&limit=100").json()
    rows = answer["verdicts"] if isinstance(answer, dict) else answer
    return [(row["name"], row["id"], row["image_id"]) for row in rows if row["name"].startswith("bright-")]


def look_at(page: Page, url: str, image: tuple[str, int, int]) -> None:
    """The page of one verdict: slider, and a question about a place that is not flagged."""
    page.click(f"#verdict-{image[1]} a")
    page.wait_for_url(f"**/verdicts/{image[1]}*")
    page.wait_for_selector("#evidence[aria-busy=false]")
    assert "anomaly" in page.inner_text("main").lower()
    page.locator("#opacity").focus()
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#heat").evaluate("element => Number(getComputedStyle(element).opacity)") < 1
    box = page.locator("#stage").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#why img")
    assert "distance" in page.inner_text("#why").lower()
    accessible(page)
    shot(page, "image")


def correct_in_the_grid(page: Page, url: str, images: list[tuple[str, int, int]]) -> list[str]:
    """By keyboard alone: the arrow keys reach the tile, g says good."""
    page.goto(f"{url}/review?show=all&verdict=anomaly")
    accessible(page)
    shot(page, "review")
    for _, _, number in images:
        page.locator(f"#image-{number} input[type=checkbox]").focus()
        page.keyboard.press("g")
        page.wait_for_function(SAID, arg=number)
    return [name for name, _, _ in images]


def correct_with_care(page: Page, url: str, image: tuple[str, int, int], other: Page) -> list[str]:
    """In the single view, and the colleague's page has it without being loaded again."""
    name, _, number = image
    page.goto(f"{url}/review/{number}?show=all&verdict=anomaly")
    accessible(page)
    shot(page, "single")
    page.keyboard.press("g")
    page.wait_for_url(lambda address: f"/review/{number}" not in address)
    other.goto(f"{url}/review/{number}?show=all")
    assert "good" in other.inner_text("main").lower()
    return [name]


def learn_again(page: Page, url: str) -> None:
    page.goto(f"{url}/detectors")
    accessible(page)
    shot(page, "detectors")
    page.get_by_role("button", name="Learn again").click()
    page.wait_for_url("**/jobs/*")
    assert page.locator("#stage").is_visible()
    promote = page.get_by_role("button", name="Promote version 2")
    promote.wait_for(timeout=240_000)
    assert "held-out images" in page.inner_text("main")
    accessible(page)
    shot(page, "compare")
    promote.click()
    page.wait_for_load_state()
    page.goto(f"{url}/detectors")
    assert "Version 2 judges" in page.inner_text(".lead-line").replace("version", "Version")


def held_out(page: Page, url: str, name: str) -> bool | None:
    """Whether the image's own page says that it is held out."""
    rows = page.request.get(f"{url}/api/v1/verdicts?name={name}").json()
    rows = rows["verdicts"] if isinstance(rows, dict) else rows
    page.goto(f"{url}/review/{rows[0]['image_id']}?show=all")
    return "held out" in page.inner_text("main")


def test_every_page_is_accessible_on_a_tablet_and_in_the_dark(server: Server, browser: Browser) -> None:
    with visiting(browser, **TABLET, color_scheme="dark") as visitor:
        page = visitor.new_page()
        for path in ("/", "/review", "/review/agreement", "/detectors", "/detectors/1", "/history", "/account"):
            page.goto(server.url + path)
            accessible(page)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= TABLET["viewport"]["width"], f"{path} is {width} pixels wide"
            shot(page, f"dark{path.replace('/', '-').rstrip('-')}")
