"""The pages of the review, as a browser without scripts uses them."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image as Pixels

from blemish.web import review
from blemish.web.app import application
from blemish.web.corrections import history, label
from blemish.web.site import Site
from blemish.web.store import sha256
from blemish.web.tables import Image, Product, now
from tests.web.desk import image, judged, opened, troubles
from tests.web.rows import image_row
from tests.web.support import HERE, csrf_in

HUGE = json.dumps([{"points": [[10**400, 1], [1, 2], [3, 4]]}])  # no float is as large
SHAPES = [{"points": [[1.0, 2.0], [10.0, 2.0], [5.0, 20.0]]}]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened_site = opened(tmp_path)
    yield opened_site
    opened_site.database.close()


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    with TestClient(application(site), base_url=HERE, headers={"Accept": "text/html"}) as client:
        yield client


def send(client: TestClient, address: str, data: dict[str, Any]) -> Any:
    """Sends a form as a page of the server has it."""
    return client.post(address, data={"csrf": csrf_in(client.get("/review").text), **data})


def shown(text: str) -> str:
    """A page's words."""
    bare = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", bare)))


def fill(site: Site) -> None:
    for mean in (95, 150, 96, 20):
        judged(site, mean)


def test_the_grid_shows_what_waits_and_several_are_decided_at_once(site: Site, client: TestClient) -> None:
    fill(site)
    page = client.get("/review")
    assert re.findall(r'data-image="(\d+)"', page.text) == ["1", "3", "2"]
    assert "3 images wait for you" in shown(page.text)
    answer = send(client, "/review", {"action": "anomaly", "images": ["1", "3"], "defect": "dent"})
    assert [r.status_code for r in answer.history] == [303]
    assert "96-0.png : " in shown(answer.text)
    assert "called it an anomaly (dent)" in shown(answer.text)
    assert re.findall(r'data-image="(\d+)"', answer.text) == ["2"]
    assert [(image(site, n).label, image(site, n).defect) for n in (1, 3)] == [("anomaly", "dent")] * 2
    refused = send(client, "/review", {"action": "good"})
    assert refused.status_code == 422
    assert "No image is ticked" in refused.text
    for number in (0, 99, 2**70):
        assert send(client, "/review", {"action": "good", "images": [str(number)]}).status_code in (404, 422)
    assert troubles(site) == []


def test_several_are_decided_or_none(site: Site, client: TestClient) -> None:
    """One form is one transaction: it said 404 and had labelled the first image."""
    fill(site)
    with site.database.writing() as session:
        session.add(Product(name="other"))
        session.flush()
        other = image_row(session, "other", 7, queue=0.1).id
    unfit = ((999, 404, "no image 999"), (other, 422, "of the product other"), (2**40, 422, "images"))
    for last, status, words in unfit:
        for action in ("good", "anomaly", "skip", "again"):
            refused = send(client, "/review?product=tiny", {"action": action, "images": ["1", str(last)]})
            assert (refused.status_code, words in refused.text) == (status, True)
            back = send(client, "/review/agreement?product=tiny", {"images": ["1", str(last)]})
            assert (back.status_code, words in back.text) == (status, True)
    assert image(site, 1).label is None
    with site.database.reading() as session:
        assert history(session, 1) == []
    assert troubles(site) == []


def test_without_scripts_nobody_is_overwritten_unseen(site: Site, client: TestClient) -> None:
    fill(site)
    seen = re.findall(r'name="seen" value="([\d:]+)"', client.get("/review").text)
    assert seen == ["1:0:1", "3:0:3", "2:0:2"]
    form = {"action": "good", "images": ["1", "3"], "seen": seen}
    label(site, 3, "ben", "anomaly")
    overtaken = send(client, "/review", form)
    assert overtaken.status_code == 409
    assert "95-0.png" in shown(overtaken.text)
    assert "ben called it an anomaly meanwhile" in shown(overtaken.text)
    assert (image(site, 1).label, image(site, 3).label) == (None, "anomaly")
    again = re.findall(r'name="seen" value="([\d:]+)"', client.get("/review?show=all").text)
    assert send(client, "/review", form | {"seen": again}).status_code == 200
    assert (image(site, 1).label, image(site, 3).label) == ("good", "good")
    assert send(client, "/review", form | {"seen": ["x"]}).status_code == 422


