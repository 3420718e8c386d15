import copy
import io
import json
import pickle
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image

from blemish import BlemishError, Inspector
from blemish.images import load_image
from blemish.inference import bundle, calibration
from blemish.inference.inspector import Inspection, p_value_of
from tests.conftest import tile
from tests.support import predicted, write_image


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
    assert right - left < 60  # and the box holds little more


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


def test_the_verdict_depends_neither_on_other_images_nor_on_memory_layout(inspector: Inspector, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", tile(i, (5, 5) if i % 2 else None)[0]) for i in range(5)]
    together = [inspection.verdict for inspection in inspector.look_many(paths)]
    assert together == [inspector.inspect(path) for path in paths]
    image = tile(3)[0]
    assert inspector.predict(image).scores == inspector.predict(np.asfortranarray(image)).scores


def test_broken_files_become_error_verdicts_and_the_others_are_inspected(inspector: Inspector, tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.png", tile(1)[0])
    text = tmp_path / "text.png"
    text.write_text("not an image", encoding="utf-8")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:200])
    inspections = list(inspector.look_many([text, good, cut, tmp_path / "missing.png", good]))
    decisions = [inspection.verdict.decision for inspection in inspections]
    assert decisions == ["error", "good", "error", "error", "good"]
    for inspection, name in zip(inspections, ["text.png", "", "cut.png", "missing.png", ""], strict=True):
        if name:
            assert name in (inspection.verdict.error or "")
            assert inspection.image is None
            assert inspection.map is None
            assert inspection._repr_png_() is None


def test_too_large_an_image_is_an_error_verdict(run: Path, tmp_path: Path) -> None:
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


def test_an_array_has_the_verdict_of_its_file(inspector: Inspector, tmp_path: Path) -> None:
    for number, spot in ((998, None), (999, (30, 20))):
        image = tile(number, spot)[0]
        path = write_image(tmp_path / f"{number}.png", image)
        assert inspector.inspect(image, str(path)) == inspector.inspect(path)
        assert inspector.inspect(image).path == ""
        assert inspector.inspect(path, "line 3/part 17").path == "line 3/part 17"
        np.testing.assert_array_equal(inspector.look(image).map, inspector.look(path).map)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((60, 80), np.uint8),
        np.zeros((60, 80, 4), np.uint8),
        np.zeros((1, 60, 80, 3), np.uint8),
        np.zeros((0, 80, 3), np.uint8),
        np.zeros((60, 80, 3), np.float32),
        np.zeros((60, 80, 3), np.int64),
        np.zeros((60, 80, 3), bool),
    ],
    ids=lambda image: f"{image.dtype} {image.shape}",
)
def test_an_array_of_another_shape_or_dtype_is_a_value_error(inspector: Inspector, image: npt.NDArray[Any]) -> None:
    for inspect in (inspector.inspect, inspector.look, inspector.predict):
        with pytest.raises(ValueError, match=r"expected an RGB image uint8 \(H, W, 3\); got"):
            inspect(image)


def test_an_inspector_says_what_it_is(inspector: Inspector) -> None:
    rule = inspector.card.decision
    assert repr(inspector) == (
        f"Inspector(tiles, patchcore, 192x256, threshold {rule.threshold:.4g}, at most 0.05 false alarms)"
    )
    assert repr(with_rule(inspector, false_alarms=None)).endswith(", no guarantee)")


def test_verdicts_and_inspections_are_drawn_in_a_notebook(inspector: Inspector, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", tile(999, (30, 20))[0])
    inspection, verdict = inspector.look(path), inspector.inspect(path)
    content = verdict._repr_png_()
    assert content is not None
    assert content == inspection._repr_png_()
    with Image.open(io.BytesIO(content)) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (400, 300))  # 80 x 60, enlarged by a whole factor
    assert inspector.inspect(tile(999, (30, 20))[0])._repr_png_() == content
    path.write_bytes(b"x")
    assert inspector.look(path)._repr_png_() is None
    assert inspector.inspect(path)._repr_png_() is None


