"""What a verdict rests on, cut into the pieces that its page shows: of each region the crop, the nearest normal crop,
and the inpainted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from blemish.inference.evidence import REGIONS, Evidence
from blemish.inference.evidence_store import Pixels
from blemish.inference.inspector import Inspection
from blemish.inference.nearest_normal import grown_box, nearest_normal
from blemish.inference.resizing import size_of
from blemish.inference.tiling import Box
from blemish.types import Region
from blemish.web.site import MissingError, Site
from blemish.web.tables import Verdict
from blemish.web.verdict_words import Why, why

Kind = Literal["crop", "normal", "inpainted"]
AROUND = 8  # a crop is at least this part of the image's width and height, where no patch says how large


@dataclass(frozen=True)
class Piece:
    """The evidence of one region, the `number`th (from 1) by its peak; crops are (h, w, 3), None where there is none.

    `distance` and `p_value` are of the nearest normal patch, None without a memory bank.
    """

    number: int
    region: Region
    box: Box
    crop: Pixels
    normal: Pixels | None
    inpainted: Pixels | None
    source: str | None
    distance: float | None
    p_value: float | None

    def of(self, kind: Kind) -> Pixels | None:
        pixels: Pixels | None = getattr(self, kind)
        return pixels


def pieces(inspection: Inspection, evidence: Evidence | None) -> Sequence[Piece]:
    """Of the regions with the highest peaks; none without evidence."""
    if evidence is None or inspection.image is None:
        return ()
    return [_piece(inspection.image, evidence, n, r) for n, r in enumerate(inspection.verdict.regions[:REGIONS], 1)]


def _piece(image: Pixels, evidence: Evidence, number: int, region: Region) -> Piece:
    nearest = next((one for one in evidence.nearest if one.region == region), None)
    size = size_of(image)
    box = nearest.box if nearest else grown_box(region.box, size, (size[0] / AROUND, size[1] / AROUND))
    inpainted = evidence.counterfactual.image if evidence.counterfactual else None
    return Piece(
        number,
        region,
        box,
        nearest.crop if nearest else _cut(image, box),
        nearest.normal if nearest else None,
        None if inpainted is None else _cut(inpainted, box),
        nearest.source if nearest else None,
        nearest.distance if nearest else None,
        nearest.p_value if nearest else None,
    )


def _cut(image: Pixels, box: Box) -> Pixels:
    left, top, right, bottom = box
    return np.ascontiguousarray(image[top:bottom, left:right])


def piece_of(site: Site, verdict: Verdict, number: int) -> Piece:
    """One region's. Raises `MissingError` where the verdict has no such region."""
    found = pieces(site.line.seen(verdict), site.line.evidence(verdict))
    if not 1 <= number <= len(found):
        raise MissingError(f"Verdict {verdict.id} has no evidence of a region {number}.")
    return found[number - 1]


def why_at(site: Site, verdict: Verdict, x: int, y: int) -> Why:
    """Why the place (x, y) was flagged or not, by the version that gave the verdict. Raises `BlemishError` where the
    image has no such place, was not read, or the version's bundle is gone."""
    inspection = site.line.seen(verdict)
    inspector, store = site.detectors.inspector(verdict.detector_id), site.line.evidence_store(verdict.detector_id)
    assert inspection.image is not None
    width, height = size_of(inspection.image)
    inside = 0 <= x < width and 0 <= y < height
    nearest = nearest_normal(inspector, store, inspection, (x, y)) if inside else None
    return why(inspection, inspector.card.decision, nearest, (x, y), has_store=store is not None)
