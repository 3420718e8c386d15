"""What distance is normal at each place: the mean and the spread of good images' distance maps, cell by cell.

Where parts lie still, some places are always far from the memory bank (an edge, a printed letter) and others never are,
so one threshold for the raw distances is too high for most of the image. In units of each place's own spread, all
places are alike. Where parts do not lie still the same two numbers serve all places.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Places count where they foresee this share of the variance of an image that they have not seen, and where a defect
# then needs to add less distance to be found (docs/patchcore.md).
LIES_STILL = 0.05
CONSTANT = 0.01  # of the mean spread: cells below it do not vary
FEWEST = 8  # items: fewer do not know each place's spread
STEADY = 1.0  # share of the mean spread that is added to each place's: few images know a small spread badly


class Normal(NamedTuple):
    """Mean and spread of good images' distances, `(gh, gw)`, in units of distance."""

    centre: Tensor
    spread: Tensor

    def deviations(self, distances: Tensor) -> Tensor:
        """`(..., gh, gw)` -> the same, in spreads above the mean."""
        return (distances - self.centre) / self.spread


def varying(maps: Tensor) -> Tensor:
    """The cells of `maps` (n, gh, gw) that vary over images, `(n, cells)`: constant ones, such as what is outside a
    region of interest, would be foreseen perfectly and say nothing."""
    flat = maps.flatten(1)
    spread = flat.std(0, correction=0)
    return flat[:, spread > CONSTANT * spread.mean()]


def foreseen(maps: Tensor, items: Tensor) -> float:
    """The share of the variance of good images' `maps` (n, cells) that their places explain, each image's from the
    images of other `items` (n,): 1 - sum (m - mean at the place)^2 / sum (m - mean of all places)^2. At most 1; about 0
    or below where an image says nothing about where another is far from the bank."""
    if len(set(items.tolist())) < 2:
        return 0.0
    maps = maps.double()
    centre = _without_own(maps, items)
    by_place = float((maps - centre).square().sum())
    by_all = float((maps - centre.mean(1, keepdim=True)).square().sum())
    return 1 - by_place / by_all if by_all > 0 else 0.0


def _without_own(maps: Tensor, items: Tensor, reference: Tensor | None = None) -> Tensor:
    """For each of the `maps` (n, ...), the mean of those of other items, `(n, ...)`; only maps whose `reference` (n,)
    is true count. Of sums, so that many items take no longer."""
    counted = torch.ones(len(maps)) if reference is None else reference.float()
    weights = counted.to(maps.dtype).view(-1, *[1] * (maps.ndim - 1))
    numbers = torch.unique(items, return_inverse=True)[1]
    own = torch.zeros(int(numbers.max()) + 1, *maps.shape[1:], dtype=maps.dtype).index_add_(0, numbers, maps * weights)
    own_count = torch.zeros(len(own), dtype=maps.dtype).index_add_(0, numbers, weights.flatten())
    left = weights.sum() - own_count[numbers]
    mean: Tensor = ((maps * weights).sum(0) - own[numbers]) / left.view_as(weights)
    return mean


def eased(maps: Tensor, items: Tensor, rate: float = 0.05) -> float:
    """How much distance a defect must add to be found where distances are measured by place, as a share of what it must
    add where they are not: the mean over places and good images of `maps` (n, gh, gw), each left out, of the threshold
    that flags `rate` of these images less what is there already. Below 1, places let more defects be found."""
    if not maps[0].numel() or len(set(items.tolist())) < 2:
        return 1.0
    missing = []
    for by_place in (True, False):
        deviations, spreads = left_out_deviations(maps, items, by_place=by_place)
        threshold = deviations.flatten(1).amax(1).quantile(1 - rate)
        needed = (threshold - deviations) * spreads  # back in units of distance
        missing.append(float(needed.mean()))
    return missing[0] / missing[1] if missing[1] > 0 else 1.0


def normal(maps: Tensor, *, by_place: bool) -> Normal:
    """What is normal in `maps` (n, gh, gw) of good images: at each place, or at all places alike."""
    maps = maps.double()
    centre, spread = maps.mean(0), maps.std(0, correction=0)
    if not by_place:
        centre, spread = maps.mean().expand_as(centre), maps.std(correction=0).expand_as(spread)
    return Normal(centre.float(), _steadied(spread[None])[0].float())


def _steadied(spread: Tensor) -> Tensor:
    """Each of the spreads (n, ...) with a share of its own mean; identical images have none."""
    means = spread.mean(tuple(range(1, spread.ndim)), keepdim=True)
    return (spread + STEADY * means).clamp(min=1e-6)


def left_out_deviations(
    maps: Tensor, items: Tensor, *, by_place: bool, reference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The deviations of each of the `maps` (n, ...) from what is normal in those of other `items` (n,), and the spreads
    that are their units: an image that took part in its own mean and spread would look too normal. `reference` (n,)
    bool: the maps that say what is normal, all if it is None."""
    values = maps.double()
    centre, square = (_without_own(part, items, reference) for part in (values, values.square()))
    if not by_place:
        cells = tuple(range(1, maps.ndim))
        centre, square = (part.mean(cells, keepdim=True).expand_as(maps) for part in (centre, square))
    spread = _steadied((square - centre.square()).clamp(min=0).sqrt())
    return ((values - centre) / spread).float(), spread.float()
