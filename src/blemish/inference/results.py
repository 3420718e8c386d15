"""Where `blemish inspect --out` writes: one JSON line an image, and under the image's own name an overlay, of an
anomaly its evidence, and the inpainted image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from blemish.inference import overlay
from blemish.inference.evidence import gather, open_store
from blemish.inference.inspector import Inspection, Inspector
from blemish.types import BlemishError

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from blemish.inference.evidence import Evidence, NearestNormal

VERDICTS = "verdicts.jsonl"


def draw(
    folder: Path, name: str, look: Inspection, color_range: tuple[float, float], evidence: Evidence | None = None
) -> dict[str, Any]:
    """Writes `overlays/NAME.jpg`, with evidence `evidence/NAME.jpg`, and `inpainted/NAME.jpg`: what an autoencoder
    painted or, of others, the anomaly with its regions inpainted. Says where, by kind, and the evidence's figures."""
    assert look.image is not None
    (low, high), size = color_range, (look.image.shape[1], look.image.shape[0])
    drawn: dict[str, Any] = {"overlay": f"overlays/{name}.jpg"}
    marked = overlay.overlay(look.image, look.map, look.verdict.regions, low=low, high=high)
    overlay.save(marked, folder / drawn["overlay"])
    found = evidence.counterfactual if evidence else None
    if look.reconstruction is not None or found:
        kind = "inpainted" if look.reconstruction is None else "reconstruction"
        drawn[kind] = f"{kind}/{name}.jpg"
        painted = look.reconstruction if look.reconstruction is not None else found.image if found else look.image
        overlay.save(overlay.reconstruction(painted, size), folder / drawn[kind])
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
    """A row for each region: as it is, the nearest normal patch, and as inpainted; what that comes to stands below."""
    rows = [
        compared(one, evidence.counterfactual.image if evidence.counterfactual else None) for one in evidence.nearest
    ]
    return overlay.stacked(rows, evidence.sentence())


def compared(one: NearestNormal, inpainted: npt.NDArray[np.uint8] | None = None) -> Image.Image:
    """A crop beside its nearest normal patch and, of a inpainted image, the same place."""
    left, top, right, bottom = one.box
    chance = "" if one.p_value is None else f" (p = {one.p_value:.2g})"
    crops, captions = [one.crop], [f"This part, ({left}, {top}) to ({right}, {bottom})"]
    if one.normal is None:
        captions[0] += f". Its nearest normal patch, at distance {one.distance:.3g}{chance}, has no image here."
    else:
        crops.append(one.normal)
        captions.append(f"Nearest normal: {one.source}. Distance {one.distance:.3g}{chance}")
    if inpainted is not None:
        crops.append(inpainted[top:bottom, left:right])
        captions.append("Repaired")
    return overlay.side_by_side(crops, captions)


class Done(NamedTuple):
    """A look, where what was drawn of it (None: nothing), and what its repair comes to, in words."""

    look: Inspection
    drawn: dict[str, Any] | None = None
    sentence: str = ""

    def row(self) -> dict[str, Any]:
        """What a line of `verdicts.jsonl` says of it."""
        nothing: dict[str, Any] = {"overlay": None, "evidence": [], "counterfactual": None}
        return {**self.look.verdict.to_json(), **nothing, **(self.drawn or {})}


class Drawer:
    """Draws looks under the folder `path`; with `evidence`, beside the overlays of anomalies what `evidence.gather`
    finds. `store` is the bundle's evidence, None where it has none or none is asked for."""

    def __init__(self, path: Path, inspector: Inspector, *, evidence: bool = True) -> None:
        self.path, self.inspector, self.evidence = path, inspector, evidence
        self.store = open_store(inspector) if evidence else None

    def draw(self, look: Inspection, name: str) -> Done:
        """Draws what there is to see, under `name`. May be called by several threads."""
        if look.image is None:
            return Done(look)
        found = gather(self.inspector, self.store, look) if self.evidence else None
        drawn = draw(self.path, name, look, self.inspector.card.decision.color_range, found)
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
        """Writes one image's verdict."""
        self._file.write(json.dumps(done.row()) + "\n")

    def unique(self, name: str) -> str:
        """The name that an image is drawn under: a/b.png stays, a second a/b.png becomes a/b.png-2. To be asked in
        the images' order."""
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
