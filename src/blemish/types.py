"""The types that the packages exchange. Frozen, checked on construction, and without heavy imports.

Conventions: images are `uint8 (H, W, 3)` RGB; scores and maps are raw `float32`, higher =
more anomalous; boxes are half-open pixel ranges `(left, top, right, bottom)` of the *original* image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
Label = Literal["good", "anomaly"]
Decision = Literal["good", "review", "anomaly", "error"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
SplitName = Literal["", "train", "test"]


class BlemishError(Exception):
    """An error that the user can correct: its text is one sentence that names the thing, the cause and the remedy."""


class TooFewError(BlemishError):
    """Too few images for what was asked of them."""


class Progress(Protocol):
    """Wraps an iterable and reports its progress: `for x in progress(xs, "features", len(xs))`."""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterator[T]: ...


def silent(items: Iterable[T], what: str = "", total: int = 0) -> Iterator[T]:  # noqa: ARG001
    """The `Progress` that shows nothing."""
    return iter(items)


def readable(name: str) -> str:
    """A file's or folder's name as text: each of its bytes that is not UTF-8 as `\\xff`, four characters.

    >>> readable("零件"), readable("a\\udcff")
    ('零件', 'a\\\\xff')
    """
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, as Windows allows
        return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set, not yet decoded.

    `name` is its path relative to the data set's root, with forward slashes: unique, and the same on every machine.
    `label` is None if the image is unlabelled. `defect` is the defect type ("" for good or unlabelled images).
    `split` is the image's split in the data set ("" if the data set has none).
    `group` names the item: images of one item are never on both sides of a split ("" = an item of its own).
    `pixels` is the image itself, RGB (H, W, 3), if there is no file; `images.decode` returns it in either case.
    `sha256` is the hash of the bytes that were read, in hex digits ("" = not read yet); see `data.content`.
    """

    path: Path
    name: str
    label: Label | None = None
    defect: str = ""
    mask: Path | None = None
    split: SplitName = ""
    group: str = ""
    pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    sha256: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.label == "good" and (self.defect or self.mask):
            raise ValueError(f"{self.name}: a good sample has neither defect type nor mask")

    @property
    def item(self) -> str:
        """The item that the image shows: its group, or without one its own name."""
        return self.group or self.name


@dataclass(frozen=True, slots=True)
class Prediction:
    """A detector's outputs for N images: raw scores and maps, higher = more anomalous. The fields have the names of the
    graph's outputs, and the batch axis comes first.

    A classifier adds the probability of each class (class 0 is good) and, if it learned defect types, a map for each of
    them. An autoencoder adds the reconstruction. `neighbours` and `distances` give, for each cell of the feature grid
    (of each tile, if images are cut into tiles), the nearest normal patch as an index into the memory bank, and the
    distance to it. `poses` are the alignment of the images, see `inference.framing.Framing`.

    Raises ValueError if shapes or dtypes do not fit together.
    """

    scores: npt.NDArray[np.float32]  # (N,)
    maps: npt.NDArray[np.float32]  # (N, H, W)
    probabilities: npt.NDArray[np.float32] | None = None  # (N, classes), rows sum to 1
    class_maps: npt.NDArray[np.float32] | None = None  # (N, classes - 1, H, W): log-odds against good
    reconstruction: npt.NDArray[np.uint8] | None = None  # (N, H, W, 3), the maps' size
    neighbours: npt.NDArray[np.int32] | None = None  # (N, gh, gw) or (N, tiles, gh, gw)
    distances: npt.NDArray[np.float32] | None = None  # the same shape
    poses: npt.NDArray[np.float64] | None = None  # (N, 2, 3)

    def __post_init__(self) -> None:
        probabilities = self.probabilities
        if probabilities is not None and (probabilities.ndim != 2 or len(probabilities) != len(self.maps)):
            raise ValueError(f"expected probabilities (N, classes); got {probabilities.shape}")
        if self.maps.ndim != 3 or self.scores.shape != self.maps.shape[:1]:
            raise ValueError(f"expected scores (N,) and maps (N, H, W); got {self.scores.shape} and {self.maps.shape}")
        if self.scores.dtype != "float32" or self.maps.dtype != "float32":
            raise ValueError(f"expected float32; got {self.scores.dtype} and {self.maps.dtype}")

    @classmethod
    def named(cls, outputs: Mapping[str, Any]) -> Prediction:
        """From a graph's outputs by name; outputs that are not fields, such as those of one detector only, are left
        out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in outputs.items() if name in known})

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice) -> Prediction:
        """The outputs of some images; with an integer index, of one image, still with the batch axis."""
        rows = slice(index, index + 1 or None) if isinstance(index, int) else index
        return Prediction(**{name: value[rows] for name, value in self.outputs().items()})

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in self.outputs().items())
        return f"Prediction({shapes})"


# Runs a detector: uint8 (N, H, W, 3) RGB -> its prediction.
Runner = Callable[["npt.NDArray[np.uint8]"], Prediction]


@dataclass(frozen=True, slots=True)
class Region:
    """A suspicious region: half-open box and area in pixels of the original image, highest map value inside (`peak`),
    and a conformal p-value: the share of good images whose highest map value is at least as high."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    area: float
    peak: float
    p_value: float | None = None

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (0 <= left < right and 0 <= top < bottom):
            raise ValueError(f"expected 0 <= left < right and 0 <= top < bottom; got {self.box}")


@dataclass(frozen=True)
class Verdict:
    """The result for one image. `decision` is "error" if the image could not be judged, and `error` is the reason.
    All numbers are finite.

    Classifiers only: `probability` of an anomaly (with equal prior odds if it was trained so) and, for an anomaly if it
    learned defect types, the likeliest type `defect`. In a notebook a verdict of `Inspector.inspect` is shown as the
    image with heatmap and boxes, which is decoded and inspected again for that.
    """

    path: str
    decision: Decision
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    size: tuple[int, int] | None = None  # width, height of the original image
    regions: tuple[Region, ...] = field(default=())
    error: str | None = None
    probability: float | None = None
    defect: str = ""

    def __post_init__(self) -> None:
        if (self.decision == "error") != (self.error is not None):
            raise ValueError("a verdict carries an error text exactly when its decision is 'error'")
        if self.decision == "good" and self.regions:
            raise ValueError("a good verdict has no regions")
        numbers = (self.score, self.threshold, self.p_value, self.probability)
        if not all(number is None or isfinite(number) for number in numbers):
            raise ValueError("a verdict's numbers are finite")

    def to_json(self) -> dict[str, Any]:
        """The fields, as in a line of `verdicts.jsonl`."""
        return {**asdict(self), "regions": [asdict(region) for region in self.regions]}

    def drawn_by(self, draw: Callable[[], bytes | None]) -> Verdict:
        """The same verdict, shown in a notebook as the PNG that `draw` gives. `draw` is no field: it is in no JSON, and
        not in a pickled verdict."""
        object.__setattr__(self, "_draw", draw)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Verdict, tuple(getattr(self, field.name) for field in fields(self))

    def _repr_png_(self) -> bytes | None:
        draw: Callable[[], bytes | None] | None = vars(self).get("_draw")
        return draw() if draw else None
