"""The command that answers "why was this place (not) flagged?", registered by `cli/app.py`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.words import say, say_json
from blemish.types import BlemishError

if TYPE_CHECKING:
    from blemish.inference.bundle import Decision
    from blemish.inference.inspector import Inspection
    from blemish.inference.nearest_normal import NearestNormal


def explain(
    bundle: Annotated[Path, typer.Argument(help="What `blemish train` wrote: the folder, its bundle, or a .zip.")],
    image: Annotated[Path, typer.Argument(help="An image.")],
    at: Annotated[str, typer.Option(help="The place in question, in pixels of the image: x,y.")],
    out: Annotated[Path | None, typer.Option(help="Write the comparison as an image into this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
) -> None:
    """Say what the detector saw at one place of an image, and the normal patch that comes nearest."""
    from blemish.files import kept

    place = _place(at)
    with kept(out, "explanation", (), resume=True, reads=[bundle, image]) if out else nullcontext():
        _explain(bundle, image, place, out, as_json, threads)


def _explain(bundle: Path, image: Path, place: tuple[int, int], out: Path | None, as_json: bool, threads: int) -> None:
    from blemish.inference.evidence import open_store
    from blemish.inference.inspector import Inspector
    from blemish.inference.nearest_normal import nearest_normal

    inspector = Inspector(bundle, threads=threads)
    store = open_store(inspector)
    inspection = inspector.look(image)
    _check(inspection, place, image)
    nearest = nearest_normal(inspector, store, inspection, place)
    file = None
    if out and nearest:
        file = out / f"{image.name}-{place[0]}-{place[1]}.jpg"
        _write(nearest, file)
    facts = _facts(inspection, inspector.card.decision, place, image, nearest, file)
    if as_json:
        say_json(facts)
    else:
        _print(facts, inspection, inspector.card.decision, has_store=store is not None)


def _place(text: str) -> tuple[int, int]:
    x, _, y = text.partition(",")
    if not (x.strip().isdecimal() and y.strip().isdecimal()):
        raise BlemishError(f"--at takes a place in pixels from the top left corner, as 120,80, not '{text}'.")
    return int(x), int(y)


def _check(inspection: Inspection, place: tuple[int, int], image: Path) -> None:
    """Raises `BlemishError` where the image could not be inspected, or has no such place."""
    if inspection.verdict.size is None:
        raise BlemishError(str(inspection.verdict.error))
    (x, y), (width, height) = place, inspection.verdict.size
    if not (0 <= x < width and 0 <= y < height):
        raise BlemishError(f"{image}: has {width} x {height} pixels, so there is no place {x},{y}; --at takes x,y.")


def _write(nearest: NearestNormal, file: Path) -> None:
    from blemish.inference.overlay import save
    from blemish.inference.results import comparison

    save(comparison(nearest), file)


def _facts(
    inspection: Inspection,
    rule: Decision,
    place: tuple[int, int],
    image: Path,
    nearest: NearestNormal | None,
    file: Path | None,
) -> dict[str, Any]:
    from blemish.inference.inspector import p_value_of

    verdict, anomaly_map = inspection.verdict, inspection.map
    assert anomaly_map is not None
    assert verdict.size is not None
    (x, y), (width, height), (rows, columns) = place, verdict.size, anomaly_map.shape
    value = float(anomaly_map[y * rows // height, x * columns // width])
    boxes = [region.box for region in verdict.regions]
    facts: dict[str, Any] = {
        "path": str(image),
        "at": [x, y],
        "decision": verdict.decision,
        "value": value,
        "threshold": rule.pixel_threshold,
        "p_value": p_value_of(rule, "map_maxima", value),
        "flagged": any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes),
        "nearest": None,
    }
    if nearest:
        facts["nearest"] = {
            "source": nearest.source,
            "distance": nearest.distance,
            "p_value": nearest.p_value,
            "file": str(file) if file else None,
        }
    return facts


def _print(facts: dict[str, Any], inspection: Inspection, rule: Decision, *, has_store: bool) -> None:
    """For people."""
    from blemish.inference.evidence import NO_EVIDENCE

    verdict, value, p_value, (x, y) = inspection.verdict, facts["value"], facts["p_value"], facts["at"]
    say(f"{facts['path']}: {verdict.decision}, score {verdict.score:.4g} (threshold {rule.threshold:.4g}).")
    # The threshold for places is one of the highest values of good images: a place may reach it in a good image.
    side = "at or above" if value >= rule.pixel_threshold else "below"
    say(
        f"At {x},{y} the map is {value:.4g}, {side} the threshold for places, {rule.pixel_threshold:.4g}; "
        f"the place is {'' if facts['flagged'] else 'not '}flagged."
    )
    if p_value is not None:
        kind = "held-out good images" if rule.calibrated_by == "split" else "good images, each without its own item,"
        as_high = sum(peak >= value for peak in rule.map_maxima)
        say(f"Of {len(rule.map_maxima)} {kind} {as_high} get as high somewhere (p = {p_value:.2g}).")
    nearest = facts["nearest"]
    if nearest is None:
        say(NO_EVIDENCE)
        return
    distance, p_value, rank = nearest["distance"], nearest["p_value"], ""
    if p_value is not None:
        as_far = sum(largest >= distance for largest in rule.distances)
        rank = f"; {as_far} of those images have a patch as far from the memory bank (p = {p_value:.2g})"
    say(f"The nearest normal patch is at distance {distance:.4g}{rank}.")
    if nearest["source"]:
        see = f"; see {nearest['file']}" if nearest["file"] else ""
        say(f"It comes from {nearest['source']}{see}.")
    elif not has_store:
        say(NO_EVIDENCE)
    else:
        say("The image that it comes from did not fit into the bundle, see --evidence-size.")
