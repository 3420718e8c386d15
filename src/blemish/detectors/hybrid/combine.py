"""How the distance to normal patches and the heads' answer become one score, and whether they should: decided on images
that the heads in question were not trained on.

Both are put into the same unit: 0 is the median of good images, 1 their 95 % quantile. If their upper tails fall
exponentially, a value in this unit is -log p up to a constant factor, and the sum of both is as in Fisher's combination
of two p-values (which would be exact if they were independent; the threshold does not depend on that). So either alone
can flag an image: a defect that no head has seen is still far from normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from blemish.evaluation.label_errors import named, suspects

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

TAIL = 0.95  # quantile of good images that is 1
FALSE_ALARMS = 0.1  # up to which the curve's area is compared: what is caught at high rates helps nobody
DRAWS = 200  # of the bootstrap
# The share of them in which heads must help. Not more: the few heads that answer for an image err more than the mean of
# all, so what they bring is underestimated (docs/few-defects.md).
SURE = 2 / 3


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

    def __call__(self, values: Tensor) -> Tensor:
        """Values in this unit."""
        return (values - self.centre) / self.scale


@dataclass(frozen=True)
class Units:
    """The units of distances and of the heads' answers."""

    distances: Unit
    heads: Unit

    def join(self, deviations: Tensor, cells: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Deviations and the heads' logits of each cell `(N, P)`, and the heads' answers `(N,)` -> scores `(N,)` and
        the map's cells `(N, P)`."""
        joint = self.distances(deviations) + self.heads(cells)
        # Half what both say, wherever in the image they say it, and half where they agree.
        return (self.apart(deviations, answers) + joint.amax(1)) / 2, joint

    def apart(self, deviations: Tensor, answers: Tensor) -> Tensor:
        """What both say of the image `(N,)`, wherever in it they say it."""
        return self.distances(deviations.amax(1)) + self.heads(answers)


@dataclass(frozen=True)
class Help:
    """What heads bring on images that were left out: the partial area under the ROC curve `without` and `with_heads`
    (0.5 = chance), and the share `sure` (0..1) of bootstrap draws in which it rises."""

    without: float
    with_heads: float
    sure: float

    @property
    def clear(self) -> bool:
        return self.sure >= SURE


def compared(before: Floats, after: Floats, defective: Bools, items: Sequence[str], *, seed: int = 0) -> Help:
    """Scores (n,) of left-out images without and with heads. The draws are of items, good and defective ones apart."""
    draws = _drawn(defective, items, np.random.default_rng(seed))
    rises = [
        partial_area(after[chosen], defective[chosen]) > partial_area(before[chosen], defective[chosen])
        for chosen in draws
    ]
    return Help(partial_area(before, defective), partial_area(after, defective), float(np.mean(rises)))


def _drawn(defective: Bools, items: Sequence[str], random: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """`DRAWS` times the indices of as many items, drawn with replacement, as each class has."""
    classes = []
    for kind in (False, True):
        members: dict[str, list[int]] = {}
        for index in np.flatnonzero(defective == kind):
            members.setdefault(items[int(index)], []).append(int(index))
        classes.append([np.array(indices) for indices in members.values()])
    return [
        np.concatenate([part[i] for part in classes for i in random.integers(len(part), size=len(part))])
        for _ in range(DRAWS)
    ]


def partial_area(scores: Floats, defective: Bools) -> float:
    """The area under the ROC curve up to `FALSE_ALARMS`, scaled so that chance is 0.5 and the best is 1 (McClish
    1989)."""
    return float(roc_auc_score(defective, scores, max_fpr=FALSE_ALARMS))


def doubtful(scores: Floats, defective: Bools, names: list[str]) -> list[dict[str, Any]]:
    """The images whose label may be wrong, most suspicious first, by scores (n,) that neither label nor item of the
    image took part in: entries as in the cross-validation of a classifier."""
    column = scores.astype(np.float64)[:, None]
    model = LogisticRegression(class_weight="balanced").fit(column, defective)
    probabilities = model.predict_proba(column)
    return named(suspects(probabilities, defective.astype(np.int64)), names, ("good", "anomaly"))
