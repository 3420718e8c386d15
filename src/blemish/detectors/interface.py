"""The interface of a detector. Light: torch is not loaded, so that `blemish train --help` is fast.

A detector is defined by its config, a frozen dataclass: its fields are the options (see `options.setting`), its
`traits` tell the pipeline what it can do, and its `build` makes the detector. See docs/write-your-own-detector.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from blemish.types import Prediction, Progress, Sample, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from blemish.detectors.nn.provenance import Sources


class Recipe(NamedTuple):
    """Published settings: a function that changes the detector's config, and the options of
    `training.config.TrainConfig` that they change."""

    settings: Callable[[Any], Any]
    training: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Traits:
    """The properties of a detector that the pipeline needs before it is built."""

    name: str  # as in --detector
    title: str  # of its panel in --help
    summary: str  # one sentence, with the paper
    learns_from_defects: bool = False  # its training samples include defective images
    classifies: bool = False  # it has classes, so it cannot do without defective images
    leaves_one_out: bool = False  # can score a training image without its own item
    trained_by_gradient: bool = False  # its config has `checkpoint` and `resume`, so a killed training can be resumed
    cross_validates: bool = False  # has what `training.crossval` needs
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
        """Whether its maps are made of gradients, which jump where a ReLU opens."""

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
    """What the config of a detector has in addition if it is trained by gradient."""

    @property
    def checkpoint(self) -> Path | None: ...
    @property
    def resume(self) -> bool: ...
    @property
    def log(self) -> str:
        """What keeps the losses of every epoch, in `checkpoint`/log; "" = nothing."""


class Detector(Protocol):
    """What `DetectorConfig.build` makes."""

    @property
    def origin(self) -> Origin:
        """The origin of the backbone's weights."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of a classifier, good first; () for other detectors."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The detector's own entries of metrics.json, as JSON values."""

    def fit(self, samples: Sequence[Sample], progress: Progress = silent, *, held_out: Sequence[Sample] = ()) -> Self:
        """Learns from `samples`. `held_out` are the calibration images: a classifier also fits its temperature on them,
        other detectors ignore them."""

    def graph(self) -> Graph:
        """The fitted detector as a `Graph`, on the CPU and in evaluation mode."""

    def sources(self) -> Sources | None:
        """The image and position of each entry of the memory bank, for the bundle's evidence; None without a memory
        bank."""


class LeavesOneOut(Protocol):
    """What a detector has in addition if its traits say `leaves_one_out`."""

    def sources(self) -> Sources: ...
    def left_out(self, progress: Progress = silent) -> Callable[[int], Prediction]:
        """Gives the prediction of a training sample, by its place in `sources().samples`, as if its item
        (`Sample.group`) had not been seen."""
