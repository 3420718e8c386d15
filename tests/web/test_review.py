"""The order of the review queue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blemish.inference.bundle import Decision
from blemish.types import BlemishError
from blemish.web import review
from blemish.web.corrections import Seen, again, label, skip, undo
from blemish.web.review import Filters, rank
from blemish.web.site import Site
from blemish.web.tables import Detector, Image, Verdict, now
from tests import tiny
from tests.web.desk import image, judged, opened

RULE = tiny.card().decision.model_copy(update={"false_alarms": 0.05})
NO_P = RULE.model_copy(update={"false_alarms": None, "rule": "class"})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened_site = opened(tmp_path)
    yield opened_site
    opened_site.database.close()


def ranked(decision: str, p: float | None, label: str | None = None, *, rule: Decision = RULE, **more: Any) -> Any:
    score = more.pop("score", None)
    queue = more.pop("queue", None)
    return rank(Image(label=label, queue=queue), Verdict(decision=decision, p_value=p, score=score), rule, **more)


def test_uncertain_first_then_near_the_threshold_then_disagreements_then_the_rest() -> None:
    order = [
        ranked("anomaly", 0.01, queue=review.SENT_BACK),
        ranked("review", 0.06),
        ranked("review", 0.2),
        ranked("good", 0.055),
        ranked("anomaly", 0.03),
        ranked("anomaly", 0.03, "good"),
        ranked("anomaly", 0.001, "good"),
        review.SKIPPED,
        ranked("good", 0.11),
        ranked("good", 0.9),
    ]
    assert order == sorted(order)
    assert [math.floor(value) for value in order] == [-1, 0, 0, 1, 1, 2, 2, 2, 3, 3]


def test_ranks_by_hand() -> None:
    """p = 0.025 is half of 0.05: log 2 from the threshold, so log 2 / (1 + log 2) = 0.40938 within its band."""
    assert ranked("anomaly", 0.025) == pytest.approx(1.40938, abs=1e-5)
    assert ranked("review", 0.1) == pytest.approx(0.40938, abs=1e-5)
    assert ranked("anomaly", 0.0249) == pytest.approx(3 + 0.41077, abs=1e-4)
    assert ranked("anomaly", 0.025, "good") == pytest.approx(2 + 0.995 * 0.40938, abs=1e-5)
    # Without p: a score of 110 at a threshold of 100 is 4 * 0.1 from it, one of 130 is 4 * 0.3.
    assert ranked("anomaly", None, rule=NO_P, score=110.0) == pytest.approx(1 + 0.4 / 1.4)
    assert ranked("anomaly", None, rule=NO_P, score=130.0) == pytest.approx(3 + 1.2 / 2.2)


@pytest.mark.parametrize(
    ("decision", "label"), [("anomaly", "anomaly"), ("good", "good"), ("review", "good"), ("review", "anomaly")]
)
def test_a_label_that_the_verdict_does_not_contradict_waits_for_nobody(decision: str, label: str) -> None:
    assert ranked(decision, 0.05, label) is None


def test_what_could_not_be_judged_and_what_was_decided_knowingly_wait_for_nobody() -> None:
    assert ranked("error", None) is None
    assert ranked("anomaly", 0.001, "good", decided=True) is None


def test_no_disagreement_is_behind_what_was_skipped() -> None:
    assert ranked("anomaly", 1e-300, "good") < review.SKIPPED
    assert ranked("anomaly", None, "good", rule=NO_P, score=1e30) < review.SKIPPED
    assert ranked("review", None, rule=NO_P, score=1e30) < 1


def test_the_same_version_does_not_ask_again_and_a_new_one_does(site: Site) -> None:
    verdict = judged(site, 150)
    label(site, 1, "anna", "good", seen=Seen(verdict.id))
    judged(site, 150)
    assert image(site, 1).queue is None
    with site.database.writing() as session:
        session.add(Detector(sha256="0" * 64, product="tiny", version=2, kind="learned", created=now(), by="anna"))
        found = session.get_one(Image, 1)
        placed = review.place(session, found, Verdict(detector_id=2, decision="anomaly", p_value=0.01), RULE)
        agreed = review.place(session, found, Verdict(detector_id=2, decision="good", p_value=0.5), RULE)
    assert placed is not None
    assert 2 < placed < review.SKIPPED
    assert agreed is None


def fill(site: Site) -> None:
    """Means: 95 and 96 for review (p = 2/4: 0 to 1), 150 and 151 anomalies (p = 1/4, at the threshold: 1 to 2), 20 and
    21 good (p = 1: 3 on)."""
    for mean in (20, 95, 150, 21, 96, 151):
        judged(site, mean)


def names(site: Site, filters: Filters, me: str = "anna", **more: Any) -> list[str]:
    with site.database.reading() as session:
        return [entry.image.name.partition("-")[0] for entry in review.listed(session, filters, me, **more)]


def test_lists_and_counts(site: Site) -> None:
    fill(site)
    assert names(site, Filters("tiny")) == ["95", "96", "150", "151"]
    assert names(site, Filters("tiny", "rest")) == ["20", "21"]
    assert names(site, Filters("tiny", "all")) == ["95", "96", "150", "151", "20", "21"]
    assert names(site, Filters("other")) == []
    assert names(site, Filters("tiny", verdict="anomaly")) == ["150", "151"]
    assert names(site, Filters("tiny", version=1)) == ["95", "96", "150", "151"]
    assert names(site, Filters("tiny", version=2)) == []
    label(site, 2, "anna", "anomaly")  # 95
    label(site, 3, "anna", "good")  # 150
    label(site, 6, "ben", "good")  # 151
    again(site, 1, "ben")  # 20
    skip(site, 5, "ben")  # 96
    assert names(site, Filters("tiny")) == ["20", "96"]
    assert names(site, Filters("tiny", "back")) == ["20"]
    assert names(site, Filters("tiny", "skipped")) == ["96"]
    assert names(site, Filters("tiny", "labelled", label="good")) == ["150", "151"]
    assert names(site, Filters("tiny", "all", label="none")) == ["20", "96", "21"]
    assert names(site, Filters("tiny", "second"), "anna") == ["151"]
    assert names(site, Filters("tiny", "second"), "ben") == ["95", "150"]
    undo(site, "ben", 3)  # 151
    assert names(site, Filters("tiny", "second"), "anna") == []
    with site.database.reading() as session:
        assert review.counts(session, "tiny", "ben") == {
            "waiting": 3,
            "back": 1,
            "uncertain": 1,
            "disagree": 0,
            "skipped": 1,
            "rest": 1,
            "second": 2,
            "labelled": 2,
            "all": 6,
        }
        assert review.waiting(session, "tiny") == 3
        assert review.all_waiting(session) == {"tiny": 3}
        assert review.waiting(session, "other") == 0


def test_a_second_reader_s_order_tells_nothing(site: Site) -> None:
    """The verdicts that were contradicted come first in the queue of all; here the order is that of arrival."""
    fill(site)
    for number in range(1, 7):
        label(site, number, "anna", "good")
    with site.database.writing() as session:
        session.get_one(Image, 3).queue = review.DISAGREE  # as another version's verdict would have it
    assert names(site, Filters("tiny", "labelled"), "ben")[0] == "150"
    second = Filters("tiny", "second")
    assert names(site, second, "ben") == ["20", "95", "150", "21", "96", "151"]
    with site.database.reading() as session:
        entries = review.listed(session, second, "ben")
        assert [entry.image.id for entry in review.listed(session, second, "ben", after=entries[2].place)] == [4, 5, 6]
        before = review.before(session, second, "ben", entries[2].place)
        assert before
        assert before.image.id == 2
        assert review.entry_of(session, entries[2].image, second).place == entries[2].place


def test_a_label_that_was_brought_in_is_no_reviewer_s(site: Site) -> None:
    for number in range(2):
        judged(site, 95, number)
        with site.database.writing() as session:
            came = session.get_one(Image, number + 1)
            came.label, came.labelled_by, came.item = "anomaly", "import", f"part {number}"
    label(site, 2, "ben", "good")
    second = Filters("tiny", "second")
    assert [names(site, second, "anna"), names(site, second, "ben")] == [["95"], []]
    with site.database.reading() as session:
        assert [entry.image.id for entry in review.listed(session, second, "anna")] == [2]
        assert [review.count(session, second, me) for me in ("anna", "ben")] == [1, 0]
        assert review.count(session, Filters("tiny", "all", verdict="review"), "anna") == 2


def test_whom_others_contradicted_has_read_it_already(site: Site) -> None:
    judged(site, 95)
    label(site, 1, "anna", "good")
    label(site, 1, "ben", "anomaly")
    assert names(site, Filters("tiny", "second"), "anna") == []
    assert names(site, Filters("tiny", "second"), "carl") == ["95"]


@pytest.mark.parametrize("show", ["waiting", "all"])
def test_pages_hold_each_image_once(site: Site, show: Any) -> None:
    fill(site)
    for number in range(1, 4):
        judged(site, 95, number)  # all of one rank
    found: list[str] = []
    after: review.Place | None = None
    while True:
        with site.database.reading() as session:
            entries = review.listed(session, Filters("tiny", show), "anna", after=after, limit=2)
        if not entries:
            break
        found += [entry.image.name for entry in entries]
        after = review.place_of(review.text_of(entries[-1].place))
    assert found == [*dict.fromkeys(found)]
    assert len(found) == (7 if show == "waiting" else 9)


def test_next_and_previous(site: Site) -> None:
    fill(site)
    filters = Filters("tiny")
    with site.database.reading() as session:
        order = [entry.image for entry in review.listed(session, filters, "anna")]
        places = [review.where_is(one, filters) for one in order]

        def after(number: int, **more: int) -> int:
            entry = review.following(session, filters, "anna", places[number], **more)
            return entry.image.id if entry else 0

        assert [after(number) for number in range(4)] == [order[1].id, order[2].id, order[3].id, order[0].id]
        assert after(3, other_than=order[0].id) == order[1].id
        assert review.before(session, filters, "anna", places[0]) is None
        front = review.before(session, filters, "anna", places[2])
        assert front is not None
        assert front.image.id == order[1].id


@pytest.mark.parametrize("text", ["x", "1.,2", "1.0", "nan,1", "1.0,-1", "1.0,1;drop"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(BlemishError, match="no place in the queue"):
        review.place_of(text)


def test_places_as_text() -> None:
    for place in ((-1.0, 1), (0.1 + 0.2, 12), (1e-7, 3)):
        assert review.place_of(review.text_of(place)) == place
    assert review.place_of("") is None
