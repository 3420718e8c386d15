"""How the distance to normal patches and the heads' answer become one score, and whether they should: decided on images
that the heads in question were not trained on.

Both are put into the same unit: 0 is the median of good images, 1 their 95 % quantile. If their upper tails fall
exponentially, a value in this unit is -log p up to a constant factor, and the sum of both is Fisher's combination of
two p-values. So either alone can flag an image: a defect that no head has seen is still far from normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from blemish.evaluation.label_errors import suspects

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

TAIL = 0.95  # quantile of good images that is 1
FULL = 1.0  # weight of the heads, beside the distance's 1
TRIED = (0.5, FULL)  # on held-out images
FALSE_ALARMS = 0.1  # up to which the curve's area is compared: what is caught at high rates helps nobody


@dataclass(frozen=True)
class Unit:
    """A value's unit: `centre` becomes 0, and `centre + scale` becomes 1."""

    centre: float
    scale: float

    @classmethod
    def of(cls, good: Floats) -> Unit:
        """Of the values (n,) of good images."""
        centre, high = np.quantile(good.astype(np.float64), (0.5, TAIL))
        return cls(float(centre), max(float(high - centre), 1e-6))

    def __call__(self, values: Any) -> Any:
        """Values in this unit, of arrays and tensors alike."""
        return (values - self.centre) / self.scale


@dataclass(frozen=True)
class Combination:
    """The units of distances and heads, and the heads' `weight`; 0 = they did not help, so that distances decide
    alone. `areas`: by weight, the partial area under the ROC curve of images that were left out (0.5 = chance)."""

    distance: Unit
    heads: Unit
    weight: float
    areas: dict[float, float]


def combined(distances: Floats, heads: Floats, defective: Bools, *, forced: bool = False) -> Combination:
    """Whether the heads take part: where, at one of the weights `TRIED`, more is caught than without them, or `forced`.
    Distances (n,) are those of images without their own item, `heads` (n,) the scores of a head that was not trained on
    the image's item. Such an answer is one head's, and the detector's is the mean of several, which errs less. So what
    is seen here is too low for the heads: it may say whether they help, but where they do, they count in full."""
    units = Unit.of(distances[~defective]), Unit.of(heads[~defective])
    areas = {
        weight: partial_area(units[0](distances) + weight * units[1](heads), defective) for weight in (0.0, *TRIED)
    }
    helps = max(areas[weight] for weight in TRIED) > areas[0.0]
    return Combination(*units, FULL if helps or forced else 0.0, areas)


def partial_area(scores: Floats, defective: Bools) -> float:
    """The area under the ROC curve up to `FALSE_ALARMS`, scaled so that chance is 0.5 and the best is 1 (McClish
    1989)."""
    return float(roc_auc_score(defective, scores, max_fpr=FALSE_ALARMS))


def doubtful(scores: Floats, defective: Bools, names: list[str]) -> list[dict[str, Any]]:
    """The images whose label may be wrong, most suspicious first, by combined scores (n,) that neither label nor item
    of the image took part in: entries as in the cross-validation of a classifier."""
    column = scores.astype(np.float64)[:, None]
    model = LogisticRegression(class_weight="balanced").fit(column, defective)
    probabilities = model.predict_proba(column)
    classes = ("good", "anomaly")
    return [
        {"name": names[s.index], "given": classes[s.given], "likely": classes[s.likely], "sure": s.confidence}
        for s in suspects(probabilities, defective.astype(np.int64))
    ]
