"""Detectors in Python: fit, predict, calibrate, export, and the whole pipeline in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

import blemish
from blemish import BlemishError, Cam, Folder, Inspector, PatchCore
from blemish.images import load_image
from blemish.training.config import configure
from blemish.training.estimator import Estimator, as_samples
from tests.conftest import tile

SIZE = (64, 96)


def small() -> Estimator:
    return PatchCore(image_size=SIZE, max_bank=50)


@pytest.fixture(scope="module")
def good(product: Path) -> list[Path]:
    return [sample.path for sample in Folder(product).good]


@pytest.fixture(scope="module")
def fitted(good: list[Path]) -> Estimator:
    return small().fit(good[:20])


def test_the_settings_are_those_of_the_detector_and_repr_shows_the_changed_ones(fitted: Estimator) -> None:
    assert repr(PatchCore(coreset=0.2)) == "PatchCore(coreset=0.2): not fitted"
    assert repr(fitted) == "PatchCore(image_size=(64, 96), max_bank=50): fitted on 20 images"
    with pytest.raises(TypeError, match="cores"):
        PatchCore(cores=1)  # type: ignore[call-arg]
    with pytest.raises(BlemishError, match="--coreset takes a number from 0 to 1, not 2"):
        PatchCore(coreset=2).fit([np.zeros((64, 64, 3), np.uint8)])


def test_samples_paths_and_arrays_give_the_same(fitted: Estimator, good: list[Path], product: Path) -> None:
    arrays = [load_image(path) for path in good[:20]]
    from_arrays = small().fit(np.stack(arrays))
    from_samples = small().fit(Folder(product).good[:20])
    new = [tile(900 + i, (10, 20))[0] for i in range(3)]
    paths, arrays_only, samples_only = (detector.predict(new) for detector in (fitted, from_arrays, from_samples))
    assert paths.scores.shape == (3,)
    assert paths.maps.shape == (3, *SIZE)
    np.testing.assert_array_equal(paths.scores, arrays_only.scores)
    np.testing.assert_array_equal(paths.maps, samples_only.maps)
    assert fitted.predict([str(good[25])]).scores[0] < paths.scores.min()  # good beside defective


def test_the_bundle_gives_the_scores_of_predict(fitted: Estimator, good: list[Path], tmp_path: Path) -> None:
    detector = small().fit(good[:20]).calibrate(good[20:], false_alarms=0.1)
    folder = detector.export(tmp_path / "bundle", product="tiles")
    inspector = Inspector(folder)
    assert (inspector.card.product, inspector.card.data.train, inspector.card.data.calibration) == ("tiles", 20, 20)
    assert inspector.card.decision.false_alarms == 0.1
    # Of 20 + 1 scores, 10 % are two: the second highest is the threshold.
    scores = np.sort(detector.predict(good[20:]).scores)
    assert inspector.card.decision.threshold == pytest.approx(scores[-2], rel=1e-5)
    image = tile(900, (10, 20))[0]
    verdict = inspector.inspect(image)
    assert verdict.decision == "anomaly"
    assert verdict.score == pytest.approx(fitted.predict([image]).scores[0], rel=1e-5)
    with pytest.raises(BlemishError, match="--overwrite"):
        detector.export(folder)


def test_a_classifier_takes_labels(labelled: Path) -> None:
    folder = Folder(labelled)
    detector = Cam(image_size=SIZE, unfreeze=0).fit(folder.samples)
    prediction = detector.predict([folder.good[0].path, folder.defective[0].path])
    assert prediction.probabilities is not None
    assert prediction.probabilities[0, 0] > 0.5 > prediction.probabilities[1, 0]
    arrays = [tile(i)[0] for i in range(12)] + [tile(i, (9, 9))[0] for i in range(12, 24)]
    labels: list[Literal["good", "anomaly"]] = ["good" if i < 12 else "anomaly" for i in range(24)]
    labelled_detector = Cam(image_size=SIZE, unfreeze=0).fit(arrays, labels)
    assert labelled_detector.predict([tile(50)[0], tile(51, (9, 9))[0]]).scores.argmax() == 1


def test_a_training_image_cannot_calibrate_however_it_is_given(
    fitted: Estimator, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good[19].parent)
    for same in (good[19], good[19].name, Path("../good") / good[19].name):
        with pytest.raises(BlemishError, match="is a training image, so it cannot calibrate"):
            fitted.calibrate([*good[20:], same])
    arrays = [tile(i)[0] for i in range(21)]
    with pytest.raises(BlemishError, match="is a training image"):
        small().fit(arrays[:2]).calibrate(arrays[1:])


def test_good_images_alone_and_known_labels(product: Path) -> None:
    folder = Folder(product)
    with pytest.raises(BlemishError, match="PatchCore learns from good images alone; leave the defective ones out"):
        small().fit(folder.samples)
    with pytest.raises(ValueError, match="expected the labels 'good' and 'anomaly'; got 'bad'"):
        small().fit([tile(0)[0]], ["bad"])  # type: ignore[list-item]
    with pytest.raises(BlemishError, match="no image among those given"):
        small().fit([])


def test_refusals(fitted: Estimator, good: list[Path], product: Path, tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match="PatchCore is not fitted; call fit first"):
        small().predict(good[:1])
    with pytest.raises(BlemishError, match="is a training image, so it cannot calibrate"):
        fitted.calibrate(good[19:])
    with pytest.raises(BlemishError, match="leave the defective ones out"):
        fitted.calibrate(Folder(product).defective)
    with pytest.raises(BlemishError, match="cannot guarantee"):
        fitted.calibrate(good[20:], false_alarms=0.01)
    with pytest.raises(BlemishError, match="needs a threshold; call calibrate"):
        small().fit(good[:3]).export(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((4, 4), np.uint8), r"expected RGB images uint8 \(H, W, 3\); got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \(0, 4, 3\)"),
        (3, "got int"),
    ],
)
def test_arrays_that_are_not_images_are_refused(image: npt.NDArray[np.uint8], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        as_samples([image])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ("new/part.png", r"got 'new/part.png': give \[path\]"),
        (Path("tiles"), "got 'tiles'.*Folder"),
        (np.zeros((4, 5, 3), np.uint8), r"one array \(4, 5, 3\): give image\[None\]"),
    ],
)
def test_one_image_alone_is_refused(images: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        as_samples(images)


@pytest.mark.parametrize("size", [64, (64,), "64"])
def test_the_size_is_a_pair(size: Any) -> None:
    with pytest.raises(ValueError, match=r"expected image_size=\(height, width\)"):
        PatchCore(image_size=size)


def test_labels_for_each_image() -> None:
    with pytest.raises(ValueError, match="a label for each of 1 images; got 2"):
        as_samples(["a.png"], ["good", "good"])


def test_the_whole_pipeline_in_one_call(product: Path, tmp_path: Path) -> None:
    run = blemish.train(
        product, tmp_path / "run", false_alarms=0.1, image_size=SIZE, max_bank=50, overlays=2, calibrate="split"
    )
    assert run.metrics["decision"]["false_alarms"] == 0.1
    assert repr(run).startswith(f"Run({str(tmp_path / 'run')!r}, tiles, patchcore, image AUROC ")
    assert Inspector(run.bundle).inspect(tile(900, (10, 20))[0]).decision == "anomaly"
    with pytest.raises(BlemishError, match="--epochs is not an option of --detector patchcore"):
        blemish.train(product, tmp_path / "other", epochs=3)


def test_a_recipe_chooses_its_detector(tmp_path: Path) -> None:
    config = configure("data", tmp_path, recipe="case-study")
    assert (config.detector, config.decide, config.boxes) == ("cam", "class", "one")
    for recipe in ("study", "paper", "expvae"):
        config = configure("data", tmp_path, recipe=recipe)
        assert (config.detector, config.image_size) == ("attention", (256, 256))
    assert configure("data", tmp_path).detector == "patchcore"
