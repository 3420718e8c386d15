"""A bundle on labelled pictures: the same figures as after learning, of pictures that it may never have seen, and
whether its heatmaps are true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data import layouts
from blemish.evaluate.bootstrap import to_json
from blemish.evaluate.faithfulness import faithfulness
from blemish.evaluate.part import evaluate
from blemish.evaluate.repair import Repair, from_normal, inpaint, nearest
from blemish.evidence import open_memory
from blemish.inspector import Inspector
from blemish.types import BlemishError, Prediction, Progress, Sample, silent

NORMALS = 200  # good pictures at most that stand in for what is taken out


def labelled(data: Path, layout: str = "auto") -> list[Sample]:
    """The labelled pictures of a folder: those of its own test part, where it has one.

    Raises `BlemishError` where there are not both good and defective ones.
    """
    samples = [sample for sample in layouts.read(data, layout).samples if sample.label]
    chosen = [sample for sample in samples if sample.part == "test"] or samples
    if len({sample.label for sample in chosen}) < 2:
        raise BlemishError(
            f"{data}: has not both good and defective pictures to test with; see what is there with blemish data."
        )
    return chosen


def measure(inspector: Inspector, samples: Sequence[Sample], progress: Progress = silent) -> dict[str, Any]:
    """The figures of `blemish train`, JSON-ready, and under `unreadable` the names of pictures that were left out.

    Raises `BlemishError` where no good or no defective picture can be read.
    """
    seen, unreadable = [], []
    looks = inspector.look_many([sample.path for sample in samples])
    for sample, look in zip(samples, progress(looks, "inspecting", len(samples)), strict=True):
        if look.map is None or look.verdict.score is None:
            unreadable.append(sample.name)
        else:  # the picture itself is not kept
            seen.append((sample, look.verdict, look.map))
    if len({sample.label for sample, _, _ in seen}) < 2:
        raise BlemishError(
            f"Of {len(samples)} pictures {len(unreadable)} cannot be read, which leaves no good or no defective ones."
        )
    scores = np.array([verdict.score for _, verdict, _ in seen], np.float32)
    found = Prediction(scores, np.stack([anomaly_map for _, _, anomaly_map in seen]))
    figures = evaluate([sample for sample, _, _ in seen], found, [verdict for _, verdict, _ in seen])
    good = [score for score, (sample, _, _) in zip(scores, seen, strict=True) if sample.label == "good"]
    counts = {"test_good": len(good), "test_anomaly": len(seen) - len(good)}
    return {"counts": counts, **figures, "unreadable": unreadable, "median_good_score": float(np.median(good))}


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
    """`faithfulness` of a bundle's maps, JSON-ready; `good_score` is the usual score of good pictures. What is taken
    out of a picture is replaced by what an autoencoder paints there, or from the bundle's most similar good picture,
    or, where it carries none, by what surrounds it: `replaced_by` says which."""
    repair, by = repair_of(inspector)
    card = inspector.card
    found = faithfulness(
        samples,
        inspector.predict,
        card.decision.threshold,
        good_score,
        repair=repair,
        randomised=None if randomised is None else randomised.predict,
        most=most,
        side=max(card.image_size),
        seed=seed,
        progress=progress,
    )
    return {**to_json(found), "replaced_by": by}


def repair_of(inspector: Inspector) -> tuple[Repair, str]:
    """What stands in for pixels that are taken out of a picture, and what to call it."""
    if inspector.paints:
        return from_normal(lambda picture: inspector.outputs(picture)["repaired"]), "the autoencoder's repaired picture"
    if memory := open_memory(inspector):
        goods = [memory.picture(number) for number in range(min(NORMALS, len(memory.jpegs)))]
        if goods:
            return from_normal(nearest(goods)), "the most similar good picture of the bundle"
    return inpaint, "what surrounds it"
