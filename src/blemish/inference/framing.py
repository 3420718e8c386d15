"""How an image is brought before the detector, in training and in inference alike: made as large as the frame, aligned
to a reference, filled with one constant outside the region of interest (ROI), and cut into tiles, whose maps are
blended into one.

The card's `bundle.Frame` says which of these. Without one, images go to the graph as they are.

**Coordinates.** A place (x, y) is in pixels from the left and top edge, so the centre of the first pixel is at
(0.5, 0.5). A box (left, top, right, bottom) is half-open. Both are either of the *frame*, which is the image made as
large as `Frame.size` and aligned, or of the *image* as it was given. A *transform*, float64 (2, 3), leads from one to
the other: `transform @ (x, y, 1)`. An alignment *pose* is such a transform too, from the frame to an image of the
frame's size, but it counts pixels from the first one's centre, as OpenCV does; `Framing.frame_to_image` takes care of
that.
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
from blemish.inference.bundle_files import shown
from blemish.inference.resizing import resized, resized_mask
from blemish.inference.tiling import Blend, Box, TileAxis
from blemish.types import BlemishError, Prediction, Runner

if TYPE_CHECKING:
    from collections.abc import Sequence

FILL = 128  # of every channel, outside the region of interest
BATCH = 4  # tiles in a run of the graph: more are no faster, and take memory
ROUNDING = 1e-6  # pixels by which a computed box may miss the pixel's edge that it means

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Transform = npt.NDArray[np.float64]
Outputs = dict[str, npt.NDArray[Any]]


class AlignError(BlemishError):
    """An image that is not like the reference, however it is shifted and turned."""


class Framing:
    """A frame with its region of interest, bool (H, W), and its reference, uint8 (h, w, 3), None where it has none."""

    def __init__(self, frame: Frame, roi: Mask | None = None, reference: Pixels | None = None) -> None:
        self.frame, self.roi, self.reference = frame, roi, reference
        self._map_rois: dict[tuple[int, int], Mask] = {}
        self._tile_axes: dict[tuple[int, ...], TileAxis] = {}
        if frame.align:
            alignment.opencv()  # raises now where it is missing, not at the first image

    @classmethod
    def of(cls, loaded: Bundle) -> Framing | None:
        """Of a bundle; None where its images go to the graph as they are. Raises `BundleError` where its files are
        not what its card says, and `BlemishError` where OpenCV is needed and missing."""
        frame = loaded.card.frame
        if frame is None:
            return None
        side = alignment.SIDE
        roi = _decoded(loaded, ROI, loaded.roi, "L", frame.size, frame.size) > 127 if frame.roi else None
        reference = _decoded(loaded, REFERENCE, loaded.reference, "RGB", (1, 1), (side, side)) if frame.align else None
        width, height = frame.tile or (0, 0)
        inside = all(
            0 <= left <= frame.size[0] - width and 0 <= top <= frame.size[1] - height for left, top in frame.tiles
        )
        if not inside or (frame.tile and not frame.tiles):
            raise BundleError(f"{loaded.path}: the card's tiles are not inside its frame; train the bundle again.")
        return cls(frame, roi, reference)

    def wrap(self, run: Runner, batch: int = BATCH) -> Runner:
        """A graph's `run` for whole images uint8 (1, H, W, 3) of any size; of tiles, `batch` go to it at a time.

        The map is of the frame's `map_size`, or where there are no tiles of the graph's, and covers the image as it was
        given. With tiles the score is the highest of a tile, and `neighbours` and `distances` are (1, tiles, gh, gw).
        Of aligned images there is `poses` (1, 2, 3) besides. Raises `AlignError`.
        """

        def framed(images: Pixels) -> Prediction:
            frame_image, pose = self.to_frame(images[0])
            return Prediction(**self._to_image(self._outputs(frame_image, run, batch), pose))

        return framed

    def to_frame(
        self, image: Pixels, pose: alignment.Pose | None = None, *, fill: bool = True
    ) -> tuple[Pixels, alignment.Pose | None]:
        """An image uint8 (H, W, 3) of any size as the detector sees it before it is cut into tiles: uint8, of the
        frame's size; and its pose, None without alignment. A known `pose` need not be found again. Without `fill` what
        is outside the region of interest stays. Raises `AlignError`."""
        frame = self.frame
        width, height = frame.size
        if fill and self.roi is not None and not frame.align and image.shape[:2] != (height, width):
            # Before resizing as well, which would mix what is outside into what is inside.
            image = _filled(image, resized_mask(self.roi, (image.shape[1], image.shape[0])))
        image = resized(image, frame.size)
        if frame.align:
            if pose is None:
                pose = self.find_pose(image)
            image = alignment.aligned(image, pose, self._reference_in_frame)
        if fill and self.roi is not None:
            image = _filled(image, self.roi)
        return image, pose

    def mask_to_frame(self, mask: Mask, pose: alignment.Pose | None = None) -> Mask:
        """An image's mask bool (H, W) as `to_frame` shows the image: bool, of the frame's size, False outside the
        region of interest."""
        mask = resized_mask(mask, self.frame.size)
        if pose is not None:
            drawn = np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
            mask = alignment.aligned(drawn, pose, np.zeros_like(drawn))[..., 0] > 127
        return mask if self.roi is None else mask & self.roi

    def find_pose(self, image: Pixels) -> alignment.Pose:
        """The pose of an image of the frame's size. Raises `AlignError`."""
        assert self.reference is not None
        pose, correlation = alignment.find_pose(image, self.reference)
        if correlation < self.frame.least_correlation:
            raise AlignError(
                f"it could not be aligned with the reference image (correlation {correlation:.2f}, at least "
                f"{self.frame.least_correlation:.2f} is needed); is the whole part in the image?"
            )
        return pose

    def frame_to_image(self, size: tuple[int, int], pose: alignment.Pose | None = None) -> Transform:
        """The transform from the frame to an image of `size` (width, height) with that pose.

        >>> framing = Framing(Frame(size=(100, 50), map_size=(5, 10)))
        >>> to_image = framing.frame_to_image((200, 100))  # the image is twice as large
        >>> to_image @ (10, 20, 1)
        array([20., 40.])
        >>> bounding_box((10, 20, 30, 40), to_image, (200, 100))
        (20, 40, 60, 80)

        Aligned by a quarter turn, the frame's left edge shows the image's top edge. Pixel (0, 0) of the frame is pixel
        (49, 0) of the image, the last of its first row:

        >>> square = Framing(Frame(size=(50, 50), map_size=(5, 5)))
        >>> quarter_turn = np.array([[0.0, -1, 49], [1, 0, 0]])
        >>> quarter_turn @ (0, 0, 1)
        array([49.,  0.])
        >>> bounding_box((0, 0, 10, 5), square.frame_to_image((50, 50), quarter_turn), (50, 50))
        (45, 0, 50, 10)
        """
        width, height = self.frame.size
        scale = np.diag([size[0] / width, size[1] / height, 1])
        if pose is None:
            return scale[:2]
        from_centres = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # a pixel's centre is a half from its edge
        transform = from_centres @ alignment.homogeneous(pose) @ np.linalg.inv(from_centres)
        return np.asarray((scale @ transform)[:2])

    def roi_in_image(self, size: tuple[int, int], pose: alignment.Pose | None = None) -> Mask | None:
        """The region of interest in an image of `size` (width, height) with that pose: bool (H, W); None = all of
        it."""
        roi = self.roi
        if roi is None:
            return None
        if pose is not None:
            roi = alignment.warped_back(roi.astype(np.uint8) * np.uint8(255), pose, self.frame.size, 0) > 127
        return resized_mask(roi, size)

    def roi_in_map(self, shape: tuple[int, ...]) -> Mask:
        """The cells of a map (h, w) of the frame in which the region of interest has a pixel."""
        key = shape[0], shape[1]
        if key not in self._map_rois:
            self._map_rois[key] = np.ones(key, bool) if self.roi is None else cells_of(self.roi, key)
        return self._map_rois[key]

    @property
    def boxes(self) -> list[Box]:
        """Of the tiles, in the frame. One, the whole frame, where it is not cut into tiles."""
        frame = self.frame
        if frame.tile is None:
            return [(0, 0, *frame.size)]
        width, height = frame.tile
        return [(left, top, left + width, top + height) for left, top in frame.tiles]

    def _outputs(self, frame_image: Pixels, run: Runner, batch: int) -> Outputs:
        """The outputs of the frame, or of all its tiles as those of one image."""
        if self.frame.tile is None:
            return run(frame_image[None]).outputs()
        boxes = self.boxes
        by_tile: dict[str, list[npt.NDArray[Any]]] = {}
        blends = {name: self._blend() for name in ("maps", "reconstruction")}
        for start in range(0, len(boxes), batch):
            chosen = boxes[start : start + batch]
            tiles = np.stack([frame_image[top:bottom, left:right] for left, top, right, bottom in chosen])
            for name, values in run(tiles).outputs().items():
                if name in blends:
                    for box, tile_map in zip(chosen, values, strict=True):
                        blends[name].add(box, tile_map)
                elif name in ("scores", "neighbours", "distances"):
                    by_tile.setdefault(name, []).append(values)
        outputs = {name: np.concatenate(batches)[None] for name, batches in by_tile.items()}
        outputs["scores"] = outputs["scores"].max(1)
        outputs["maps"] = blends["maps"].result()[None]
        if not blends["reconstruction"].empty:
            reconstruction = blends["reconstruction"].result()
            outputs["reconstruction"] = np.clip(np.round(reconstruction), 0, 255).astype(np.uint8)[None]
        return outputs

    def _blend(self) -> Blend:
        return Blend(self.frame.size, self.frame.map_size, self.frame.overlap, self._tile_axes)

    def _to_image(self, outputs: Outputs, pose: alignment.Pose | None) -> Outputs:
        """A frame's outputs as those of the image, with its pose, if there is one."""
        outputs = dict(outputs)
        for name in ("maps", "class_maps"):
            if name in outputs:
                outputs[name] = self._maps_to_image(outputs[name], pose)
        if pose is not None:
            outputs["poses"] = pose[None]
            if "reconstruction" in outputs:
                reconstruction = outputs["reconstruction"][0]
                outputs["reconstruction"] = alignment.warped_back(reconstruction, pose, self.frame.size, FILL)[None]
        return outputs

    def _maps_to_image(self, values: npt.NDArray[Any], pose: alignment.Pose | None) -> npt.NDArray[Any]:
        """Maps (1, h, w) or (1, C, h, w) as the image lies, each at its lowest value where nothing counts."""
        maps = []
        for frame_map in values.reshape(-1, *values.shape[-2:]):
            inside = self.roi_in_map(frame_map.shape)
            lowest = frame_map[inside].min()
            frame_map = np.where(inside, frame_map, lowest)
            if pose is not None:
                frame_map = alignment.warped_back(frame_map, pose, self.frame.size, float(lowest))
            maps.append(frame_map)
        return np.stack(maps).reshape(values.shape)

    @cached_property
    def _reference_in_frame(self) -> Pixels | None:
        return None if self.reference is None else resized(self.reference, self.frame.size)


