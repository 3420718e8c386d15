import json
from pathlib import Path

import numpy as np
import pytest

from blemish import BlemishError, Inspector
from blemish.images import load
from tests.conftest import tile
from tests.support import write_picture


@pytest.fixture(scope="module")
def inspector(run: Path) -> Inspector:
    return Inspector(run / "bundle", threads=1)


def test_a_defect_is_found_where_it_is(inspector: Inspector, tmp_path: Path) -> None:
    verdict = inspector.inspect(write_picture(tmp_path / "a.png", tile(999, (30, 20))[0]))
    assert verdict.decision == "anomaly"
    assert verdict.size == (80, 60)
    assert verdict.score is not None
    assert verdict.threshold is not None
    assert verdict.score > verdict.threshold
    left, top, right, bottom = verdict.regions[0].box
    assert left < 26 < right  # the spot's centre
    assert top < 36 < bottom
    assert right - left < 60  # and the box is no more than a neighbourhood of it


def test_a_good_part_has_no_regions(inspector: Inspector, tmp_path: Path) -> None:
    verdict = inspector.inspect(write_picture(tmp_path / "a.png", tile(998)[0]))
    assert verdict.decision == "good"
    assert verdict.regions == ()
    assert verdict.p_value is not None
    assert verdict.p_value > 0.05


def test_p_value_and_decision_agree_with_the_card(inspector: Inspector) -> None:
    scores = np.array(inspector.card.decision.scores)
    for score in np.unique([*scores, scores.max() * 2, 0.0]):
        verdict = inspector.judge("x", (80, 60), float(score), np.zeros((192, 256), np.float32))
        p = (1 + (scores >= score).sum()) / (len(scores) + 1)
        assert verdict.p_value == pytest.approx(p)
        assert (verdict.decision == "anomaly") == (p <= inspector.card.decision.false_alarms)


def test_the_verdict_does_not_depend_on_company_or_memory_layout(inspector: Inspector, tmp_path: Path) -> None:
    paths = [write_picture(tmp_path / f"{i}.png", tile(i, (5, 5) if i % 2 else None)[0]) for i in range(5)]
    together = [look.verdict for look in inspector.look_many(paths)]
    assert together == [inspector.inspect(path) for path in paths]
    picture = tile(3)[0]
    assert inspector.predict(picture)[0] == inspector.predict(np.asfortranarray(picture))[0]


def test_broken_files_become_error_verdicts_and_the_rest_goes_on(inspector: Inspector, tmp_path: Path) -> None:
    good = write_picture(tmp_path / "good.png", tile(1)[0])
    text = tmp_path / "text.png"
    text.write_text("not a picture", encoding="utf-8")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:200])
    looks = list(inspector.look_many([text, good, cut, tmp_path / "missing.png", good]))
    assert [look.verdict.decision for look in looks] == ["error", "good", "error", "error", "good"]
    for look, name in zip(looks, ["text.png", "", "cut.png", "missing.png", ""], strict=True):
        if name:
            assert name in (look.verdict.error or "")
            assert look.picture is None
            assert look.map is None


def test_too_large_a_picture_is_an_error_verdict(run: Path, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", tile(1)[0])
    verdict = Inspector(run, max_pixels=1000).inspect(path)
    assert verdict.decision == "error"
    assert "1,000" in (verdict.error or "") or "1000" in (verdict.error or "")


def test_a_graph_that_onnxruntime_cannot_load_is_refused(run: Path, tmp_path: Path) -> None:
    from blemish import bundle

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
    found = inspector.outputs(load(labelled / "bright/002.png"))
    assert found["probabilities"].shape == (3,)
    assert found["class_maps"].shape == (2, 96, 128)
    assert verdict.probability == pytest.approx(1 - found["probabilities"][0], abs=1e-6)
    assert found["probabilities"].sum() == pytest.approx(1, abs=1e-5)
    good = inspector.inspect(labelled / "good/003.png")
    assert (good.decision, good.defect, good.regions) == ("good", "", ())
    assert good.probability is not None
    assert good.probability < (verdict.probability or 0)
