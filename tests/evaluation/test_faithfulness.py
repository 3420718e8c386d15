"""Detectors whose reason is known: their own maps must beat the controls, inverted ones must not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from blemish.evaluation.bootstrap import Interval, to_json
from blemish.evaluation.faithfulness import FEWEST, Faithfulness, beaten, faithfulness
from blemish.evaluation.relevance import AREAS, edge_map
from blemish.types import BlemishError, Sample, T

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
HEIGHT, WIDTH, BLOCK = 40, 48, 8
PLACES = [(0, 1), (2, 4), (4, 0), (1, 5), (3, 3), (4, 5), (0, 4), (3, 0)]  # of the defect, in blocks


def blocks(image: Pixels) -> tuple[float, Map]:
    """Sees only red: the score is the reddest block's mean, the map is each block's, so the map is faithful."""
    red = image[..., 0].reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK).mean((1, 3)) / 255
    return float(red.max()), np.kron(red, np.ones((BLOCK, BLOCK))).astype(np.float32)


def wrong(image: Pixels) -> tuple[float, Map]:
    score, heat = blocks(image)
    return score, -heat


def blank(image: Pixels, mask: Mask) -> Pixels:
    return np.where(mask[..., None], 0, image).astype(np.uint8)


def paint(image: Pixels, mask: Mask) -> Pixels:
    return np.where(mask[..., None], 255, image).astype(np.uint8)


def write(folder: Path, red: int = 255, factor: int = 1, masks: bool = True) -> list[Sample]:
    """Images with a red block, and blue dots elsewhere that only an edge detector responds to. Green is the image's
    number."""
    samples = []
    for number, (row, column) in enumerate(PLACES):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[..., 1] = number
        mask = np.zeros((HEIGHT, WIDTH), bool)
        here = np.s_[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
        mask[here] = True
        image[::2, ::2, 2] = 255
        image[here] = (red, number, 0)
        path, where = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(image.repeat(factor, 0).repeat(factor, 1)).save(path)
        Image.fromarray(mask.repeat(factor, 0).repeat(factor, 1)).save(where)
        samples.append(Sample(path, path.name, "anomaly", "red", where if masks else None))
    return samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return write(tmp_path_factory.mktemp("red"))


@pytest.fixture(scope="module")
def true(samples: Sequence[Sample]) -> Faithfulness:
    return faithfulness(samples, blocks, 0.5, 0.0, impute=blank, randomised=wrong)


def test_a_faithful_map_beats_every_control_by_every_measure(true: Faithfulness) -> None:
    assert {one.name: one.explains for one in true.measures} == {
        "deletion": True,
        "insertion": True,
        "road": True,
        "inpainting": True,
        "pointing": True,
        "energy": True,
    }
    for one in true.measures:
        assert all(one.beats.values())
        expected = {"a random map", "a centre blob", "an edge detector", "randomised weights"}
        assert set(one.beats) == expected | ({"the same region moved"} if one.name == "inpainting" else set())


def test_figures_worked_out_by_hand(true: Faithfulness) -> None:
    # 1 % and 2 % of 1920 pixels are 19 and 38 of the block's 64, which leave 45 and 26.
    value = {one.name: one.value.value for one in true.measures}
    out = 0.01 * (64 + 45) / 128 + 0.01 * (45 + 26) / 128 + 0.03 * 26 / 128
    assert value["deletion"] == pytest.approx(out)
    assert value["insertion"] == pytest.approx(1 - out)  # what is not put back is what is taken out
    assert value["road"] == pytest.approx(1, abs=0.02)
    assert value["inpainting"] == pytest.approx(4 / 5)  # all areas but 1 %: 45 of 64 are above half
    assert value["pointing"] == 1
    assert value["energy"] == pytest.approx(1)
    assert [rate.hottest.value for rate in true.inpainting] == [0, 1, 1, 1, 1]
    assert true.inpainting[1].hottest.low == pytest.approx(0.676, abs=0.001)  # Wilson, 8 of 8
    assert true.curves["deletion"]["detector"][:4] == pytest.approx((1, 45 / 64, 26 / 64, 0))
    assert true.areas == (0, *AREAS, 1)
    assert true.replaced.value == 0


def test_inpainting_a_moved_region_helps_where_it_covers_half_of_the_block(samples: Sequence[Sample]) -> None:
    found = faithfulness(samples, blocks, 0.5, 0.0, impute=blank, draws=40)
    # The hottest 5 % are the block and 32 pixels scattered elsewhere; the block moved by (dy, dx) covers
    # (8 - |dy|) (8 - |dx|) of itself, of which more than half must be, less the scattered ones' 1.7 %.
    overlap = (8 - np.abs(np.arange(-7, 8)))[:, None] * (8 - np.abs(np.arange(-7, 8)))
    assert found.inpainting[2].moved.value == pytest.approx((overlap >= 32).sum() / 1920, abs=0.02)
    assert found.inpainting[2].difference.value == pytest.approx(1 - (found.inpainting[2].moved.value or 0))


def test_calls_are_counted(true: Faithfulness, samples: Sequence[Sample]) -> None:
    each = 1 + 5 * (8 + 8 + 10) + 5 * 3  # wholly replaced; five maps; moved regions
    assert true.calls == 8 * (1 + each + 1)  # found; measured; the randomised map
    assert (true.images, true.asked, true.masks) == (8, 8, 8)


def test_an_inverted_map_does_not_explain(samples: Sequence[Sample]) -> None:
    found = faithfulness(samples, wrong, 0.5, 0.0, impute=blank, most=6, draws=1)
    assert not any(one.explains for one in found.measures)
    assert all(one.explains is False for one in found.measures)
    # A random map points no better at so small a block, and the energy has nothing above the median.
    behind = [one.name for one in found.measures if (one.advantage["a random map"].value or 0) < 0]
    assert set(behind) >= {"deletion", "insertion", "road"}
    assert [rate.hottest.value for rate in found.inpainting] == [0, 0, 0, 0, 0]


def test_an_edge_map_does_not_beat_the_edge_detector(samples: Sequence[Sample]) -> None:
    found = faithfulness(samples, lambda p: (blocks(p)[0], edge_map(p)), 0.5, 0.0, impute=blank, most=6, draws=1)
    for one in found.measures:
        assert one.explains is False
        if one.name != "road":  # whose noise is drawn anew
            assert one.advantage["an edge detector"].value == pytest.approx(0, abs=1e-9)


def test_a_replacement_that_is_itself_an_anomaly_gives_no_verdict(tmp_path: Path) -> None:
    found = faithfulness(write(tmp_path, red=128), blocks, 0.4, 0.0, impute=paint, most=6, draws=1)
    verdicts = {one.name: one.explains for one in found.measures}
    assert verdicts == {
        "deletion": None,
        "insertion": None,
        "road": True,
        "inpainting": None,
        "pointing": True,
        "energy": True,
    }
    assert found.replaced.value == pytest.approx(255 / 128)


def test_equal_seeds_give_equal_figures(samples: Sequence[Sample]) -> None:
    def figures(seed: int) -> Faithfulness:
        return faithfulness(samples, blocks, 0.5, 0.0, impute=blank, most=2, draws=1, seed=seed)

    first, second, other = figures(1), figures(1), figures(2)
    assert first == second
    one, two = first.measures[0].controls, other.measures[0].controls
    assert one["a random map"].value != two["a random map"].value
    assert one["a centre blob"].value == two["a centre blob"].value


def test_too_few_images_or_masks_give_no_verdict(tmp_path: Path) -> None:
    found = faithfulness(write(tmp_path, masks=False), blocks, 0.5, 0.0, impute=blank, most=5, draws=1)
    assert all(one.explains is None for one in found.measures)
    assert [one.images for one in found.measures] == [5, 5, 5, 5, 0, 0]
    assert found.measures[4].value == Interval(None)
    json.dumps(to_json(found), allow_nan=False)


def test_images_are_chosen_evenly_without_good_and_missed_ones(samples: Sequence[Sample]) -> None:
    phases, asked = list[str](), list[int]()

    def phase(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        phases.append(what)
        return iter(items)

    def missing_five(image: Pixels) -> tuple[float, Map]:
        score, heat = blocks(image)
        if phases == ["anomalies"]:
            asked.append(int(image[0, 1, 1]))
            score = 0.1 if asked[-1] == 5 else score
        return score, heat

    mixed = [*samples[:3], Sample(samples[3].path, "good", "good"), *samples[4:]]
    found = faithfulness(mixed, missing_five, 0.5, 0.0, impute=blank, most=3, draws=1, progress=phase)
    # Of seven, in the order of 0, 0.62, 0.24, 0.85, 0.47, 0.09, 0.71: those of rank 0, 4 (missed), 2, 6.
    assert phases == ["anomalies", "heatmaps"]
    assert asked == [0, 5, 2, 7]
    assert (found.images, found.asked) == (3, 4)


def test_images_are_reduced_to_the_input_size(tmp_path: Path) -> None:
    shapes = set()

    def seeing(image: Pixels) -> tuple[float, Map]:
        shapes.add(image.shape)
        return blocks(image)

    found = faithfulness(write(tmp_path, factor=3), seeing, 0.5, 0.0, impute=blank, most=1, side=48, draws=1)
    assert shapes == {(HEIGHT, WIDTH, 3)}
    assert found.measures[4].value.value == 1


def test_what_cannot_be_measured_is_refused(samples: Sequence[Sample]) -> None:
    with pytest.raises(BlemishError, match="not below the threshold"):
        faithfulness(samples, blocks, 0.5, 0.5, impute=blank)
    with pytest.raises(BlemishError, match="None of 8 images is called an anomaly"):
        faithfulness(samples, blocks, 2.0, 0.5, impute=blank)


@pytest.mark.parametrize(
    ("advantage", "images", "expected"),
    [
        (Interval(0.2, 0.1, 0.3), 9, True),
        (Interval(0.2, -0.01, 0.4), 9, False),
        (Interval(-0.2, -0.3, -0.1), 9, False),
        (Interval(1.0), FEWEST, True),
        (Interval(0.0), 9, False),
        (Interval(1.0), FEWEST - 1, None),
        (Interval(0.2, 0.1, 0.3), FEWEST - 1, None),
        (Interval(None), 0, None),
    ],
)
def test_beaten(advantage: Interval, images: int, expected: bool | None) -> None:
    assert beaten(advantage, images) is expected
