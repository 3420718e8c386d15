"""Gradient attention: against plain loops, captum and autograd, and as an exported graph against torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam  # type: ignore[import-untyped]
from torch import Tensor, nn

from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.attention.graph import (
    AttentionGraph,
    LayerAttention,
    Learner,
    attention,
    attention_loss,
    gradients,
    patch_layer,
)
from blemish.detectors.attention.losses import Residual
from blemish.detectors.attention.models import MODELS, Autoencoder, build
from blemish.detectors.nn.resampling import Enlarge, Resize
from blemish.training.export import export, in_onnxruntime
from blemish.types import BlemishError
from tests.detectors.attention.test_models import perturbed, random_images, weights

__all__ = ["weights"]  # a fixture


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_attention(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """One image's `(K, h, w)` each -> `(h, w)`: Jiang, Xue & Zou 2023, section III, cell by cell."""
    channels, height, width = features.shape
    total = 0.0
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                total += gradient[k, i, j] ** 2
    size = (total / (channels * height * width)) ** 0.5
    found = np.zeros((height, width))
    for k in range(channels):
        weight = sum(gradient[k, i, j] / size for i in range(height) for j in range(width)) / (height * width)
        for i in range(height):
            for j in range(width):
                found[i, j] += abs(weight * features[k, i, j]) / channels
    return found


def test_attention_by_plain_loops() -> None:
    features, gradient = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1) * torch.tensor([1, 1e3]).view(2, 1, 1, 1)
    wanted = [slow_attention(*pair) for pair in zip(features.double().numpy(), gradient.double().numpy(), strict=True)]
    found = attention(features, gradient)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert found.min() >= 0
    np.testing.assert_allclose(attention(features, 7 * gradient), wanted, rtol=1e-4)  # an image's own rms
    assert attention(features, 0 * gradient).abs().max() == 0


def test_published_weights_are_constants_and_the_batchs() -> None:
    """By the batch's root mean square, and nothing is differentiated through them."""
    features, gradient = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1) * torch.tensor([1, 1e3]).view(2, 1, 1, 1)
    weights = (gradient.double() / gradient.double().square().mean().sqrt()).mean((2, 3), keepdim=True)
    wanted = (weights * features).abs().mean(1)
    features.requires_grad_()
    gradient.requires_grad_()
    found = attention(features, gradient, published=True)
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-4)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert gradient.grad is None
    assert features.grad is not None
    np.testing.assert_allclose(features.grad, (weights.abs() * features.sign() / 3).detach(), rtol=1e-4)


def test_where_the_gradient_cancels_all_channels_weigh_the_same() -> None:
    net = build("study", (64, 64))
    features = numbers(2, 64, 2, 2)
    found = LayerAttention(net, 21, features.shape, 128)(features)
    torch.testing.assert_close(found, features.abs().sum(1) / 64)
    other = numbers(2, 64, 2, 2).relu()
    assert not torch.allclose(LayerAttention(net, 23, other.shape, 128)(other), other.abs().mean(1))


