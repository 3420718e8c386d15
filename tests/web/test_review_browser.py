"""The review as people use it, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete

from blemish.web import review, users
from blemish.web.corrections import label
from blemish.web.site import Site
from blemish.web.tables import Image, Session
from tests.web.accessibility import serious
from tests.web.browser import Visitor, visiting
from tests.web.desk import SIZE, image, judged, opened, served, troubles
from tests.web.support import made_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened_site = opened(tmp_path)
    for number in range(6):
        judged(opened_site, 95, number)
    yield opened_site
    assert troubles(opened_site) == []


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    with served(site) as address:
        yield address


def waits(page: Page, count: int) -> None:
    """The header says so, without being loaded again."""
    page.wait_for_function(
        "count => { const shown = document.querySelector('[data-waiting]');"
        " return (shown.hidden ? 0 : +shown.textContent) === count }",
        arg=count,
    )


def on_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the image is on the screen."""
    at = page.evaluate(
        "([x, y]) => { const p = new DOMPoint(x, y).matrixTransform(document.getElementById('sheet').getScreenCTM());"
        " return [p.x, p.y] }",
        [x, y],
    )
    return at[0], at[1]


def test_five_images_by_keyboard_and_a_polygon(site: Site, address: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    page.goto(f"{address}/review")
    assert serious(page) == []
    page.keyboard.press("ArrowRight")  # the first, then the second
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_url("**/review/1?**")
    assert serious(page) == []

    # A polygon with the mouse, its type by name.
    page.keyboard.press("d")
    for x, y in ((5, 5), (30, 6), (20, 25)):
        page.mouse.click(*on_screen(page, x, y))
    assert "3 points" in page.inner_text("#told")
    page.keyboard.press("Enter")
    page.keyboard.press("t")
    page.keyboard.type("scratch")
    page.keyboard.press("Enter")
    page.wait_for_url("**/review/2?**")
    (shape,) = image(site, 1).shapes
    for (x, y), (wx, wy) in zip(shape["points"], ((5, 5), (30, 6), (20, 25)), strict=True):
        assert abs(x - wx) < 0.2
        assert abs(y - wy) < 0.2
    assert (image(site, 1).label, image(site, 1).defect) == ("anomaly", "scratch")

    # And one by keyboard alone: from the middle, arrows move it by a pixel each here.
    page.keyboard.press("d")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    for key in ("ArrowRight",) * 5:
        page.keyboard.press(key)
    page.keyboard.press("Space")
    for key in ("ArrowDown",) * 5:
        page.keyboard.press(key)
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    page.keyboard.press("a")
    page.wait_for_url("**/review/3?**")
    middle = (SIZE[0] / 2, SIZE[1] / 2)
    assert image(site, 2).shapes == [
        {"points": [[middle[0] + 1, middle[1]], [middle[0] + 6, middle[1]], [middle[0] + 6, middle[1] + 5]]}
    ]

    page.keyboard.press("g")
    page.wait_for_url("**/review/4?**")
    page.keyboard.press("s")
    page.wait_for_url("**/review/5?**")
    page.keyboard.press("g")
    page.wait_for_url("**/review/6?**")
    page.keyboard.press("u")  # the fifth again
    page.wait_for_url("**/review/5?**")
    assert image(site, 5).label is None
    page.keyboard.press("g")
    page.wait_for_url("**/review/6?**")
    page.keyboard.press("b")
    page.wait_for_url("**/review/4?**")  # which was skipped
    assert [image(site, n).label for n in range(1, 7)] == ["anomaly", "anomaly", "good", None, "good", None]
    assert page.locator("[data-waiting]").all_inner_texts() == ["2"]


def test_the_grid_by_keyboard_with_undo(site: Site, address: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    page.goto(f"{address}/review")
    tiles = page.locator(".tile")
    assert page.locator("#undo").is_disabled()
    page.keyboard.press("u")
    assert "Nothing has been decided on this page yet" in page.inner_text("#recorded")
    page.keyboard.press("g")  # nothing is ticked, or has the focus
    assert page.inner_text("#ticked") == "Tick an image first, or move to one with the arrow keys."
    page.keyboard.press("?")
    assert page.locator("#keys dl").is_visible()
    page.keyboard.press("?")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#ticked") == "95-0.png, which has the focus:"
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")  # from the second to the third, as well
    assert page.locator(".tile :checked").count() == 3
    page.keyboard.press("g")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 3")
    waits(page, 3)
    assert page.inner_text("#recorded") == "3 images: recorded as good."
    page.get_by_text("3 images wait for you").wait_for()  # the heading, and the lists
    assert page.inner_text("[data-count=waiting]") == "3"
    page.keyboard.press("a")  # the one with the focus
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 2")
    assert page.inner_text("#recorded") == "95-3.png: recorded as an anomaly."
    assert [image(site, n).label for n in range(1, 7)] == ["good", "good", "good", "anomaly", None, None]
    page.keyboard.press("u")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 3")
    page.keyboard.press("u")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 6")
    waits(page, 6)
    assert [image(site, n).label for n in range(1, 7)] == [None] * 6
    assert tiles.count() == 6
    assert page.inner_text("#recorded") == "3 images: taken back."
    page.get_by_text("6 images wait for you").wait_for()


def test_by_pointer_only_what_is_ticked_is_decided(site: Site, address: str, tablet: Visitor) -> None:
    page = tablet.new_page()
    page.goto(f"{address}/review")
    assert serious(page) == []
    page.get_by_role("button", name="Good").click()
    assert page.inner_text("#ticked") == "Tick an image first."
    page.tap("#image-2 .tick")
    assert page.inner_text("#ticked") == "1 ticked:"
    for _ in range(2):  # the second time nothing is ticked any more
        page.get_by_role("button", name="Good").click()
        page.get_by_text("5 images wait for you").wait_for()
    assert [image(site, n).label for n in range(1, 7)] == [None, "good", None, None, None, None]
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("6 images wait for you").wait_for()
    assert page.locator("#undo").is_disabled()


def test_what_another_one_decides_shows_at_once(site: Site, address: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    grid = desktop.new_page()
    page.goto(f"{address}/review/1")
    grid.goto(f"{address}/review")
    waits(grid, 6)
    page.wait_for_timeout(500)  # until both listen
    label(site, 1, "ben", "anomaly", defect="dent")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.inner_text("#trouble") == "ben called this an anomaly (dent) just now. You can still decide otherwise."
    assert "ben called it an anomaly (dent)" in page.inner_text("#history")
    waits(grid, 5)
    grid.wait_for_function("() => document.querySelector('#image-1 .label')?.textContent.includes('ben')")
    page.keyboard.press("g")
    page.wait_for_url("**/review/2?**")
    assert image(site, 1).label == "good"


def test_shapes_are_fixed_by_finger(site: Site, address: str, tablet: Visitor) -> None:
    label(site, 1, "ben", "anomaly", shapes=[{"points": [[5, 5], [30, 5], [30, 20]]}])
    page = tablet.new_page()
    page.goto(f"{address}/review/1")
    assert serious(page) == []
    page.touchscreen.tap(*on_screen(page, 25, 10))  # chooses it
    page.wait_for_selector(".handle")
    page.mouse.move(*on_screen(page, 30, 20))
    page.mouse.down()
    page.mouse.move(*on_screen(page, 10, 25), steps=3)
    page.mouse.up()
    page.tap("#box")
    page.touchscreen.tap(*on_screen(page, 2, 2))
    page.touchscreen.tap(*on_screen(page, 4, 4))
    page.tap("button.anomaly")
    page.wait_for_url("**/review/2?**")
    moved, box = image(site, 1).shapes
    assert [[round(x), round(y)] for x, y in moved["points"]] == [[5, 5], [30, 5], [10, 25]]
    assert [[round(x), round(y)] for x, y in box["points"]] == [[2, 2], [4, 2], [4, 4], [2, 4]]


def test_a_drawing_is_not_left_behind_unasked_and_says_that_it_replaces_a_mask(
    site: Site, address: str, desktop: Visitor
) -> None:
    with site.database.writing() as session:
        session.get_one(Image, 1).mask = "0" * 64  # its file is gone: only the words are looked at
    page = desktop.new_page()
    page.goto(f"{address}/review/1")
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    assert page.locator("#replaces").is_hidden()
    page.keyboard.press("x")
    for x, y in ((2, 2), (9, 9)):
        page.mouse.click(*on_screen(page, x, y))
    assert page.inner_text("#replaces").startswith("To save this drawing (pink) replaces the outline")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    page.keyboard.press("s")  # which saves no drawing either
    page.wait_for_timeout(300)
    assert asked == ["beforeunload", "confirm"]
    assert page.url.endswith("/review/1")
    assert image(site, 1).queue != review.SKIPPED
    page.keyboard.press("a")
    page.wait_for_url("**/review/2?**")
    assert len(asked) == 2
    assert len(image(site, 1).shapes) == 1
    desktop.forgive("mask.png", "404")


def test_where_the_server_is_away_the_drawing_stays_and_is_sent_later(
    site: Site, address: str, desktop: Visitor
) -> None:
    page = desktop.new_page()
    page.route("**/events**", lambda route: route.abort())  # so that nothing is heard of what others decide
    page.goto(f"{address}/review/1")
    page.keyboard.press("x")
    for x, y in ((2, 2), (9, 9)):
        page.mouse.click(*on_screen(page, x, y))
    page.fill("[name=note]", "at the rim")
    page.click("#told")
    desktop.context.set_offline(True)
    page.keyboard.press("a")
    page.get_by_text("The server cannot be reached.").first.wait_for()
    assert "What you drew and wrote is still here" in page.inner_text("#trouble")
    assert page.locator("#sheet polygon").count() == 1
    desktop.context.set_offline(False)
    label(site, 1, "ben", "good")  # of whose decision nothing was seen
    page.keyboard.press("a")
    page.get_by_text("ben called it good meanwhile").wait_for()
    assert "ben called it good." in page.inner_text("#history")
    page.keyboard.press("a")
    page.wait_for_url("**/review/2?**")
    assert (image(site, 1).label, len(image(site, 1).shapes)) == ("anomaly", 1)
    assert desktop.forgive("ERR_INTERNET_DISCONNECTED", "409", "/events")


def test_after_a_login_on_another_page_the_decision_is_sent_again(tmp_path: Path, desktop: Visitor) -> None:
    remote = made_site(tmp_path / "remote", proxy=True)
    users.add(remote.database, "ada", "reviewer", "a password")
    judged(remote, 95)
    with served(remote) as address:
        page, other = desktop.new_page(), desktop.new_page()

        def log_in(page: Page) -> None:
            page.goto(f"{address}/login")
            page.fill("[name=name]", "ada")
            page.fill("[name=password]", "a password")
            page.click("button.primary")
            page.wait_for_url(f"{address}/")

        log_in(page)
        page.goto(f"{address}/review/1")
        page.keyboard.press("x")
        for x, y in ((2, 2), (9, 9)):
            page.mouse.click(*on_screen(page, x, y))
        with remote.database.writing() as session:
            session.execute(delete(Session))
        page.keyboard.press("a")
        page.get_by_text("You are logged out.").wait_for()
        assert page.get_attribute("#trouble a", "href") == "/login"
        log_in(other)
        page.bring_to_front()
        page.keyboard.press("a")
        page.wait_for_url("**/review?**")
        assert desktop.forgive("401", "403", "/events")
        page.close()
        other.close()
    found = image(remote, 1)
    assert (found.label, found.labelled_by, len(found.shapes)) == ("anomaly", "ada", 1)


def test_undo_gives_the_drawing_back(site: Site, address: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    page.goto(f"{address}/review/1")
    for corners in (((2, 2), (9, 9)), ((15, 15), (20, 20))):
        page.keyboard.press("x")
        for x, y in corners:
            page.mouse.click(*on_screen(page, x, y))
    page.keyboard.press("t")
    page.keyboard.type("scratch")
    page.keyboard.press("Enter")
    page.wait_for_url("**/review/2?**")
    drawn = image(site, 1).shapes
    page.keyboard.press("u")
    page.wait_for_url("**/review/1?**")
    assert image(site, 1).label is None
    assert page.locator("#sheet polygon").count() == 2
    assert page.input_value("[name=defect]") == "scratch"
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.keyboard.press("g")  # is asked, and stays
    page.wait_for_timeout(200)
    assert page.url.split("?")[0].endswith("/review/1")
    page.keyboard.press("a")
    page.wait_for_url("**/review/2?**")
    assert (image(site, 1).shapes, image(site, 1).defect) == (drawn, "scratch")


def test_on_a_phone_the_chosen_list_and_kappa_are_in_view(site: Site, address: str, browser: Browser) -> None:
    for name in ("ben", "carl"):
        label(site, 1, name, "good")
    with visiting(browser, viewport={"width": 390, "height": 844}, has_touch=True) as phone:
        page = phone.new_page()
        page.goto(f"{address}/review?show=second")
        box = page.locator(".shows [aria-current]").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        page.goto(f"{address}/review/agreement")
        for cell in page.locator(".agree td:visible").all():
            box = cell.bounding_box()
            assert box
            assert box["x"] + box["width"] <= 390
        assert serious(page) == []


def test_a_file_dropped_on_another_page_does_not_leave_it(address: str, desktop: Visitor) -> None:
    page = desktop.new_page()
    page.goto(f"{address}/history")
    stopped = page.evaluate(
        """() => ["dragover", "drop"].map((kind) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File(["x"], "x.png"));
          return !document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        })"""
    )
    assert stopped == [True, True]
    assert page.inner_text("#notices") == "Images are dropped on the page Inspect."
