from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import blemish
from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.hybrid.detector import Hybrid, HybridGraph, _cells, _folds
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore, PatchCoreGraph
from blemish.evaluation.detection import auroc
from blemish.images import load_image
from blemish.training.export import in_torch, predict
from blemish.types import BlemishError, Prediction, Sample
from tests.detectors.hybrid.support import SIDE, written
from tests.detectors.support import StoppedError, killed_in
from tests.support import write_image

SMALL = HybridConfig(image_size=(SIDE, SIDE), backbone="bundled", max_bank=200, head_folds=3, heads=1, epochs=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Sample]]:
    folder = tmp_path_factory.mktemp("noisy")
    return {
        "good": written(folder, "good", 0, 30),
        "bad": written(folder, "anomaly", 100, 24),
        "new": [*written(folder, "good", 200, 20), *written(folder, "anomaly", 300, 20)],
    }


@pytest.fixture(scope="module")
def fitted(images: dict[str, list[Sample]]) -> Hybrid:
    return Hybrid(SMALL).fit([*images["good"], *images["bad"]])


def figure(prediction: Prediction, samples: list[Sample]) -> float:
    return auroc(prediction.scores, np.array([sample.label == "anomaly" for sample in samples]))


def test_defects_that_distances_miss_are_found_and_the_map_shows_them(
    images: dict[str, list[Sample]], fitted: Hybrid
) -> None:
    new = images["new"]
    patchcore = PatchCore(PatchCoreConfig(image_size=(SIDE, SIDE), backbone="bundled", max_bank=200))
    before = predict(in_torch(patchcore.fit(images["good"]).graph()), new)
    after = predict(in_torch(fitted.graph()), new)
    assert figure(before, new) < 0.75
    assert figure(after, new) > 0.95
    facts = fitted.metrics["defects"]
    assert (facts["images"], facts["masks"], facts["used"]) == (24, 24, True)
    assert "24 defective training images (24 with masks) help" in facts["sentence"]
    grid = fitted._features.grid
    hits = 0
    for sample, anomaly_map in zip(new[20:], after.maps[20:], strict=True):
        defective = torch.nn.functional.interpolate(_cells(sample, grid)[None, None], (SIDE, SIDE))[0, 0]
        hits += bool(defective.flatten()[int(anomaly_map.argmax())])
    assert hits >= 15  # a spot covers about an eighth of the image


