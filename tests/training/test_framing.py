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
from blemish.images import load_image, load_mask
from blemish.inference.bundle import Frame
from blemish.inference.framing import Framing
from blemish.training.config import TrainConfig
from blemish.training.export import in_torch, predict
from blemish.training.framing import Seen, check, how_seen
from blemish.training.leave_one_out import leave_one_out
from blemish.training.pipeline import refuse, train
from blemish.types import Sample
from tests.framing import HEIGHT, SPOTS, WIDTH, plate, region, write_product
from tests.support import divided, refused, write_image


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_product(tmp_path_factory.mktemp("still") / "plates")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_product(tmp_path_factory.mktemp("moved") / "plates", moved=True)


SMALL = PatchCoreConfig(image_size=(64, 64))


def config_for(data: Path, **frame: Any) -> TrainConfig:
    return TrainConfig(data, data.parent / "run", **frame)


def checked(config: TrainConfig) -> None:
    refuse(config)
    check(config.frame_rule, config.settings.traits)


def prepared(config: TrainConfig) -> Seen:
    return how_seen(config.frame_rule, divided(config).split, SMALL, config.image_size)


def framed(seen: Seen) -> tuple[Framing, Frame]:
    assert seen.framing
    assert seen.frame
    return seen.framing, seen.frame


def test_without_options_there_is_no_frame(plates: Path, tmp_path: Path) -> None:
    config = config_for(plates)
    check(config.frame_rule, config.settings.traits)
    seen = prepared(config)
    assert (seen.framing, seen.frame, seen.warnings) == (None, None, ())
    assert seen.image_size == (64, 64)  # 160 x 240, as near as multiples of 32 come
    samples = divided(config).split.train
    assert seen.training_samples(samples, tmp_path, {}) == {sample.name: [sample] for sample in samples}
    assert not list(tmp_path.iterdir())


def test_the_detector_learns_from_the_tiles_that_inference_sees(plates: Path, tmp_path: Path) -> None:
    roi = write_image(tmp_path / "roi.png", region())
    config = config_for(plates, tile=96, overlap=24, roi=roi)
    seen = prepared(config)
    assert seen.image_size == (64, 64)
    split = divided(config).split
    samples_by_image = seen.training_samples(split.train[:2], tmp_path / "tiles", {split.train[0].name: "item"})
    first = split.train[0]
    training_samples = samples_by_image[first.name]
    assert [training_sample.name for training_sample in training_samples[:3]] == [
        f"{first.name}@{left},0" for left in (0, 72, 144)
    ]
    assert {training_sample.group for training_sample in training_samples} == {"item"}
    image = load_image(first.path)
    for training_sample, (left, top, right, bottom) in zip(training_samples, framed(seen)[0].boxes, strict=True):
        inside = region()[top:bottom, left:right, None] > 0
        expected = np.where(inside, image[top:bottom, left:right], np.uint8(128))
        np.testing.assert_array_equal(load_image(training_sample.path), expected)
    assert sum(map(len, samples_by_image.values())) == len(list((tmp_path / "tiles").iterdir())) == 12


def test_images_of_another_size_are_resized_with_a_warning(tmp_path: Path) -> None:
    data = write_product(tmp_path / "plates")
    write_image(data / "train/good/000.png", np.asarray(Image.fromarray(plate(0)[0]).resize((120, 80))))
    seen = prepared(config_for(data, tile=96, overlap=24))
    assert framed(seen)[1].size == (WIDTH, HEIGHT)
    assert seen.warnings[0].startswith("1 of 20 good images are not of 240 x 160 pixels")


def test_images_are_aligned_to_a_central_reference(moved: Path) -> None:
    seen = prepared(config_for(moved, align=True))
    frame = framed(seen)[1]
    assert frame.align == "ecc"
    assert 0.3 < frame.least_correlation < 0.5
    assert len(seen.poses) == 28
    assert not seen.unaligned
    aligned = np.stack(
        [framed(seen)[0].to_frame(load_image(moved / name), pose)[0] for name, pose in seen.poses.items()]
    )
    # Aligned plates vary less from image to image.
    spread = aligned[:, 40:120, 60:180].astype(float).std(0).mean()
    originals = np.stack([load_image(moved / name) for name in seen.poses])
    spread_before = originals[:, 40:120, 60:180].astype(float).std(0).mean()
    assert spread < 0.6 * spread_before


