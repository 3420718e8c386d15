"""Gradients as forward operations, against autograd, in torch and in onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torch.export import Dim

from blemish.detectors.nn.gradient_graph import with_gradient
from blemish.types import BlemishError
from tests.detectors.support import randomise_norms

FREE = ({0: Dim.DYNAMIC},)


class Chain(nn.Module):
    """Layers in a row; the first column of the last one's output is the score."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, activations: Tensor) -> Tensor:
        scores: Tensor = self.layers(activations)[:, 0]
        return scores


class LatentSum(Chain):
    """The sum of an encoder's latent code."""

    def forward(self, activations: Tensor) -> Tensor:
        sums: Tensor = self.layers(activations).sum(1)
        return sums


class Both(nn.Module):
    """Sum of several tails' scores."""

    def __init__(self, *tails: nn.Module) -> None:
        super().__init__()
        self.tails = nn.ModuleList(tails)

    def forward(self, activations: Tensor) -> Tensor:
        return torch.stack([tail(activations) for tail in self.tails]).sum(0)


class Tokens(nn.Module):
    """A map becomes tokens, goes through a transformer's blocks, and their mean through a dense layer."""

    def __init__(self, blocks: nn.Module, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.blocks, self.norm, self.head = blocks, norm, nn.Linear(channels, 1)

    def forward(self, activations: Tensor) -> Tensor:
        tokens = self.norm(self.blocks(activations.flatten(2).transpose(1, 2)))
        scores: Tensor = self.head(tokens.mean(1))[:, 0]
        return scores


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1)]


def small() -> Chain:
    return Chain(
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),  # leaves no padded row over at 15, one at 16
        nn.MaxPool2d(2),
        *head(8),
    )


def overlapping() -> Chain:
    """Windows that share their maximum, that cross the edge, and that contain many equal values (after a ReLU)."""
    return Chain(
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 6, 3, 2, dilation=2, padding=1),
        nn.LeakyReLU(),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        *head(6),
    )


def averaging() -> Chain:
    return Chain(
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.Tanh(),
        nn.AvgPool2d((2, 1), 2, count_include_pad=False),
        nn.Conv2d(4, 4, 1),
        nn.ELU(),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
        nn.Linear(24, 1),
    )


def enlarging() -> Chain:
    return Chain(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.GELU(),
        nn.Upsample(size=(19, 23), mode="nearest"),
        nn.Conv2d(4, 4, 3),
        nn.Softplus(),
        nn.ReflectionPad2d((1, 2, 0, 3)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
        nn.Hardswish(),
        nn.PReLU(),
        *head(4),
    )


def encoder() -> LatentSum:
    return LatentSum(
        nn.Conv2d(4, 8, 3, 2, 1),
        nn.InstanceNorm2d(8, affine=True),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 8, 4, 2, 1),
        nn.InstanceNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, output_padding=1),
        nn.GroupNorm(2, 6),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(6 * 9 * 9, 10),
    )


def mobilenet(first_block: int, **options: str) -> Chain:
    net = timm.create_model("mobilenetv2_100", num_classes=1, **options)
    return Chain(*net.blocks[first_block:], net.conv_head, net.bn2, net.global_pool, net.classifier)


def vgg() -> Chain:
    with torch.device("meta"):  # without the dense layers, half a gigabyte
        net = torchvision.models.vgg16(weights=None, init_weights=False)
    block = net.features[24:].to_empty(device="cpu")
    for layer in block:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return Chain(*block, nn.AdaptiveAvgPool2d(7), *head(512))


def resnet() -> Chain:
    net = timm.create_model("resnet18", num_classes=1)
    return Chain(net.layer3, *head(256))


def efficientnet() -> Chain:
    """Squeeze and excitation, SiLU, depthwise convolutions of 5x5."""
    return Chain(timm.create_model("efficientnet_b0").blocks[5][0], *head(192))


