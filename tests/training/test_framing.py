import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blemish import BlemishError
from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore
from blemish.images import load_image
from blemish.inference.bundle import Frame
from blemish.inference.framing import Framing
from blemish.training.config import TrainConfig
from blemish.training.framing import Seen, check, how_seen, read_roi
from blemish.training.leave_one_out import leave_one_out
from blemish.training.pipeline import refuse, train
from blemish.types import Sample
from tests.framing import HEIGHT, WIDTH, plate, region, write_product
from tests.support import divided, refused, write_image


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_product(tmp_path_factory.mktemp("still") / "plates")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_product(tmp_path_factory.mktemp("moved") / "plates", moved=True)


SMALL = PatchCoreConfig(image_size=(64, 64))


def asked(data: Path, **frame: Any) -> TrainConfig:
    return TrainConfig(data, data.parent / "run", **frame)


def checked(config: TrainConfig) -> None:
    refuse(config)
    check(config.frame_rule, config.settings.traits)


def prepared(config: TrainConfig) -> Seen:
    return how_seen(config.frame_rule, divided(config).split, SMALL, config.image_size)


def framed(found: Seen) -> tuple[Framing, Frame]:
    assert found.framing
    assert found.frame
    return found.framing, found.frame


def test_nothing_is_framed_where_nothing_was_asked(plates: Path, tmp_path: Path) -> None:
    config = asked(plates)
    check(config.frame_rule, config.settings.traits)
    found = prepared(config)
    assert (found.framing, found.frame, found.warnings) == (None, None, ())
    assert found.image_size == (64, 64)  # 160 x 240, as near as multiples of 32 come
    samples = divided(config).split.train
    assert found.training_samples(samples, tmp_path, {}) == {sample.name: [sample] for sample in samples}
    assert not list(tmp_path.iterdir())


def test_the_detector_learns_from_tiles_of_what_the_line_sees(plates: Path, tmp_path: Path) -> None:
    roi = write_image(tmp_path / "roi.png", region())
    config = asked(plates, tile=96, overlap=24, roi=roi)
    found = prepared(config)
    assert found.image_size == (64, 64)
    split = divided(config).split
    taught = found.training_samples(split.train[:2], tmp_path / "tiles", {split.train[0].name: "item"})
    first = split.train[0]
    training_samples = taught[first.name]
    assert [training_sample.name for training_sample in training_samples[:3]] == [
        f"{first.name}@{left},0" for left in (0, 72, 144)
    ]
    assert {training_sample.group for training_sample in training_samples} == {"item"}
    image = load_image(first.path)
    for training_sample, (left, top, right, bottom) in zip(training_samples, framed(found)[0].boxes, strict=True):
        inside = region()[top:bottom, left:right, None] > 0
        expected = np.where(inside, image[top:bottom, left:right], np.uint8(128))
        np.testing.assert_array_equal(load_image(training_sample.path), expected)
    assert sum(map(len, taught.values())) == len(list((tmp_path / "tiles").iterdir())) == 12


def test_images_of_another_size_are_resized_and_told(tmp_path: Path) -> None:
    data = write_product(tmp_path / "plates")
    write_image(data / "train/good/000.png", np.asarray(Image.fromarray(plate(0)[0]).resize((120, 80))))
    found = prepared(asked(data, tile=96, overlap=24))
    assert framed(found)[1].size == (WIDTH, HEIGHT)
    assert found.warnings[0].startswith("1 of 20 good images are not of 240 x 160 pixels")


def test_the_reference_lies_in_the_middle_and_poses_lie_on_it(moved: Path) -> None:
    found = prepared(asked(moved, align=True))
    frame = framed(found)[1]
    assert frame.align == "ecc"
    assert 0.3 < frame.least_correlation < 0.5
    assert len(found.poses) == 28
    assert not found.unaligned
    still = np.stack(
        [framed(found)[0].to_frame(load_image(moved / name), pose)[0] for name, pose in found.poses.items()]
    )
    # Aligned plates are alike: at the reference's own contrast hardly anything moves.
    spread = still[:, 40:120, 60:180].astype(float).std(0).mean()
    loose = np.stack([load_image(moved / name) for name in found.poses])[:, 40:120, 60:180].astype(float).std(0).mean()
    assert spread < 0.6 * loose


def test_images_that_cannot_be_aligned_are_named(tmp_path: Path) -> None:
    data = write_product(tmp_path / "plates", moved=True)
    random = np.random.default_rng(0)
    write_image(data / "test/spot/001.png", random.integers(0, 256, (HEIGHT, WIDTH, 3)))
    found = prepared(asked(data, align=True))
    assert found.unaligned == {"test/spot/001.png"}
    assert found.warnings == ("test/spot/001.png: cannot be aligned, so the verdict is 'error'; left out of the test.",)
    write_image(data / "train/good/004.png", random.integers(0, 256, (HEIGHT, WIDTH, 3)))
    with pytest.raises(BlemishError, match=r"^train/good/004\.png: cannot be aligned with the other images"):
        prepared(asked(data, align=True))


