"""Its settings, and what the pipeline must know of it. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blemish.detectors.interface import Traits
from blemish.options import setting

if TYPE_CHECKING:
    from blemish_toy.detector import MeanImage


@dataclass(frozen=True)
class MeanImageConfig:
    """How far an image is from the mean good image."""

    traits: ClassVar[Traits] = Traits("mean-image", "Mean image", "Distance to the mean image, from good images alone.")

    gain: float = setting(1.0, "Factor of the anomaly map.", low=0)
    image_size: tuple[int, int] = (32, 32)  # height, width
    seed: int = 0

    def build(self) -> MeanImage:
        from blemish_toy.detector import MeanImage

        return MeanImage(self)
