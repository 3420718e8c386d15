"""The command line: one short function per command. It knows people; nothing else does.

Exit codes: 0 done; 1 an anomaly was found and `--fail-on anomaly` was given; 2 the request cannot be carried out (the
sentence on standard error says why and what to do); 3 done, but some images could not be read; 130 interrupted (what
was begun is taken back).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from blemish import __version__
from blemish.cli import explain, report, synthetic, train, watch
from blemish.cli.verdicts import INCOMPLETE, STDIN, DriftFile, each_of_stdin, print_verdict, summary
from blemish.types import BlemishError

FOUND, REFUSED = 1, 2
LEARN = {
    "lightning_fabric",
    "matplotlib",
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "sklearn",
    "onnx",
    "onnxscript",
    "jinja2",
}

app = typer.Typer(
    help="Explainable visual inspection: learn from good parts, find where a new one is defective.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class FailOn(StrEnum):
    never = "never"
    anomaly = "anomaly"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blemish {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def data(
    path: Annotated[Path, typer.Argument(help="A folder of images.")],
    layout: Annotated[str, typer.Option(help="Read it as this layout instead of finding out.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is in a folder of images, and what is wrong with it."""
    from blemish.cli.console import out, progress
    from blemish.data.audit import audit, render
    from blemish.data.layouts import read

    found = audit(read(path, layout), progress)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        render(found, out)


app.command()(train.train)
app.command()(train.detectors)
app.command()(train.sweep)
app.command()(synthetic.corrupt)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="What `blemish train` wrote: the folder, its bundle, or a .zip.")],
    paths: Annotated[
        list[Path], typer.Argument(help="Images, or folders of images; - reads paths from standard input.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write verdicts.jsonl, overlays and evidence here.")] = None,
    evidence: Annotated[
        bool | None, typer.Option(help="Of anomalies, show the nearest normal patches and an inpainted image.")
    ] = None,
    drift: Annotated[
        Path | None, typer.Option(help="Keep a running test here: do good parts still look like the calibration set?")
    ] = None,
    null: Annotated[bool, typer.Option("-0", "--null", help="Paths on standard input end with NUL.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")] = False,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 when an anomaly is found.")] = FailOn.never,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 100_000_000,
    device: Annotated[str, typer.Option(help="cpu, or cuda with onnxruntime-gpu.")] = "cpu",
) -> None:
    """Judge images: good or anomaly, how sure, and where."""
    from blemish.inference.evidence import NO_EVIDENCE
    from blemish.inference.inspector import Inspector
    from blemish.inference.results import ImageWriter, Result, ResultsFolder

    if null and Path(STDIN) not in paths:
        raise BlemishError("-0 is about paths on standard input; give - instead of paths.")
    if Path(STDIN) in paths and len(paths) > 1:
        raise BlemishError("- stands alone: give paths here, or on standard input.")
    images = None if Path(STDIN) in paths else _images(paths)
    inspector = Inspector(bundle, threads=threads, max_pixels=max_pixels, device=device)
    watched = DriftFile(drift, inspector.card) if drift else None
    counts: Counter[str] = Counter()
    if evidence and not out:
        raise BlemishError("--evidence is written beside the verdicts; say where with --out.")
    writer = ImageWriter(out, inspector, evidence=evidence is not False) if out else None
    folder = ResultsFolder(out) if out else None
    with folder or nullcontext():
        unique = folder.unique if folder else str
        do = writer.write if writer else lambda inspection, _: Result(inspection)
        if images is None:
            every = each_of_stdin(inspector, null, unique, do)
        else:
            every = inspector.each(((path, unique(name)) for path, name in images), do)
        if not as_json and (images is None or len(images) > 1):
            from blemish.cli.console import progress

            every = progress(every, "inspecting", None if images is None else len(images))
        for result in every:
            verdict = result.inspection.verdict
            if folder:
                folder.add(result)
            if watched:
                watched.see(verdict.score)
            counts[verdict.decision] += 1
            print_verdict(verdict, as_json)
            if result.sentence and not as_json:
                typer.echo(f"         {result.sentence}")
    if writer and writer.evidence and writer.store is None and counts["anomaly"] + counts["review"]:
        typer.echo(NO_EVIDENCE, err=True)
    if not as_json:
        typer.echo(summary(counts) + (f" Overlays and verdicts.jsonl are in {out}." if out else ""))
    if watched:
        typer.echo(watched.save(), err=True)
    if fail_on is FailOn.anomaly and counts["anomaly"]:
        raise typer.Exit(FOUND)
    if counts["error"]:
        raise typer.Exit(INCOMPLETE)


app.command()(watch.watch)
app.command()(explain.explain)


@app.command()
def bundle(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    pack: Annotated[Path | None, typer.Option("--zip", help="Write it as one .zip.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole card.")] = False,
) -> None:
    """Verify a bundle and show its card."""
    from blemish.inference import bundle as bundles

    loaded = bundles.read(path)
    if pack:
        if not loaded.path.is_dir():
            raise BlemishError(f"{path}: is a .zip already.")
        bundles.pack(loaded.path, pack)
    if as_json:
        typer.echo(loaded.card.model_dump_json(indent=1))
        return
    card = loaded.card
    typer.echo(f"{card.product}: {card.detector} on {card.backbone['name']} ({card.backbone['licence']})")
    typer.echo(
        f"learned {card.created} from {card.data.train - card.data.anomalies} good"
        f"{f' and {card.data.anomalies} defective' if card.data.anomalies else ''} images, "
        f"{card.image_size[0]}x{card.image_size[1]}"
    )
    typer.echo(card.decision.guarantee)
    typer.echo(
        f"threshold {card.decision.threshold:.5g}; all {len(card.files)} files are intact"
        + (f"; {pack}" if pack else "")
    )


app.command()(report.evaluate)
app.command()(report.report)
app.command()(report.compare)
app.command()(synthetic.demo)


def _images(paths: list[Path]) -> list[tuple[Path, str]]:
    """Every image asked for, with the relative name that its output gets."""
    from blemish.images import find_images

    found: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            inside = find_images(path, recursive=True)
            if not inside:
                raise BlemishError(f"{path}: holds no images; give images or a folder of them.")
            found += [(file, file.relative_to(path).as_posix()) for file in inside]
        else:
            found.append((path, path.name))
    return found


def main() -> None:
    """The entry point of the `blemish` program: refusals become one sentence and exit code 2."""
    try:
        app()
    except BlemishError as refusal:
        typer.echo(f"blemish: {refusal}", err=True)
        sys.exit(REFUSED)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in LEARN:
            raise
        need = f"blemish: this command needs {missing.name}, which the base install leaves out"
        typer.echo(f"{need}; run: pip install 'blemish[learn]'", err=True)
        sys.exit(REFUSED)
    except OSError as cause:  # a full disk, a folder without permission
        typer.echo(
            f"blemish: {cause.filename or 'a file'}: {cause.strerror or cause}; mend that and run it again.", err=True
        )
        sys.exit(REFUSED)
