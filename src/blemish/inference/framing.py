"""How an image is brought before the detector, the same while learning and on the line: made as large as the frame,
aligned to a reference, filled with one constant outside the region of interest, and cut into tiles, whose maps are
blended into one.

The card's `bundle.Frame` says which of these. Without one, images go to the graph as they are.
"""

from __future__ import annotations

import io
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.inference import alignment
from blemish.inference.bundle import REFERENCE, ROI, Bundle, BundleError, Frame
from blemish.types import BlemishError, Prediction, Runner

if TYPE_CHECKING:
    from collections.abc import Sequence

FILL = 128  # of every channel, outside the region of interest
BATCH = 4  # tiles in a run of the graph: more are no faster, and take memory
FINER = 4  # so many times coarser than a tile's own map is that of the whole image: maps are smooth
MOST_CELLS = 2**18  # of the whole image's map: 1 MiB

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]


class AlignError(BlemishError):
    """An image that does not lie like the reference, however it is shifted and turned."""


class Framing:
    """A frame with its region of interest, bool (H, W), and its reference, uint8 (h, w, 3).

    A *pose* (see alignment.py) is float64 (2, 3): the pixel (x, y) of the frame shows the pixel `pose @ (x, y, 1)` of
    the image, made as large as the frame. Without alignment there is none.
    """

    def __init__(self, frame: Frame, roi: Mask | None = None, reference: Pixels | None = None) -> None:
        self.frame, self.roi, self.reference = frame, roi, reference
        self._touched: dict[tuple[int, int], Mask] = {}
        self._samplers: dict[tuple[int, ...], Sampler] = {}
        if frame.align:
            alignment.opencv()  # says now that it is missing, not at the first image

    @classmethod
    def of(cls, loaded: Bundle) -> Framing | None:
        """Of a bundle; None where its images go to the graph as they are. Raises `BundleError` where its files are
        not what its card says, and `BlemishError` where OpenCV is needed and missing."""
        frame = loaded.card.frame
        if frame is None:
            return None
        roi = _image(loaded, ROI, loaded.roi, "L") > 127 if frame.roi else None
        reference = _image(loaded, REFERENCE, loaded.reference, "RGB") if frame.align else None
        if roi is not None and roi.shape != (frame.size[1], frame.size[0]):
            raise BundleError(f"{loaded.path}: {ROI} is not of the frame's size; train the bundle again.")
        width, height = frame.tile or (0, 0)
        outside = [at for at in frame.tiles if at[0] + width > frame.size[0] or at[1] + height > frame.size[1]]
        if (frame.tile and not frame.tiles) or outside or any(min(at) < 0 for at in frame.tiles):
            raise BundleError(f"{loaded.path}: the card's tiles do not lie in its frame; train the bundle again.")
        return cls(frame, roi, reference)

    def bring(
        self, image: Pixels, pose: alignment.Pose | None = None, *, fill: bool = True
    ) -> tuple[Pixels, alignment.Pose | None]:
        """An image uint8 (H, W, 3) of any size as the detector sees it, before it is cut: of the frame's size; and its
        pose, which may be given. Without `fill` what is outside the region stays. Raises `AlignError`."""
        frame = self.frame
        width, height = frame.size
        if fill and self.roi is not None and not frame.align and image.shape[:2] != (height, width):
            # Before resizing too: it mixes neighbours.
            inside = _nearest(self.roi, (image.shape[1], image.shape[0]))
            image = np.where(inside[..., None], image, np.uint8(FILL))
        image = alignment.resized(image, frame.size)
        if frame.align:
            if pose is None:
                pose = self.find(image)
            image = alignment.aligned(image, pose, self._filling)
        if fill and self.roi is not None:
            image = np.where(self.roi[..., None], image, np.uint8(FILL))
        return image, pose

    def find(self, image: Pixels) -> alignment.Pose:
        """The pose of an image of the frame's size. Raises `AlignError`."""
        assert self.reference is not None
        pose, sure = alignment.find(image, self.reference)
        if sure < self.frame.least_correlation:
            raise AlignError(
                f"it could not be aligned with the reference image (correlation {sure:.2f}, at least "
                f"{self.frame.least_correlation:.2f} is needed); is the whole part in the image?"
            )
        return pose

    def over(self, run: Runner, batch: int = BATCH) -> Runner:
        """A graph's `run` for whole images uint8 (1, H, W, 3) of any size; of tiles, `batch` go to it at a time.

        The map is of the frame's `map_size`, or where there are no tiles of the graph's, and lies as the image does.
        With tiles the score is the highest of a tile, and `neighbours` and `distances` are (1, tiles, gh, gw). Of
        aligned images there is `poses` (1, 2, 3) besides. Raises `AlignError`.
        """

        def whole(images: Pixels) -> Prediction:
            image, pose = self.bring(images[0])
            found = self._cut(image, run, batch) if self.frame.tile else run(image[None]).outputs()
            for name in ("maps", "class_maps"):
                if name in found:
                    found[name] = self._returned(found[name], pose)
            if pose is not None:
                found["poses"] = pose[None]
                if "reconstruction" in found:
                    found["reconstruction"] = alignment.back(found["reconstruction"][0], pose, self.frame.size, FILL)[
                        None
                    ]
            return Prediction(**found)

        return whole

    def _returned(self, values: npt.NDArray[Any], pose: alignment.Pose | None) -> npt.NDArray[Any]:
        """Maps (1, h, w) or (1, C, h, w) as the image lies, each at its lowest value where nothing counts."""
        done = []
        for one in values.reshape(-1, *values.shape[-2:]):
            inside = self.inside_map(one.shape)
            low = one[inside].min()
            one = np.where(inside, one, low)
            done.append(one if pose is None else alignment.back(one, pose, self.frame.size, float(low)))
        return np.stack(done).reshape(values.shape)

    def inside_map(self, shape: tuple[int, ...]) -> Mask:
        """The cells of a map (h, w) of the frame that the region touches."""
        key = shape[0], shape[1]
        if key not in self._touched:
            self._touched[key] = np.ones(key, bool) if self.roi is None else touched(self.roi, key)
        return self._touched[key]

    def inside(self, size: tuple[int, int], pose: alignment.Pose | None = None) -> Mask | None:
        """The region of interest in an image of `size` (width, height), as it lies: bool (H, W); None = all of it."""
        roi = self.roi
        if roi is None:
            return None
        if pose is not None:
            roi = alignment.back(roi.astype(np.uint8) * np.uint8(255), pose, self.frame.size, 0) > 127
        return _nearest(roi, size)

    @property
    def boxes(self) -> list[Box]:
        """Of the tiles, in pixels of the frame: left, top, right, bottom. One, of it all, where it is not cut."""
        frame = self.frame
        if frame.tile is None:
            return [(0, 0, *frame.size)]
        width, height = frame.tile
        return [(left, top, left + width, top + height) for left, top in frame.tiles]

    def _cut(self, image: Pixels, run: Runner, batch: int) -> dict[str, npt.NDArray[Any]]:
        boxes = self.boxes
        kept: dict[str, list[npt.NDArray[Any]]] = {}
        blend = {name: self._blend() for name in ("maps", "reconstruction")}
        for start in range(0, len(boxes), batch):
            chosen = boxes[start : start + batch]
            tiles = np.stack([image[top:bottom, left:right] for left, top, right, bottom in chosen])
            for name, values in run(tiles).outputs().items():
                if name in blend:
                    for box, one in zip(chosen, values, strict=True):
                        blend[name].add(box, one)
                elif name in ("scores", "neighbours", "distances"):
                    kept.setdefault(name, []).append(values)
        found = {name: np.concatenate(parts)[None] for name, parts in kept.items()}
        found["scores"] = found["scores"].max(1)
        found["maps"] = blend["maps"].whole()[None]
        if blend["reconstruction"].seen:
            found["reconstruction"] = np.clip(np.round(blend["reconstruction"].whole()), 0, 255).astype(np.uint8)[None]
        return found

    def _blend(self) -> Blend:
        return Blend(self.frame.size, self.frame.map_size, self.frame.overlap, self._samplers)

    @cached_property
    def _filling(self) -> Pixels | None:
        return None if self.reference is None else alignment.resized(self.reference, self.frame.size)


