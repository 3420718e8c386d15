"""The commands that look back at runs: one short function each, registered by `cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="The folder that `blemish train` wrote.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The page; report.html, or none with --json.")] = None,
    data: Annotated[Path | None, typer.Option(help="The pictures that the run was made from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's facts for programs.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML: missed defects and false alarms fail.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each test picture.")] = None,
) -> None:
    """Write one page on a run: what it is worth, every test picture, and how to repeat it."""
    from blemish.console import progress
    from blemish.evaluate.report import report as write

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
    """Compare runs on the test pictures that they have in common."""
    from blemish.console import out
    from blemish.evaluate.compare import compare as measure
    from blemish.evaluate.compare import sentences, table

    found = measure(runs, seed=seed, resamples=resamples)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    out.print(table(found))
    for line in sentences(found):
        typer.echo(line)
