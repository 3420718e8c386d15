import doctest
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from blemish import BlemishError, Inspector
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.inference import bundle, evidence, framing
from blemish.inference.bundle import Frame
from blemish.inference.framing import Framing, bounding_box, cells_of, clipped, inverse
from blemish.inference.nearest_normal import nearest_normal
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train
from tests.framing import HEIGHT, SPOTS, WIDTH, anywhere, plate, region, write_product
from tests.support import blemish, write_image

QUICK = PatchCoreConfig(max_bank=300)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on tiles, inside a region of interest."""
    home = tmp_path_factory.mktemp("tiled")
    roi = write_image(home / "roi.png", region())
    data = write_product(home / "plates")
    config = TrainConfig(data, home / "run", settings=QUICK, image_size=(96, 96), tile=96, overlap=24, roi=roi)
    return train(config).folder


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on plates that lie anywhere, aligned."""
    home = tmp_path_factory.mktemp("aligned")
    data = write_product(home / "plates", moved=True)
    return train(TrainConfig(data, home / "run", settings=QUICK, image_size=(128, 192), align=True)).folder


def moved_by(right: float, down: float, degrees: float, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """A pose: turned about the middle of an image of `size` (width, height), then shifted."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = (np.array(size) - 1) / 2
    turn = np.array([[c, -s], [s, c]])
    return np.hstack([turn, (middle - turn @ middle + np.array([right, down]))[:, None]])


def test_the_worked_example_in_the_docstring() -> None:
    results = doctest.testmod(framing)
    assert results.attempted > 5
    assert results.failed == 0


@pytest.mark.parametrize("size", [(120, 80), (240, 160), (300, 120)])
@pytest.mark.parametrize("moved", [(0, 0, 0), (12.0, -7.5, 0), (6, 4, 25)])
def test_a_spot_of_the_frame_is_in_the_image_where_the_transform_says(
    size: tuple[int, int], moved: tuple[float, float, float]
) -> None:
    """OpenCV and Pillow as the oracle: a spot is drawn in the image and found again in the frame."""
    framed = Framing(Frame(size=(120, 80), map_size=(8, 12), align="ecc"), reference=np.zeros((80, 120, 3), np.uint8))
    pose = moved_by(*moved, (120, 80))
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    centre = np.array([0.45 * size[0], 0.6 * size[1]])
    radius = 6 * np.array(size) / (120, 80)
    bell = 255 * np.exp(-(((x - centre[0]) / radius[0]) ** 2) - ((y - centre[1]) / radius[1]) ** 2)
    frame_image, _ = framed.to_frame(np.repeat(bell.astype(np.uint8)[..., None], 3, 2), pose)
    weights = frame_image[..., 0].astype(float)
    rows, columns = np.mgrid[:80, :120] + 0.5
    seen = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
    np.testing.assert_allclose(framed.frame_to_image(size, pose) @ (*seen, 1), centre, atol=0.1)
    back = inverse(framed.frame_to_image(size, pose)) @ (*centre, 1)
    np.testing.assert_allclose(back, seen, atol=0.1)


def test_a_bounding_box_holds_every_place_of_the_transformed_box_and_no_pixel_more() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        left, top = random.integers(60, 100, 2)
        box = (left, top, left + random.integers(1, 40), top + random.integers(1, 40))
        right, down, degrees = random.uniform((-5, -5, -90), (5, 5, 90))
        transform = moved_by(right, down, degrees, (200, 200))
        shares = np.linspace(0, 1, 201)
        x, y = np.meshgrid(box[0] + shares * (box[2] - box[0]), box[1] + shares * (box[3] - box[1]))
        places = transform @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
        (x0, y0), (x1, y1) = np.floor(places.min(1)), np.ceil(places.max(1))
        assert bounding_box(box, transform, (200, 200)) == (x0, y0, x1, y1)


def test_boxes_are_clipped_to_the_image_and_keep_a_pixel() -> None:
    assert clipped((-3, 4, 5, 99), (10, 20)) == (0, 4, 5, 20)
    assert clipped((12, 4, 15, 5), (10, 20)) == (9, 4, 10, 5)
    assert clipped((-9, -9, -2, -2), (10, 20)) == (0, 0, 1, 1)


def test_the_cells_of_a_mask_by_hand() -> None:
    mask = np.zeros((6, 9), bool)
    mask[2, 3] = True
    assert np.argwhere(cells_of(mask, (2, 3))).tolist() == [[0, 1]]
    assert np.argwhere(cells_of(mask, (12, 18))).tolist() == [[4, 6], [4, 7], [5, 6], [5, 7]]


def test_a_region_of_interest_in_an_image_that_lies_elsewhere() -> None:
    roi = np.zeros((50, 50), bool)
    roi[:5, :10] = True
    framed = Framing(Frame(size=(50, 50), map_size=(5, 5), roi=True), roi)
    quarter_turn = np.array([[0.0, -1, 49], [1, 0, 0]])
    turned = framed.roi_in_image((50, 50), quarter_turn)
    assert turned is not None
    expected = np.zeros((50, 50), bool)
    expected[:10, 45:] = True
    np.testing.assert_array_equal(turned, expected)
    doubled = framed.roi_in_image((100, 100))
    assert doubled is not None
    assert doubled[:10, :20].all()
    assert doubled.sum() == 200
    assert Framing(Frame(size=(50, 50), map_size=(5, 5))).roi_in_image((50, 50)) is None


def test_the_card_of_a_tiled_run_says_where_the_tiles_are(tiled: Path) -> None:
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
    assert metrics["detection"]["recall"]["value"] == 0.75  # the fourth is outside the region:
    (problem,) = (problem for problem in metrics["data_problems"] if "outside" in problem)
    assert problem.startswith("test/spot/000.png: all defects lie outside the region of interest")
    assert metrics["localisation"]["defects"] == 3
    assert metrics["localisation"]["defects_hit"]["value"] == 1


def test_the_score_is_the_highest_of_a_tile_and_the_map_is_blended(tiled: Path) -> None:
    inspector = Inspector(tiled, threads=1)
    image = plate(300, SPOTS[1])[0]
    outputs = inspector.predict(image).outputs()
    masked = np.where(region()[..., None] > 0, image, np.uint8(128))
    tiles = [masked[top : top + 96, left : left + 96] for left, top in inspector.card.frame.tiles]  # type: ignore[union-attr]
    by_tile = [inspector._run(tile[None]).outputs() for tile in tiles]
    assert outputs["scores"][0] == pytest.approx(max(float(tile["scores"][0]) for tile in by_tile), rel=1e-5)
    distances = np.concatenate([tile["distances"] for tile in by_tile])
    np.testing.assert_allclose(outputs["distances"][0], distances, rtol=1e-4, atol=1e-5)
    assert outputs["maps"].shape == (1, 40, 60)
    row, column = np.unravel_index(outputs["maps"][0].argmax(), (40, 60))
    assert abs((row + 0.5) * 4 - 46) < 12
    assert abs((column + 0.5) * 4 - 156) < 12


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (300, 200)])
def test_what_is_outside_the_region_never_counts(tiled: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """To the last bit, and at another size too."""
    inspector = Inspector(tiled, threads=1)
    for spot in (None, SPOTS[2]):
        image = np.asarray(Image.fromarray(plate(301, spot)[0]).resize(size))
        outside = np.asarray(Image.fromarray(region()).resize(size, Image.Resampling.NEAREST)) == 0
        noise = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
        other = np.where(outside[..., None], noise, image)
        first, second = (
            inspector.look(write_image(tmp_path / f"{i}.png", pixels)) for i, pixels in enumerate((image, other))
        )
        assert first.verdict.score == second.verdict.score
        assert first.verdict.regions == second.verdict.regions
        assert first.verdict.decision == second.verdict.decision
        assert not spot or first.verdict.decision == "anomaly"
        assert first.map is not None
        np.testing.assert_array_equal(first.map, second.map)
        assert first.neighbours is not None
        np.testing.assert_array_equal(first.neighbours, second.neighbours)
        inside = cells_of(region() > 0, (40, 60))
        assert (first.map[~inside] == first.map[inside].min()).all()


def test_the_evidence_of_a_tile_is_where_the_defect_is(tiled: Path, tmp_path: Path) -> None:
    inspector = Inspector(tiled, threads=1)
    store = evidence.open_store(inspector)
    image = plate(302, SPOTS[3])[0]
    inspection = inspector.look(write_image(tmp_path / "a.png", image))
    gathered = evidence.gather(inspector, store, inspection)
    assert gathered
    assert gathered.counterfactual is None
    nearest = gathered.nearest[0]
    left, top, right, bottom = nearest.box
    assert left <= 66 < right  # the spot's centre
    assert top <= 131 < bottom
    np.testing.assert_array_equal(nearest.crop, image[top:bottom, left:right])
    assert nearest.normal is not None
    assert nearest.normal.shape == nearest.crop.shape
    assert nearest.source
    assert nearest.source.startswith("train/good/")
    assert "@" in nearest.source
    explained = json.loads(blemish("explain", tiled, tmp_path / "a.png", "--at", "66,131", "--json").stdout)
    assert explained["flagged"]
    assert explained["nearest"]["distance"] > 0


def test_regions_and_evidence_of_an_aligned_run_are_in_the_image_as_it_was_given(aligned: Path, tmp_path: Path) -> None:
    metrics = json.loads((aligned / "metrics.json").read_text("utf-8"))
    assert metrics["detection"]["auroc"]["value"] == 1
    assert metrics["localisation"]["pixel_auroc"]["value"] > 0.95
    assert metrics["localisation"]["defects_hit"]["value"] == 1
    assert sorted(file.name for file in (aligned / "bundle").iterdir()) == [
        "card.json",
        "evidence.zip",
        "model.onnx",
        "reference.png",
    ]
    inspector = Inspector(aligned, threads=1)
    for number in range(3):
        image, mask = plate(400 + number, SPOTS[number], anywhere(400 + number))
        inspection = inspector.look(write_image(tmp_path / f"{number}.png", image))
        assert inspection.verdict.decision == "anomaly"
        gathered = evidence.gather(inspector, evidence.open_store(inspector), inspection)
        assert gathered
        y, x = np.nonzero(mask)
        for left, top, right, bottom in (inspection.verdict.regions[0].box, gathered.nearest[0].box):
            assert left <= x.mean() < right
            assert top <= y.mean() < bottom
        assert gathered.nearest[0].crop.max() > 235  # the spot itself


@pytest.mark.parametrize(
    ("moved", "place"), [((18, 10, 0), (WIDTH - 2, 40)), ((-17, 6, 4), (1, 100)), ((5, -12, -3), (120, 1))]
)
def test_the_evidence_of_a_shifted_part_is_cut_from_what_the_detector_saw(
    aligned: Path, tmp_path: Path, moved: tuple[float, float, float], place: tuple[int, int]
) -> None:
    """At the edge to which the part was shifted: what the image does not show came from the reference, not from the
    repeated edge. And the normal crop shows the same place of the part."""
    inspector = Inspector(aligned, threads=1)
    assert inspector.framing
    image = plate(410, moved=moved)[0]
    inspection = inspector.look(write_image(tmp_path / "a.png", image))
    nearest = nearest_normal(inspector, evidence.open_store(inspector), inspection, place)
    assert nearest
    seen, _ = inspector.framing.to_frame(image, inspection.pose)
    places = np.lib.stride_tricks.sliding_window_view(seen, nearest.crop.shape)[:, :, 0]
    same = np.argwhere((places == nearest.crop).all((2, 3, 4)))
    assert len(same) == 1
    (top, left), (height, width) = same[0].tolist(), nearest.crop.shape[:2]
    assert nearest.normal is not None
    store = evidence.open_store(inspector)
    assert store is not None
    source = np.asarray(Image.fromarray(store.image(store.names.index(nearest.source or ""))).resize((WIDTH, HEIGHT)))
    apart = {  # of the normal crop from what its image shows there, moved by so many pixels
        move: np.abs(nearest.normal.astype(float) - source[top:, move:][:height, :width]).mean()
        for move in range(left - 20, left + 21)
        if 0 <= move <= WIDTH - width
    }
    assert abs(min(apart, key=lambda move: apart[move]) - left) <= 12  # to a cell, of 10 pixels


def test_an_image_that_cannot_be_aligned_is_an_error_and_others_are_inspected(aligned: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.png", np.zeros((HEIGHT, WIDTH, 3)))
    write_image(tmp_path / "in/b.png", plate(500, moved=anywhere(500))[0])
    printed = blemish("inspect", aligned, tmp_path / "in", "--out", tmp_path / "out", code=3).stdout
    first, second = (json.loads(line) for line in (tmp_path / "out/verdicts.jsonl").read_text("utf-8").splitlines())
    assert first["decision"] == "error"
    assert "a.png: it could not be aligned with the reference image (correlation" in first["error"]
    assert second["decision"] == "good"
    assert "1 good, 1 error" in printed
    unnamed = Inspector(aligned, threads=1).inspect(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert (unnamed.path, unnamed.decision) == ("", "error")
    assert (unnamed.error or "").startswith("the image: it could not be aligned")


def test_an_aligned_bundle_without_opencv_says_what_to_install(aligned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BlemishError, match=r"pip install 'blemish\[align\]'"):
        Inspector(aligned)


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
    with pytest.raises(bundle.BundleError, match="tiles are not inside its frame"):
        Inspector(tmp_path / "far")
    small = rewritten("small", lambda folder: Image.new("L", (8, 8), 255).save(folder / "roi.png"))
    with pytest.raises(bundle.BundleError, match=r"roi\.png is not of the frame's size"):
        Inspector(small)


def test_evaluate_and_report_use_the_frame(tiled: Path, aligned: Path, tmp_path: Path) -> None:
    for run in (tiled, aligned):
        data = run.parent / "plates"
        kept = json.loads((run / "metrics.json").read_text("utf-8"))
        metrics = json.loads(blemish("evaluate", run, data, "--json").stdout)
        assert metrics["detection"] == kept["detection"]
        for name in ("pixel_auroc", "aupro", "defects_hit"):
            expected = kept["localisation"][name]["value"]
            assert metrics["localisation"][name]["value"] == pytest.approx(expected, abs=1e-6)
        report = json.loads(blemish("report", run, "--data", data, "-o", tmp_path / "r.html", "--json").stdout)
        command = report["repeat"]["command"] if "repeat" in report else str(report)
        assert ("--tile 96 --overlap 24 --roi bundle/roi.png" in command) == (run == tiled)
        assert ("--align" in command) == (run == aligned)
