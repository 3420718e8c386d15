"""Class activation maps: where a score comes from, as functions of a layer's activations and the score's gradient.

Every function takes float32 activations A and gradients G, both `(N, K, h, w)`, and returns float32 `(N, h, w)`.
Values are signed: there is no final ReLU and no scaling to 0..1, as negative evidence counts too. All maps are
multiplied by h * w, since global average pooling divides the gradient by it: in a network that ends in global average
pooling and a dense layer, `cam`, `gradcam` and `hirescam` are the same map, and its mean is the score minus the bias.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from blemish.detectors.nn.gradient_graph import with_gradient
from blemish.types import BlemishError


def cam(activations: Tensor, row: Tensor) -> Tensor:
    """M = sum_k w_k A_k (Zhou et al. 2016, Eq. 2); `row`: `(K,)`, the dense layer's weights of the class.

    The mean of the map is the score minus the dense layer's bias.
    """
    return (row[:, None, None] * activations).sum(1)


def gradcam(activations: Tensor, gradient: Tensor) -> Tensor:
    """h w sum_k mean_ij(G_k) A_k (Selvaraju et al. 2017, Eq. 1 and 2 without the ReLU).

    After global average pooling and a dense layer this is `cam`: its mean is the score minus the bias.
    """
    return _cells(activations) * (gradient.mean((2, 3), keepdim=True) * activations).sum(1)


def gradcam_plus_plus(activations: Tensor, gradient: Tensor) -> Tensor:
    """h w sum_k w_k A_k with w_k = sum_ij alpha_kij relu(G_kij) (Chattopadhay et al. 2018, Eq. 10 to 19).

    The second and third derivatives in alpha (Eq. 19) are G^2 and G^3, as the score is assumed to be under an
    exponential. The 1e-6 in its denominator is pytorch-grad-cam's; it dominates for gradients below about 1e-3.
    """
    squared = gradient * gradient
    total = activations.sum((2, 3), keepdim=True)
    alpha = squared / (2 * squared + total * squared * gradient + 1e-6)  # zero where G is zero
    weights = (alpha * gradient.relu()).sum((2, 3), keepdim=True)
    return _cells(activations) * (weights * activations).sum(1)


def layercam(activations: Tensor, gradient: Tensor) -> Tensor:
    """h w sum_k relu(G_k) A_k, cell by cell (Jiang et al. 2021, Eq. 5 and 6 without the ReLU)."""
    return _cells(activations) * (gradient.relu() * activations).sum(1)


def hirescam(activations: Tensor, gradient: Tensor) -> Tensor:
    """h w sum_k G_k A_k, cell by cell (Draelos & Carin 2020).

    After global average pooling and a dense layer this is `cam`: its mean is the score minus the bias. The mean is so
    wherever the tail is linear up to a constant.
    """
    return _cells(activations) * (gradient * activations).sum(1)


Method = Callable[[Tensor, Tensor], Tensor]
METHODS: dict[str, Method] = {
    "cam": gradcam,  # the same map wherever CAM is defined (Selvaraju et al. 2017, section 3.1)
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "hirescam": hirescam,
}


class GradientMap(nn.Module):
    """Activations `(N, K, h, w)` -> scores `(N,)` of `tail` and maps `(N, h, w)` by a method of METHODS.

    Needs no autograd when run; see `with_gradient` for `tail`, `example` and errors.
    """

    def __init__(self, tail: nn.Module, example: Tensor, method: str) -> None:
        super().__init__()
        if method not in METHODS:
            raise BlemishError(f"there is no map called '{method}'; take one of {', '.join(METHODS)}.")
        self.tail = with_gradient(tail, example)
        self.method = METHODS[method]

    def forward(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        scores, gradient = self.tail(activations)
        return scores, self.method(activations, gradient)


def _cells(activations: Tensor) -> int:
    return activations.shape[2] * activations.shape[3]
