"""The commands `train`, `sweep`, `cluster train` and `detectors`. PyTorch is imported only when one of the first three
runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.options import detector_options, fixed, with_options
from blemish.cli.words import say_json
from blemish.detectors.registry import config_of, loadable
from blemish.options import options
from blemish.training.config import TrainConfig, configure, share, size

if TYPE_CHECKING:
    from blemish.training.sweep import Sweep, SweepConfig

WARNINGS = 5  # at most so many warnings are shown after training


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
    from blemish.cli.console import figures_table, progress, suspected
    from blemish.cli.console import out as page
    from blemish.training.pipeline import train as run_training

    run = run_training(configure(data, out, detector=detector, recipe=recipe, **asked), progress)
    _warn(run.warnings, data)
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


def _warn(warnings: Sequence[str], data: Path) -> None:
    from rich.text import Text

    from blemish.cli.console import err

    for warning in warnings[:WARNINGS]:
        err.print(Text.assemble(("warning:", "yellow"), f" {warning}"), soft_wrap=True)
    if len(warnings) > WARNINGS:
        err.print(f"and {len(warnings) - WARNINGS} more; see: blemish data {data}", soft_wrap=True)


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


SWEEP = [
    fixed("data", Path, typer.Argument(help="A folder of images; see `blemish data`.")),
    fixed("out", Path, typer.Option("-o", "--out", help="Folder to write; a sweep in it is resumed.")),
    fixed("grid", str, typer.Option(help="Options and values: model=unet,vae;seed=0,1.")),
    fixed("detector", str, typer.Option(help="One that learns from good parts alone."), "attention"),
    fixed("image_size", str, typer.Option(help="auto, 256, or HEIGHTxWIDTH, if the grid has none."), "auto"),
    fixed("false_alarms", str, typer.Option(help="Share of good parts that may be flagged: 5% or 0.05."), "5%"),
    fixed("validation", float, typer.Option(help="Share of the training images held out for validation."), 0.2),
    fixed("layout", str, typer.Option(help="Read the folder as this layout."), "auto"),
    fixed("seed", int, typer.Option(help="Seed of the split, and of the detector if the grid has none."), 0),
    fixed(
        "no_test", bool, typer.Option("--no-test", help="Choose the settings, but do not train and test them."), False
    ),
    fixed("no_evidence", bool, typer.Option("--no-evidence", help="Write a bundle without images."), False),
    fixed("overwrite", bool, typer.Option(help="Start again if the folder exists."), False),
    fixed("as_json", bool, typer.Option("--json", help="For programs."), False),
]


@with_options(SWEEP, [])
def sweep(as_json: bool, **asked: Any) -> None:
    """Try many settings of a detector, choose the best without the test split, then train and test them."""
    from blemish.cli.console import progress
    from blemish.training.sweep import sweep as run_sweep

    config = _sweep_config(**asked)
    _show(config, run_sweep(config, progress), as_json)


@with_options(
    [
        *SWEEP,
        fixed("address", str, typer.Option(help="Ray's address, such as auto; without, this machine alone."), ""),
        fixed("cpus_per_cell", int, typer.Option(min=1, help="Processors, and threads, of each cell."), 1),
    ],
    [],
)
def sweep_on_cluster(address: str, cpus_per_cell: int, as_json: bool, **asked: Any) -> None:
    """`blemish sweep` with its cells on a Ray cluster: try many settings of a detector, and choose, train and test."""
    from blemish.cli.console import progress
    from blemish.cluster.sweep import sweep_on_cluster as run_sweep

    config = _sweep_config(**asked)
    _show(config, run_sweep(config, progress, address=address, cpus_per_cell=cpus_per_cell), as_json)


def _sweep_config(*, image_size: str, false_alarms: str, no_test: bool, no_evidence: bool, **asked: Any) -> SweepConfig:
    from blemish.training.sweep import SweepConfig

    return SweepConfig(
        image_size=size(image_size),
        false_alarms=share(false_alarms),
        test=not no_test,
        evidence=not no_evidence,
        **asked,
    )


def _show(config: SweepConfig, result: Sweep, as_json: bool) -> None:
    from blemish.cli.console import figures_table, sweep_table
    from blemish.cli.console import out as page
    from blemish.training.sweep import RULE, shown

    _warn(result.warnings, config.data)
    if as_json:
        say_json(result.to_json(), indent=1)
        return
    page.print(sweep_table(result.to_json()["candidates"]))
    page.print(f"Chosen: {shown(result.chosen)} ({RULE}).", soft_wrap=True)
    if result.metrics is None:
        page.print(f"Written to {config.out}. The test split was not used.", soft_wrap=True)
        return
    page.print(figures_table(result.metrics))
    page.print(result.metrics["decision"]["guarantee"], soft_wrap=True)
    page.print(f"Written to {config.out}. Next: blemish inspect {config.out}/chosen IMAGES --out DIR", soft_wrap=True)
