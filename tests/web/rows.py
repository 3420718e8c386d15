"""Rows of images and verdicts that were never judged, for tests of what is shown of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from blemish.web import ledger
from blemish.web.tables import Image, Verdict


def image_row(session: Session, product: str, number: int, **columns: Any) -> Image:
    """An image without a file, whose hash is its number."""
    given = {"name": f"{number}.png", "ending": ".png", "width": 80, "height": 60, "added": "2026-01-01", "label": None}
    given |= {"shapes": [], "defect": "", "mask": "", "split": "", "item": "", "labelled_by": ""}
    row = Image(sha256=f"{number:064x}", product=product, **given | columns)
    session.add(row)
    session.flush()
    return row


def verdict_row(session: Session, image: Image, detector_id: int, **columns: Any) -> Verdict:
    """A verdict and its entry of the log."""
    given: dict[str, Any] = {"time": "2026-11-30T12:00:00.000+00:00", "name": image.name, "source": "page", "by": "me"}
    given |= {"decision": "good", "score": 80.0, "threshold": 100.0, "p_value": 0.5, "defect": "", "regions": []}
    row = Verdict(image_id=image.id, detector_id=detector_id, request=None, **given | columns)
    session.add(row)
    session.flush()
    ledger.append(session, row, row.time)
    image.verdict_id = row.id
    return row