def transformer() -> Tokens:
    net = timm.create_model("vit_tiny_patch16_224")
    return Tokens(net.blocks[11], net.norm, 192)


Build = Callable[[], nn.Module]
BY_HAND: list[Build] = [small, overlapping, averaging, enlarging, encoder]  # all for (4, 16, 15)
KNOWN: list[tuple[Build, tuple[int, ...]]] = [
    (efficientnet, (112, 7, 7)),
    (transformer, (192, 3, 4)),
    (vgg, (512, 8, 8)),
    (resnet, (128, 9, 9)),
    (lambda: mobilenet(5, pad_type="same"), (96, 8, 7)),
]


def prepared(build: Build, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """A random network in eval mode whose norms are not the identity, and three different activations."""
    torch.manual_seed(1)
    tail = build()
    randomise_norms(tail)
    return tail.eval(), torch.randn(3, *shape) * torch.tensor([1.0, 0.5, 2.0]).reshape(3, 1, 1, 1)


def by_autograd(tail: nn.Module, activations: Tensor) -> tuple[Tensor, Tensor]:
    leaf = activations.clone().requires_grad_()
    scores = tail(leaf * 1)
    return scores.detach(), torch.autograd.grad(scores.sum(), leaf)[0]


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def to_onnx(graph: nn.Module, example: Tensor, file: Path) -> onnxruntime.InferenceSession:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, (example,), dynamo=True, verbose=False, dynamic_shapes=FREE, opset_version=18
        )
    assert program is not None
    program.save(str(file), external_data=False)
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def in_onnx(session: onnxruntime.InferenceSession, activations: Tensor) -> list[Tensor]:
    return [torch.tensor(o) for o in session.run(None, {session.get_inputs()[0].name: activations.numpy()})]


