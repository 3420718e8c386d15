"""What a verdict rests on: beside each region the normal patch it is nearest to, and the picture with its regions
repaired, judged again. Needs what the line needs, and no PyTorch.

A bundle's `evidence.zip` holds the good pictures that its normal patches come from, at the size at which the detector
saw them (`000.jpg` ...), their names (`names.json`), and int32 `sources.npy` `(M, 3)`: of each patch the picture (-1
where it was left out), row and column of the feature grid.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from blemish.bundle import EVIDENCE, BundleError, Card
from blemish.inspector import Inspector, Look, chance
from blemish.regions import STEEP
from blemish.types import Decision, Region

TABLE, NAMES, NO_PICTURE = "sources.npy", "names.json", -1
REGIONS = 3  # shown of a picture, those with the highest peaks
CELLS = 3  # that a crop, and a patch that repairs, is wide at least
DECODED = 128  # pictures held at once
NONE = (
    "This bundle shows no nearest normal pictures: it was learned with --no-evidence, or by an older blemish; train it "
    "again to have them."
)

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


def picture_name(number: int) -> str:
    """Of a picture in evidence.zip."""
    return f"{number:03}.jpg"


@dataclass(frozen=True)
class Memory:
    """The contents of evidence.zip; see the top of this file. Pictures are decoded when asked for."""

    table: npt.NDArray[np.int32]  # (M, 3)
    names: tuple[str, ...]
    size: tuple[int, int]  # height, width of the pictures
    jpegs: tuple[bytes, ...]
    _decoded: dict[int, Pixels] = field(default_factory=dict)

    def picture(self, number: int) -> Pixels:
        """uint8 `(h, w, 3)`. Raises `BundleError` where it cannot be decoded."""
        if number not in self._decoded:
            if len(self._decoded) >= DECODED:
                self._decoded.pop(next(iter(self._decoded)))
            try:
                with Image.open(io.BytesIO(self.jpegs[number]), formats=["JPEG"]) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, Image.DecompressionBombError) as cause:
                raise _unreadable(f"{picture_name(number)}: {cause}") from None
            if pixels.shape[:2] != self.size:
                raise _unreadable(f"{picture_name(number)} is not of the card's image size")
            self._decoded[number] = pixels
        return self._decoded[number]


@dataclass(frozen=True)
class NearestNormal:
    """A place of a picture beside the nearest normal patch: `box` in pixels of the original picture, `crop` what it
    shows, `normal` as much around that patch in its source (None where its picture is not in the bundle), and how far
    the two are apart. `p_value`: the share of good pictures with a patch as far from all that is known."""

    box: Box
    crop: Pixels
    normal: Pixels | None
    source: str | None
    distance: float
    p_value: float | None
    region: Region | None = None


@dataclass(frozen=True)
class Counterfactual:
    """The picture with its regions repaired, at its own size, and what the same detector says of that."""

    picture: Pixels
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
            return f"With {what} repaired, the verdict would be good ({sure})."
        return (
            f"With {what} repaired, it would still be an anomaly ({sure}): more than that looks wrong, or the repair "
            "does not look like a good part."
        )


def open_memory(inspector: Inspector) -> Memory | None:
    """The bundle's evidence, or None where it has none. Raises `BundleError` where that cannot be read."""
    if inspector.evidence is None:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(inspector.evidence)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        table = np.load(io.BytesIO(files[TABLE]), allow_pickle=False)
        names = json.loads(files[NAMES])
        jpegs = tuple(files[picture_name(number)] for number in range(len(names)))
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, KeyError) as cause:
        raise _unreadable(str(cause)) from None
    right = table.ndim == 2 and table.shape[1] == 3 and table.dtype == np.int32 and isinstance(names, list)
    if not right or not all(isinstance(name, str) for name in names):
        raise _unreadable(f"{TABLE} or {NAMES} is not what it should be")
    if len(table) and not (table[:, 0].min() >= NO_PICTURE and table[:, 0].max() < len(names)):
        raise _unreadable(f"{TABLE} speaks of pictures that are not there")
    return Memory(table, tuple(names), inspector.card.image_size, jpegs)


def gather(inspector: Inspector, memory: Memory | None, look: Look) -> Evidence | None:
    """The evidence of an anomaly; None of any other verdict, and where no region was found. Runs the graph once more
    for the repaired picture. Raises `BundleError` where evidence.zip is damaged."""
    verdict = look.verdict
    if verdict.decision != "anomaly" or not verdict.regions or look.picture is None:
        return None
    nearest = tuple(compare(look, memory, inspector.card, region) for region in verdict.regions[:REGIONS])
    found = tuple(one for one in nearest if one is not None)
    return Evidence(found, counterfactual(inspector, memory, look), len(verdict.regions))


