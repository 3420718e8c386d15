"""A network cut in two computes the same as in one piece, and its pieces share its parameters."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from blemish.detectors.nn import graph_cut
from blemish.detectors.nn.backbones import Backbone, load_backbone
from blemish.detectors.nn.taps import Tap
from blemish.types import BlemishError
from tests.detectors.support import randomise_norms


class Traced:
    """A backbone with random weights, its graph, and the graph's node for each layer."""

    def __init__(self, name: str, size: tuple[int, int], layers: tuple[str, ...]) -> None:
        self.backbone: Backbone = load_backbone(name, layers=layers, image_size=size, random=True)
        self.graph: GraphModule = graph_cut.trace(self.backbone, size)
        taps = (tap.layer for tap in self.backbone.taps)
        self.nodes: dict[str, Node] = dict(zip(taps, graph_cut.outputs(self.graph), strict=True))
        self.images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(2)) * 255

    def pieces(self, at: Node, *layers: str) -> tuple[GraphModule, GraphModule, list[Node]]:
        """Trunk, tail, and the nodes between them."""
        targets = [self.nodes[layer] for layer in layers]
        between = graph_cut.frontier(at, targets)
        trunk = graph_cut.piece(self.graph, [graph_cut.source(self.graph)], between)
        return trunk, graph_cut.piece(self.graph, between, targets), between


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """To rounding: norms are folded into their convolutions."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def shapes(nodes: list[Node]) -> list[tuple[int, ...]]:
    return [tuple(node.meta["val"].shape[1:]) for node in nodes]


@pytest.fixture(scope="module")
def bundled() -> Traced:
    return Traced("bundled", (64, 96), ("0", "1", "2", "3"))


@pytest.fixture(scope="module")
def vit() -> Traced:
    return Traced("vit_tiny_patch16_224", (64, 64), ("5", "8", "11"))


@pytest.mark.parametrize(
    ("at", "layers", "between"),
    [
        ("1", ("2", "3"), [(24, 16, 24)]),
        ("2", ("2", "3"), [(32, 8, 12)]),  # the cut is one of the targets
        ("2", ("1", "3"), [(32, 8, 12), (24, 16, 24)]),  # one target lies before the cut: it is cached as well
        ("3", ("2", "3"), [(96, 4, 6), (32, 8, 12)]),  # the tail is empty
        ("", ("2", "3"), [(3, 64, 96)]),  # the trunk is
    ],
)
def test_trunk_then_tail_is_the_backbone(
    bundled: Traced, at: str, layers: tuple[str, ...], between: list[tuple[int, ...]]
) -> None:
    node = bundled.nodes[at] if at else graph_cut.source(bundled.graph)
    trunk, tail, frontier = bundled.pieces(node, *layers)
    assert sorted(shapes(frontier)) == sorted(between)
    with torch.no_grad():
        whole = bundled.backbone(bundled.images)
        found = tail(*trunk(bundled.images))
    for layer, tensor in zip(layers, found, strict=True):
        assert_same(tensor, whole[int(layer)])


def test_a_residual_network() -> None:
    traced = Traced("torchvision/resnet18", (64, 64), ("layer2", "layer3", "layer4"))
    trunk, tail, frontier = traced.pieces(traced.nodes["layer2"], "layer3", "layer4")
    assert shapes(frontier) == [(128, 8, 8)]
    with torch.no_grad():
        whole = traced.backbone(traced.images)[1:]
        found = tail(*trunk(traced.images))
    for tensor, wanted in zip(found, whole, strict=True):
        assert_same(tensor, wanted)
    assert graph_cut.past_pooling(traced.nodes["layer2"]) is traced.nodes["layer2"]  # a block and its shortcut follow


def test_a_transformers_tokens_are_cached_with_the_class_token(vit: Traced) -> None:
    trunk, tail, frontier = vit.pieces(vit.nodes["5"], "8", "11")
    assert shapes(frontier) == [(17, 192)]  # not the map (192, 4, 4), which lacks one token
    with torch.no_grad():
        whole = vit.backbone(vit.images)[1:]
        found = tail(*trunk(vit.images))
    for tensor, wanted in zip(found, whole, strict=True):
        assert_same(tensor, wanted)


def test_a_cut_at_a_transformers_map_is_refused(vit: Traced) -> None:
    with pytest.raises(BlemishError, match=r"cannot be cut there, .* tokens"):
        graph_cut.piece(vit.graph, [vit.nodes["8"]], [vit.nodes["11"]])


def test_a_cut_moves_past_pooling_and_no_further() -> None:
    """VGG's stages end before their pooling, which keeps a quarter of the map; a convolution comes after that."""
    traced = Traced("torchvision/vgg11", (32, 48), ("features.14", "features.19"))
    before = traced.nodes["features.14"]
    after = graph_cut.past_pooling(before)
    assert shapes([before, after]) == [(512, 4, 6), (512, 2, 3)]
    assert graph_cut.past_pooling(after) is after
    with torch.no_grad():
        whole = traced.backbone(traced.images)[1]
        for node in (before, after):
            trunk, tail, frontier = traced.pieces(node, "features.19")
            assert frontier == [node]
            assert_same(tail(*trunk(traced.images))[0], whole)
    assert len(list(tail.parameters())) == 4  # two convolutions' weights and biases


