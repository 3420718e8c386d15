from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.hybrid.detector import Hybrid, HybridGraph, _cells
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore, PatchCoreGraph
from blemish.evaluation.detection import auroc
from blemish.training.export import in_torch, predict
from blemish.types import BlemishError, Prediction, Sample
from tests.detectors.hybrid.support import SIDE, written
from tests.detectors.support import StoppedError, killed_in

SMALL = HybridConfig(image_size=(SIDE, SIDE), backbone="bundled", max_bank=200, heads=3, epochs=3)


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
    assert (facts["images"], facts["masks"], facts["used"], facts["weight"]) == (24, 24, True, 1.0)
    assert "24 defective training images (24 with masks) help" in facts["sentence"]
    grid = fitted._features.grid
    hits = 0
    for sample, anomaly_map in zip(new[20:], after.maps[20:], strict=True):
        defective = torch.nn.functional.interpolate(_cells(sample, grid)[None, None], (SIDE, SIDE))[0, 0]
        hits += bool(defective.flatten()[int(anomaly_map.argmax())])
    assert hits >= 15  # a spot covers about an eighth of the image


def test_scores_and_maps_by_hand(images: dict[str, list[Sample]], fitted: Hybrid) -> None:
    graph, found = fitted.graph(), fitted._combination
    assert isinstance(graph, HybridGraph)
    assert found is not None
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
        joint = (deviations - found.distance.centre) / found.distance.scale
        joint = joint + (cells - found.heads.centre) / found.heads.scale
        apart = (float(deviations.max()) - found.distance.centre) / found.distance.scale
        apart += (answer - found.heads.centre) / found.heads.scale
        assert float(scores[i]) == pytest.approx((apart + float(joint.max())) / 2, rel=1e-4)
        torch.testing.assert_close(maps[i], plain.enlarge(joint.view(plain.features.grid)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(distances, compared.distances)
    torch.testing.assert_close(neighbours, compared.neighbours)


@pytest.mark.parametrize(
    ("count", "use", "why"), [(0, "auto", "no defective"), (2, "auto", "2 defe"), (24, "no", "--use")]
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
    lied = [replace(sample, label="anomaly", defect="none") for sample in good[:15]]
    detector = Hybrid(SMALL).fit([*good[15:], *lied])
    areas = detector.metrics["defects"]["partial_auroc"]
    assert max(areas.values()) < 0.75
    assert detector.metrics["defects"]["used"] == (max(areas["0.5"], areas["1"]) > areas["0"])


def test_a_head_never_answers_for_an_item_that_it_was_trained_on(images: dict[str, list[Sample]]) -> None:
    grouped = [
        replace(sample, group=f"item {number // 5}{sample.label}")
        for part in ("good", "bad")
        for number, sample in enumerate(images[part])
    ]
    asked: list[tuple[set[str], set[str]]] = []

    class Watched(Hybrid):
        def _cross_validate(self, known, samples, folds, progress):  # type: ignore[no-untyped-def]
            from blemish.data.split import kfold

            for learned, tested in kfold(samples, folds, seed=self.config.seed):
                asked.append(({s.group for s in learned}, {s.group for s in tested}))
            return super()._cross_validate(known, samples, folds, progress)

    Watched(replace(SMALL, epochs=1)).fit(grouped)
    assert len(asked) == 3
    assert all(not learned & tested for learned, tested in asked)


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
    with pytest.raises(BlemishError, match="made with other images or options"):
        Hybrid(replace(config, resume=True)).fit(samples[1:])


def test_a_cell_is_defective_where_any_pixel_is(images: dict[str, list[Sample]]) -> None:
    sample = images["bad"][0]  # of number 100: 16 x 16 pixels from row 700 % 48 and column 1100 % 48
    cells = _cells(sample, (8, 8)) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[28 // 8 : (28 + 15) // 8 + 1, 44 // 8 : (44 + 15) // 8 + 1] = True
    assert torch.equal(cells, expected)


def test_good_images_are_needed(images: dict[str, list[Sample]]) -> None:
    with pytest.raises(BlemishError, match="at least one good image"):
        Hybrid(SMALL).fit(images["bad"])
