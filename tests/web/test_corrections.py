"""What people say of images, and taking it back."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from blemish.types import BlemishError
from blemish.web import corrections, review
from blemish.web.agreement import agreements
from blemish.web.corrections import STATE, DecidedError, Seen, again, label, skip, undo
from blemish.web.dataset import split_of
from blemish.web.site import Site
from blemish.web.tables import Correction, Image
from tests.web.desk import image, judged, opened, troubles

TRIANGLE = [{"points": [[1, 2], [10, 2], [5.04, 20]]}]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened_site = opened(tmp_path)
    yield opened_site
    opened_site.database.close()


def state(site: Site, image_id: int) -> dict[str, Any]:
    found = image(site, image_id)
    return {column: copy.deepcopy(getattr(found, column)) for column in STATE}


def test_a_label_says_what_an_image_is_and_takes_it_out_of_the_queue(site: Site) -> None:
    verdict = judged(site, 95)
    assert image(site, 1).queue is not None
    row = label(site, 1, "anna", "anomaly", defect="  deep\n scratch ", shapes=TRIANGLE, note=" at the rim ")
    assert (row.by, row.action, row.label, row.defect, row.note) == (
        *("anna", "label", "anomaly", "deep scratch", "at the rim"),
    )
    now = image(site, 1)
    assert (now.label, now.defect, now.labelled_by, now.queue) == ("anomaly", "deep scratch", "anna", None)
    assert now.shapes == [{"points": [[1.0, 2.0], [10.0, 2.0], [5.0, 20.0]]}]
    assert now.split == split_of(now.sha256, "")
    assert verdict.image_id == 1
    assert troubles(site) == []


def test_a_good_image_loses_type_shapes_and_mask(site: Site) -> None:
    judged(site, 95)
    label(site, 1, "anna", "anomaly", defect="scratch", shapes=TRIANGLE)
    label(site, 1, "anna", "good")
    now = state(site, 1)
    assert (now["label"], now["defect"], now["shapes"], now["mask"]) == ("good", "", [], "")


def test_a_mask_that_was_brought_in_is_kept_unless_shapes_are_drawn(site: Site) -> None:
    judged(site, 95)
    with site.database.writing() as session:
        session.get_one(Image, 1).mask = "a" * 64
    label(site, 1, "anna", "anomaly", defect="dent")
    assert image(site, 1).mask == "a" * 64
    label(site, 1, "anna", "anomaly", shapes=[])
    assert image(site, 1).mask == "a" * 64
    label(site, 1, "anna", "anomaly", shapes=TRIANGLE)
    assert image(site, 1).mask == ""
    undo(site, "anna")
    assert image(site, 1).mask == "a" * 64


def test_type_and_shapes_stay_where_none_are_given_and_are_said_by_nobody_else(site: Site) -> None:
    judged(site, 95)
    drawn = label(site, 1, "anna", "anomaly", defect="scratch", shapes=TRIANGLE).shapes
    agreed = label(site, 1, "ben", "anomaly")
    assert (agreed.label, agreed.defect, agreed.shapes) == ("anomaly", "", [])
    assert agreed.before["kept"] == ["defect", "shapes"]
    now = image(site, 1)
    assert (now.label, now.defect, now.shapes, now.labelled_by) == ("anomaly", "scratch", drawn, "ben")
    named = corrections.several(site, {1: Seen()}, "carl", "anomaly", product="tiny", defect="dent")
    assert (named.defect, named.shapes, named.before["kept"]) == ("dent", [], ["shapes"])
    assert (image(site, 1).defect, image(site, 1).shapes) == ("dent", drawn)
    corrections.several(site, {1: Seen()}, "carl", "anomaly", product="tiny")
    assert image(site, 1).defect == "dent"
    removed = label(site, 1, "ben", "anomaly", defect="", shapes=[])
    assert "kept" not in removed.before
    assert (image(site, 1).defect, image(site, 1).shapes) == ("", [])
    assert troubles(site) == []


def test_the_split_is_set_once(site: Site) -> None:
    judged(site, 95)
    with site.database.writing() as session:
        found = session.get_one(Image, 1)
        found.split = other = "train" if split_of(found.sha256, "") == "test" else "test"
    label(site, 1, "anna", "good")
    undo(site, "anna")
    assert image(site, 1).split == other


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([{"points": [[1, 2], [3, 4]]}], "2 points"),
        ([{"points": [[1, 1]] * 501}], "501 points"),
        ([{"points": [[1, 2], [3, 4], [40.5, 4]]}], "leaves the image, which is 40 x 30 pixels"),
        ([{"points": [[1, 2], [3, 4], [-1, 4]]}], "leaves the image"),
        ([{"points": [[1, 2], [3, 4], [math.nan, 4]]}], "no list of points"),
        ([{"points": [[1, 2], [3, 4], [True, 4]]}], "no list of points"),
        ([{"points": "abc"}], "no list of points"),
        ([{"points": [[1, 2], [3, 4], 5]}], "no list of points"),
        ([{}], "no list of points"),
        (["x"], "no list of points"),
        (TRIANGLE * 101, "101 shapes"),
    ],
)
def test_what_is_no_shape_is_refused(site: Site, shapes: Any, words: str) -> None:
    judged(site, 95)
    with pytest.raises(BlemishError, match=words):
        label(site, 1, "anna", "anomaly", shapes=shapes)
    assert image(site, 1).label is None


def test_what_cannot_be_said_is_refused(site: Site) -> None:
    judged(site, 95)
    judged(site, 96)
    site.line.inspect(b"no image", "broken.png", "tiny", by="anna", source="api")
    with pytest.raises(BlemishError, match="There is no image 99"):
        label(site, 99, "anna", "good")
    with pytest.raises(BlemishError, match=r"broken.png: could not be read"):
        label(site, 3, "anna", "good")
    with pytest.raises(BlemishError, match="shorten it to 100"):
        label(site, 1, "anna", "anomaly", defect="x" * 101)
    with pytest.raises(BlemishError, match="good image has no type"):
        label(site, 1, "anna", "good", defect="scratch")
    with pytest.raises(BlemishError, match="good image has no type"):
        label(site, 1, "anna", "good", shapes=TRIANGLE)
    with pytest.raises(BlemishError, match="Verdict 2 is not of this image"):
        label(site, 1, "anna", "good", seen=Seen(verdict_id=2))
    with pytest.raises(BlemishError, match="nothing of yours"):
        undo(site, "anna")
    with pytest.raises(BlemishError, match="no correction 7"):
        undo(site, "anna", 7)
    assert troubles(site) == []


def test_sent_back_comes_first_and_skipped_comes_last(site: Site) -> None:
    for number, mean in enumerate((95, 96, 97)):
        judged(site, mean, number)
    label(site, 2, "anna", "good")
    again(site, 2, "ben", note="are you sure?")
    skip(site, 3, "anna")
    with site.database.reading() as session:
        entries = review.listed(session, review.Filters("tiny"), "anna")
    assert [(entry.image.id, entry.reason) for entry in entries] == [
        *((2, "sent back"), (1, "put aside for review"), (3, "skipped"))
    ]
    assert image(site, 2).label == "good"


def test_undo_goes_back_one_at_a_time_and_only_through_ones_own(site: Site) -> None:
    judged(site, 95)
    judged(site, 96)
    before = state(site, 1)
    label(site, 1, "anna", "good")
    label(site, 2, "ben", "good")
    label(site, 1, "anna", "anomaly", defect="dent")
    undo(site, "anna")
    assert image(site, 1).label == "good"
    undo(site, "anna")
    assert state(site, 1) == before
    assert image(site, 2).label == "good"
    with pytest.raises(BlemishError, match="nothing of yours"):
        undo(site, "anna")


def test_what_somebody_decided_since_cannot_be_undone_past(site: Site) -> None:
    judged(site, 95)
    mine = label(site, 1, "anna", "good")
    theirs = label(site, 1, "ben", "anomaly", defect="dent")
    with pytest.raises(DecidedError, match=r"ben called it an anomaly \(dent\) after that"):
        undo(site, "anna")
    taken_back = undo(site, "anna", theirs.id)  # by its number anybody may
    assert (taken_back.by, taken_back.undoes) == ("anna", theirs.id)
    with pytest.raises(BlemishError, match="undone already"):
        undo(site, "anna", theirs.id)
    with pytest.raises(BlemishError, match="undoes another one"):
        undo(site, "anna", taken_back.id)
    undo(site, "anna", mine.id)
    assert image(site, 1).label is None


def test_a_skip_stands_in_nobody_s_way_and_is_undone_as_what_it_is(site: Site) -> None:
    judged(site, 95)
    before = state(site, 1)
    label(site, 1, "anna", "good")
    skip(site, 1, "carl")
    undo(site, "anna")
    assert state(site, 1) == before
    undo(site, "carl")  # which gives no label back that was taken away meanwhile
    assert state(site, 1) == before
    again(site, 1, "ben")
    skipped = skip(site, 1, "carl")
    assert image(site, 1).queue == review.SKIPPED
    undo(site, "carl")
    assert image(site, 1).queue == review.SENT_BACK
    undo(site, "ben")
    skipped = skip(site, 1, "carl")
    label(site, 1, "anna", "good")
    with pytest.raises(DecidedError, match="anna called it good after that"):
        undo(site, "carl", skipped.id)
    assert troubles(site) == []


def test_undo_after_the_image_was_judged_again_ranks_it_anew(site: Site) -> None:
    judged(site, 95)
    label(site, 1, "anna", "good")
    judged(site, 95)
    undo(site, "anna")
    assert image(site, 1).label is None
    with site.database.reading() as session:
        assert review.waiting(session, "tiny") == 1


ACTIONS: tuple[Callable[[Site, str], object], ...] = (
    lambda site, by: label(site, 1, by, "good"),
    lambda site, by: label(site, 1, by, "anomaly"),
    lambda site, by: label(site, 1, by, "anomaly", defect="dent", shapes=TRIANGLE),
    lambda site, by: label(site, 1, by, "anomaly", defect="", shapes=[]),
    lambda site, by: again(site, 1, by, note="?"),
    lambda site, by: skip(site, 1, by),
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Of one image, whose labels are all taken back between two tests."""
    site = opened(tmp_path_factory.mktemp("desk"))
    judged(site, 95)
    with site.database.writing() as session:
        session.get_one(Image, 1).mask = "b" * 64
    yield site
    assert troubles(site) == []
    site.database.close()


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.integers(-1, len(ACTIONS) - 1), max_size=8))
def test_undoing_all_gives_back_the_first_state_exactly(desk: Site, steps: list[int]) -> None:
    first = state(desk, 1)
    states = [first]
    for step in steps:
        if step < 0 and len(states) > 1:
            undo(desk, "anna")
            states.pop()
        elif step >= 0:
            ACTIONS[step](desk, "anna")
            states.append(state(desk, 1))
        assert state(desk, 1) == states[-1]
    while len(states) > 1:
        undo(desk, "anna")
        states.pop()
        assert state(desk, 1) == states[-1]
    assert state(desk, 1) == first


