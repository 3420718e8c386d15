"""The commands `train` and `detectors`. PyTorch is imported only when `train` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from blemish.cli.options import detector_options, fixed, with_options
from blemish.cli.words import say_json
from blemish.detectors.registry import config_of, loadable
from blemish.options import options
from blemish.training.config import TrainConfig, configure


@with_options(
    [
        fixed("data", Path, typer.Argument(help="A folder of images; see `blemish data`.")),
        fixed("out", Path, typer.Option("-o", "--out", help="Folder to write; it must not exist.")),
        fixed(
            "detector",
            str,
            typer.Option(help=f"{', '.join(loadable())}; without, chosen by what the folder holds."),
            "",
        ),
        fixed(
            "recipe",
            str,
            typer.Option(help="Published settings: case-study (cam); study, paper or expvae (attention)."),
            "",
        ),
        fixed("json_", bool, typer.Option("--json", help="Print metrics.json instead of a table."), False),
    ],
    [*options(TrainConfig), *detector_options()],
)
def train(data: Path, out: Path, detector: str, recipe: str, json_: bool, **asked: Any) -> None:
    """Train a detector on a folder of images, test it, and write its bundle."""
    from blemish.cli.console import figures_table, progress, suspected, warn
    from blemish.cli.console import out as page
    from blemish.training.pipeline import train as run_training

    run = run_training(configure(data, out, detector=detector, recipe=recipe, **asked), progress)
    warn(run.warnings, data)
    if json_:
        say_json(run.metrics, indent=1)
        return
    if why := run.metrics.get("detector_choice"):
        page.print(why, soft_wrap=True, markup=False)
    page.print(figures_table(run.metrics))
    if crossed := run.metrics.get("cross_validation"):
        page.print(figures_table({**run.metrics, **crossed}, crossed=True))
        for line in suspected(crossed):
            page.print(line, soft_wrap=True)
    page.print(run.metrics["decision"]["guarantee"], soft_wrap=True)
    if defects := run.metrics.get("defects"):
        page.print(defects["sentence"], soft_wrap=True)
    if "suspects" in run.metrics:
        for line in suspected(run.metrics):
            page.print(line, soft_wrap=True, markup=False)
    if choice := run.metrics.get("image_size"):
        page.print(choice["sentence"], soft_wrap=True)
    page.print(f"Written to {run.folder}. Next: blemish inspect {run.folder}/bundle IMAGES --out DIR", soft_wrap=True)


def detectors(
    as_json_: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the detectors with their settings and defaults."""
    if as_json_:
        listing = {
            name: {
                "summary": config_of(name).traits.summary,
                "learns_from_defects": config_of(name).traits.learns_from_defects,
                "recipes": list(config_of(name).traits.recipes),
                "settings": {
                    option.name: {"default": option.default, "help": option.help, "choices": option.choices or None}
                    for option in options(config_of(name))
                },
            }
            for name in loadable()
        }
        say_json(listing, indent=1, default=str)
        return
    from rich.table import Table

    from blemish.cli.console import out as page

    for name in loadable():
        config = config_of(name)
        table = Table(title=f"{name}: {config.traits.summary}", title_justify="left")
        for column in ("option", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for option in options(config):
            table.add_row(f"--{option.name}", option.shown, option.help)
        page.print(table)
