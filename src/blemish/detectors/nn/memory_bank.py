"""Memory banks of normal patches: which patches they hold, and which of them a new patch is nearest to.

PatchCore's bank is its detector. The other detectors carry a small one as well, so that they too can show the nearest
normal patch and its distance as evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.nn.nearest import Nearest
from blemish.types import Progress, silent

ENTRIES = 1024  # of a small bank, at most
ACTIVE, CENTRES = 4096, 64  # rows that a step of the coreset's selection looks at; centres compared at once
ROWS = 256  # compared with a whole bank at once: larger products are given back to the system each time
PROJECTION = 32  # dimensions in which a small bank is chosen
IMAGES, PATCHES = 512, 16_384  # that it is chosen from: images at most, patches about


class NormalPatches(nn.Module):
    """A small memory bank: feature maps `(N, C, h, w)` -> `neighbours` int32 `(N, h, w)`, the index of each cell's
    nearest entry, and `distances` float32 `(N, h, w)` to it.

    A patch is the mean over 3 x 3 cells, each channel in units of its spread over good images. `table` int32 `(M, 3)`:
    image, row and column that each entry comes from.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, bank: Tensor, mean: Tensor, scale: Tensor, table: npt.NDArray[np.int32]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.nearest = Nearest(bank)
        self.table = table

    @classmethod
    def of(cls, features: Iterable[Tensor], images: Tensor, *, seed: int = 0, progress: Progress = silent) -> Self:
        """Chooses at most `ENTRIES` patches from batches of good images' feature maps. `images` `(n,)` int64: the
        number of each image in the table."""
        generator = torch.Generator().manual_seed(seed)
        rows, cells, width = [], [], 1
        for batch in features:
            width = batch.shape[3]
            for of_image in as_rows(aware(batch)).cpu():
                keep = min(len(of_image), max(1, PATCHES // len(images)))
                chosen = torch.randperm(len(of_image), generator=generator)[:keep]
                rows.append(of_image[chosen])
                cells.append(chosen.to(torch.int32))
        patches = torch.cat(rows)
        spread = patches.std(0, correction=0)
        # A channel that hardly varies over good images must not dominate the distances of a new one.
        mean, scale = patches.mean(0), spread.clamp(min=float(spread.mean()) / 10 + 1e-6)
        patches = (patches - mean) / scale
        kept = greedy_coreset(
            project(patches, PROJECTION, seed), min(ENTRIES, len(patches)), seed=seed, progress=progress
        )
        table = places(kept, torch.stack(cells), width)
        table[:, 0] = images.numpy()[table[:, 0]]
        return cls(patches[kept], mean, scale, table)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        nearest, distances = self.nearest((as_rows(aware(features)) - self.mean) / self.scale)
        grid = features.shape[2:]
        return nearest.unflatten(1, grid).to(torch.int32), distances.unflatten(1, grid)


def aware(features: Tensor, patch_size: int = 3) -> Tensor:
    """`(N, C, h, w)` -> the same: the mean over the p x p cells around each (Roth et al. 2022, Eq. 2), p odd.

    Cells beyond the image's edge count as zeros, as in the paper's code and in the network's own convolutions. A mean
    over the existing cells alone, four in a corner, would vary more than one over nine, so that corners would be
    farthest from the bank.
    """
    return F.avg_pool2d(features, patch_size, stride=1, padding=patch_size // 2)


def as_rows(features: Tensor) -> Tensor:
    """`(N, C, h, w)` -> `(N, h w, C)`, cell by cell, row by row."""
    return features.flatten(2).transpose(1, 2)


def places(kept: Tensor, cells: Tensor, width: int) -> npt.NDArray[np.int32]:
    """Where the rows `kept` `(M,)` come from, int32 `(M, 3)`: image, row, column. `cells` `(images, each)` int32: the
    cells, counted row by row in a grid of `width` columns, that each image contributed, in the rows' order."""
    index = kept.cpu()
    cell = cells.flatten()[index]
    image = index // cells.shape[1]
    return torch.stack([image.to(torch.int32), cell // width, cell % width], 1).numpy()


def some(count: int) -> Tensor:
    """Indices of at most `IMAGES` of `count` images, evenly spread, int64."""
    return torch.arange(0, count, -(-count // IMAGES))


def project(features: Tensor, projection: int, seed: int = 0) -> Tensor:
    """`features (n, d)` in `projection` dimensions, by a Gaussian random matrix (Johnson & Lindenstrauss 1984); as they
    are where that is not fewer than d."""
    d = features.shape[1]
    if projection >= d:
        return features
    matrix = torch.randn(d, projection, generator=torch.Generator().manual_seed(seed)) / projection**0.5
    points: Tensor = features @ matrix.to(features)
    return points


def greedy_coreset(points: Tensor, size: int, *, seed: int = 0, progress: Progress = silent) -> Tensor:
    """Greedy k-centre selection (Sener & Savarese 2018; Roth et al. 2022, Eq. 5): indices `(size,)` of rows of
    `points (n, d)` such that no row is far from a selected one. Starts at a row drawn from `seed`; each step takes
    the row farthest from all selected ones."""
    first = int(torch.randint(len(points), (), generator=torch.Generator().manual_seed(seed)))
    farness = torch.full((len(points),), torch.inf, device=points.device)
    rows = chain([first], _farthest_first(points, farness, [first]))
    return torch.tensor([next(rows) for _ in progress(range(size), "coreset", size)], device=points.device)


def replacements(points: Tensor, kept: Tensor, items: Tensor, progress: Progress = silent) -> dict[int, Tensor]:
    """What the coreset would hold instead of an item's rows, had it never seen the item: for each item that has rows in
    it, as many rows of other items, each the farthest from those that are left.

    `points (n, d)` are all rows, `items (n,)` int64 the item of each, `kept (M,)` the coreset's rows, in any order.
    Without the replacements, a coreset less an item has a gap wherever one row of that item stood for rows of others,
    and the item's own rows would look odder than rows of a new item do. A row's replacement never depends on which
    other rows the item has, only on those that it had in the coreset.
    """
    nearest, second, item_of = _two_nearest_items(points, kept, items)
    found = dict[int, Tensor]()
    in_coreset = sorted(set(items[kept].tolist()))
    for item in progress(in_coreset, "replacements", len(in_coreset)):
        farness = torch.where(item_of == item, second, nearest)
        own, left = items == item, kept[items[kept] != item]
        farness[own], farness[left] = -1, -1  # the item's own rows never, nor those that stay
        rows = _farthest_first(points, farness, [])
        count = min(len(kept) - len(left), int((farness >= 0).sum()))
        found[item] = torch.tensor([next(rows) for _ in range(count)], dtype=torch.long)
    return found


def _two_nearest_items(points: Tensor, kept: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the `points`, `(n,)` each: the squared distance to the nearest of the rows `kept`, that to the
    nearest of another item than this one's, infinite where there is none, and this one's item."""
    centres, centre_items = points[kept], items[kept]
    norms = centres.square().sum(1)
    nearest, second, item_of = [], [], []
    for chunk in torch.split(points, ROWS):
        distances = torch.addmm(norms, chunk, centres.T, alpha=-2) + chunk.square().sum(1, keepdim=True)
        least, at = distances.min(1)
        item = centre_items[at]
        nearest.append(least)
        second.append(distances.masked_fill_(centre_items == item[:, None], torch.inf).amin(1))
        item_of.append(item)
    return torch.cat(nearest), torch.cat(second), torch.cat(item_of)


def _farthest_first(points: Tensor, farness: Tensor, selected: list[int]) -> Iterator[int]:
    """Rows of `points (n, d)`, each the farthest from all before it, and from the rows `selected`. `farness (n,)` is
    changed: the squared distance to what else was selected before, infinite without it, negative for rows that never
    are.

    A row only ever comes nearer to the selected ones. So while the farthest of the `ACTIVE` farthest rows is farther
    than all others were, it is the farthest of all, and a step need look at the active rows alone. When that no longer
    holds, all rows learn of what was selected meanwhile, in one matrix product.
    """
    norms = points.square().sum(1)
    while True:
        for centres in torch.split(torch.tensor(selected, dtype=torch.long, device=points.device), CENTRES):
            if not len(centres):
                break
            distances = torch.addmm(norms[:, None], points, points[centres].T, alpha=-2) + norms[centres]
            torch.minimum(farness, distances.amin(1), out=farness)
        farness[selected] = -1  # never again, even among identical rows
        farthest = farness.topk(min(ACTIVE + 1, len(farness)))
        others = float(farthest.values[-1]) if len(farness) > ACTIVE else -torch.inf
        active = farthest.indices[:ACTIVE].sort().values  # of rows that are equally far, the first
        near = farness[active]
        rows, row_norms, selected = points[active], norms[active], []
        while True:
            value, at = near.max(0)
            if selected and float(value) <= others:
                break
            selected.append(int(active[at]))
            yield selected[-1]
            distance = torch.addmv(row_norms, rows, rows[at], alpha=-2)
            torch.minimum(near, distance + row_norms[at], out=near)
            near[at] = -1
