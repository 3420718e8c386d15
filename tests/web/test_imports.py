"""Labelled images brought in from the folder that a bundle learned from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from blemish.images import load_mask
from blemish.types import BlemishError
from blemish.web import corrections, imports, thresholds
from blemish.web.imports import bring_images, learned_from
from blemish.web.site import Site
from blemish.web.tables import Image
from tests import tiny
from tests.support import write_image
from tests.web.learned import site_of
from tests.web.support import made_site


def test_images_masks_and_splits_are_those_of_the_folder(
    all_teach: Path, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH", 7)
    site = site_of(tmp_path / "page", all_teach, product)
    with site.database.reading() as session:
        grouped = session.execute(
            select(Image.label, Image.defect, Image.split, func.count()).group_by(
                Image.label, Image.defect, Image.split
            )
        ).all()
        spot = session.scalars(select(Image).where(Image.name == "test/spot/002.png")).one()
    assert sorted(map(tuple, grouped)) == [
        ("anomaly", "spot", "test", 6),
        ("good", "", "test", 6),
        ("good", "", "train", 40),
    ]
    assert (spot.width, spot.height, spot.labelled_by, spot.item) == (80, 60, "import", "test/spot/002.png")
    kept = load_mask(site.store.image(spot.mask, ".png"), (60, 80))
    np.testing.assert_array_equal(kept, load_mask(product / "ground_truth/spot/002_mask.png", (60, 80)))
    assert site.store.image(spot.sha256, ".png").read_bytes() == (product / spot.name).read_bytes()
    again = bring_images(product, site.database, site.store, site.detectors)
    assert (again.product, again.new) == ("tiles", 0)
    site.database.close()


def test_a_folder_that_no_bundle_names_is_refused(all_teach: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "other/good/1.png", np.zeros((20, 30)))
    with pytest.raises(BlemishError, match=r"no bundle learned from a folder of the name other \(there is tiles\)"):
        site_of(tmp_path / "page", all_teach, tmp_path / "other")


def test_what_cannot_be_read_is_left_out_and_told_and_what_is_labelled_stays(tmp_path: Path) -> None:
    """The card of the tiny bundle names the folder x; no run says what it was tested with, and x has no split."""
    for number in range(40):
        write_image(tmp_path / f"x/good/{number}.png", np.full((16, 24), 60 + number))
    write_image(tmp_path / "x/dent/1.png", np.full((16, 24), 120))
    (tmp_path / "x/good/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    shutil.copy(tmp_path / "x/good/1.png", tmp_path / "x/good/1-copy.png")
    layout = {"source": "x", "layout": "folders", "train": 3, "calibration": 3, "test": 2, "seed": 0, "sha256": "0"}
    tiny.made(tmp_path / "bundle0", data=layout)
    site = made_site(tmp_path)
    seen = site.line.inspect((tmp_path / "x/good/39.png").read_bytes(), "39.png", "tiny", by="ada", source="page")
    assert seen.decision == "review"
    with site.database.writing() as session:
        image = session.get_one(Image, seen.image_id)
        assert image.queue is not None
    sentences: list[str] = []
    imported = bring_images(tmp_path / "x", site.database, site.store, site.detectors)
    imports.told(sentences.append, imported)
    assert imported.new == 41
    assert sentences[0] == "41 labelled images of 'tiny' imported."
    assert "came without its run" in sentences[1]
    assert sentences[2].startswith("good/broken.png: is left out (")
    with site.database.reading() as session:
        splits = session.scalars(select(Image.split)).all()
        image = session.get_one(Image, seen.image_id)
    assert len(splits) == 41
    assert 2 <= splits.count("test") <= 16  # one of five
    assert (image.label, image.name) == ("good", "39.png")
    assert image.queue is None  # it is labelled, and no verdict contradicts that
    site.database.close()


def run_of(folder: Path, name: str, tested: range, created: str) -> Path:
    """A run that learned from all but so many of the 40 images of x."""
    data = {"source": "x", "layout": "folders", "train": 30, "calibration": 3, "test": 10, "seed": 0, "sha256": "0"}
    tiny.made(folder / name / "bundle", data={**data, "pooled": True}, created=created)
    (folder / name / "metrics.json").write_text("{}")
    verdict = {"decision": "good", "score": 1.0, "threshold": 100.0, "regions": [], "label": "good", "size": [24, 16]}
    lines = [json.dumps({"path": f"good/{number}.png", **verdict}) + "\n" for number in tested]
    (folder / name / "verdicts.jsonl").write_text("".join(lines))
    return folder / name


@pytest.fixture
def pooled(tmp_path: Path) -> Path:
    """A folder with `x`, and two runs that tested its images 0 to 7, and 8 to 15."""
    for number in range(40):
        write_image(tmp_path / f"x/good/{number}.png", np.full((16, 24), 40 + number))
    write_image(tmp_path / "x/dent/1.png", np.full((16, 24), 120))
    run_of(tmp_path, "first", range(8), "2026-01-01T00:00:00+00:00")
    run_of(tmp_path, "second", range(8, 16), "2026-01-02T00:00:00+00:00")
    return tmp_path


def splits(site: Site) -> dict[str, str]:
    with site.database.reading() as session:
        return {image.name.removeprefix("good/"): image.split for image in session.scalars(select(Image))}


def uploaded(site: Site, folder: Path, number: int) -> int:
    content = (folder / f"x/good/{number}.png").read_bytes()
    return site.line.inspect(content, f"{number}.png", "tiny", by="ada", source="page").image_id


def test_what_a_run_that_came_later_learned_from_is_held_out_no_longer(pooled: Path) -> None:
    site = site_of(pooled / "page", pooled / "first", pooled / "x")
    assert sum(split == "test" for split in splits(site).values()) == 8
    site.database.close()
    site = site_of(pooled / "page", pooled / "second", pooled / "x")
    assert set(splits(site).values()) == {"train"}  # the second version learned from what the first had tested
    version = site.detectors.versions("tiny")[0]
    assert len(learned_from(site.detectors, version) or ()) == 33  # 40 good and 1 defective, without 8 tested
    assert len(thresholds.scored(site.database, site.detectors, version)) == 8  # which it did not learn from
    assert thresholds.unknown(site.detectors, version) == ""
    site.database.close()


def test_what_a_version_learned_from_is_not_held_out_whoever_labelled_it(pooled: Path) -> None:
    site = site_of(pooled / "page", pooled / "first")
    for number in range(40):
        corrections.label(site, uploaded(site, pooled, number), "ada", "good")
    before = splits(site)
    assert sum(before[f"{number}.png"] == "test" for number in range(8, 40)) > 0
    version = site.detectors.judging("tiny")
    assert "It is not known which images version 1 learned from" in thresholds.unknown(site.detectors, version)
    assert len(thresholds.scored(site.database, site.detectors, version)) == 40
    bring_images(pooled / "x", site.database, site.store, site.detectors)
    after = splits(site)
    assert {after[f"{number}.png"] for number in range(8, 40)} == {"train"}
    assert [after[f"{number}.png"] for number in range(8)] == [before[f"{number}.png"] for number in range(8)]
    assert thresholds.unknown(site.detectors, version) == ""
    assert len(thresholds.scored(site.database, site.detectors, version)) == 8  # only those that it tested
    site.database.close()


def test_a_split_that_was_set_stays_after_a_label_is_undone(pooled: Path) -> None:
    site = site_of(pooled / "page", pooled / "first")
    for number in range(8):
        corrections.label(site, uploaded(site, pooled, number), "ada", "good")
        corrections.undo(site, "ada")
    before = splits(site)
    assert set(before.values()) == {"train", "test"}
    bring_images(pooled / "x", site.database, site.store, site.detectors)
    after = splits(site)
    assert {name: after[name] for name in before} == before
    site.database.close()


def test_other_content_of_a_known_name_is_another_image(tmp_path: Path) -> None:
    """A folder whose cameras count from 000 again was left out without a word: `0 imported`."""
    site = made_site(tmp_path)

    def bring(at: str, start: int) -> tuple[int, int, str]:
        for number in range(4):
            write_image(tmp_path / at / "x/train/good" / f"{number}.png", np.full((16, 24), start + number))
        write_image(tmp_path / at / "x/test/dent/1.png", np.full((16, 24), start + 100))
        imported = bring_images(tmp_path / at / "x", site.database, site.store, site.detectors)
        sentences: list[str] = []
        imports.told(sentences.append, imported)
        return imported.new, imported.renewed, " ".join(sentences)

    assert bring("old", 60)[:2] == (5, 0)
    assert bring("old", 60)[:2] == (0, 0)
    write_image(tmp_path / "new/x/train/good/9.png", np.full((16, 24), 90))
    new, renewed, said = bring("new", 70)
    assert (new, renewed) == (6, 5)
    assert "5 of them have the names of images that were imported before, and other content" in said
    moved, kept = (tmp_path / "new/x/train/good" / f"{number}.png" for number in (0, 1))
    kept.write_bytes(moved.read_bytes())  # a name of one, the content of another one that is here
    again = bring_images(tmp_path / "new/x", site.database, site.store, site.detectors)
    assert (again.new, again.renewed) == (0, 0)
    with site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Image)) == 11
    site.database.close()