def test_scores_and_maps_by_hand(images: dict[str, list[Sample]], fitted: Hybrid) -> None:
    graph = fitted.graph()
    assert isinstance(graph, HybridGraph)
    units = graph.units
    pixels = torch.randint(0, 256, (2, 50, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = graph.patchcore
    with torch.inference_mode():
        scores, maps, neighbours, distances = graph(pixels)
        patches = plain.features(plain.features.resize(pixels))
        compared = plain.compare(patches)
        by_head = [head(patches, compared.deviations.flatten(1)) for head in fitted._heads]
    assert len(by_head) == 3
    for i in range(2):
        deviations = compared.deviations[i].flatten()
        cells = sum(cells[i] for cells, _ in by_head) / 3
        answer = sum(float(score[i]) for _, score in by_head) / 3
        joint = (deviations - units.distances.centre) / units.distances.scale
        joint = joint + (cells - units.heads.centre) / units.heads.scale
        apart = (float(deviations.max()) - units.distances.centre) / units.distances.scale
        apart += (answer - units.heads.centre) / units.heads.scale
        assert float(scores[i]) == pytest.approx((apart + float(joint.max())) / 2, rel=1e-4)
        torch.testing.assert_close(maps[i], plain.enlarge(joint.view(plain.features.grid)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(distances, compared.distances)
    torch.testing.assert_close(neighbours, compared.neighbours)


@pytest.mark.parametrize(
    ("count", "use", "why"),
    [(0, "auto", "There is no defective"), (2, "auto", "on 2 defective items"), (24, "no", "--use")],
)
def test_without_defects_or_with_too_few_it_is_patchcore_to_the_bit(
    images: dict[str, list[Sample]], count: int, use: str, why: str
) -> None:
    config = replace(SMALL, use_defects=use)  # type: ignore[arg-type]
    detector = Hybrid(config).fit([*images["good"], *images["bad"][:count]])
    graph = detector.graph()
    assert isinstance(graph, PatchCoreGraph)
    assert why in detector.metrics["defects"]["sentence"]
    patchcore = PatchCore(PatchCoreConfig(image_size=(SIDE, SIDE), backbone="bundled", max_bank=200))
    expected = predict(in_torch(patchcore.fit(images["good"]).graph()), images["new"][:3])
    found = predict(in_torch(graph), images["new"][:3])
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.maps, expected.maps)


def test_labels_that_mean_nothing_do_not_help(images: dict[str, list[Sample]]) -> None:
    """Half of the good images called defective: cross-validation sees that there is nothing to learn."""
    good = images["good"]
    lied = [replace(sample, label="anomaly", defect="none") for sample in good[::2]]
    detector = Hybrid(SMALL).fit([*good[1::2], *lied])
    facts = detector.metrics["defects"]
    assert not facts["used"]
    assert "do not clearly help" in facts["sentence"]
    assert isinstance(detector.graph(), PatchCoreGraph)


def test_heads_answer_for_images_and_items_that_they_were_not_trained_on(
    images: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each head was trained on is noted, and with which images its answers come from it alone."""
    grouped = [
        replace(sample, group=f"item {number // 3} {sample.label}")
        for part in ("good", "bad")
        for number, sample in enumerate(images[part])
    ]
    trained: list[set[int]] = []

    def noted(fabric, head, known, chosen, config, number, progress):  # type: ignore[no-untyped-def]
        trained.append(set(chosen.tolist()))
        with torch.no_grad():
            head.offset.fill_(100.0 * len(trained))  # by which an answer tells whose it is

    monkeypatch.setattr("blemish.detectors.hybrid.detector.train", noted)
    answered: list[torch.Tensor] = []
    inside = Hybrid._cross_validate

    def listened(*given: Any) -> torch.Tensor:
        answered.append(inside(*given))
        return answered[0]

    monkeypatch.setattr(Hybrid, "_cross_validate", listened)
    Hybrid(SMALL).fit(grouped)
    whose = (answered[0] / 100).round().int() - 1
    assert len(trained) == 3
    assert set(whose.tolist()) == {0, 1, 2}
    for row, head in enumerate(whose.tolist()):
        items = {grouped[other].group for other in trained[head]}
        assert grouped[row].group not in items


def test_a_defective_image_is_compared_without_the_good_images_of_its_item(images: dict[str, list[Sample]]) -> None:
    """Images of one item alike: were the item's good image in the bank, the defective one would seem normal."""
    good = [replace(sample, group=f"item {i}") for i, sample in enumerate(images["good"][:12])]
    twins = [replace(s, name=f"twin/{s.name}", label="anomaly", defect="none") for s in good[:6]]
    detector = Hybrid(SMALL)
    detector.fit_normal(good)
    patchcore = detector._fitted()
    deviations = patchcore.left_out_deviations(others=twins)
    torch.testing.assert_close(deviations[12:], deviations[:6])
    strangers = [replace(twin, group=f"stranger {i}") for i, twin in enumerate(twins)]
    known = patchcore.left_out_deviations(others=strangers)[12:]
    assert (known.flatten(1).amax(1) < deviations[12:].flatten(1).amax(1)).all()


def test_two_folders_may_use_the_same_names(images: dict[str, list[Sample]]) -> None:
    samples = [*images["good"], *images["bad"]]
    named = [replace(sample, name=f"{number % 24}.png", group=sample.name) for number, sample in enumerate(samples)]
    pairs = _folds(named, SMALL)
    tested = torch.cat([others for _, others in pairs])
    assert sorted(tested.tolist()) == list(range(len(samples)))
    assert all(set(learned.tolist()).isdisjoint(others.tolist()) for learned, others in pairs)


def test_every_head_has_something_to_learn_where_types_or_their_names_are_missing() -> None:
    def samples(good: int, defects: list[str]) -> list[Sample]:
        found = [Sample(Path(f"g{i}"), f"g{i}", "good", group=f"{i // 5}") for i in range(good)]
        return [*found, *(Sample(Path(f"b{i}"), f"b{i}", "anomaly", kind) for i, kind in enumerate(defects))]

    for good in range(11, 40):
        for defects in (["", "", ""], ["a", "b", "c"], [""] * 5, ["a"] * 4):
            for learned, others in _folds(samples(good, defects), HybridConfig()):
                assert 0 < int((learned >= good).sum()) < len(learned)
                assert len(others)


def test_killed_and_resumed_is_the_same_to_the_bit(images: dict[str, list[Sample]], tmp_path: Path) -> None:
    samples = [*images["good"][:12], *images["bad"][:9]]
    config = replace(SMALL, use_defects="yes", checkpoint=tmp_path)
    whole = Hybrid(replace(config, checkpoint=None)).fit(samples)
    with pytest.raises(StoppedError):
        Hybrid(config).fit(samples, killed_in(3))
    assert (tmp_path / "head-1.safetensors").is_file()
    resumed = Hybrid(replace(config, resume=True)).fit(samples)
    for ours, theirs in zip(whole._heads, resumed._heads, strict=True):
        for value, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(value, other)
    for others in (samples[1:], [replace(sample, mask=None) for sample in samples]):
        with pytest.raises(BlemishError, match="made with other images or options"):
            Hybrid(replace(config, resume=True)).fit(others)


def test_an_empty_mask_says_no_more_than_the_word(images: dict[str, list[Sample]], tmp_path: Path) -> None:
    empty = write_image(tmp_path / "empty.png", np.zeros((SIDE, SIDE), np.uint8))
    bad = [replace(sample, mask=empty) for sample in images["bad"][:6]]
    detector = Hybrid(replace(SMALL, epochs=1)).fit([*images["good"][:12], *bad])
    assert detector.metrics["defects"]["masks"] == 0


def test_arrays_without_types_or_files_will_do(images: dict[str, list[Sample]]) -> None:
    arrays = [load_image(sample.path) for sample in [*images["good"][:12], *images["bad"][:5]]]
    labels: list[Any] = ["good"] * 12 + ["anomaly"] * 5
    fitted = blemish.Hybrid(image_size=(SIDE, SIDE), backbone="bundled", max_bank=100, head_folds=2, heads=1, epochs=1)
    assert fitted.fit(arrays, labels).predict(arrays[:2]).scores.shape == (2,)


@pytest.mark.parametrize("change", [{"max_bank": 1}, {"place": "yes"}])
def test_where_nothing_can_be_compared_it_is_patchcore(images: dict[str, list[Sample]], change: dict[str, Any]) -> None:
    good = images["good"][:12]
    if "place" in change:  # all alike, so that one patch is the whole bank
        good = [replace(good[0], name=f"{i}.png", group=f"{i}") for i in range(12)]
    detector = Hybrid(replace(SMALL, **{"max_bank": 1, **change})).fit([*good, *images["bad"][:6]])
    assert isinstance(detector.graph(), PatchCoreGraph)
    assert "of one item" in detector.metrics["defects"]["sentence"]


def test_a_cell_is_defective_where_any_pixel_is(images: dict[str, list[Sample]]) -> None:
    sample = images["bad"][0]  # of number 100: 16 x 16 pixels from row 700 % 48 and column 1100 % 48
    cells = _cells(sample, (8, 8)) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[28 // 8 : (28 + 15) // 8 + 1, 44 // 8 : (44 + 15) // 8 + 1] = True
    assert torch.equal(cells, expected)


def test_good_images_are_needed(images: dict[str, list[Sample]]) -> None:
    with pytest.raises(BlemishError, match="at least one good image"):
        Hybrid(SMALL).fit(images["bad"])
