import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from blemish import BlemishError, Inspector
from blemish.images import load_image
from blemish.inference import bundle, calibration
from blemish.inference.inspector import Inspection, chance
from tests.conftest import tile
from tests.support import predicted, write_image


@pytest.fixture(scope="module")
def inspector(run: Path) -> Inspector:
    return Inspector(run / "bundle", threads=1)


def test_a_defect_is_found_where_it_is(inspector: Inspector, tmp_path: Path) -> None:
    verdict = inspector.inspect(write_image(tmp_path / "a.png", tile(999, (30, 20))[0]))
    assert verdict.decision == "anomaly"
    assert verdict.size == (80, 60)
    assert verdict.score is not None
    assert verdict.threshold is not None
    assert verdict.score > verdict.threshold
    left, top, right, bottom = verdict.regions[0].box
    assert left < 26 < right  # the spot's centre
    assert top < 36 < bottom
    assert right - left < 60  # and the box is no more than a patch_size of it


def test_a_good_part_has_no_regions(inspector: Inspector, tmp_path: Path) -> None:
    verdict = inspector.inspect(write_image(tmp_path / "a.png", tile(998)[0]))
    assert verdict.decision == "good"
    assert verdict.regions == ()
    assert verdict.p_value is not None
    assert verdict.p_value > 0.05


def test_p_value_and_decision_agree_with_the_card(inspector: Inspector) -> None:
    scores = np.array(inspector.card.decision.scores)
    for score in np.unique([*scores, scores.max() * 2, 0.0]):
        verdict = inspector.judge(predicted(float(score), np.zeros((192, 256), np.float32)), (80, 60), "x")
        p = (1 + (scores >= score).sum()) / (len(scores) + 1)
        assert verdict.p_value == pytest.approx(p)
        assert (verdict.decision == "anomaly") == (p <= inspector.card.decision.false_alarms)


def test_the_verdict_does_not_depend_on_company_or_memory_layout(inspector: Inspector, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", tile(i, (5, 5) if i % 2 else None)[0]) for i in range(5)]
    together = [look.verdict for look in inspector.look_many(paths)]
    assert together == [inspector.inspect(path) for path in paths]
    image = tile(3)[0]
    assert inspector.predict(image).scores == inspector.predict(np.asfortranarray(image)).scores


def test_broken_files_become_error_verdicts_and_the_rest_goes_on(inspector: Inspector, tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.png", tile(1)[0])
    text = tmp_path / "text.png"
    text.write_text("not an image", encoding="utf-8")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:200])
    looks = list(inspector.look_many([text, good, cut, tmp_path / "missing.png", good]))
    assert [look.verdict.decision for look in looks] == ["error", "good", "error", "error", "good"]
    for look, name in zip(looks, ["text.png", "", "cut.png", "missing.png", ""], strict=True):
        if name:
            assert name in (look.verdict.error or "")
            assert look.image is None
            assert look.map is None


def test_too_large_a_image_is_an_error_verdict(run: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", tile(1)[0])
    verdict = Inspector(run, max_pixels=1000).inspect(path)
    assert verdict.decision == "error"
    assert "1,000" in (verdict.error or "") or "1000" in (verdict.error or "")


def test_a_graph_that_onnxruntime_cannot_load_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"no graph")
    bundle.write(folder, bundle.read(run).card.model_copy(update={"files": {}}))
    with pytest.raises(BlemishError, match="onnxruntime cannot load the graph"):
        Inspector(folder)


