from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore, PatchCoreGraph
from blemish.images import load_image
from blemish.training.export import export, in_onnxruntime, predict
from blemish.training.leave_one_out import leave_one_out
from blemish.types import BlemishError, Sample

SMALL = PatchCoreConfig(image_size=(64, 96), random_weights=True, max_bank=40, coreset=0.5, batch=2, num_neighbours=4)


def images(folder: Path, count: int) -> list[Sample]:
    random = np.random.default_rng(5)
    samples = []
    for i in range(count):
        file = folder / f"{i}.png"
        side = (50 + i, 70)  # sizes differ
        Image.fromarray(random.integers(0, 256 - 30 * i, (*side, 3), dtype=np.uint8)).save(file)
        samples.append(Sample(file, file.name, "good"))
    return samples


@pytest.mark.parametrize(
    "changes", [{}, {"num_neighbours": 1}, {"num_neighbours": 35}, {"max_bank": 3, "num_neighbours": 9}]
)
def test_equals_the_graph_of_a_bank_without_the_item(tmp_path: Path, changes: dict[str, int]) -> None:
    """With 35 neighbours (Eq. 7) or a memory bank of three patches, fewer are left than asked for."""
    samples, groups = images(tmp_path, 5), ["a", "", "a", "b", ""]
    detector = PatchCore(PatchCoreConfig(**{**SMALL.__dict__, **changes})).fit(samples)
    prediction = leave_one_out(detector, samples, groups)
    graph, table = detector.graph(), detector.sources().table
    assert isinstance(graph, PatchCoreGraph)
    assert prediction.neighbours is not None
    assert prediction.distances is not None
    for i, own in enumerate([[0, 2], [1], [0, 2], [3], [4]]):
        rest = np.flatnonzero(~np.isin(table[:, 0], own))
        slow = PatchCoreGraph(graph.features, graph.bank[rest], detector.config).eval()
        with torch.inference_mode():
            score, anomaly_map, nearest, distances = slow(torch.tensor(load_image(samples[i].path))[None])
        assert prediction.scores[i] == pytest.approx(float(score), rel=1e-5)
        np.testing.assert_allclose(prediction.maps[i], anomaly_map[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(prediction.distances[i], distances[0], rtol=1e-5)
        np.testing.assert_array_equal(prediction.neighbours[i], rest[nearest[0]])


def test_equals_the_exported_graph_of_a_bank_without_the_image(tmp_path: Path) -> None:
    """Both in onnxruntime with the search in integers, which rounds around another mean, so it is the same score unless
    the nearest entry is confused with one that is as near."""
    samples = images(tmp_path, 4)
    detector = PatchCore(replace(SMALL, max_bank=300)).fit(samples)
    prediction = leave_one_out(detector, samples, [""] * 4)
    graph, table = detector.graph(), detector.sources().table
    assert isinstance(graph, PatchCoreGraph)
    rest = PatchCoreGraph(graph.features, graph.bank[table[:, 0] != 3], detector.config).eval()
    export(rest, tmp_path / "3.onnx")
    line = predict(in_onnxruntime(tmp_path / "3.onnx"), [samples[3]])
    assert prediction.scores[3] == pytest.approx(line.scores[0], rel=1e-4)
    np.testing.assert_allclose(prediction.maps[3], line.maps[0], rtol=1e-3, atol=1e-5)


def test_a_copy_hides_an_image_unless_both_are_one_item(tmp_path: Path) -> None:
    samples = images(tmp_path, 3)
    copy = tmp_path / "copy.png"
    copy.write_bytes(samples[0].path.read_bytes())
    samples.append(Sample(copy, copy.name, "good"))
    detector = PatchCore(replace(SMALL, coreset=1.0, max_bank=10_000)).fit(samples)  # every patch is kept
    apart = leave_one_out(detector, samples, ["", "", "", ""])
    together = leave_one_out(detector, samples, ["one", "", "", "one"])
    assert apart.scores[[0, 3]] == pytest.approx([0, 0], abs=1e-4)
    assert together.scores.min() > 0.1
    np.testing.assert_array_equal(apart.scores[1:3], together.scores[1:3])  # each is an item of its own in both


def test_an_item_may_have_the_name_of_an_image(tmp_path: Path) -> None:
    samples = images(tmp_path, 3)
    detector = PatchCore(SMALL).fit(samples)
    alone = leave_one_out(detector, samples, ["", "", ""])
    named = leave_one_out(detector, samples, ["", samples[0].name, ""])  # 1.png is of an item called "0.png"
    np.testing.assert_array_equal(alone.scores, named.scores)


def test_refusals(tmp_path: Path) -> None:
    samples = images(tmp_path, 3)
    detector = PatchCore(SMALL).fit(samples)
    with pytest.raises(BlemishError, match=r"All 3 good images are of one item.*add images of other items"):
        leave_one_out(detector, samples, ["a", "a", "a"])
    with pytest.raises(ValueError, match="all of them"):
        leave_one_out(detector, samples[:2], ["", ""])
    with pytest.raises(RuntimeError, match="fit the detector"):
        leave_one_out(PatchCore(SMALL), samples, ["", "", ""])
    single = PatchCore(replace(SMALL, max_bank=1)).fit(samples)
    with pytest.raises(BlemishError, match=r"whole memory bank comes from one item.*--coreset"):
        leave_one_out(single, samples, ["", "", ""])
