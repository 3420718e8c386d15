import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d

from blemish.detectors.nn.resampling import Enlarge, Resize, blur_weights, enlarge_weights, gaussian, resize_weights


@pytest.mark.parametrize("size", [(40, 31), (64, 64), (100, 131), (257, 90), (1, 7)])
def test_resize_equals_torch_with_antialiasing(size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    expected = F.interpolate(images.permute(0, 3, 1, 2).double(), (64, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(Resize(64, 48)(images).double(), expected, atol=2e-3, rtol=0)


def test_resize_weights_by_hand() -> None:
    # Halving: each output pixel is a triangle over four inputs, 1/8 3/8 3/8 1/8, cut and renormalised at the border.
    expected = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    torch.testing.assert_close(resize_weights(4, 2), expected)
    torch.testing.assert_close(resize_weights(3, 3), torch.eye(3))


def test_enlarging_keeps_a_level_map_level_and_is_interpolation_without_sigma() -> None:
    weights = enlarge_weights(8, 64, 4.0)
    torch.testing.assert_close(weights.sum(1), torch.ones(64))
    values = torch.rand(1, 1, 8)
    plain = (enlarge_weights(8, 64, 0) @ values[0, 0])[None, None]
    torch.testing.assert_close(plain, F.interpolate(values, 64, mode="linear"))


def test_a_map_is_enlarged_down_and_across() -> None:
    cells = torch.rand(2, 3, 4)
    plain = F.interpolate(cells[:, None], (12, 24), mode="bilinear")[:, 0]
    torch.testing.assert_close(Enlarge((3, 4), (12, 24), 0.0)(cells), plain)


def test_blur_weights_by_hand() -> None:
    window = torch.tensor([0.25, 0.5, 0.25])
    middle = [[0.25, 0.5, 0.25, 0], [0, 0.25, 0.5, 0.25]]
    assert blur_weights(4, window).tolist() == [[0.75, 0.25, 0, 0], *middle, [0, 0, 0.25, 0.75]]
    assert blur_weights(4, window, repeat_edge=False).tolist() == [[0.5, 0.5, 0, 0], *middle, [0, 0, 0.5, 0.5]]


@pytest.mark.parametrize(("repeat_edge", "mode"), [(True, "reflect"), (False, "mirror")])
@pytest.mark.parametrize("size", [6, 9, 40])  # of a window of 11
def test_blur_weights_equal_scipys_gaussian(size: int, repeat_edge: bool, mode: str) -> None:
    values = np.random.default_rng(size).random(size)
    window = gaussian(5, 1.5, torch.float64)
    found = blur_weights(size, window, repeat_edge=repeat_edge).numpy() @ values
    np.testing.assert_allclose(found, gaussian_filter1d(values, 1.5, mode=mode, radius=5), rtol=1e-12)


def test_the_blur_of_a_map_is_scipys_gaussian_with_mirrored_borders() -> None:
    values = torch.rand(8, dtype=torch.float64)
    linear = F.interpolate(values[None, None], 64, mode="linear")[0, 0].numpy()
    expected = gaussian_filter1d(linear, 4.0, mode="reflect", truncate=4.0)
    torch.testing.assert_close((enlarge_weights(8, 64, 4.0).double() @ values).numpy(), expected, atol=1e-6, rtol=0)