def test_all_tiles_of_an_item_are_left_out_together(plates: Path, tmp_path: Path) -> None:
    """A tile's own entries would make it nearest to itself: with every patch kept, scores would be zero."""
    config = asked(plates, tile=96, overlap=24)
    found = prepared(config)
    samples = list(divided(config).split.train)[:3]
    training_samples = found.training_samples(samples, tmp_path, {})
    settings = PatchCoreConfig(image_size=(32, 32), random_weights=True, coreset=1.0, max_bank=100_000)
    detector = PatchCore(settings).fit(
        [training_sample for s in samples for training_sample in training_samples[s.name]]
    )
    scored = leave_one_out(detector, samples, ["", "", ""], seen=found, samples=training_samples)
    assert scored.maps.shape == (3, *framed(found)[1].map_size)
    assert scored.scores.min() > 0.1
    assert scored.neighbours is not None
    images = np.array([name.partition("@")[0] for name in detector.sources().names])
    for sample, entries in zip(samples, scored.neighbours, strict=True):
        assert sample.name not in images[detector.sources().table[entries.ravel(), 0]]
    both = leave_one_out(detector, samples, ["a", "a", ""], seen=found, samples=training_samples)
    assert both.scores[0] >= scored.scores[0]


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_a_region_is_read_from_polygons_and_from_a_mask(tmp_path: Path, suffix: str) -> None:
    expected = np.zeros((20, 30), bool)
    expected[2:11, 4:25] = True
    expected[5:8, 10:16] = False
    file = tmp_path / f"roi.{suffix}"
    if suffix == "png":
        write_image(file, expected.astype(np.uint8) * 255)
    else:
        box = [[4, 2], [24, 2], [24, 10], [4, 10]]
        file.write_text(json.dumps({"polygons": [box], "holes": [[[10, 5], [15, 5], [15, 7], [10, 7]]]}), "utf-8")
    np.testing.assert_array_equal(read_roi(file, (30, 20)), expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", r'must be \{"polygons"'),
        ('{"polygons": []}', r'must be \{"polygons"'),
        ('{"polygons": [[[0, 0], [5, 5], [0, 5]]], "circles": []}', r'must be \{"polygons"'),
        ('{"polygons": [[[0, 0], [5, 5]]]}', "at least three points"),
        ('{"polygons": [["a", "b", "c"]]}', "at least three points"),
        ('{"polygons": 7}', "at least three points"),
        ('{"polygons": [[[0, 0], [NaN, 5], [0, 5]]]}', "at least three points"),
        ('{"polygons": [[[40, 40], [50, 50], [40, 50]]]}', "nothing of the images is inside"),
        ('{"polygons": [[[-1, -1], [31, -1], [31, 21], [-1, 21]]]}', "the whole image is inside"),
    ],
)
def test_polygons_that_are_none_are_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "roi.json"
    file.write_text(content, "utf-8")
    with pytest.raises(BlemishError, match=said) as refusal:
        read_roi(file, (30, 20))
    assert str(refusal.value).startswith(str(file))


def test_masks_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=r"has 8 x 8 pixels, the images 30 x 20"):
        read_roi(write_image(tmp_path / "a.png", np.full((8, 8), 255)), (30, 20))
    with pytest.raises(BlemishError, match="nothing of the images is inside"):
        read_roi(write_image(tmp_path / "b.png", np.zeros((20, 30))), (30, 20))
    with pytest.raises(BlemishError, match="the whole image is inside"):
        read_roi(write_image(tmp_path / "c.png", np.full((20, 30), 255)), (30, 20))
    (tmp_path / "d.png").write_bytes(b"broken")
    with pytest.raises(BlemishError, match=r"d\.png is not an image"):
        read_roi(tmp_path / "d.png", (30, 20))


def test_what_cannot_be_had_is_refused_before_the_work(plates: Path, tmp_path: Path) -> None:
    def said(*options: object) -> str:
        return refused("train", plates, "-o", tmp_path / "run", *options)

    assert "--tile 16 is too small" in said("--tile", 16)
    assert "--overlap 40 must be between 0 and half of --tile 64" in said("--tile", 64, "--overlap", 40)
    assert "A label says nothing about the tiles" in said("--tile", 64, "--overlap", 8, "--detector", "cam")
    assert "--folds knows neither" in said("--align", "--detector", "cam", "--folds", 2)
    assert "there is no such file; --roi takes" in said("--roi", tmp_path / "none.png")
    assert "--tile 512 is no smaller than the images (240 x 160)" in said("--tile", 512)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_training_leaves_no_tiles(plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blemish.training.pipeline.export", stop)
    config = replace(asked(plates, tile=96, overlap=24), out=tmp_path / "run", settings=PatchCoreConfig(max_bank=20))
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, image_size=(32, 32)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("detector", ["attention", "cam"])
def test_other_detectors_learn_from_what_a_frame_makes(plates: Path, tmp_path: Path, detector: str) -> None:
    """As far as their graph in PyTorch, which the frame runs over as it does on the line."""
    from blemish.detectors.attention.detector import Attention
    from blemish.detectors.cam.detector import Cam
    from blemish.training.export import in_torch, predict

    roi = write_image(tmp_path / "roi.png", region())
    config = asked(plates, roi=roi, **({"tile": 96, "overlap": 24} if detector == "attention" else {}))
    found = prepared(config)
    parts = divided(config).split
    spots = [s for s in parts.test if s.label == "anomaly"]
    samples: list[Sample] = [*parts.train[:4], *(spots if detector == "cam" else [])]
    training_samples = [one for each in found.training_samples(samples, tmp_path / "made", {}).values() for one in each]
    made: Any
    if detector == "attention":
        made = Attention(AttentionConfig(image_size=(32, 32), epochs=1, validation=0)).fit(training_samples)
    else:
        made = Cam(CamConfig(image_size=(32, 64), unfreeze=0, epochs=1))
        made.fit(training_samples)
    said = predict(framed(found)[0].wrap(in_torch(made.graph())), spots)
    size = framed(found)[1].map_size if detector == "attention" else (32, 64)
    assert said.maps.shape == (4, *size)
    if detector == "attention":
        assert said.reconstruction is not None
        assert said.reconstruction.shape == (4, *size, 3)
        assert said.reconstruction.dtype == np.uint8
    else:
        assert said.probabilities is not None
