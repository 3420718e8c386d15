"""What a verdict rests on: beside each region the normal patch it is nearest to, and the image with its regions
inpainted, judged again. Needs what the line needs, and no PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.inference.bundle import Card
from blemish.inference.evidence_store import EvidenceStore, Pixels, read_store
from blemish.inference.framing import Framing, carried, lies
from blemish.inference.inpainting import fill, grown, soft
from blemish.inference.inspector import Inspection, Inspector, chance
from blemish.inference.regions import STEEP
from blemish.types import Decision, Region

REGIONS = 3  # shown of an image, those with the highest peaks
CELLS = 3  # that a crop, and a patch that repairs, is wide at least
NONE = (
    "This bundle shows no nearest normal images: it was learned with --no-evidence, or by an older blemish; train it "
    "again to have them."
)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class NearestNormal:
    """A place of an image beside the nearest normal patch: `box` in pixels of the original image, `crop` what it
    shows, `normal` as much around that patch in its source (None where its image is not in the bundle), and how far
    the two are apart. `p_value`: the share of good images with a patch as far from all that is known."""

    box: Box
    crop: Pixels
    normal: Pixels | None
    source: str | None
    distance: float
    p_value: float | None
    region: Region | None = None


@dataclass(frozen=True)
class Counterfactual:
    """The image with its regions inpainted, at its own size, and what the same detector says of that."""

    image: Pixels
    score: float
    p_value: float | None
    decision: Decision


@dataclass(frozen=True)
class Evidence:
    """Of one anomaly. `counterfactual` is None where nothing could be put in the regions' place."""

    nearest: tuple[NearestNormal, ...]
    counterfactual: Counterfactual | None
    regions: int  # of the verdict

    def sentence(self) -> str:
        """What the repair comes to, in words."""
        found = self.counterfactual
        if found is None:
            return ""
        what = "this region" if self.regions == 1 else f"these {self.regions} regions"
        sure = f"score {found.score:.3g}" if found.p_value is None else f"p = {found.p_value:.2g}"
        if found.decision == "good":
            return f"With {what} inpainted, the verdict would be good ({sure})."
        if found.decision == "review":
            return f"With {what} inpainted, a person would have to look ({sure})."
        return (
            f"With {what} inpainted, it would still be an anomaly ({sure}): more than that looks wrong, or the repair "
            "does not look like a good part."
        )


def open_store(inspector: Inspector) -> EvidenceStore | None:
    """The bundle's evidence, or None where it has none. Raises `BundleError` where that cannot be read."""
    if inspector.evidence is None:
        return None
    return read_store(inspector.evidence, inspector.card.image_size)


def gather(inspector: Inspector, store: EvidenceStore | None, look: Inspection) -> Evidence | None:
    """The evidence of what is an anomaly or to be reviewed; None of any other verdict, and where no region was found.
    Runs the graph once more for the inpainted image. Raises `BundleError` where evidence.zip is damaged."""
    verdict = look.verdict
    if verdict.decision not in ("anomaly", "review") or not verdict.regions or look.image is None:
        return None
    nearest = tuple(compare(look, store, inspector.card, region) for region in verdict.regions[:REGIONS])
    found = tuple(one for one in nearest if one is not None)
    return Evidence(found, counterfactual(inspector, store, look), len(verdict.regions))


def compare(
    look: Inspection, store: EvidenceStore | None, card: Card, place: Region | tuple[int, int]
) -> NearestNormal | None:
    """A region, or the place (x, y) in pixels of the original image, beside the nearest normal patch of its peak.
    None where the image could not be read, or the bundle is older than neighbours. Of an image that was aligned or
    cut, both crops are as the detector saw them."""
    image, distances, neighbours = look.image, look.distances, look.neighbours
    if image is None or look.map is None or distances is None or neighbours is None:
        return None
    size = image.shape[1], image.shape[0]
    if isinstance(place, Region):
        region, box, at = place, place.box, _peak(look.map, place, size)
    else:
        region, box = None, (*place, place[0] + 1, place[1] + 1)
        at = ((place[0] + 0.5) / size[0], (place[1] + 0.5) / size[1])
    if card.frame is None:
        found = _compare(image, distances, neighbours, store, box, at)
    else:
        found = _compare_in_frame(Framing(card.frame), look, store, box, at)
    return replace(found, p_value=chance(card.decision, "distances", found.distance), region=region)


