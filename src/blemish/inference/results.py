"""What `blemish inspect --out` and `blemish watch` write: a line of `verdicts.jsonl` for each image, and under the
image's own name an overlay and, of an anomaly, its evidence and the inpainted image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from PIL import Image

from blemish.atomic import naming
from blemish.files import kept
from blemish.inference import overlay
from blemish.inference.evidence import gather, open_store
from blemish.inference.inspector import Inspection, Inspector
from blemish.inference.naming import output_name
from blemish.inference.resizing import size_of

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from blemish.inference.evidence import Evidence
    from blemish.inference.nearest_normal import NearestNormal

VERDICTS = "verdicts.jsonl"
INSPECTION = "inspection"  # what `files.kept` calls the folder of `blemish inspect --out`
WRITTEN = (VERDICTS, "overlays", "evidence", "inpainted", "reconstruction")


class Result(NamedTuple):
    """An inspection, the images written of it (see `write_images`; None: none), and the sentence of its evidence."""

    inspection: Inspection
    written: dict[str, Any] | None = None
    sentence: str = ""

    def row(self) -> dict[str, Any]:
        """Its line of `verdicts.jsonl`."""
        nothing: dict[str, Any] = {"overlay": None, "evidence": [], "counterfactual": None}
        return {**self.inspection.verdict.to_json(), **nothing, **(self.written or {})}


class ImageWriter:
    """Writes the images of inspections into the folder `path`: overlays and, with `evidence`, what `evidence.gather`
    gives. `store` is the bundle's evidence store, None where it has none or no evidence is asked for."""

    def __init__(self, path: Path, inspector: Inspector, *, evidence: bool = True) -> None:
        self.path, self.inspector, self.evidence = path, inspector, evidence
        self.store = open_store(inspector) if evidence else None

    def write(self, inspection: Inspection, name: str) -> Result:
        """Writes the images of one inspection under `name`; none where the image could not be read. May be called by
        several threads at once."""
        if inspection.image is None:
            return Result(inspection)
        evidence = gather(self.inspector, self.store, inspection) if self.evidence else None
        written = write_images(self.path, name, inspection, self.inspector.card.decision.color_range, evidence)
        return Result(inspection, written, evidence.sentence() if evidence else "")


def write_images(
    folder: Path,
    name: str,
    inspection: Inspection,
    color_range: tuple[float, float],
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """Writes `overlays/NAME.jpg`, with evidence `evidence/NAME.jpg`, and an autoencoder's `reconstruction/NAME.jpg` or
    another detector's `inpainted/NAME.jpg`. Returns these paths by kind, and the evidence's figures."""
    assert inspection.image is not None
    (low, high), counterfactual = color_range, evidence.counterfactual if evidence else None
    name = output_name(name)
    written: dict[str, Any] = {"overlay": f"overlays/{name}.jpg"}
    marked = overlay.overlay(inspection.image, inspection.map, inspection.verdict.regions, low=low, high=high)
    overlay.save(marked, folder / written["overlay"])
    if inspection.reconstruction is not None:
        written["reconstruction"] = f"reconstruction/{name}.jpg"
        whole = overlay.reconstruction(inspection.reconstruction, size_of(inspection.image))
        overlay.save(whole, folder / written["reconstruction"])
    elif counterfactual:
        written["inpainted"] = f"inpainted/{name}.jpg"
        overlay.save(Image.fromarray(counterfactual.image), folder / written["inpainted"])
    written |= {"evidence": [], "counterfactual": None}
    if evidence and evidence.nearest:
        file = f"evidence/{name}.jpg"
        overlay.save(_evidence_image(evidence), folder / file)
        written["evidence"] = [
            {
                "box": nearest.region.box if nearest.region else nearest.box,
                "source": nearest.source,
                "distance": nearest.distance,
                "p_value": nearest.p_value,
                "file": file,
            }
            for nearest in evidence.nearest
        ]
    if counterfactual:
        written["counterfactual"] = {
            "score": counterfactual.score,
            "p_value": counterfactual.p_value,
            "decision": counterfactual.decision,
        }
    return written


def _evidence_image(evidence: Evidence) -> Image.Image:
    """A row for each region: as it is, the nearest normal patch, and inpainted; the evidence's sentence below."""
    inpainted = evidence.counterfactual.image if evidence.counterfactual else None
    return overlay.stacked([comparison(nearest, inpainted) for nearest in evidence.nearest], evidence.sentence())


def comparison(nearest: NearestNormal, inpainted: npt.NDArray[np.uint8] | None = None) -> Image.Image:
    """A crop beside its nearest normal patch and, where there is an inpainted image, the same place of that."""
    left, top, right, bottom = nearest.box
    p_value = "" if nearest.p_value is None else f" (p = {nearest.p_value:.2g})"
    crops, captions = [nearest.crop], [f"This part, ({left}, {top}) to ({right}, {bottom})"]
    if nearest.normal is None:
        captions[0] += f". Its nearest normal patch, at distance {nearest.distance:.3g}{p_value}, has no image here."
    else:
        crops.append(nearest.normal)
        captions.append(f"Nearest normal: {nearest.source}. Distance {nearest.distance:.3g}{p_value}")
    if inpainted is not None:
        crops.append(inpainted[top:bottom, left:right])
        captions.append("Inpainted")
    return overlay.side_by_side(crops, captions)


class ResultsFolder:
    """The folder `path` of `blemish inspect --out`, see `files.kept`. A line of `verdicts.jsonl` is written as soon as
    it is given, so that those of a process that is killed are there. `reads` are the images and the bundle.

    Raises `BlemishError` where the folder is another's, or holds an earlier inspection and `overwrite` is not given.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, reads: Sequence[Path] = ()) -> None:
        self.path = path
        self._taken: dict[str, int] = {}  # name -> its last number
        self._open = ExitStack()
        self._folder = self._open.enter_context(kept(path, INSPECTION, WRITTEN, overwrite=overwrite, reads=reads))
        self._file = self._open.enter_context((path / VERDICTS).open("w", encoding="utf-8"))
        self._folder.adopted.add(VERDICTS)

    def add(self, result: Result) -> None:
        """Writes one image's line."""
        row = result.row()
        with naming(self.path / VERDICTS):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        files = [row.get(kind) for kind in ("overlay", "reconstruction", "inpainted")]
        self._folder.adopted.update(file for file in [*files, *(one["file"] for one in row["evidence"])] if file)

    def unique(self, name: str) -> str:
        """The name that an image's files get: a/b.png stays, a second a/b.png becomes a/b.png-2. To be called in the
        images' order."""
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
        self._open.__exit__(kind, error, trace)
