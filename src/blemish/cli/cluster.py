"""The command `cluster inspect`, registered by `app`; `cluster train` is in `sweep`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from blemish.cli.commands import ClusterCommands
from blemish.cli.verdicts import INCOMPLETE, summary
from blemish.cli.words import lasting, say, say_json
from blemish.listing import REASONS
from blemish.types import DECISIONS

if TYPE_CHECKING:
    from blemish.cluster.plan import Plan
    from blemish.cluster.progress import Standing
    from blemish.cluster.summary import Summary

T = TypeVar("T")
EVERY = 5.0  # seconds between two lines of progress where standard error is no terminal
MANY = 20  # images of which most should not be anomalies
MOST = 20  # sources that are listed; of more, those with a drift alarm

cluster = typer.Typer(
    cls=ClusterCommands,
    no_args_is_help=True,
    help="Millions of images, many machines: the same inspector on Ray.",
)


@cluster.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="A run of `blemish train`, its bundle, or a .zip of it.")],
    source: Annotated[
        str, typer.Argument(help="A folder, a glob in quotes, s3://BUCKET/PREFIX, or a .parquet or .csv of paths.")
    ],
    out: Annotated[str, typer.Option(help="Folder, or s3://BUCKET/PREFIX, for the Parquet files; a run is resumed.")],
    address: Annotated[str, typer.Option(help="A Ray cluster (auto: this machine's); without, one is started.")] = "",
    actors: Annotated[int, typer.Option(min=0, help="Inspectors at most; 0 = as many as there are processors.")] = 0,
    cpus_per_actor: Annotated[int, typer.Option(min=1, help="Processors, and threads, of each.")] = 1,
    gpus_per_actor: Annotated[float, typer.Option(min=0, help="GPUs of each; needs onnxruntime-gpu.")] = 0.0,
    per_file: Annotated[int, typer.Option(min=0, help="Images in a file of verdicts; 0 = 1000, of few fewer.")] = 0,
    column: Annotated[str, typer.Option(help="The table's column of paths or URIs.")] = "",
    maps: Annotated[bool, typer.Option("--maps", help="Write the anomaly maps too, as PNG in a column.")] = False,
    overlays: Annotated[bool, typer.Option("--overlays", help="Write overlays of anomalies too.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="List the images, and stop.")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 100_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds that the graph may take for an image or four tiles.")] = 60.0,
    stall: Annotated[float, typer.Option(min=1, help="Seconds without any image after which the run ends.")] = 600.0,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Inspect images again that were errors, with those in their files.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Start again if the folder exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary for programs.")] = False,
) -> None:
    """Judge millions of images, on this machine or a Ray cluster, into Parquet."""
    from blemish.cli.console import progress
    from blemish.cluster.plan import Plan
    from blemish.cluster.run import Config
    from blemish.cluster.run import inspect as run

    def counted(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        return progress(items, what, total or None)

    config = Config(
        bundle=bundle,
        source=source,
        out=out,
        address=address,
        actors=actors,
        cpus=cpus_per_actor,
        gpus=gpus_per_actor,
        per_file=per_file,
        column=column,
        maps=maps,
        overlays=overlays,
        plan_only=plan_only,
        max_pixels=max_pixels,
        timeout=timeout,
        stall=stall,
        retry_errors=retry_errors,
        overwrite=overwrite,
    )
    with _standing() as watch:
        found = run(config, counted, watch)
    if as_json:
        say_json(found.to_json(), indent=1)
    elif isinstance(found, Plan):
        _print_plan(found, out)
    else:
        _print(found, out)
    if not isinstance(found, Plan) and found.counts.get("error"):
        raise typer.Exit(INCOMPLETE)


@contextmanager
def _standing() -> Iterator[Callable[[Standing], None]]:
    """Shows how far a run is: a bar on a terminal, from the first call until all is done; else a line every few
    seconds."""
    from rich.progress import BarColumn, Progress, TextColumn

    from blemish.cli.console import err

    last, latest = 0.0, None
    bars = Progress(
        BarColumn(), TextColumn("{task.description}", markup=False), console=err, disable=not err.is_terminal
    )
    task = bars.add_task("", total=None)

    def watch(standing: Standing) -> None:
        nonlocal last, latest
        latest = standing
        finished = standing.done >= standing.total
        if not finished:
            bars.start()  # does nothing where it is shown already
        bars.update(task, total=standing.total, completed=standing.done, description=progress_words(standing))
        if bars.disable and (finished or time.monotonic() - last > EVERY):
            last = time.monotonic()
            err.print(f"inspecting: {progress_words(standing)}", soft_wrap=True)
        if finished:
            bars.stop()  # the next one may be shown

    try:
        yield watch
    except (SystemExit, KeyboardInterrupt):
        bars.stop()
        if latest:
            done = f"{latest.done:,} of {latest.total:,} images"
            say(f"Stopped at about {done}; the same command goes on where it stopped.", err=True)
        raise
    finally:
        bars.stop()


def progress_words(standing: Standing) -> str:
    """How far a run is, in words.

    >>> from blemish.cluster.progress import Standing
    >>> progress_words(Standing(1200, 40000, 3, 25, 88.0, 441.0, 2))
    '1,200 of 40,000 images (3 %), 88 a second, 25 anomalies, 3 errors, 8 min left'
    >>> progress_words(Standing(0, 40000, 0, 0, 0.0, None, 0))
    '0 of 40,000 images: starting the workers'
    >>> progress_words(Standing(120, 40000, 0, 2, 0.0, None, 2))
    '120 of 40,000 images, 2 anomalies, 0 errors'
    """
    counted = f"{standing.done:,} of {standing.total:,} images"
    found = f"{standing.anomalies:,} anomalies, {standing.errors:,} errors"
    if not standing.workers:
        return f"{counted}: {standing.waiting or 'starting the workers'}"
    if standing.left is None:
        return f"{counted}, {found}"
    rate = f"{standing.rate:,.0f}" if standing.rate >= 10 else f"{standing.rate:.1f}"
    share = 100 * standing.done // standing.total
    return f"{counted} ({share} %), {rate} a second, {found}, {lasting(standing.left)} left"


def _print_plan(plan: Plan, out: str) -> None:
    size = f" ({plan.bytes / 1e9:.2f} GB)" if plan.bytes else ""
    files = f"{plan.files:,} file{'s' * (plan.files != 1)} of {plan.per_file:,} verdicts"
    say(f"{plan.rows:,} image{'s' * (plan.rows != 1)}{size}, {files}.")
    if 1 < len(plan.sources) <= MOST:
        for source, images in plan.sources.items():
            say(f"  {source or 'directly in it'}: {images:,}")
    _print_left_out(plan.left_out)
    say(f"The plan is in {out}. Next: the same command without --plan-only.")


def _print_left_out(left_out: dict[str, int]) -> None:
    if left_out:
        listed = ", ".join(f"{count:,} ({why})" for reason, why in REASONS.items() if (count := left_out.get(reason)))
        say(f"Left out: {listed}.")


def _print(found: Summary, out: str) -> None:
    say(summary(Counter(found.counts)))
    for source, of in found.sources.items():
        counts = [f"{of[kind]:,} {kind}" for kind in DECISIONS if of.get(kind)]
        named = f" of {source}" if len(found.sources) > 1 else ""
        if len(found.sources) > 1 and (len(found.sources) <= MOST or of["drift_alarm"]):
            say(f"  {source or 'directly in it'}: {', '.join(counts)}")
        if of["drift_alarm"] or (len(found.sources) == 1 and of["drift"]):
            say(f"  {of['drift']}")
        images = sum(of.get(kind, 0) for kind in DECISIONS)
        if images >= MANY and of.get("anomaly", 0) > images / 2:
            say(f"  Most images{named} are anomalies: look whether this bundle is of this product and camera.")
    for error in found.errors:
        say(f"error    {error}")
    if (more := found.counts.get("error", 0) - len(found.errors)) > 0:
        say(f"         and {more:,} more; they are the rows with decision = 'error'")
    _print_left_out(found.left_out)
    if found.first is not None:
        rate = f", then {found.rate:,.1f} images a second" if found.rate else ""
        gone_on = f"; {found.resumed:,} of {found.files:,} files were there already" if found.resumed else ""
        memory = f"{found.memory / 1e6:,.0f} MB a worker"
        say(f"{lasting(found.seconds)}: the first image after {lasting(found.first)}{rate}{gone_on}; {memory}.")
    if found.slowest:
        spent = {node: figures["seconds"] for node, figures in found.nodes.items()}
        slow = spent.pop(found.slowest)
        say(f"Slowest node: {found.slowest}, {slow:.3f} s an image; the others {fmean(spent.values()):.3f} s.")
    say(f"Verdicts: {out.partition('?')[0]}/verdicts (Parquet).")