def test_attention_of_each_latent_number_is_averaged() -> None:
    features, gradient = numbers(2, 3, 4, 5), numbers(2, 6, 3, 4, 5, seed=1)
    wanted = [
        np.mean([slow_attention(one, of_number) for of_number in slopes], 0)
        for one, slopes in zip(features.double().numpy(), gradient.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(attention(features, gradient), wanted, rtol=1e-4)


def test_gradients_of_each_number_one_at_a_time() -> None:
    net = perturbed(build("vae", (32, 48), width=4, latent=5))
    code, outputs, _ = net.encode(random_images(2, (32, 48)), (2, 8))
    latent = net.latent(code)
    together = gradients(latent, outputs, each=True)
    summed = gradients(latent, outputs, each=False)
    for features, found, total in zip(outputs, together, summed, strict=True):
        assert found.shape == (2, 5, *features.shape[1:])
        for image in range(2):
            for number in range(5):
                (one,) = torch.autograd.grad(latent[image, number], features, retain_graph=True)
                torch.testing.assert_close(found[image, number], one[image], rtol=1e-4, atol=1e-7)
                assert one[1 - image].abs().max() == 0
        torch.testing.assert_close(total, found.sum(1), rtol=1e-4, atol=1e-6)
        assert found.requires_grad
        assert total.requires_grad


class LatentSum(nn.Module):
    """Images -> `(N, 1)`, as captum needs its target."""

    def __init__(self, net: Autoencoder) -> None:
        super().__init__()
        self.encoder, self.code = net.encoder, net.code

    def forward(self, images: Tensor) -> Tensor:
        code: Tensor = self.code(self.encoder(images))
        return code.sum(1, keepdim=True)


@pytest.mark.parametrize(("width", "layer"), [(2, 21), (2, 7), (4, 2)])
def test_the_weights_are_captums(width: int, layer: int) -> None:
    net = perturbed(build("unet", (32, 48), width=width)).eval()
    images = random_images(3, (32, 48))
    module = LatentSum(net)
    wanted = LayerGradCam(module, module.encoder[layer]).attribute(images, target=0, relu_attributions=False)
    assert isinstance(wanted, Tensor)
    wanted = wanted.detach()[:, 0]
    code, (features,), _ = net.encode(images, (layer,))
    (slope,) = torch.autograd.grad(code.sum(), features)
    rms = slope.square().mean((1, 2, 3)).sqrt().view(3, 1, 1)
    # The absolute weight of a channel: the attention where that channel is 1 and all others are 0.
    size = features.shape[1]
    weights = torch.stack(
        [size * attention(torch.eye(size)[k].view(1, size, 1, 1).expand_as(slope), slope) for k in range(size)], 1
    )
    signed = weights * slope.sum((2, 3), keepdim=True).sign()
    found = rms * (signed * features).sum(1)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert wanted.abs().max() > 0


def test_the_loss_by_hand() -> None:
    found = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[4.0, 4.0], [4.0, 4.0]]])
    all_good = torch.ones(2, 2, 2)
    assert attention_loss(found, all_good, "mean").tolist() == [3, 4]
    deviation = ((4 + 1 + 0 + 9) / 4) ** 0.5
    np.testing.assert_allclose(attention_loss(found, all_good, "mean-std"), [3 - deviation / 2, 4], rtol=1e-5)
    spared = all_good.clone()
    spared[0, 1, 1], spared[0, 0, 0] = 0, 0.5  # one cell corrupted, and one half
    mean = (0.5 * 1 + 2 + 3) / 2.5
    np.testing.assert_allclose(attention_loss(found, spared, "mean"), [mean, 4], rtol=1e-6)
    deviation = ((0.5 * (1 - mean) ** 2 + (2 - mean) ** 2 + (3 - mean) ** 2) / 2.5) ** 0.5
    np.testing.assert_allclose(attention_loss(found, spared, "mean-std"), [mean - deviation / 2, 4], rtol=1e-5)
    other = found.clone()
    other[0, 1, 1] = 1000
    torch.testing.assert_close(attention_loss(other, spared, "mean-std"), attention_loss(found, spared, "mean-std"))
    assert attention_loss(found, torch.zeros(2, 2, 2), "mean").tolist() == [0, 0]  # everything is corrupted


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
@pytest.mark.parametrize("flat", [False, True])
def test_the_losss_gradient_is_finite_and_equals_finite_differences(kind: str, flat: bool) -> None:
    found = (torch.ones(1, 2, 3) if flat else 1 + numbers(1, 2, 3).abs()).double().requires_grad_()
    spared = torch.tensor([[[1.0, 0.5, 1.0], [0.0, 1.0, 0.25]]]).double()
    attention_loss(found, spared, kind).sum().backward()  # type: ignore[no-untyped-call]
    assert found.grad is not None
    assert found.grad.isfinite().all()
    if not flat:
        assert torch.autograd.gradcheck(lambda x: attention_loss(x, spared, kind), (found,))


@pytest.mark.parametrize("name", ["unet", "autoencoder", "vae", "resnet"])
def test_a_gradient_step_lowers_the_attention(name: str) -> None:
    """Through the gradient of a gradient: the decrease along the steepest descent equals its derivative."""
    learner = Learner(perturbed(build(name, (32, 32), width=4, latent=4)).double(), (4, 7)).double()
    images, noise = random_images(2, (32, 32)).double().sigmoid(), torch.zeros(2, 4).double()

    def loss() -> Tensor:
        return torch.stack([found.mean() for found in learner(images, noise, True)[2]]).mean()

    before = loss()
    parameters = list(learner.net.encoder.parameters())
    slopes = torch.autograd.grad(before, parameters, allow_unused=True)
    size = sum(float(s.square().sum()) for s in slopes if s is not None)
    assert size > 0
    step = 1e-4 * float(before.detach()) / size
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                parameter.sub_(step * slope)
    fall = float(before.detach() - loss().detach())
    assert fall == pytest.approx(step * size, rel=0.05)
    assert learner(images, noise, False)[2] == []


def test_the_learner_standardises_and_blurs() -> None:
    net = build("autoencoder", (32, 32), width=4, latent=4)
    images = random_images(2, (32, 32)).sigmoid()
    plain, blurred = Learner(net, ()), Learner(net, (), Enlarge((32, 32), (32, 32), 3.0))
    for learner in (plain, blurred):
        learner.mean.fill_(0.4)
        learner.std.fill_(0.5)
    torch.testing.assert_close(plain.standard(images), (images - 0.4) / 0.5)
    assert blurred.standard(images).std() < plain.standard(images).std() / 3
    torch.testing.assert_close(blurred.standard(torch.full_like(images, 0.7)), torch.full_like(images, 0.6))


