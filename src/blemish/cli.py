"""The command line: one short function per command. It knows people; nothing else does.

Exit codes: 0 done; 1 an anomaly was found and `--fail-on anomaly` was given; 2 the request cannot be carried out (the
sentence on standard error says why and what to do); 3 done, but some pictures could not be read; 130 interrupted (what
was begun is taken back).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blemish import __version__, cli_evidence, cli_learn, cli_report
from blemish.types import BlemishError

if TYPE_CHECKING:
    from blemish.bundle import Card
    from blemish.inspector import Look
    from blemish.types import Verdict

FOUND, REFUSED, INCOMPLETE = 1, 2, 3
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
    path: Annotated[Path, typer.Argument(help="A folder of pictures.")],
    layout: Annotated[str, typer.Option(help="Read it as this layout instead of finding out.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is in a folder of pictures, and what is wrong with it."""
    from blemish.console import out, progress
    from blemish.data.audit import audit, render
    from blemish.data.layouts import read

    found = audit(read(path, layout), progress)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        render(found, out)


app.command()(cli_learn.corrupt)
app.command()(cli_learn.train)
app.command()(cli_learn.sweep)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="What `blemish train` wrote: the folder, its bundle, or a .zip.")],
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    out: Annotated[Path | None, typer.Option(help="Write verdicts.jsonl, overlays and evidence here.")] = None,
    evidence: Annotated[
        bool | None, typer.Option(help="Of anomalies, show the nearest normal patches and a repaired picture.")
    ] = None,
    drift: Annotated[
        Path | None, typer.Option(help="Keep a running test here: do good parts still look like the calibration set?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")] = False,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 when an anomaly is found.")] = FailOn.never,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger pictures.")] = 100_000_000,
) -> None:
    """Judge pictures: good or anomaly, how sure, and where."""
    from blemish.inspector import Inspector

    pictures = _pictures(paths)
    inspector = Inspector(bundle, threads=threads, max_pixels=max_pixels)
    looks: Iterator[Look] = inspector.look_many(path for path, _ in pictures)
    if not as_json and len(pictures) > 1:
        from blemish.console import progress

        looks = progress(looks, "inspecting", len(pictures))
    watch = _Watch(drift, inspector.card) if drift else None
    if watch:
        looks = watch.seeing(looks)
    counts: Counter[str] = Counter()
    if evidence and not out:
        raise BlemishError("--evidence is written beside the verdicts; say where with --out.")
    if out:
        from blemish.evidence import NONE, gather, open_memory
        from blemish.output import Folder

        shown = evidence is not False
        memory = open_memory(inspector) if shown else None
        with Folder(out, heat=inspector.card.decision.heat) as folder:
            for look, (_, name) in zip(looks, pictures, strict=True):
                found = gather(inspector, memory, look) if shown else None
                folder.add(look, name, found)
                counts[look.verdict.decision] += 1
                _say(look.verdict, as_json)
                if found and found.counterfactual and not as_json:
                    typer.echo(f"         {found.sentence()}")
        if shown and memory is None and counts["anomaly"] + counts["review"]:
            typer.echo(NONE, err=True)
    else:
        for look in looks:
            counts[look.verdict.decision] += 1
            _say(look.verdict, as_json)
    if not as_json:
        said = ", ".join(f"{counts[kind]} {kind}" for kind in ("good", "review", "anomaly", "error") if counts[kind])
        typer.echo(
            f"{len(pictures)} pictures: {said}." + (f" Overlays and verdicts.jsonl are in {out}." if out else "")
        )
    if watch:
        typer.echo(watch.finish(), err=True)
    if fail_on is FailOn.anomaly and counts["anomaly"]:
        raise typer.Exit(FOUND)
    if counts["error"]:
        raise typer.Exit(INCOMPLETE)


app.command()(cli_evidence.explain)


