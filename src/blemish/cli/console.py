"""What blemish prints on a terminal: progress on standard error, tables on standard output."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from blemish.cli.tables import console
from blemish.cli.words import escaped, lasting
from blemish.reporting.figures import FIGURES, MEASURES, SHORT, defined, interval_of, stacked, value_of

T = TypeVar("T")
WARNINGS = 5  # at most so many are shown
EVERY = 5.0  # seconds between two lines where the output is no terminal

out = console()
err = console(stderr=True)


def progress(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    """Yields the items with a progress bar on a terminal; in a log, with a line every few seconds and one at the end.
    `total` is None where their number is not known."""
    what = escaped(what)
    if err.is_terminal:
        columns = (
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=err) as bars:
            yield from bars.track(items, total=total, description=what)
        return
    begun = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            err.print(f"{what}: {so_far(done, total, last - begun)}", soft_wrap=True)
    err.print(f"{what}: {done} in {time.monotonic() - begun:.1f} s", soft_wrap=True)


def so_far(done: int, total: int | None, seconds: float) -> str:
    """How many of `total` things were done in so many seconds, and at that rate the time that is left.

    >>> so_far(3, 12, 41.2), so_far(3, None, 41.2)
    ('3/12, 41 s, 3 min left', '3, 41 s')
    """
    if total is None:
        return f"{done}, {seconds:.0f} s"
    return f"{done}/{total}, {seconds:.0f} s, {lasting(seconds / done * (total - done))} left"


def warn(warnings: Sequence[str], data: Path) -> None:
    """The first warnings about the images in `data`, after a training."""
    for warning in warnings[:WARNINGS]:
        err.print(Text.assemble(("warning:", "yellow"), f" {warning}"), soft_wrap=True)
    if len(warnings) > WARNINGS:
        err.print(f"and {len(warnings) - WARNINGS} more; see: blemish data {data}", soft_wrap=True)


def figures_table(metrics: Mapping[str, Any], *, crossed: bool = False) -> Table:
    """The figures of one run with their intervals, from the content of `metrics.json`; with `crossed`, from its
    `cross_validation`."""
    title = f"{metrics['product']}, {metrics['detector']}"
    table = Table(title=f"{title}, every image out of fold" if crossed else title, title_justify="left")
    table.add_column("Figure")
    table.add_column("Value", justify="right")
    table.add_column("95 % interval", justify="right")
    for figure in FIGURES:
        if defined(measured := metrics.get(figure.group, {}).get(figure.name)):
            percent = figure.percent
            table.add_row(figure.title, value_of(measured, percent=percent), interval_of(measured, percent=percent))
    table.caption = _folds(metrics) if crossed else _counts(metrics)
    return table


def _folds(metrics: Mapping[str, Any]) -> str:
    spread = metrics["by_fold"]["balanced_accuracy"]
    mean, std = (value_of({"value": spread[name]}) for name in ("mean", "std"))
    times = "" if metrics["repeats"] == 1 else f", {metrics['repeats']} times"
    return f"{metrics['folds']} folds{times}; balanced accuracy by fold {mean} ± {std}"


def _counts(metrics: Mapping[str, Any]) -> str:
    """The images that the figures rest on."""
    counts = metrics["counts"]
    tested = f"tested on {counts['test_good']} good and {counts['test_anomaly']} defective"
    if "train" not in counts:
        return tested
    defective = counts.get("train_anomaly", 0)
    used = metrics.get("defects", {}).get("used", True)
    trained = f"{counts['train'] - defective} good" + (f" and {defective} defective" if defective and used else "")
    held_out = f", threshold from {counts['calibration']}" if counts["calibration"] else ""
    if metrics.get("decision", {}).get("calibrated_by") == "leave-one-out":
        held_out = ", threshold from the same, each without its own item"
    return f"trained on {trained}{held_out}; {tested}"


def faithfulness_table(measured: Mapping[str, Any]) -> Table:
    """The faithfulness of heatmaps, `faithfulness.Faithfulness` as JSON: a row for each measure, the detector's map
    beside the controls."""
    columns = list(dict.fromkeys(name for measure in measured["measures"] for name in measure["controls"]))
    table = Table(title="Are the heatmaps faithful?", title_justify="left", show_lines=True)
    for name in ("Measure", "this map", *columns):
        table.add_column(name, justify="left" if name == "Measure" else "right", overflow="fold")
    for measure in measured["measures"]:
        better = "lower is better" if measure["lower_is_better"] else "higher is better"
        figures = [measure["value"], *(measure["controls"].get(name) for name in columns)]
        cells = [stacked(figure, narrow=True) for figure in figures]
        table.add_row(f"{MEASURES[measure['name']]}\n({better})", *cells)
    table.caption = f"{measured['images']} anomalies; removed pixels replaced by {measured['replaced_by']}"
    return table


def sweep_table(candidates: Sequence[Mapping[str, Any]], most: int = 20) -> Table:
    """The candidates of a sweep by rank, at most so many, a row each; options that all have in common stand in the
    title."""
    names = list(dict.fromkeys(name for c in candidates for name in c["options"]))
    values = {name: {c["options"].get(name, "") for c in candidates} for name in names}
    vary = [name for name in names if len(values[name]) > 1]
    same = ", ".join(f"{name} {values[name].pop()}" for name in names if name not in vary)
    table = Table(title=escaped(f"On the validation split{f', {same}' if same else ''}"), title_justify="left")
    for name in vary:
        table.add_column(escaped(name.replace("_", "-")), overflow="fold")
    for name in ("choice", "image\nAUROC", "pixel\nAUROC", "AUPRO", "seeds", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in candidates[:most]:
        options = [escaped(c["options"].get(name, "")) for name in vary]
        if c["error"]:
            table.add_row(*options, "failed", "", "", "", str(len(c["seeds"])), f"{c['seconds']:.0f}")
            continue
        spread = "" if c["std"] is None else f" ± {value_of({'value': c['std']})}"
        ranked_by = ("choice", "image_auroc", "pixel_auroc", "aupro")
        figures = [value_of({"value": c["figures"][name]}) for name in ranked_by]
        table.add_row(*options, figures[0] + spread, *figures[1:], str(len(c["seeds"])), f"{c['seconds']:.0f}")
    errors = list(dict.fromkeys(c["error"] for c in candidates if c["error"]))
    more = [f"and {len(candidates) - most} more, see sweep.csv"] if len(candidates) > most else []
    table.caption = "\n".join(map(escaped, [*more, *errors]))
    return table


def suspected(crossed: Mapping[str, Any], most: int = 20) -> list[str]:
    """Lines that name the images whose labels may be wrong, at most so many."""
    suspects = crossed["suspects"]
    if not suspects:
        return ["No image looks mislabelled."]
    which = "This image is" if len(suspects) == 1 else f"These {len(suspects)} images are"
    lines = [f"{which} probably mislabelled; look again:"]
    lines += [f"  {s['name']}: labelled {s['given']}, looks like {s['likely']}" for s in suspects[:most]]
    return lines + ([f"  and {len(suspects) - most} more, see metrics.json"] if len(suspects) > most else [])


def products_table(runs: Iterable[Mapping[str, Any]], title: str = "") -> Table:
    """The main figures of runs, a row for each; intervals stand below the figures, so that 80 columns are enough."""
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("Product", overflow="fold")
    for figure in SHORT:
        table.add_column(figure.title.replace(" ", "\n"), justify="right", no_wrap=True)
    for metrics in runs:
        measured = [(metrics.get(figure.group, {}).get(figure.name), figure.percent) for figure in SHORT]
        table.add_row(metrics["product"], *(stacked(one, percent=percent, narrow=True) for one, percent in measured))
    return table