def inverse(transform: Transform) -> Transform:
    """The transform (2, 3) that leads back."""
    return np.asarray(np.linalg.inv(alignment.homogeneous(transform))[:2])


def bounding_box(box: Sequence[float], transform: Transform, size: tuple[int, int]) -> Box:
    """The smallest upright box of whole pixels around a transformed box, inside an image of `size` (width, height)."""
    left, top, right, bottom = box
    corners = np.array([[left, right, right, left], [top, top, bottom, bottom], [1, 1, 1, 1]])
    xs, ys = transform @ corners
    start = np.floor([xs.min() + ROUNDING, ys.min() + ROUNDING])
    end = np.ceil([xs.max() - ROUNDING, ys.max() - ROUNDING])
    return clipped((*start, *end), size)


def clipped(box: Sequence[float], size: tuple[int, int]) -> Box:
    """What of a box of whole pixels is inside an image of `size` (width, height), but at least one pixel."""
    left, top = (int(min(max(box[axis], 0), size[axis] - 1)) for axis in (0, 1))
    right, bottom = (int(min(max(box[axis + 2], (left, top)[axis] + 1), size[axis])) for axis in (0, 1))
    return left, top, right, bottom


def cells_of(mask: Mask, shape: tuple[int, int]) -> Mask:
    """The cells of a map (h, w) in which a mask (H, W) of the same image has a pixel."""
    cells = np.zeros(shape, bool)
    rows, columns = np.nonzero(mask)
    cells[rows * shape[0] // mask.shape[0], columns * shape[1] // mask.shape[1]] = True
    # A map finer than the mask has several cells in a pixel.
    return cells | resized_mask(mask, (shape[1], shape[0])) if np.greater(shape, mask.shape).any() else cells


def _filled(image: Pixels, inside: Mask) -> Pixels:
    return np.where(inside[..., None], image, np.uint8(FILL))


def _decoded(
    loaded: Bundle, name: str, content: bytes | None, mode: str, least: tuple[int, int], most: tuple[int, int]
) -> Pixels:
    """The pixels of a PNG of a bundle, whose size (width, height) is checked before they are decoded."""
    try:
        with Image.open(io.BytesIO(content or b""), formats=["PNG"]) as image:
            fits = all(low <= side <= high for low, side, high in zip(least, image.size, most, strict=True))
            pixels = np.asarray(image.convert(mode)) if fits else None
    except Exception as cause:  # Pillow's decoders raise almost anything on damaged files
        problem = f"{name} cannot be read ({shown(str(cause))})"
        raise BundleError(f"{loaded.path}: {problem}; train the bundle again.") from None
    if pixels is None:
        size = "the frame's size" if least == most else f"at most {most[0]} x {most[1]} pixels"
        raise BundleError(f"{loaded.path}: {name} is not of {size}; train the bundle again.")
    return pixels
