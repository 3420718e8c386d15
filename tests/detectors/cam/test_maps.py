"""Class activation maps by hand, against pytorch-grad-cam and captum, and by their own completeness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam  # type: ignore[import-untyped]
import torch
from captum.attr import LayerGradCam  # type: ignore[import-untyped]
from torch import Tensor, nn

from blemish.detectors.cam.maps import METHODS, GradientMap, cam
from blemish.detectors.nn.resampling import Resize
from blemish.training.export import export, in_onnxruntime
from blemish.types import BlemishError

ORACLES: dict[str, Any] = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "layercam": pytorch_grad_cam.LayerCAM,
    "hirescam": pytorch_grad_cam.HiResCAM,
}


class Flat(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores[:, 0]


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(3)
    dense = nn.Linear(8, 1)
    dense.weight.data *= 20  # so that the 1e-6 of Grad-CAM++ is negligible beside the gradients
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.3)),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        dense,
    ).eval()


def tail_after(layers: nn.Sequential, layer: int) -> nn.Sequential:
    return nn.Sequential(*layers[layer + 1 :], Flat())


def ours(layers: nn.Sequential, layer: int, method: str, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, scores, maps."""
    with torch.inference_mode():
        activations = layers[: layer + 1](images)
        scores, maps = GradientMap(tail_after(layers, layer), activations, method)(activations)
    return activations, scores, maps


A = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [-1.0, 2.0]]]])
G = torch.tensor([[[[1.0, -1.0], [2.0, 0.0]], [[0.5, 0.0], [-0.5, -1.0]]]])
BY_HAND: dict[str, list[list[float]]] = {
    # 4 (0.5 A_0 - 0.25 A_1)
    "gradcam": [[2, 3], [7, 6]],
    "cam": [[2, 3], [7, 6]],
    # 4 (G_0 A_0 + G_1 A_1)
    "hirescam": [[4, -8], [26, -8]],
    # 4 ((1, 0; 2, 0) A_0 + (0.5, 0; 0, 0) A_1)
    "layercam": [[4, 0], [24, 0]],
    # w_0 = 1 * 1 / (2 + 10) + 2 * 4 / (8 + 80) = 23 / 132, w_1 = 0.5 * 0.25 / (0.5 + 0.25) = 1 / 6
    "gradcam++": [[23 / 33, 46 / 33 + 2 / 3], [69 / 33 - 2 / 3, 92 / 33 + 4 / 3]],
}


@pytest.mark.parametrize("method", METHODS)
def test_two_channels_of_four_cells_by_hand(method: str) -> None:
    np.testing.assert_allclose(METHODS[method](A, G)[0], BY_HAND[method], rtol=1e-5)


def test_cam_by_hand() -> None:
    np.testing.assert_array_equal(cam(A, torch.tensor([2.0, -1.0]))[0], [[2, 3], [7, 6]])


@pytest.mark.parametrize("method", ["gradcam++", "layercam"])
def test_no_positive_gradient_gives_an_empty_map(method: str) -> None:
    assert METHODS[method](A, -G.abs()).abs().max() == 0
    assert METHODS[method](A, G * 0).abs().max() == 0


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("method", ORACLES)
def test_equals_pytorch_grad_cam(layers: nn.Sequential, method: str, layer: int) -> None:
    images = torch.randn(3, 3, 12, 10)
    oracle = ORACLES[method](model=layers, target_layers=[layers[layer]])
    with oracle:
        taps = oracle.activations_and_grads
        taps(images).sum().backward()
        activations, gradients = taps.activations[0].numpy(), taps.gradients[0].numpy()
        wanted = oracle.get_cam_image(images, layers[layer], None, activations, gradients, False)
    _, _, maps = ours(layers, layer, method, images)
    cells = maps.shape[1] * maps.shape[2]
    assert wanted.min() < 0 < wanted.max()  # both signs occur
    np.testing.assert_allclose(maps / cells, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("layer", [0, 1])
def test_gradcam_equals_captum(layers: nn.Sequential, layer: int) -> None:
    images = torch.randn(3, 3, 12, 10)
    oracle = LayerGradCam(layers, layers[layer])
    wanted = oracle.attribute(images, target=0, relu_attributions=False).detach()[:, 0]
    _, _, maps = ours(layers, layer, "gradcam", images)
    cells = maps.shape[1] * maps.shape[2]
    np.testing.assert_allclose(maps / cells, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("method", ["cam", "gradcam", "hirescam"])
def test_after_global_average_pooling_all_are_zhous_cam_with_the_score_as_mean(
    layers: nn.Sequential, method: str
) -> None:
    activations, scores, maps = ours(layers, 1, method, torch.randn(4, 3, 12, 10))
    dense = layers[4]
    assert isinstance(dense, nn.Linear)
    row = dense.weight[0].detach()
    zhou = np.einsum("k,nkij->nij", row.numpy(), activations.numpy())
    np.testing.assert_allclose(cam(activations, row), zhou, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps, zhou, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps.mean((1, 2)), scores - dense.bias.item(), rtol=1e-4, atol=1e-5)


def test_earlier_layers_and_other_methods_differ(layers: nn.Sequential) -> None:
    images = torch.randn(2, 3, 12, 10)
    at = {method: ours(layers, 0, method, images)[2] for method in ORACLES}
    names = list(at)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert (at[one] - at[other]).abs().max() > 0.1 * at[one].abs().max(), (one, other)


def test_a_whole_detector_through_the_exporter(layers: nn.Sequential, tmp_path: Path) -> None:
    """uint8 images of any size and number -> scores and maps, in onnxruntime as in torch."""

    class Detector(nn.Module):
        outputs = ("scores", "maps")
        gated = True

        def __init__(self) -> None:
            super().__init__()
            self.resize, self.trunk = Resize(16, 12), layers[:1]
            self.map = GradientMap(tail_after(layers, 0), torch.randn(1, 6, 16, 12), "gradcam++")

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            scores, maps = self.map(self.trunk(self.resize(images) / 100 - 1))
            return scores, maps

    detector = Detector().eval()
    export(detector, tmp_path / "detector.onnx")
    run = in_onnxruntime(tmp_path / "detector.onnx")
    for shape in [(1, 20, 30, 3), (3, 16, 12, 3)]:
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with torch.inference_mode():
            scores, maps = detector(torch.tensor(images))
        prediction = run(images)
        np.testing.assert_allclose(prediction.scores, scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(prediction.maps, maps, rtol=1e-3, atol=1e-4 * float(maps.abs().max()))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(BlemishError, match="'scorecam'; take one of cam, gradcam"):
        GradientMap(nn.Flatten(), torch.zeros(1, 1, 2, 2), "scorecam")