def test_verdicts_in_the_run_are_what_the_inspector_says(run: Path, product: Path, inspector: Inspector) -> None:
    lines = [json.loads(line) for line in (run / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12
    for line in lines:
        verdict = inspector.inspect(product / line["path"])
        assert verdict.score == pytest.approx(line["score"], rel=1e-5)
        assert verdict.decision == line["decision"]


def test_a_classifier_names_the_type_and_says_how_sure(classified: Path, labelled: Path) -> None:
    inspector = Inspector(classified)
    verdict = inspector.inspect(labelled / "bright/002.png")
    assert verdict.decision == "anomaly"
    assert verdict.defect == "bright"
    assert verdict.regions
    found = inspector.predict(load_image(labelled / "bright/002.png")).outputs()
    assert found["probabilities"].shape == (1, 3)
    assert found["class_maps"].shape == (1, 2, 96, 128)
    assert verdict.probability == pytest.approx(1 - found["probabilities"][0, 0], abs=1e-6)
    assert found["probabilities"].sum() == pytest.approx(1, abs=1e-5)
    good = inspector.inspect(labelled / "good/003.png")
    assert (good.decision, good.defect, good.regions) == ("good", "", ())
    assert good.probability is not None
    assert good.probability < (verdict.probability or 0)


def by_hand(inspector: Inspector, **changes: Any) -> Inspector:
    """The same graph with another rule."""
    other = copy.copy(inspector)
    rule = inspector.card.decision.model_copy(update=changes)
    other.card = inspector.card.model_copy(update={"decision": rule})
    return other


def test_three_verdicts(inspector: Inspector) -> None:
    rule = {"threshold": 5.0, "review_threshold": 3.0, "pixel_threshold": 2.0, "normal_median": 0.0, "min_area": 0.0}
    three, two = by_hand(inspector, **rule), by_hand(inspector, **rule | {"review_threshold": None})
    anomaly_map = np.zeros((192, 256), np.float32)
    anomaly_map[40:80, 40:80] = 9
    said = {score: three.judge(predicted(score, anomaly_map), (80, 60), "x") for score in (2.9, 3.0, 3.1, 5.0, 5.1)}
    assert [verdict.decision for verdict in said.values()] == ["good", "good", "review", "review", "anomaly"]
    assert [len(verdict.regions) for verdict in said.values()] == [0, 0, 1, 1, 1]
    assert said[3.1].regions == said[5.1].regions
    assert [two.judge(predicted(score, anomaly_map), (80, 60), "x").decision for score in said] == ["good"] * 4 + [
        "anomaly"
    ]
    one = by_hand(inspector, **rule, boxes="one").judge(predicted(3.1, anomaly_map), (80, 60), "x")
    assert len(one.regions) == 1


def test_several_images_of_an_item_share_its_weight(inspector: Inspector) -> None:
    scores, map_maxima, items = (1.0, 2.0, 3.0, 4.0), (1.5, 1.0, 1.0, 9.0), (0, 0, 1, 2)
    other = by_hand(inspector, scores=scores, map_maxima=map_maxima, items=items, distances=())
    rule, weights = other.card.decision, calibration.item_weights(["0", "0", "1", "2"])
    assert chance(rule, "scores", 2.0) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert chance(rule, "scores", 2.5) == pytest.approx((1 + 1 + 1) / 4)
    assert chance(rule, "map_maxima", 1.2) == pytest.approx((1 + 0.5 + 1) / 4)
    assert chance(rule, "distances", 1.0) is None
    for value in (0.0, 1.0, 1.5, 4.0, 5.0):
        verdict = other.judge(predicted(value, np.zeros((192, 256), np.float32)), (80, 60), "x")
        assert verdict.p_value == calibration.p_values(np.array(scores), np.array([value]), weights)[0]
    alone = by_hand(inspector, scores=scores, items=()).card.decision
    assert chance(alone, "scores", 2.0) == pytest.approx((1 + 3) / 5)
    assert chance(by_hand(inspector, scores=()).card.decision, "map_maxima", 1.0) is None  # nothing was held out


def test_cards_from_before_three_verdicts_go_on_working(run: Path, inspector: Inspector, tmp_path: Path) -> None:
    old = shutil.copytree(run / "bundle", tmp_path / "old")
    card = json.loads((old / "card.json").read_text(encoding="utf-8"))
    for field in ("confidence", "calibrated_by", "review", "review_threshold", "items"):
        del card["decision"][field]
    card["sha256"] = bundle._digest(card)
    (old / "card.json").write_text(json.dumps(card), encoding="utf-8")
    image = write_image(tmp_path / "a.png", tile(999, (30, 20))[0])
    assert Inspector(old).card.decision == inspector.card.decision
    assert Inspector(old).inspect(image) == inspector.inspect(image)


def test_images_without_a_frame_go_to_the_graph_as_they_are(inspector: Inspector) -> None:
    assert inspector.framing is None
    image = tile(42, (20, 30))[0]
    straight = inspector._session.run(["scores", "maps"], {"images": image[None]})
    found = inspector.predict(image)
    assert found.scores == straight[0]
    np.testing.assert_array_equal(found.maps, straight[1])


def test_each_gives_what_is_made_of_the_looks_in_order(run: Path, tmp_path: Path) -> None:
    """With more workers than cores, and with one."""
    paths = [write_image(tmp_path / f"{i}.png", tile(i, (5, 5) if i % 2 else None)[0]) for i in range(9)]
    for threads in (1, 4):
        inspector = Inspector(run, threads=threads)
        found = list(inspector.each(zip(paths, range(9), strict=True), lambda look, i: (i, look.verdict)))
        assert [i for i, _ in found] == list(range(9))
        assert [verdict for _, verdict in found] == [inspector.inspect(path) for path in paths]
    assert list(inspector.each([], lambda look, _: look)) == []


def test_each_takes_few_items_ahead_and_stops_when_told(run: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", tile(1)[0])
    taken: list[int] = []

    def endless() -> Iterator[tuple[Path, int]]:
        for i in range(10_000):
            taken.append(i)
            yield path, i

    looks = Inspector(run, threads=2).each(endless(), lambda _, i: i)
    assert [next(looks) for _ in range(6)] == list(range(6))
    looks.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6 + 5


def test_what_fails_in_a_worker_is_raised(run: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", tile(1)[0])

    def full(look: Inspection, number: int) -> int:
        if number == 3:
            raise OSError(28, "No space left on device")
        return number

    with pytest.raises(OSError, match="No space left"):
        list(Inspector(run, threads=2).each(((path, i) for i in range(8)), full))


def test_a_device_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(BlemishError, match="choose cpu or cuda"):
        Inspector(run, device="tpu")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BlemishError, match="onnxruntime-gpu"):
            Inspector(run, device="cuda")
