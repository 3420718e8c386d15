"""A network cut in two says what it said in one piece, and its pieces are the network's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from blemish.detectors.nn import graph_cut
from blemish.detectors.nn.backbones import Backbone, load_backbone
from blemish.types import BlemishError


class Traced:
    """A backbone with random weights, its graph, and the graph's node of each layer."""

    def __init__(self, name: str, size: tuple[int, int], layers: tuple[str, ...]) -> None:
        self.backbone: Backbone = load_backbone(name, layers=layers, image_size=size, random=True)
        self.graph: GraphModule = graph_cut.trace(self.backbone, size)
        taps = (tap.layer for tap in self.backbone.taps)
        self.nodes: dict[str, Node] = dict(zip(taps, graph_cut.outputs(self.graph), strict=True))
        self.images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(2)) * 255

    def pieces(self, at: Node, *layers: str) -> tuple[GraphModule, GraphModule, list[Node]]:
        """Trunk, tail, and what goes from one to the other."""
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
        ("2", ("2", "3"), [(32, 8, 12)]),  # the cut is one of what is wanted
        ("2", ("1", "3"), [(32, 8, 12), (24, 16, 24)]),  # one lies before the cut: it is kept as well
        ("3", ("2", "3"), [(96, 4, 6), (32, 8, 12)]),  # nothing is left to the tail
        ("", ("2", "3"), [(3, 64, 96)]),  # everything is
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


def test_of_a_transformer_the_tokens_are_kept_with_their_class_token(vit: Traced) -> None:
    trunk, tail, frontier = vit.pieces(vit.nodes["5"], "8", "11")
    assert shapes(frontier) == [(17, 192)]  # not the map (192, 4, 4), which lacks one token
    with torch.no_grad():
        whole = vit.backbone(vit.images)[1:]
        found = tail(*trunk(vit.images))
    for tensor, wanted in zip(found, whole, strict=True):
        assert_same(tensor, wanted)


def test_what_is_not_made_from_a_map_alone_is_refused(vit: Traced) -> None:
    with pytest.raises(BlemishError, match=r"cannot be cut there, .* tokens"):
        graph_cut.piece(vit.graph, [vit.nodes["8"]], [vit.nodes["11"]])


def test_a_cut_moves_past_pooling_and_no_further() -> None:
    """VGG's stages end before their pooling, which makes a quarter of the map; a convolution comes after that."""
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


def test_a_cut_stays_where_what_follows_learns(bundled: Traced) -> None:
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
        now = bundled.graph(bundled.images)
    tail.load_state_dict(start)
    for layer, (found, then) in enumerate(zip(now, before, strict=True)):
        assert bool((found - then).abs().max() > 1e-3 * then.abs().max()) is (layer > 1)
