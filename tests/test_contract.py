"""Requirements on every detector in the registry; a new one is tested without further work. Whether what is exported
agrees with torch is in test_parity.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blemish.data.layouts import read
from blemish.detectors import registry
from blemish.detectors.interface import Detector
from blemish.images import load_image
from blemish.training.export import in_torch, predict
from blemish.types import Sample
from tests.conftest import tile
from tests.support import write_image

# Changes of the defaults that shorten training; the image size is changed for all.
QUICK: dict[str, dict[str, Any]] = {
    "cam": {"epochs": 3},
    "attention": {"epochs": 12},
    "hybrid": {"use_defects": "yes", "epochs": 4, "heads": 1},
}


def config_of(name: str) -> Any:
    kind: Any = registry.config_of(name)
    return kind(image_size=(64, 96), **QUICK.get(name, {}))


@pytest.fixture(scope="module", params=registry.names())
def fitted(
    request: pytest.FixtureRequest, product: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Detector, list[Sample], list[Sample]]:
    config = config_of(request.param)
    samples = read(product).samples
    train = [s for s in samples if s.split == "train"][:20]
    if config.traits.learns_from_defects:
        folder = tmp_path_factory.mktemp("defective")
        for i in range(16):
            image, _ = tile(400 + i, (3 * i, (37 * i) % 68))
            train.append(Sample(write_image(folder / f"{i:02}.png", image), f"bad/{i:02}.png", "anomaly", "spot"))
    test = [s for s in samples if s.split == "test"]
    return config.build().fit(train), train, test


def test_graph_takes_uint8_of_any_size_and_returns_float32(fitted: tuple[Detector, list[Sample], list[Sample]]) -> None:
    graph = fitted[0].graph()
    assert isinstance(graph, torch.nn.Module)
    assert not graph.training
    for shape in [(1, 60, 80, 3), (3, 200, 51, 3)]:
        with torch.inference_mode():
            scores, maps = graph(torch.randint(0, 256, shape, dtype=torch.uint8))[:2]
        assert scores.shape == shape[:1]
        assert maps.shape == (shape[0], 64, 96)
        assert scores.dtype == maps.dtype == torch.float32
        assert torch.isfinite(scores).all()
        assert torch.isfinite(maps).all()


def test_a_batch_gives_the_same_as_single_images(fitted: tuple[Detector, list[Sample], list[Sample]]) -> None:
    graph = fitted[0].graph()
    batch = torch.tensor(np.stack([tile(1)[0], tile(2, (9, 9))[0], tile(3)[0]]))
    with torch.inference_mode():
        together = graph(batch)[:2]
        alone = [graph(image[None])[:2] for image in batch]
    for index, output in enumerate(together):
        torch.testing.assert_close(output, torch.cat([outputs[index] for outputs in alone]), rtol=1e-3, atol=1e-3)


def test_normal_patches_are_the_nearest_and_their_sources_are_right(
    fitted: tuple[Detector, list[Sample], list[Sample]],
) -> None:
    """Compared with the graph's memory bank: the patches of a training image are their own nearest neighbours."""
    detector, train, _ = fitted
    graph, sources = detector.graph(), detector.sources()
    assert isinstance(graph, torch.nn.Module)
    if sources is None:
        assert not type(detector).__module__.startswith("blemish."), "each of ours holds evidence"
        pytest.skip("it has no memory bank")
    names = {sample.name for sample in train if sample.label != "anomaly"}
    assert set(sources.names) <= names
    assert len(sources.names) >= 0.8 * len(names)  # the autoencoder holds some out
    paths = {sample.name: sample.path for sample in train}
    assert tuple(sample.path for sample in sources.samples) == tuple(paths[name] for name in sources.names)
    assert sources.table.dtype == np.int32
    assert sources.table.shape[1] == 3
    (bank,) = [buffer for name, buffer in graph.named_buffers() if name.endswith("nearest.bank")]
    assert len(bank) == len(sources.table)
    number = int(np.bincount(sources.table[:, 0]).argmax())
    with torch.inference_mode():
        known = dict(
            zip(graph.outputs, graph(torch.tensor(load_image(sources.samples[number].path))[None]), strict=True)
        )
        defective = dict(zip(graph.outputs, graph(torch.tensor(tile(500, (30, 8))[0])[None]), strict=True))
    neighbours, distances = known["neighbours"][0], known["distances"][0]
    assert (neighbours.dtype, distances.dtype) == (torch.int32, torch.float32)
    assert neighbours.shape == distances.shape
    assert 0 <= int(neighbours.min()) <= int(neighbours.max()) < len(bank)
    own = [(entry, row, column) for entry, (image, row, column) in enumerate(sources.table) if image == number]
    assert own
    for entry, row, column in own:
        near = int(neighbours[row, column])
        assert float(distances[row, column]) < 2e-2 * float(bank[entry].norm() + 1)
        assert near == entry or float((bank[near] - bank[entry]).norm()) < 2e-2 * float(bank[entry].norm() + 1)
    assert float(defective["distances"].max()) > float(distances.max())  # a defect is farther than any normal patch


def test_defects_score_higher_and_their_map_maximum_is_inside(
    fitted: tuple[Detector, list[Sample], list[Sample]],
) -> None:
    detector, _, test = fitted
    prediction = predict(in_torch(detector.graph()), test)
    bad = np.array([s.label == "anomaly" for s in test])
    assert prediction.scores[bad].min() > prediction.scores[~bad].max()
    graph = detector.graph()
    with torch.inference_mode():
        anomaly_map = graph(torch.tensor(tile(500, (30, 8))[0])[None])[1][0]
    top, left = divmod(int(anomaly_map.argmax()), 96)
    assert abs(top * 60 / 64 - 36) < 12  # the spot's centre, in the image's pixels
    assert abs(left * 80 / 96 - 14) < 12


def test_the_same_images_give_the_same_detector(
    fitted: tuple[Detector, list[Sample], list[Sample]], request: pytest.FixtureRequest
) -> None:
    detector, train, test = fitted
    again = config_of(request.node.callspec.params["fitted"]).build().fit(train)
    first, second = (predict(in_torch(d.graph()), test[:2]) for d in (detector, again))
    np.testing.assert_allclose(first.scores, second.scores, rtol=1e-5)


def test_the_origin_of_the_weights_is_known(fitted: tuple[Detector, list[Sample], list[Sample]]) -> None:
    assert all(fitted[0].origin)


def test_outputs_classes_and_metrics(
    fitted: tuple[Detector, list[Sample], list[Sample]], request: pytest.FixtureRequest
) -> None:
    detector = fitted[0]
    graph = detector.graph()
    assert {"scores", "maps"} <= set(graph.outputs)
    assert graph.gated in (True, False)
    assert bool(detector.classes) == config_of(request.node.callspec.params["fitted"]).traits.classifies
    json.dumps(detector.metrics)
