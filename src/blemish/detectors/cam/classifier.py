"""Global average pooling and one dense layer (Zhou et al. 2016, section 2): the trained module, the fit of its head
alone, and the graph that is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.cam import background
from blemish.detectors.nn.memory_bank import NormalPatches
from blemish.detectors.nn.moments import mean_and_spread
from blemish.detectors.nn.resampling import Enlarge, Resize, resize_weights


class Classifier(nn.Module):
    """The trunk's outputs for N images -> logits `(N, classes)`; class 0 is good.

    The study pools one layer's features. Here several layers may be pooled, and with `moments` = 2 their squares too
    (a small defect hardly changes a feature's mean, but the mean of its square). Logits are then still a mean of linear
    functions of the cells, so each cell's share of them is exact. With one output the logit of good is always 0, so
    that both kinds of head give `(N, classes)`.

    With `grids`, (h, w) of each layer, squared deviations are pooled: how far a cell is from the mean of good images at
    the same place, in units of their spread there (the diagonal of PaDiM's distance, Defard et al. 2021). That is for
    parts that always lie alike.

    With `looks`, the last input is the image's `background.extremes` on the first layer's grid, and once a background
    was found (`skips`), only cells with something on them are pooled: features are averaged over the part.
    """

    mean: Tensor
    std: Tensor
    colour: Tensor  # of the background, (3,)
    tolerance: Tensor  # (): below 0 = there is no empty background
    normal: Tensor  # (classes,): logits of good parts, on average; the map's value where nothing is

    def __init__(
        self,
        tail: nn.Module,
        channels: Sequence[int],
        classes: int,
        outputs: int,
        moments: int,
        grids: Sequence[tuple[int, int]] = (),
        looks: bool = False,
    ) -> None:
        super().__init__()
        self.tail = tail
        self.looks, self.skips = looks, False
        if looks:
            self.register_buffer("colour", torch.zeros(3))
            self.register_buffer("tolerance", torch.tensor(-1.0))
            self.register_buffer("normal", torch.zeros(classes))
        self.deviations = bool(grids)
        self.moments = moments = 1 if grids else moments
        for layer, grid in enumerate(grids):
            self.register_buffer(f"typical_{layer}", torch.zeros(channels[layer], *grid))
            self.register_buffer(f"spread_{layer}", torch.ones(channels[layer], *grid))
        self.widths = [moments * count for count in channels]
        self.head = nn.Linear(sum(self.widths), 1 if classes == 2 and outputs == 1 else classes)
        self.register_buffer("mean", torch.zeros(sum(self.widths)))  # of the pooled features of the training images
        self.register_buffer("std", torch.ones(sum(self.widths)))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.logits(*self.seen(*inputs))

    def seen(self, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """The maps that are pooled, and their `content`."""
        features = self.features(*inputs)
        return features, self.content(inputs[-1], features) if self.skips else None

    def layers(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The pooled layers' outputs."""
        layers: Sequence[Tensor] = self.tail(*(inputs[:-1] if self.looks else inputs))
        return layers

    def features(self, *inputs: Tensor) -> list[Tensor]:
        """A map `(N, K, h, w)` for each pooled layer, whose mean the head is given."""
        return self.to_pool(self.layers(*inputs))

    def content(self, extremes: Tensor, features: Sequence[Tensor]) -> list[Tensor] | None:
        """Where something is, for each map `(N, 1, h, w)`, 1 or 0; None = everywhere."""
        if not self.skips:
            return None
        grids = [(maps.shape[2], maps.shape[3]) for maps in features]
        return background.content(extremes, self.colour, self.tolerance, grids)

    def find_background(self, good: Tensor) -> None:
        """Looks for an empty background in the `extremes` of good images."""
        found = background.find(good)
        if found:
            self.colour.copy_(found[0])
            self.tolerance.fill_(found[1])
        self.settle()

    def settle(self) -> None:
        """To be called when the buffers were loaded."""
        self.skips = self.looks and float(self.tolerance) >= 0

    def to_pool(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """The last `len(layers)` layers' outputs -> the maps that are pooled: the outputs themselves, with their
        squares, or their squared deviations."""
        first = len(self.widths) - len(layers)
        return [self._to_pool(features, layer) for layer, features in enumerate(layers, first)]

    def _to_pool(self, features: Tensor, layer: int) -> Tensor:
        if self.deviations:
            typical, spread = self.get_buffer(f"typical_{layer}"), self.get_buffer(f"spread_{layer}")
            return ((features - typical) / spread).square()
        return torch.cat([features, features.square()], 1) if self.moments == 2 else features

    def fit_reference(self, good: Iterable[Sequence[Tensor]]) -> None:
        """Sets each cell's mean and spread over good images, from batches of their layers' outputs."""
        for layer, (mean, spread) in enumerate(mean_and_spread(good)):
            # Half the channel's mean spread is added: a few images can agree at a place by chance.
            spread = spread + 0.5 * spread.mean((1, 2), keepdim=True) + 1e-6
            self.get_buffer(f"typical_{layer}").copy_(mean)
            self.get_buffer(f"spread_{layer}").copy_(spread)

    def pooled(self, features: Sequence[Tensor], content: Sequence[Tensor] | None = None) -> Tensor:
        """Global average pooling, of the cells with something on them: `(N, sum of K)`."""
        return torch.cat([mean_in(maps, where) for maps, where in _both(features, content)], 1).flatten(1)

    def logits(self, features: Sequence[Tensor], content: Sequence[Tensor] | None = None) -> Tensor:
        """`(N, classes)`."""
        return with_good(self.head((self.pooled(features, content) - self.mean) / self.std))

    def cells(self, features: Sequence[Tensor], content: Sequence[Tensor] | None = None) -> Tensor:
        """Each cell's own logits, `(N, classes, h, w)`: the class activation maps (Eq. 2), bias included, so that their
        means over the cells that are pooled are the image's logits. They are on the first layer's grid, to which
        coarser layers are enlarged. Where nothing is, they are those of good parts on average."""
        weight, bias = self.linear()
        grid = features[0].shape[2:]
        total: Tensor = bias[:, None, None]
        weights = weight.split(self.widths, 1)  # type: ignore[no-untyped-call]
        for (maps, where), own in zip(_both(features, content), weights, strict=True):
            share = F.conv2d(maps, own[:, :, None, None])
            if share.shape[2:] != grid:
                down, across = (resize_weights(share.shape[2 + axis], grid[axis]).to(share) for axis in (0, 1))
                enlarged = down @ share @ across.T
                # The mean is restored: where one grid is no multiple of the other, cells at the border weigh more.
                share = enlarged + (mean_in(share, where) - mean_in(enlarged, content[0] if content else None))
            total = total + share
        total = F.pad(total, (0, 0, 0, 0, 1, 0)) if self.head.out_features == 1 else total
        return torch.where(content[0] > 0, total, self.normal[:, None, None]) if content else total

    def linear(self) -> tuple[Tensor, Tensor]:
        """The head's weight `(outputs, K)` and bias `(outputs,)` for features that are not standardised."""
        weight = self.head.weight / self.std
        return weight, self.head.bias - weight @ self.mean

    def log_odds_cells(
        self, features: Sequence[Tensor], contrast: bool, content: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The map `(N, h, w)`: each cell's log-odds of "not good"; without `contrast` its logit of the last class less
        the bias, as published."""
        cells = self.cells(features, content)
        if contrast:
            return log_odds(cells.permute(0, 2, 3, 1))
        return cells[:, -1] - self.linear()[1][-1]


def mean_in(maps: Tensor, where: Tensor | None) -> Tensor:
    """`(N, K, h, w)` -> `(N, K, 1, 1)`: the mean, over the cells where `where` `(N, 1, h, w)` is 1."""
    if where is None:
        return maps.mean((2, 3), keepdim=True)
    return (maps * where).sum((2, 3), keepdim=True) / where.sum((2, 3), keepdim=True)


def _both(features: Sequence[Tensor], content: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    unmasked: Sequence[Tensor | None] = content or [None] * len(features)
    return zip(features, unmasked, strict=True)


def with_good(logits: Tensor) -> Tensor:
    """Logits `(N, outputs)` of the head -> `(N, classes)`: with one output, the anomaly's, good has the logit 0."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def log_odds(logits: Tensor) -> Tensor:
    """`(..., classes)` -> `(...)`: log of p(any anomaly) / p(good)."""
    if logits.shape[-1] == 2:
        return logits[..., 1] - logits[..., 0]
    return logits[..., 1:].logsumexp(-1) - logits[..., 0]


class Score(nn.Module):
    """Activations of a layer -> the part `(N,)` of the log-odds that depends on them, for maps by gradient.

    `rest`: activations -> outputs of the pooled layers from this one on, `layers` in number. Only for two classes:
    their log-odds are linear in the pooled features, so the layers before this one only add a constant."""

    weight: Tensor

    def __init__(self, rest: nn.Module, classifier: Classifier, layers: int) -> None:
        super().__init__()
        self.rest, self.classifier = rest, classifier
        weight = classifier.linear()[0]
        row = weight[-1] - weight[0] if len(weight) > 1 else weight[0]
        self.register_buffer("weight", row[-sum(classifier.widths[-layers:]) :].detach())

    def forward(self, activations: Tensor) -> Tensor:
        return self.classifier.pooled(self.classifier.to_pool(self.rest(activations))) @ self.weight


def fit_head(
    pooled: Tensor, targets: Tensor, weights: Tensor, *, outputs: int, penalty: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised features `(n, K)` by L-BFGS, in float64: weight `(outputs, K)` and bias.

    Minimises the weighted cross-entropy's sum plus penalty / 2 |weight|^2, as scikit-learn's LogisticRegression does
    with C = 1 / penalty. `targets` `(n,)` are classes, `weights` `(classes,)`.
    """
    standard = pooled.double()
    weight = torch.zeros(outputs, pooled.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )
    weights = weights.double()

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = with_good(standard @ weight.T + bias)
        loss = F.cross_entropy(logits, targets, weights, reduction="sum") + penalty / 2 * weight.square().sum()
        loss = loss / len(targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach().float(), bias.detach().float()


class CamGraph(nn.Module):
    """The fitted detector as one module: uint8 `(N, H, W, 3)` of any size -> the tensors named in `outputs`.

    `whole`: resized images -> activations of the map's layer, then of each pooled layer. `fine`: activations ->
    (scores, maps `(N, h, w)`), or None for a plain CAM. `grid`: (h, w) of the map's layer. `normal`: memory bank of the
    last pooled layer, for the outputs `neighbours` and `distances`.
    """

    def __init__(
        self,
        resize: Resize,
        whole: nn.Module,
        classifier: Classifier,
        grid: tuple[int, int],
        *,
        fine: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
        sigma: float,
        contrast: bool,
        temperature: float,
        types: bool,
        normal: NormalPatches | None = None,
    ) -> None:
        super().__init__()
        self.normal = normal
        self.resize, self.whole, self.classifier, self.fine = resize, whole, classifier, fine
        self.contrast, self.temperature, self.types = contrast, temperature, types
        self.gated = fine is not None  # the map is made from a gradient, see export.prove_parity
        more = [*(["class_maps"] if types else []), *(["neighbours", "distances"] if normal else [])]
        self.outputs: Sequence[str] = ("scores", "maps", "probabilities", *more)
        self.enlarge = Enlarge(grid, (resize.height, resize.width), sigma)  # bilinear, as published; then smoothed

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, cells, last, by_class = self.cells(self.resize(images))
        outputs = [log_odds(logits), self.enlarge(cells), (logits / self.temperature).softmax(1)]
        if self.types:
            outputs.append(self.enlarge(by_class[:, 1:] - by_class[:, :1]))
        return (*outputs, *(self.normal(last) if self.normal else ()))

    def cells(self, resized: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Resized images -> logits, the map before it is enlarged, the last layer's output, each class's cells."""
        activations, *layers = self.whole(resized)
        classifier, features = self.classifier, self.classifier.to_pool(layers)
        content = None
        if classifier.skips:
            found = background.extremes(resized, (features[0].shape[2], features[0].shape[3]))
            content = classifier.content(found, features)
        logits, by_class = classifier.logits(features, content), classifier.cells(features, content)
        if self.fine is None:
            return logits, classifier.log_odds_cells(features, self.contrast, content), layers[-1], by_class
        cells = self.fine(activations)[1]
        if classifier.skips:  # the gradient is that of all cells' mean; where nothing is, it shows nothing
            for where in classifier.content(found, [activations]) or ():
                cells = cells * where[:, 0]
        return logits, cells, layers[-1], by_class