def test_one_after_the_other(site: Site, client: TestClient) -> None:
    fill(site)
    page = client.get("/review/1?show=uncertain")
    assert "Version 1: Put aside for review: its score 95.00 lies between 90.00 and 100.0" in shown(page.text)
    assert "p = 0.500" in shown(page.text)
    answer = send(
        client,
        "/review/1?show=uncertain",
        {"action": "anomaly", "defect": "dent", "shapes": json.dumps(SHAPES), "note": "rim", "seen": "0"},
    )
    assert answer.url.path == "/review/3"
    assert "show=uncertain" in str(answer.url)
    assert (image(site, 1).defect, image(site, 1).shapes) == ("dent", SHAPES)
    answer = send(client, "/review/3?show=uncertain", {"action": "skip", "seen": "0"})
    assert answer.url.path == "/review/2"
    answer = send(client, "/review/2?show=uncertain", {"action": "good", "defect": "ignored", "seen": "0"})
    assert answer.url.path == "/review"  # 96 was skipped, and is uncertain no more
    answer = send(client, "/review/3", {"action": "good", "seen": "0"})
    assert "Nothing waits for you" in shown(answer.text)
    assert "3 of 4 images have a label" in shown(answer.text)
    assert "Label the 1 others" in shown(answer.text)
    assert image(site, 2).label == "good"
    history = shown(client.get("/review/1").text)
    assert "called it an anomaly (dent), with 1 shape." in history
    assert "rim" in history
    assert troubles(site) == []


def test_undo_shows_the_image_again(site: Site, client: TestClient) -> None:
    fill(site)
    send(client, "/review/1", {"action": "good", "seen": "0"})
    send(client, "/review/3", {"action": "good", "seen": "0"})
    answer = send(client, "/review/undo", {})
    assert answer.url.path == "/review/3"
    assert "undid a correction of" in shown(answer.text)
    answer = send(client, "/review/undo", {"correction": "1"})
    assert answer.url.path == "/review/1"
    assert [image(site, n).label for n in (1, 3)] == [None, None]
    nothing = send(client, "/review/undo", {})
    assert nothing.status_code == 409
    assert "nothing of yours to undo" in nothing.text
    assert 'id="tiles"' in nothing.text  # on the grid, where one can go on


def test_who_was_overtaken_is_told_and_can_disagree(site: Site, client: TestClient) -> None:
    fill(site)
    label(site, 1, "ben", "anomaly", defect="dent")
    told = send(client, "/review/1", {"action": "good", "seen": "0", "verdict": "1"})
    assert told.status_code == 409
    assert "95-0.png: ben called it an anomaly (dent) meanwhile. Look once more, then decide." in shown(told.text)
    seen = re.search(r'name="seen" value="(\d+)"', told.text)
    assert seen
    assert send(client, "/review/1", {"action": "good", "seen": seen[1], "verdict": "1"}).status_code == 200
    assert image(site, 1).label == "good"


def test_a_second_reader_does_not_see_what_the_first_one_said(site: Site, client: TestClient) -> None:
    fill(site)
    label(site, 1, "ben", "anomaly", defect="dent", shapes=SHAPES)
    with site.database.writing() as session:
        session.get_one(Image, 1).name = "dent/95-0.png"  # a folder tells it, too
        session.get_one(Image, 1).queue = review.DISAGREE
    page = client.get("/review?show=second")
    assert re.findall(r'data-image="(\d+)"', page.text) == ["1"]
    single = client.get("/review/1?show=second").text
    for text in (page.text[page.text.index('id="tiles"') :].partition("</ul>")[0], single):
        assert "dent" not in re.sub(r"<datalist.*?</datalist>", "", text, flags=re.S)
        assert "ben" not in text
        assert "disagree" not in text
        assert '<a href="/verdicts/' not in text
    assert 'name="label"' not in page.text
    assert "so that you decide for yourself" in single
    assert 'data-shapes="[]"' in single
    assert "ben" in client.get("/review/1").text
    assert "label and verdict disagree" in client.get("/review/1?show=disagree").text


def test_a_second_reader_who_agrees_wipes_nothing(site: Site, client: TestClient) -> None:
    fill(site)
    label(site, 1, "ben", "anomaly", defect="dent", shapes=SHAPES)
    assert "1 image in “Checked by others, not by me”" in shown(client.get("/review/1?show=second").text)
    form = {"action": "anomaly", "seen": "1", "verdict": "1", "defect": "", "shapes": "[]"}
    assert send(client, "/review/1?show=second", form).status_code == 200
    assert (image(site, 1).defect, image(site, 1).shapes) == ("dent", SHAPES)
    with site.database.reading() as session:
        agreed = history(session, 1)[-1]
    assert (agreed.defect, agreed.shapes) == ("", [])
    assert "called it an anomaly." in shown(client.get("/review/1/history").text)
    form |= {"seen": "2", "shapes": ""}
    assert send(client, "/review/1", form).status_code == 200  # who sees the type and empties the field removes it
    assert (image(site, 1).defect, image(site, 1).shapes) == ("", SHAPES)
    assert troubles(site) == []


