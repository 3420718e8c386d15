"""One page on a run: what it was trained on, how good it is, every test image, and how to repeat it.

`facts` holds everything that the page label, for programs; the page adds images and curves. Both read only what
`blemish train` wrote (and, where given, the data), so that nothing is claimed that was not measured.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data.checks import Files
from blemish.evaluation.bootstrap import to_json, wilson
from blemish.evaluation.localisation import PixelStatistics
from blemish.files import check_file, write_text
from blemish.inference import bundle, calibration
from blemish.reporting import curves, exports, sentences
from blemish.reporting.figures import FILTERS, MEASURES, REPORT, defined, number, percent, with_interval
from blemish.reporting.gallery import Gallery, gallery
from blemish.reporting.rerun import repeat
from blemish.reporting.run import OUTCOMES, Recorded, read_run
from blemish.types import BlemishError, Progress, Sample, readable, silent

_PAGE = 'name="generator" content="blemish'  # how a page of ours begins
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # false-alarm rates for which thresholds are compared


def report(
    run: Path,
    out: Path | None,
    *,
    data: Path | None = None,
    samples: Sequence[Sample] = (),
    card: bundle.Card | None = None,
    junit: Path | None = None,
    csv: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes the page of `run` to `out`, one self-contained file, and returns its `facts`.

    `data` is the folder that the run was made from: with it the page shows the images themselves, the drawn outlines
    of defects, and the curve of AUPRO, for which the images are inspected again. `samples`, the run's test images as
    they were read, give all but the curve. `junit` and `csv` are further files to write. Every file is written whole
    or not at all. Raises `BlemishError` where `run` or `data` is not what it should be.
    """
    files = {file: start for file, start in ((out, _PAGE), (junit, exports.JUNIT), (csv, exports.CSV)) if file}
    for file, start in files.items():
        check_file(file, start)
    if len(files) < sum(file is not None for file in (out, junit, csv)):
        raise BlemishError("The page, JUnit XML and CSV are one file each; choose different names.")
    recorded = read_run(run, card)
    known = facts(recorded)
    if out:
        shown = gallery(recorded, data, progress, samples=samples)
        _write(out, _page(recorded, known, shown))
    if junit:
        _write(junit, exports.junit(recorded))
    if csv:
        _write(csv, exports.table(recorded))
    return known


def facts(run: Recorded) -> dict[str, Any]:
    """Everything that the page says of a run, JSON-ready."""
    card, metrics = run.card, run.metrics
    known = {
        "product": card.product,
        "detector": card.detector,
        "backbone": card.backbone.get("name", ""),
        "created": card.created,
        "image_size": card.image_size,
        "image_size_choice": metrics.get("image_size", {}).get("sentence"),
        "classes": card.classes,
        "choice": metrics.get("detector_choice"),
        "defects": metrics.get("defects", {}).get("sentence"),
        "learned_from_defects": metrics.get("defects", {}).get("used", True),
        "counts": metrics["counts"],
        "rule": card.decision.rule,
        "false_alarms_guaranteed": card.decision.false_alarms,
        "guarantee": card.decision.guarantee,
        "threshold": card.decision.threshold,
        "review": _band(metrics.get("decision", {})),
        "outcomes": {name: count for name in OUTCOMES if (count := _outcomes(run)[name])},
        "figures": _figures(metrics),
        "false_alarms": _rates(run),
        "recall_by_defect": metrics.get("recall_by_defect", {}),
        "class_matrix": metrics.get("classes"),
        "faithfulness": _faithfulness(metrics.get("faithfulness")),
        "suspects": metrics.get("cross_validation", {}).get("suspects", metrics.get("suspects")),
        "data_problems": metrics.get("data_problems"),
        "place": sentences.of_place(metrics["place"]) if metrics.get("place") else None,
        "data_files": Files(**metrics["files"]).sentence() if metrics.get("files") else None,
        "repeat": repeat(card),
        "images": [{**to_json(image), "outcome": image.outcome} for image in run.images],
    }
    return to_json({"verdict": _verdict(run, known), **known})  # type: ignore[no-any-return]


def _verdict(run: Recorded, known: Mapping[str, Any]) -> str:
    """The run in one line: only what is guaranteed or was measured."""
    detection, places = run.metrics.get("detection", {}), run.metrics.get("localisation", {})
    parts = []
    if (rate := known["false_alarms_guaranteed"]) is not None:
        parts.append(f"flags at most {percent(rate)} of good parts (guaranteed)")
    if defined(figure := detection.get("false_alarm_rate")):
        parts.append(f"flagged {with_interval(figure, percent=True)} of good test images")
    if defined(figure := detection.get("recall")):
        parts.append(f"finds {with_interval(figure, percent=True)} of defective ones")
    if known["outcomes"].get("review"):
        parts.append(f"leaves {known['outcomes']['review']} of {len(run.images)} test images to a person")
    if defined(figure := places.get("defects_hit")):
        parts.append(f"points at {with_interval(figure, percent=True)} of drawn defects")
    faithful = known["faithfulness"] or {}
    if faithful.get("of"):
        parts.append(f"heatmaps beat their controls in {faithful['passed']} of {faithful['of']} measures")
    if not parts:
        return "Nothing was guaranteed and nothing measured: there are no labelled test images."
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}."


def _outcomes(run: Recorded) -> Counter[str]:
    return Counter(image.outcome for image in run.images)