NETWORKS = {
    "unet": (0, 21, 27),
    "autoencoder": (2, 8, 11),
    "vae": (1, 8, 11),
    "resnet": (2, 7, 11),
    "resnet-vae": (7, 11),
    "study": (2, 17, 23),
}


@pytest.mark.parametrize("name", [*MODELS, "pretrained"])
def test_attention_by_forward_operations_equals_autograd(name: str, weights: Path) -> None:
    options: dict[str, Any] = {"pretrained": True, "weights": weights} if name == "pretrained" else {}
    model = "resnet" if options else name
    net = perturbed(build(model, (64, 64), width=4, latent=4, **options)).eval().requires_grad_(False)
    images = (random_images(3, (64, 64)) * torch.tensor([1.0, 0.3, 2.0]).view(3, 1, 1, 1)).requires_grad_()
    layers = NETWORKS[model]
    code, outputs, _ = net.encode(images, layers)
    latent = net.latent(code)
    for layer, features in zip(layers, outputs, strict=True):
        (slope,) = gradients(latent, [features], each=net.variational)
        wanted = attention(features, slope).detach()
        assert wanted.max() > 0
        closed = LayerAttention(net, layer, features.shape, latent.shape[1]).eval()
        with torch.inference_mode():
            for some in (slice(0, 3), slice(1, 2)):
                found = closed(features.detach()[some])
                assert float((found - wanted[some]).abs().max() / wanted.max()) < 1e-4


class Odd(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = nn.functional.adaptive_max_pool2d(features, 2)
        return found


def test_a_layer_whose_gradient_has_no_forward_form_is_refused() -> None:
    net = build("autoencoder", (64, 64), width=4, latent=4).eval()
    net.encoder[8] = nn.Sequential(Odd(), nn.Upsample(scale_factor=2))  # 8x8 cells to 4x4
    net.code = nn.Flatten()
    with pytest.raises(BlemishError, match="adaptive_max_pool2d_backward"):
        LayerAttention(net, 5, (1, 8, 16, 16), 128)
    LayerAttention(net, 8, (1, 16, 4, 4), 128)  # a later one has it


SIZE = (64, 96)


@cache
def graph_of(config: AttentionConfig) -> AttentionGraph:
    net = perturbed(build(config.model, config.image_size, width=4, latent=4))
    layer = {"unet": 21, "vae": 8}[config.model]
    learner = Learner(net, (layer, 4))
    learner.mean.fill_(0.45)
    learner.std.fill_(0.25)
    learner = learner.eval().requires_grad_(False)
    graph = AttentionGraph(config, Resize(*config.image_size), learner).eval()
    good = [random_images(4, config.image_size, seed).sigmoid() for seed in (5, 6)]
    with torch.inference_mode():
        graph.fit_reference(lambda _what: iter(good))
    return graph


def test_onnxruntime_says_what_torch_says(tmp_path: Path) -> None:
    """With a share of the cells as score; the defaults are in tests/test_parity.py."""
    config = AttentionConfig(model="vae", image_size=SIZE, map="combined", input="residual", residual="l1", score="top")
    graph = graph_of(config)
    graph.share = 0.01
    export(graph, tmp_path / "g.onnx")
    exported = in_onnxruntime(tmp_path / "g.onnx")
    for shape in ((3, 37, 101, 3), (1, 111, 65, 3)):
        images = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
        with torch.inference_mode():
            wanted = dict(zip(graph.outputs, (o.numpy() for o in graph(torch.tensor(images))), strict=True))
        found = exported(images).outputs()
        assert list(found) == ["scores", "maps", "reconstruction"]
        assert found["reconstruction"].dtype == np.uint8
        assert found["reconstruction"].shape == (shape[0], *SIZE, 3)
        assert np.abs(found["reconstruction"].astype(int) - wanted["reconstruction"]).max() <= 1
        spread = np.ptp(wanted["maps"])
        assert np.abs(found["maps"] - wanted["maps"]).max() < 1e-3 * spread
        np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=1e-3)


@pytest.mark.parametrize(("model", "layer"), [("unet", 26), ("autoencoder", 8), ("vae", 8), ("resnet", 7)])
def test_patches_are_taken_at_stride_8(model: str, layer: int) -> None:
    """The last layer before the fourth halving: the U-Net's before its pooling, the end of ResNet's second stage."""
    assert patch_layer(build(model, SIZE, width=4, latent=4), SIZE) == layer


