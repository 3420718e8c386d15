"""Two or more runs on the same test images: is one better, or would other images have said the opposite?

Every difference is taken image by image, so that what is easy or hard about an image cancels out: the bootstrap
draws the same images for every run, and McNemar's test looks only at images on which the runs disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import Interval, intervals, to_json, wilson
from blemish.evaluation.detection import _Ranking as Ranking
from blemish.evaluation.detection import area_under_roc
from blemish.reporting.run import JudgedImage, Recorded, read_run
from blemish.types import BlemishError

if TYPE_CHECKING:
    from rich.table import Table

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FIGURES = {"auroc": "image AUROC", "recall": "defects found", "false_alarm_rate": "false alarms"}


def compare(folders: Sequence[Path], *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
    """What the runs say of the test images that all of them judged, ready for JSON.

    `runs` holds each run's figures; `differences`, for each but the first, its figures less the first's with paired
    bootstrap intervals, and McNemar's test on right and wrong verdicts; `changed`, the images whose verdict is not
    the same in all. "review" counts as not flagged: a person decides. Images without a label only appear among the
    changed. Raises `BlemishError` where there are fewer than two runs, or no image in common.
    """
    if len(folders) < 2:
        raise BlemishError("a comparison takes two runs or more; give their folders.")
    runs = [read_run(folder) for folder in folders]
    names, warnings = _common(runs)
    judged = [{image.name: image for image in run.images} for run in runs]
    rows = [[images[name] for name in names] for images in judged]
    labelled = [i for i, image in enumerate(rows[0]) if image.label]
    labels = np.array([rows[0][i].label == "anomaly" for i in labelled], bool)
    scores = np.array([[row[i].score for i in labelled] for row in rows], np.float64)
    flagged = np.array([[row[i].decision == "anomaly" for i in labelled] for row in rows], bool)
    figures = _figures(scores, labels, flagged, resamples=resamples, seed=seed, level=level)
    each = [
        {
            "run": str(folder),
            "product": run.card.product,
            "detector": run.card.detector,
            "left_out": len(run.images) - len(names),
            "review": sum(image.decision == "review" for image in row),
            **{name: figures[f"{name} {number}"] for name in FIGURES},
        }
        for number, (folder, run, row) in enumerate(zip(folders, runs, rows, strict=True))
    ]
    right = flagged == labels
    differences = [
        {
            "run": str(folders[number]),
            "less": str(folders[0]),
            **{name: figures[f"{name} {number} - 0"] for name in FIGURES},
            "mcnemar": mcnemar(right[0], right[number]),
        }
        for number in range(1, len(runs))
    ]
    changed = [
        {"name": name, "label": of[0].label, "defect": of[0].defect, "decisions": [p.decision for p in of]}
        for name, of in zip(names, zip(*rows, strict=True), strict=True)
        if len({image.decision for image in of}) > 1
    ]
    counts = {"images": len(names), "good": int((~labels).sum()), "anomalies": int(labels.sum())}
    found = {**counts, "runs": each, "differences": differences, "changed": changed, "warnings": warnings}
    return to_json(found)  # type: ignore[no-any-return]


def mcnemar(first: Bools, second: Bools) -> dict[str, Any]:
    """McNemar's exact test of who is right more often, two-sided: `first` and `second` (N,) say which verdicts are
    right. Only images that one alone gets right count; each would be a coin's throw were the two alike. `p_value` is
    None where there is no such image."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return {
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": min(1.0, 2 * tail / 2**count) if count else None,
    }


