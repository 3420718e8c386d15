"""What a verdict rests on: beside each region the normal patch that comes nearest to it, and the image with its regions
inpainted, judged again. Needs what inference needs, and no PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

from blemish.inference.counterfactual import Counterfactual, counterfactual
from blemish.inference.evidence_store import EvidenceStore, read_store
from blemish.inference.inspector import Inspection, Inspector
from blemish.inference.nearest_normal import NearestNormal, nearest_normal

REGIONS = 3  # shown of an image, those with the highest peaks
NO_EVIDENCE = (
    "This bundle shows no nearest normal images: it was trained with --no-evidence, or by an older blemish; train it "
    "again to have them."
)


@dataclass(frozen=True)
class Evidence:
    """Of one verdict. `counterfactual` is None where there was nothing to inpaint the regions with."""

    nearest: tuple[NearestNormal, ...]
    counterfactual: Counterfactual | None
    regions: int  # of the verdict

    def sentence(self) -> str:
        """The counterfactual in words; "" without one."""
        inpainted = self.counterfactual
        if inpainted is None:
            return ""
        what = "this region" if self.regions == 1 else f"these {self.regions} regions"
        figure = f"score {inpainted.score:.3g}" if inpainted.p_value is None else f"p = {inpainted.p_value:.2g}"
        if inpainted.decision == "good":
            return f"With {what} inpainted, the verdict would be good ({figure})."
        if inpainted.decision == "review":
            return f"With {what} inpainted, the image would be put aside for review ({figure})."
        return (
            f"With {what} inpainted, it would still be an anomaly ({figure}): something else is anomalous as well, or "
            "what was inpainted does not look like a good part."
        )


def open_store(inspector: Inspector) -> EvidenceStore | None:
    """The bundle's evidence store, or None where it has none. Raises `BundleError` where it cannot be read."""
    if inspector.evidence is None:
        return None
    return read_store(inspector.evidence, inspector.card.image_size)


def gather(inspector: Inspector, store: EvidenceStore | None, inspection: Inspection) -> Evidence | None:
    """The evidence of an anomaly, or of an image to be reviewed; None for any other verdict, and without a region.
    Runs the graph once more for the inpainted image. Raises `BundleError` where evidence.zip is damaged."""
    verdict = inspection.verdict
    if verdict.decision not in ("anomaly", "review") or not verdict.regions or inspection.image is None:
        return None
    nearest = (nearest_normal(inspector, store, inspection, region) for region in verdict.regions[:REGIONS])
    return Evidence(
        tuple(one for one in nearest if one is not None),
        counterfactual(inspector, store, inspection),
        len(verdict.regions),
    )