@pytest.mark.parametrize("standardise", ["whole", "place"])
def test_maps_are_standardised_by_good_images(standardise: str) -> None:
    """Against numpy on the raw maps: over the whole image, mean 0 and deviation 1; at each place, mean 0 and a
    deviation below 1, as it is softened by the usual one."""
    graph = graph_of(AttentionConfig(image_size=SIZE, map="attention", standardise=cast("Any", standardise)))
    images = torch.cat([random_images(4, SIZE, seed).sigmoid() for seed in (5, 6)])
    with torch.inference_mode():
        raw = graph.raw(images)[0]["attention"].double().numpy()
        maps = graph.maps(images)[0].double().numpy()
    if standardise == "whole":
        np.testing.assert_allclose(maps, (raw - raw.mean()) / raw.std(), atol=1e-3)
        assert maps.mean() == pytest.approx(0, abs=1e-3)
        assert maps.std() == pytest.approx(1, abs=1e-3)
        return
    np.testing.assert_allclose(maps.mean(0), 0, atol=1e-3)
    spread = raw.std(0)
    smoothed = Enlarge(SIZE, SIZE, 4.0)(torch.tensor(spread).float()).double().numpy()
    softened = smoothed + smoothed.mean() / 2
    np.testing.assert_allclose(maps, (raw - raw.mean(0)) / softened, atol=1e-3)
    assert 0.3 < maps.std(0).mean() < 0.9


def test_the_average_and_the_input_by_hand() -> None:
    """As published: exp((average - image)^3), standardised by its own mean and deviation over good images."""
    good = torch.cat([random_images(4, SIZE, seed).sigmoid() for seed in (5, 6)])
    graph = graph_of(AttentionConfig(image_size=SIZE, map="attention", input="difference"))
    average = good.mean(0)
    probe = ((average - good) ** 3).exp()
    mean, std = graph.get_buffer("probe_mean"), graph.get_buffer("probe_std")
    torch.testing.assert_close(graph.get_buffer("average"), average, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.flatten(), probe.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std.flatten(), probe.std((0, 2, 3), correction=0), rtol=1e-3, atol=1e-5)
    net, layers = graph.learner.net, graph.learner.layers
    code, outputs, _ = net.encode(((probe - mean) / std).requires_grad_(), layers)
    slopes = gradients(net.latent(code), outputs, each=False)
    each = [
        Enlarge(features.shape[2:], SIZE, 2.0)(attention(features, slope)).detach()
        for features, slope in zip(outputs, slopes, strict=True)
    ]
    with torch.inference_mode():
        found = graph.raw(good)[0]["attention"]
    torch.testing.assert_close(found.clone(), torch.stack(each).mean(0), rtol=1e-3, atol=1e-4 * float(found.max()))


def test_maps_are_combined_and_scores_are_means_of_the_highest_pixels() -> None:
    graph = graph_of(AttentionConfig(image_size=SIZE, map="combined"))
    image = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        scores, maps, reconstruction = graph(image)
        raw, decoded, _ = graph.raw(image.permute(0, 3, 1, 2).float() / 255)
        residual = Residual("ssim", SIZE)(decoded, image.permute(0, 3, 1, 2).float() / 255)
    product = np.ones((2, *SIZE))
    for name in ("attention", "residual"):
        standard = (raw[name] - graph.get_buffer(f"typical_{name}")) / graph.get_buffer(f"spread_{name}")
        product = product * np.logaddexp(0, standard.double().numpy())
    np.testing.assert_allclose(maps, product, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(raw["residual"], Enlarge(SIZE, SIZE, 2.0)(residual), rtol=1e-4, atol=1e-5)
    pixels = (decoded * 255).permute(0, 2, 3, 1)
    np.testing.assert_allclose(reconstruction.float(), pixels, atol=0.51)  # rounded
    np.testing.assert_allclose(scores, maps.amax((1, 2)))
    ordered = np.sort(maps.numpy().reshape(2, -1), 1)[:, ::-1]
    for share, count in ((0.001, 6), (0.01, 61), (1e-9, 1)):  # of 6144
        np.testing.assert_allclose(graph.scores(maps, share), ordered[:, :count].mean(1), rtol=1e-5)


def test_only_the_maps_that_are_needed_are_computed() -> None:
    image = random_images(1, SIZE).sigmoid()
    configs: dict[str, dict[str, Any]] = {"residual": {}, "attention": {"standardise": "whole"}, "combined": {}}
    for kind, options in configs.items():
        graph = graph_of(AttentionConfig(image_size=SIZE, map=cast("Any", kind), **options))
        assert graph.gated == (kind != "residual")
        assert len(graph.attentions) == (0 if kind == "residual" else 2)
        with torch.inference_mode():
            names = list(graph.raw(image)[0])
            maps = graph.maps(image)[0]
        assert names == (["attention", "residual"] if kind == "combined" else [kind])
        assert maps.isfinite().all()
