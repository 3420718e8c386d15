import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blemish import BlemishError, Inspector
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.inference import bundle, evidence
from blemish.inference.bundle import Frame
from blemish.inference.framing import Blend, Framing, carried, lies, map_size, sampler, starts, tiles_of, touched
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train
from tests.framing import HEIGHT, SPOTS, WIDTH, anywhere, plate, region, write_product
from tests.support import blemish, write_image

QUICK = PatchCoreConfig(max_bank=300)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned in tiles, inside a region of interest."""
    home = tmp_path_factory.mktemp("tiled")
    roi = write_image(home / "roi.png", region())
    data = write_product(home / "plates")
    config = TrainConfig(data, home / "run", settings=QUICK, image_size=(96, 96), tile=96, overlap=24, roi=roi)
    return train(config).folder


@pytest.fixture(scope="module")
def straightened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned from plates that lie anywhere, aligned."""
    home = tmp_path_factory.mktemp("aligned")
    data = write_product(home / "plates", moved=True)
    return train(TrainConfig(data, home / "run", settings=QUICK, image_size=(128, 192), align=True)).folder


def test_tiles_are_whole_and_leave_nothing_out() -> None:
    assert starts(10, 4, 1) == [0, 3, 6]
    assert starts(11, 4, 1) == [0, 3, 6, 7]  # the last is moved inwards
    assert starts(4, 4, 1) == [0]
    assert starts(8, 4, 0) == [0, 4]
    assert (len(starts(4000, 512, 64)), starts(4000, 512, 64)[-1]) == (9, 3488)
    for length, tile, overlap in [(100, 7, 3), (97, 32, 16), (33, 32, 0), (640, 64, 8)]:
        found = starts(length, tile, overlap)
        covered = np.zeros(length, int)
        for start in found:
            assert 0 <= start <= length - tile
            covered[start : start + tile] += 1
        assert covered.min() >= 1
        assert all(b - a <= tile - overlap for a, b in pairwise(found))


def test_tiles_wholly_outside_the_region_are_left_out() -> None:
    roi = np.zeros((8, 12), bool)
    roi[1, 1] = roi[7, 11] = True
    assert tiles_of((12, 8), (4, 4), 0, None) == ((0, 0), (4, 0), (8, 0), (0, 4), (4, 4), (8, 4))
    assert tiles_of((12, 8), (4, 4), 0, roi) == ((0, 0), (8, 4))


def test_the_map_of_a_large_image_stays_small() -> None:
    assert map_size((4000, 3000), (512, 512), (256, 256)) == (375, 500)
    height, width = map_size((20_000, 10_000), (256, 256), (256, 256))
    assert height * width <= 2**18
    assert width / height == pytest.approx(2, rel=0.01)


def blended(size: tuple[int, int], tile: int, overlap: int, cells: tuple[int, int], field: Any) -> np.ndarray:
    """Tiles that each see `field` (x, y) at the centres of 16 x 16 samples."""
    blend = Blend(size, cells, overlap)
    centres = (np.arange(16) + 0.5) * tile / 16
    for left, top in tiles_of(size, (tile, tile), overlap, None):
        blend.add((left, top, left + tile, top + tile), field(left + centres[None], top + centres[:, None]))
    return blend.whole()


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (64, 0), (48, 24), (60, 7)])
def test_a_constant_stays_constant_and_a_ramp_has_no_seams(tile: int, overlap: int) -> None:
    size, cells = (200, 150), (38, 50)
    np.testing.assert_allclose(blended(size, tile, overlap, cells, lambda x, y: 3.5 + 0 * (x + y)), 3.5, rtol=1e-6)
    if overlap:
        found = blended(size, tile, overlap, cells, lambda x, y: 0.7 * x - 0.4 * y)
        x, y = (np.arange(50) + 0.5) * 4, (np.arange(38) + 0.5) * 150 / 38
        inner = np.s_[1:-1, 1:-1]  # beyond the outermost samples a map is flat
        np.testing.assert_allclose(found[inner], (0.7 * x[None] - 0.4 * y[:, None])[inner], atol=1e-3)