def test_a_pickled_verdict_keeps_its_facts_and_not_its_image(inspector: Inspector) -> None:
    verdict = inspector.inspect(tile(999, (30, 20))[0], "a.png")
    assert verdict._repr_png_() is not None
    copied = pickle.loads(pickle.dumps(verdict))  # noqa: S301
    assert copied == verdict
    assert copied._repr_png_() is None


def test_eight_threads_get_what_one_gets(run: Path, tmp_path: Path) -> None:
    """A mix of arrays, files and broken files, each in an order of its own, all begun at once on a new inspector."""
    items: list[tuple[Path | npt.NDArray[np.uint8], str]] = []
    for number in range(6):
        image = tile(900 + number, (20, 30) if number % 2 else None)[0]
        items += [(image, f"array {number}"), (write_image(tmp_path / f"{number}.png", image), "")]
    (tmp_path / "text.png").write_bytes(b"no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    items += [(tmp_path / name, "") for name in ("text.png", "cut.png", "missing.png")]
    alone = Inspector(run, threads=2)
    expected = [alone.look(*item) for item in items]
    assert [inspection.verdict.decision for inspection in expected].count("error") == 3

    shared, barrier, failures = Inspector(run, threads=2), threading.Barrier(8), list[str]()

    def work(seed: int) -> None:
        order = random.Random(seed).sample(range(len(items)), len(items))
        barrier.wait()
        try:
            for i in order:
                inspection = shared.look(*items[i])
                assert inspection.verdict == expected[i].verdict
                np.testing.assert_array_equal(inspection.map, expected[i].map)
                assert inspection._repr_png_() == expected[i]._repr_png_()
            files = [path for path, _ in items if isinstance(path, Path)]
            of_files = [want.verdict for want, (item, _) in zip(expected, items, strict=True) if isinstance(item, Path)]
            assert [inspection.verdict for inspection in shared.look_many(files)] == of_files
        except BaseException as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_verdicts_in_the_run_are_what_the_inspector_says(run: Path, product: Path, inspector: Inspector) -> None:
    lines = [json.loads(line) for line in (run / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12
    for line in lines:
        verdict = inspector.inspect(product / line["path"])
        assert verdict.score == pytest.approx(line["score"], rel=1e-5)
        assert verdict.decision == line["decision"]


def test_a_classifier_names_the_defect_type_and_its_probability(classified: Path, labelled: Path) -> None:
    inspector = Inspector(classified)
    verdict = inspector.inspect(labelled / "bright/002.png")
    assert verdict.decision == "anomaly"
    assert verdict.defect == "bright"
    assert verdict.regions
    outputs = inspector.predict(load_image(labelled / "bright/002.png")).outputs()
    assert outputs["probabilities"].shape == (1, 3)
    assert outputs["class_maps"].shape == (1, 2, 96, 128)
    assert verdict.probability == pytest.approx(1 - outputs["probabilities"][0, 0], abs=1e-6)
    assert outputs["probabilities"].sum() == pytest.approx(1, abs=1e-5)
    good = inspector.inspect(labelled / "good/003.png")
    assert (good.decision, good.defect, good.regions) == ("good", "", ())
    assert good.probability is not None
    assert good.probability < (verdict.probability or 0)


def with_rule(inspector: Inspector, **changes: Any) -> Inspector:
    """The same graph with another decision rule."""
    other = copy.copy(inspector)
    rule = inspector.card.decision.model_copy(update=changes)
    other.card = inspector.card.model_copy(update={"decision": rule})
    return other


def test_three_verdicts(inspector: Inspector) -> None:
    rule = {"threshold": 5.0, "review_threshold": 3.0, "pixel_threshold": 2.0, "normal_median": 0.0, "min_area": 0.0}
    three, two = with_rule(inspector, **rule), with_rule(inspector, **rule | {"review_threshold": None})
    anomaly_map = np.zeros((192, 256), np.float32)
    anomaly_map[40:80, 40:80] = 9
    scores = (2.9, 3.0, 3.1, 5.0, 5.1)
    verdicts = [three.judge(predicted(score, anomaly_map), (80, 60), "x") for score in scores]
    assert [verdict.decision for verdict in verdicts] == ["good", "good", "review", "review", "anomaly"]
    assert [len(verdict.regions) for verdict in verdicts] == [0, 0, 1, 1, 1]
    assert verdicts[2].regions == verdicts[4].regions
    decisions = [two.judge(predicted(score, anomaly_map), (80, 60), "x").decision for score in scores]
    assert decisions == ["good"] * 4 + ["anomaly"]
    one = with_rule(inspector, **rule, boxes="one").judge(predicted(3.1, anomaly_map), (80, 60), "x")
    assert len(one.regions) == 1


def test_several_images_of_an_item_share_its_weight(inspector: Inspector) -> None:
    scores, map_maxima, items = (1.0, 2.0, 3.0, 4.0), (1.5, 1.0, 1.0, 9.0), (0, 0, 1, 2)
    other = with_rule(inspector, scores=scores, map_maxima=map_maxima, items=items, distances=())
    rule, weights = other.card.decision, calibration.item_weights(["0", "0", "1", "2"])
    assert p_value_of(rule, "scores", 2.0) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert p_value_of(rule, "scores", 2.5) == pytest.approx((1 + 1 + 1) / 4)
    assert p_value_of(rule, "map_maxima", 1.2) == pytest.approx((1 + 0.5 + 1) / 4)
    assert p_value_of(rule, "distances", 1.0) is None
    for value in (0.0, 1.0, 1.5, 4.0, 5.0):
        verdict = other.judge(predicted(value, np.zeros((192, 256), np.float32)), (80, 60), "x")
        assert verdict.p_value == calibration.p_values(np.array(scores), np.array([value]), weights)[0]
    alone = with_rule(inspector, scores=scores, items=()).card.decision
    assert p_value_of(alone, "scores", 2.0) == pytest.approx((1 + 3) / 5)
    assert p_value_of(with_rule(inspector, scores=()).card.decision, "map_maxima", 1.0) is None  # nothing was held out


def test_cards_from_before_three_verdicts_are_read(run: Path, inspector: Inspector, tmp_path: Path) -> None:
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
    prediction = inspector.predict(image)
    assert prediction.scores == straight[0]
    np.testing.assert_array_equal(prediction.maps, straight[1])


def test_each_gives_its_results_in_order(run: Path, tmp_path: Path) -> None:
    """With more workers than cores, and with one."""
    paths = [write_image(tmp_path / f"{i}.png", tile(i, (5, 5) if i % 2 else None)[0]) for i in range(9)]
    for threads in (1, 4):
        inspector = Inspector(run, threads=threads)
        items = zip(paths, range(9), strict=True)
        results = list(inspector.each(items, lambda inspection, i: (i, inspection.verdict)))
        assert [i for i, _ in results] == list(range(9))
        assert [verdict for _, verdict in results] == [inspector.inspect(path) for path in paths]
    assert list(inspector.each([], lambda inspection, _: inspection)) == []


def test_each_takes_few_items_ahead_and_stops_when_closed(run: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", tile(1)[0])
    taken: list[int] = []

    def endless() -> Iterator[tuple[Path, int]]:
        for i in range(10_000):
            taken.append(i)
            yield path, i

    results = Inspector(run, threads=2).each(endless(), lambda _, i: i)
    assert [next(results) for _ in range(6)] == list(range(6))
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6 + 5


def test_what_fails_in_a_worker_is_raised(run: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", tile(1)[0])

    def full(_: Inspection, number: int) -> int:
        if number == 3:
            raise OSError(28, "No space left on device")
        return number

    with pytest.raises(OSError, match="No space left"):
        list(Inspector(run, threads=2).each(((path, i) for i in range(8)), full))


def test_an_unknown_device_is_refused(run: Path) -> None:
    with pytest.raises(BlemishError, match="choose cpu or cuda"):
        Inspector(run, device="tpu")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BlemishError, match="onnxruntime-gpu"):
            Inspector(run, device="cuda")


def test_a_hundred_thousand_threads_are_not_made() -> None:
    inspector = Inspector(Path(__file__).parents[1] / "golden/bundle", threads=100_000)
    alive = list(inspector.in_threads(range(300), lambda _: threading.active_count()))
    assert len(alive) == 300
    assert 1 < max(alive) < 100
