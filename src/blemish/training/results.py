"""Writes the run's folder besides its bundle: metrics of the test images, their verdicts, overlays and the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blemish.evaluation.evaluate import evaluate
from blemish.images import decode, read_size
from blemish.inference import bundle, evidence, results
from blemish.inference.framing import Framing
from blemish.inference.inspector import Inspection, Inspector
from blemish.reporting.curves import draw_reliability
from blemish.reporting.report import report
from blemish.training.crossval import CrossValidation
from blemish.types import Prediction, Progress, Sample, Verdict


@dataclass(frozen=True)
class Evaluated:
    """The test images with their verdicts and metrics; `drawn` has the evidence of each drawn image by its name."""

    samples: Sequence[Sample] = ()
    verdicts: Sequence[Verdict] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    drawn: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def evaluate_test(
    folder: Path,
    inspector: Inspector,
    samples: Sequence[Sample],
    prediction: Prediction | None,
    framing: Framing | None,
    overlays: int,
    progress: Progress,
) -> Evaluated:
    """Judges and measures the test images, and draws at most `overlays` of them into `folder`."""
    if prediction is None:
        return Evaluated()
    card = inspector.card
    verdicts = [inspector.judge(prediction[i], read_size(sample.path), sample.name) for i, sample in enumerate(samples)]
    figures = evaluate(samples, prediction, verdicts, card.classes, balanced=card.balanced, framing=framing)
    drawn = draw(folder, samples, prediction, verdicts, inspector, overlays, progress)
    return Evaluated(samples, verdicts, figures, drawn)


def draw(
    folder: Path,
    samples: Sequence[Sample],
    prediction: Prediction,
    verdicts: Sequence[Verdict],
    inspector: Inspector,
    most: int,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Writes overlays and evidence of at most `most` test images, as `inference.results.write_images` does, under the
    images' names. Returns the records of evidence and counterfactual by image name."""
    order = _drawing_order(samples, verdicts)[:most]
    store = evidence.open_store(inspector)

    def draw_image(i: int) -> dict[str, Any]:
        inspection = Inspection(verdicts[i], decode(samples[i]), prediction[i])
        image_evidence = evidence.gather(inspector, store, inspection)
        files = results.write_images(
            folder, samples[i].name, inspection, inspector.card.decision.color_range, image_evidence
        )
        return {kind: files[kind] for kind in ("evidence", "counterfactual")}

    drawn = progress(inspector.in_threads(order, draw_image), "overlays", len(order))
    return {samples[i].name: files for i, files in zip(order, drawn, strict=True)}


def _drawing_order(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> list[int]:
    """Indices of the samples: the first by name of each pair of label and decision, wrong decisions before right ones,
    then the second of each pair, and so on."""
    rank: Counter[tuple[str | None, str]] = Counter()
    keys = []
    for i in sorted(range(len(samples)), key=lambda i: samples[i].name):
        label, decision = samples[i].label, verdicts[i].decision
        keys.append((rank[label, decision], decision == (label or decision), i))
        rank[label, decision] += 1
    return [i for _, _, i in sorted(keys)]


def write_run(
    folder: Path,
    metrics: dict[str, Any],
    evaluated: Evaluated,
    crossed: CrossValidation | None,
    card: bundle.Card,
    seconds: Mapping[str, float],
    progress: Progress,
) -> None:
    """Completes `metrics` and writes `metrics.json`, `verdicts.jsonl`, the report and, for a classifier,
    `reliability.svg` and `out_of_fold.jsonl`."""
    if "reliability" in metrics:
        draw_reliability(metrics["reliability"], folder / "reliability.svg", metrics["product"])
    if crossed:
        metrics["cross_validation"] = crossed.metrics
        _write_lines(folder / "out_of_fold.jsonl", crossed.rows)
    metrics["seconds"] = dict(seconds)
    not_drawn: dict[str, Any] = {"evidence": [], "counterfactual": None}
    rows = [
        {**verdict.to_json(), "predicted_defect": verdict.defect, "label": sample.label, "defect": sample.defect}
        | evaluated.drawn.get(sample.name, not_drawn)
        for sample, verdict in zip(evaluated.samples, evaluated.verdicts, strict=True)
    ]
    _write_lines(folder / "verdicts.jsonl", rows)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    if rows:
        report(folder, folder / "report.html", samples=evaluated.samples, card=card, progress=progress)


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")
