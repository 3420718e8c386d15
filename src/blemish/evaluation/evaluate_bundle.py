"""A bundle on labelled images: the same figures as after training, of images that may be new to it, and the
faithfulness of its heatmaps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from blemish.data import layouts
from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.cost import Costs, Prices, costs, miss_rate
from blemish.evaluation.evaluate import evaluate
from blemish.evaluation.faithfulness import faithfulness
from blemish.evaluation.imputation import Imputer, Pixels, from_normal, inpaint, nearest
from blemish.inference import calibration
from blemish.inference.bundle import Decision
from blemish.inference.evidence import open_store
from blemish.inference.inspector import Inspector
from blemish.types import BlemishError, Prediction, Progress, Sample, Verdict, silent

NORMALS = 200  # at most so many good images are searched for a replacement


class Chosen(NamedTuple):
    """The images to test with, and in words which images of the folder they are."""

    samples: list[Sample]
    description: str


def labelled(data: Path, layout: str = "auto", tested: Collection[str] = ()) -> Chosen:
    """The labelled images of the folder `data` to test a run with.

    They are those that the run `tested`, by name, where the folder has them all, since it was trained on others; else
    those of the folder's own test split; else all. Raises `BlemishError` without both good and defective images.
    """
    samples = [sample for sample in layouts.read(data, layout).samples if sample.label]
    names = set(tested)
    if names and names <= {sample.name for sample in samples}:
        chosen, description = [sample for sample in samples if sample.name in names], "the test images of the run"
    elif chosen := [sample for sample in samples if sample.split == "test"]:
        description = "the test split of the folder"
    else:
        chosen = samples
        description = "all labelled images of the folder; if some of them were trained on, the figures are too good"
    if len({sample.label for sample in chosen}) < 2:
        raise BlemishError(
            f"{data}: has not both good and defective images to test with; see what is there with blemish data."
        )
    return Chosen(chosen, description)


def measure(
    inspector: Inspector, samples: Sequence[Sample], progress: Progress = silent, *, prices: Prices | None = None
) -> dict[str, Any]:
    """The figures of `evaluate`, JSON-ready, and more: `counts` of images, `misses` (the share of defective images
    called good, of `all` and `by_defect`, with exact intervals), `unreadable` (names of the images that were left out),
    `median_good_score`, and with `prices` the `costs` of the threshold, from the card's calibration scores and these
    defective images.

    Raises `BlemishError` where no good or no defective image can be read, and for costs of a bundle without
    calibration scores.
    """
    card = inspector.card
    if prices and not card.decision.scores:
        raise BlemishError(
            "--costs needs calibration scores, of good images that were not trained on, and this bundle has none; "
            "train with --decide guarantee."
        )
    images, verdicts, prediction, unreadable = _inspected(inspector, samples, progress)
    scores = prediction.scores
    figures = evaluate(images, prediction, verdicts, card.classes, balanced=card.balanced, framing=inspector.framing)
    defective = np.array([sample.label == "anomaly" for sample in images])
    figures |= {
        "counts": {"test_good": int((~defective).sum()), "test_anomaly": int(defective.sum())},
        "misses": _misses(images, verdicts),
        "unreadable": unreadable,
        "median_good_score": float(np.median(scores[~defective])),
    }
    if prices:
        figures["costs"] = to_json(_costs(card.decision, scores[defective], prices))
    return figures


def _inspected(
    inspector: Inspector, samples: Sequence[Sample], progress: Progress
) -> tuple[list[Sample], list[Verdict], Prediction, list[str]]:
    """The samples that can be read, their verdicts and predictions, and the names of the others."""
    images, verdicts, rows, unreadable = list[Sample](), list[Verdict](), [], list[str]()
    used, first = ("scores", "maps", "probabilities", "poses"), ""
    inspections = inspector.look_many([sample.path for sample in samples])
    for sample, inspection in zip(samples, progress(inspections, "inspecting", len(samples)), strict=True):
        if inspection.prediction is None:
            unreadable.append(sample.name)
            first = first or str(inspection.verdict.error).removesuffix(".")
            continue
        images.append(sample)
        verdicts.append(inspection.verdict)
        rows.append({name: value for name, value in inspection.prediction.outputs().items() if name in used})
    if len({sample.label for sample in images}) < 2:
        raise BlemishError(
            f"Of {len(samples)} images {len(unreadable)} cannot be read or judged, which leaves no good or no "
            f"defective ones; the first: {first}."
        )
    prediction = Prediction(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    return images, verdicts, prediction, unreadable


def _misses(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """An image left to a person ("review") is not missed."""
    calls = [(s.defect, v.decision == "good") for s, v in zip(samples, verdicts, strict=True) if s.label == "anomaly"]

    def share(missed: Sequence[bool]) -> dict[str, Any]:
        return {"missed": sum(missed), "defects": len(missed), **to_json(miss_rate(sum(missed), len(missed)))}

    by_defect = {
        name: share([missed for defect, missed in calls if defect == name]) for name in sorted({n for n, _ in calls})
    }
    return {"all": share([missed for _, missed in calls]), "by_defect": by_defect}


def _costs(rule: Decision, defective: npt.NDArray[np.floating], prices: Prices) -> Costs:
    weights = calibration.item_weights([str(item) for item in rule.items]) if rule.items else None
    return costs(rule.threshold, np.array(rule.scores), defective.astype(np.float64), prices, weights)


def heatmaps(
    inspector: Inspector,
    samples: Sequence[Sample],
    good_score: float,
    *,
    randomised: Inspector | None = None,
    most: int = 50,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """`faithfulness` of a bundle's maps, JSON-ready; `good_score` is the median score of good images. Pixels that are
    taken out are replaced from an autoencoder's reconstruction, else from the bundle's most similar good image, else,
    where it carries none, from the surrounding pixels: `replaced_by` says which."""
    impute, replaced_by = imputer_of(inspector)
    card = inspector.card
    measured = faithfulness(
        samples,
        scored(inspector),
        card.decision.threshold,
        good_score,
        impute=impute,
        randomised=None if randomised is None else scored(randomised),
        most=most,
        side=max(card.frame.size if card.frame else card.image_size),
        seed=seed,
        progress=progress,
    )
    return {**to_json(measured), "replaced_by": replaced_by}


def scored(inspector: Inspector) -> Callable[[Pixels], tuple[float, npt.NDArray[np.float32]]]:
    """An image uint8 (H, W, 3) -> its raw score and map (h, w)."""

    def run(image: Pixels) -> tuple[float, npt.NDArray[np.float32]]:
        prediction = inspector.predict(image)
        return float(prediction.scores[0]), prediction.maps[0]

    return run


def imputer_of(inspector: Inspector) -> tuple[Imputer, str]:
    """What replaces pixels that are taken out of an image, and its name."""
    if inspector.reconstructs:
        return from_normal(inspector.reconstruct), "the autoencoder's reconstruction"
    # With a frame, the images of the evidence store need not have the size or the position of the inspected one.
    if inspector.card.frame is None and (store := open_store(inspector)):
        goods = [store.image(number) for number in range(min(NORMALS, len(store.jpegs)))]
        if goods:
            return from_normal(nearest(goods)), "the most similar good image of the bundle"
    return inpaint, "the surrounding pixels"