Sampler = tuple[slice, Floats, Floats]  # cells along an axis, (cells, samples) that make them, their weights


class Blend:
    """Adds up tiles' maps, (h, w) or (h, w, C), to one of the whole frame (width, height) with cells `(mh, mw)`.

    A tile's weight rises linearly from its edge inwards over `overlap` pixels, and the weights of all tiles at a place
    are scaled to add up to 1. So where tiles agree nothing changes, and where one ends no step is left.
    """

    def __init__(
        self,
        size: tuple[int, int],
        map_size: tuple[int, int],
        overlap: int,
        known: dict[tuple[int, ...], Sampler] | None = None,
    ) -> None:
        self.size, self.map_size, self.overlap = size, map_size, overlap
        self.seen = False
        self._known = {} if known is None else known
        self._weights = np.zeros(map_size, np.float32)

    def add(self, box: Box, values: npt.NDArray[Any]) -> None:
        """`values` of the tile `box`, in pixels of the frame."""
        if not self.seen:
            self.seen = True
            self._sum = np.zeros((*self.map_size, *values.shape[2:]), np.float32)
        (rows, down, high), (columns, across, wide) = (
            self._axis(box[1 - axis], box[3 - axis], self.size[1 - axis], self.map_size[axis], values.shape[axis])
            for axis in (0, 1)
        )
        weight = high[:, None] * wide[None]
        part = np.tensordot(across, np.tensordot(down, values.astype(np.float32), (1, 0)), (1, 1)).swapaxes(0, 1)
        self._sum[rows, columns] += part * weight.reshape(*weight.shape, *[1] * (values.ndim - 2))
        self._weights[rows, columns] += weight

    def whole(self) -> Floats:
        """The blended map; where there is no tile it is the lowest that there is."""
        here = self._weights > 0
        weights = np.where(here, self._weights, np.float32(1)).reshape(*here.shape, *[1] * (self._sum.ndim - 2))
        found: Floats = (self._sum / weights).astype(np.float32)
        if not here.all():
            found[~here] = found[here].min()
        return found

    def _axis(self, start: int, end: int, length: int, cells: int, samples: int) -> Sampler:
        key = (start, end, length, cells, samples)
        if key not in self._known:
            self._known[key] = sampler(start, end, length, cells, samples, self.overlap)
        return self._known[key]


