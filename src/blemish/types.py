"""What the rooms of the house hand to each other. Frozen, checked when made, and free of heavy imports.

Conventions that hold everywhere: pictures are `uint8 (H, W, 3)` RGB; scores and maps are `float32`, raw, and higher
means more anomalous; boxes are half-open pixel ranges `(left, top, right, bottom)` of the *original* picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
Label = Literal["good", "anomaly"]
Decision = Literal["good", "review", "anomaly", "error"]


class BlemishError(Exception):
    """A refusal that a person can act on: its text is a sentence that names the thing, the cause and the remedy."""


class Progress(Protocol):
    """Wraps an iterable so that somebody sees how far it is: `for x in progress(xs, "features", len(xs))`."""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterator[T]: ...


def silent(items: Iterable[T], what: str = "", total: int = 0) -> Iterator[T]:  # noqa: ARG001
    """The `Progress` that shows nothing."""
    return iter(items)


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a data set, not yet decoded.

    `name` is its path relative to the data set's root, with forward slashes: unique, and the same on every machine.
    `label` is None where nobody said. `defect` is the defect type ("" for good or unlabelled pictures).
    `part` is the side that the data set itself put the picture on ("" where it says nothing).
    `group` names the item shown: pictures of one item never land on both sides of a split ("" = an item of its own).
    """

    path: Path
    name: str
    label: Label | None = None
    defect: str = ""
    mask: Path | None = None
    part: Literal["", "train", "test"] = ""
    group: str = ""

    def __post_init__(self) -> None:
        if self.label == "good" and (self.defect or self.mask):
            raise ValueError(f"{self.name}: a good sample has neither defect type nor mask")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a detector says of N pictures: raw scores and maps, higher = more anomalous. A classifier says too how
    likely each class is (class 0 is good), an autoencoder how the picture would look if it were good. For each cell of
    the feature grid there is the nearest normal patch (an index into the detector's bank) and the distance to it; of
    pictures cut into tiles, for each tile. `poses` say how pictures were aligned, see `frame.Framing`."""

    scores: npt.NDArray[np.float32]  # (N,)
    maps: npt.NDArray[np.float32]  # (N, H, W)
    probabilities: npt.NDArray[np.float32] | None = None  # (N, classes), rows sum to 1
    repaired: npt.NDArray[np.uint8] | None = None  # (N, H, W, 3), the maps' size
    neighbours: npt.NDArray[np.int32] | None = None  # (N, gh, gw) or (N, tiles, gh, gw)
    distances: npt.NDArray[np.float32] | None = None  # the same
    poses: npt.NDArray[np.float64] | None = None  # (N, 2, 3)

    def __post_init__(self) -> None:
        likely = self.probabilities
        if likely is not None and (likely.ndim != 2 or len(likely) != len(self.maps)):
            raise ValueError(f"expected probabilities (N, classes); got {likely.shape}")
        if self.maps.ndim != 3 or self.scores.shape != self.maps.shape[:1]:
            raise ValueError(f"expected scores (N,) and maps (N, H, W); got {self.scores.shape} and {self.maps.shape}")
        if self.scores.dtype != "float32" or self.maps.dtype != "float32":
            raise ValueError(f"expected float32; got {self.scores.dtype} and {self.maps.dtype}")


@dataclass(frozen=True, slots=True)
class Region:
    """A place that looks wrong: half-open box in pixels of the original picture, area in the same pixels, highest
    map value inside, and the share of good pictures (a conformal p-value) whose whole map gets as high."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    area: float
    peak: float
    p_value: float | None = None

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (0 <= left < right and 0 <= top < bottom):
            raise ValueError(f"expected 0 <= left < right and 0 <= top < bottom; got {self.box}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What blemish says of one picture. `decision` is "error" where it could not be read, and `error` says why.

    Of a classifier only: `probability` of an anomaly, at equal odds beforehand where it was learned so, and `defect`,
    the likeliest defect type, of an anomaly where it learned types.
    """

    path: str
    decision: Decision
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    size: tuple[int, int] | None = None  # width, height of the original picture
    regions: tuple[Region, ...] = field(default=())
    error: str | None = None
    probability: float | None = None
    defect: str = ""

    def __post_init__(self) -> None:
        if (self.decision == "error") != (self.error is not None):
            raise ValueError("a verdict carries an error text exactly when its decision is 'error'")
        if self.decision == "good" and self.regions:
            raise ValueError("a good verdict has no regions")
