"""A bundle on labelled images: the same figures as after learning, of images that it may never have seen, and
whether its heatmaps are true."""

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

NORMALS = 200  # good images at most that stand in for what is taken out


class Chosen(NamedTuple):
    """Images to test with, and which of a folder's they are, in words."""

    samples: list[Sample]
    said: str


def labelled(data: Path, layout: str = "auto", tested: Collection[str] = ()) -> Chosen:
    """The labelled images of a folder that may be tested with: where the run was made from this folder, those that it
    `tested`, by name, as it learned from others; else those of the folder's own test part, or all.

    Raises `BlemishError` where there are not both good and defective ones.
    """
    samples = [sample for sample in layouts.read(data, layout).samples if sample.label]
    kept = set(tested)
    if kept and kept <= {sample.name for sample in samples}:
        chosen, said = [sample for sample in samples if sample.name in kept], "the test images of the run"
    elif chosen := [sample for sample in samples if sample.split == "test"]:
        said = "the test part of the folder"
    else:
        chosen = samples
        said = "all labelled images of the folder; if it was learned from some of them, the figures are too good"
    if len({sample.label for sample in chosen}) < 2:
        raise BlemishError(
            f"{data}: has not both good and defective images to test with; see what is there with blemish data."
        )
    return Chosen(chosen, said)


def measure(
    inspector: Inspector, samples: Sequence[Sample], progress: Progress = silent, *, prices: Prices | None = None
) -> dict[str, Any]:
    """The figures of `blemish train`, JSON-ready; under `misses` the share of defective images that were called good,
    of `all` and `by_defect`, with exact intervals; under `unreadable` the names of images that were left out; and,
    with `prices`, under `costs` what the threshold costs, by the card's good and these defective images.

    Raises `BlemishError` where no good or no defective image can be read, and for costs of a bundle that kept no good
    images from learning.
    """
    card = inspector.card
    if prices and not card.decision.scores:
        raise BlemishError(
            "--costs needs the scores of good images that had no part in learning, and this bundle has none; train "
            "with --decide guarantee."
        )
    seen, unreadable = [], []
    looks = inspector.look_many([sample.path for sample in samples])
    for sample, look in zip(samples, progress(looks, "inspecting", len(samples)), strict=True):
        if look.prediction is None:
            unreadable.append(sample.name)
        else:  # the image itself is not kept
            seen.append((sample, look.verdict, look.prediction))
    if len({sample.label for sample, _, _ in seen}) < 2:
        raise BlemishError(
            f"Of {len(samples)} images {len(unreadable)} cannot be read, which leaves no good or no defective ones."
        )
    used = ("scores", "maps", "probabilities", "poses")
    rows = [{name: value for name, value in p.outputs().items() if name in used} for _, _, p in seen]
    found = Prediction(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    scores = found.scores
    images, verdicts = [sample for sample, _, _ in seen], [verdict for _, verdict, _ in seen]
    figures = evaluate(images, found, verdicts, card.classes, balanced=card.balanced, framing=inspector.framing)
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


def _misses(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What was put aside for a person was not missed."""
    missed = [(s.defect, v.decision == "good") for s, v in zip(samples, verdicts, strict=True) if s.label == "anomaly"]

    def share(of: Sequence[bool]) -> dict[str, Any]:
        return {"missed": sum(of), "defects": len(of), **to_json(miss_rate(sum(of), len(of)))}

    by_defect = {
        name: share([hit for other, hit in missed if other == name]) for name in sorted({n for n, _ in missed})
    }
    return {"all": share([hit for _, hit in missed]), "by_defect": by_defect}


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
    """`faithfulness` of a bundle's maps, JSON-ready; `good_score` is the usual score of good images. What is taken
    out of an image is replaced by what an autoencoder paints there, or from the bundle's most similar good image,
    or, where it carries none, by what surrounds it: `replaced_by` says which."""
    impute, by = imputer_of(inspector)
    card = inspector.card
    found = faithfulness(
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
    return {**to_json(found), "replaced_by": by}


def scored(inspector: Inspector) -> Callable[[Pixels], tuple[float, npt.NDArray[np.float32]]]:
    """An image uint8 (H, W, 3) -> its raw score and map (h, w)."""

    def run(image: Pixels) -> tuple[float, npt.NDArray[np.float32]]:
        prediction = inspector.predict(image)
        return float(prediction.scores[0]), prediction.maps[0]

    return run


def imputer_of(inspector: Inspector) -> tuple[Imputer, str]:
    """What stands in for pixels that are taken out of an image, and what to call it."""
    if inspector.reconstructs:
        return from_normal(inspector.reconstruct), "the autoencoder's reconstruction"
    # With a frame, what memory holds need not be as large as an image, or lie as it does.
    if inspector.card.frame is None and (store := open_store(inspector)):
        goods = [store.image(number) for number in range(min(NORMALS, len(store.jpegs)))]
        if goods:
            return from_normal(nearest(goods)), "the most similar good image of the bundle"
    return inpaint, "what surrounds it"
