import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image
from torch import Tensor, nn

from blemish.detectors.cam.config import CamConfig
from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.inference import bundle
from blemish.inference.inspector import Inspector
from blemish.training import export, splits
from blemish.training.card import digest
from blemish.training.config import TrainConfig
from blemish.training.export import ParityError, in_onnxruntime, in_torch, predict, prove_parity
from blemish.training.pipeline import divided_for, train
from blemish.training.results import _drawing_order
from blemish.training.splits import auto_size
from blemish.types import BlemishError, Decision, Label, Prediction, Sample, Verdict
from tests.conftest import tile
from tests.detectors.nn.test_loggers import read_events
from tests.support import divided, grey, write_image

QUICK = PatchCoreConfig(max_bank=50)


def test_a_run_is_complete(run: Path) -> None:
    names = [".blemish", "bundle", "evidence", "inpainted", "metrics.json", "overlays", "report.html", "verdicts.jsonl"]
    assert sorted(p.name for p in run.iterdir()) == names
    assert sorted(p.name for p in (run / "bundle").iterdir()) == ["card.json", "evidence.zip", "model.onnx"]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    counts = {"train": 21, "train_anomaly": 0, "calibration": 19, "calibration_anomaly": 0}
    assert metrics["counts"] == {**counts, "test_good": 6, "test_anomaly": 6, "test_masks": 6}
    assert metrics["detection"]["auroc"]["value"] == 1.0  # a bright square on stripes
    assert metrics["localisation"]["pixel_auroc"]["value"] > 0.95
    assert metrics["localisation"]["defects_hit"]["value"] > 0.8
    assert metrics["parity"]["images"] == 12
    files = metrics["files"]
    assert (files["images"], files["masks"], files["refused"]) == (52, 6, 0)
    assert files["all"] == 58 + sum(files["left_out"].values())
    assert "Of all files, 52 images and 6 masks are read" in (run / "report.html").read_text(encoding="utf-8")
    assert metrics["parity"]["scores"] < 1e-3
    card = bundle.read(run).card
    assert len(card.decision.scores) == 19
    assert card.decision.threshold == max(card.decision.scores)  # 5 % of 20
    assert card.data.train == 21
    assert (
        sorted(p.relative_to(run / "overlays").as_posix() for p in (run / "overlays").rglob("*.jpg"))[0]
        == "test/good/000.png.jpg"
    )
    with Image.open(run / "overlays/test/spot/000.png.jpg") as image:
        assert image.format == "JPEG"


