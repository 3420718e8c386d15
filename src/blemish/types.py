"""What the rooms of the house hand to each other. Frozen, checked when made, and free of heavy imports.

Conventions that hold everywhere: images are `uint8 (H, W, 3)` RGB; scores and maps are `float32`, raw, and higher
means more anomalous; boxes are half-open pixel ranges `(left, top, right, bottom)` of the *original* image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
Label = Literal["good", "anomaly"]
Decision = Literal["good", "review", "anomaly", "error"]
SplitName = Literal["", "train", "test"]


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
    """One image of a data set, not yet decoded.

    `name` is its path relative to the data set's root, with forward slashes: unique, and the same on every machine.
    `label` is None where the image is unlabelled. `defect` is the defect type ("" for good or unlabelled images).
    `split` is the data set's own split that the image is in ("" where it has none).
    `group` names the item shown: images of one item never land on both sides of a split ("" = an item of its own).
    `pixels` are the image itself, RGB (H, W, 3), where there is no file; `images.decode` gives them either way.
    """

    path: Path
    name: str
    label: Label | None = None
    defect: str = ""
    mask: Path | None = None
    split: SplitName = ""
    group: str = ""
    pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.label == "good" and (self.defect or self.mask):
            raise ValueError(f"{self.name}: a good sample has neither defect type nor mask")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a detector says of N images: raw scores and maps, higher = more anomalous. The fields are named as a graph's
    outputs are, and the batch axis always comes first.

    A classifier adds how likely each class is (class 0 is good) and, if it learned types, a map for each of them; an
    autoencoder adds how the image would look if it were good. For each cell of the feature grid there is the nearest
    normal patch (an index into the memory bank) and the distance to it; of images cut into tiles, for each tile.
    `poses` say how images were aligned, see `framing.Framing`.

    Raises ValueError where shapes or dtypes do not fit together.
    """

    scores: npt.NDArray[np.float32]  # (N,)
    maps: npt.NDArray[np.float32]  # (N, H, W)
    probabilities: npt.NDArray[np.float32] | None = None  # (N, classes), rows sum to 1
    class_maps: npt.NDArray[np.float32] | None = None  # (N, classes - 1, H, W): log-odds against good
    reconstruction: npt.NDArray[np.uint8] | None = None  # (N, H, W, 3), the maps' size
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

    @classmethod
    def named(cls, outputs: Mapping[str, Any]) -> Prediction:
        """From a graph's outputs by name; what is no field here, such as an output of a detector's own, is left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in outputs.items() if name in known})

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """What there is, by name."""
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in every.items() if value is not None}

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice) -> Prediction:
        """The rows of some images; an integer gives that one image's, still with its batch axis."""
        rows = slice(index, index + 1 or None) if isinstance(index, int) else index
        return Prediction(**{name: value[rows] for name, value in self.outputs().items()})

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in self.outputs().items())
        return f"Prediction({shapes})"


# Whatever runs a detector: uint8 (N, H, W, 3) RGB -> what it says of them.
Runner = Callable[["npt.NDArray[np.uint8]"], Prediction]


@dataclass(frozen=True, slots=True)
class Region:
    """A place that looks wrong: half-open box in pixels of the original image, area in the same pixels, highest
    map value inside, and the share of good images (a conformal p-value) whose whole map gets as high."""

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
    """What blemish says of one image. `decision` is "error" where it could not be read, and `error` says why.

    Of a classifier only: `probability` of an anomaly, at equal odds beforehand where it was learned so, and `defect`,
    the likeliest defect type, of an anomaly where it learned types. In a notebook a verdict of `Inspector.inspect`
    shows the image with heat and boxes; `draw` looks at the image once more for that.
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
    draw: Callable[[], bytes | None] | None = field(default=None, repr=False, compare=False)  # a PNG

    def __post_init__(self) -> None:
        if (self.decision == "error") != (self.error is not None):
            raise ValueError("a verdict carries an error text exactly when its decision is 'error'")
        if self.decision == "good" and self.regions:
            raise ValueError("a good verdict has no regions")

    def to_json(self) -> dict[str, Any]:
        """Its facts, as a line of `verdicts.jsonl` holds them."""
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "draw"}
        return {**facts, "regions": [asdict(region) for region in self.regions]}

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes travel the facts alone."""
        return Verdict, tuple(getattr(self, one.name) for one in fields(self) if one.name != "draw")

    def _repr_png_(self) -> bytes | None:
        return self.draw() if self.draw else None