def table(found: dict[str, Any]) -> Table:
    """The comparison for a terminal: a row a figure, a column a run, then what each has more than the first."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(
        title=f"{found['images']} images in common: {found['good']} good, {found['anomalies']} defective",
        title_justify="left",
        show_lines=True,
    )
    shown.add_column("figure")
    folders = [Path(run["run"]) for run in found["runs"]]
    short = len({folder.name for folder in folders}) == len(folders)
    for number, folder in enumerate(folders, start=1):
        shown.add_column(escape(f"{number}: {folder.name if short else folder}"), justify="right", overflow="fold")
    for number, _ in enumerate(found["differences"], start=2):
        shown.add_column(f"{number} less 1", justify="right")
    for name, title in FIGURES.items():
        values = [_stacked(run[name]) for run in found["runs"]]
        shown.add_row(title, *values, *(_stacked(less[name], "+") for less in found["differences"]))
    tests = [less["mcnemar"] for less in found["differences"]]
    alone = [f"{t['only_second_right']} : {t['only_first_right']}\np {_p(t['p_value'])}" for t in tests]
    shown.add_row("right alone\n(McNemar)", *[""] * len(found["runs"]), *alone)
    return shown


def sentences(found: dict[str, Any], most: int = 20) -> list[str]:
    """What stands below the table: warnings, and the images whose verdict changed."""
    changed = found["changed"]
    lines = [*found["warnings"]]
    if not changed:
        return [*lines, "No verdict changed."]
    lines.append(f"{len(changed)} verdicts changed:" if len(changed) > 1 else "One verdict changed:")
    for image in changed[:most]:
        what = image["defect"] or image["label"] or "no label"
        name = image["name"].encode("utf-8", "replace").decode()
        lines.append(f"  {name} ({what}): {', '.join(image['decisions'])}")
    return lines + ([f"  and {len(changed) - most} more, see --json"] if len(changed) > most else [])


def _common(runs: Sequence[Recorded]) -> tuple[list[str], list[str]]:
    """Names of the images that every run judged alike labelled and of one size, in the first one's order; and what
    people should know."""
    of_run: list[dict[str, JudgedImage]] = [
        {image.name: image for image in run.images if image.score is not None} for run in runs
    ]
    shared = [name for name in of_run[0] if all(name in images for images in of_run[1:])]
    same = [name for name in shared if len({(p[name].label, p[name].size) for p in of_run}) == 1]
    folders = " and ".join(str(run.folder) for run in runs)
    if not same:
        why = "they carry other labels or sizes" if shared else "none has the same name"
        raise BlemishError(
            f"{folders} have no test image in common ({why}); compare runs that were tested on the same images."
        )
    warnings = []
    if len(same) < len(shared):
        one = len(shared) - len(same) == 1
        what = "image has another label or size" if one else "images have other labels or sizes"
        warnings.append(f"{len(shared) - len(same)} {what} in another run, and {'is' if one else 'are'} left out.")
    products = list(dict.fromkeys(run.card.product for run in runs))
    if len(products) > 1:
        warnings.append(f"These runs are of {' and '.join(products)}: images of one name may not be the same image.")
    return same, warnings


def _figures(
    scores: Floats, labels: Bools, flagged: Bools, *, resamples: int, seed: int, level: float
) -> dict[str, Interval]:
    """Figures by name and run, "auroc 0", and less the first's, "auroc 1 - 0": all from the same resamples, stratified
    by label; a run's own shares with Wilson's interval. `scores` and `flagged` are (runs, N)."""
    number = range(len(scores))
    rankings = [Ranking.of(of_run, labels) for of_run in scores]

    def statistics(weights: Floats) -> dict[str, Floats]:
        anomalies, good = weights @ labels, weights @ ~labels
        found: dict[str, Floats] = {}
        for i in number:
            found[f"auroc {i}"] = area_under_roc(*rankings[i].counts(weights))
            found[f"recall {i}"] = _share(weights @ (labels & flagged[i]), anomalies)
            found[f"false_alarm_rate {i}"] = _share(weights @ (~labels & flagged[i]), good)
        differences = {
            f"{name} {i} - 0": found[f"{name} {i}"] - found[f"{name} 0"] for i in number[1:] for name in FIGURES
        }
        return {**found, **differences}

    if not len(labels):
        nothing = [f"{name} {i}" for name in FIGURES for i in number]
        nothing += [f"{name} {i} - 0" for name in FIGURES for i in number[1:]]
        return dict.fromkeys(nothing, Interval(None))
    figures = intervals(statistics, labels, resamples=resamples, seed=seed, level=level)
    for i in number:
        figures[f"recall {i}"] = wilson(int((labels & flagged[i]).sum()), int(labels.sum()), level)
        figures[f"false_alarm_rate {i}"] = wilson(int((~labels & flagged[i]).sum()), int((~labels).sum()), level)
    return figures


def _share(some: Floats, of: Floats) -> Floats:
    shares: Floats = np.full(len(of), np.nan)
    np.divide(some, of, out=shares, where=of > 0)
    return shares


def _stacked(figure: dict[str, Any], sign: str = "") -> str:
    """A figure over its interval."""
    if figure["value"] is None:
        return "–"
    interval = "" if figure["low"] is None else f"\n{figure['low']:{sign}.3f} to {figure['high']:{sign}.3f}"
    return f"{figure['value']:{sign}.3f}{interval}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"
