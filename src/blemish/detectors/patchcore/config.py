"""PatchCore's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from blemish.detectors.interface import Traits
from blemish.options import setting

if TYPE_CHECKING:
    from blemish.detectors.patchcore.detector import PatchCore


@dataclass(frozen=True)
class PatchCoreConfig:
    """Features and coreset follow the paper (Roth et al. 2022, section 4.2), with a smaller bank so that inference is
    fast; the score does not (docs/patchcore.md)."""

    traits: ClassVar[Traits] = Traits(
        name="patchcore",
        title="PatchCore",
        summary="A memory bank of normal patches, from good images alone (Roth et al. 2022).",
        leaves_one_out=True,
    )

    backbone: str = setting("efficientnet-lite0", "bundled, efficientnet-lite0, a timm name, or torchvision/NAME.")
    weights: Path | None = setting(None, "A local .safetensors file for the backbone.")
    random_weights: bool = setting(False, "An untrained backbone, as a control.")
    layers: tuple[str, ...] = setting((), "Feature layers, separated by commas; without, those of strides 8 and 16.")
    image_size: tuple[int, int] = (384, 384)  # height, width
    patch_size: int = setting(3, "Width of a patch in feature cells (p of Eq. 1); odd.", low=1)
    coreset: float = setting(0.1, "Share of the patches kept in the memory bank.", low=0, high=1)
    max_bank: int = setting(8192, "Most patches in the memory bank; inference time grows with it.", low=1)
    projection: int = setting(32, "Dimensions in which the coreset is selected (Johnson & Lindenstrauss 1984).", low=1)
    sigma: float = setting(4.0, "Gaussian smoothing of the map, in pixels of the image size; 0 = none.", low=0)
    smoothing: float = setting(
        0.7, "Gaussian smoothing of the distances, in feature cells, before the score; 0 = none.", low=0
    )
    place: Literal["auto", "yes", "no"] = setting(
        "auto", "Whether normal is what is normal at the same place: auto = where parts lie still."
    )
    memory: float = setting(0.1, "GiB for patch features while learning; more images give fewer each.", low=0)
    batch: int = setting(8, "Images in a step.", low=1, machine=True)
    device: str = setting("cpu", "cpu or cuda.", machine=True)
    seed: int = 0

    def build(self) -> PatchCore:
        from blemish.detectors.patchcore.detector import PatchCore

        return PatchCore(self)