def _compare(
    image: Pixels,
    distances: npt.NDArray[np.float32],
    neighbours: npt.NDArray[np.int32],
    store: EvidenceStore | None,
    box: Box,
    at: tuple[float, float],
) -> NearestNormal:
    """What the detector saw, (H, W, 3), around `box`, compared at the place `at`, shares of its width and height."""
    size, grid = (image.shape[1], image.shape[0]), (distances.shape[1], distances.shape[0])
    column, row = (min(int(at[axis] * grid[axis]), grid[axis] - 1) for axis in (0, 1))
    box = _frame(box, size, (CELLS * size[0] / grid[0], CELLS * size[1] / grid[1]))
    normal, source = None, None
    origin = store.origin(int(neighbours[row, column])) if store else None
    if store and origin:
        number, there, across = origin
        source = store.names[number]
        # The patch stands in its crop where the peak stands in the region's.
        normal = _crop(store.image(number), box, size, ((across - column) / grid[0], (there - row) / grid[1]))
    crop = np.ascontiguousarray(image[box[1] : box[3], box[0] : box[2]])
    return NearestNormal(box, crop, normal, source, float(distances[row, column]), None)


def _compare_in_frame(
    framing: Framing, look: Inspection, store: EvidenceStore | None, box: Box, at: tuple[float, float]
) -> NearestNormal:
    """As `_compare`, of the tile whose centre is nearest to the place; of the frame where it was not cut."""
    assert look.image is not None
    assert look.distances is not None
    assert look.neighbours is not None
    size, frame = (look.image.shape[1], look.image.shape[0]), framing.frame
    there = lies(framing, size, look.pose)
    back = np.linalg.inv(np.vstack([there, [0, 0, 1]]))[:2]
    x, y = np.clip(back @ [at[0] * size[0], at[1] * size[1], 1], 0, np.array(frame.size) - 1e-3)
    tiles = framing.boxes
    number = min(range(len(tiles)), key=lambda i: abs(sum(tiles[i][::2]) / 2 - x) + abs(sum(tiles[i][1::2]) / 2 - y))
    left, top, right, bottom = tiles[number]
    seen = framing.bring(look.image, look.pose, fill=False)[0][top:bottom, left:right]
    grids = look.distances.shape[-2:]
    moved = np.array(carried(box, back, frame.size)) - np.array((left, top, left, top))
    inside = carried(moved.tolist(), np.eye(3)[:2], (right - left, bottom - top))
    share = float(np.clip((x - left) / (right - left), 0, 1)), float(np.clip((y - top) / (bottom - top), 0, 1))
    found = _compare(
        seen,
        look.distances.reshape(-1, *grids)[number],
        look.neighbours.reshape(-1, *grids)[number],
        store,
        inside,
        share,
    )
    ends = np.array(found.box) + np.array((left, top, left, top))
    return replace(found, box=carried(ends.tolist(), there, size))


