"""Regions of an image filled from good images. Each region is copied from one place of one good image, so that it is as
sharp as a good part is; the mean of many patches would be a blur, which no good part shows.

The normal patches around the region propose good images and places in them. The place is taken whose surroundings fit
those of the region best (as in exemplar-based inpainting, Criminisi et al. 2004).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from blemish.inference.evidence_store import EvidenceStore, Pixels
from blemish.inference.regions import components
from blemish.inference.resizing import grown, resized_mask, size_of

BAND = 2  # cells around a region that have to fit
TRIED, REFINED = 64, 4  # places of good images tried for a region, and the best of them that are moved pixel by pixel
COMPARED, REACH = 800, 8  # pixels of the band that are compared at most, and by how many it is moved each way

Cells = npt.NDArray[np.bool_]  # (gh, gw)
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Shift = tuple[int, int, int]  # a good image, and how far down and right of a place its content is, in pixels


def soft(cells: Cells, size: tuple[int, int]) -> Floats:
    """Cells as a float32 mask (h, w) of `size` (width, height) in 0..1, whose edge fades over a cell."""
    image = Image.fromarray(resized_mask(cells, size).astype(np.uint8) * 255)
    half_cell = size[0] / cells.shape[1] / 2, size[1] / cells.shape[0] / 2
    return np.asarray(image.filter(ImageFilter.BoxBlur(half_cell))).astype(np.float32) / np.float32(255)


def fill(image: Pixels, neighbours: npt.NDArray[np.int32], store: EvidenceStore, cells: Cells) -> tuple[Floats, Floats]:
    """Normal content for `cells` (gh, gw) of an image uint8 (h, w, 3) of the store's size, whose `neighbours` (gh, gw)
    are entries of the memory bank: float32 (h, w, 3), and a mask (h, w), 1 where there is any."""
    target = image.astype(np.float32)
    content, known = np.zeros_like(target), np.zeros(store.size, np.float32)
    size = size_of(image)
    labels, count = components(cells)
    for number in range(1, count + 1):
        region = grown(labels == number)  # the fade reaches half a cell over the edge
        outer = region
        for _ in range(BAND):
            outer = grown(outer)
        band = resized_mask(outer & ~region & ~grown(cells), size)
        inside = resized_mask(region, size)
        best = _best(target, inside, band, _proposed(neighbours, store, outer), store)
        if best is None:
            continue
        source, down, right = best
        rows, columns = np.nonzero(inside)
        pixels = store.image(source).astype(np.float32)
        light = _light(target, pixels, band, inside, (down, right))
        content[rows, columns] = pixels[rows + down, columns + right] + light
        known[inside] = 1
    return content, known


def _proposed(neighbours: npt.NDArray[np.int32], store: EvidenceStore, cells: Cells) -> list[Shift]:
    """What the normal patches of `cells` propose, the most frequent first; and of each good image among them the very
    same place."""
    votes: dict[Shift, int] = {}
    pixels = [side / count for side, count in zip(store.size, cells.shape, strict=True)]  # of a cell
    for row, column in np.argwhere(cells):
        origin = store.origin(int(neighbours[row, column]))
        if origin is not None:
            number, source_row, source_column = origin
            down, right = (source_row - int(row)) * pixels[0], (source_column - int(column)) * pixels[1]
            for shift in ((number, round(down), round(right)), (number, 0, 0)):
                votes[shift] = votes.get(shift, 0) + 1
    return sorted(votes, key=lambda shift: (-votes[shift], shift))[:TRIED]


def _best(target: Floats, inside: Cells, band: Cells, shifts: Sequence[Shift], store: EvidenceStore) -> Shift | None:
    """The shift whose content best continues the band, apart from its light; None where none stays inside its image."""
    rows, columns = np.nonzero(inside)
    height, width = store.size
    places = np.argwhere(band)
    places = places[:: -(-len(places) // COMPARED) or 1]
    wanted = target[places[:, 0], places[:, 1]]

    def costs(source: int, downs: Places, rights: Places) -> npt.NDArray[np.float64]:
        """Of several shifts in one image; infinite for those that lead out of it."""
        fits = (rows.min() + downs >= 0) & (rows.max() + downs < height)
        fits &= (columns.min() + rights >= 0) & (columns.max() + rights < width)
        down, right = places[:, 0] + downs[:, None], places[:, 1] + rights[:, None]
        shown = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        fits &= 2 * shown.sum(1) >= len(places)
        pixels = store.image(source)[down.clip(0, height - 1), right.clip(0, width - 1)]
        weight = shown[..., None] / np.maximum(shown.sum(1), 1)[:, None, None]
        difference = pixels - wanted
        mean = (difference * weight).sum(1)
        variance = (np.square(difference - mean[:, None]) * weight).sum(1)
        cost: npt.NDArray[np.float64] = np.where(fits, (variance + 0.1 * np.square(mean)).sum(1), np.inf)
        return cost

    ranked = sorted((float(costs(s, np.array([d]), np.array([r]))[0]), (s, d, r)) for s, d, r in shifts)
    # Patches are known to a cell, so their content may be off by as much.
    reach = REACH if len(places) else 0
    y, x = (steps.ravel() for steps in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    lowest: float = np.inf
    best: Shift | None = None
    for _, (source, down, right) in ranked[:REFINED]:
        moved = costs(source, y + down, x + right)
        index = int(moved.argmin())
        if moved[index] < lowest:
            lowest, best = float(moved[index]), (source, int(y[index] + down), int(x[index] + right))
    return best


def _light(target: Floats, source: Floats, band: Cells, inside: Cells, shift: tuple[int, int]) -> Floats:
    """The difference in light and exposure, as a plane in each channel that is fitted on the band (least squares): of
    each pixel inside, float32 (n, 3)."""
    around, to = np.argwhere(band), np.argwhere(inside)
    around = around[((around + shift >= 0) & (around + shift < band.shape)).all(1)]
    if len(around) < 4:
        return np.zeros((len(to), 3), np.float32)
    difference = target[around[:, 0], around[:, 1]] - source[around[:, 0] + shift[0], around[:, 1] + shift[1]]
    middle, spread = around.mean(0), around.std(0) + 1e-6

    def terms(places: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        return np.concatenate([np.ones((len(places), 1)), (places - middle) / spread], 1)

    plane = np.linalg.lstsq(terms(around), difference, rcond=None)[0]
    return np.asarray(np.clip(terms(to) @ plane, difference.min(0), difference.max(0)), np.float32)
