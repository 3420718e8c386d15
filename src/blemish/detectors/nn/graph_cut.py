"""A network cut in two: the trunk, which stays as it is and is run once an image, and the tail, which is trained.

A backbone is traced to a graph of ATen operations (`torch.export`), and such a graph can be cut anywhere, whatever the
network's author called its parts. Pieces share their parameters with the graph: a trained tail is trained in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule, Node

from blemish.detectors.nn.backbones import Backbone
from blemish.types import BlemishError

SYM_SIZE = torch.ops.aten.sym_size.int
CONV = torch.ops.aten.conv2d.default
BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default


def trace(backbone: Backbone, image_size: tuple[int, int]) -> GraphModule:
    """float32 images `(N, 3, *image_size)` in 0..255 -> one map per tap, as a graph without in-place operations."""
    example = torch.zeros(2, 3, *image_size)
    program = torch.export.export(backbone, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
    graph: GraphModule = program.run_decompositions({}).module()
    _fold_norms(graph)
    return graph


def _fold_norms(graph: GraphModule) -> None:
    """Every batch norm after a convolution goes into its weight and bias: their statistics stay fixed in fine-tuning
    (batches are small), so they say nothing of their own, and cost a quarter of a step on the CPU."""
    for node in list(graph.graph.nodes):
        if node.target is not BATCH_NORM or node.args[0].target is not CONV or len(node.args[0].users) > 1:
            continue
        conv, (result,) = node.args[0], node.users
        gain, offset, mean, variance = (n and attrgetter(n.target)(graph).detach() for n in node.args[1:5])
        weight, bias = (n and attrgetter(n.target)(graph).detach() for n in (*conv.args[1:3], None)[:2])
        scale = (variance + node.args[6]).rsqrt() * (1 if gain is None else gain)
        new = {
            "weight": weight * scale[:, None, None, None],
            "bias": ((0 if bias is None else bias) - mean) * scale + (0 if offset is None else offset),
        }
        with graph.graph.inserting_before(conv):
            nodes = []
            for what, tensor in new.items():
                name = f"{conv.name}_{what}"
                graph.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
                nodes.append(graph.graph.get_attr(name))
        conv.args = (conv.args[0], *nodes, *conv.args[3:])
        conv.meta["val"] = result.meta["val"]
        result.replace_all_uses_with(conv)
        graph.graph.erase_node(result)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def outputs(graph: GraphModule) -> list[Node]:
    """What a traced graph gives, one node per tap."""
    found: list[Node] = list(graph.graph.output_node().args[0])  # type: ignore[arg-type]
    return found


def source(graph: GraphModule) -> Node:
    """The images that a traced graph takes."""
    found: Node = next(node for node in graph.graph.nodes if node.op == "placeholder")
    return found


def frontier(cut: Node, targets: Sequence[Node]) -> list[Node]:
    """What has to be kept of the part up to `cut` so that `targets` can be computed from it: `cut` itself (or, where
    the map there was only made for us from tokens, the tokens), and those targets that lie before it."""
    before = {cut, *_needed([cut], [])}
    return [node for node in _needed(targets, list(before)) if node in before and _is_batch(node)]


def past_pooling(cut: Node) -> Node:
    """The cut, moved down as long as what follows has no parameters and makes less of it: less to keep."""
    while len(users := [node for node in cut.users if node.op != "output"]) == 1:  # a tap is an output too
        after = users[0]
        now, then = cut.meta.get("val"), after.meta.get("val")
        if after.all_input_nodes != [cut] or not isinstance(now, Tensor) or not isinstance(then, Tensor):
            break
        if then[0].numel() >= now[0].numel():
            break
        cut = after
    return cut


def piece(graph: GraphModule, inputs: Sequence[Node], targets: Sequence[Node]) -> GraphModule:
    """The part of a traced graph from `inputs` to `targets`: a module of as many tensors, giving a tuple of tensors."""
    new = Graph()
    copied: dict[Node, Node] = {node: new.placeholder(node.name) for node in inputs}
    needed = set(_needed(targets, inputs))
    for node in graph.graph.nodes:
        if node not in needed or node in copied:
            continue
        if node.op == "placeholder":
            raise BlemishError(
                "this network cannot be cut there, as what follows is not made from that map alone (a transformer's "
                "tokens); take the last pooled layer."
            )
        if node.target is SYM_SIZE and node.args[1] == 0:
            copied[node] = new.call_function(SYM_SIZE, (copied[inputs[0]], 0))
        else:
            copied[node] = new.node_copy(node, copied.__getitem__)
    new.output(tuple(copied[target] for target in targets))
    return GraphModule(graph, new)


def _needed(targets: Sequence[Node], stop: Sequence[Node]) -> list[Node]:
    """All nodes that `targets` are computed from, themselves included; nothing above `stop`."""
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
    """Whether a node is a tensor with one row an image, and no constant and no number."""
    value = node.meta.get("val")
    return node.op != "get_attr" and isinstance(value, Tensor) and value.ndim > 1