def test_images_that_cannot_be_aligned_are_named(tmp_path: Path) -> None:
    data = write_product(tmp_path / "plates", moved=True)
    random = np.random.default_rng(0)
    write_image(data / "test/spot/001.png", random.integers(0, 256, (HEIGHT, WIDTH, 3)))
    seen = prepared(config_for(data, align=True))
    assert seen.unaligned == {"test/spot/001.png"}
    assert seen.warnings == ("test/spot/001.png: cannot be aligned, so the verdict is 'error'; left out of the test.",)
    write_image(data / "train/good/004.png", random.integers(0, 256, (HEIGHT, WIDTH, 3)))
    with pytest.raises(BlemishError, match=r"^train/good/004\.png: cannot be aligned with the other images"):
        prepared(config_for(data, align=True))


def test_all_tiles_of_an_item_are_left_out_together(plates: Path, tmp_path: Path) -> None:
    """With every patch in the memory bank, scores would be zero if a tile's own patches were not left out."""
    config = config_for(plates, tile=96, overlap=24)
    seen = prepared(config)
    samples = list(divided(config).split.train)[:3]
    training_samples = seen.training_samples(samples, tmp_path, {})
    settings = PatchCoreConfig(image_size=(32, 32), random_weights=True, coreset=1.0, max_bank=100_000)
    detector = PatchCore(settings).fit(
        [training_sample for s in samples for training_sample in training_samples[s.name]]
    )
    scored = leave_one_out(detector, samples, seen=seen, samples=training_samples)
    assert scored.maps.shape == (3, *framed(seen)[1].map_size)
    assert scored.distances is not None
    assert scored.distances.max((1, 2, 3)).min() > 0.1
    # The same from the tiles of a detector that never saw the image.
    others = [tile for sample in samples[1:] for tile in training_samples[sample.name]]
    alone = predict(in_torch(PatchCore(settings).fit(others).graph()), training_samples[samples[0].name])
    assert alone.distances is not None
    np.testing.assert_allclose(scored.distances[0], alone.distances, rtol=0.02, atol=2e-3)