def compare(look: Look, memory: Memory | None, card: Card, place: Region | tuple[int, int]) -> NearestNormal | None:
    """A region, or the place (x, y) in pixels of the original picture, beside the nearest normal patch of its peak.
    None where the picture could not be read, or the bundle is older than neighbours."""
    picture, distances, neighbours = look.picture, look.distances, look.neighbours
    if picture is None or look.map is None or distances is None or neighbours is None:
        return None
    size, grid = (picture.shape[1], picture.shape[0]), (distances.shape[1], distances.shape[0])
    if isinstance(place, Region):
        region, box, at = place, place.box, _peak(look.map, place, size)
    else:
        region, box = None, (*place, place[0] + 1, place[1] + 1)
        at = ((place[0] + 0.5) / size[0], (place[1] + 0.5) / size[1])
    column, row = (int(at[axis] * grid[axis]) for axis in (0, 1))
    box = _frame(box, size, (CELLS * size[0] / grid[0], CELLS * size[1] / grid[1]))
    distance = float(distances[row, column])
    rule = card.decision
    normal, source = None, None
    if memory is not None:
        number, *there = (int(value) for value in memory.table[neighbours[row, column]])
        if number != NO_PICTURE:
            source = memory.names[number]
            # The patch stands in its crop where the peak stands in the region's.
            shift = (there[1] - column) / grid[0], (there[0] - row) / grid[1]
            normal = _crop(memory.picture(number), box, size, shift)
    return NearestNormal(
        box=box,
        crop=np.ascontiguousarray(picture[box[1] : box[3], box[0] : box[2]]),
        normal=normal,
        source=source,
        distance=distance,
        p_value=chance(rule.distances, distance) if rule.distances else None,
        region=region,
    )


def counterfactual(inspector: Inspector, memory: Memory | None, look: Look) -> Counterfactual | None:
    """The picture with its regions replaced by what an autoencoder painted there or, of other detectors, by normal
    patches, judged again; None where there is neither."""
    if look.picture is None or look.map is None or not look.verdict.regions:
        return None
    touched = _touched(look, inspector.card)
    if look.repaired is not None:
        fill, known = look.repaired.astype(np.float32), np.ones(look.map.shape, np.float32)
    elif memory is not None and look.neighbours is not None:
        fill, known = _from_patches(look.neighbours, memory, _grown(touched))
    else:
        return None
    cell = (look.map.shape[0] / touched.shape[0], look.map.shape[1] / touched.shape[1])
    alpha = _soft(_grown(touched), look.map.shape, cell) * known
    picture = _composed(look.picture, fill, alpha)
    found = inspector.outputs(picture)
    size = (picture.shape[1], picture.shape[0])
    verdict = inspector.judge("", size, float(found["scores"]), found["maps"], found.get("probabilities"))
    return Counterfactual(picture, float(found["scores"]), verdict.p_value, verdict.decision)


def _unreadable(cause: str) -> BundleError:
    return BundleError(
        f"{EVIDENCE} of this bundle cannot be read ({cause}); train it again, or inspect with --no-evidence."
    )


