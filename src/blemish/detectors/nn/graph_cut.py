"""Cuts a network in two: the trunk, which stays frozen and runs once per image, and the tail, which is trained.

A backbone is traced to a graph of ATen operations (`torch.export`), which can be cut at any node, whatever modules the
network consists of. Pieces share their parameters with the graph, so training the tail trains the whole network.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule, Node

from blemish.detectors.nn.backbones import Backbone
from blemish.types import BlemishError

SYM_SIZE = torch.ops.aten.sym_size.int
CONV = torch.ops.aten.conv2d.default
BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default
PAD = torch.ops.aten.pad.default
# What lies beyond the border of a map: zeros, the map mirrored at its last row, or its last row again and again.
PADDINGS = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}


def trace(backbone: Backbone, image_size: tuple[int, int], padding: str = "zeros") -> GraphModule:
    """float32 images `(N, 3, *image_size)` in 0..255 -> one map per tap, as a graph without in-place operations, its
    batch norms folded into the convolutions before them.

    `padding`: what convolutions see beyond the border, see PADDINGS. Other than `zeros` it replaces what the network
    was trained with. Raises `BlemishError` where a map is too small to be reflected."""
    example = torch.zeros(2, 3, *image_size)
    program = torch.export.export(backbone, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
    graph: GraphModule = program.run_decompositions({}).module()
    for norm in [node for node in graph.graph.nodes if node.target is BATCH_NORM]:
        conv = norm.args[0]
        if conv.target is CONV and list(conv.users) == [norm]:
            _fold_norm(graph, conv, norm)
    if padding != "zeros":
        _pad(graph, PADDINGS[padding])
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _pad(graph: GraphModule, mode: str) -> None:
    """Makes every convolution's zero padding one of another mode: its own, and that of an operation before it."""
    for conv in [node for node in graph.graph.nodes if node.target is CONV]:
        left_out: list[Any] = [None, [1, 1], [0, 0]][len(conv.args) - 2 :]
        arguments: list[Any] = [*conv.args[1:], *left_out]
        weight, bias, stride, padding, *rest = arguments
        source = conv.args[0]
        if source.target is PAD and len(source.args[1]) == 4 and list(source.users) == [conv]:
            source.args = (*source.args[:2], mode)  # timm's padding "same", as TensorFlow pads
            source.kwargs = {}
        if not any(padding):
            continue
        down, across = padding
        widths = [across, across, down, down]
        with graph.graph.inserting_before(conv):
            padded = graph.graph.call_function(PAD, (source, widths, mode))
        try:
            padded.meta["val"] = PAD(source.meta["val"], widths, mode)
        except RuntimeError:
            raise BlemishError(
                f"a map of {'x'.join(map(str, source.meta['val'].shape[2:]))} cells is too small for --padding {mode}; "
                "take --padding replicate, or larger images."
            ) from None
        conv.args = (padded, weight, bias, stride, [0, 0], *rest)