def test_the_label_that_was_brought_in_stays_in_the_history(site: Site, client: TestClient) -> None:
    fill(site)
    with site.database.writing() as session:
        came = session.get_one(Image, 1)
        came.label, came.defect, came.labelled_by, came.item, came.mask = "anomaly", "dent", "import", "x", "a" * 64
    words = "Came with its label: an anomaly (dent), with an outline."
    assert words in shown(client.get("/review/1").text)
    label(site, 1, "ben", "good")
    told = shown(client.get("/review/1/history").text)
    assert told.index("ben called it good.") < told.index(words)
    assert words not in shown(client.get("/review/1/history?show=second").text)


def test_what_was_undone_is_in_the_form_again(site: Site, client: TestClient) -> None:
    fill(site)
    form = {"action": "anomaly", "defect": "dent", "shapes": json.dumps(SHAPES), "note": "rim", "seen": "0"}
    send(client, "/review/1", form)
    back = send(client, "/review/undo", {})
    assert (back.url.path, "draft=1" in str(back.url)) == ("/review/1", True)
    assert image(site, 1).shapes == []
    for words in ('name="defect" list="types" maxlength="100" autocomplete="off" value="dent"', 'value="rim"'):
        assert words in back.text
    drawn = html.unescape(re.search(r'data-shapes="([^"]*)" data-draft', back.text)[1])  # type: ignore[index]
    sent = html.unescape(re.search(r'name="shapes" value="([^"]*)"', back.text)[1])  # type: ignore[index]
    assert json.loads(drawn) == json.loads(sent) == SHAPES
    assert "Taken back. What you said of it is here again, not saved yet." in shown(back.text)
    assert "data-draft" not in client.get("/review/1").text
    label(site, 1, "ben", "good")
    assert "data-draft" not in client.get("/review/1?draft=1").text  # somebody has decided since
    send(client, "/review/undo", {"correction": "3"})
    assert "data-draft" not in client.get("/review/1?draft=3").text  # nor is it another one's


def test_a_second_reader_s_undo_shows_nothing_of_the_first_one_s(site: Site, client: TestClient) -> None:
    fill(site)
    label(site, 1, "ben", "anomaly", defect="dent", shapes=SHAPES)
    for action in ("again", "anomaly", "skip"):
        send(client, "/review/1?show=second", {"action": action, "note": "rim"})
        back = send(client, "/review/undo?show=second", {})
        assert 'value="rim"' in back.text
        assert 'data-shapes="[]"' in back.text
        assert "dent" not in re.sub(r"<datalist.*?</datalist>", "", back.text, flags=re.S)


def test_a_script_that_sends_a_form_is_told_in_its_own_shape(site: Site, client: TestClient) -> None:
    fill(site)
    label(site, 1, "ben", "anomaly")
    token = csrf_in(client.get("/review").text)
    as_script = {"Accept": "application/json", "X-CSRF-Token": token}
    told = client.post("/review/1", data={"action": "good", "seen": "0"}, headers=as_script)
    assert told.status_code == 409
    assert told.json()["error"]["message"].startswith("95-0.png: ben called it an anomaly meanwhile.")
    nothing = client.post("/review/undo", headers=as_script)
    assert nothing.json()["error"]["message"] == "There is nothing of yours to undo."


@pytest.mark.parametrize("shapes", ["x", "{}", "[[[[[", '[{"points": [[1, 2]]}]', "[" * 20_000, HUGE])
def test_broken_shapes_are_refused_in_words(site: Site, client: TestClient, shapes: str) -> None:
    fill(site)
    answer = send(client, "/review/1", {"action": "anomaly", "shapes": shapes, "seen": "0"})
    assert answer.status_code == 422
    assert "hape" in shown(answer.text)
    assert image(site, 1).label is None


def test_names_are_text(site: Site, client: TestClient) -> None:
    name = "<b>\"x'.png"
    site.line.inspect(open_png(), name, "tiny", by="<i>anna", source="api")
    label(site, 1, "<i>anna", "anomaly", defect="<u>'\"", note="<s>")
    for address in ("/review?show=all", "/review/1", "/review/agreement"):
        text = client.get(address).text
        assert not re.search(r"<b>\"|<i>anna|<u>'|<s>", text)


