"""The drawn images: reproducible and varied, with patterns that have the properties they claim."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools import patterns, procedural

SMALL = 48


def test_a_seed_gives_the_same_image_and_another_seed_another() -> None:
    images = [procedural.image(seed, SMALL) for seed in range(40)]
    assert all(p.shape == (SMALL, SMALL, 3) and p.dtype == np.uint8 for p in images)
    for seed in (0, 7, 39):
        assert np.array_equal(images[seed], procedural.image(seed, SMALL))
    assert len({hashlib.sha256(p.tobytes()).digest() for p in images}) == len(images)


def test_images_are_varied_in_colour_light_and_contrast() -> None:
    images = np.stack([procedural.image(seed, SMALL) for seed in range(60)]).astype(float)
    grey = np.ptp(images, axis=3).max((1, 2)) == 0
    assert 0.1 < grey.mean() < 0.8
    assert np.ptp(images.mean((1, 2, 3))) > 100
    contrast = images.std((1, 2, 3))
    assert contrast.min() < 15
    assert contrast.max() > 60
    assert (contrast > 0.5).all()


@pytest.mark.parametrize("pattern", patterns.PATTERNS, ids=lambda p: p.__name__)
def test_a_pattern_stays_in_its_range_and_depends_on_the_random_numbers(
    pattern: Callable[[np.random.Generator, int], patterns.Field],
) -> None:
    fields = [pattern(np.random.default_rng(seed), SMALL) for seed in range(6)]
    for field in fields:
        assert field.shape == (SMALL, SMALL)
        assert field.dtype == np.float32
        assert field.min() >= 0
        assert field.max() <= 1
    assert len({f.tobytes() for f in fields}) >= 5


def test_noise_is_stretched_along_its_angle() -> None:
    field = patterns.noise(np.random.default_rng(0), 64, 1.5, stretched=30, angle=0.0)
    along, across = np.abs(np.diff(field, axis=1)).mean(), np.abs(np.diff(field, axis=0)).mean()
    assert across > 3 * along


def test_noise_has_the_requested_spectrum() -> None:
    field = patterns.noise(np.random.default_rng(1), 256, 1.5)
    power = np.abs(np.fft.rfft2(field - field.mean()))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    used = (frequency > 0.02) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.05)


def test_relief_is_brighter_on_the_side_of_the_lamp() -> None:
    """A dome under a lamp is bright on one side and dark on the other; a flat relief leaves a uniform image."""
    dome = np.clip(1 - np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) ** 2, 0, 1).astype(np.float32)
    paint = np.full((64, 64, 3), 0.5, np.float32)
    lit = procedural.lit(np.random.default_rng(0), paint, dome)[..., 0]
    assert np.ptp(lit) > 0.05
    assert not np.allclose(lit, lit[::-1, ::-1], atol=0.02)
    flat = procedural.lit(np.random.default_rng(0), paint, np.full((64, 64), 0.5, np.float32))
    assert np.ptp(flat) < 1e-6


@pytest.mark.parametrize(("field", "expected"), [([2.0, 4.0, 6.0], [0.0, 0.5, 1.0]), ([3.0, 3.0], [0.5, 0.5])])
def test_stretch_maps_to_0_to_1(field: list[float], expected: list[float]) -> None:
    assert patterns.stretch(np.array(field, np.float32)).tolist() == expected
