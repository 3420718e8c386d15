"""The threshold on the histogram of scores: against the calibration's own functions, and counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, update

from blemish.inference import bundle, calibration
from blemish.inference.bundle import Decision
from blemish.types import BlemishError
from blemish.web import thresholds
from blemish.web.tables import Image
from blemish.web.thresholds import Effects, Scored, decided, effects, family, save, scored, steps
from tests import tiny
from tests.web.learned import site_of
from tests.web.rows import image_row, verdict_row
from tests.web.support import PRODUCT, grey, made_site


def rule(scores: list[float], **changes: Any) -> Decision:
    base = tiny.card().decision.model_dump()
    return Decision(**{**base, "scores": tuple(scores), "map_maxima": tuple(s + 9 for s in scores), **changes})


def several(n: int, seed: int = 0) -> list[float]:
    return [float(s) for s in np.random.default_rng(seed).normal(50, 10, n).round(1)]


@pytest.mark.parametrize(
    "of",
    [
        rule(several(39)),
        rule([1.0, 1.0, 2.0, 2.0, 2.0, 3.0]),
        rule(several(40), items=tuple(i // 3 for i in range(40))),
        rule(several(60), confidence=0.9),
        rule(several(60), confidence=0.9, items=tuple(i // 2 for i in range(60))),
    ],
    ids=["images", "ties", "items", "confidence", "confidence and items"],
)
def test_each_step_has_the_lowest_rate_that_its_threshold_guarantees(of: Decision) -> None:
    scores, groups = np.array(of.scores), thresholds.groups_of(of)
    found = steps(of)
    assert [step.threshold for step in found] == sorted({step.threshold for step in found})
    for step in found:
        same = calibration.threshold(scores, step.rate, groups, confidence=of.confidence)
        assert same == step.threshold
        try:
            lower = calibration.threshold(scores, step.rate * (1 - 1e-6), groups, confidence=of.confidence)
        except BlemishError:
            lower = np.inf
        assert lower > step.threshold


def test_a_step_by_hand() -> None:
    # Of 4 scores, the highest guarantees 1 / 5, the next 2 / 5.
    assert steps(rule([4.0, 1.0, 3.0, 2.0]))[-2:] == [(3.0, 0.4), (4.0, 0.2)]
    # Of 2 items, one with the scores 1 and 5 at half a weight each, the other with 3: above 3 lies half an item.
    assert steps(rule([1.0, 5.0, 3.0], items=(0, 0, 1)))[-2:] == [(3.0, 0.5), (5.0, 1 / 3)]
    # (1 - rate)^10 = 1 - 0.9 at the highest of 10 independent scores.
    assert steps(rule(several(10), confidence=0.9))[-1].rate == pytest.approx(1 - 0.1**0.1)
    assert steps(rule([], rule="class")) == []


def test_the_effects_on_labelled_images_by_hand() -> None:
    images = [Scored(s, defective) for s, defective in ((1, False), (2, False), (3, False), (2, True), (9, True))]
    assert effects(images, 2.0, 1.0) == Effects(1, 0, 1, 1, 1, 1)
    assert effects(images, 2.0) == Effects(1, 1, 0, 1, 0, 2)
    assert effects([], 2.0) == Effects(0, 0, 0, 0, 0, 0)


def test_the_rule_is_what_training_makes_of_the_same_images(all_teach: Path) -> None:
    card = bundle.read(all_teach).card
    made = card.decision
    assert decided(made, made.false_alarms or 0, made.review) == made
    other = decided(made, 0.1, 0.2)
    assert other.threshold == calibration.threshold(np.array(made.scores), 0.1)
    assert other.pixel_threshold == calibration.threshold(np.array(made.map_maxima), 0.1)
    assert "At most 10.00% of good parts are called anomalies, and at most 20.00%" in other.guarantee
    assert "memory bank" in other.guarantee  # leave-one-out says how far it holds
    assert decided(made, 0.1, None).review_threshold is None
    with pytest.raises(BlemishError, match="must be larger than the rate of false alarms"):
        decided(made, 0.1, 0.1)
    with pytest.raises(BlemishError, match=r"40 good images cannot guarantee 1.00% false alarms"):
        decided(made, 0.01, None)
    with pytest.raises(BlemishError, match="decides by the likelier class"):
        decided(rule([], rule="class"), 0.1, None)


def test_a_new_version_has_the_same_graph_and_judges_when_promoted(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    first = site.detectors.judging("tiny")
    verdict = site.line.inspect(grey(95), "a.png", "tiny", by="ada", source="page")
    assert verdict.decision == "review"
    new = save(site.detectors, first, 0.5, None, by="ada", note="fewer misses")
    assert (new.version, new.kind, new.parent_id, new.by, new.note) == (2, "threshold", first.id, "ada", "fewer misses")
    models = [(site.detectors.place(version) / "bundle/model.onnx").read_bytes() for version in (first, new)]
    assert models[0] == models[1]
    assert site.detectors.judging("tiny").id == first.id
    site.detectors.promote(new.id, "ada")
    again = site.line.inspect(grey(95), "a.png", "tiny", by="ada", source="page")
    assert (again.decision, again.threshold) == ("anomaly", 90.0)  # 2 of 4 good parts may lie above 90
    with pytest.raises(BlemishError, match="version 2 has already"):
        save(site.detectors, new, 0.5, None, by="ada")
    third = save(site.detectors, new, 0.75, None, by="ada")
    for version in (new, third):  # whose card says once that it may be no guarantee
        sentence = bundle.read(site.detectors.place(version) / "bundle").card.decision.guarantee
        assert sentence.endswith(thresholds.CHOSEN)
        assert sentence.count("looking at the calibration scores") == 1
    own, members = family(site.detectors, third)
    assert (own.id, members) == (first.id, [third.id, new.id, first.id])
    assert not list(site.config.folder.detectors.glob(".threshold*"))
    site.database.close()


def test_labelled_images_count_where_the_version_did_not_learn_from_them(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    numbers = []
    for value in (80, 95, 120):
        verdict = site.line.inspect(grey(value), f"{value}.png", "tiny", by="ada", source="page")
        numbers.append(verdict.image_id)
    first = site.detectors.judging("tiny")
    with site.database.writing() as session:
        for number, (label, split) in zip(
            numbers, (("good", "train"), ("anomaly", "test"), ("anomaly", "train")), strict=True
        ):
            image = session.get_one(Image, number)
            image.label, image.split = label, split
        image.item, image.labelled_by = "120.png", "import"  # which a version learned from
    found = scored(site.database, site.detectors, first)
    assert found == [Scored(80.0, defective=False), Scored(95.0, defective=True)]
    new = save(site.detectors, first, 0.5, None, by="ada")
    assert scored(site.database, site.detectors, new) == found  # nothing is scored again
    site.database.close()


def test_figures_of_a_run_at_another_threshold(all_teach: Path, product: Path, tmp_path: Path) -> None:
    site = site_of(tmp_path / "page", all_teach, product)
    first = site.detectors.judging("tiles")
    images = scored(site.database, site.detectors, first)
    assert len(images) == 12
    assert sum(image.defective for image in images) == 6
    new = save(site.detectors, first, 0.5, None, by="ada")
    counted = effects(images, bundle.read(site.detectors.place(new) / "bundle").card.decision.threshold)
    confusion = new.metrics["detection"]["confusion"]
    assert (confusion["missed"], confusion["false_alarms"]) == (counted.missed, counted.false_alarms)
    assert new.metrics["detection"]["auroc"] == first.metrics["detection"]["auroc"]
    assert "defects_hit" in first.metrics["localisation"]
    assert "defects_hit" not in new.metrics["localisation"]
    assert "pixel_auroc" in new.metrics["localisation"]
    # No interval of what may have been chosen by looking at these images; ranks know no threshold.
    measured = new.metrics["detection"]
    assert {name for name, figure in measured.items() if figure.get("low") is not None} <= set(thresholds.OVER_ALL)
    assert measured["miss_rate"]["value"] == counted.missed / 6
    third = save(site.detectors, new, 0.25, None, by="ada")  # has the figures of the same run
    found = effects(images, bundle.read(site.detectors.place(third) / "bundle").card.decision.threshold)
    assert third.metrics["detection"]["confusion"]["missed"] == found.missed
    site.database.close()


def test_what_only_a_later_version_learned_from_counts_where_that_is_known(
    all_teach: Path, product: Path, tmp_path: Path
) -> None:
    site = site_of(tmp_path / "page", all_teach, product)
    first = site.detectors.judging("tiles")
    assert thresholds.counted(site.detectors, first) == thresholds.ALL_UNSEEN
    with site.database.writing() as session:  # another version's run came, which learned from the defects
        session.execute(update(Image).where(Image.label == "anomaly").values(split="train"))
    assert sum(image.defective for image in scored(site.database, site.detectors, first)) == 6
    site.config.folder.learned(first.sha256).unlink()
    assert thresholds.counted(site.detectors, first) == thresholds.SURELY_UNSEEN
    assert sum(image.defective for image in scored(site.database, site.detectors, first)) == 0
    site.database.close()


def test_only_what_the_slider_needs_is_read(tmp_path: Path) -> None:
    """Of a hundred thousand images neither shapes nor regions."""
    site = made_site(tmp_path)
    with site.database.writing() as session:
        for number in range(3):
            verdict_row(
                session, image_row(session, PRODUCT, number, label="good", split="test"), 1, score=float(number)
            )
    asked: list[str] = []
    event.listen(site.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    found = thresholds.scored(site.database, site.detectors, site.detectors.version(1))
    assert [image.score for image in found] == [0.0, 1.0, 2.0]
    assert [statement for statement in asked if "shapes" in statement or "regions" in statement] == []
    site.database.close()
