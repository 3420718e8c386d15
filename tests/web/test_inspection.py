"""An image becomes a verdict that is recorded whole, once, and as the inspector judged it."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image as Pixels
from sqlalchemy import func, select

from blemish.inference.graph_check import GraphError
from blemish.inference.inspector import Inspector
from blemish.station.chain import problems
from blemish.types import BlemishError
from blemish.web import ledger
from blemish.web.config import Limits
from blemish.web.inspection import TooLargeError, UnavailableError
from blemish.web.site import Site
from blemish.web.tables import Image, Log, Verdict
from tests.web.support import PRODUCT, client_of, grey, made_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return made_site(tmp_path)


def inspect(site: Site, content: bytes, name: str = "a.png", request: str | None = None) -> Verdict:
    return site.line.inspect(content, name, PRODUCT, by="ann", source="page", request=request)


@pytest.mark.parametrize(("value", "decision"), [(60, "good"), (95, "review"), (130, "anomaly")])
def test_a_verdict_is_the_inspectors(site: Site, tmp_path: Path, value: int, decision: str) -> None:
    (tmp_path / "a.png").write_bytes(grey(value))
    judged = Inspector(tmp_path / "bundle0").inspect(tmp_path / "a.png", "a.png")
    verdict = inspect(site, grey(value))
    assert (verdict.decision, verdict.score, verdict.p_value) == (decision, judged.score, judged.p_value)
    assert [tuple(region["box"]) for region in verdict.regions] == [region.box for region in judged.regions]
    assert (verdict.name, verdict.source, verdict.by, verdict.detector.version) == ("a.png", "page", "ann", 1)
    assert (verdict.image.width, verdict.image.height) == (24, 16)
    assert site.store.image(verdict.image.sha256, ".png").read_bytes() == grey(value)
    assert site.store.thumbnail(verdict.image.sha256, verdict.detector_id).read_bytes().startswith(b"\xff\xd8")


def test_the_same_image_is_kept_once_and_judged_each_time(site: Site) -> None:
    first, second = inspect(site, grey(60), "a.png"), inspect(site, grey(60), "b.png")
    assert first.image_id == second.image_id
    assert first.id != second.id
    assert [file.name for file in site.store.folder.images.rglob("*.*")] == [f"{first.image.sha256}.png"]


def test_a_request_that_is_repeated_is_one_verdict(site: Site) -> None:
    first, second = inspect(site, grey(60), request="r1"), inspect(site, grey(60), request="r1")
    assert first.id == second.id
    with site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Verdict)) == 1


@pytest.mark.parametrize("content", [b"nonsense", grey(60)[:60]])
def test_what_is_no_image_has_a_verdict_and_is_not_kept(site: Site, content: bytes) -> None:
    verdict = inspect(site, content, "broken.png")
    assert verdict.decision == "error"
    assert str(verdict.error).startswith("broken.png")
    assert str(site.store.folder.path) not in str(verdict.error)
    assert not list(site.store.folder.images.rglob("*.*"))
    with pytest.raises(BlemishError, match=r"broken\.png: could not be read"):
        site.line.seen(verdict)


def test_a_name_is_never_a_path(site: Site) -> None:
    inspect(site, grey(60), "../../../outside.png")
    inspect(site, b"no image", "../../../outside.png")
    inside = {file.name for file in site.store.folder.path.parent.rglob("*") if file.is_file()}
    assert "outside.png" not in inside
    assert not (site.store.folder.path.parent / "outside.png").exists()


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    site = made_site(tmp_path, limits=Limits(megabytes=0.0001))
    with pytest.raises(TooLargeError, match=r"a\.png: is larger than 0\.0001 MB"):
        inspect(site, grey(60) + bytes(1000))
    with site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Image)) == 0


def test_an_image_of_too_many_pixels_is_an_error(tmp_path: Path) -> None:
    site = made_site(tmp_path, limits=Limits(pixels=100))
    verdict = inspect(site, grey(60))
    assert (verdict.decision, verdict.image.ending) == ("error", "")


def test_an_image_that_was_kept_stays_under_smaller_limits(tmp_path: Path) -> None:
    """It was deleted, with its label: the file is a person's work, and what is learned from."""
    site = made_site(tmp_path)
    kept = inspect(site, grey(60))
    site.database.close()
    site = made_site(tmp_path, limits=Limits(pixels=100))
    assert inspect(site, grey(60)).decision == "error"
    place = site.store.image(kept.image.sha256, ".png")
    assert place.read_bytes() == grey(60)
    inspect(site, grey(61))
    assert list(site.store.folder.images.rglob("*.png")) == [place]
    place.unlink()  # by hand, and sent again
    assert (inspect(site, grey(60)).decision, place.read_bytes()) == ("error", grey(60))
    site.database.close()


