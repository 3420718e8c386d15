from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from blemish.detectors.nn.memory_bank import project
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore, PatchCoreGraph
from blemish.types import BlemishError, Prediction, Sample

SMALL = PatchCoreConfig(image_size=(64, 96), random_weights=True, max_bank=40, coreset=0.5, batch=2)


def images(folder: Path, count: int, size: tuple[int, int] = (50, 70)) -> list[Sample]:
    random = np.random.default_rng(3)
    samples = []
    for i in range(count):
        file = folder / f"{i}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
        samples.append(Sample(file, file.name, "good"))
    return samples


def fitted(tmp_path: Path, **changes: object) -> tuple[PatchCoreGraph, Tensor]:
    config = PatchCoreConfig(**{**SMALL.__dict__, **changes})
    graph = PatchCore(config).fit(images(tmp_path, 8)).graph()
    assert isinstance(graph, PatchCoreGraph)
    return graph, torch.randint(0, 256, (2, 45, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", ["yes", "no"])
def test_scores_and_maps_equal_a_slow_version(tmp_path: Path, place: str) -> None:
    graph, batch = fitted(tmp_path, sigma=0.0, smoothing=0.5, place=place)
    with torch.inference_mode():
        scores, maps, *_ = graph(batch)
        patches = graph.features(graph.features.resize(batch)).double().numpy()
    bank = graph.bank.double().numpy()
    assert bool((graph.centre == graph.centre[0, 0]).all()) == (place == "no")
    for image, score, anomaly_map in zip(patches, scores, maps, strict=True):
        nearest = np.linalg.norm(image[:, None] - bank, axis=2).min(1).reshape(8, 12)
        smoothed = gaussian_filter(nearest, 0.5, mode="reflect", radius=2)
        deviations = (smoothed - graph.centre.numpy()) / graph.spread.numpy()
        assert float(score) == pytest.approx(deviations.max(), rel=1e-3)  # Eq. 6
        expected = torch.nn.functional.interpolate(torch.tensor(deviations)[None, None], (64, 96), mode="bilinear")
        torch.testing.assert_close(anomaly_map.double(), expected[0, 0], rtol=1e-3, atol=1e-3)


def test_few_items_have_no_places(tmp_path: Path) -> None:
    """Of two images each place's spread would be unknown, and every score without bounds."""
    detector = PatchCore(PatchCoreConfig(**{**SMALL.__dict__, "place": "yes"})).fit(images(tmp_path, 2))
    assert not detector.metrics["place"]["used"]
    of = detector.left_out()
    assert abs(float(of(0).scores[0])) < 100


def test_what_is_normal_is_known_from_images_drawn_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from every second one, which may be the same view of each item; and leaving one out uses the same images."""
    monkeypatch.setattr("blemish.detectors.patchcore.detector.IMAGES", 6)
    detector = PatchCore(PatchCoreConfig(**{**SMALL.__dict__, "sigma": 0.0})).fit(images(tmp_path, 12))
    chosen = detector._reference.nonzero().flatten()
    assert len(chosen) == 6
    assert set((chosen % 2).tolist()) == {0, 1}
    of, graph = detector.left_out(), detector.graph()
    distances = np.concatenate([found for i in range(12) if (found := of(i).distances) is not None])
    smooth = np.array([gaussian_filter(d, 0.7, mode="reflect", radius=3) for d in distances], np.float64)
    assert not detector.metrics["place"]["used"]
    assert float(graph.centre[0, 0]) == pytest.approx(smooth[chosen].mean(), rel=1e-3)
    one = int(chosen[0])
    others = smooth[[i for i in chosen.tolist() if i != one]]
    wanted = (smooth[one] - others.mean()) / (2 * others.std())
    assert float(of(one).scores[0]) == pytest.approx(wanted.max(), rel=1e-3)


def test_patches_are_means_over_cells_of_both_taps(tmp_path: Path) -> None:
    graph, batch = fitted(tmp_path)
    features = graph.features
    with torch.inference_mode():
        resized = features.resize(batch)
        fine, coarse = features.backbone(resized)
        found = features(resized).unflatten(1, features.grid)
    # A cell in the middle: the plain mean of the 3 x 3 cells of the fine tap around it.
    torch.testing.assert_close(found[0, 3, 5, :40], fine[0, :, 2:5, 4:7].mean((1, 2)))
    # In the corner the five cells beyond the edge are zeros.
    torch.testing.assert_close(found[0, 0, 0, :40], fine[0, :, :2, :2].sum((1, 2)) / 9)
    assert coarse.shape[2:] == (4, 6)
    assert features.channels == 152


def test_a_training_image_scores_zero_when_every_patch_is_kept(tmp_path: Path) -> None:
    samples = images(tmp_path, 2)
    config = PatchCoreConfig(**{**SMALL.__dict__, "coreset": 1.0, "max_bank": 10_000})
    graph = PatchCore(config).fit(samples).graph()
    known = torch.tensor(np.asarray(Image.open(samples[0].path)))[None]
    with torch.inference_mode():
        assert float(graph(known)[3].max()) == pytest.approx(0, abs=2e-3)  # batches are not bit-equal to single images
        assert float(graph(255 - known)[0]) > float(graph(known)[0]) + 1


def test_neighbours_and_their_sources(tmp_path: Path) -> None:
    """Each cell's nearest entry by brute force; and the entries are the features at the places that sources names."""
    samples = images(tmp_path, 5)
    patch = 4 * (152 + SMALL.projection)
    for memory in (0.1, 5 * 40 * patch / 2**30):  # all patches, and 40 of each image's 96
        config = PatchCoreConfig(**{**SMALL.__dict__, "memory": memory})
        detector = PatchCore(config).fit(samples)
        graph, sources = detector.graph(), detector.sources()
        assert isinstance(graph, PatchCoreGraph)
        batch = torch.randint(0, 256, (2, 45, 80, 3), dtype=torch.uint8)
        with torch.inference_mode():
            found = dict(zip(graph.outputs, graph(batch), strict=True))
            wanted = torch.cdist(graph.features(graph.features.resize(batch)).double(), graph.bank.double())
        assert found["neighbours"].dtype == torch.int32
        assert found["neighbours"].shape == found["distances"].shape == (2, 8, 12)
        assert torch.equal(found["neighbours"].flatten(1).long(), wanted.argmin(2))
        torch.testing.assert_close(found["distances"].flatten(1).double(), wanted.min(2).values, rtol=1e-4, atol=1e-5)
        assert sources.names == tuple(sample.name for sample in samples)
        assert sources.samples == tuple(samples)
        assert sources.table.dtype == np.int32
        assert sources.table.shape == (40, 3)
        assert len({tuple(row) for row in sources.table}) == 40
        for entry, (image, row, column) in zip(graph.bank, sources.table, strict=True):
            pixels = torch.tensor(np.asarray(Image.open(sources.samples[image].path)))[None]
            with torch.inference_mode():
                at = graph.features(graph.features.resize(pixels)).unflatten(1, graph.features.grid)[0, row, column]
            torch.testing.assert_close(at, entry, rtol=1e-3, atol=1e-3)


def test_one_image_alone_keeps_its_distances(tmp_path: Path) -> None:
    """There is no other image that would say which distances are normal."""
    detector = PatchCore(SMALL).fit(images(tmp_path, 1))
    graph = detector.graph()
    assert (graph.centre == 0).all()
    assert (graph.spread == 1).all()
    with pytest.raises(BlemishError, match=r"whole memory bank comes from one item.*--coreset"):
        detector.left_out()


def test_without_its_item_an_image_equals_the_graph_that_never_saw_it(tmp_path: Path) -> None:
    """With every patch kept nothing has to be replaced, so a detector fitted on the other images is an exact oracle of
    the distances; and of the deviations where those of the others, without the item, are known."""
    samples = images(tmp_path, 5)
    samples = [replace(sample, group=group) for sample, group in zip(samples, ["a", "", "a", "b", ""], strict=True)]
    config = PatchCoreConfig(**{**SMALL.__dict__, "coreset": 1.0, "max_bank": 10_000, "sigma": 0.0})
    detector = PatchCore(config).fit(samples)
    of = detector.left_out()
    found = [of(number) for number in range(5)]
    left_out = Prediction(
        scores=np.concatenate([one.scores for one in found]),
        maps=np.concatenate([one.maps for one in found]),
        distances=np.concatenate([one.distances for one in found if one.distances is not None]),
    )
    assert left_out.distances is not None
    for i, own in enumerate([[0, 2], [1], [0, 2], [3], [4]]):
        graph = PatchCore(config).fit([sample for j, sample in enumerate(samples) if j not in own]).graph()
        with torch.inference_mode():
            distances = graph(torch.tensor(np.asarray(Image.open(samples[i].path)))[None])[3]
        np.testing.assert_allclose(left_out.distances[i], distances[0], rtol=0.02, atol=2e-3)  # its search rounds
    smooth = np.array([gaussian_filter(d, 0.7, mode="reflect", radius=3) for d in left_out.distances], np.float64)
    others = smooth[[1, 3, 4]]  # for the images of item "a"
    spread = others.std(0) if detector.metrics["place"]["used"] else np.full((8, 12), others.std())
    centre = others.mean(0) if detector.metrics["place"]["used"] else others.mean()
    wanted = (smooth[0] - centre) / (spread + spread.mean())
    assert left_out.scores[0] == pytest.approx(wanted.max(), rel=1e-3)


def test_memory_bounds_the_patches_and_every_image_contributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def spy(patches: Tensor, projection: int, seed: int) -> Tensor:
        given.append(patches)
        return project(patches, projection, seed)

    monkeypatch.setattr("blemish.detectors.patchcore.detector.project", spy)
    samples = images(tmp_path, 5)
    patch = 4 * (152 + SMALL.projection)  # bytes
    config = PatchCoreConfig(**{**SMALL.__dict__, "memory": 5 * 7 * patch / 2**30, "projection": 32})
    PatchCore(config).fit(samples)
    assert given[0].shape == (5 * 7, 152)  # seven patches of each image instead of 96
    assert len({tuple(row.tolist()) for row in given[0]}) == 35
    with pytest.raises(BlemishError, match="raise --memory"):
        PatchCore(PatchCoreConfig(**{**SMALL.__dict__, "memory": 1e-9})).fit(samples)


def test_the_same_seed_gives_the_same_bank(tmp_path: Path) -> None:
    samples = images(tmp_path, 4)
    first, second = (PatchCore(SMALL).fit(samples).graph() for _ in range(2))
    assert isinstance(first, PatchCoreGraph)
    assert isinstance(second, PatchCoreGraph)
    assert torch.equal(first.bank, second.bank)
    assert len(first.bank) == 40


def test_order_of_calls_and_no_images_are_refused() -> None:
    with pytest.raises(RuntimeError, match="fit"):
        PatchCore(SMALL).graph()
    with pytest.raises(RuntimeError, match="fit"):
        PatchCore(SMALL).sources()
    with pytest.raises(BlemishError, match="at least one good image"):
        PatchCore(SMALL).fit([])


def test_a_transformers_tokens_serve_as_patches_and_export(tmp_path: Path) -> None:
    from blemish.training.export import export, in_onnxruntime, in_torch, predict, prove_parity

    samples = images(tmp_path, 3)
    config = PatchCoreConfig(**{**SMALL.__dict__, "backbone": "vit_tiny_patch16_224"})
    graph = PatchCore(config).fit(samples[:2]).graph()
    assert isinstance(graph, PatchCoreGraph)
    assert graph.features.grid == (4, 6)  # 64 x 96 in squares of 16
    export(graph, tmp_path / "g.onnx")
    ours, exported = predict(in_torch(graph), samples), predict(in_onnxruntime(tmp_path / "g.onnx"), samples)
    assert prove_parity(ours, exported, [s.name for s in samples]).maps < 1e-3
    assert ours.scores[2] > ours.scores[0]
