"""An empty background by hand values, and a classifier whose verdict it must not carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.detectors.cam import background
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.cam.detector import Cam
from blemish.training.export import export, in_onnxruntime, in_torch, prove_parity
from blemish.types import BlemishError, Sample

GRID = (8, 8)


def scene(seed: int, *, spot: bool = False, dirt: tuple[int, int] | None = None, level: int = 4) -> np.ndarray:
    """A bright striped part in the middle of an empty background with noise, uint8 (64, 64, 3)."""
    random = np.random.default_rng(seed)
    image = random.integers(level - 2, level + 3, (64, 64, 3)).astype(np.uint8)
    image[20:44, 20:44] = 150 + 40 * (np.arange(24)[:, None] // 4 % 2) + random.integers(0, 9, (24, 24, 1))
    if spot:
        at = 24 + seed % 12
        image[at : at + 5, at : at + 5] = 20
    if dirt:
        image[dirt[0] : dirt[0] + 4, dirt[1] : dirt[1] + 4] = 90
    return image


def stacked(*images: np.ndarray) -> Tensor:
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float()


def test_extremes_by_hand() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert background.extremes(image, (2, 2)).tolist() == [[[[0, 2], [8, 10]], [[5, 7], [13, 15]]]]
    odd = torch.arange(5.0).expand(1, 1, 1, 5)  # five pixels on two cells of two, the last is cut off
    assert background.extremes(odd, (1, 2)).tolist() == [[[[0, 2]], [[1, 3]]]]
    odd = torch.arange(5.0).expand(1, 1, 1, 5)  # on three, the last pixel is repeated
    assert background.extremes(odd, (1, 3)).tolist() == [[[[0, 2, 4]], [[1, 3, 4]]]]


def test_a_background_is_found_by_hand() -> None:
    """5 in every cell of the ring but 9 at one corner, and a part of 200: tolerance 1.5 * 0 + 4."""
    image = torch.full((3, 3, 4, 4), 5.0)
    image[:, :, 1:3, 1:3] = 200
    image[:, :, 0, 0] = 9
    found = background.find(background.extremes(image, (4, 4)))
    assert found is not None
    assert found[0].tolist() == [5, 5, 5]
    assert found[1] == 4


@pytest.mark.parametrize("what", ["pattern", "light", "nothing on it", "full"])
def test_what_is_no_empty_background(what: str) -> None:
    random = np.random.default_rng(0)
    images = [scene(i) for i in range(6)]
    if what == "pattern":
        images = [np.maximum(image, random.integers(0, 60, image.shape).astype(np.uint8)) for image in images]
    elif what == "light":
        images = [scene(i, level=10 + 20 * i) for i in range(6)]
    elif what == "nothing on it":
        images = [image[:16, :16].repeat(4, 0).repeat(4, 1) for image in images]
    else:
        images = [image[20:44, 20:44] for image in images]
    assert background.find(background.extremes(stacked(*images), GRID)) is None


def test_content_by_hand() -> None:
    """One pixel in cell (2, 2) of 8 x 8: its neighbours belong to it; of 4 x 4, cells (0, 0), (1, 1) and between; where
    nothing is, all do."""
    images = torch.full((2, 3, 16, 16), 5.0)
    images[0, 1, 4, 5] = 50
    found = background.extremes(images, GRID)
    fine, coarse, whole = background.content(found, torch.full((3,), 5.0), torch.tensor(10.0), [GRID, (4, 4), (1, 1)])
    wanted = torch.zeros(8, 8)
    wanted[1:4, 1:4] = 1
    assert torch.equal(fine[0, 0], wanted)
    assert coarse[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert whole.flatten().tolist() == [1, 1]
    assert bool((fine[1] == 1).all())


@pytest.fixture(scope="module")
def fitted() -> tuple[Cam, list[Sample]]:
    samples = [Sample(Path(f"{i}.png"), f"{i}.png", "good", pixels=scene(i)) for i in range(8)]
    samples += [
        Sample(Path(f"{i}.png"), f"{i}.png", "anomaly", "spot", pixels=scene(i, spot=True)) for i in range(8, 14)
    ]
    config = CamConfig(
        image_size=(64, 64), random_weights=True, epochs=2, batch=4, learning_rate=1e-5, sigma=0.0, background="auto"
    )
    return Cam(config).fit(samples), samples


def test_an_empty_background_has_no_share_in_the_verdict(fitted: tuple[Cam, list[Sample]]) -> None:
    detector, samples = fitted
    classifier = detector._classifier
    assert classifier is not None
    assert classifier.skips
    pixels = torch.tensor(np.stack([s.pixels for s in samples if s.pixels is not None]))
    with torch.inference_mode():
        resized = detector.resize(pixels)
        _, *layers = detector._graph(None).whole(resized)
        features = classifier.to_pool(layers)
        content = classifier.content(background.extremes(resized, GRID), features)
        assert content is not None
        logits, cells = classifier.logits(features, content), classifier.cells(features, content)
        changed = [maps + 100 * (1 - where) for maps, where in zip(features, content, strict=True)]
        torch.testing.assert_close(classifier.logits(changed, content), logits, rtol=1e-4, atol=1e-3)
        assert float((classifier.logits(changed) - classifier.logits(features)).abs().max()) > 1
    inside = content[0][:, 0] > 0
    assert float(inside.float().mean()) == pytest.approx(36 / 64)  # the part has 4 x 4 cells, and those beside it
    assert bool((cells.movedim(1, -1)[~inside] == classifier.normal).all())
    assert classifier.normal[1] < classifier.normal[0]
    means = torch.stack([cell[:, where].mean(1) for cell, where in zip(cells, inside, strict=True)])
    torch.testing.assert_close(means, logits, rtol=1e-4, atol=1e-3)
    found, maps = detector.cells(samples)  # from the cache
    np.testing.assert_allclose(found, logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(maps, cells[:, 1] - cells[:, 0], rtol=1e-3, atol=2e-3)


def test_what_lies_on_the_background_is_pooled(fitted: tuple[Cam, list[Sample]]) -> None:
    detector, _ = fitted
    clean, dirty = (Sample(Path("x"), "x", pixels=scene(30, dirt=dirt)) for dirt in (None, (4, 52)))
    (before,), (map_before,) = detector.cells([clean])
    (after,), (map_after,) = detector.cells([dirty])
    changed = np.argwhere(map_before != map_after)
    assert [0, 6] in changed.tolist()
    assert [7, 0] not in changed.tolist()  # the far corner is as empty as before
    assert np.abs(before - after).max() > 1e-3


def test_torch_and_onnxruntime_agree(fitted: tuple[Cam, list[Sample]], tmp_path: Path) -> None:
    detector, samples = fitted
    graph = detector.graph()
    export(graph, tmp_path / "model.onnx")
    images = np.stack([s.pixels for s in samples if s.pixels is not None])
    ours, exported = in_torch(graph)(images), in_onnxruntime(tmp_path / "model.onnx")(images)
    prove_parity(ours, exported, [sample.name for sample in samples])


def test_pooled_is_as_published(fitted: tuple[Cam, list[Sample]]) -> None:
    detector, samples = fitted
    plain = Cam(replace(detector.config, background="pooled", unfreeze=0)).fit(samples)
    assert plain._classifier is not None
    assert not plain._classifier.skips
    logits, maps = plain.cells(samples)
    np.testing.assert_allclose(maps.mean((1, 2)), logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-3)


def test_a_gradients_map_is_zero_where_nothing_is(fitted: tuple[Cam, list[Sample]]) -> None:
    detector, samples = fitted
    _, maps = detector.with_map("gradcam", "3").cells(samples[:2])
    assert maps.shape == (2, 4, 4)
    assert maps[0].any()
    seen = detector.with_map("gradcam", "2").cells(samples[:2])[1]
    assert not seen[:, 0].any()
    assert seen.any()


def test_colours_that_augmentations_change_are_refused() -> None:
    config = CamConfig(random_weights=True, background="auto", augmentations=("flip", "brighten"))
    with pytest.raises(BlemishError, match="which brighten and tilt change; omit them"):
        Cam(config)
    assert CamConfig().background == "pooled"  # a part that is missing is background too
