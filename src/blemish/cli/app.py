"""The command line: one short function per command.

Exit codes: 0 done; 1 an anomaly was found and `--fail-on anomaly` was given; 2 the request cannot be carried out (a
sentence on standard error says why and what to do); 3 done, but some images could not be read, the data has errors, or
a log has problems; 70 a fault of blemish itself; 130, 143, 129 ended by Ctrl-C, SIGTERM, SIGHUP (unfinished output is
removed); 141 nobody read the output.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from blemish import __version__
from blemish.cli import backup, cluster, explain, log, report, serve, synthetic, users, watch
from blemish.cli.commands import Commands
from blemish.cli.ending import ended_by, finished, stop_unread
from blemish.cli.signals import ending
from blemish.cli.streams import unfailing
from blemish.cli.verdicts import INCOMPLETE, STDIN, DriftFile, check_stdin, each_of_stdin, print_verdict, summary
from blemish.cli.words import say, say_json
from blemish.types import BlemishError

FOUND = 1
NARROW = 60  # columns that help in panels needs

app = typer.Typer(
    cls=Commands,
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
        say(f"blemish {__version__}")
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
    layout: Annotated[str, typer.Option(help="Read it as this layout instead of detecting it.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what a folder of images contains, and its problems."""
    from blemish.cli.console import out, progress
    from blemish.data.audit import audit, render
    from blemish.data.layouts import read
    from blemish.training.choice import choose

    dataset = read(path, layout)
    audited, choice = audit(dataset, progress), choose(dataset.samples)
    if as_json:
        say_json({**audited.to_json(), "detector": choice._asdict()}, indent=1)
    else:
        render(audited, out)
        out.print(choice.sentence, soft_wrap=True, markup=False)
    if any(problem.severity == "error" for problem in audited.problems):
        raise typer.Exit(INCOMPLETE)


app.command()(synthetic.corrupt)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="A run of `blemish train`, its bundle, or a .zip of it.")],
    paths: Annotated[
        list[Path], typer.Argument(help="Images, or folders of images; - reads paths from standard input.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write verdicts.jsonl, overlays and evidence here.")] = None,
    evidence: Annotated[
        bool | None, typer.Option(help="Show the nearest normal patches and an inpainted image of each anomaly.")
    ] = None,
    drift: Annotated[
        Path | None, typer.Option(help="File of a running test whether good parts still look like the calibration set.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier inspection in --out.")] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="Paths on standard input end with NUL.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each image.")] = False,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 when an anomaly is found.")] = FailOn.never,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 100_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds that the graph may take for an image or four tiles.")] = 60.0,
    device: Annotated[str, typer.Option(help="cpu, or cuda with onnxruntime-gpu.")] = "cpu",
) -> None:
    """Judge images: good or anomaly, how sure, and where."""
    from blemish.inference.evidence import NO_EVIDENCE
    from blemish.inference.inspector import Inspector
    from blemish.inference.results import ImageWriter, Result, ResultsFolder

    images = _images(paths, null)
    inspector = Inspector(bundle, threads=threads, max_pixels=max_pixels, timeout=timeout, device=device)
    drift_test = DriftFile(drift, inspector.card) if drift else None
    counts: Counter[str] = Counter()
    if (evidence or overwrite) and not out:
        option = "--evidence is written beside the verdicts" if evidence else "--overwrite is about --out"
        raise BlemishError(f"{option}; give a folder with --out.")
    writer = ImageWriter(out, inspector, evidence=evidence is not False) if out else None
    reads = [bundle, *(path for path in paths if path != Path(STDIN))]
    folder = ResultsFolder(out, overwrite=overwrite, reads=reads) if out else None
    with folder or nullcontext():
        unique = folder.unique if folder else str
        write = writer.write if writer else lambda inspection, _: Result(inspection)
        if images is None:
            judged = each_of_stdin(inspector, null, unique, write)
        else:
            judged = inspector.each(((path, unique(name)) for path, name in images), write)
        if not as_json and (images is None or len(images) > 1):
            from blemish.cli.console import progress

            judged = progress(judged, "inspecting", None if images is None else len(images))
        for result in judged:
            verdict = result.inspection.verdict
            if folder:
                folder.add(result)
            if drift_test:
                drift_test.see(verdict.score)
            counts[verdict.decision] += 1
            print_verdict(verdict, as_json)
            if result.sentence and not as_json:
                say(f"         {result.sentence}")
            if not (folder or drift_test or fail_on is FailOn.anomaly):
                stop_unread()
    if writer and writer.evidence and writer.store is None and counts["anomaly"] + counts["review"]:
        say(NO_EVIDENCE, err=True)
    if not as_json:
        say(summary(counts) + (f" Overlays and verdicts.jsonl are in {out}." if out else ""))
    if drift_test:
        say(drift_test.save(), err=True)
    _exit(counts, fail_on)


