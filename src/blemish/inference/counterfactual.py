"""The image with its regions inpainted, judged again: the second half of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.inference.bundle import Decision as Rule
from blemish.inference.evidence_store import EvidenceStore, Pixels
from blemish.inference.graph_check import GraphError
from blemish.inference.inpainting import fill, soft
from blemish.inference.inspector import Inspection, Inspector
from blemish.inference.nearest_normal import map_window
from blemish.inference.regions import STEEP
from blemish.inference.resizing import grown, resized, size_of
from blemish.types import Decision

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Counterfactual:
    """The image with its regions inpainted, at its own size, and what the same detector makes of that."""

    image: Pixels
    score: float
    p_value: float | None
    decision: Decision


def counterfactual(inspector: Inspector, store: EvidenceStore | None, inspection: Inspection) -> Counterfactual | None:
    """The regions of the image replaced by an autoencoder's reconstruction or, with other detectors, by normal patches,
    and the image judged again. None where there is neither, and for images that are aligned or cut into tiles."""
    image, anomaly_map = inspection.image, inspection.map
    if image is None or anomaly_map is None or not inspection.verdict.regions:
        return None
    framing = inspector.framing
    if framing and (framing.frame.tile or framing.frame.align):
        return None  # no stored image is as large as this one, or shows the part at the same place
    framed = framing.to_frame(image)[0] if framing else image
    seen = resized(framed, size_of(anomaly_map))
    cells = grown(_anomalous_cells(inspection, inspector.card.decision))
    alpha = soft(cells, size_of(anomaly_map))
    if inspection.reconstruction is not None:
        content = inspection.reconstruction.astype(np.float32)
    elif store is not None and inspection.neighbours is not None:
        content, known = fill(seen, inspection.neighbours, store, cells)
        alpha = alpha * known
    else:
        return None
    # Judged at the size at which the detector sees it, so that nothing is resized twice; a frame resizes by itself.
    try:
        prediction = inspector.predict(composed(framed if framing else seen, content, alpha))
    except GraphError:  # the verdict stands without it
        return None
    verdict = inspector.judge(prediction, size_of(image))
    inpainted = composed(image, content, alpha)
    return Counterfactual(inpainted, float(prediction.scores[0]), verdict.p_value, verdict.decision)


def composed(image: Pixels, content: Floats, alpha: Floats) -> Pixels:
    """`content` (h, w, 3) laid over an image (H, W, 3) of any size by `alpha` (h, w); the rest keeps its pixels."""
    if not alpha.any():
        return image
    shape, size = alpha.shape, size_of(image)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    # A pixel more all around, into which the edge is spread when it is enlarged.
    ends = columns[0] - 1, rows[0] - 1, columns[-1] + 2, rows[-1] + 2
    left, top, right, bottom = (
        min(max(round(end * size[i % 2] / shape[1 - i % 2]), 0), size[i % 2]) for i, end in enumerate(ends)
    )
    cut = tuple(end * shape[1 - i % 2] / size[i % 2] for i, end in enumerate((left, top, right, bottom)))
    target = (right - left, bottom - top)
    content_image = Image.fromarray(np.clip(np.round(content), 0, 255).astype(np.uint8))
    over = np.asarray(content_image.resize(target, Image.Resampling.BICUBIC, box=cut), np.float32)
    share = np.asarray(Image.fromarray(alpha).resize(target, Image.Resampling.BILINEAR, box=cut))[..., None]
    whole = image.copy()
    under = whole[top:bottom, left:right]
    whole[top:bottom, left:right] = np.round(under + (over - under) * share).astype(np.uint8)
    return whole


def _anomalous_cells(inspection: Inspection, rule: Rule) -> npt.NDArray[np.bool_]:
    """Cells (gh, gw) of the feature grid in which a region is: inside its box, where the map is high."""
    assert inspection.image is not None
    assert inspection.map is not None
    size, shape = size_of(inspection.image), inspection.map.shape
    grid = shape[0] // 8, shape[1] // 8  # of an old autoencoder's bundle, which has no neighbours
    if inspection.distances is not None:
        grid = inspection.distances.shape[0], inspection.distances.shape[1]
    cells = np.zeros(grid, bool)
    for region in inspection.verdict.regions:
        window = map_window(region.box, size, shape)
        foot = min(rule.pixel_threshold, rule.normal_median + STEEP * (region.peak - rule.normal_median))
        rows, columns = np.nonzero(inspection.map[window] >= foot)
        rows, columns = rows + window[0].start, columns + window[1].start
        cells[rows * grid[0] // shape[0], columns * grid[1] // shape[1]] = True
    return cells