def open_png(value: int = 95) -> bytes:
    buffer = io.BytesIO()
    Pixels.fromarray(np.full((5, 6, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_filters_pages_and_empty_lists_in_words(site: Site, client: TestClient) -> None:
    assert "No image has been inspected yet" in shown(client.get("/review").text)
    fill(site)
    assert "No image is like this" in shown(client.get("/review?show=all&label=good").text)
    assert re.findall(r'data-image="(\d+)"', client.get("/review?show=all&verdict=good").text) == ["4"]
    assert len(re.findall(r'data-image="(\d+)"', client.get("/review/tiles?after=0.0,1").text)) == 3
    assert client.get("/review?show=nothing").status_code == 422
    assert client.get("/review?after=x").status_code == 422
    assert client.get("/review/99").status_code == 404
    assert client.get("/review/waiting").json() == {"waiting": 3}


def test_an_image_without_a_verdict_has_a_file_and_a_thumbnail(site: Site, client: TestClient) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (400, 500, 3), np.uint8)
    buffer = io.BytesIO()
    Pixels.fromarray(pixels).save(buffer, "TIFF")
    content = buffer.getvalue()
    place, _ = site.store.put(content, sha256(content), ".tif")
    with site.database.writing() as session:
        row = Image(sha256=sha256(content), product="tiny", name="a.tif", ending=".tif", width=500, height=400)
        row.added, row.label = now(), "good"
        session.add(row)
    assert re.findall(r'data-image="(\d+)"', client.get("/review?show=labelled").text) == ["1"]
    assert "No version has judged it yet" in shown(client.get("/review/1").text)
    got = Pixels.open(io.BytesIO(client.get("/images/1/file").content))
    assert got.format == "PNG"
    assert (np.asarray(got) == pixels).all()
    small = Pixels.open(io.BytesIO(client.get("/images/1/thumbnail.jpg").content))
    assert (small.format, max(small.size)) == ("JPEG", 320)
    place.unlink()
    gone = client.get("/images/1/file")
    assert gone.status_code == 404
    assert "not in the data folder any more" in gone.text


def test_a_mask_that_was_brought_in_is_shown_as_an_outline(site: Site, client: TestClient) -> None:
    judged(site, 95)
    assert client.get("/images/1/mask.png").status_code == 404
    inside = np.zeros((30, 40), np.uint8)
    inside[10:20, 10:30] = 255
    buffer = io.BytesIO()
    Pixels.fromarray(inside).save(buffer, "PNG")
    site.store.put(buffer.getvalue(), sha256(buffer.getvalue()), ".png")
    with site.database.writing() as session:
        found = session.get_one(Image, 1)
        found.mask, found.label, found.split = sha256(buffer.getvalue()), "anomaly", "train"
    assert "/images/1/mask.png" in client.get("/review/1").text
    assert "/images/1/mask.png" not in client.get("/review/1?show=second").text
    layer = np.asarray(Pixels.open(io.BytesIO(client.get("/images/1/mask.png").content)))
    assert layer.shape == (300, 400, 4)  # as large as the heat, by a whole factor
    # The line lies outside of the mask, from its third pixel to its fourth.
    assert [layer[y, 150, 3] for y in (95, 96, 97, 98, 99, 100)] == [0, 255, 255, 0, 0, 0]


def test_agreement_and_sending_back_what_differs(site: Site, client: TestClient) -> None:
    fill(site)
    assert "No two reviewers" in shown(client.get("/review/agreement").text)
    for number in (1, 2, 3):
        label(site, number, "anna", "good")
    for number, said in ((1, "good"), (2, "anomaly"), (3, "anomaly")):
        label(site, number, "ben", said)  # type: ignore[arg-type]
    page = client.get("/review/agreement")
    assert "anna and ben 3 33.3 % 0.000" in shown(page.text)
    assert "anna called all 3 images good. Then kappa is 0 or undefined, however often anna and ben" in shown(page.text)
    assert "ben called" not in shown(page.text)
    assert "anna and ben differ on 2 images" in shown(page.text)
    numbers = re.findall(r'name="images" value="(\d+)"', page.text)
    assert numbers == ["2", "3"]
    seen = re.findall(r'name="seen" value="([\d:]+)"', page.text)
    assert seen == ["2:5:0", "3:6:0"]
    form = {"images": numbers, "seen": seen, "note": "anna and ben differ."}
    assert send(client, "/review/agreement", form | {"seen": ["2:2:0", "3:6:0"]}).status_code == 409
    back = send(client, "/review/agreement", form)
    assert back.url.path == "/review"
    assert sorted(re.findall(r'data-image="(\d+)"', back.text)) == ["2", "3"]
    assert "anna and ben differ." in client.get("/review/2").text


def test_a_script_is_told_where_to_go(site: Site, client: TestClient) -> None:
    """Once: a browser that follows by itself would load the next page twice."""
    fill(site)
    csrf, asked = csrf_in(client.get("/review").text), {"Accept": "application/json"}
    answer = client.post("/review/1", data={"csrf": csrf, "action": "good"}, headers=asked)
    assert (answer.status_code, answer.history) == (200, [])
    assert answer.json()["next"].startswith("/review/3?")
    answer = client.post("/review/undo", data={"csrf": csrf}, headers=asked)
    assert answer.json()["next"].startswith("/review/1?")