def sampler(start: int, end: int, length: int, cells: int, samples: int, overlap: int) -> Sampler:
    """Along one axis of a frame of `length` pixels: which of the `cells` of its map have their centre in the tile from
    `start` to `end`, what each reads of the tile's `samples` (linear, between centres), and how much the tile counts
    there, above 0 and at most 1."""
    centres = (np.arange(cells) + 0.5) * (length / cells)
    first, last = np.searchsorted(centres, (start, end))
    centres = centres[first:last] - start
    step = (end - start) / samples
    at = np.clip(centres / step - 0.5, 0, samples - 1)
    low = np.minimum(at.astype(int), max(0, samples - 2))
    reads = np.zeros((len(centres), samples), np.float32)
    rows = np.arange(len(centres))
    reads[rows, low] = 1 - (at - low)
    reads[rows, np.minimum(low + 1, samples - 1)] += at - low
    # Beyond the centre of the outermost sample nothing is known, so there another tile counts, if there is one.
    edge = np.minimum(centres, end - start - centres) - step / 2
    weights = np.clip(edge / overlap, 1e-6, 1) if overlap else np.ones(len(centres))
    return slice(int(first), int(last)), reads, weights.astype(np.float32)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of `tile` pixels begin along `length`, so that all are whole: the last is moved inwards."""
    step = tile - overlap
    return [*range(0, length - tile, step), length - tile]


def map_size(size: tuple[int, int], tile: tuple[int, int], seen: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the map of a frame `size` (width, height) with tiles (width, height) that the detector sees at
    `seen` (height, width): a quarter as fine as a tile's own map, and never more than MOST_CELLS."""
    cells = [size[1 - axis] * seen[axis] / (tile[1 - axis] * FINER) for axis in (0, 1)]
    factor = min(1.0, (MOST_CELLS / (cells[0] * cells[1])) ** 0.5)
    return max(1, int(cells[0] * factor)), max(1, int(cells[1] * factor))


