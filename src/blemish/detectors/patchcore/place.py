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
STEADY = 1.0  # share of the mean spread that is added to each place's: few images know a small spread badly


class Normal(NamedTuple):
    """Mean and spread of good images' distances, `(gh, gw)`, in units of distance."""

    centre: Tensor
    spread: Tensor

    def deviations(self, distances: Tensor) -> Tensor:
        """`(..., gh, gw)` -> the same, in spreads above the mean."""
        return (distances - self.centre) / self.spread


def foreseen(maps: Tensor, items: Tensor) -> float:
    """The share of the variance of good images' `maps` (n, gh, gw) that their places explain, each image's from the
    images of other `items` (n,): 1 - sum (m - mean at the place)^2 / sum (m - mean of all places)^2. At most 1; about 0
    or below where an image says nothing about where another is far from the bank."""
    maps = maps.double()
    by_place = by_all = 0.0
    for item in set(items.tolist()):
        own = items == item
        if own.all():
            return 0.0
        centre = maps[~own].mean(0)
        by_place += float((maps[own] - centre).square().sum())
        by_all += float((maps[own] - centre.mean()).square().sum())
    return 1 - by_place / by_all if by_all > 0 else 0.0


def eased(maps: Tensor, items: Tensor, rate: float = 0.05) -> float:
    """How much distance a defect must add to be found where distances are measured by place, as a share of what it must
    add where they are not: the mean over places and good images of `maps` (n, gh, gw), each left out, of the threshold
    that flags `rate` of these images less what is there already. Below 1, places let more defects be found."""
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
    steady = (spread + STEADY * spread.mean()).clamp(min=1e-6)  # identical images have no spread
    return Normal(centre.float(), steady.float())


def left_out_deviations(maps: Tensor, items: Tensor, *, by_place: bool) -> tuple[Tensor, Tensor]:
    """The deviations of each of the `maps` (n, gh, gw) from what is normal in those of other `items` (n,), and the
    spreads that are their units: an image that took part in its own mean and spread would look too normal."""
    deviations, spreads = torch.empty_like(maps), torch.empty_like(maps)
    for item in set(items.tolist()):
        own = items == item
        others = normal(maps[~own], by_place=by_place)
        deviations[own], spreads[own] = others.deviations(maps[own]), others.spread
    return deviations, spreads
