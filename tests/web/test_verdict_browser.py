"""The image page and the history as people use them, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.web.accessibility import serious
from tests.web.browser import Visitor, visiting
from tests.web.kill import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("good/001.png", "spot/002.png", "spot/003.png")


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("look") / "page", run) as server:
        yield server


@pytest.fixture(scope="module")
def verdicts(server: Server, product: Path) -> list[dict[str, Any]]:
    """As the API answers them: a good tile, then two with a spot."""
    address = f"{server.url}/api/v1/inspect?product=tiles"
    sent = [httpx.post(f"{address}&name={name}", content=(product / "test" / name).read_bytes()) for name in NAMES]
    return [answer.raise_for_status().json()[0] for answer in sent]


def opened(visitor: Visitor, server: Server, verdict: dict[str, Any]) -> Page:
    page = visitor.new_page()
    page.goto(f"{server.url}/verdicts/{verdict['id']}")
    page.wait_for_function("() => document.querySelector('.stage .whole').complete && document.querySelector('#drawn')")
    return page


def visible(page: Page) -> list[float]:
    """What of the image the stage shows: left, top, width and height in its pixels."""
    box = str(page.locator("#drawn").get_attribute("viewBox"))
    return [float(number) for number in box.split()]


def test_heat_boxes_and_keys(desktop: Visitor, server: Server, verdicts: list[dict[str, Any]]) -> None:
    page = opened(desktop, server, verdicts[1])
    page.locator("#opacity").fill("40")
    assert page.evaluate("getComputedStyle(document.querySelector('#heat')).opacity") == "0.4"
    page.keyboard.press("]")
    assert page.evaluate("getComputedStyle(document.querySelector('#heat')).opacity") == "0.4"  # the slider has the key
    page.locator("h1").click()
    page.keyboard.press("]")
    assert page.evaluate("getComputedStyle(document.querySelector('#heat')).opacity") == "0.5"
    for key, shown in (("h", "#heat"), ("b", "#boxes")):
        assert page.locator(shown).get_attribute("hidden") is None
        page.keyboard.press(key)
        assert page.locator(shown).get_attribute("hidden") is not None
        page.keyboard.press(key)
        assert page.locator(shown).get_attribute("hidden") is None
    page.keyboard.press("h")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")  # to the newer one, where the heat is off still
    page.wait_for_url(f"**/verdicts/{verdicts[2]['id']}")
    assert not page.locator("#show-heat").is_checked()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/verdicts/{verdicts[1]['id']}")


def test_zoom_to_the_pixel(desktop: Visitor, server: Server, verdicts: list[dict[str, Any]]) -> None:
    page = opened(desktop, server, verdicts[1])
    stage = page.locator("#stage")
    left, top, width, height = visible(page)
    assert width >= 80
    assert height >= 60
    assert min(width / 80, height / 60) == pytest.approx(1, abs=0.01)  # it fits
    box = stage.bounding_box()
    assert box
    # The place under the pointer stays under it.
    x, y = round(box["x"] + box["width"] * 0.6), round(box["y"] + box["height"] * 0.3)
    across, down = (x - box["x"]) / box["width"], (y - box["y"]) / box["height"]
    under = (left + width * across, top + height * down)
    page.mouse.move(x, y)
    for _ in range(20):
        page.mouse.wheel(0, -300)
    page.wait_for_function("() => document.querySelector('#zoom').value === '6400 %'")
    left, top, width, height = visible(page)
    assert width == pytest.approx(box["width"] / 64)  # a pixel of the image is 64 on the screen
    assert (left + width * across, top + height * down) == pytest.approx(under, abs=0.01)
    whole = page.locator(".stage .whole")
    assert whole.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    # Boxes lie where they belong: the SVG shows what the transformed image shows.
    drawn = page.evaluate(
        """() => { const image = document.querySelector(".stage .whole").getBoundingClientRect();
        const stage = document.querySelector("#stage").getBoundingClientRect();
        const scale = Math.min(image.width / 80, image.height / 60);
        return [(stage.left - image.left - (image.width - 80 * scale) / 2) / scale,
                (stage.top - image.top - (image.height - 60 * scale) / 2) / scale]; }"""
    )
    assert drawn == pytest.approx([left, top], abs=0.01)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 128, y - 64, steps=4)
    page.mouse.up()
    moved = visible(page)
    assert (moved[0], moved[1]) == pytest.approx((left + 2, top + 1), abs=0.01)  # dragged, and nothing was asked
    assert page.locator("#why .answer").is_hidden()
    page.keyboard.press("-")
    assert visible(page)[2] == pytest.approx(width * 1.5)
    page.keyboard.press("0")
    assert visible(page)[2] >= 80
    assert page.evaluate("scrollY") == 0


def test_why_not_here_by_click_and_by_keyboard(
    desktop: Visitor, server: Server, verdicts: list[dict[str, Any]]
) -> None:
    page = opened(desktop, server, verdicts[0])
    box = page.locator("#stage").bounding_box()
    assert box
    left, top, width, height = visible(page)
    at = ((21.5 - left) / width * box["width"], (33.5 - top) / height * box["height"])
    page.mouse.click(box["x"] + at[0], box["y"] + at[1])
    answer = page.locator("#why .answer")
    answer.get_by_text("The place 21, 33 has no box").wait_for()
    assert answer.get_by_text(re.compile("nearest normal patch is at distance")).is_visible()
    assert answer.locator("img").count() == 2
    page.wait_for_function("() => [...document.querySelectorAll('#why img')].every(image => image.naturalWidth > 0)")
    expected = httpx.get(f"{server.url}/api/v1/verdicts/{verdicts[0]['id']}/why?x=21&y=33").json()
    assert answer.locator("p").all_inner_texts() == expected["sentences"]
    page.keyboard.press("w")  # the crosshair, where the click was
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    answer.get_by_text("The place 23, 32 has no box").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#cross").get_attribute("hidden") is not None
    page.keyboard.press("ArrowLeft")  # goes on to the next image again
    page.wait_for_url(f"**/verdicts/{verdicts[1]['id']}")


def test_the_evidence_comes_and_its_crops_lead_to_the_region(
    desktop: Visitor, server: Server, verdicts: list[dict[str, Any]]
) -> None:
    page = opened(desktop, server, verdicts[1])
    page.get_by_text(re.compile("With this region inpainted|With these")).wait_for()
    page.locator("[data-region='1'] img").first.click()
    left, top, width, height = visible(page)
    a, b, c, d = verdicts[1]["regions"][0]["box"]
    assert left < a < c < left + width
    assert top < b < d < top + height
    assert width < 80


def test_fingers_pinch_and_nothing_serious_on_a_tablet(
    tablet: Visitor, server: Server, verdicts: list[dict[str, Any]]
) -> None:
    page = opened(tablet, server, verdicts[1])
    page.get_by_text(re.compile("inpainted, ")).wait_for()
    assert serious(page) == []
    box = page.locator("#stage").bounding_box()
    assert box
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    wide = visible(page)[2]
    session = tablet.context.new_cdp_session(page)

    def touch(kind: str, apart: float) -> None:
        points = [{"x": middle[0] + sign * apart, "y": middle[1], "id": i} for i, sign in enumerate((-1, 1))]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points if kind != "touchEnd" else []})

    touch("touchStart", 40)
    for apart in (60, 80, 100, 120):
        touch("touchMove", apart)
    touch("touchEnd", 120)
    assert visible(page)[2] == pytest.approx(wide / 3, rel=0.1)
    assert page.locator("#why .answer").is_hidden()
    small = page.evaluate(
        """() => [...document.querySelectorAll("main button, main a.button, main select, main input[type=range]")]
        .filter(e => e.offsetParent && e.getBoundingClientRect().height < 39.5).map(e => e.outerHTML.slice(0, 90))"""
    )
    assert small == []


def test_the_history_is_searched_and_has_nothing_serious(
    desktop: Visitor, server: Server, verdicts: list[dict[str, Any]]
) -> None:
    page = desktop.new_page()
    page.goto(f"{server.url}/history")
    assert serious(page) == []
    page.get_by_label("Decision").select_option("anomaly")
    page.get_by_label("Name").fill("003")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**name=003**")
    assert page.locator(".verdict").count() == 1
    assert page.get_by_text("1 verdict matches:").is_visible()
    assert page.get_by_label("Decision").input_value() == "anomaly"
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.path().read_text().count("003.png") == 1
    page.locator(".verdict a").click()
    page.wait_for_url(f"**/verdicts/{verdicts[2]['id']}?**decision=anomaly**")


def test_what_others_say_and_inspect_appears_by_itself(
    desktop: Visitor, server: Server, verdicts: list[dict[str, Any]], product: Path
) -> None:
    page = opened(desktop, server, verdicts[2])
    history = desktop.new_page()
    history.goto(f"{server.url}/history")
    # At once: a page hears of everything since it was made, also before it has begun to listen.
    number = re.search(r"/review/(\d+)", page.locator(".actions a").get_attribute("href") or "")
    assert number
    shapes = [{"points": [[1, 1], [79, 1], [79, 59]]}]
    body = {"action": "label", "label": "anomaly", "defect": "spot", "shapes": shapes}
    httpx.post(f"{server.url}/api/v1/images/{number[1]}/corrections", json=body).raise_for_status()
    page.get_by_text("Label and verdict agree: an anomaly, and found. Its type is labelled spot.").wait_for()
    assert page.locator("#shapes polygon").count() == 1
    content = (product / "test/good/002.png").read_bytes()
    httpx.post(f"{server.url}/api/v1/inspect?product=tiles", content=content).raise_for_status()
    history.get_by_text("1 new verdict: show").click()
    history.wait_for_load_state()
    assert history.locator(".verdict").count() == len(verdicts) + 1


def test_without_scripts_there_is_no_dead_control_and_the_evidence_is_a_link(
    browser: Browser, server: Server, verdicts: list[dict[str, Any]]
) -> None:
    with visiting(browser, java_script_enabled=False) as visitor:
        page = visitor.new_page()
        page.goto(f"{server.url}/verdicts/{verdicts[1]['id']}")
        assert page.locator("main input:visible, main button:visible, .waits:visible, #why:visible").count() == 0
        page.get_by_role("link", name="Show the evidence").click()
        page.get_by_text(re.compile("With this region inpainted|With these")).wait_for()
        page.goto(f"{server.url}/review?show=all")
        assert page.locator("#undo:visible").count() == 0


def test_a_report_can_be_filtered_and_runs_no_other_script(desktop: Visitor, server: Server, tmp_path: Path) -> None:
    page = desktop.new_page()
    page.goto(f"{server.url}/detectors/1/report.html")  # in a tab of its own it would be free to lead elsewhere
    assert page.url == f"{server.url}/detectors/1/report"
    assert serious(page) == []
    report = page.frame_locator("iframe.report")
    cards = report.locator("#gallery > li")
    report.locator("form.filters label.found").first.click()
    assert 0 < cards.locator("visible=true").count() < cards.count()
    assert report.locator("form.filters output").inner_text() == f"{cards.locator('visible=true').count()} shown"
    # Another's script is the browser's to refuse.
    frame = page.frames[1]
    frame.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = 1'}))"
    )
    assert frame.title() != "1"
    assert desktop.forgive("script-src")