app.command()(watch.watch)
app.add_typer(cluster.cluster, name="cluster")
app.add_typer(log.log, name="log")
app.command()(explain.explain)
app.command()(serve.serve)
app.command()(users.user)
app.command()(backup.backup)
app.command()(backup.restore)


@app.command()
def bundle(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    pack: Annotated[Path | None, typer.Option("--zip", help="Write the bundle as one .zip.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier .zip of a bundle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole card.")] = False,
) -> None:
    """Verify a bundle and show its card."""
    from blemish.inference import bundle as bundles
    from blemish.inference.inspector import checked_session

    loaded = bundles.read(path)
    checked_session(loaded)
    if pack:
        if not loaded.path.is_dir():
            raise BlemishError(f"{path}: is a .zip already; give a folder, or omit --zip.")
        bundles.pack(loaded.path, pack, overwrite=overwrite)
    if as_json:
        say_json(loaded.card.model_dump(mode="json"), indent=1)
        return
    card = loaded.card
    say(f"{card.product}: {card.detector} on {card.backbone['name']} ({card.backbone['licence']})")
    say(
        f"learned {card.created} from {card.data.train - card.data.anomalies} good"
        f"{f' and {card.data.anomalies} defective' if card.data.anomalies else ''} images, "
        f"{card.image_size[0]}x{card.image_size[1]}"
    )
    say(card.decision.guarantee)
    say(
        f"threshold {card.decision.threshold:.5g}; all {len(card.files)} files are intact"
        + (f"; {pack}" if pack else "")
    )


app.command()(report.evaluate)
app.command()(report.report)
app.command()(report.compare)
app.command()(synthetic.demo)


def _images(paths: list[Path], null: bool) -> list[tuple[Path, str]] | None:
    """The images in `paths`, each with the relative name of its output; None if their paths come on standard input."""
    from blemish.images import find_images

    if null and Path(STDIN) not in paths:
        raise BlemishError("-0 applies to paths on standard input; give - instead of paths.")
    if Path(STDIN) in paths and len(paths) > 1:
        raise BlemishError("- cannot be combined with paths; give paths either here or on standard input.")
    if Path(STDIN) in paths:
        check_stdin()
        return None
    images: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            files = find_images(path, recursive=True)
            if not files:
                raise BlemishError(f"{path}: holds no images; give images or a folder of them.")
            images += [(file, file.relative_to(path).as_posix()) for file in files]
        else:
            images.append((path, path.name))
    return images


def _exit(counts: Counter[str], fail_on: FailOn) -> None:
    """Ends with the exit code of the verdicts that were counted; an anomaly takes precedence over an error."""
    if fail_on is FailOn.anomaly and counts["anomaly"]:
        raise typer.Exit(FOUND)
    if counts["error"]:
        raise typer.Exit(INCOMPLETE)


def main() -> None:
    """The entry point of the `blemish` program: every exception becomes one sentence and an exit code."""
    with unfailing(), ending():
        sys.exit(finished(_run()))


def _run() -> int:
    if shutil.get_terminal_size().columns < NARROW:
        app.rich_markup_mode = None  # help as plain text
    try:
        return int(app(standalone_mode=False) or 0)
    except BaseException as cause:
        return ended_by(cause)
