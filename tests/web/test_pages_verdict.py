"""The image page's parts against the inference functions called directly."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fastapi.testclient import TestClient
from PIL import Image as Pixels
from scipy import ndimage

from blemish.images import load_image
from blemish.inference import overlay
from blemish.inference.evidence import gather, open_store
from blemish.inference.inspector import Inspector, p_value_of
from blemish.inference.nearest_normal import nearest_normal
from blemish.reporting.figures import number as figure
from blemish.reporting.thumbnails import outline
from blemish.web.app import assembled
from blemish.web.config import ServeConfig
from blemish.web.site import Site, verdict_or_404
from blemish.web.store import sha256
from blemish.web.tables import Image, Log
from blemish.web.verdict_words import level
from tests import tiny
from tests.web.support import client_of, csrf_in, grey, made_site

SPOT, GOOD = "test/spot/002.png", "test/good/001.png"


@pytest.fixture(scope="module")
def site(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return assembled(ServeConfig(tmp_path_factory.mktemp("page") / "data", (run,), threads=1))


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[TestClient]:
    yield client_of(site)
    site.database.close()


@pytest.fixture(scope="module")
def spot(site: Site, product: Path) -> int:
    """The number of a verdict on a defective tile."""
    content = (product / SPOT).read_bytes()
    return site.line.inspect(content, SPOT, "tiles", by="me", source="page").id


@pytest.fixture(scope="module")
def good(site: Site, product: Path, spot: int) -> int:
    return site.line.inspect((product / GOOD).read_bytes(), GOOD, "tiles", by="me", source="page").id


@pytest.fixture(scope="module")
def inspector(run: Path) -> Inspector:
    return Inspector(run, threads=1)


def pixels(content: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Pixels.open(io.BytesIO(content)))


def test_the_evidence_is_what_gather_gives(
    client: TestClient, spot: int, inspector: Inspector, product: Path, site: Site
) -> None:
    inspection = inspector.look(product / SPOT)
    expected = gather(inspector, open_store(inspector), inspection)
    assert expected is not None
    assert expected.counterfactual is not None
    answer = client.get(f"/api/v1/verdicts/{spot}/evidence").json()
    assert answer["sentence"] == expected.sentence()
    assert answer["inpainted"] == {
        "decision": expected.counterfactual.decision,
        "score": pytest.approx(expected.counterfactual.score),
        "p_value": pytest.approx(expected.counterfactual.p_value),
    }
    assert len(answer["regions"]) == len(expected.nearest) > 0
    for number, (region, nearest) in enumerate(zip(answer["regions"], expected.nearest, strict=True), 1):
        assert region["region"]["box"] == list(nearest.region.box)  # type: ignore[union-attr]
        assert (region["box"], region["source"]) == (list(nearest.box), nearest.source)
        assert region["distance"] == pytest.approx(nearest.distance)
        assert region["p_value"] == pytest.approx(nearest.p_value)
        left, top, right, bottom = nearest.box
        wanted = {
            "crop": nearest.crop,
            "normal": nearest.normal,
            "inpainted": expected.counterfactual.image[top:bottom, left:right],
        }
        assert set(region["links"]) == set(wanted)
        for kind, crop in wanted.items():
            assert region["links"][kind] == f"/verdicts/{spot}/regions/{number}/{kind}.jpg"
            shown = pixels(client.get(region["links"][kind]).content)
            assert crop is not None
            assert np.abs(shown.astype(int) - crop).mean() < 4  # JPEG
    assert client.get(f"/verdicts/{spot}/regions/{len(expected.nearest) + 1}/crop.jpg").status_code == 404
    assert client.get(f"/verdicts/{spot}/regions/0/crop.jpg").status_code == 404
    part = client.get(f"/verdicts/{spot}/evidence").text
    assert expected.sentence() in part
    assert str(expected.nearest[0].source) in part
    assert site.line.evidence(verdict_or_404(site, spot)) is site.line.evidence(
        verdict_or_404(site, spot)
    )  # kept for the crops


def test_why_not_here_is_what_nearest_normal_gives_of_the_place(
    client: TestClient, good: int, inspector: Inspector, product: Path
) -> None:
    inspection = inspector.look(product / GOOD)
    assert inspection.map is not None
    for x, y in ((0, 0), (79, 59), (40, 21)):
        nearest = nearest_normal(inspector, open_store(inspector), inspection, (x, y))
        answer = client.get(f"/api/v1/verdicts/{good}/why?x={x}&y={y}").json()
        value = float(inspection.map[y * inspection.map.shape[0] // 60, x * inspection.map.shape[1] // 80])
        assert answer["value"] == pytest.approx(value)
        assert answer["p_value"] == pytest.approx(p_value_of(inspector.card.decision, "map_maxima", value))
        assert answer["flagged"] is False
        assert nearest is not None
        assert answer["nearest"]["distance"] == pytest.approx(nearest.distance)
        assert (answer["nearest"]["source"], answer["nearest"]["box"]) == (nearest.source, list(nearest.box))
        shown = pixels(client.get(answer["nearest"]["links"]["normal"]).content)
        assert nearest.normal is not None
        assert np.abs(shown.astype(int) - nearest.normal).mean() < 4
        assert f"The place {x}, {y} has no box" in answer["sentences"][0]
        assert str(nearest.source) in answer["sentences"][-1]
    outside = client.get(f"/api/v1/verdicts/{good}/why?x=80&y=0")
    assert outside.status_code == 422
    assert outside.json()["error"]["message"] == "The image has 80 x 60 pixels, so there is no place 80, 0."


def test_a_box_says_down_to_which_level_it_goes(
    client: TestClient, spot: int, inspector: Inspector, product: Path
) -> None:
    """The box is the rectangle around the peak's component of the map at that level, as SciPy labels it."""
    inspection = inspector.look(product / SPOT)
    region, found = inspection.verdict.regions[0], inspection.map
    assert found is not None
    edge = level(region, inspector.card.decision, found)
    labels, _ = ndimage.label(found >= edge, np.ones((3, 3)))
    rows, columns = ndimage.find_objects(labels)[labels.flat[found.argmax()] - 1]
    (height, width), (left, top, right, bottom) = found.shape, region.box
    assert (left, top) == (columns.start * 80 // width, rows.start * 60 // height)
    assert (right, bottom) == (-(-columns.stop * 80 // width), -(-rows.stop * 60 // height))
    page = client.get(f"/verdicts/{spot}").text
    assert f"from its peak, {figure(region.peak)}, down to {figure(edge)}" in page
    assert "had a patch as far from all normal ones" in client.get(f"/verdicts/{spot}/evidence").text


@pytest.mark.parametrize(
    ("threshold", "median", "at", "words", "ends"),
    [
        # The map is 105 to 109 in the first row, 110 to 114, 115 to 119, 120 to 124: at most 0.4, at least 0.3 of the
        # way from the median to 124.
        (110, 80, (0, 0), "is inside a box, though the map is 105.0 here, below", "97.60; the map here is at or above"),
        (117, 114, (0, 20), "is inside a box, though the map is 115.0 here, below", "117.0; the map here is below"),
        (110, 80, (49, 39), "is inside a box: the map is 124.0 here, at or above", ""),
        (110, 110, (20, 10), "has no box, though the map is 112.0 here, at or above", "114.2; the map here is below"),
        (110, 110, (0, 0), "has no box: the map is 105.0 here, below", ""),
    ],
)
def test_a_box_and_the_threshold_for_places_do_not_contradict(
    tmp_path: Path, threshold: float, median: float, at: tuple[int, int], words: str, ends: str
) -> None:
    rule = tiny.card().decision.model_copy(update={"pixel_threshold": threshold, "normal_median": median})
    site = assembled(ServeConfig(tmp_path / "data", (tiny.made(tmp_path / "tiny", decision=rule),), threads=1))
    verdict = site.line.inspect(grey(105, size=(50, 40)), "a.png", "tiny", by="me", source="page")
    first, second, *_ = (
        client_of(site).get(f"/api/v1/verdicts/{verdict.id}/why?x={at[0]}&y={at[1]}").json()["sentences"]
    )
    assert f"The place {at[0]}, {at[1]} {words} the threshold for places, {threshold}.0." == first
    assert (f"peak, 124.0, and what is connected to it down to {ends} that." in second) is bool(ends)
    site.database.close()


def test_the_heat_is_overlay_s_layer(client: TestClient, spot: int, inspector: Inspector, product: Path) -> None:
    inspection = inspector.look(product / SPOT)
    assert inspection.map is not None
    low, high = inspection.color_range
    size = overlay.fit(Pixels.fromarray(load_image(product / SPOT))).size
    expected = overlay.heat_layer(inspection.map, size, low=low, high=high)
    np.testing.assert_array_equal(pixels(client.get(f"/verdicts/{spot}/heat.png").content), np.asarray(expected))


def test_the_page_says_all_of_a_verdict(client: TestClient, site: Site, spot: int, good: int) -> None:
    page = client.get(f"/verdicts/{spot}", headers={"Accept": "text/html"})
    assert page.status_code == 200
    verdict = verdict_or_404(site, spot)
    with site.database.reading() as session:
        entry = session.query(Log).filter_by(kind="verdict", ref=spot).one()
    for words in ("Called an anomaly: its score", verdict.image.sha256, entry.hash, f"entry {entry.seq}", SPOT):
        assert words in page.text
    assert page.text.count('class="box"') == len(verdict.regions) + 1  # and the crosshair
    assert f'href="/verdicts/{good}" rel="prev"' in page.text  # the newer one
    assert "Nobody has labelled it yet." in page.text
    other = client.get(f"/verdicts/{good}").text
    assert "Called good: its score" in other
    assert f'href="/verdicts/{spot}" rel="next"' in other
    assert "Nothing was flagged" in other
    assert "style=" not in page.text + other
    assert "What it rests on" in client.get(f"/verdicts/{spot}?evidence=1").text
    assert "With this region inpainted" in client.get(f"/verdicts/{spot}?evidence=1").text
    assert client.get("/verdicts/999").status_code == 404


def test_the_neighbours_are_those_that_the_history_found(client: TestClient, spot: int, good: int) -> None:
    asked = "product=tiles&decision=anomaly"
    listed = client.get(f"/history?{asked}").text
    assert f'href="/verdicts/{spot}?product=tiles&amp;decision=anomaly"' in listed
    page = client.get(f"/verdicts/{spot}?{asked}").text
    assert f"/verdicts/{good}" not in page  # the newer one is good
    page = client.get(f"/verdicts/{good}?{asked}").text
    assert f'href="/verdicts/{spot}?product=tiles&amp;decision=anomaly" rel="next"' in page


@pytest.mark.parametrize(
    ("label", "words"),
    [("good", "False alarm: it is labelled good"), ("anomaly", "Label and verdict agree: an anomaly, and found.")],
)
def test_label_against_verdict(client: TestClient, site: Site, spot: int, label: str, words: str) -> None:
    with site.database.writing() as session:
        image = session.get_one(Image, verdict_or_404(site, spot).image_id)
        image.label, image.labelled_by = label, "Ada"
        image.shapes = [{"points": [[1, 2], [70, 2], [70, 50.5]]}]
    page = client.get(f"/verdicts/{spot}").text
    assert words in page
    assert "(by Ada)" in page
    assert '<polygon class="shape" points="1,2 70,2 70,50.5 "/>' in page
    with site.database.writing() as session:
        image = session.get_one(Image, verdict_or_404(site, spot).image_id)
        image.label, image.labelled_by, image.shapes = None, "", []


def test_an_image_that_was_learned_from_is_named(client: TestClient, site: Site, good: int, product: Path) -> None:
    """As the run's split tells, once its images are brought in; before, nobody knows."""
    content = (product / "train/good/000.png").read_bytes()
    learned = site.line.inspect(content, "again.png", "tiles", by="me", source="page").id
    words = "from this image, or set its threshold with it"
    assert words not in client.get(f"/verdicts/{learned}").text
    with site.database.writing() as session:  # as imported, but not known for certain
        image = session.get_one(Image, verdict_or_404(site, learned).image_id)
        image.split, image.item = "train", "part 0"
    assert f"Version 1 may have learned {words}" in client.get(f"/verdicts/{learned}").text
    verdict = verdict_or_404(site, learned)
    file = site.config.folder.learned(verdict.detector.sha256)
    file.write_text(f"{verdict.image.sha256}\n", encoding="utf-8")
    assert f"Version 1 has learned {words}" in client.get(f"/verdicts/{learned}").text
    assert words not in client.get(f"/verdicts/{good}").text
    file.unlink()


def test_an_imported_mask_is_outlined_until_somebody_draws(
    client: TestClient, site: Site, spot: int, product: Path
) -> None:
    assert client.get(f"/verdicts/{spot}/mask.png").status_code == 404
    content = (product / "ground_truth/spot/002_mask.png").read_bytes()
    site.store.put(content, sha256(content), ".png")
    with site.database.writing() as session:
        session.get_one(Image, verdict_or_404(site, spot).image_id).mask = sha256(content)
    shown = pixels(client.get(f"/verdicts/{spot}/mask.png").content)
    mask = np.asarray(Pixels.open(io.BytesIO(content))) > 0
    np.testing.assert_array_equal(shown, np.asarray(outline(mask, (shown.shape[1], shown.shape[0]))))
    assert 'id="outline"' in client.get(f"/verdicts/{spot}").text
    with site.database.writing() as session:
        session.get_one(Image, verdict_or_404(site, spot).image_id).mask = ""


def test_the_scale_of_the_heat_rises_from_transparent(client: TestClient) -> None:
    alpha = pixels(client.get("/heat-scale.png").content)[0, :, 3]
    assert alpha[0] == 0
    assert alpha[-1] == alpha.max()


def test_without_a_memory_bank_the_map_says_why(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    verdict = site.line.inspect(grey(120, size=(50, 40)), "bright.png", "tiny", by="me", source="page")
    assert verdict.decision == "anomaly"
    client = client_of(site)
    answer = client.get(f"/api/v1/verdicts/{verdict.id}/why?x=49&y=39").json()
    assert answer["value"] == 139.0  # the mean and the map's slope in its last cell, 19
    assert answer["threshold"] == 110.0
    assert answer["nearest"] is None
    assert answer["sentences"][-1].startswith("This detector compares with no normal patches")
    part = client.get(f"/verdicts/{verdict.id}/evidence").text
    assert "no nearest normal crop" in part
    assert client.get(f"/verdicts/{verdict.id}/regions/1/crop.jpg").status_code == 200
    assert client.get(f"/verdicts/{verdict.id}/regions/1/normal.jpg").status_code == 404


def test_an_error_is_a_sentence_without_an_image(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    verdict = site.line.inspect(b"no image", "a.png", "tiny", by="me", source="page")
    client = client_of(site)
    page = client.get(f"/verdicts/{verdict.id}", headers={"Accept": "text/html"}).text
    assert "Not judged: a.png: is not an image that can be read" in page
    assert "<img" not in page
    assert "Correct this" not in page
    assert client.post(f"/verdicts/{verdict.id}/again", data={"csrf": csrf_in(page)}).status_code == 404
    assert client.get(f"/api/v1/verdicts/{verdict.id}/evidence").json()["regions"] == []


def test_a_verdict_stays_when_its_detector_is_gone_and_another_version_judges_again(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    verdict = site.line.inspect(grey(99), "grey.png", "tiny", by="me", source="page")
    client = client_of(site)
    assert verdict.decision == "review"
    page = client.get(f"/verdicts/{verdict.id}").text
    assert "Put aside for review: its score 99.00 lies between 90.00 and 100.0" in page
    assert "Inspect again" not in page
    rule = tiny.card().decision.model_copy(update={"threshold": 95.0})
    other = site.detectors.bring(tiny.made(tmp_path / "other", decision=rule), by="me")
    site.detectors.promote(other.id, "me")
    shutil.rmtree(site.detectors.place(verdict.detector))
    site.detectors._loaded.clear()  # as after a restart
    page = client.get(f"/verdicts/{verdict.id}").text
    assert "The detector that gave this verdict is gone" in page
    assert "Put aside for review: its score 99.00 lies just below the threshold 100.0" in page
    assert 'id="heat"' not in page
    assert f'src="/verdicts/{verdict.id}/image"' in page
    assert "Inspect again with version 2" in page
    again = client.post(f"/verdicts/{verdict.id}/again", data={"csrf": csrf_in(page)})
    assert again.status_code == 303
    new = verdict_or_404(site, int(again.headers["location"].rpartition("/")[2]))
    assert (new.decision, new.detector_id, new.source, new.image_id) == ("anomaly", other.id, "again", verdict.image_id)
    assert f'href="/verdicts/{new.id}"' in client.get(f"/verdicts/{verdict.id}").text
