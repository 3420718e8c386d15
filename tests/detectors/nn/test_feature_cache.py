"""Cached features against running the trunk by hand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.detectors.nn.augment import turn, variants
from blemish.detectors.nn.feature_cache import cache_features
from blemish.detectors.nn.resampling import Resize
from blemish.images import ImageError, load_image
from blemish.types import BlemishError, Sample
from tests.support import write_image

SIZE = (6, 8)
AUGMENTATIONS = variants(("flip",), SIZE)


def trunk(images: Tensor) -> Sequence[Tensor]:
    """Two outputs of different sizes that depend on where things are."""
    return images * torch.arange(8), images[:, :2, 1:].cumsum(3).mean(2)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    random = np.random.default_rng(1)
    names = ["c.png", "a.png", "b.png", "e.png", "d.png"]
    return [Sample(write_image(tmp_path / name, random.integers(0, 256, (*SIZE, 3))), name, "good") for name in names]


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """Every file that was mapped to memory, and how many values it has."""
    mapped: list[tuple[Path, int]] = []
    real = torch.from_file

    def recording(name: str, *, shared: bool, size: int) -> Tensor:
        mapped.append((Path(name), size))
        return real(name, shared=shared, size=size)

    monkeypatch.setattr(torch, "from_file", recording)
    return mapped


def by_hand(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Row by row: each image in each of its variants. The images are read as they are, which `Resize` keeps."""
    images = [torch.tensor(load_image(sample.path)).permute(2, 0, 1).float()[None] for sample in samples]
    outputs = [trunk(turn(image, variant)) for image in images for variant in AUGMENTATIONS]
    return torch.cat([first for first, _ in outputs]), torch.cat([second for _, second in outputs])


@pytest.mark.parametrize("batch", [2, 5, 100])
@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_rows_are_the_trunks_outputs(samples: list[Sample], batch: int, memory: float) -> None:
    cache = cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=memory, batch=batch)
    assert cache.variants == 4
    for found, wanted in zip(cache.tensors, by_hand(samples), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-4)
        assert found.shape == wanted.shape
    assert cache.tensors[0].shape == (20, 3, 6, 8)


def test_rows_in_a_file_are_the_same_and_the_file_is_removed(
    samples: list[Sample], mapped: list[tuple[Path, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    inside = cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=1.0)
    assert not mapped
    outside = cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=0.0)
    assert len(mapped) == 2
    assert all(file.parent == folder for file, _ in mapped)
    assert not list(folder.iterdir())
    for one, other in zip(inside.tensors, outside.tensors, strict=True):
        assert torch.equal(one, other)


def test_only_what_is_too_large_goes_to_the_file(samples: list[Sample], mapped: list[tuple[Path, int]]) -> None:
    """Of float32, 20 x 3 x 6 x 8 values are 11,520 bytes and 20 x 2 x 8 are 1,280; each output has half of `memory`."""
    cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=2 * 11_520 / 2**30)
    assert mapped == []
    cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=2 * 11_519 / 2**30)
    assert [size for _, size in mapped] == [20 * 3 * 6 * 8]


def test_rows_in_any_order(samples: list[Sample], tmp_path: Path) -> None:
    cache = cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=1.0, batch=2)
    some = [samples[3], samples[0], samples[3]]
    rows = cache.rows(some)
    assert rows.tolist() == [12, 0, 12]
    wanted = by_hand(some)[0][::4]
    torch.testing.assert_close(cache.tensors[0][rows], wanted, rtol=1e-6, atol=1e-4)
    assert samples[4] in cache
    with pytest.raises(ImageError, match=r"f\.png cannot be read \(No such file"):
        cache.rows([Sample(tmp_path / "f.png", "f.png")])


def test_other_images_of_the_same_names_are_not_in_the_cache(samples: list[Sample], tmp_path: Path) -> None:
    """Also of the same size, and changed at the same time: images are known by their content, and so is a copy."""
    cache = cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=1.0)
    pixels = load_image(samples[0].path)
    assert Sample(write_image(tmp_path / "other/c.png", pixels), "another name") in cache
    one, two = (Sample(write_image(tmp_path / f"{i}/a.bmp", pixels ^ i), "a.bmp") for i in (0, 1))
    old = one.path.stat()
    os.utime(two.path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (two.path.stat().st_size, two.path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    cache = cache_features([one], Resize(*SIZE), trunk, AUGMENTATIONS, memory=1.0)
    assert one in cache
    assert two not in cache
    with pytest.raises(BlemishError, match=r"1.a\.bmp changed during training; .* train again"):
        cache.rows([one, two])


def test_a_file_that_changed_is_not_in_the_cache(samples: list[Sample]) -> None:
    cache = cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=1.0)
    path, content, before = samples[0].path, samples[0].path.read_bytes(), samples[0].path.stat()
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time as before
    assert samples[0] not in cache
    path.write_bytes(content)
    assert samples[0] in cache
    assert samples[1] in cache


def test_a_file_that_changes_while_the_features_are_computed_is_refused(samples: list[Sample]) -> None:
    other = write_image(samples[0].path.with_name("other.png"), load_image(samples[0].path))

    def changing(images: Tensor) -> Sequence[Tensor]:
        if other.exists():
            other.replace(samples[4].path)
        return trunk(images)

    with pytest.raises(BlemishError, match=r"d\.png changed during training"):
        cache_features(samples, Resize(*SIZE), changing, AUGMENTATIONS, memory=1.0, batch=1)


def test_progress_counts_batches(samples: list[Sample]) -> None:
    calls: list[tuple[str, int, int]] = []

    def progress(items, what, total):  # type: ignore[no-untyped-def]
        items = list(items)
        calls.append((what, total, len(items)))
        return iter(items)

    cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=1.0, batch=2, progress=progress)
    assert calls == [("features", 3, 3)]


def test_an_image_that_cannot_be_read(samples: list[Sample]) -> None:
    samples[3].path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"e\.png is not an image"):
        cache_features(samples, Resize(*SIZE), trunk, AUGMENTATIONS, memory=1.0, batch=2)
