"""The hybrid detector's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from blemish.detectors.interface import Traits
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.options import setting

if TYPE_CHECKING:
    from blemish.detectors.hybrid.detector import Hybrid


@dataclass(frozen=True)
class HybridConfig(PatchCoreConfig):
    """PatchCore's settings, and those of the heads that learn from defects. Their defaults were chosen on the magnetic
    tiles and the drawn boards (docs/few-defects.md)."""

    traits: ClassVar[Traits] = Traits(
        name="hybrid",
        title="Hybrid",
        summary="PatchCore, and heads that learn from a few labelled defects (after Rolih et al. 2024).",
        learns_from_defects=True,
        trained_by_gradient=True,
    )

    use_defects: Literal["auto", "yes", "no"] = setting(
        "auto", "Whether the heads take part: auto = where they help on images that they were not trained on."
    )
    head_folds: int = setting(5, "Folds of the images; heads are trained without each.", low=2, high=20)
    heads: int = setting(3, "Heads for each fold, whose mean answers for it.", low=1, high=20)
    hidden: int = setting(64, "Channels of a head's adaptor.", low=1)
    top: float = setting(0.01, "Share of an image's cells whose mean is a head's score.", low=0, high=1)
    epochs: int = setting(6, "Epochs of each head, of 160 good and 160 defective images each.", low=1)
    learning_rate: float = setting(2e-3, "Highest learning rate.", low=0)
    decay: float = setting(1e-2, "Weight decay of AdamW.", low=0)
    use_masks: bool = setting(True, "Where defects have masks, the heads' maps learn from them.")
    cache: float = setting(2.0, "GiB for cached features; more go to a file.", low=0, machine=True)
    log: str = setting("", "tensorboard or wandb: keep the losses of every epoch.", machine=True)
    checkpoint: Path | None = None  # a folder, where a file is written after every epoch
    resume: bool = False

    def build(self) -> Hybrid:  # type: ignore[override]
        from blemish.detectors.hybrid.detector import Hybrid

        return Hybrid(self)