def test_a_cut_stays_before_a_layer_with_parameters(bundled: Traced) -> None:
    assert graph_cut.past_pooling(bundled.nodes["1"]) is bundled.nodes["1"]


def test_training_the_tail_trains_the_network(bundled: Traced) -> None:
    trunk, tail, _ = bundled.pieces(bundled.nodes["1"], "2", "3")
    used = {str(node.target) for node in bundled.graph.graph.nodes if node.op == "get_attr"}
    whole = {id(parameter) for name, parameter in bundled.graph.named_parameters() if name in used}
    parts = [{id(parameter) for parameter in part.parameters()} for part in (trunk, tail)]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
    assert all(parts)
    start = {name: value.clone() for name, value in tail.state_dict().items()}
    with torch.no_grad():
        before = bundled.graph(bundled.images)
        for parameter in tail.parameters():
            parameter.mul_(1.1)
        after = bundled.graph(bundled.images)
    tail.load_state_dict(start)
    for layer, (new, old) in enumerate(zip(after, before, strict=True)):
        assert bool((new - old).abs().max() > 1e-3 * old.abs().max()) is (layer > 1)


class Norms(nn.Module):
    """Convolutions of every kind before batch norms of every kind; the last one's output is needed without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=0.1))
        self.biased = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8, affine=False))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8))
        self.shared, self.norm = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.biased(self.plain(images).relu())
        shared = self.shared(self.depthwise(first))
        return [first, shared, self.norm(shared)]


def norms_of(graph: GraphModule) -> int:
    return sum(node.target is graph_cut.BATCH_NORM for node in graph.graph.nodes)


def backbone_of(net: nn.Module, taps: int) -> Backbone:
    """A network as a backbone that takes images as they are."""
    return Backbone(
        net, [Tap(str(i), 1, 1) for i in range(taps)], mean=(0,) * 3, std=(1 / 255,) * 3, licence="", source=""
    )


def test_folded_norms_equal_the_network_in_float64() -> None:
    torch.manual_seed(0)
    net = Norms()
    randomise_norms(net)
    images = torch.randn(2, 3, 12, 13)
    graph = graph_cut.trace(backbone_of(net, 3), (12, 13))
    assert norms_of(graph) == 1  # that of the shared convolution
    with torch.no_grad():
        wanted = deepcopy(net).double()(images.double())
        for found, exact in zip(graph(images), wanted, strict=True):
            assert float((found - exact).abs().max()) < 1e-6 * float(exact.abs().max())


def test_a_folded_norm_by_hand() -> None:
    """W = 2, b = 1, gamma = 3, beta = -1, mean = 5, variance + eps = 4: s = 1.5, so W' = 3 and b' = -4 * 1.5 - 1."""
    conv, norm = nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1, eps=1.0)
    assert conv.bias is not None
    for tensor, value in (
        (conv.weight, 2.0),
        (conv.bias, 1.0),
        (norm.weight, 3.0),
        (norm.bias, -1.0),
        (norm.running_mean, 5.0),
        (norm.running_var, 3.0),
    ):
        assert tensor is not None
        nn.init.constant_(tensor, value)
    graph = graph_cut.trace(backbone_of(Listed(conv, norm), 1), (4, 4))
    assert norms_of(graph) == 0
    (weight,) = [value for name, value in graph.named_parameters() if name.endswith("conv2d_weight")]
    (bias,) = [value for name, value in graph.named_parameters() if name.endswith("conv2d_bias")]
    assert weight.flatten().tolist() == [3, 3, 3]
    assert bias.tolist() == [-7]


class Listed(nn.Module):
    """A convolution and a norm, with the one output in a list, as backbones return theirs."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(images))]


