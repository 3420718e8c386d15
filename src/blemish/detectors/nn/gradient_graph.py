"""The gradient of a score as forward operations, so that Grad-CAM and similar maps need no autograd in inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from blemish.types import BlemishError

aten = torch.ops.aten


@torch.inference_mode(False)
@torch.enable_grad()  # whatever mode the caller is in
@sdpa_kernel(SDPBackend.MATH)  # the backward of fused attention is opaque
def with_gradient(tail: nn.Module, example: Tensor) -> fx.GraphModule:
    """A module of forward operations alone: activations -> (scores, each image's gradient of its own score).

    `tail`: float32 activations `(N, K, h, w)` -> scores `(N,)`, in eval mode, images independent of each other; where
    its output has more axes (a latent code, say), the gradient is that of their sum. `example`: activations of any N;
    N stays free in the result, K, h and w are fixed. The result shares its parameters with `tail`, and works in
    `torch.inference_mode`, `torch.export` and the ONNX exporter.
    Raises `BlemishError` naming the operation whose gradient has no such form.
    """

    def both(activations: Tensor) -> tuple[Tensor, Tensor]:
        scores = tail(activations.clone())  # the tail may begin with an in-place operation
        if not scores.requires_grad:
            raise BlemishError(f"this network's score has no gradient at this layer (a rounding?); {_REMEDY}")
        (gradient,) = torch.autograd.grad(scores.sum(), activations)
        return scores.detach(), gradient

    # Traced on a tensor without content whose N is a symbol. Its value equals no other size, so that no constant of the
    # network is taken for N.
    batch = max(example.shape) + 1
    symbols: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
        dynamic_sizes=[DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (example.ndim - 1)
    )
    blank = torch.empty(batch, *example.shape[1:], dtype=example.dtype, device=example.device)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    activations = mode.from_tensor(blank, symbolic_context=symbols).requires_grad_()
    trace = make_fx(both, decomposition_table=_table(), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    try:
        graph = trace(activations)
    # torch's refusals have only this type in common: a missing derivative, a branch on values, a tensor changed in
    # place. The tail itself has run before, so other errors do not end up here.
    except RuntimeError as cause:
        operation = getattr(cause, "func", None) or str(cause).splitlines()[0][:160]
        raise BlemishError(f"this network has no gradient as plain operations: {operation}; {_REMEDY}") from cause
    graph.graph.eliminate_dead_code()
    graph.recompile()
    left = sorted({str(node.target) for node in graph.graph.nodes if "backward" in str(node.target)})
    if left:
        raise BlemishError(f"the gradient of this network needs {', '.join(left)}, which ONNX lacks; {_REMEDY}")
    if not isinstance(activations.shape[0], torch.SymInt) or activations.shape[0].node.maybe_as_int() is not None:
        raise BlemishError(f"this network fixes how many images it takes at once; {_REMEDY}")
    return graph


_REMEDY = "take a later layer, or a map that needs no gradient."


@cache
def _table() -> dict[Any, Callable[..., Any]]:
    """Backward operations by what they are decomposed into: torch's own list, and ours where torch has none."""
    default = torch.export.default_decompositions()
    return {
        **{operation: default[operation] for operation in default if "backward" in str(operation)},
        aten.convolution_backward.default: _convolution,
        aten.max_pool2d_with_indices_backward.default: _max_pool,
        aten.avg_pool2d_backward.default: _avg_pool,
        aten._adaptive_avg_pool2d_backward.default: _adaptive_avg_pool,
        aten.replication_pad2d_backward.default: _pad("replicate"),
        aten.reflection_pad2d_backward.default: _pad("reflect"),
        aten.upsample_bilinear2d_backward.default: _upsample_bilinear,
        aten.upsample_nearest2d_backward.default: _upsample_nearest,
    }


def _convolution(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias_sizes: object,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: object,
    groups: int,
    _output_mask: object,
) -> tuple[Tensor, None, None]:
    """A convolution's gradient is the transposed convolution with the same weight, and the other way round."""
    output_padding = [0] * len(stride)
    if not transposed:  # the last rows that the stride did not reach
        output_padding = [
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                x.shape[2:], grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        ]
    # Both signs are turned because OpenVINO confuses a convolution and its transpose that share one weight.
    flipped = aten.convolution.default(
        grad, -weight, None, stride, padding, dilation, not transposed, output_padding, groups
    )
    return -flipped, None, None


def _max_pool(
    grad: Tensor,
    x: Tensor,
    _kernel: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    _ceil_mode: object,
    indices: Tensor,
) -> Tensor:
    """Each maximum's gradient is added at the place of the maximum; overlapping windows may share one."""
    zeros = torch.zeros_like(x).flatten(2)
    return zeros.scatter_add(2, indices.flatten(2), grad.flatten(2)).reshape(x.shape)


def _separable(grad: Tensor, size: Sequence[int], resample: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Gradient of a map x resampled linearly along rows and columns: of y = R x C it is R' grad C'.

    `size`: of x; `resample(values, axis)`: resamples `(1, L, L)` along its last axis as the map is along axis 0 (down)
    or 1 (across). Applied to the identity it yields the matrix R' or C.
    """
    with _disable_current_modes():  # computed now, not traced
        identities = (torch.eye(length, dtype=grad.dtype, device=grad.device)[None] for length in size[-2:])
        rows, columns = (resample(identity, axis)[0] for axis, identity in enumerate(identities))
        columns = columns.T.contiguous()
    return rows @ grad @ columns


def _avg_pool(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    def pool(values: Tensor, axis: int) -> Tensor:
        k, s, p = kernel[axis], (stride or kernel)[axis], padding[axis]
        override = None if divisor is None else 1
        return F.avg_pool2d(values, (1, k), (1, s), (0, p), ceil_mode, count_include_pad, override)

    return _separable(grad, x.shape, pool) / (divisor or 1)


def _adaptive_avg_pool(grad: Tensor, x: Tensor) -> Tensor:
    sizes = grad.shape[-2:]
    return _separable(grad, x.shape, lambda values, axis: F.adaptive_avg_pool1d(values, sizes[axis]))


def _pad(mode: str) -> Callable[[Tensor, Tensor, Sequence[int]], Tensor]:
    def backward(grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
        across, down = padding[:2], padding[2:]
        return _separable(grad, x.shape, lambda values, axis: F.pad(values, (down, across)[axis], mode))

    return backward


def _upsample_bilinear(
    grad: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    linear, scales = aten.upsample_linear1d.default, (scale_h, scale_w)
    return _separable(
        grad, input_size, lambda values, axis: linear(values, [output_size[axis]], align_corners, scales[axis])
    )


def _upsample_nearest(
    grad: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    nearest, scales = aten.upsample_nearest1d.default, (scale_h, scale_w)
    return _separable(grad, input_size, lambda values, axis: nearest(values, [output_size[axis]], scales[axis]))
