"""How blemish talks on a terminal: progress on standard error, tables on standard output."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

T = TypeVar("T")
EVERY = 5.0  # seconds between two lines where there is no terminal to animate

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def progress(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    """A bar on a terminal; in a log, a line when a stage begins, every few seconds, and when it is done.
    `total` is None where nobody knows how many will come."""
    if err.is_terminal:
        columns = (
            TextColumn("{task.description:<12}"),
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
            err.print(f"{what}: {done}{'' if total is None else f'/{total}'}, {last - begun:.0f} s")
    err.print(f"{what}: {done} in {time.monotonic() - begun:.1f} s")


def figures_table(metrics: Mapping[str, Any], *, crossed: bool = False) -> Table:
    """The figures of one run with their intervals, as `metrics.json` holds them; `crossed`: of its cross-validation."""
    counts = metrics["counts"]
    title = f"{metrics['product']}, {metrics['detector']}"
    table = Table(title=f"{title}, every image out of fold" if crossed else title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for group in ("detection", "localisation", "reliability"):
        for name, figure in metrics.get(group, {}).items():
            if isinstance(figure, Mapping) and figure.get("value") is not None:
                interval = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
                table.add_row(name.replace("_", " "), f"{figure['value']:.3f}", interval)
    if crossed:
        spread = metrics["by_fold"]["balanced_accuracy"]
        table.caption = (
            f"{metrics['folds']} folds, {metrics['repeats']} times; "
            f"balanced accuracy by fold {spread['mean']:.3f} ± {spread['std']:.3f}"
        )
        return table
    tested = f"tested on {counts['test_good']} good and {counts['test_anomaly']} defective"
    if "train" not in counts:
        table.caption = tested
        return table
    defective = counts.get("train_anomaly", 0)
    learned = f"{counts['train'] - defective} good" + (f" and {defective} defective" if defective else "")
    held_out = f", threshold from {counts['calibration']}" if counts["calibration"] else ""
    if metrics.get("decision", {}).get("calibrated_by") == "leave-one-out":
        held_out = ", threshold from the same, each without its own item"
    table.caption = f"learned from {learned}{held_out}; {tested}"
    return table


def faithfulness_table(found: Mapping[str, Any]) -> Table:
    """What was measured of heatmaps: a row a measure, the detector's map beside the controls."""
    from blemish.evaluation.faithfulness import MEASURES

    columns = list(dict.fromkeys(name for measure in found["measures"] for name in measure["controls"]))
    table = Table(title="Are the heatmaps true?", title_justify="left", show_lines=True)
    for name in ("measure", "this map", *columns):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for measure in found["measures"]:
        better = "lower is better" if measure["lower_is_better"] else "higher is better"
        figures = [short(measure["value"]), *(short(measure["controls"].get(name)) for name in columns)]
        table.add_row(f"{MEASURES[measure['name']]}\n({better})", *map(_stacked, figures))
    table.caption = f"{found['images']} anomalies; removed pixels replaced by {found['replaced_by']}"
    return table


def sweep_table(candidates: Sequence[Mapping[str, Any]], most: int = 20) -> Table:
    """Candidates of a sweep as they were ranked, a row each; options that are the same in all stand in the title."""
    names = list(dict.fromkeys(name for c in candidates for name in c["options"]))
    values = {name: {c["options"].get(name, "") for c in candidates} for name in names}
    vary = [name for name in names if len(values[name]) > 1]
    same = ", ".join(f"{name} {values[name].pop()}" for name in names if name not in vary)
    table = Table(title=escape(f"On the validation part{f', {same}' if same else ''}"), title_justify="left")
    for name in vary:
        table.add_column(escape(name.replace("_", "-")), overflow="fold")
    for name in ("choice", "image\nAUROC", "pixel\nAUROC", "AUPRO", "seeds", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in candidates[:most]:
        options = [escape(c["options"].get(name, "")) for name in vary]
        if c["error"]:
            table.add_row(*options, "failed", "", "", "", str(len(c["seeds"])), f"{c['seconds']:.0f}")
            continue
        spread = "" if c["std"] is None else f" ± {c['std']:.3f}"
        figures = [f"{c['figures'][name]:.3f}" for name in ("image_auroc", "pixel_auroc", "aupro")]
        choice = f"{c['figures']['choice']:.3f}{spread}"
        table.add_row(*options, choice, *figures, str(len(c["seeds"])), f"{c['seconds']:.0f}")
    errors = list(dict.fromkeys(c["error"] for c in candidates if c["error"]))
    more = [f"and {len(candidates) - most} more, see sweep.csv"] if len(candidates) > most else []
    table.caption = escape("\n".join([*more, *errors]))
    return table


def suspected(crossed: Mapping[str, Any], most: int = 20) -> list[str]:
    """Lines that name the images whose label looks wrong."""
    found = crossed["suspects"]
    if not found:
        return ["No image looks mislabelled."]
    one = len(found) == 1
    lines = [f"{'This image is' if one else f'These {len(found)} images are'} probably mislabelled; look again:"]
    lines += [f"  {s['name']}: called {s['given']}, looks like {s['likely']}" for s in found[:most]]
    return lines + ([f"  and {len(found) - most} more, see metrics.json"] if len(found) > most else [])


def products_table(runs: Iterable[Mapping[str, Any]], title: str = "") -> Table:
    """One row a run, for what matters most; each interval stands under its figure, so that 80 columns are enough."""
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("product")
    for name in ("image AUROC", "pixel AUROC", "AUPRO", "defects hit", "missed", "false alarms"):
        table.add_column(name, justify="right")
    for metrics in runs:
        detection, places = metrics.get("detection", {}), metrics.get("localisation", {})
        figures = [
            *(short(f) for f in (detection.get("auroc"), places.get("pixel_auroc"), places.get("aupro"))),
            short(places.get("defects_hit"), percent=True),
            short(detection.get("miss_rate"), percent=True),
            short(detection.get("false_alarm_rate"), percent=True),
        ]
        table.add_row(metrics["product"], *map(_stacked, figures))
    return table


def _stacked(figure: str) -> str:
    """`0.953 [0.921, 0.978]` -> 0.953 over .921-.978, `4% [1, 8]` -> 4% over 1-8."""
    value, _, interval = figure.partition(" [")
    shorter = interval.rstrip("]").replace("0.", ".").replace("1.000", "1").replace(", ", "-")
    return f"{value}\n{shorter}".rstrip()


def short(figure: Mapping[str, Any] | None, *, percent: bool = False) -> str:
    """`0.953 [0.921, 0.978]`, or in percent `4 % [1, 8]`; a dash where the figure is undefined."""
    if not figure or figure.get("value") is None:
        return "–"
    value, low, high = figure["value"], figure["low"], figure["high"]
    if percent:
        return f"{value:.0%}" + ("" if low is None else f" [{100 * low:.0f}, {100 * high:.0f}]")
    return f"{value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