class Sums(nn.Module):
    """Sums over 3x3, with stride 1 and, padded as TensorFlow does, with stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 1, 3, padding=1, bias=False)
        self.coarse = nn.Conv2d(3, 1, 3, stride=2, bias=False)
        for conv in (self.same, self.coarse):
            nn.init.zeros_(conv.weight)
            nn.init.ones_(conv.weight[:, 0])

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.same(images), self.coarse(nn.functional.pad(images, (0, 1, 0, 1)))]


@pytest.mark.parametrize(
    ("padding", "corner", "last"),
    [
        # Of 0 1 2 3 in each of 4 rows: the sum at the top left, and at the bottom right of the half-size map.
        ("zeros", 2 * (0 + 1), 2 * (2 + 3)),
        ("reflect", 3 * (1 + 0 + 1), 3 * (2 + 3 + 2)),
        ("replicate", 3 * (0 + 0 + 1), 3 * (2 + 3 + 3)),
    ],
)
def test_padding_by_hand(padding: str, corner: float, last: float) -> None:
    images = torch.arange(4.0).expand(1, 3, 4, 4)
    graph = graph_cut.trace(backbone_of(Sums(), 2), (4, 4), padding)
    with torch.no_grad():
        same, coarse = graph(images)
        flat = graph(torch.full((1, 3, 4, 4), 5.0))
    assert float(same[0, 0, 0, 0]) == corner
    assert float(coarse[0, 0, -1, -1]) == last
    if padding == "zeros":
        assert [values.unique().tolist() for values in flat] == [[20, 30, 45]] * 2
    else:
        assert all(bool((values == 45).all()) for values in flat)


@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_padding_is_that_of_torchs_convolutions(padding: Literal["reflect", "replicate"]) -> None:
    """Norms are folded all the same."""
    torch.manual_seed(0)
    net = Norms()
    randomise_norms(net)
    images = torch.randn(2, 3, 12, 13)
    graph = graph_cut.trace(backbone_of(net, 3), (12, 13), padding)
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode=padding)
    conv.load_state_dict(net.depthwise[0].state_dict())
    net.depthwise[0] = conv
    for found, wanted in zip(graph(images), net(images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "padding"),
    [("torchvision/resnet18", "zeros"), ("torchvision/resnet18", "replicate"), ("bundled", "reflect")],
)
def test_a_constant_image_gives_constant_maps(name: str, padding: str) -> None:
    """With zeros beyond the border, the border answers: that is how an empty background can carry a verdict."""
    layers = ("2", "3") if name == "bundled" else ("layer2", "layer3")
    backbone = load_backbone(name, layers=layers, image_size=(64, 96), random=True)
    with torch.no_grad():
        for values in graph_cut.trace(backbone, (64, 96), padding)(torch.full((1, 3, 64, 96), 30.0)):
            spread = (values.amax((2, 3)) - values.amin((2, 3))).max() / values.abs().max()
            assert (spread > 0.1) if padding == "zeros" else (spread < 1e-5)


def test_a_map_too_small_to_be_reflected_is_refused() -> None:
    backbone = load_backbone("torchvision/resnet18", layers=("layer4",), image_size=(32, 32), random=True)
    with pytest.raises(BlemishError, match=r"a map of 1x1 cells is too small .* replicate"):
        graph_cut.trace(backbone, (32, 32), "reflect")
    graph_cut.trace(backbone, (32, 32), "replicate")
