"""The commands `evaluate`, `report` and `compare`, registered by `app`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.words import say, say_json
from blemish.types import BlemishError, Sample

if TYPE_CHECKING:
    from blemish.inference.inspector import Inspector


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="What `blemish train` wrote: the folder, its bundle, or a .zip.")],
    data: Annotated[Path, typer.Argument(help="A folder of good and defective images.")],
    costs: Annotated[str, typer.Option(help="FALSE_ALARM,MISS,SHARE of parts defective: 1,50,2%.")] = "",
    faithfulness: Annotated[bool, typer.Option("--faithfulness", help="Test the heatmaps too; takes minutes.")] = False,
    randomised: Annotated[
        Path | None, typer.Option(help="A bundle trained the same way with --random-weights, as one more control.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Anomalies whose heatmaps are tested, at most.")] = 50,
    layout: Annotated[str, typer.Option(help="Read the folder as this layout.")] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same controls.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure a bundle on labelled images, and the faithfulness of its heatmaps."""
    from blemish.cli.console import progress
    from blemish.evaluation.cost import parse_prices
    from blemish.evaluation.evaluate_bundle import labelled, measure
    from blemish.inference.inspector import Inspector
    from blemish.reporting.run import names_tested
    from blemish.reporting.sentences import of_costs

    if randomised and not faithfulness:
        raise BlemishError("--randomised is a control for --faithfulness; give both, or neither.")
    prices = parse_prices(costs) if costs else None
    inspector = Inspector(bundle, threads=threads)
    samples, tested_on = labelled(data, layout, names_tested(bundle))
    result = {"tested_on": tested_on, **measure(inspector, samples, progress, prices=prices)}
    if prices:
        result["costs"]["sentences"] = of_costs(result["costs"])
    if faithfulness:
        other = None if randomised is None else Inspector(randomised, threads=threads)
        good_score = median(inspector.card.decision.scores or [result["median_good_score"]])
        result["faithfulness"] = _heatmaps(bundle, inspector, samples, good_score, other, most, seed)
    if as_json:
        say_json(result, indent=1)
    else:
        _print({"product": data.name, "detector": inspector.card.detector, **result})


def _heatmaps(
    bundle: Path,
    inspector: Inspector,
    samples: list[Sample],
    good_score: float,
    randomised: Inspector | None,
    most: int,
    seed: int,
) -> dict[str, Any]:
    """The faithfulness of the heatmaps, which is kept in the run's folder, if that was given."""
    from blemish.cli.console import progress
    from blemish.evaluation.evaluate_bundle import heatmaps
    from blemish.files import write_text
    from blemish.reporting.run import FAITHFUL
    from blemish.reporting.sentences import of_faithfulness

    measured = heatmaps(inspector, samples, good_score, randomised=randomised, most=most, seed=seed, progress=progress)
    measured["sentences"] = of_faithfulness(measured)
    if (bundle / "metrics.json").is_file():
        write_text(bundle / FAITHFUL, json.dumps(measured, indent=1) + "\n")
    return measured


def _print(result: dict[str, Any]) -> None:
    """The result of `evaluate` for people."""
    from blemish.cli.console import faithfulness_table, figures_table, out
    from blemish.reporting.sentences import of_misses

    out.print(figures_table(result))
    say(f"Measured on {result['tested_on']}.")
    for sentence in (*of_misses(result["misses"]), *result.get("costs", {}).get("sentences", ())):
        say(sentence)
    if result["unreadable"]:
        say(f"Left out, because unreadable: {', '.join(result['unreadable'])}.")
    if "faithfulness" in result:
        out.print(faithfulness_table(result["faithfulness"]))
        for sentence in result["faithfulness"]["sentences"]:
            out.print(sentence, soft_wrap=True)


def report(
    run: Annotated[Path, typer.Argument(help="The folder that `blemish train` wrote.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The page; report.html, or none with --json.")] = None,
    data: Annotated[Path | None, typer.Option(help="The images that the run was made from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's facts for programs.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML: missed defects and false alarms fail.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each test image.")] = None,
) -> None:
    """Write one page on a run: its figures, every test image, and how to repeat it."""
    from blemish.cli.console import progress
    from blemish.reporting.report import report as write

    page = out or (None if as_json else Path("report.html"))
    facts = write(run, page, data=data, junit=junit, csv=csv, progress=progress)
    if as_json:
        say_json(facts, indent=1)
        return
    say(facts["verdict"])
    written = ", ".join(str(file) for file in (page, junit, csv) if file)
    say(f"Written: {written}.")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `blemish train` wrote; the first is the reference.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare runs on the test images that they have in common."""
    from blemish.cli.console import out
    from blemish.reporting.compare import compare as measure
    from blemish.reporting.compare import sentences, table

    compared = measure(runs)
    if as_json:
        say_json(compared, indent=1)
        return
    out.print(table(compared))
    for line in sentences(compared):
        say(line)