def in_torch(graph: nn.Module, activations: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        scores, gradient = graph(activations)
    return scores, gradient


@pytest.mark.parametrize(("build", "shape"), [*[(build, (4, 16, 15)) for build in BY_HAND], *KNOWN])
def test_equals_autograd_for_any_number_of_images(build: Build, shape: tuple[int, ...]) -> None:
    tail, activations = prepared(build, shape)
    before = activations.clone()
    graph = with_gradient(tail, activations[:1])
    for some in (activations, activations[:1], activations[1:]):
        scores, gradient = in_torch(graph, some)
        wanted_scores, wanted = by_autograd(tail, some)
        assert apart(scores, wanted_scores) < 1e-4
        assert apart(gradient, wanted) < 1e-4
    assert torch.equal(activations, before)  # operations in place stay inside


# Not `small`: a MobileNet's last block, below, has all its layers but one, which `overlapping` has.
@pytest.mark.parametrize(("build", "shape"), [*[(build, (4, 16, 15)) for build in BY_HAND[1:]], *KNOWN[:2]])
def test_onnxruntime_agrees(build: Build, shape: tuple[int, ...], tmp_path: Path) -> None:
    tail, activations = prepared(build, shape)
    session = to_onnx(with_gradient(tail, activations), activations[:2], tmp_path / "graph.onnx")
    for some in (activations[1:2], activations):
        scores, gradient = in_onnx(session, some)
        wanted_scores, wanted = by_autograd(tail, some)
        assert apart(scores, wanted_scores) < 1e-4
        assert apart(gradient, wanted) < 1e-4


def test_a_tail_that_torch_export_cut_out(tmp_path: Path) -> None:
    """Its operations are already ATen's; its parameters are shared, and stand in the file once."""
    tail, activations = prepared(lambda: mobilenet(6), (160, 4, 5))
    cut = torch.export.export(tail, (activations,), dynamic_shapes=FREE).module()
    assert isinstance(cut, fx.GraphModule)
    graph = with_gradient(cut, activations[:1])
    assert {p.data_ptr() for p in graph.parameters()} <= {p.data_ptr() for p in tail.parameters()}
    session = to_onnx(graph, activations, tmp_path / "graph.onnx")
    wanted_scores, wanted = by_autograd(tail, activations)
    for scores, gradient in (in_torch(graph, activations), in_onnx(session, activations)):
        assert apart(scores, wanted_scores) < 1e-4
        assert apart(gradient, wanted) < 1e-4
    assert (tmp_path / "graph.onnx").stat().st_size < 1.1 * 4 * sum(p.numel() for p in tail.parameters())


@pytest.mark.parametrize("size", [11, 12, 13, 14])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_every_kind(size: int, transposed: bool) -> None:
    """Kernels, strides, paddings, dilations and groups, with every number of rows that a stride leaves over."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    tail = Both(
        Chain(kind(4, 8, 1), nn.Tanh(), *head(8)),
        Chain(kind(4, 8, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(1, 2), groups=2), nn.Tanh(), *head(8)),
        Chain(kind(4, 8, 4, stride=3, padding=1, groups=4), nn.Tanh(), *head(8)),
        Chain(kind(4, 8, 2, stride=4), nn.Tanh(), *head(8)),
    )
    activations = torch.randn(2, 4, size, size + 1)
    graph = with_gradient(tail, activations)
    assert apart(in_torch(graph, activations)[1], by_autograd(tail, activations)[1]) < 1e-5


def test_average_pooling_by_a_given_divisor() -> None:
    tail = Chain(nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=4), nn.Tanh(), *head(4))
    activations = torch.randn(2, 4, 8, 7)
    graph = with_gradient(tail, activations)
    assert apart(in_torch(graph, activations)[1], by_autograd(tail, activations)[1]) < 1e-5


def test_a_linear_tail_by_hand() -> None:
    """Score = mean over four cells of 2 A_0 - A_1, plus 5."""
    dense = nn.Linear(2, 1)
    dense.weight.data = torch.tensor([[2.0, -1.0]])
    dense.bias.data = torch.tensor([5.0])
    activations = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [-1.0, 2.0]]]])
    graph = with_gradient(Chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense), activations)
    scores, gradient = in_torch(graph, activations)
    assert scores.tolist() == [2 * 2.5 - 0.5 + 5]
    assert gradient.tolist() == [[[[0.5, 0.5], [0.5, 0.5]], [[-0.25, -0.25], [-0.25, -0.25]]]]


def test_the_batch_size_may_equal_any_other_size() -> None:
    tail, activations = prepared(small, (4, 13, 4))
    many = activations[[0, 1, 2, 0]]  # as many as channels
    assert apart(in_torch(with_gradient(tail, many), many[1:])[1], by_autograd(tail, many[1:])[1]) < 1e-4


class Warp(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return F.grid_sample(a, a[:, :2].permute(0, 2, 3, 1), align_corners=False).mean((1, 2, 3))


class Counted(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.mean((1, 2, 3)) + torch.tensor(range(len(a)))


class Choice(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.mean((1, 2, 3)) if torch.equal(a, a * 2) else a.sum((1, 2, 3))


class Underived(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return torch.igamma(a, a + 1).mean((1, 2, 3))


class Overwritten(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        root = a.exp()
        return (root * root.mul_(2)).mean((1, 2, 3))


class Constant(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.argmax(1).float().mean((1, 2))


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (Warp(), "grid_sampler_2d_backward"),
        (Chain(nn.AdaptiveMaxPool2d(2), nn.Flatten()), "adaptive_max_pool2d_backward"),
        (Choice(), "aten.equal"),
        (Underived(), "derivative for 'igamma"),
        (Overwritten(), "modified by an inplace operation"),
        (Counted(), "fixes how many images"),
        (Constant(), "no gradient at this layer"),
    ],
)
def test_an_operation_without_a_gradient_is_named(tail: nn.Module, words: str) -> None:
    with pytest.raises(BlemishError, match=words):
        with_gradient(tail, torch.randn(2, 3, 4, 4))