def _fold_norm(graph: GraphModule, conv: Node, norm: Node) -> None:
    """Replaces a convolution and the batch norm after it by one convolution. With s = gamma / sqrt(variance + eps),

        gamma (W * x + b - mean) / sqrt(variance + eps) + beta = (s W) * x + (b - mean) s + beta.

    The norms' statistics stay fixed in fine-tuning, as batches are small, so a norm of its own would only cost time: a
    quarter of a training step on the CPU.
    """
    gamma, beta, mean, variance = (_value(graph, argument) for argument in norm.args[1:5])
    weight, bias = (_value(graph, argument) for argument in (*conv.args[1:3], None)[:2])
    assert weight is not None
    assert mean is not None
    assert variance is not None
    eps: Any = norm.args[6]
    scale = (variance + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    folded_weight = weight * scale[:, None, None, None]
    folded_bias = (torch.zeros_like(mean) if bias is None else bias) - mean
    folded_bias = folded_bias * scale
    if beta is not None:
        folded_bias = folded_bias + beta
    with graph.graph.inserting_before(conv):
        folded = (
            _new_parameter(graph, f"{conv.name}_weight", folded_weight),
            _new_parameter(graph, f"{conv.name}_bias", folded_bias),
        )
    conv.args = (conv.args[0], *folded, *conv.args[3:])
    (result,) = norm.users  # a batch norm gives a tuple; the node that takes its first entry
    conv.meta["val"] = result.meta["val"]
    result.replace_all_uses_with(conv)
    graph.graph.erase_node(result)
    graph.graph.erase_node(norm)


def _value(graph: GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a `get_attr` node stands for."""
    return attrgetter(node.target)(graph).detach() if node is not None else None


def _new_parameter(graph: GraphModule, name: str, value: Tensor) -> Node:
    graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return graph.graph.get_attr(name)


def outputs(graph: GraphModule) -> list[Node]:
    """A traced graph's outputs, one node per tap."""
    taps: list[Node] = list(graph.graph.output_node().args[0])  # type: ignore[arg-type]
    return taps


def source(graph: GraphModule) -> Node:
    """A traced graph's input, the images."""
    images: Node = next(node for node in graph.graph.nodes if node.op == "placeholder")
    return images


def frontier(cut: Node, targets: Sequence[Node]) -> list[Node]:
    """The nodes whose values have to be cached so that `targets` can be computed without the graph up to `cut`: `cut`
    itself (the tokens, where `cut` is a map made from a transformer's tokens), and the targets that lie before it."""
    before = {cut, *_needed([cut], [])}
    return [node for node in _needed(targets, list(before)) if node in before and _is_batch(node)]


def past_pooling(cut: Node) -> Node:
    """The cut, moved down as long as the next operation has no parameters and a smaller output: less to cache."""
    while len(users := [node for node in cut.users if node.op != "output"]) == 1:  # a tap is an output too
        following = users[0]
        before, after = cut.meta.get("val"), following.meta.get("val")
        if following.all_input_nodes != [cut] or not isinstance(before, Tensor) or not isinstance(after, Tensor):
            break
        if after[0].numel() >= before[0].numel():
            break
        cut = following
    return cut


def piece(graph: GraphModule, inputs: Sequence[Node], targets: Sequence[Node]) -> GraphModule:
    """The part of a traced graph from `inputs` to `targets`: a module that takes a tensor for each of `inputs` and
    returns a tuple with one for each of `targets`. Raises `BlemishError` where `targets` need more than `inputs`."""
    new = Graph()
    copied: dict[Node, Node] = {node: new.placeholder(node.name) for node in inputs}
    needed = set(_needed(targets, inputs))
    for node in graph.graph.nodes:
        if node not in needed or node in copied:
            continue
        if node.op == "placeholder":
            raise BlemishError(
                "this network cannot be cut there, as what follows needs more than that map (a transformer's tokens); "
                "take the last pooled layer."
            )
        if node.target is SYM_SIZE and node.args[1] == 0:
            copied[node] = new.call_function(SYM_SIZE, (copied[inputs[0]], 0))
        else:
            copied[node] = new.node_copy(node, copied.__getitem__)
    new.output(tuple(copied[target] for target in targets))
    return GraphModule(graph, new)


def _needed(targets: Sequence[Node], stop: Sequence[Node]) -> list[Node]:
    """All nodes that `targets` are computed from, themselves and those of `stop` included; nothing above `stop`."""
    seen: dict[Node, None] = {}
    waiting = list(targets)
    border = set(stop)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = None
        if node not in border and node.target is not SYM_SIZE:
            waiting += node.all_input_nodes
    return list(seen)


def _is_batch(node: Node) -> bool:
    """Whether a node is a tensor with one row per image, so neither a constant nor a number."""
    value = node.meta.get("val")
    return node.op != "get_attr" and isinstance(value, Tensor) and value.ndim > 1
