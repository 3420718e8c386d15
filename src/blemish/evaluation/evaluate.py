"""All figures of labelled images: from samples, predictions and verdicts to what `metrics.json` holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import detection_metrics, recall_by_defect
from blemish.evaluation.localisation import Mask, cut, judged, localisation_metrics
from blemish.evaluation.reliability import balanced_weights, reliability
from blemish.images import load_mask
from blemish.inference.framing import Framing
from blemish.types import Prediction, Sample, Verdict


def evaluate(
    samples: Sequence[Sample],
    prediction: Prediction,
    verdicts: Sequence[Verdict],
    classes: Sequence[str] = (),
    *,
    balanced: bool = True,
    framing: Framing | None = None,
) -> dict[str, Any]:
    """Figures by group, JSON-ready; {} without both anomalies and good images among `samples` (N,).

    `detection` holds `detection_metrics`, `recall_by_defect` and `localisation` what those functions return, and for a
    classifier `reliability` and, with more than two classes, `classes` (`confusion_matrix`). `prediction` and
    `verdicts` are of the N samples, in their order. Images without a label are left out. `classes` are a classifier's,
    good first; `balanced`: its probabilities are meant for equal odds of good and defective. With a region of interest
    in `framing`, masks are cut to it and pixels outside do not count.
    """
    labelled = [i for i, sample in enumerate(samples) if sample.label]
    labels = np.array([samples[i].label == "anomaly" for i in labelled], bool)
    if not labels.any() or labels.all():
        return {}
    flagged = np.array([verdicts[i].decision == "anomaly" for i in labelled])
    sizes = [v.size or (0, 0) for v in verdicts]

    def inside(i: int) -> Mask | None:
        return (
            framing.roi_in_image(sizes[i], None if prediction.poses is None else prediction.poses[i])
            if framing
            else None
        )

    def mask(i: int) -> Mask | None:
        file, counts = samples[i].mask, inside(i)
        drawn = load_mask(file, (sizes[i][1], sizes[i][0])) if file else None
        return cut(drawn, counts)

    figures = {
        "detection": to_json(detection_metrics(prediction.scores[labelled], labels, flagged)),
        "recall_by_defect": to_json(recall_by_defect([samples[i].defect for i in labelled], labels, flagged)),
        "localisation": to_json(
            localisation_metrics(
                prediction.maps[labelled],
                Lazily(labelled, mask),
                labels,
                [verdicts[i].regions for i in labelled],
                [sizes[i] for i in labelled],
                inside=Lazily(labelled, lambda i: judged(inside(i), sizes[i])),
            )
        ),
    }
    if prediction.probabilities is not None:
        anomaly = 1 - prediction.probabilities[labelled, 0].astype(np.float64)
        weights = balanced_weights(labels) if balanced else None
        figures["reliability"] = to_json(reliability(anomaly, labels, weights=weights))
        if len(classes) > 2:
            given = targets([samples[i] for i in labelled], classes)
            figures["classes"] = confusion_matrix(prediction.probabilities[labelled].argmax(1), given, classes)
    return figures


class Lazily(Sequence[Mask | None]):
    """`function` of each of some `numbers`, called when an item is needed: masks of large images are large."""

    def __init__(self, numbers: Sequence[int], function: Callable[[int], Mask | None]) -> None:
        self.numbers, self.function = numbers, function

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.function(self.numbers[index])


def targets(samples: Sequence[Sample], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Each sample's class (n,) as an index into `classes`, -1 for a defect type that is not among them. With two
    classes every anomaly is of the second. Images without a label count as good."""
    known = {name: index for index, name in enumerate(classes)}

    def anomaly(sample: Sample) -> int:
        return 1 if len(classes) == 2 else known.get(sample.defect or "anomaly", -1)

    return np.array([anomaly(s) if s.label == "anomaly" else 0 for s in samples], np.int64)


def confusion_matrix(
    predicted: npt.NDArray[np.integer], given: npt.NDArray[np.integer], classes: Sequence[str]
) -> dict[str, Any]:
    """`names`, and counts `matrix[given][predicted]` of class indices (n,); images given as -1 are left out.
    `balanced_accuracy` is the mean recall of the classes that have images (0..1).

    >>> confusion_matrix(np.array([0, 1, 0]), np.array([0, 1, 1]), ["good", "dent"])
    {'names': ['good', 'dent'], 'matrix': [[1, 0], [1, 1]], 'balanced_accuracy': 0.75}
    """
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (given[given >= 0], predicted[given >= 0]), 1)
    of = matrix.sum(1)
    share = np.divide(matrix.diagonal(), of, out=np.full(len(of), np.nan), where=of > 0)
    return to_json({"names": list(classes), "matrix": matrix, "balanced_accuracy": float(np.nanmean(share))})  # type: ignore[no-any-return]