def _figures(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measured figures with their titles and meanings."""
    return [
        {**figure._asdict(), **measured}
        for figure in REPORT
        if defined(measured := metrics.get(figure.group, {}).get(figure.name))
    ]


def _band(decision: Mapping[str, Any]) -> list[float] | None:
    """The scores between which a person decides, where the run has such a band: [low, high]."""
    low = decision.get("review_threshold")
    return None if low is None else [float(low), float(decision["threshold"])]


def _rates(run: Recorded) -> list[dict[str, Any]]:
    """For each of RATES and the run's own: the threshold that the calibration scores give, and the shares of good and
    of defective test images above it. [] where nothing was guaranteed or no good test image is labelled."""
    decision = run.card.decision
    held_out = np.array(decision.scores)
    good, defective = _scores(run, "good"), _scores(run, "anomaly")
    if decision.rule != "guarantee" or not len(held_out) or not len(good):
        return []
    groups = [str(item) for item in decision.items] or None
    count = len(set(groups)) if groups else len(held_out)
    rows = []
    for rate in sorted({*RATES, decision.false_alarms or RATES[0]}):
        needed = calibration.parts_needed(rate, decision.confidence)
        enough = count >= needed
        threshold = calibration.threshold(held_out, rate, groups, confidence=decision.confidence) if enough else None
        row: dict[str, Any] = {"rate": rate, "threshold": threshold, "needed": needed, "held_out": count}
        if threshold is not None:
            alarms = int((good > threshold).sum())
            row |= {"alarms": alarms, "of": len(good), "observed": wilson(alarms, len(good))}
            row["found"] = wilson(int((defective > threshold).sum()), len(defective))
        rows.append(to_json(row))
    return rows


def _scores(run: Recorded, label: str) -> curves.Floats:
    return np.array([p.score for p in run.images if p.label == label and p.score is not None], np.float64)


def _faithfulness(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`faithfulness.Faithfulness` as JSON, as a table: `columns` (the detector and the controls) and `rows` of a
    measure and a figure for each column; with `sentences`, and the number of measures that the detector's maps
    `passed`, `of` those with a verdict. None where nothing was measured.
    """
    if measured is None:
        return None
    rows = [(MEASURES[one["name"]], {"detector": one["value"], **one["controls"]}) for one in measured["measures"]]
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    verdicts = [measure["explains"] for measure in measured["measures"] if measure["explains"] is not None]
    return {
        "columns": columns,
        "rows": [{"measure": name, "figures": [row.get(column) for column in columns]} for name, row in rows],
        "sentences": sentences.of_faithfulness(measured),
        "passed": sum(verdicts),
        "of": len(verdicts),
    }


def _page(run: Recorded, known: Mapping[str, Any], shown: Gallery) -> str:
    try:
        import jinja2
    except ImportError:
        raise BlemishError(
            "the report needs jinja2, which is not installed; run: pip install 'blemish[learn]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.html.jinja").render(
        known=known,
        run=run,
        gallery=shown,
        outcomes=OUTCOMES,
        defects=sorted({p.defect for p in run.images if p.defect}),
        views=list(dict.fromkeys(name for card in shown.cards for name in card.views)),
        drawn=_drawn(run, known, shown.pixels),
        reliability=_reliability(run),
    )


def _drawn(run: Recorded, known: Mapping[str, Any], pixels: PixelStatistics | None) -> dict[str, str]:
    """The curves that this run allows, by name, as SVG."""
    judged = [p for p in run.images if p.label and p.score is not None]
    scores, labels = np.array([p.score for p in judged], np.float64), np.array([p.label == "anomaly" for p in judged])
    good, defective, held_out = _scores(run, "good"), _scores(run, "anomaly"), np.array(run.card.decision.scores)
    drawn: dict[str, str] = {}
    detection = run.metrics.get("detection", {})
    if judged:
        thresholds = {"threshold": known["threshold"]}
        if known["review"]:
            thresholds = {"review from": known["review"][0], "anomaly above": known["review"][1]}
        tested = f"{len(good)} good and {len(defective)} defective test images"
        label = f"Scores of {tested}, threshold {number(known['threshold'])}"
        drawn["histogram"] = curves.histogram_svg(good, defective, held_out, thresholds, label)
    if len(good) and len(defective) and len(judged) == len(good) + len(defective):
        at = _values(detection, "false_alarm_rate", "recall")
        drawn["roc"] = curves.roc_svg(scores, labels, at, f"ROC curve, area {with_interval(detection.get('auroc'))}")
        label = f"Precision-recall curve, average precision {with_interval(detection.get('average_precision'))}"
        drawn["pr"] = curves.pr_svg(scores, labels, _values(detection, "recall", "precision"), label)
    if pixels is not None:
        aupro = run.metrics.get("localisation", {}).get("aupro")
        drawn["pro"] = curves.pro_svg(pixels, f"Per-region overlap, AUPRO {with_interval(aupro)}")
    return drawn


def _values(measured: Mapping[str, Any], x: str, y: str) -> tuple[float, float] | None:
    if not (defined(measured.get(x)) and defined(measured.get(y))):
        return None
    return measured[x]["value"], measured[y]["value"]


def _reliability(run: Recorded) -> str | None:
    """A classifier's reliability diagram from the run's folder, as a data URL: no script in an image runs."""
    file = run.folder / "reliability.svg"
    if not file.is_file():
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, readable(text))  # names of older runs, such as of their classes, may be no Unicode
