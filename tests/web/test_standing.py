"""What the columns of images and products must be, said by the log's corrections and promotions."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import event, text

from blemish.web import imports, ledger, standing
from blemish.web.corrections import again, label, skip, undo
from blemish.web.site import Site
from blemish.web.tables import Image
from tests.web.desk import image, judged, opened, troubles
from tests.web.support import made_site

TRIANGLE = [{"points": [[1, 2], [3, 4], [10.5, 4]]}]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = opened(tmp_path)
    for number in range(3):
        judged(site, 95, number)
    label(site, 1, "anna", "anomaly", defect="crack", shapes=TRIANGLE)
    assert image(site, 1).split == "train"
    label(site, 2, "ben", "anomaly")
    undo(site, "ben")
    return site


def tampered(site: Site, sql: str) -> list[str]:
    with site.database.engine.begin() as connection:
        connection.execute(text(sql))
    return troubles(site)


def test_whatever_people_do_follows_from_the_log(site: Site) -> None:
    label(site, 1, "ben", "anomaly", defect="dent")  # the shapes stay
    again(site, 1, "anna")
    label(site, 1, "anna", "good")
    skip(site, 1, "ben")
    undo(site, "ben")
    undo(site, "anna")
    label(site, 2, "anna", "good")
    skip(site, 3, "anna")
    label(site, 1, "carl", "anomaly")  # shapes and type stay
    undo(site, "carl")
    label(site, 1, "carl", "anomaly", shapes=[])
    label(site, 1, "anna", "anomaly")
    assert troubles(site) == []
    with site.database.writing() as session:  # as an import labels an image that was inspected before it
        came = session.get_one(Image, 3)
        came.label, came.labelled_by, came.split, came.item = "anomaly", imports.BY, "test", "part 3"
        came.defect = "dent"
    label(site, 3, "anna", "anomaly")
    assert image(site, 3).defect == "dent"
    assert troubles(site) == []
    undo(site, "anna")
    assert troubles(site) == []
    site.database.close()


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("update image set label = 'good' where id = 1", "Image 1 (95-0.png): {}label"),
        ("update image set defect = 'dent' where id = 1", "Image 1 (95-0.png): {}defect"),
        ("update image set shapes = '[]' where id = 1", "Image 1 (95-0.png): {}shapes"),
        ("update image set labelled_by = 'import' where id = 1", "Image 1 (95-0.png): {}labelled_by"),
        (
            "update image set split = 'test' where split = 'train' and label = 'anomaly'",
            "Image 1 (95-0.png): {}split",
        ),
        (
            "update image set label = 'good', labelled_by = 'eve' where id = 2",
            "Image 2 (95-1.png): {}label, labelled_by",
        ),
        ("update image set label = null, defect = '' where id = 1", "Image 1 (95-0.png): {}label, defect"),
        (
            "update image set label = 'good', labelled_by = 'eve' where id = 3",
            "Image 3 (95-2.png) has a label by 'eve', which no correction in the log gave",
        ),
        ("update image set split = 'test', item = 'part 1' where id = 1", "Image 1 (95-0.png): {}item, split"),
        ("update image set ending = '' where id = 1", "Image 1 (95-0.png): {}ending"),
        (
            "update image set label = 'good', labelled_by = 'import', split = 'train' where id = 3",
            "Image 3 (95-2.png) has a label by 'import', which no correction in the log gave",
        ),
        (
            "update image set label = 'good', labelled_by = 'import', split = 'train' where id = 2",
            "Image 2 (95-1.png): {}labelled_by",
        ),
        (
            "update product set detector_id = null",
            "Product 'tiny': the version that judges is not the one that the log says was promoted last",
        ),
    ],
)
def test_what_was_changed_behind_the_log_is_told(site: Site, sql: str, sentence: str) -> None:
    assert tampered(site, sql) == [sentence.format("not what the log's corrections say: ") + "."]
    site.database.close()


def test_a_changed_label_is_not_made_true_by_what_people_do_afterwards(site: Site) -> None:
    """A skip's `before` has the changed label, and is in the log."""
    with site.database.engine.begin() as connection:
        connection.execute(text("update image set label = 'good' where id = 1"))
    skip(site, 1, "ben")
    again(site, 1, "ben")
    assert troubles(site) == ["Image 1 (95-0.png): not what the log's corrections say: label."]
    site.database.close()


def test_an_image_of_another_product_than_it_was_judged_as_is_told(site: Site) -> None:
    sentence = "Image 3 (95-2.png) is of the product 'other', but was judged as another one's."
    with site.database.engine.begin() as connection:
        connection.execute(text("insert into product (name) values ('other')"))
    assert tampered(site, "update image set product = 'other' where id = 3") == [sentence]
    site.database.close()


def test_a_changed_type_is_not_made_true_by_who_agrees_without_naming_it(site: Site) -> None:
    with site.database.engine.begin() as connection:
        connection.execute(text("update image set defect = 'dent' where id = 1"))
    label(site, 1, "ben", "anomaly")
    assert troubles(site) == ["Image 1 (95-0.png): not what the log's corrections say: defect."]
    site.database.close()


def test_a_version_that_judges_without_a_promotion_is_told(tmp_path: Path) -> None:
    site = made_site(tmp_path, bundles=2)
    site.detectors.promote(2, "anna")
    assert troubles(site) == []
    (sentence,) = tampered(site, "update product set detector_id = 1")
    assert sentence.startswith("Product 'tiny'")
    site.database.close()


def test_queries_grow_with_batches_and_not_with_rows(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_BATCH", 2)
    asked = []
    event.listen(site.database.engine, "before_cursor_execute", lambda *_: asked.append(1))

    def queries() -> int:
        asked.clear()
        with site.database.reading() as session:
            assert list(ledger.differences(session)) == []
        return len(asked)

    before = queries()
    for number in range(3, 23):
        judged(site, 95, number)
    assert queries() == before  # all in one batch of 500
    for number in range(4, 24):
        label(site, number, "anna", "good")
    assert queries() == before + 10 * 3  # each batch of 2 images: marks, corrections, images
    site.database.close()
