"""The drift test of a version is `inference.drift` over the same scores."""

from __future__ import annotations

import random
import time
from pathlib import Path

from sqlalchemy import insert

from blemish.inference.drift import Drift
from blemish.web.dataset import PIXELS
from blemish.web.drift import MOST, NO_TEST, Drifts
from blemish.web.site import Site
from blemish.web.tables import Correction, Image, Verdict, now
from tests import tiny
from tests.web.rows import image_row, verdict_row
from tests.web.support import PRODUCT, client_of, made_site


def filled(site: Site, scores: list[float | None], start: int = 0) -> None:
    detector = site.detectors.judging(PRODUCT)
    with site.database.writing() as session:
        for number, score in enumerate(scores, start):
            image = image_row(session, PRODUCT, number)
            decision = "error" if score is None else "anomaly" if score > 100 else "good"
            verdict_row(session, image, detector.id, score=score, decision=decision, error=(score and None) or "x")


def test_the_state_is_that_of_the_scores_in_their_order_however_they_come(tmp_path: Path) -> None:
    site, draw, rule = made_site(tmp_path), random.Random(0), tiny.card().decision
    scores: list[float | None] = [draw.choice([None, draw.uniform(80, 105)]) for _ in range(60)]
    expected = Drift(rule.scores, threshold=rule.threshold)
    drifts, detector = Drifts(), site.detectors.judging(PRODUCT)
    for begin in range(0, 60, 20):
        some = scores[begin : begin + 20]
        filled(site, some, begin)
        for score in some:
            if score is not None:
                expected.see(score)
        assert drifts.follow(site.database, detector.id, rule).state == expected.state
    assert expected.state.left_out > 0
    assert Drifts().follow(site.database, detector.id, rule).sentence == expected.sentence()
    slow = Drifts()
    judged = sum(score is not None for score in scores)
    assert slow.follow(site.database, detector.id, rule, most=10).left == judged - 10
    while slow.follow(site.database, detector.id, rule, most=10).left:
        pass
    assert slow.follow(site.database, detector.id, rule).state == expected.state


def test_the_same_image_again_is_no_new_part(tmp_path: Path) -> None:
    site, rule = made_site(tmp_path), tiny.card().decision
    filled(site, [85.0, 87.0])
    detector = site.detectors.judging(PRODUCT)
    with site.database.writing() as session:
        verdict_row(session, session.get_one(Image, 1), detector.id, score=99.0)
    state = site.drifts.follow(site.database, detector.id, rule).state
    assert state is not None
    assert state.seen == 2


def labelled(image: Image, time: str) -> Correction:
    return Correction(image_id=image.id, time=time, by="me", action="label", label="good", shapes=[], before={})


def test_images_that_were_picked_or_learned_from_are_left_out(tmp_path: Path) -> None:
    """Scores drawn as the calibration scores are, of which a review queue shows those near the threshold: the alarm is
    of the picking, not of the parts."""
    site, draw, start = made_site(tmp_path), random.Random(0), "2026-01-01"
    normal = tuple(draw.gauss(50, 10) for _ in range(60))
    rule = tiny.card().decision.model_copy(update={"scores": normal, "map_maxima": normal, "threshold": 70.0})
    drawn = [draw.gauss(50, 10) for _ in range(600)]
    near = [score for score in drawn if 60 < score < 70][:60]
    detector = site.detectors.judging(PRODUCT)
    with site.database.writing() as session:
        for number, score in enumerate(near):
            images = [image_row(session, PRODUCT, 10 * number + kind) for kind in range(4)]
            verdict_row(session, images[0], detector.id, score=score, source="again")
            images[1].split, images[1].item = "train", f"part {number}"  # imported
            images[2].split = "train"
            session.add(labelled(images[2], start))
            for image in images[1:3]:
                verdict_row(session, image, detector.id, score=score)
    assert Drifts().follow(site.database, detector.id, rule).state == Drift(normal, threshold=70.0).state
    with site.database.writing() as session:
        for number, score in enumerate(near):
            image = image_row(session, PRODUCT, 1000 + number, split="train", item=f"{PIXELS}{number}")
            session.add(labelled(image, now()))  # after the version was made
            verdict_row(session, image, detector.id, score=score)
    state = Drifts().follow(site.database, detector.id, rule).state
    assert state is not None
    assert (state.seen, state.alarm) == (60, True)


def test_an_alarm_is_on_the_page(tmp_path: Path) -> None:
    rule = tiny.card().decision.model_copy(update={"scores": tuple(float(v) for v in range(60, 100))})
    rule = rule.model_copy(update={"map_maxima": rule.scores})
    site = made_site(tmp_path)
    other = site.detectors.bring(tiny.made(tmp_path / "other", decision=rule), by="me")
    site.detectors.promote(other.id, "me")
    scores: list[float | None] = [99.0 - number % 13 for number in range(60)]
    filled(site, scores[:5])
    early = client_of(site).get("/history").text
    assert "too early</b>" in early
    assert "Too few parts to tell of drift" in early
    filled(site, scores[5:], start=5)
    page = client_of(site).get("/history").text
    assert "Drift since part" in page
    assert "scores of good parts have become higher" in page
    quiet = client_of(site).get("/history?version=1").text
    assert "Drift since" not in quiet


def test_without_scores_there_is_no_test(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    rule = tiny.card().decision.model_copy(update={"scores": (), "map_maxima": ()})
    followed = site.drifts.follow(site.database, 1, rule)
    assert (followed.state, followed.sentence) == (None, NO_TEST)


def test_a_page_takes_in_five_thousand_at_most(tmp_path: Path) -> None:
    site, many = made_site(tmp_path), range(1, MOST + 3)
    text = {"name": "a.png", "defect": ""}
    image = {"product": PRODUCT, "ending": ".png", "added": "2026", "shapes": [], "mask": "", "split": "", "item": ""}
    verdict = {"detector_id": 1, "time": now(), "source": "api", "by": "me", "decision": "good", "regions": []}
    with site.database.writing() as session:
        session.execute(insert(Image), [{**text, **image, "sha256": f"{n:064x}", "labelled_by": ""} for n in many])
        session.execute(insert(Verdict), [{**text, **verdict, "image_id": n, "score": float(n % 90)} for n in many])
    client = client_of(site)
    client.get("/history?before=2")  # loads the bundle, and has no drift test
    begun = time.process_time()
    assert "2 more verdicts are still being counted" in client.get("/history").text
    assert time.process_time() - begun < 0.5  # some 0.2 s
    assert f"{MOST + 2} parts seen" in client.get("/history").text
