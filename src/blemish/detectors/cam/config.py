"""The classifier's settings: ours, and those of the published study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.detectors.nn.backbones import Tap


@dataclass(frozen=True)
class CamConfig:
    """Ours; `case_study` makes the published settings of it."""

    backbone: str = "bundled"
    weights: Path | None = None
    image_size: tuple[int, int] = (256, 256)  # height, width
    layers: tuple[str, ...] = ()  # whose features are pooled; () = stages of stride 8 and more
    moments: int = 2  # pooled of each feature: its mean, and with 2 its mean square
    deviations: bool = False  # pooled instead: how far each cell departs from good images there; for aligned parts
    unfreeze: int = 1  # last stages that are trained with the head; 0 = the head alone
    outputs: int = 2  # of the dense layer for two classes; 1 = its one row speaks for the anomaly
    types: bool = False  # classes are good and each defect type
    head_weights: tuple[float, ...] | str = "auto"  # of the classes in the loss; auto = every class counts the same
    augmentations: tuple[str, ...] = ()  # augment.MAY: what a part may do without becoming another part
    epochs: int = 8
    batch: int = 16
    learning_rate: float = 3e-4
    decay: float = 1e-2  # AdamW's; without it, Adam
    one_cycle: bool = True
    head_first: bool = True  # the head is fitted to the pretrained features, then both are trained (Kumar et al. 2022)
    stop_at: float = 2.0  # training accuracy at which to stop; above 1 = never
    map: str = "cam"  # a key of maps.METHODS
    map_layer: str = ""  # of the gradient's maps; "" = the last one; earlier ones give finer maps
    sigma: float = 4.0  # Gaussian smoothing of the enlarged map, in pixels of image_size; 0 = none, as published
    contrast: bool = True  # the map speaks for the anomaly and against good; else its row alone does, as published
    memory: float = 2.0  # GiB for kept features; more go to a file
    random_weights: bool = False
    seed: int = 0
    device: str = "cpu"
    processes: int = 1
    checkpoint: Path | None = None  # a folder: a file each is written there after every epoch
    resume: bool = False
    log: str = ""  # a key of log.KINDS: what is written of the training, in `checkpoint`/log


def case_study(config: CamConfig) -> CamConfig:
    """The published study of defects: VGG16 whose last three convolutions are trained, on images at 224 x 224."""
    return replace(
        config,
        backbone="torchvision/vgg16",
        image_size=(224, 224),
        layers=("features.29",),  # conv5_3 after its ReLU: 512 x 14 x 14
        moments=1,
        deviations=False,
        unfreeze=1,
        outputs=2,
        types=False,
        head_weights=(1.0, 3.0),
        augmentations=(),
        epochs=10,
        batch=10,
        learning_rate=1e-4,
        decay=0.0,
        one_cycle=False,
        head_first=False,
        stop_at=0.98,
        map="cam",
        map_layer="",
        sigma=0.0,
        contrast=False,
    )


def pooled_by_default(found: Sequence[Tap]) -> tuple[str, ...]:
    """Stages of stride 8 and more, where small defects are still to be seen; of a transformer the last block."""
    if len({tap.stride for tap in found}) == 1:
        return (found[-1].layer,)
    return tuple(tap.layer for tap in found if tap.stride >= 8) or (found[-1].layer,)
