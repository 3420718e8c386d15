"""The classifier's settings: ours, and those of the published study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from blemish.detectors.interface import Recipe, Traits
from blemish.options import setting
from blemish.types import BlemishError

if TYPE_CHECKING:
    from blemish.detectors.cam.detector import Cam
    from blemish.detectors.nn.taps import Tap


def head_weights(text: str) -> tuple[float, ...] | str:
    """`auto`, or a number for each class: `1,3`."""
    try:
        return text if text == "auto" else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BlemishError(f"--head-weights takes auto, or a number for each class: 1,3; not '{text}'.") from None


def case_study(config: CamConfig) -> CamConfig:
    """The published study of defects: VGG16 whose last three convolutions are trained, on images at 224 x 224."""
    return replace(
        config,
        backbone="torchvision/vgg16",
        image_size=(224, 224),
        layers=("features.29",),  # conv5_3 after its ReLU: 512 x 14 x 14
        padding="zeros",
        background="pooled",
        pool="mean",
        unfreeze=1,
        outputs=2,
        classes="binary",
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


# Decided by class, from one split of all images.
CASE_STUDY = {"decide": "class", "boxes": "one", "pooled": True, "calibration": 0.0, "image_size": (224, 224)}


@dataclass(frozen=True)
class CamConfig:
    """Ours; `case_study` makes the published settings of it."""

    traits: ClassVar[Traits] = Traits(
        name="cam",
        title="Classifier (CAM)",
        summary="A classifier with class activation maps, from good and defective images (Zhou et al. 2016).",
        learns_from_defects=True,
        classifies=True,
        trained_by_gradient=True,
        cross_validates=True,
        recipes={"case-study": Recipe(case_study, CASE_STUDY)},
    )

    backbone: str = setting("bundled", "bundled, efficientnet-lite0, a timm name, or torchvision/NAME.")
    weights: Path | None = setting(None, "A local .safetensors file for the backbone.")
    random_weights: bool = setting(False, "An untrained backbone, as a control.")
    layers: tuple[str, ...] = setting((), "Layers whose features are pooled; without, stages of stride 8 and more.")
    image_size: tuple[int, int] = (256, 256)  # height, width
    classes: Literal["binary", "types"] = setting("binary", "binary, or types: good and each defect type.")
    padding: Literal["zeros", "reflect", "replicate"] = setting(
        "zeros", "What the backbone's convolutions see beyond the image's border."
    )
    # Not the default: a part that is missing is background too, see docs/cam.md.
    background: Literal["auto", "pooled"] = setting(
        "pooled",
        "pooled: all features are, as published; auto: none where nothing but the good images' constant background is.",
    )
    # deviations: how far each cell is from good images at that place; for parts that lie still.
    pool: Literal["mean", "moments", "deviations"] = setting(
        "moments", "What is pooled of each feature: mean, moments (mean and mean square), or deviations."
    )
    unfreeze: int = setting(1, "Last stages that are trained with the head; 0 = the head alone.", low=0)
    outputs: int = setting(
        2, "Outputs of the dense layer for two classes; 1 = its row speaks for the anomaly.", low=1, high=2
    )
    head_weights: tuple[float, ...] | str = setting(
        "auto",
        "Weights of the classes in the loss: auto (every class counts the same), or each: 1,3.",
        parse=head_weights,
    )
    augmentations: tuple[str, ...] = setting((), "Changes that a good part may show: rotate,flip,shift,brighten,tilt.")
    epochs: int = setting(8, "Epochs at most.", low=1)
    batch: int = setting(16, "Images in a step.", low=1)
    learning_rate: float = setting(3e-4, "Highest learning rate.", low=0)
    decay: float = setting(1e-2, "Weight decay of AdamW; 0 = Adam.", low=0)
    one_cycle: bool = setting(True, "The learning rate rises and falls in one cycle.")
    # Kumar et al. 2022: training both at once distorts the features.
    head_first: bool = setting(True, "The head is fitted to the pretrained features before both are trained.")
    stop_at: float = setting(2.0, "Training accuracy at which to stop; above 1 = never.")
    map: str = setting("cam", "Map: cam, gradcam, gradcam++, layercam or hirescam.")
    map_layer: str = setting("", "Layer of a gradient's map; without, the last one. Earlier ones give finer maps.")
    sigma: float = setting(4.0, "Gaussian smoothing of the map, in pixels of the image size; 0 = none.", low=0)
    contrast: bool = setting(True, "The map speaks for the anomaly and against good; else for the anomaly alone.")
    memory: float = setting(2.0, "GiB for cached features; more go to a file.", low=0, machine=True)
    device: str = setting("cpu", "cpu or cuda.", machine=True)
    processes: int = setting(1, "Number of training processes.", low=1, machine=True)
    log: str = setting("", "tensorboard or wandb: keep the losses of every epoch.", machine=True)
    checkpoint: Path | None = None  # a folder, where a file is written after every epoch
    resume: bool = False
    seed: int = 0

    @property
    def moments(self) -> int:
        """Pooled of each feature: 1 = its mean, 2 = its mean square besides."""
        return 1 if self.pool == "mean" else 2

    @property
    def deviations(self) -> bool:
        return self.pool == "deviations"

    def build(self) -> Cam:
        from blemish.detectors.cam.detector import Cam

        return Cam(self)


def pooled_by_default(found: Sequence[Tap]) -> tuple[str, ...]:
    """Stages of stride 8 and more, where small defects are still to be seen; of a transformer the last block."""
    if len({tap.stride for tap in found}) == 1:
        return (found[-1].layer,)
    return tuple(tap.layer for tap in found if tap.stride >= 8) or (found[-1].layer,)