def test_trouble_that_passes_is_no_verdict(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("blemish.inference.inspector.load_image", no_memory)
        with pytest.raises((UnavailableError, MemoryError)):
            inspect(site, grey(60), request="r")
    with site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Verdict)) == 0
    assert inspect(site, grey(60), request="r").decision == "good"


def test_many_at_once_are_one_chain(site: Site) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: inspect(site, grey(50 + i % 30), f"{i}.png", f"r{i % 30}"), range(40)))
    assert len({verdict.id for verdict in found}) == 30  # ten requests came twice
    with site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Log).where(Log.kind == "verdict")) == 30
        assert not list(problems(ledger.entries(session)))
        assert not list(ledger.differences(session))


def test_an_image_seen_again_is_judged_by_the_same_version(tmp_path: Path) -> None:
    site = made_site(tmp_path, bundles=2)
    verdict = inspect(site, grey(130))
    first, second = sorted(site.detectors.versions(PRODUCT), key=lambda one: one.version)
    assert verdict.detector_id == first.id  # the second one waits until it is promoted
    site.detectors.promote(second.id, "ann")
    assert inspect(site, grey(130)).detector_id == second.id
    site.line._seen.clear()
    assert site.line.seen(verdict).verdict.score == verdict.score


def test_the_same_bytes_keep_their_file_whatever_another_request_meets(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request is out of memory and fails, another one with the same bytes is recorded: its file stays."""
    with monkeypatch.context() as patched:
        patched.setattr("blemish.web.inspection.passing", lambda _: "not enough memory")
        with pytest.raises(UnavailableError):
            inspect(site, grey(130))
    verdict = inspect(site, grey(130))
    with monkeypatch.context() as patched:
        patched.setattr("blemish.web.inspection.passing", lambda _: "not enough memory")
        with pytest.raises(UnavailableError):
            inspect(site, grey(130))
    assert site.store.image(verdict.image.sha256, ".png").is_file()


def test_an_image_that_cannot_be_judged_is_kept_for_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = made_site(tmp_path)

    def fails(*_: object) -> None:
        raise GraphError("the detector cannot be run on it; look at the image.")

    with monkeypatch.context() as patched:
        patched.setattr("blemish.inference.inspector.Inspector.predict", fails)
        verdict = inspect(site, grey(60))
    assert (verdict.decision, verdict.image.ending, verdict.image.width) == ("error", ".png", 24)
    assert site.store.image(verdict.image.sha256, ".png").is_file()
    with site.database.reading() as session:
        assert session.get_one(Image, verdict.image_id).queue == 0
    client = client_of(site)
    assert client.get(f"/verdicts/{verdict.id}/thumbnail.jpg").headers["content-type"] == "image/jpeg"
    assert client.get(f"/verdicts/{verdict.id}", headers={"Accept": "text/html"}).status_code == 200


def test_a_request_that_was_about_another_image_is_refused(site: Site) -> None:
    inspect(site, grey(60), request="r")
    with pytest.raises(BlemishError, match="was used for another image"):
        inspect(site, grey(130), request="r")


def test_the_same_pixels_in_another_file_are_the_same_item(site: Site) -> None:
    pixels = Pixels.open(io.BytesIO(grey(60)))
    buffer = io.BytesIO()
    pixels.save(buffer, "BMP")
    one, two = inspect(site, grey(60)), inspect(site, buffer.getvalue())
    assert one.image_id != two.image_id
    assert one.image.item == two.image.item != ""