def tiles_of(
    size: tuple[int, int], tile: tuple[int, int], overlap: int, roi: Mask | None
) -> tuple[tuple[int, int], ...]:
    """(left, top) of the tiles of a frame, row by row, without those wholly outside the region."""
    return tuple(
        (left, top)
        for top in starts(size[1], tile[1], overlap)
        for left in starts(size[0], tile[0], overlap)
        if roi is None or roi[top : top + tile[1], left : left + tile[0]].any()
    )


def touched(mask: Mask, shape: tuple[int, int]) -> Mask:
    """The cells of a map (h, w) that hold any pixel of a mask (H, W) of the same image."""
    found = np.zeros(shape, bool)
    rows, columns = np.nonzero(mask)
    found[rows * shape[0] // mask.shape[0], columns * shape[1] // mask.shape[1]] = True
    # A map finer than the mask has several cells in a pixel.
    return found | _nearest(mask, (shape[1], shape[0])) if np.greater(shape, mask.shape).any() else found


def _nearest(mask: Mask, size: tuple[int, int]) -> Mask:
    """At `size` (width, height), without anything between true and false."""
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    rows = (2 * np.arange(size[1]) + 1) * mask.shape[0] // (2 * size[1])
    columns = (2 * np.arange(size[0]) + 1) * mask.shape[1] // (2 * size[0])
    return mask[np.ix_(rows, columns)]


def _image(loaded: Bundle, name: str, content: bytes | None, mode: str) -> Pixels:
    try:
        with Image.open(io.BytesIO(content or b""), formats=["PNG"]) as image:
            return np.asarray(image.convert(mode))
    except (OSError, ValueError, Image.DecompressionBombError) as cause:
        raise BundleError(f"{loaded.path}: {name} cannot be read ({cause}); train the bundle again.") from None


def lies(framing: Framing, image: tuple[int, int], pose: alignment.Pose | None) -> npt.NDArray[np.float64]:
    """float64 (2, 3), from places of the frame to those of an image of `image` (width, height), both in pixels
    counted from the left and top edge (so a pixel's centre is at a half)."""
    width, height = framing.frame.size
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    matrix = np.eye(3) if pose is None else np.linalg.inv(half) @ np.vstack([pose, [0, 0, 1]]) @ half
    found: npt.NDArray[np.float64] = (np.diag([image[0] / width, image[1] / height, 1]) @ matrix)[:2]
    return found


def carried(box: Sequence[float], matrix: npt.NDArray[np.float64], size: tuple[int, int]) -> Box:
    """The upright box around a box that `matrix` (2, 3) moves, rounded outwards, inside `size` (width, height)."""
    left, top, right, bottom = box
    corners = matrix @ np.array([[left, right, right, left], [top, top, bottom, bottom], [1, 1, 1, 1]])
    low, high = np.floor(corners.min(1) + 1e-6), np.ceil(corners.max(1) - 1e-6)
    low = np.clip(low, 0, np.array(size) - 1)
    high = np.clip(high, low + 1, size)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