def _window(box: Box, size: tuple[int, int], cells: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A box in a picture of `size` (width, height) -> top, bottom, left, right in an array of `cells` (rows, columns),
    rounded outwards."""
    left, top, right, bottom = box
    return (
        top * cells[0] // size[1],
        -(-bottom * cells[0] // size[1]),
        left * cells[1] // size[0],
        -(-right * cells[1] // size[0]),
    )


def _peak(anomaly_map: npt.NDArray[np.float32], region: Region, size: tuple[int, int]) -> tuple[float, float]:
    """Where a region's highest value is: x and y as shares of the picture. Another region's peak may lie in its box."""
    top, bottom, left, right = _window(region.box, size, anomaly_map.shape)
    inside = anomaly_map[top:bottom, left:right]
    row, column = divmod(int(np.abs(inside - region.peak).argmin()), inside.shape[1])
    return (left + column + 0.5) / anomaly_map.shape[1], (top + row + 0.5) / anomaly_map.shape[0]


def _frame(box: Box, size: tuple[int, int], least: tuple[float, float]) -> Box:
    """`box` grown evenly to at least `least` (width, height) pixels and moved into a picture of `size`."""
    starts, ends = [], []
    for axis in (0, 1):
        length = min(size[axis], max(box[axis + 2] - box[axis], math.ceil(least[axis])))
        start = min(max((box[axis] + box[axis + 2] - length) // 2, 0), size[axis] - length)
        starts.append(start)
        ends.append(start + length)
    return starts[0], starts[1], ends[0], ends[1]


def _crop(source: Pixels, box: Box, size: tuple[int, int], shift: tuple[float, float]) -> Pixels:
    """Of a source picture the same part of the whole as `box` of a picture of `size`, moved by `shift` (shares of width
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


def _touched(look: Look, card: Card) -> npt.NDArray[np.bool_]:
    """Cells (gh, gw) that the regions touch: inside their boxes, what is high in the map."""
    assert look.picture is not None
    assert look.map is not None
    size, shape = (look.picture.shape[1], look.picture.shape[0]), look.map.shape
    grid = shape[0] // 8, shape[1] // 8  # of an old autoencoder's bundle, which has no neighbours
    if look.distances is not None:
        grid = look.distances.shape[0], look.distances.shape[1]
    rule = card.decision
    touched = np.zeros(grid, bool)
    for region in look.verdict.regions:
        top, bottom, left, right = _window(region.box, size, shape)
        foot = min(rule.pixel_threshold, rule.usual + STEEP * (region.peak - rule.usual))
        rows, columns = np.nonzero(look.map[top:bottom, left:right] >= foot)
        touched[(rows + top) * grid[0] // shape[0], (columns + left) * grid[1] // shape[1]] = True
    return touched


def _grown(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """With the eight cells around each."""
    padded = np.pad(cells, 1)
    down = padded[:-2] | padded[1:-1] | padded[2:]
    return down[:, :-2] | down[:, 1:-1] | down[:, 2:]


def _soft(cells: npt.NDArray[np.bool_], shape: tuple[int, ...], cell: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Cells as a float32 mask of `shape` in 0..1, whose edge fades over about a cell."""
    image = Image.fromarray(cells.astype(np.uint8) * 255).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    image = image.filter(ImageFilter.BoxBlur((cell[1] / 2, cell[0] / 2)))
    return np.asarray(image).astype(np.float32) / np.float32(255)


def _from_patches(
    neighbours: npt.NDArray[np.int32], memory: Memory, cells: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For each of `cells` (gh, gw) the pixels around its nearest normal patch, `CELLS` cells wide; where they overlap
    their mean, weighted by a window that fades from the middle. float32 (h, w, 3), and (h, w) of ones where there is
    any and noughts elsewhere."""
    (height, width), grid = memory.size, cells.shape
    step = height / grid[0], width / grid[1]
    reach = [max(1, round(CELLS * s / 2)) for s in step]
    fade = [np.hanning(2 * r + 2)[1:-1] for r in reach]
    window = np.outer(fade[0], fade[1]).astype(np.float32)
    total, weight = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    for row, column in np.argwhere(cells):
        number, *there = (int(value) for value in memory.table[neighbours[row, column]])
        if number == NO_PICTURE:
            continue
        source = memory.picture(number)
        here = [round((at + 0.5) * s) for at, s in zip((row, column), step, strict=True)]
        other = [round((at + 0.5) * s) for at, s in zip(there, step, strict=True)]
        # From the middle as far as both pictures reach.
        before = [min(r, a, b) for r, a, b in zip(reach, here, other, strict=True)]
        after = [min(r, n - a, n - b) for r, n, a, b in zip(reach, memory.size, here, other, strict=True)]
        to, of, part = (
            tuple(slice(m - b, m + a) for m, b, a in zip(middle, before, after, strict=True))
            for middle in (here, other, reach)
        )
        total[to] += source[of] * window[part][..., None]
        weight[to] += window[part]
    fill: npt.NDArray[np.float32] = total / np.maximum(weight, np.float32(1e-6))[..., None]
    return fill, (weight > 0).astype(np.float32)


def _composed(picture: Pixels, fill: npt.NDArray[np.float32], alpha: npt.NDArray[np.float32]) -> Pixels:
    """`fill` (h, w, 3) laid over the picture (H, W, 3) of any size by `alpha` (h, w); the rest keeps its pixels."""
    if not alpha.any():
        return picture
    shape, size = alpha.shape, (picture.shape[1], picture.shape[0])
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    left, right = (round(end * size[0] / shape[1]) for end in (columns[0], columns[-1] + 1))
    top, bottom = (round(end * size[1] / shape[0]) for end in (rows[0], rows[-1] + 1))
    cut = tuple(end * shape[1 - axis] / size[axis] for end, axis in ((left, 0), (top, 1), (right, 0), (bottom, 1)))
    target = (right - left, bottom - top)
    painted = Image.fromarray(np.clip(np.round(fill), 0, 255).astype(np.uint8))
    over = np.asarray(painted.resize(target, Image.Resampling.BICUBIC, box=cut), np.float32)
    share = np.asarray(Image.fromarray(alpha).resize(target, Image.Resampling.BILINEAR, box=cut))[..., None]
    whole = picture.copy()
    under = whole[top:bottom, left:right]
    whole[top:bottom, left:right] = np.round(under + (over - under) * share).astype(np.uint8)
    return whole
