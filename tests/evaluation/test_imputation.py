"""Imputation against grad-cam's ROAD and by hand, blending by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer  # type: ignore[import-untyped]

from blemish.evaluation.imputation import blend, from_normal, impute, inpaint, nearest, noisy

Pixels = npt.NDArray[np.uint8]


def drawn(seed: int, height: int = 40, width: int = 53) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def holes(kind: str, height: int = 40, width: int = 53) -> npt.NDArray[np.bool_]:
    random = np.random.default_rng(1)
    mask = np.zeros((height, width), bool)
    if kind == "scattered":
        mask = random.random((height, width)) < 0.6
    elif kind == "block":
        mask[5:30, 8:41] = True
    elif kind == "corner":
        mask[:25, :30] = True
    elif kind == "most":
        mask[:] = random.random((height, width)) > 0.02
    elif kind == "pixel":
        mask[39, 52] = True
    return mask


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # numpy's, of grad-cam's own code
@pytest.mark.parametrize("kind", ["scattered", "block", "corner", "most", "pixel", "none"])
def test_imputation_agrees_with_grad_cam(kind: str) -> None:
    image, mask = drawn(3), holes(kind)
    found = impute(image, mask, tolerance=1e-4)
    known = torch.from_numpy(~mask).float()
    tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
    if mask.any():
        expected = NoisyLinearImputer(noise=0.0)(tensor, known).numpy().transpose(1, 2, 0)
    else:
        expected = image.astype(np.float32)
    assert np.abs(found - expected).max() < 0.05
    assert (found[~mask] == image[~mask]).all()


def test_the_default_tolerance_is_below_the_noise() -> None:
    y, x = np.mgrid[:120, :120]
    image = np.repeat((127 + 100 * np.sin(x / 19) * np.cos(y / 23))[..., None], 3, axis=2)
    mask = np.zeros((120, 120), bool)
    mask[20:100, 30:90] = True
    difference = impute(image, mask) - impute(image, mask, tolerance=1e-4)
    assert np.sqrt((difference[mask] ** 2).mean()) < 2.55  # ROAD's own noise


def test_a_single_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    image = np.zeros((3, 3, 1))
    image[..., 0] = [[12, 24, 36], [48, 200, 60], [72, 84, 96]]
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    assert impute(image, mask)[1, 1, 0] == pytest.approx((12 + 36 + 72 + 96) / 12 + (24 + 48 + 60 + 84) / 6)
    corner = np.zeros((3, 3), bool)
    corner[0, 0] = True  # two direct neighbours and one diagonal: 2/5, 2/5, 1/5
    assert impute(image, corner)[0, 0, 0] == pytest.approx(0.4 * 24 + 0.4 * 48 + 0.2 * 200, abs=1e-3)


def test_with_nothing_known_all_is_the_mean() -> None:
    image = drawn(0)
    filled = inpaint(image, np.ones((40, 53), bool))
    assert (filled == np.round(image.mean((0, 1))).astype(np.uint8)).all()


def test_the_noise_has_its_size_and_lies_in_the_mask() -> None:
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = holes("block", 60, 60)
    found = noisy(image, mask, np.random.default_rng(0), 0.02)
    assert (found[~mask] == 100).all()
    assert found[mask].astype(float).std() == pytest.approx(5.1, rel=0.05)
    assert (found == noisy(image, mask, np.random.default_rng(0), 0.02)).all()
    assert (found != noisy(image, mask, np.random.default_rng(1), 0.02)).any()


def test_blending_replaces_the_mask_entirely_and_is_soft_outside() -> None:
    image, normal = np.full((200, 200, 3), 200, np.uint8), np.full((200, 200, 3), 100, np.uint8)
    mask = np.zeros((200, 200), bool)
    mask[80:120, 80:120] = True
    found = blend(image, mask, normal)
    assert (found[mask] == 100).all()
    row = found[100, 120:, 0].astype(int)
    assert 100 < row[0] < row[1] < row[2] < 200
    assert (row[8:] == 200).all()  # four deviations of 2 pixels away
    assert (blend(image, np.ones((200, 200), bool), normal) == normal).all()
    assert (blend(image, np.zeros((200, 200), bool), normal) == image).all()


def test_a_normal_image_of_another_size_is_enlarged() -> None:
    normal = np.array([[[0] * 3, [100] * 3]], np.uint8)  # 1 x 2
    found = blend(np.full((2, 4, 3), 7, np.uint8), np.ones((2, 4), bool), normal)
    assert found[0, :, 0].tolist() == [0, 25, 75, 100]


def test_the_normal_image_is_computed_once_for_each_image() -> None:
    asked = []

    def normal(image: Pixels) -> Pixels:
        asked.append(image)
        return np.zeros_like(image)

    impute, mask = from_normal(normal), np.ones((40, 53), bool)
    first, second = drawn(0), drawn(1)
    for image in (first, first, second, second, first):
        assert not impute(image, mask).any()
    assert len(asked) == 3


def test_the_nearest_good_image_is_found() -> None:
    goods = [np.full((50, 50, 3), level, np.uint8) for level in (10, 90, 200)]
    find = nearest(goods)
    assert find(np.full((50, 50, 3), 100, np.uint8)) is goods[1]
    assert find(np.full((50, 50, 3), 170, np.uint8)) is goods[2]
    with pytest.raises(ValueError, match="at least one"):
        nearest([])