def test_impossible_frames_are_refused_before_the_work(plates: Path, tmp_path: Path) -> None:
    def sentence(*options: object) -> str:
        return refused("train", plates, "-o", tmp_path / "run", *options)

    assert "--tile 16 is too small" in sentence("--tile", 16)
    assert "--overlap 40 must be between 0 and half of --tile 64" in sentence("--tile", 64, "--overlap", 40)
    assert "A label says nothing about the tiles" in sentence("--tile", 64, "--overlap", 8, "--detector", "cam")
    assert "--folds cannot be combined with" in sentence("--align", "--detector", "cam", "--folds", 2)
    assert "there is no such file; --roi takes" in sentence("--roi", tmp_path / "none.png")
    assert "--tile 512 is no smaller than the images (240 x 160)" in sentence("--tile", 512)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_training_leaves_no_tiles(plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blemish.training.pipeline.export", stop)
    config = config_for(plates, tile=96, overlap=24)
    config = replace(config, out=tmp_path / "run", settings=PatchCoreConfig(max_bank=20))
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, image_size=(32, 32)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("detector", ["attention", "cam"])
def test_other_detectors_learn_from_framed_images(plates: Path, tmp_path: Path, detector: str) -> None:
    """Up to their graph in PyTorch, which the framing wraps as it does in inference."""
    from blemish.detectors.attention.detector import Attention
    from blemish.detectors.cam.detector import Cam
    from blemish.training.export import in_torch, predict

    roi = write_image(tmp_path / "roi.png", region())
    config = config_for(plates, roi=roi, **({"tile": 96, "overlap": 24} if detector == "attention" else {}))
    seen = prepared(config)
    split = divided(config).split
    spots = [s for s in split.test if s.label == "anomaly"]
    samples: list[Sample] = [*split.train[:4], *(spots if detector == "cam" else [])]
    training_samples = [s for tiles in seen.training_samples(samples, tmp_path / "made", {}).values() for s in tiles]
    detector_object: Any
    if detector == "attention":
        detector_object = Attention(AttentionConfig(image_size=(32, 32), epochs=1, validation=0)).fit(training_samples)
    else:
        detector_object = Cam(CamConfig(image_size=(32, 64), unfreeze=0, epochs=1))
        detector_object.fit(training_samples)
    prediction = predict(framed(seen)[0].wrap(in_torch(detector_object.graph())), spots)
    size = framed(seen)[1].map_size if detector == "attention" else (32, 64)
    assert prediction.maps.shape == (4, *size)
    if detector == "attention":
        assert prediction.reconstruction is not None
        assert prediction.reconstruction.shape == (4, *size, 3)
        assert prediction.reconstruction.dtype == np.uint8
    else:
        assert prediction.probabilities is not None


def test_masks_are_framed_as_their_images_are(plates: Path, tmp_path: Path) -> None:
    """Of a defective image, the tiles with a defect are learned from, with that part of the mask inside the region."""
    roi = write_image(tmp_path / "roi.png", region())
    seen = prepared(config_for(plates, tile=96, overlap=24, roi=roi))
    spots = [s for s in divided(config_for(plates)).split.test if s.label == "anomaly"]
    made = seen.training_samples(spots, tmp_path / "made", {})
    for number, sample in enumerate(spots):
        mask = (plate(0, SPOTS[number])[1] > 0) & (region() > 0)
        boxes = [box for box in framed(seen)[0].boxes if mask[box[1] : box[3], box[0] : box[2]].any()]
        assert [tile.name for tile in made[sample.name]] == [f"{sample.name}@{box[0]},{box[1]}" for box in boxes]
        for tile, (left, top, right, bottom) in zip(made[sample.name], boxes, strict=True):
            assert tile.mask
            np.testing.assert_array_equal(load_mask(tile.mask, (96, 96)), mask[top:bottom, left:right])
    without = [replace(sample, mask=None) for sample in spots]
    assert not any(seen.training_samples(without, tmp_path / "word", {}).values())


def test_defects_outside_the_region_of_interest_are_not_learned_from(plates: Path, tmp_path: Path) -> None:
    blank = region() & (plate(0, SPOTS[0])[1] == 0)
    config = config_for(plates, roi=write_image(tmp_path / "roi.png", blank.astype(np.uint8) * np.uint8(255)))
    split = divided(config).split
    spots = tuple(replace(sample, split="train") for sample in split.test if sample.label == "anomaly")
    seen = how_seen(config.frame_rule, replace(split, train=(*split.train, *spots)), SMALL)
    made = seen.training_samples(spots, tmp_path / "made", {})
    assert made[spots[0].name] == []
    assert f"{spots[0].name}: all defects lie outside the region of interest, so they are left out" in " ".join(
        seen.warnings
    )
    for sample, spot in zip(spots[1:], SPOTS[1:], strict=True):
        assert len(made[sample.name]) == bool((plate(0, spot)[1].astype(bool) & blank.astype(bool)).any())


def test_an_aligned_mask_lies_on_its_defect(moved: Path, tmp_path: Path) -> None:
    config = config_for(moved, align=True)
    seen = prepared(config)
    spots = [s for s in divided(config).split.test if s.label == "anomaly" and s.name not in seen.unaligned]
    made = seen.training_samples(spots, tmp_path / "made", {})
    assert len(spots) >= 3
    for sample in spots:
        (whole,) = made[sample.name]
        assert whole.mask
        bright = load_image(whole.path)[..., 0] > 220
        mask = load_mask(whole.mask, bright.shape)
        assert (bright & mask).sum() > 0.8 * mask.sum() > 0
        assert (bright & ~mask).sum() < 0.2 * mask.sum()


def test_word_only_defects_cannot_say_which_tile_is_defective(plates: Path, tmp_path: Path) -> None:
    config = config_for(plates, tile=96, overlap=24)
    split = divided(config).split
    spots = tuple(replace(sample, mask=None, split="train") for sample in split.test if sample.label == "anomaly")
    seen = how_seen(config.frame_rule, replace(split, train=(*split.train, *spots)), SMALL)
    assert "4 defective training images have no mask, so which of their tiles are defective is not known" in " ".join(
        seen.warnings
    )


def test_a_defective_image_that_cannot_be_aligned_is_left_out_of_learning(moved: Path, tmp_path: Path) -> None:
    config = config_for(moved, align=True)
    split = divided(config).split
    noise = write_image(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    lost = Sample(noise, "bad/noise.png", "anomaly", "lost")
    seen = how_seen(config.frame_rule, replace(split, train=(*split.train, lost)), SMALL)
    assert "bad/noise.png: cannot be aligned; left out of learning." in seen.warnings
    made = seen.training_samples([*split.train[:2], lost], tmp_path / "made", {})
    assert list(made) == [sample.name for sample in split.train[:2]]
