from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore
from blemish.training.leave_one_out import leave_one_out
from blemish.types import BlemishError, Sample

SMALL = PatchCoreConfig(image_size=(64, 96), random_weights=True, max_bank=40, coreset=0.5, batch=2)


def images(folder: Path, groups: list[str]) -> list[Sample]:
    random = np.random.default_rng(5)
    samples = []
    for i, group in enumerate(groups):
        file = folder / f"{i}.png"
        side = (50 + i, 70)  # sizes differ
        Image.fromarray(random.integers(0, 256 - 30 * i, (*side, 3), dtype=np.uint8)).save(file)
        samples.append(Sample(file, file.name, "good", group=group))
    return samples


def test_predictions_come_in_the_order_of_the_images(tmp_path: Path) -> None:
    samples = images(tmp_path, ["", "", "", ""])
    detector = PatchCore(SMALL).fit(samples)
    forwards, backwards = (leave_one_out(detector, order) for order in (samples, samples[::-1]))
    np.testing.assert_array_equal(forwards.scores, backwards.scores[::-1])
    np.testing.assert_array_equal(forwards.maps, backwards.maps[::-1])
    assert len(set(forwards.scores.tolist())) == 4


def test_a_copy_hides_an_image_unless_both_are_one_item(tmp_path: Path) -> None:
    samples = images(tmp_path, ["", "", ""])
    copy = tmp_path / "copy.png"
    copy.write_bytes(samples[0].path.read_bytes())
    samples.append(Sample(copy, copy.name, "good"))
    every = replace(SMALL, coreset=1.0, max_bank=10_000)
    apart = leave_one_out(PatchCore(every).fit(samples), samples)
    joined = [replace(sample, group="one" if i in (0, 3) else "") for i, sample in enumerate(samples)]
    together = leave_one_out(PatchCore(every).fit(joined), joined)
    assert apart.distances is not None
    assert together.distances is not None
    assert apart.distances[[0, 3]].max() < 2e-3
    assert together.distances.reshape(4, -1).max(1).min() > 0.1
    np.testing.assert_allclose(apart.distances[1:3], together.distances[1:3], atol=1e-5)  # items of their own in both


def test_an_item_may_have_the_name_of_an_image(tmp_path: Path) -> None:
    alone = images(tmp_path, ["", "", ""])
    named = images(tmp_path, ["", alone[0].name, ""])  # 1.png is of an item called "0.png"
    first, second = (leave_one_out(PatchCore(SMALL).fit(samples), samples) for samples in (alone, named))
    np.testing.assert_array_equal(first.scores, second.scores)


def test_refusals(tmp_path: Path) -> None:
    samples = images(tmp_path, ["", "", ""])
    one_item = [replace(sample, group="a") for sample in samples]
    with pytest.raises(BlemishError, match=r"All 3 good images are of one item.*add images of other items"):
        leave_one_out(PatchCore(SMALL).fit(one_item), one_item)
    with pytest.raises(ValueError, match="all of them"):
        leave_one_out(PatchCore(SMALL).fit(samples), samples[:2])
    with pytest.raises(RuntimeError, match="fit the detector"):
        leave_one_out(PatchCore(SMALL), samples)
    with pytest.raises(BlemishError, match=r"whole memory bank comes from one item.*--coreset"):
        leave_one_out(PatchCore(replace(SMALL, max_bank=1)).fit(samples), samples)
