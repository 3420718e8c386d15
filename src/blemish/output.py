"""Where `blemish inspect --out` writes: one JSON line a picture, and under the picture's own name an overlay and, from
an autoencoder, the repaired picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from blemish import overlay
from blemish.types import BlemishError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from blemish.inspector import Look
    from blemish.types import Region

VERDICTS = "verdicts.jsonl"


def draw(
    folder: Path,
    name: str,
    picture: npt.NDArray[np.uint8],
    anomaly_map: npt.NDArray[np.float32] | None,
    regions: Sequence[Region],
    repaired: npt.NDArray[np.uint8] | None,
    heat: tuple[float, float],
) -> dict[str, str]:
    """Writes `overlays/NAME.jpg`, and `repaired/NAME.jpg` where the picture was repaired; says where, by kind."""
    low, high = heat
    drawn = {"overlay": f"overlays/{name}.jpg"}
    overlay.save(overlay.overlay(picture, anomaly_map, regions, low=low, high=high), folder / drawn["overlay"])
    if repaired is not None:
        drawn["repaired"] = f"repaired/{name}.jpg"
        size = picture.shape[1], picture.shape[0]
        overlay.save(overlay.repaired(repaired, size), folder / drawn["repaired"])
    return drawn


class Folder:
    """Takes looks as they come. The verdicts are in `verdicts.jsonl` once the block has ended, whole or not at all.

    `heat` are the map values drawn transparent and brightest: the card's, so that all pictures share one scale.
    """

    def __init__(self, path: Path, *, heat: tuple[float, float]) -> None:
        self.path = path
        self.heat = heat
        self._taken: set[str] = set()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._partial = path / f".{VERDICTS}.partial"
            self._file = self._partial.open("w", encoding="utf-8")
        except OSError as cause:
            raise BlemishError(f"{path}: cannot be written to ({cause.strerror}); choose another --out.") from None

    def add(self, look: Look, name: str) -> None:
        """Writes one picture's verdict, overlay and repaired picture; `name` is its relative path, made unique here."""
        drawn: dict[str, str] = {}
        if look.picture is not None:
            name = self._unique(name)
            drawn = draw(self.path, name, look.picture, look.map, look.verdict.regions, look.repaired, heat=self.heat)
        self._file.write(json.dumps({**asdict(look.verdict), "overlay": None, **drawn}) + "\n")

    def _unique(self, name: str) -> str:
        """a/b.png stays; a second a/b.png (two folders were given) becomes a/b.png-2."""
        number, unique = 1, name
        while unique.lower() in self._taken:
            number += 1
            unique = f"{name}-{number}"
        self._taken.add(unique.lower())
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
