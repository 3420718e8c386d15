"""The commands `sweep` and `cluster train`, which differ in where the cells are measured. PyTorch is imported only when
one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from blemish.cli.options import fixed, with_options
from blemish.cli.words import say_json
from blemish.training.config import share, size

if TYPE_CHECKING:
    from blemish.training.sweep import Sweep, SweepConfig

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
        fixed("address", str, typer.Option(help="A Ray cluster (auto: this machine's); without, one is started."), ""),
        fixed("cpus_per_cell", int, typer.Option(min=1, help="Processors, and threads, of each cell."), 1),
    ],
    [],
)
def cluster_train(address: str, cpus_per_cell: int, as_json: bool, **asked: Any) -> None:
    """Try many settings of a detector as `blemish sweep` does, its cells on a Ray cluster."""
    from blemish.cli.console import progress
    from blemish.cluster.sweep import sweep_on_cluster

    config = _sweep_config(**asked)
    _show(config, sweep_on_cluster(config, progress, address=address, cpus_per_cell=cpus_per_cell), as_json)


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
    from blemish.cli.console import figures_table, sweep_table, warn
    from blemish.cli.console import out as page
    from blemish.training.sweep import RULE, shown

    warn(result.warnings, config.data)
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
