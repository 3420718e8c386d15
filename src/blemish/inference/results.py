"""Where `blemish inspect --out` writes: one JSON line a picture, and under the picture's own name an overlay, of an
anomaly its evidence, and the repaired picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from blemish.inference import overlay
from blemish.inference.evidence import gather, open_memory
from blemish.inference.inspector import Inspector, Look
from blemish.types import BlemishError

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from blemish.inference.evidence import Evidence, NearestNormal

VERDICTS = "verdicts.jsonl"


def draw(
    folder: Path, name: str, look: Look, heat: tuple[float, float], evidence: Evidence | None = None
) -> dict[str, Any]:
    """Writes `overlays/NAME.jpg`, with evidence `evidence/NAME.jpg`, and `repaired/NAME.jpg`: what an autoencoder
    painted or, of others, the anomaly with its regions repaired. Says where, by kind, and the evidence's figures."""
    assert look.picture is not None
    (low, high), size = heat, (look.picture.shape[1], look.picture.shape[0])
    drawn: dict[str, Any] = {"overlay": f"overlays/{name}.jpg"}
    marked = overlay.overlay(look.picture, look.map, look.verdict.regions, low=low, high=high)
    overlay.save(marked, folder / drawn["overlay"])
    found = evidence.counterfactual if evidence else None
    if look.repaired is not None or found:
        drawn["repaired"] = f"repaired/{name}.jpg"
        painted = look.repaired if look.repaired is not None else found.picture if found else look.picture
        overlay.save(overlay.repaired(painted, size), folder / drawn["repaired"])
    drawn |= {"evidence": [], "counterfactual": None}
    if evidence and evidence.nearest:
        file = f"evidence/{name}.jpg"
        overlay.save(_shown(evidence), folder / file)
        drawn["evidence"] = [
            {
                "box": one.region.box if one.region else one.box,
                "source": one.source,
                "distance": one.distance,
                "p_value": one.p_value,
                "file": file,
            }
            for one in evidence.nearest
        ]
    if found:
        drawn["counterfactual"] = {"score": found.score, "p_value": found.p_value, "decision": found.decision}
    return drawn


def _shown(evidence: Evidence) -> Image.Image:
    """A row for each region: as it is, the nearest normal patch, and as repaired; what that comes to stands below."""
    rows = [
        compared(one, evidence.counterfactual.picture if evidence.counterfactual else None) for one in evidence.nearest
    ]
    return overlay.stacked(rows, evidence.sentence())


def compared(one: NearestNormal, mended: npt.NDArray[np.uint8] | None = None) -> Image.Image:
    """A crop beside its nearest normal patch and, of a repaired picture, the same place."""
    left, top, right, bottom = one.box
    chance = "" if one.p_value is None else f" (p = {one.p_value:.2g})"
    crops, captions = [one.crop], [f"This part, ({left}, {top}) to ({right}, {bottom})"]
    if one.normal is None:
        captions[0] += f". Its nearest normal patch, at distance {one.distance:.3g}{chance}, has no picture here."
    else:
        crops.append(one.normal)
        captions.append(f"Nearest normal: {one.source}. Distance {one.distance:.3g}{chance}")
    if mended is not None:
        crops.append(mended[top:bottom, left:right])
        captions.append("Repaired")
    return overlay.side_by_side(crops, captions)


class Done(NamedTuple):
    """A look, where what was drawn of it (None: nothing), and what its repair comes to, in words."""

    look: Look
    drawn: dict[str, Any] | None = None
    sentence: str = ""

    def row(self) -> dict[str, Any]:
        """What a line of `verdicts.jsonl` says of it."""
        nothing: dict[str, Any] = {"overlay": None, "evidence": [], "counterfactual": None}
        return {**asdict(self.look.verdict), **nothing, **(self.drawn or {})}


class Pictures:
    """Draws looks under the folder `path`; with `evidence`, beside the overlays of anomalies what `evidence.gather`
    finds. `memory` is the bundle's evidence, None where it has none or none is asked for."""

    def __init__(self, path: Path, inspector: Inspector, *, evidence: bool = True) -> None:
        self.path, self.inspector, self.evidence = path, inspector, evidence
        self.memory = open_memory(inspector) if evidence else None

    def draw(self, look: Look, name: str) -> Done:
        """Draws what there is to see, under `name`. May be called by several threads."""
        if look.picture is None:
            return Done(look)
        found = gather(self.inspector, self.memory, look) if self.evidence else None
        drawn = draw(self.path, name, look, self.inspector.card.decision.heat, found)
        return Done(look, drawn, found.sentence() if found and found.counterfactual else "")


class Folder:
    """Takes looks in order. The verdicts are in `verdicts.jsonl` once the block has ended, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._taken: dict[str, int] = {}  # name -> its last number
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._partial = path / f".{VERDICTS}.partial"
            self._file = self._partial.open("w", encoding="utf-8")
        except OSError as cause:
            raise BlemishError(f"{path}: cannot be written to ({cause.strerror}); choose another --out.") from None

    def add(self, done: Done) -> None:
        """Writes one picture's verdict."""
        self._file.write(json.dumps(done.row()) + "\n")

    def unique(self, name: str) -> str:
        """The name that a picture is drawn under: a/b.png stays, a second a/b.png becomes a/b.png-2. To be asked in
        the pictures' order."""
        number, unique = self._taken.get(name.lower(), 1), name
        while unique.lower() in self._taken:
            number += 1
            unique = f"{name}-{number}"
        self._taken[name.lower()] = number  # so that a hundred thousand of one name do not count from 1 each time
        self._taken.setdefault(unique.lower(), 1)
        return unique

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._partial.replace(self.path / VERDICTS)
        else:
            self._partial.unlink(missing_ok=True)