def test_the_anomalies_of_the_test_split_have_evidence(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        flagged = row["decision"] == "anomaly"
        assert bool(row["evidence"]) == (row["counterfactual"] is not None) == flagged
        for patch in row["evidence"]:
            assert (run / patch["file"]).is_file()
            assert patch["source"].startswith("train/good/")
    defective = [row["counterfactual"]["decision"] for row in rows if row["label"] == row["decision"] == "anomaly"]
    assert defective.count("good") >= 5
    card = bundle.read(run).card
    assert len(card.decision.distances) == 19
    assert card.parity["distances"] < 1e-3
    assert "distances" not in json.loads((run / "metrics.json").read_text(encoding="utf-8"))["decision"]


def test_an_existing_run_is_kept_unless_asked(run: Path, product: Path) -> None:
    before = (run / "metrics.json").stat().st_mtime_ns
    with pytest.raises(BlemishError, match="--overwrite"):
        train(TrainConfig(product, run))
    assert (run / "metrics.json").stat().st_mtime_ns == before


def test_a_run_that_fails_half_way_leaves_nothing(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blemish.training.pipeline.prove_parity", stop)
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(product, tmp_path / "run", settings=QUICK, image_size=(64, 64)))
    assert list(tmp_path.iterdir()) == []


def test_the_drawn_images_are_of_every_kind() -> None:
    kinds: list[tuple[Label, Decision]]
    kinds = [("anomaly", "good"), ("anomaly", "anomaly"), ("good", "good"), ("good", "anomaly")]
    pairs = [kinds[i] for i in (0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3)]
    samples = [Sample(Path(f"{i:02}"), f"{i:02}", label=label) for i, (label, _) in enumerate(pairs)]
    verdicts = [Verdict(sample.name, decision) for sample, (_, decision) in zip(samples, pairs, strict=True)]
    order = _drawing_order(samples, verdicts)
    assert order == [0, 10, 5, 7, 1, 6, 8, 2, 9, 3, 4]  # missed, false alarm, caught, passed; the second of each; ...


def test_too_few_images_for_the_guarantee_are_refused_before_the_work(product: Path, tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=r"20 held-out good images cannot guarantee 1\.00% .* takes 99"):
        train(TrainConfig(product, tmp_path / "run", false_alarms=0.01, calibrate="split"))


def test_images_without_labels_and_unreadable_ones(product: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for i in range(24):
        write_image(flat / f"{i}.png", tile(i)[0])
    (flat / "broken.png").write_bytes(b"broken")
    run = train(TrainConfig(flat, tmp_path / "run", settings=QUICK, image_size=(64, 64), false_alarms=0.1))
    assert any("broken.png" in warning for warning in run.warnings)
    assert "detection" not in run.metrics
    assert run.metrics["counts"]["train"] + run.metrics["counts"]["calibration"] == 24
    assert bundle.read(tmp_path / "run").card.decision.false_alarms == 0.1


def test_an_unusable_mask_only_removes_its_outline(product: Path, tmp_path: Path) -> None:
    data = shutil.copytree(product, tmp_path / "tiles")
    (data / "ground_truth/spot/001_mask.png").write_bytes(b"broken")
    run = train(TrainConfig(data, tmp_path / "run", settings=QUICK, image_size=(64, 64)))
    assert any("001_mask.png" in warning for warning in run.warnings)
    assert run.metrics["counts"]["test_masks"] == 5
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5  # outlines


def test_the_same_seed_gives_the_same_detector(product: Path, run: Path, tmp_path: Path) -> None:
    settings = PatchCoreConfig(max_bank=300)
    again = TrainConfig(
        product, tmp_path / "again", settings=settings, image_size=(192, 256), overlays=0, calibrate="split"
    )
    train(again)
    first, second = bundle.read(run).card, bundle.read(tmp_path / "again").card
    assert first.data == second.data
    assert first.settings == second.settings
    assert first.settings["memory"] == 0.1  # the number of patches that are kept depends on it
    np.testing.assert_allclose(first.decision.scores, second.decision.scores, rtol=1e-5)


def test_the_image_size_follows_the_images(tmp_path: Path) -> None:
    def sizes(*pairs: tuple[int, int]) -> list[Sample]:
        paths = [write_image(tmp_path / f"{w}x{h}.png", np.zeros((h, w))) for w, h in pairs]
        return [Sample(path, path.name) for path in paths]

    assert auto_size(sizes((512, 512)), 256 * 256) == (256, 256)
    assert auto_size(sizes((250, 630)), 256 * 256) == (416, 160)
    assert auto_size(sizes((100, 100), (200, 100), (210, 100)), 256 * 256) == (192, 352)  # the median aspect
    assert auto_size(sizes((2000, 10)), 256 * 256) == (128, 512)  # never flatter than 4:1


class Doubler(nn.Module):
    """A graph with known outputs: score = mean of the pixels, map = the upper left 2 x 2 pixels of the first
    channel."""

    outputs = ("scores", "maps")
    gated = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        values = images.float()
        return values.mean((1, 2, 3)), values[:, :2, :2, 0]


def samples(tmp_path: Path, count: int = 3) -> list[Sample]:
    random = np.random.default_rng(0)
    sizes = [(8, 9), (20, 31), (64, 48)]
    paths = [write_image(tmp_path / f"{i}.png", random.integers(0, 256, (*sizes[i], 3))) for i in range(count)]
    return [Sample(path, path.name) for path in paths]


def test_the_exported_graph_takes_any_number_of_images_of_any_size(tmp_path: Path) -> None:
    export.export(Doubler(), tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("images", ["N", "H", "W", 3], "tensor(uint8)")
    ]
    assert [o.name for o in session.get_outputs()] == ["scores", "maps"]
    for shape in [(1, 5, 7, 3), (4, 100, 33, 3)]:
        images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        scores, maps = session.run(None, {"images": images})
        np.testing.assert_allclose(scores, images.reshape(shape[0], -1).mean(1), rtol=1e-5)
        np.testing.assert_array_equal(maps, images[:, :2, :2, 0])


def test_parity_of_a_faithful_export(tmp_path: Path) -> None:
    some = samples(tmp_path)
    export.export(Doubler(), tmp_path / "g.onnx")
    in_pytorch, exported = predict(in_torch(Doubler()), some), predict(in_onnxruntime(tmp_path / "g.onnx"), some)
    parity = prove_parity(in_pytorch, exported, [s.name for s in some])
    assert parity.images == 3
    assert parity.scores < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("of", ["scores", "maps"])
def test_an_image_without_a_finite_score_ends_the_training_by_name(tmp_path: Path, of: str, value: float) -> None:
    def run(images: npt.NDArray[np.uint8]) -> Prediction:
        values: dict[str, Any] = {"scores": np.zeros(1, np.float32), "maps": np.zeros((1, 2, 2), np.float32)}
        if images.max() > 0:
            values[of].flat[-1] = value
        return Prediction(**values)

    some = [Sample(tmp_path, "black.png", pixels=grey(np.zeros((4, 4)))), Sample(tmp_path, "b.png", pixels=tile(1)[0])]
    assert len(predict(run, some[:1])) == 1
    with pytest.raises(BlemishError, match=f"^b.png: the detector gave no number .* among its {of}"):
        predict(run, some)


def test_failed_parity_names_the_images_and_figures(tmp_path: Path) -> None:
    ours = Prediction(np.array([0, 10], np.float32), np.zeros((2, 1, 1), np.float32))
    exported = replace(ours, scores=np.array([0, 10.02], np.float32))
    with pytest.raises(ParityError, match=r"by 0\.002 of the range on 1 of 2 .* b: score 10 in torch, 10\.02 in"):
        prove_parity(ours, exported, ["a", "b"])
    not_finite = replace(ours, scores=np.array([0, np.nan], np.float32))
    with pytest.raises(ParityError):
        prove_parity(ours, not_finite, ["a", "b"])
    assert export.TOLERANCE == 1e-3


def test_parity_compares_maps_too() -> None:
    maps = np.zeros((2, 2, 2), np.float32)
    maps[1, 0, 0] = 5
    ours = Prediction(np.array([0, 1], np.float32), maps)
    other = maps.copy()
    other[0, 1, 1] = 0.1
    with pytest.raises(ParityError, match=r"a: .* map off by 0\.02 of its range"):
        prove_parity(ours, replace(ours, maps=other), ["a", "b"])


def test_a_classifier_learns_from_defects_and_keeps_the_guarantee(classified: Path) -> None:
    metrics = json.loads((classified / "metrics.json").read_text(encoding="utf-8"))
    counts = metrics["counts"]
    assert counts["train_anomaly"] >= 10
    assert counts["calibration_anomaly"] >= 2
    assert counts["test_anomaly"] == 4  # a fifth of each type
    assert metrics["parity"]["probabilities"] < 1e-3
    assert len(metrics["training"]) == 2
    card = bundle.read(classified).card
    assert card.classes == ("good", "bright", "dark")
    assert card.decision.rule == "guarantee"
    assert len(card.decision.scores) == counts["calibration"] >= 9
    assert card.data.anomalies == counts["train_anomaly"]
    assert "checkpoint" not in card.settings
    assert b"<svg" in (classified / "reliability.svg").read_bytes()
    assert not (classified.parent / f".{classified.name}.training").exists()


def test_the_hybrid_learns_from_defects_and_no_defect_takes_part_in_the_threshold(
    labelled: Path, tmp_path: Path
) -> None:
    settings = HybridConfig(use_defects="yes", head_folds=2, heads=1, epochs=1, max_bank=100)
    config = TrainConfig(
        labelled, tmp_path / "run", settings=settings, why="Because.", image_size=(64, 96), false_alarms=0.1
    )
    metrics = train(config).metrics
    card, counts = bundle.read(tmp_path / "run").card, metrics["counts"]
    assert (counts["train_anomaly"], counts["calibration_anomaly"], counts["test_anomaly"]) == (16, 0, 4)
    assert card.decision.calibrated_by == "split"
    assert len(card.decision.scores) == counts["calibration"] >= 9
    assert card.classes == ()
    assert metrics["defects"]["masks"] == 16
    assert metrics["detector_choice"] == "Because."
    assert "good/wrong.png" in {suspect["name"] for suspect in metrics["suspects"]}
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Because." in page
    assert metrics["defects"]["sentence"] in page.replace("&#39;", "'")
    inspection = Inspector(tmp_path / "run").inspect(next((labelled / "bright").glob("*.png")))
    assert inspection.decision == "anomaly"
    assert inspection.regions


def test_a_chosen_detector_that_cannot_have_its_split_gives_way(tmp_path: Path) -> None:
    """Every item has a good and a defective image, so whole items are learned from, and no good one is held out."""
    for number in range(60):
        write_image(tmp_path / f"data/good/p{number}_Part1.png", tile(number)[0])
        write_image(tmp_path / f"data/bad/p{number}_Part2.png", tile(100 + number, (9, 9))[0])
    data = splits.read_data(tmp_path / "data")
    paired = replace(data, samples=[replace(s, group=s.path.stem.partition("_")[0]) for s in data.samples])
    config = TrainConfig(tmp_path / "data", tmp_path / "run", settings=HybridConfig(max_bank=50), why="Chosen.")
    given, divided = divided_for(config, paired)
    assert given.settings == PatchCoreConfig(max_bank=50)
    assert given.why.startswith("The detector is patchcore, as hybrid cannot learn from these defects: ")
    assert divided.split.train
    with pytest.raises(BlemishError):
        divided_for(replace(config, why=""), paired)  # asked for by name


def test_defects_of_the_test_split_are_learned_from_with_a_warning(product: Path) -> None:
    config = TrainConfig(product, product.parent / "run", settings=HybridConfig(), false_alarms=0.1)
    found = divided(config)
    assert sum(sample.label == "anomaly" for sample in found.split.train) == 5
    assert any("5 defective images of the folder's own test split are learned from" in w for w in found.warnings)
    assert not any("own test split" in w for w in divided(replace(config, settings=PatchCoreConfig())).warnings)


def test_the_hybrid_decides_by_its_score_and_not_by_class(labelled: Path, tmp_path: Path) -> None:
    config = TrainConfig(labelled, tmp_path / "run", settings=HybridConfig(), decide="class")
    with pytest.raises(BlemishError, match="hybrid is not a classifier; --decide class needs one"):
        train(config)


def test_the_likelier_class_can_decide(labelled: Path, tmp_path: Path) -> None:
    settings = CamConfig(unfreeze=0)
    config = TrainConfig(
        labelled, tmp_path / "run", settings=settings, image_size=(64, 96), decide="class", boxes="one"
    )
    metrics = train(config).metrics
    card = bundle.read(tmp_path / "run").card
    assert (card.decision.threshold, card.decision.false_alarms, card.decision.scores) == (0.0, None, ())
    assert card.decision.guarantee.startswith("No share of false alarms is guaranteed")
    verdicts = [json.loads(line) for line in (tmp_path / "run/verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all((v["decision"] == "anomaly") == (v["probability"] > 0.5) for v in verdicts)
    assert all(len(v["regions"]) == (v["decision"] == "anomaly") for v in verdicts)
    assert all(v["p_value"] is None for v in verdicts)
    assert metrics["counts"]["test_anomaly"] == 4


def test_a_killed_training_is_resumed(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = TrainConfig(
        labelled,
        out,
        settings=CamConfig(epochs=3, log="tensorboard", backbone="test_resnet", random_weights=True),
        image_size=(64, 96),
        false_alarms=0.15,
        overlays=0,
    )

    def killed(items: Any, what: str = "", total: int = 0) -> Any:
        if what == "epoch 3/3":
            raise KeyboardInterrupt
        return iter(items)

    with pytest.raises(KeyboardInterrupt):
        train(config, killed)
    assert [p.name for p in tmp_path.iterdir()] == [".run.training"]
    seen = []

    def watched(items: Any, what: str = "", total: int = 0) -> Any:
        seen.append(what)
        return iter(items)

    resumed = train(replace(config, resume=True), watched).metrics
    assert [what for what in seen if what.startswith("epoch")] == ["epoch 3/3"]
    whole = train(replace(config, out=tmp_path / "whole")).metrics
    assert resumed["training"] == whole["training"]
    assert resumed["detection"] == whole["detection"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "whole"]
    for name, files in (("run", 2), ("whole", 1)):  # the log of the killed training is kept
        events = [read_events(file) for file in (tmp_path / name / "log/classifier").iterdir()]
        assert len(events) == files
        logged = sorted(event for some in events for event in some)
        assert [step for step, _ in logged] == [1, 2, 3]
        for (_, values), record in zip(logged, whole["training"], strict=True):
            assert values == pytest.approx(record, rel=1e-6)
    assert "log" not in bundle.read(out).card.settings


def test_options_that_do_not_belong_together(labelled: Path, tmp_path: Path) -> None:
    for changes, sentence in (
        ({"decide": "class"}, "is not a classifier"),
        ({"folds": 3}, "--folds is for --detector cam"),
    ):
        with pytest.raises(BlemishError, match=sentence):
            train(TrainConfig(labelled, tmp_path / "run", **changes))


def test_a_classifier_without_defective_images_is_refused(product: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    for i in range(30):
        write_image(good / "good" / f"{i}.png", tile(i)[0])
    config = TrainConfig(good, tmp_path / "run", settings=CamConfig(unfreeze=0), false_alarms=0.2)
    with pytest.raises(BlemishError, match="there is no defective one; add some, or use --detector patchcore"):
        train(config)


def test_single_cells_of_gradient_maps_may_differ_more() -> None:
    maps = np.zeros((1, 10, 10), np.float32)
    maps[0, 0, 0] = 1
    ours = Prediction(np.array([1], np.float32), maps)
    near, far, wide = maps.copy(), maps.copy(), maps + np.float32(0.002)
    near[0, 5, 5], far[0, 5, 5] = 0.04, 0.06
    assert prove_parity(ours, replace(ours, maps=near), ["a"], gated=True).maps == pytest.approx(0.04)
    for other, gated in ((near, False), (far, True), (wide, True)):
        with pytest.raises(ParityError):
            prove_parity(ours, replace(ours, maps=other), ["a"], gated=gated)


@pytest.mark.parametrize("held", [True, False])
def test_an_image_that_changes_while_it_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """The card's hash is of the bytes that were learned from; where they were not held in memory, it is refused."""
    if not held:
        monkeypatch.setattr(splits, "PRELOADED", 0)
    for i in range(24):
        write_image(tmp_path / f"data/good/{i}.png", np.random.default_rng(i).integers(90, 130, (64, 64)))
    changed = tmp_path / "data/good/3.png"

    def changing(items: Any, what: str = "", total: int = 0) -> Any:
        if what == "patches":
            write_image(changed, np.random.default_rng(99).integers(0, 255, (64, 64)))
        return iter(items)

    settings = PatchCoreConfig(max_bank=50)
    config = TrainConfig(tmp_path / "data", tmp_path / "run", settings=settings, image_size=(64, 64), overlays=0)
    before = digest(divided(config).split.train)
    if held:
        assert bundle.read(train(config, changing).folder).card.data.sha256 == before
        return
    with pytest.raises(BlemishError, match=r"good.3\.png changed during training; leave the images alone"):
        train(config, changing)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
