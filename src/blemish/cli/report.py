"""The commands that look back at runs: one short function each, registered by `cli`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from blemish.types import BlemishError


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="What `blemish train` wrote: the folder, its bundle, or a .zip.")],
    data: Annotated[Path, typer.Argument(help="A folder of good and defective images.")],
    costs: Annotated[str, typer.Option(help="FALSE_ALARM,MISS,SHARE of parts defective: 1,50,2%.")] = "",
    faithfulness: Annotated[bool, typer.Option("--faithfulness", help="Test the heatmaps too; minutes.")] = False,
    randomised: Annotated[
        Path | None, typer.Option(help="A bundle learned alike with --random-weights, as one more control.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Anomalies whose heatmaps are tested, at most.")] = 50,
    layout: Annotated[str, typer.Option(help="Read the folder as this layout.")] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same controls.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure a bundle on labelled images, and whether its heatmaps are true."""
    from blemish.cli.console import faithfulness_table, figures_table, progress
    from blemish.cli.console import out as page
    from blemish.evaluation.cost import prices_of
    from blemish.evaluation.evaluate_bundle import heatmaps, labelled, measure
    from blemish.files import write_text
    from blemish.inference.inspector import Inspector
    from blemish.reporting.run import FAITHFUL, names_tested

    if randomised and not faithfulness:
        raise BlemishError("--randomised is a control for --faithfulness; give both, or neither.")
    prices = prices_of(costs) if costs else None
    inspector = Inspector(bundle, threads=threads)
    samples, said = labelled(data, layout, names_tested(bundle))
    found = {"tested_on": said, **measure(inspector, samples, progress, prices=prices)}
    if faithfulness:
        normal_median = inspector.card.decision.scores
        found["faithfulness"] = heatmaps(
            inspector,
            samples,
            median(normal_median) if normal_median else found["median_good_score"],
            randomised=None if randomised is None else Inspector(randomised, threads=threads),
            most=most,
            seed=seed,
            progress=progress,
        )
        if (bundle / "metrics.json").is_file():
            write_text(bundle / FAITHFUL, json.dumps(found["faithfulness"], indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    page.print(figures_table({"product": data.name, "detector": inspector.card.detector, **found}))
    typer.echo(f"Measured on {said}.")
    for defect, missed in found["misses"]["by_defect"].items():
        typer.echo(
            f"Missed {missed['missed']} of {missed['defects']} {defect or 'defective'}: {missed['value']:.1%}, of "
            f"defects like these between {missed['low']:.1%} and {missed['high']:.1%}."
        )
    for sentence in found["costs"]["sentences"] if prices else ():
        typer.echo(sentence)
    if found["unreadable"]:
        typer.echo(f"Left out, because unreadable: {', '.join(found['unreadable'])}.")
    if faithfulness:
        page.print(faithfulness_table(found["faithfulness"]))
        for sentence in found["faithfulness"]["sentences"]:
            page.print(sentence, soft_wrap=True, markup=False)


def report(
    run: Annotated[Path, typer.Argument(help="The folder that `blemish train` wrote.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The page; report.html, or none with --json.")] = None,
    data: Annotated[Path | None, typer.Option(help="The images that the run was made from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's facts for programs.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML: missed defects and false alarms fail.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each test image.")] = None,
) -> None:
    """Write one page on a run: what it is worth, every test image, and how to repeat it."""
    from blemish.cli.console import progress
    from blemish.reporting.report import report as write

    page = out or (None if as_json else Path("report.html"))
    said = write(run, page, data=data, junit=junit, csv=csv, progress=progress)
    if as_json:
        typer.echo(json.dumps(said, indent=1))
        return
    typer.echo(said["verdict"])
    written = ", ".join(str(file) for file in (page, junit, csv) if file)
    typer.echo(f"Written: {written}.")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `blemish train` wrote; the first is the standard.")],
    seed: Annotated[int, typer.Option(help="Same seed, same intervals.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare runs on the test images that they have in common."""
    from blemish.cli.console import out
    from blemish.reporting.compare import compare as measure
    from blemish.reporting.compare import sentences, table

    found = measure(runs, seed=seed, resamples=resamples)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    out.print(table(found))
    for line in sentences(found):
        typer.echo(line)