@app.command()
def bundle(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    pack: Annotated[Path | None, typer.Option("--zip", help="Write it as one .zip.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole card.")] = False,
) -> None:
    """Verify a bundle and show its card."""
    from blemish import bundle as bundles

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
        f"{f' and {card.data.anomalies} defective' if card.data.anomalies else ''} pictures, "
        f"{card.image_size[0]}x{card.image_size[1]}"
    )
    typer.echo(card.decision.guarantee)
    typer.echo(
        f"threshold {card.decision.threshold:.5g}; all {len(card.files)} files are intact"
        + (f"; {pack}" if pack else "")
    )


app.command()(cli_report.evaluate)
app.command()(cli_report.report)
app.command()(cli_report.compare)
app.command()(cli_learn.demo)


class _Watch:
    """The drift test of `inspect --drift FILE`: goes on where the file ends, and is saved there at the end."""

    def __init__(self, file: Path, card: Card) -> None:
        from blemish.drift import Drift

        rule = card.decision
        if not rule.scores or rule.items:
            raise BlemishError(
                "--drift compares with the good pictures that set the limit, each of another part, and this bundle has "
                "none; train with --decide promise, on one picture of each part."
            )
        if not file.parent.is_dir():  # said now, not after a shift of pictures
            raise BlemishError(f"{file}: there is no folder {file.parent} to keep it in; make it, or name another.")
        self.file = file
        try:
            found = Drift.from_json(file.read_text("utf-8")) if file.exists() else None
        except (OSError, UnicodeDecodeError) as cause:
            raise BlemishError(f"{file}: cannot be read ({cause}); name another file, or mend that.") from None
        except BlemishError:
            raise BlemishError(
                f"{file}: is no drift test that blemish saved; name another file to begin anew."
            ) from None
        left_out = rule.calibrated_by == "leave-one-out"
        self.test: Drift = found or Drift(rule.scores, limit=rule.threshold, upward=left_out)
        if self.test.limit != rule.threshold:
            raise BlemishError(f"{file}: is of another bundle; name another file to begin anew.")

    def seeing(self, looks: Iterator[Look]) -> Iterator[Look]:
        for look in looks:
            if look.verdict.score is not None:
                self.test.see(look.verdict.score)
            yield look

    def finish(self) -> str:
        from blemish.bundle import write_text

        write_text(self.file, self.test.to_json() + "\n")
        state, rate = self.test.state, f"{'about' if self.test.upward else 'at most'} {self.test.rate:.0%}"
        seen = f"{state.seen} parts seen, {state.left_out} anomalies left out"
        if not state.alarm:
            return f"No drift: good parts look like the calibration set ({seen}; false alarms ever: {rate})."
        return (
            f"Drift since part {state.since}: scores of good parts have become {state.direction} ({seen}; by chance "
            f"{rate}). Look for a change of light, camera or material; then learn again."
        )


def _pictures(paths: list[Path]) -> list[tuple[Path, str]]:
    """Every picture asked for, with the relative name that its output gets."""
    from blemish.images import find_pictures

    found: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            inside = find_pictures(path, recursive=True)
            if not inside:
                raise BlemishError(f"{path}: holds no pictures; give pictures or a folder of them.")
            found += [(file, file.relative_to(path).as_posix()) for file in inside]
        else:
            found.append((path, path.name))
    return found


def _say(verdict: Verdict, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(verdict)))
    elif verdict.decision == "error":
        typer.echo(f"error    {verdict.error}")
    else:
        boxes = " ".join(f"({','.join(map(str, r.box))})" for r in verdict.regions[:3])
        more = f" +{len(verdict.regions) - 3}" if len(verdict.regions) > 3 else ""
        chance = "" if verdict.p_value is None else f" p {verdict.p_value:.3f}"
        likely = "" if verdict.probability is None else f" probability {verdict.probability:.3f}"
        named = f"  {verdict.defect}" if verdict.defect else ""
        typer.echo(
            f"{verdict.decision:<8} score {verdict.score:.4g} (limit {verdict.threshold:.4g}){chance}{likely}"
            f"  {verdict.path}{named}  {boxes}{more}".rstrip()
        )


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