def test_blending_equals_the_slow_sum() -> None:
    """Cell by cell: linear between the samples, weights that fall to the tile's edge, scaled to one."""
    random = np.random.default_rng(0)
    size, cells, tile, overlap = (50, 40), (20, 25), 24, 8
    boxes = [(left, top, left + tile, top + tile) for left, top in tiles_of(size, (tile, tile), overlap, None)]
    values = [random.normal(size=(6, 6, 3)).astype(np.float32) for _ in boxes]
    blend = Blend(size, cells, overlap)
    for box, one in zip(boxes, values, strict=True):
        blend.add(box, one)
    found = blend.whole()

    def along(at: float) -> tuple[list[tuple[int, float]], float]:
        place = min(max(at / (tile / 6) - 0.5, 0), 5)
        low = min(int(place), 4)
        weight = min(max((min(at, tile - at) - tile / 12) / overlap, 1e-6), 1)
        return [(low, 1 - (place - low)), (low + 1, place - low)], weight

    for row in range(cells[0]):
        for column in range(cells[1]):
            x, y = (column + 0.5) * 2, (row + 0.5) * 2
            total, weights = np.zeros(3), 0.0
            for (left, top, right, bottom), one in zip(boxes, values, strict=True):
                if left <= x < right and top <= y < bottom:
                    (down, high), (across, wide) = along(y - top), along(x - left)
                    value = sum(one[i, j] * share * part for i, share in down for j, part in across)
                    total, weights = total + high * wide * np.asarray(value), weights + high * wide
            np.testing.assert_allclose(found[row, column], total / weights, rtol=1e-4, atol=1e-5)


def test_a_sampler_never_reads_beyond_its_tile() -> None:
    where, reads, weights = sampler(10, 34, 50, 25, 6, 8)
    assert (where.start, where.stop) == (5, 17)
    np.testing.assert_allclose(reads.sum(1), 1, rtol=1e-6)
    assert (reads >= 0).all()
    assert weights.min() > 0
    assert weights.max() == 1


def test_cells_and_boxes_of_the_region() -> None:
    mask = np.zeros((6, 9), bool)
    mask[2, 3] = True
    assert np.argwhere(touched(mask, (2, 3))).tolist() == [[0, 1]]
    assert np.argwhere(touched(mask, (12, 18))).tolist() == [[4, 6], [4, 7], [5, 6], [5, 7]]
    framing = Framing(Frame(size=(100, 50), map_size=(5, 10)))
    matrix = lies(framing, (200, 100), None)
    assert carried((10, 20, 30, 40), matrix, (200, 100)) == (20, 40, 60, 80)
    quarter = np.array([[0.0, -1, 49], [1, 0, 0]])  # what is right in the frame is down in the image
    square = Framing(Frame(size=(50, 50), map_size=(5, 5)))
    assert carried((0, 0, 10, 5), lies(square, (50, 50), quarter), (50, 50)) == (45, 0, 50, 10)


def test_a_tiled_run_says_how_it_sees(tiled: Path) -> None:
    card = bundle.read(tiled).card
    frame = card.frame
    assert frame
    assert frame.size == (WIDTH, HEIGHT)
    assert card.image_size == (96, 96)
    assert frame.tile == (96, 96)
    assert frame.tiles == ((0, 0), (72, 0), (144, 0), (0, 64), (72, 64), (144, 64))
    assert frame.map_size == (40, 60)
    assert card.decision.calibrated_by == "leave-one-out"
    assert len(card.decision.scores) == 20  # of images, not of tiles
    assert card.decision.min_area == pytest.approx(0.0002 * 96 * 96 / (WIDTH * HEIGHT))
    names = sorted(file.name for file in (tiled / "bundle").iterdir())
    assert names == ["card.json", "evidence.zip", "model.onnx", "roi.png"]
    assert not (tiled.parent / ".run.frames").exists()
    metrics = json.loads((tiled / "metrics.json").read_text("utf-8"))
    assert metrics["parity"]["scores"] < 1e-3
    assert metrics["detection"]["recall"]["value"] == 0.75  # the fourth lies outside the region:
    (said,) = (problem for problem in metrics["data_problems"] if "outside" in problem)
    assert said.startswith("test/spot/000.png: all that is defective lies outside the region of interest")
    assert metrics["localisation"]["defects"] == 3
    assert metrics["localisation"]["defects_hit"]["value"] == 1


