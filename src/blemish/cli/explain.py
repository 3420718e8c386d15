"""The command that answers "why did you (not) flag this?", registered by `cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from blemish.types import BlemishError


def explain(
    bundle: Annotated[Path, typer.Argument(help="What `blemish train` wrote: the folder, its bundle, or a .zip.")],
    image: Annotated[Path, typer.Argument(help="An image.")],
    at: Annotated[str, typer.Option(help="The place in question, in pixels of the image: x,y.")],
    out: Annotated[Path | None, typer.Option(help="Write the comparison as an image into this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
) -> None:
    """Say what the detector saw at one place of an image, and the normal patch that comes nearest."""
    from blemish.inference import evidence, overlay
    from blemish.inference.inspector import Inspector, chance
    from blemish.inference.results import compared

    x, y = _place(at)
    inspector = Inspector(bundle, threads=threads)
    store = evidence.open_store(inspector)
    look = inspector.look(image)
    verdict, rule = look.verdict, inspector.card.decision
    if look.map is None or verdict.size is None:
        raise BlemishError(str(verdict.error))
    width, height = verdict.size
    if not (0 <= x < width and 0 <= y < height):
        raise BlemishError(f"{image}: has {width} x {height} pixels, so there is no place {x},{y}; --at takes x,y.")
    value = float(look.map[y * look.map.shape[0] // height, x * look.map.shape[1] // width])
    p_value = chance(rule, "map_maxima", value)
    nearest = evidence.compare(look, store, inspector.card, (x, y))
    file = None
    if out and nearest:
        file = out / f"{image.name}-{x}-{y}.jpg"
        overlay.save(compared(nearest), file)
    inside = any(r.box[0] <= x < r.box[2] and r.box[1] <= y < r.box[3] for r in verdict.regions)
    said: dict[str, Any] = {
        "path": str(image),
        "at": [x, y],
        "decision": verdict.decision,
        "value": value,
        "threshold": rule.pixel_threshold,
        "p_value": p_value,
        "flagged": inside,
        "nearest": None,
    }
    if nearest:
        said["nearest"] = {
            "source": nearest.source,
            "distance": nearest.distance,
            "p_value": nearest.p_value,
            "file": str(file) if file else None,
        }
    if as_json:
        typer.echo(json.dumps(said))
        return
    score, threshold = f"{verdict.score:.4g}", f"{rule.threshold:.4g}"
    typer.echo(f"{image}: {verdict.decision}, score {score} (threshold {threshold}).")
    # The threshold for places is one of the highest values of good images: a place may reach it in a good image.
    typer.echo(
        f"At {x},{y} the map is {value:.4g}, {'at or above' if value >= rule.pixel_threshold else 'below'} "
        f"the threshold for places, {rule.pixel_threshold:.4g}; the place is {'' if inside else 'not '}flagged."
    )
    if p_value is not None:
        kept = "held-out good images" if rule.calibrated_by == "split" else "good images, each without its own item,"
        typer.echo(
            f"Of {len(rule.map_maxima)} {kept} {sum(peak >= value for peak in rule.map_maxima)} get as high "
            f"somewhere (p = {p_value:.2g})."
        )
    if nearest is None:
        typer.echo(evidence.NONE)
        return
    chance_of_it = ""
    if nearest.p_value is not None:
        many = sum(distance >= nearest.distance for distance in rule.distances)
        chance_of_it = f"; {many} of those images have one as far from all that is known (p = {nearest.p_value:.2g})"
    typer.echo(f"The nearest normal patch is at distance {nearest.distance:.4g}{chance_of_it}.")
    if nearest.source:
        typer.echo(f"It comes from {nearest.source}{f'; see {file}' if file else ''}.")
    elif store is None:
        typer.echo(evidence.NONE)
    else:
        typer.echo("The image that it comes from did not fit into the bundle, see --evidence-size.")


def _place(text: str) -> tuple[int, int]:
    x, _, y = text.partition(",")
    if not (x.strip().isdecimal() and y.strip().isdecimal()):
        raise BlemishError(f"--at takes a place in pixels from the top left corner, as 120,80, not '{text}'.")
    return int(x), int(y)
