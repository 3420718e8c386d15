"""Places of an image filled from good images: each from one place of one of them, so that it stays as sharp and as
whole as a good part is (the mean of many patches would be a blur, which no good part shows).

Which good image, and where in it, the normal patches around the place say; among what they propose, that is taken
which best continues what is left of the image (as in exemplar-based inpainting, Criminisi et al. 2004).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from blemish.inference.evidence_store import EvidenceStore, Pixels
from blemish.inference.regions import components

BAND = 2  # cells around a place that have to fit
TRIED, REFINED = 64, 4  # places of good images tried for one fill, and the best of them moved pixel by pixel
COMPARED, REACH = 800, 8  # pixels of the band at most, and by how many it is moved each way

Cells = npt.NDArray[np.bool_]  # (gh, gw)
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Shift = tuple[int, int, int]  # a good image, and how far down and right of a place its content is, in pixels


def grown(cells: Cells) -> Cells:
    """With the eight cells around each."""
    padded = np.pad(cells, 1)
    down = padded[:-2] | padded[1:-1] | padded[2:]
    return down[:, :-2] | down[:, 1:-1] | down[:, 2:]


def enlarged(cells: Cells, shape: tuple[int, int]) -> Cells:
    """As pixels of `shape` (h, w)."""
    image = Image.fromarray(cells.astype(np.uint8)).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(image) > 0


def soft(cells: Cells, shape: tuple[int, int]) -> Floats:
    """As a float32 mask of `shape` in 0..1, whose edge fades over a cell."""
    image = Image.fromarray(enlarged(cells, shape).astype(np.uint8) * 255)
    reach = shape[1] / cells.shape[1] / 2, shape[0] / cells.shape[0] / 2
    return np.asarray(image.filter(ImageFilter.BoxBlur(reach))).astype(np.float32) / np.float32(255)


def fill(image: Pixels, neighbours: npt.NDArray[np.int32], store: EvidenceStore, cells: Cells) -> tuple[Floats, Floats]:
    """Normal content for `cells` (gh, gw) of an image uint8 (h, w, 3) of the memory's size, whose `neighbours`
    (gh, gw) are entries of the bank: float32 (h, w, 3), and a mask (h, w), 1 where there is any."""
    shape = store.size
    target = image.astype(np.float32)
    content, known = np.zeros_like(target), np.zeros(shape, np.float32)
    labels, count = components(cells)
    for number in range(1, count + 1):
        place = labels == number
        around = grown(place)  # the fade reaches half a cell over the edge
        outer = around
        for _ in range(BAND):
            outer = grown(outer)
        band = enlarged(outer & ~around & ~grown(cells), shape)
        inside = enlarged(around, shape)
        found = _best(target, inside, band, _proposed(neighbours, store, outer), store)
        if found is None:
            continue
        source, down, right = found
        rows, columns = np.nonzero(inside)
        pixels = store.image(source).astype(np.float32)
        content[rows, columns] = pixels[rows + down, columns + right] + _light(target, pixels, band, inside, found)
        known[inside] = 1
    return content, known


def _proposed(neighbours: npt.NDArray[np.int32], store: EvidenceStore, cells: Cells) -> list[Shift]:
    """What the normal patches of `cells` propose, the most frequent first, in pixels; and of each good image among
    them the very place."""
    votes: dict[Shift, int] = {}
    step = [whole / count for whole, count in zip(store.size, cells.shape, strict=True)]
    for row, column in np.argwhere(cells):
        origin = store.origin(int(neighbours[row, column]))
        if origin is not None:
            number, there, across = origin
            shift = number, round((there - int(row)) * step[0]), round((across - int(column)) * step[1])
            for one in (shift, (number, 0, 0)):
                votes[one] = votes.get(one, 0) + 1
    return sorted(votes, key=lambda shift: (-votes[shift], shift))[:TRIED]


def _best(target: Floats, inside: Cells, band: Cells, shifts: Sequence[Shift], store: EvidenceStore) -> Shift | None:
    """The shift whose content best continues the band, but for its light; None where none stays inside its image."""
    rows, columns = np.nonzero(inside)
    height, width = store.size
    at = np.argwhere(band)
    at = at[:: -(-len(at) // COMPARED) or 1]
    wanted = target[at[:, 0], at[:, 1]]

    def costs(source: int, downs: Places, rights: Places) -> npt.NDArray[np.float64]:
        """Of several shifts in one image; infinite for those that lead out of it."""
        fits = (rows.min() + downs >= 0) & (rows.max() + downs < height)
        fits &= (columns.min() + rights >= 0) & (columns.max() + rights < width)
        down, right = at[:, 0] + downs[:, None], at[:, 1] + rights[:, None]
        seen = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        fits &= 2 * seen.sum(1) >= len(at)
        pixels = store.image(source)[down.clip(0, height - 1), right.clip(0, width - 1)]
        weight = seen[..., None] / np.maximum(seen.sum(1), 1)[:, None, None]
        apart = pixels - wanted
        mean = (apart * weight).sum(1)
        spread = (np.square(apart - mean[:, None]) * weight).sum(1)
        found: npt.NDArray[np.float64] = np.where(fits, (spread + 0.1 * np.square(mean)).sum(1), np.inf)
        return found

    ranked = sorted((float(costs(s, np.array([d]), np.array([r]))[0]), (s, d, r)) for s, d, r in shifts)
    # Patches are known to a cell, so their content may be off by as much.
    reach = REACH if len(at) else 0
    y, x = (steps.ravel() for steps in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    best: tuple[float, Shift] | None = None
    for _, (source, down, right) in ranked[:REFINED]:
        moved = costs(source, y + down, x + right)
        index = int(moved.argmin())
        if moved[index] < (best[0] if best else np.inf):
            best = float(moved[index]), (source, int(y[index] + down), int(x[index] + right))
    return best[1] if best else None


def _light(target: Floats, source: Floats, band: Cells, inside: Cells, shift: Shift) -> Floats:
    """What light and exposure differ by, as a plane in each channel, fitted on the band (least squares): of each pixel
    inside, float32 (n, 3)."""
    at, to = np.argwhere(band), np.argwhere(inside)
    at = at[((at + shift[1:] >= 0) & (at + shift[1:] < band.shape)).all(1)]
    if len(at) < 4:
        return np.zeros((len(to), 3), np.float32)
    apart = target[at[:, 0], at[:, 1]] - source[at[:, 0] + shift[1], at[:, 1] + shift[2]]
    middle, spread = at.mean(0), at.std(0) + 1e-6

    def terms(places: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        return np.concatenate([np.ones((len(places), 1)), (places - middle) / spread], 1)

    plane = np.linalg.lstsq(terms(at), apart, rcond=None)[0]
    low, high = apart.min(0), apart.max(0)
    return np.asarray(np.clip(terms(to) @ plane, low, high), np.float32)
