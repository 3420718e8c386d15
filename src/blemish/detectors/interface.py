"""What every detector is, and says of itself. Light: torch is not loaded, so that `blemish train --help` is quick.

A detector is a config, a frozen dataclass whose fields are its options (see `options.setting`), whose `traits` say what
the pipeline must know, and whose `build` makes the detector: see docs/write-your-own-detector.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from blemish.types import Progress, Sample, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from blemish.detectors.nn.provenance import Sources


class Recipe(NamedTuple):
    """Published settings: what they make of the detector's config, and which options of `training.config.TrainConfig`
    they change."""

    settings: Callable[[Any], Any]
    training: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Traits:
    """What the pipeline must know of a detector before it is built."""

    name: str  # as in --detector
    title: str  # of its panel in --help
    summary: str  # one sentence, with the paper
    learns_from_defects: bool = False  # is shown defective images too, and knows classes
    leaves_one_out: bool = False  # can score a training image as if its item had not been learned from
    trained_by_gradient: bool = False  # its config has `checkpoint` and `resume`, so a killed training can be resumed
    cross_validates: bool = False  # `training.crossval` knows how
    recipes: Mapping[str, Recipe] = field(default_factory=dict)  # published settings by name


class Origin(NamedTuple):
    """Where a network's weights come from, for the card."""

    name: str
    source: str
    licence: str


class Graph(Protocol):
    """The detector as one torch module: uint8 (N, H, W, 3) RGB of any size -> tensors in the order of `outputs`."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of what it returns, fields of `types.Prediction`: "scores" and "maps" at least."""

    @property
    def gated(self) -> bool:
        """Whether its maps are made of a gradient, which jumps where a ReLU opens."""

    def __call__(self, images: Tensor) -> Sequence[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...


class DetectorConfig(Protocol):
    """A detector's settings. `image_size` (height, width) and `seed` are set by the pipeline."""

    traits: ClassVar[Traits]

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def seed(self) -> int: ...
    def build(self) -> Detector: ...


class Resumable(Protocol):
    """What the config of a detector that is trained by gradient has besides."""

    @property
    def checkpoint(self) -> Path | None: ...
    @property
    def resume(self) -> bool: ...


class Detector(Protocol):
    """What `DetectorConfig.build` makes."""

    @property
    def origin(self) -> Origin:
        """Of its backbone's weights."""

    @property
    def classes(self) -> tuple[str, ...]:
        """A classifier's, good first; () of other detectors."""

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds of the training, JSON-ready."""

    def fit(self, samples: Sequence[Sample], progress: Progress = silent, *, held_out: Sequence[Sample] = ()) -> Self:
        """Learns from `samples`. `held_out` are the images that the guarantee is calibrated on: a classifier scales its
        temperature on them, others leave them alone."""

    def graph(self) -> Graph:
        """The fitted detector as a `Graph`, on the CPU and in evaluation mode."""

    def sources(self) -> Sources | None:
        """Where each entry of its memory bank comes from, for the bundle's evidence; None where it has none."""


class LeavesOneOut(Protocol):
    """What a detector whose traits say `leaves_one_out` has besides."""

    def sources(self) -> Sources: ...
    def without(self, items: Sequence[int]) -> WithoutItem:
        """The fitted detector with the entries of one item left out of its memory bank; `items` (M,) numbers the item
        that each entry comes from."""


class WithoutItem(Protocol):
    """A `Graph` with further inputs that say which item is left out."""

    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def inputs(self) -> Sequence[str]:
        """The names of those inputs."""

    def left_out(self, item: int) -> Sequence[Tensor]:
        """Their values for one item."""

    def __call__(self, images: Tensor, *left_out: Tensor) -> Sequence[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
