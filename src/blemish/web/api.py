"""/api/v1: the same for programs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict

from blemish.web.access import Inspecting
from blemish.web.answers import ErrorAnswer
from blemish.web.site import NamedProduct, RowId, SiteOf, verdict_or_404
from blemish.web.tables import Verdict
from blemish.web.uploads import inspected

router = APIRouter(prefix="/api/v1", responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}})
EXAMPLE: dict[str, Any] = {
    "id": 17,
    "image_id": 12,
    "image": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "name": "flange-0042.png",
    "product": "flange",
    "detector": {"id": 1, "version": 1, "sha256": "833c575d12e39c9b6639daf71025a297e2bc4362f6f0107c99a16fd532b774e7"},
    "time": "2026-11-30T13:44:29.123+00:00",
    "source": "api",
    "by": "line 3",
    "decision": "anomaly",
    "score": 4.21,
    "threshold": 2.53,
    "p_value": 0.0123,
    "probability": None,
    "defect": "",
    "regions": [{"box": [210, 96, 258, 141], "area": 1460.0, "peak": 4.2, "p_value": 0.0123}],
    "error": None,
    "label": None,
    "links": {
        "page": "/verdicts/17",
        "image": "/verdicts/17/image",
        "overlay": "/verdicts/17/overlay.jpg",
        "heat": "/verdicts/17/heat.png",
        "evidence": "/api/v1/verdicts/17/evidence",
    },
}


class VerdictAnswer(BaseModel):
    """A verdict; boxes are half-open pixel ranges (left, top, right, bottom) of the original image."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})
    id: int
    image_id: int  # to correct it
    image: str  # the SHA-256 of its bytes
    name: str
    product: str
    detector: dict[str, Any]
    time: str
    source: str
    by: str
    decision: str
    score: float | None
    threshold: float | None
    p_value: float | None
    probability: float | None
    defect: str
    regions: list[dict[str, Any]]
    error: str | None
    label: str | None
    links: dict[str, str]


def as_answer(verdict: Verdict) -> VerdictAnswer:
    """A row as it is answered."""
    own = (
        *("id", "image_id", "name", "time", "source", "by", "decision", "score", "threshold", "p_value", "probability"),
    )
    here, detector = f"/verdicts/{verdict.id}", verdict.detector
    links = {"page": here}
    if verdict.image.ending:
        links |= {"image": f"{here}/image", "overlay": f"{here}/overlay.jpg", "heat": f"{here}/heat.png"}
        links["evidence"] = f"/api/v1{here}/evidence"
    return VerdictAnswer(
        **{name: getattr(verdict, name) for name in own},
        image=verdict.image.sha256,
        product=verdict.image.product,
        detector={"id": detector.id, "version": detector.version, "sha256": detector.sha256},
        defect=verdict.defect,
        regions=verdict.regions,
        error=verdict.error,
        label=verdict.image.label,
        links=links,
    )


_IMAGES = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
_FORM = {"type": "object", "properties": {"images": _IMAGES}, "required": ["images"]}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FORM},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


@router.post("/inspect", summary="Judge images", openapi_extra={"requestBody": _BODY})
async def inspect(
    request: Request,
    site: SiteOf,
    who: Inspecting,
    product: NamedProduct,
    name: Annotated[str, Query(max_length=500, description="Of a raw body's image.")] = "image",
    source: Annotated[str, Query(pattern="^(page|webcam|api)$")] = "api",
    idempotency_key: Annotated[str | None, Header(max_length=90)] = None,
) -> list[VerdictAnswer]:
    """Judges the images of a multipart form (`images`), or the one that is the request's body, and records each verdict
    before it answers and before the next is judged; an error says how many of them are recorded. With an
    `Idempotency-Key`, a repeated request gets the same verdicts and records nothing."""
    verdicts = await inspected(request, site, product, by=who.name, source=source, name=name, key=idempotency_key)
    return [as_answer(verdict) for verdict in verdicts]


@router.get("/verdicts/{verdict_id}", summary="One verdict")
def verdict(site: SiteOf, who: Inspecting, verdict_id: RowId) -> VerdictAnswer:  # noqa: ARG001
    """A verdict by its number."""
    return as_answer(verdict_or_404(site, verdict_id))