def test_of_two_reviewers_at_once_the_second_is_told_and_can_disagree(site: Site) -> None:
    judged(site, 95)
    label(site, 1, "anna", "good", seen=Seen(1, 0))
    with pytest.raises(DecidedError, match=r"95-0.png: anna called it good meanwhile"):
        label(site, 1, "ben", "anomaly", seen=Seen(1, 0))
    with site.database.reading() as session:
        latest = corrections.latest(corrections.history(session, 1))
    label(site, 1, "ben", "anomaly", seen=Seen(1, latest))
    assert (image(site, 1).label, image(site, 1).labelled_by) == ("anomaly", "ben")


def test_a_skip_of_somebody_is_no_decision(site: Site) -> None:
    judged(site, 95)
    skip(site, 1, "ben", seen=Seen(1, 0))
    label(site, 1, "anna", "good", seen=Seen(1, 0))
    assert image(site, 1).label == "good"


def test_threads_lose_no_update(site: Site) -> None:
    """Of eight that saw the same, one decides; the others are told of it. Then all decide without looking."""
    judged(site, 95)
    told: list[str] = []
    gate = threading.Barrier(8)

    def work(number: int) -> None:
        gate.wait()
        try:
            label(site, 1, f"r{number}", "good" if number % 2 else "anomaly", seen=Seen(1, 0))
        except DecidedError as cause:
            told.append(str(cause))
        gate.wait()
        label(site, 1, f"r{number}", "good")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 7
    with site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Correction)) == 9
        rows = corrections.history(session, 1)
    # Each was written over the state that the one before it left: nothing was overwritten unseen.
    for earlier, later in itertools.pairwise(rows):
        assert (later.before["label"], later.before["labelled_by"]) == (earlier.label, earlier.by)
    assert troubles(site) == []


