"""Two or more runs on the same test images: is one better, or could that be chance?

Differences are paired by image, so that what is easy or hard about an image cancels out: the intervals are those of the
images' own differences, and McNemar's test counts only images on which the runs disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from blemish.evaluation.auroc_interval import auroc_difference, auroc_interval
from blemish.evaluation.bootstrap import Interval, paired_shares, to_json, wilson
from blemish.reporting.figures import NAMED, p_value, stacked
from blemish.reporting.run import JudgedImage, Recorded, read_run
from blemish.types import BlemishError

if TYPE_CHECKING:
    from rich.table import Table

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FIGURES = ("auroc", "recall", "false_alarm_rate")


def compare(folders: Sequence[Path], *, level: float = 0.95) -> dict[str, Any]:
    """The figures of the runs on the test images that all of them judged, JSON-ready.

    `runs` holds each run's figures. `differences` holds, for each run but the first, its figures minus the first's with
    intervals at `level` paired by image, and `mcnemar` on right and wrong verdicts. `changed` holds the images whose
    verdicts differ. "review" counts as not flagged: a person decides. Images without a label only appear among the
    changed. Raises `BlemishError` with fewer than two runs, or where they have no image in common.
    """
    if len(folders) < 2:
        raise BlemishError("a comparison takes two runs or more; give their folders.")
    runs = [read_run(folder) for folder in folders]
    names, warnings = _common(runs)
    by_name = [{image.name: image for image in run.images} for run in runs]
    rows = [[images[name] for name in names] for images in by_name]
    labelled = [i for i, image in enumerate(rows[0]) if image.label]
    labels = np.array([rows[0][i].label == "anomaly" for i in labelled], bool)
    scores = np.array([[row[i].score for i in labelled] for row in rows], np.float64)
    flagged = np.array([[row[i].decision == "anomaly" for i in labelled] for row in rows], bool)
    figures = _figures(scores, labels, flagged, level)
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
        {"name": name, "label": judged[0].label, "defect": judged[0].defect, "decisions": [p.decision for p in judged]}
        for name, judged in zip(names, zip(*rows, strict=True), strict=True)
        if len({image.decision for image in judged}) > 1
    ]
    counts = {"images": len(names), "good": int((~labels).sum()), "anomalies": int(labels.sum())}
    result = {**counts, "runs": each, "differences": differences, "changed": changed, "warnings": warnings}
    return to_json(result)  # type: ignore[no-any-return]


def mcnemar(first: Bools, second: Bools) -> dict[str, Any]:
    """McNemar's exact test (1947), two-sided, of which run is right more often; `first` and `second` (N,) bool say
    which verdicts are right.

    Only the n images that exactly one run gets right count. Were the runs equally good, the number k of them that the
    first gets right would be Binomial(n, 1/2); `p_value` = min(1, 2 P(<= min(k, n - k))), None for n = 0.

    >>> mcnemar(np.array([True, False, False, False]), np.array([True, True, True, True]))  # 2 / 2^3
    {'only_first_right': 0, 'only_second_right': 3, 'p_value': 0.25}
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return {
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": min(1.0, 2 * tail / 2**count) if count else None,
    }


def table(compared: dict[str, Any]) -> Table:
    """The comparison for a terminal: a row for each figure, a column for each run, then the differences to the
    first."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=f"{compared['images']} images in common: {compared['good']} good, {compared['anomalies']} defective",
        title_justify="left",
        show_lines=True,
    )
    shown.add_column("figure")
    folders = [Path(run["run"]) for run in compared["runs"]]
    short = len({folder.name for folder in folders}) == len(folders)
    for number, folder in enumerate(folders, start=1):
        shown.add_column(Text(f"{number}: {folder.name if short else folder}"), justify="right", overflow="fold")
    for number, _ in enumerate(compared["differences"], start=2):
        shown.add_column(f"{number} minus 1", justify="right")
    for name in FIGURES:
        percent = NAMED[name].percent
        values = [stacked(run[name], percent=percent) for run in compared["runs"]]
        differences = [stacked(less[name], percent=percent, sign="+") for less in compared["differences"]]
        shown.add_row(NAMED[name].title, *values, *differences)
    tests = [difference["mcnemar"] for difference in compared["differences"]]
    alone = [f"{t['only_second_right']} : {t['only_first_right']}\np {p_value(t['p_value'])}" for t in tests]
    shown.add_row("Right alone\n(McNemar)", *[""] * len(compared["runs"]), *alone)
    return shown


def sentences(compared: dict[str, Any], most: int = 20) -> list[str]:
    """The lines below the table: warnings, and the images whose verdict changed, at most so many."""
    changed = compared["changed"]
    lines = [*compared["warnings"]]
    if not changed:
        return [*lines, "No verdict changed."]
    lines.append(f"{len(changed)} verdicts changed:" if len(changed) > 1 else "One verdict changed:")
    for image in changed[:most]:
        what = image["defect"] or image["label"] or "no label"
        lines.append(f"  {image['name']} ({what}): {', '.join(image['decisions'])}")
    return lines + ([f"  and {len(changed) - most} more, see --json"] if len(changed) > most else [])


def _common(runs: Sequence[Recorded]) -> tuple[list[str], list[str]]:
    """Names of the images that every run judged, with the same label and size, in the first run's order; and
    warnings."""
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


def _figures(scores: Floats, labels: Bools, flagged: Bools, level: float) -> dict[str, Interval]:
    """Figures by name and run, "auroc 0", and differences to the first run, "auroc 1 - 0". `scores` and `flagged` are
    (runs, N)."""
    figures: dict[str, Interval] = {}
    for i, (of_run, calls) in enumerate(zip(scores, flagged, strict=True)):
        figures[f"auroc {i}"] = auroc_interval(of_run, labels, level)
        figures[f"auroc {i} - 0"] = auroc_difference(of_run, scores[0], labels, level)
        for name, counted in (("recall", labels), ("false_alarm_rate", ~labels)):
            figures[f"{name} {i}"] = wilson(int(calls[counted].sum()), int(counted.sum()), level)
            figures[f"{name} {i} - 0"] = paired_shares(calls[counted], flagged[0][counted], level)
    return figures
