"""The command that serves the page, registered by `cli/app.py`."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from blemish.cli.words import say
from blemish.ownership import mark_of
from blemish.types import Progress

T = TypeVar("T")


def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs of `blemish train`, bundles, .zips of them, or the folder of `blemish demo`."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder for images, verdicts, corrections and detectors.")] = Path("page"),
    images: Annotated[
        list[Path] | None, typer.Option(help="Labelled images that a bundle was trained on, to learn again from.")
    ] = None,
    watch: Annotated[list[Path] | None, typer.Option(help="Also inspect this folder while a camera writes it.")] = None,
    database: Annotated[str, typer.Option(help="postgresql+psycopg://USER@HOST/NAME instead of SQLite.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback, people log in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 = any.")] = 8477,
    proxy: Annotated[
        bool, typer.Option("--proxy", help="Behind a reverse proxy: believe its X-Forwarded-* headers.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="Images judged at once; 0 = one for each core.")] = 0,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Refuse larger files.")] = 64.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 100_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds that the graph may take for an image or four tiles.")] = 60.0,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Open a page to inspect, review, correct, and learn again."""
    from blemish.cli.console import progress
    from blemish.web.config import Limits, ServeConfig
    from blemish.web.server import serve as run

    runs, datasets = _of_demos(bundles or [])
    limits = Limits(megabytes=max_megabytes, pixels=max_pixels, timeout=timeout)
    config = ServeConfig(
        data=data,
        bundles=tuple(runs),
        images=(*datasets, *(images or ())),
        watch=tuple(watch or ()),
        database=database,
        host=host,
        port=port,
        proxy=proxy,
        threads=threads,
        limits=limits,
    )

    def ready(address: str) -> None:
        say(f"blemish: {address}")
        if show:
            webbrowser.open(address)

    run(config, ready, _announced(progress), say)


def _announced(progress: Progress) -> Progress:
    """`progress` with a line before it, because the page does not answer until the images are brought in."""

    def announced(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        if what.startswith("importing"):  # and not the look at each start for what is new
            # 142 images of the demo's board took 11 s on a busy machine with two cores.
            size = "which takes about a minute for a thousand small images" if total > 100 else "which is done soon"
            say(f"{what}: {total:,} images are read and copied, this once, {size}.", err=True)
        yield from progress(items, what, total)

    return announced


def _of_demos(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """The paths, with the runs of a demo's folder in its place, and the images that they were trained on."""
    runs, datasets = list[Path](), list[Path]()
    for path in paths:
        mark = mark_of(path)
        if mark is None or mark.kind != "demo":
            runs.append(path)
            continue
        # A product's plain run has the shortest name, and so becomes its first version.
        runs += sorted(folder.parent for folder in path.glob("*/bundle"))
        datasets += sorted(folder for folder in path.glob("data/*") if folder.is_dir())
    return runs, datasets
