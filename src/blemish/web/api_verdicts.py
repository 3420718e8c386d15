"""/api/v1/verdicts: lists, evidence, and why a place was flagged or not."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from blemish.types import Region
from blemish.web.access import Inspecting
from blemish.web.answers import ErrorAnswer
from blemish.web.api import EXAMPLE, VerdictAnswer, as_answer
from blemish.web.evidence import pieces, why_at
from blemish.web.history import FiltersOf, found
from blemish.web.site import RowId, SiteOf, verdict_or_404

router = APIRouter(prefix="/api/v1", responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}})
MOST = 200
_LINKS: dict[str, Any] = {
    "crop": "/verdicts/17/regions/1/crop.jpg",
    "normal": "/verdicts/17/regions/1/normal.jpg",
    "inpainted": "/verdicts/17/regions/1/inpainted.jpg",
}


class VerdictList(BaseModel):
    """A page of verdicts, the newest first; `next` is the address of the following one, null on the last."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"verdicts": [EXAMPLE], "next": "/api/v1/verdicts?before=17"}]}
    )
    verdicts: list[VerdictAnswer]
    next: str | None


class RegionEvidence(BaseModel):
    """A region beside the normal patch that comes nearest to its peak; boxes are half-open (left, top, right, bottom)
    in pixels of the original image."""

    region: dict[str, Any]
    box: tuple[int, int, int, int]  # of the crop
    source: str | None
    distance: float | None
    p_value: float | None
    links: dict[str, str]


class Inpainted(BaseModel):
    """What the same detector makes of the image with its regions inpainted."""

    decision: str
    score: float
    p_value: float | None


class EvidenceAnswer(BaseModel):
    """What a verdict rests on. `regions` has those with the highest peaks; it is empty for a good image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "verdict": 17,
                    "regions": [
                        {
                            "region": EXAMPLE["regions"][0],
                            "box": [202, 90, 266, 147],
                            "source": "train/good/012.png",
                            "distance": 4.2,
                            "p_value": 0.0123,
                            "links": _LINKS,
                        }
                    ],
                    "inpainted": {"decision": "good", "score": 1.98, "p_value": 0.42},
                    "sentence": "With this region inpainted, the verdict would be good (p = 0.42).",
                }
            ]
        }
    )
    verdict: int
    regions: list[RegionEvidence]
    inpainted: Inpainted | None
    sentence: str


class NearestAnswer(BaseModel):
    """The normal patch that comes nearest to a place; `source` is the image that it comes from."""

    box: tuple[int, int, int, int]
    source: str | None
    distance: float
    p_value: float | None
    links: dict[str, str]


class WhyAnswer(BaseModel):
    """Why a place was flagged or not: the anomaly map's `value` there against the `threshold` for places. `nearest` is
    null for detectors that compare with no normal patches."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "at": [120, 80],
                    "value": 1.61,
                    "threshold": 2.53,
                    "p_value": 0.78,
                    "flagged": False,
                    "nearest": {
                        "box": [102, 62, 139, 99],
                        "source": "train/good/007.png",
                        "distance": 1.6,
                        "p_value": 0.78,
                        "links": {
                            "crop": "/verdicts/17/why/crop.jpg?x=120&y=80",
                            "normal": "/verdicts/17/why/normal.jpg?x=120&y=80",
                        },
                    },
                    "sentences": [
                        "The place 120, 80 has no box: the map is 1.610 here, below the threshold for places, 2.530."
                    ],
                }
            ]
        }
    )
    at: tuple[int, int]
    value: float
    threshold: float
    p_value: float | None
    flagged: bool
    nearest: NearestAnswer | None
    sentences: list[str]


@router.get("/verdicts", summary="List verdicts")
def verdicts(
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    filters: FiltersOf,
    before: Annotated[int | None, Query(ge=1, le=2**53, description="Number of the last verdict of the page.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
) -> VerdictList:
    """Verdicts of a product that match all filters, the newest first."""
    with site.database.reading() as session:
        rows = found(session, filters, before=before, limit=limit + 1)
    following = None
    if len(rows) > limit:
        following = f"/api/v1/verdicts?{filters.query(before=rows[limit - 1].id, limit=limit)}"
    return VerdictList(verdicts=[as_answer(row) for row in rows[:limit]], next=following)


@router.get("/verdicts/{verdict_id}/evidence", summary="What a verdict rests on")
def evidence(site: SiteOf, who: Inspecting, verdict_id: RowId) -> EvidenceAnswer:  # noqa: ARG001
    """The evidence, with links to its pictures."""
    verdict = verdict_or_404(site, verdict_id)
    gathered = site.line.evidence(verdict) if verdict.decision != "error" else None
    regions = []
    for piece in pieces(site.line.seen(verdict), gathered) if gathered else ():
        here = f"/verdicts/{verdict_id}/regions/{piece.number}"
        kinds = [kind for kind in ("crop", "normal", "inpainted") if getattr(piece, kind) is not None]
        regions.append(
            RegionEvidence(
                region=_region(piece.region),
                box=piece.box,
                source=piece.source,
                distance=piece.distance,
                p_value=piece.p_value,
                links={kind: f"{here}/{kind}.jpg" for kind in kinds},
            )
        )
    made = gathered.counterfactual if gathered else None
    return EvidenceAnswer(
        verdict=verdict_id,
        regions=regions,
        inpainted=Inpainted(decision=made.decision, score=made.score, p_value=made.p_value) if made else None,
        sentence=gathered.sentence() if gathered else "",
    )


@router.get("/verdicts/{verdict_id}/why", summary="Why a place was flagged or not")
def why(
    site: SiteOf,
    who: Inspecting,  # noqa: ARG001
    verdict_id: RowId,
    x: Annotated[int, Query(ge=0, le=10**6, description="Pixels from the left of the original image.")],
    y: Annotated[int, Query(ge=0, le=10**6, description="Pixels from its top.")],
) -> WhyAnswer:
    """The place beside the normal patch that comes nearest to it."""
    place = why_at(site, verdict_or_404(site, verdict_id), x, y)
    nearest, answer = place.nearest, None
    if nearest:
        kinds = ["crop"] + (["normal"] if nearest.normal is not None else [])
        links = {kind: f"/verdicts/{verdict_id}/why/{kind}.jpg?x={x}&y={y}" for kind in kinds}
        answer = NearestAnswer(
            box=nearest.box, source=nearest.source, distance=nearest.distance, p_value=nearest.p_value, links=links
        )
    return WhyAnswer(
        at=place.at,
        value=place.value,
        threshold=place.threshold,
        p_value=place.p_value,
        flagged=place.flagged,
        nearest=answer,
        sentences=list(place.sentences),
    )


def _region(region: Region) -> dict[str, Any]:
    return {"box": list(region.box), "area": region.area, "peak": region.peak, "p_value": region.p_value}