def counterfactual(inspector: Inspector, store: EvidenceStore | None, look: Inspection) -> Counterfactual | None:
    """The image with its regions replaced by what an autoencoder painted there or, of other detectors, by normal
    patches, judged again; None where there is neither, and of images that are aligned or cut into tiles."""
    if look.image is None or look.map is None or not look.verdict.regions:
        return None
    framing, whole = inspector.framing, look.image
    if framing and (framing.frame.tile or framing.frame.align):
        return None  # nothing in memory is as large as the image, or lies as it does
    cells, shape = grown(_touched(look, inspector.card)), look.map.shape
    alpha = soft(cells, shape)
    shown = framing.bring(whole)[0] if framing else whole
    seen = np.asarray(Image.fromarray(shown).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
    if look.reconstruction is not None:
        content = look.reconstruction.astype(np.float32)
    elif store is not None and look.neighbours is not None:
        content, known = fill(seen, look.neighbours, store, cells)
        alpha = alpha * known
    else:
        return None
    # Judged at the size at which the detector sees it, so that nothing is resized twice; a frame resizes by itself.
    prediction = inspector.predict(_composed(shown if framing else seen, content, alpha))
    verdict = inspector.judge(prediction, (whole.shape[1], whole.shape[0]))
    image = _composed(whole, content, alpha)
    return Counterfactual(image, float(prediction.scores[0]), verdict.p_value, verdict.decision)


def _window(box: Box, size: tuple[int, int], cells: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A box in an image of `size` (width, height) -> top, bottom, left, right in an array of `cells` (rows, columns),
    rounded outwards."""
    left, top, right, bottom = box
    return (
        top * cells[0] // size[1],
        -(-bottom * cells[0] // size[1]),
        left * cells[1] // size[0],
        -(-right * cells[1] // size[0]),
    )


def _peak(anomaly_map: npt.NDArray[np.float32], region: Region, size: tuple[int, int]) -> tuple[float, float]:
    """Where a region's highest value is: x and y as shares of the image. Another region's peak may lie in its box."""
    top, bottom, left, right = _window(region.box, size, anomaly_map.shape)
    inside = anomaly_map[top:bottom, left:right]
    row, column = divmod(int(np.abs(inside - region.peak).argmin()), inside.shape[1])
    return (left + column + 0.5) / anomaly_map.shape[1], (top + row + 0.5) / anomaly_map.shape[0]


def _frame(box: Box, size: tuple[int, int], least: tuple[float, float]) -> Box:
    """`box` grown evenly to at least `least` (width, height) pixels and moved into an image of `size`."""
    starts, ends = [], []
    for axis in (0, 1):
        length = min(size[axis], max(box[axis + 2] - box[axis], math.ceil(least[axis])))
        start = min(max((box[axis] + box[axis + 2] - length) // 2, 0), size[axis] - length)
        starts.append(start)
        ends.append(start + length)
    return starts[0], starts[1], ends[0], ends[1]


def _crop(source: Pixels, box: Box, size: tuple[int, int], shift: tuple[float, float]) -> Pixels:
    """Of a source image the same part of the whole as `box` of an image of `size`, moved by `shift` (shares of width
    and height) as far as it stays inside, and brought to the box's own pixels."""
    whole = (source.shape[1], source.shape[0])
    starts, ends = [], []
    for axis in (0, 1):
        length = (box[axis + 2] - box[axis]) * whole[axis] / size[axis]
        start = min(max((box[axis] / size[axis] + shift[axis]) * whole[axis], 0), whole[axis] - length)
        starts.append(start)
        ends.append(min(start + length, whole[axis]))
    cut = (starts[0], starts[1], ends[0], ends[1])
    image = Image.fromarray(source).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC, box=cut)
    return np.asarray(image)


def _touched(look: Inspection, card: Card) -> npt.NDArray[np.bool_]:
    """Cells (gh, gw) that the regions touch: inside their boxes, what is high in the map."""
    assert look.image is not None
    assert look.map is not None
    size, shape = (look.image.shape[1], look.image.shape[0]), look.map.shape
    grid = shape[0] // 8, shape[1] // 8  # of an old autoencoder's bundle, which has no neighbours
    if look.distances is not None:
        grid = look.distances.shape[0], look.distances.shape[1]
    rule = card.decision
    touched = np.zeros(grid, bool)
    for region in look.verdict.regions:
        top, bottom, left, right = _window(region.box, size, shape)
        foot = min(rule.pixel_threshold, rule.normal_median + STEEP * (region.peak - rule.normal_median))
        rows, columns = np.nonzero(look.map[top:bottom, left:right] >= foot)
        touched[(rows + top) * grid[0] // shape[0], (columns + left) * grid[1] // shape[1]] = True
    return touched


def _composed(image: Pixels, fill: npt.NDArray[np.float32], alpha: npt.NDArray[np.float32]) -> Pixels:
    """`fill` (h, w, 3) laid over the image (H, W, 3) of any size by `alpha` (h, w); the rest keeps its pixels."""
    if not alpha.any():
        return image
    shape, size = alpha.shape, (image.shape[1], image.shape[0])
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    # A pixel more all around, into which the edge is spread when it is enlarged.
    ends = columns[0] - 1, rows[0] - 1, columns[-1] + 2, rows[-1] + 2
    left, top, right, bottom = (
        min(max(round(end * size[i % 2] / shape[1 - i % 2]), 0), size[i % 2]) for i, end in enumerate(ends)
    )
    cut = tuple(end * shape[1 - i % 2] / size[i % 2] for i, end in enumerate((left, top, right, bottom)))
    target = (right - left, bottom - top)
    painted = Image.fromarray(np.clip(np.round(fill), 0, 255).astype(np.uint8))
    over = np.asarray(painted.resize(target, Image.Resampling.BICUBIC, box=cut), np.float32)
    share = np.asarray(Image.fromarray(alpha).resize(target, Image.Resampling.BILINEAR, box=cut))[..., None]
    whole = image.copy()
    under = whole[top:bottom, left:right]
    whole[top:bottom, left:right] = np.round(under + (over - under) * share).astype(np.uint8)
    return whole