def test_the_score_is_the_highest_of_a_tile_and_the_map_is_theirs(tiled: Path) -> None:
    inspector = Inspector(tiled, threads=1)
    image = plate(300, SPOTS[1])[0]
    found = inspector.predict(image).outputs()
    masked = np.where(region()[..., None] > 0, image, np.uint8(128))
    tiles = [masked[top : top + 96, left : left + 96] for left, top in inspector.card.frame.tiles]  # type: ignore[union-attr]
    alone = [inspector._run(tile[None]) for tile in tiles]
    assert found["scores"][0] == pytest.approx(max(float(one.scores[0]) for one in alone), rel=1e-5)
    np.testing.assert_allclose(
        found["distances"][0], np.concatenate([one.outputs()["distances"] for one in alone]), rtol=1e-4, atol=1e-5
    )
    assert found["maps"].shape == (1, 40, 60)
    row, column = np.unravel_index(found["maps"][0].argmax(), (40, 60))
    assert abs((row + 0.5) * 4 - 46) < 12
    assert abs((column + 0.5) * 4 - 156) < 12


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (300, 200)])
def test_what_lies_outside_the_region_never_counts(tiled: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """To the last bit, and at another size too."""
    inspector = Inspector(tiled, threads=1)
    for spot in (None, SPOTS[2]):
        image = np.asarray(Image.fromarray(plate(301, spot)[0]).resize(size))
        outside = np.asarray(Image.fromarray(region()).resize(size, Image.Resampling.NEAREST)) == 0
        noise = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
        other = np.where(outside[..., None], noise, image)
        looks = [inspector.look(write_image(tmp_path / f"{i}.png", one)) for i, one in enumerate((image, other))]
        first, second = looks
        assert first.verdict.score == second.verdict.score
        assert first.verdict.regions == second.verdict.regions
        assert first.verdict.decision == second.verdict.decision == ("anomaly" if spot else "good")
        assert first.map is not None
        np.testing.assert_array_equal(first.map, second.map)
        assert first.neighbours is not None
        np.testing.assert_array_equal(first.neighbours, second.neighbours)
        inside = touched(region() > 0, (40, 60))
        assert (first.map[~inside] == first.map[inside].min()).all()


def test_evidence_of_a_tile_lies_where_the_defect_is(tiled: Path, tmp_path: Path) -> None:
    inspector = Inspector(tiled, threads=1)
    store = evidence.open_store(inspector)
    image = plate(302, SPOTS[3])[0]
    look = inspector.look(write_image(tmp_path / "a.png", image))
    found = evidence.gather(inspector, store, look)
    assert found
    assert found.counterfactual is None
    nearest = found.nearest[0]
    left, top, right, bottom = nearest.box
    assert left <= 66 < right  # the spot's centre
    assert top <= 131 < bottom
    np.testing.assert_array_equal(nearest.crop, image[top:bottom, left:right])
    assert nearest.normal is not None
    assert nearest.normal.shape == nearest.crop.shape
    assert nearest.source
    assert nearest.source.startswith("train/good/")
    assert "@" in nearest.source
    said = json.loads(blemish("explain", tiled, tmp_path / "a.png", "--at", "66,131", "--json").stdout)
    assert said["flagged"]
    assert said["nearest"]["distance"] > 0


def test_an_aligned_run_keeps_its_places_in_the_image(straightened: Path, tmp_path: Path) -> None:
    metrics = json.loads((straightened / "metrics.json").read_text("utf-8"))
    assert metrics["detection"]["auroc"]["value"] == 1
    assert metrics["localisation"]["pixel_auroc"]["value"] > 0.95
    assert metrics["localisation"]["defects_hit"]["value"] == 1
    assert sorted(file.name for file in (straightened / "bundle").iterdir()) == [
        "card.json",
        "evidence.zip",
        "model.onnx",
        "reference.png",
    ]
    inspector = Inspector(straightened, threads=1)
    for number in range(3):
        image, mask = plate(400 + number, SPOTS[number], anywhere(400 + number))
        look = inspector.look(write_image(tmp_path / f"{number}.png", image))
        assert look.verdict.decision == "anomaly"
        y, x = np.nonzero(mask)
        left, top, right, bottom = look.verdict.regions[0].box
        assert left <= x.mean() < right
        assert top <= y.mean() < bottom
        nearest = evidence.gather(inspector, evidence.open_store(inspector), look)
        assert nearest
        left, top, right, bottom = nearest.nearest[0].box
        assert left <= x.mean() < right
        assert top <= y.mean() < bottom
        assert nearest.nearest[0].crop.max() == 255 or nearest.nearest[0].crop.max() > 235  # the spot itself


def test_a_image_that_cannot_be_aligned_is_an_error_and_the_rest_goes_on(straightened: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.png", np.zeros((HEIGHT, WIDTH, 3)))
    write_image(tmp_path / "in/b.png", plate(500, moved=anywhere(500))[0])
    said = blemish("inspect", straightened, tmp_path / "in", "--out", tmp_path / "out", code=3)
    first, second = (json.loads(line) for line in (tmp_path / "out/verdicts.jsonl").read_text("utf-8").splitlines())
    assert first["decision"] == "error"
    assert "a.png: it could not be aligned with the reference image (correlation" in first["error"]
    assert second["decision"] == "good"
    assert "1 good, 1 error" in said.stdout


def test_an_aligned_bundle_without_opencv_says_what_to_install(
    straightened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BlemishError, match=r"pip install 'blemish\[align\]'"):
        Inspector(straightened)


def test_a_frame_without_its_file_or_of_another_size_is_refused(tiled: Path, tmp_path: Path) -> None:
    def rewritten(name: str, change: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiled / "bundle", folder)
        change(folder)
        bundle.write(folder, bundle.read(tiled).card)
        return folder

    with pytest.raises(bundle.BundleError, match=r"roi\.png cannot be read"):
        Inspector(rewritten("none", lambda folder: (folder / "roi.png").unlink()))
    card = bundle.read(tiled).card
    assert card.frame
    shutil.copytree(tiled / "bundle", tmp_path / "far")
    moved = card.frame.model_copy(update={"tiles": ((0, 0), (200, 0))})
    bundle.write(tmp_path / "far", card.model_copy(update={"frame": moved}))
    with pytest.raises(bundle.BundleError, match="tiles do not lie in its frame"):
        Inspector(tmp_path / "far")
    small = rewritten("small", lambda folder: Image.new("L", (8, 8), 255).save(folder / "roi.png"))
    with pytest.raises(bundle.BundleError, match=r"roi\.png is not of the frame's size"):
        Inspector(small)


def test_evaluate_and_report_know_the_frame(tiled: Path, straightened: Path, tmp_path: Path) -> None:
    for one in (tiled, straightened):
        data = one.parent / "plates"
        kept = json.loads((one / "metrics.json").read_text("utf-8"))
        found = json.loads(blemish("evaluate", one, data, "--json").stdout)
        assert found["detection"] == kept["detection"]
        for name in ("pixel_auroc", "aupro", "defects_hit"):
            assert found["localisation"][name]["value"] == pytest.approx(kept["localisation"][name]["value"], abs=1e-6)
        said = json.loads(blemish("report", one, "--data", data, "-o", tmp_path / "r.html", "--json").stdout)
        again = said["repeat"]["command"] if "repeat" in said else str(said)
        assert ("--tile 96 --overlap 24 --roi bundle/roi.png" in again) == (one == tiled)
        assert ("--align" in again) == (one == straightened)