def test_on_postgresql_as_well(tmp_path: Path, postgres: Callable[[], str]) -> None:
    site = opened(tmp_path, postgres())
    for mean in (95, 150, 96):
        judged(site, mean)
    before = state(site, 1)
    label(site, 1, "anna", "anomaly", defect="\0dent", shapes=TRIANGLE, note="\0", seen=Seen(1, 0))
    with pytest.raises(DecidedError, match="anna called it"):
        label(site, 1, "ben", "good", seen=Seen(1, 0))
    label(site, 3, "anna", "good")
    label(site, 3, "ben", "anomaly")
    skip(site, 2, "ben")
    again(site, 1, "ben")
    with site.database.reading() as session:
        entries = review.listed(session, review.Filters("tiny"), "ben")
        assert [entry.reason for entry in entries] == ["sent back", "skipped"]
        first = entries[0].place
        assert [e.image.id for e in review.listed(session, review.Filters("tiny"), "ben", after=first)] == [2]
        assert review.following(session, review.Filters("tiny", "all"), "ben", first) is not None
        counted = review.counts(session, "tiny", "ben")
        assert review.types(session, "tiny") == ["dent"]
        assert [(pair.n, pair.agreed) for pair in agreements(session, "tiny")] == [(1, 0)]
    assert (counted["waiting"], counted["back"], counted["labelled"], counted["second"]) == (2, 1, 2, 1)
    undo(site, "ben")
    undo(site, "anna", 1)
    assert state(site, 1) == before
    assert troubles(site) == []
    site.database.close()
