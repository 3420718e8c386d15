"""The settings of the autoencoder that attends: ours, and those of the published study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from blemish.types import BlemishError

ATTENTION_LOSSES = ("mean", "mean-std", "none")
INPUTS = ("image", "difference", "residual")
MAPS = ("residual", "attention", "combined")
SCORES = ("auto", "max", "top")
STANDARDS = ("place", "whole")
# Of a layer that instance norm follows the gradient's mean is zero: a shift of a whole channel is lost on the code.
LAYERS = {"unet": "encoder.21", "autoencoder": "encoder.11", "vae": "encoder.11", "resnet": "encoder.7"}
SEEN, MOST = 8000, 80  # training images seen where nobody says how many epochs, and epochs at most


@dataclass(frozen=True)
class AttentionConfig:
    """Ours; `case_study` makes the published settings of it."""

    model: str = "unet"  # one of autoencoders.MODELS
    pretrained: bool = False  # the residual encoder starts from ImageNet's weights
    weights: Path | None = None  # a local .safetensors file with them
    image_size: tuple[int, int] = (128, 128)  # height, width
    width: int = 8  # channels of the first layers, doubled at every halving
    latent: int = 64  # numbers in the code; the U-Net's is its flattened bottleneck
    beta: float = 1e-3  # of the KL divergence (variational)
    loss: str = "mse+ssim"  # see reconstruct.parse
    layers: tuple[str, ...] = ()  # whose attention is shown and trained, averaged; () = the model's of LAYERS
    attention_loss: str = "none"  # one of ATTENTION_LOSSES: what is pushed down on good images
    attention_weight: float = 0.01  # in the loss; of steps of its own, a factor of their learning rate
    alternate: bool = False  # the attention loss takes steps of its own, with an optimiser of its own
    corruption: str = "patches"  # one of corruption.CORRUPTIONS: what is done to images that are to be reconstruction
    input: str = "residual"  # one of INPUTS: what the encoder attends to in inspection
    map: str = "residual"  # one of MAPS: on synthetic defects at least as good as the others, see docs/attention.md
    residual: str = "ssim"  # one of reconstruct.RESIDUALS
    standardise: str = "place"  # maps by good images' mean and spread at each place, or over the whole image
    score: str = "auto"  # of an image: max of its map, mean of its top 1 %, or auto: the best on synthetic defects
    sigma: float = 2.0  # Gaussian smoothing of maps, in pixels of image_size
    augmentations: tuple[str, ...] = ()  # augment.MAY: what a part may do without becoming another part
    epochs: int = 0  # 0 = as many as show SEEN images, at most MOST
    batch: int = 4
    learning_rate: float = 4e-3
    decay: float = 1e-4  # AdamW's
    validation: float = 0.15  # share of the good images held out to choose the score
    memory: float = 2.0  # GiB for images while learning; more go to a file
    seed: int = 0
    device: str = "cpu"
    processes: int = 1
    checkpoint: Path | None = None  # a folder: a file is written there after every epoch
    resume: bool = False
    log: str = ""

    @property
    def backbone(self) -> str:
        """What the card calls the network."""
        return f"{self.model}, {'from ImageNet' if self.pretrained else 'from scratch'}"


def check(config: AttentionConfig) -> None:
    """Raises `BlemishError` for a choice that there is not."""
    from blemish.detectors.attention.corruption import CORRUPTIONS
    from blemish.detectors.attention.losses import RESIDUALS
    from blemish.detectors.attention.models import MODELS

    choices = {"attention_loss": ATTENTION_LOSSES, "input": INPUTS, "map": MAPS, "score": SCORES, "model": MODELS}
    choices |= {"residual": RESIDUALS, "corruption": CORRUPTIONS, "standardise": STANDARDS}
    for name, known in choices.items():
        if getattr(config, name) not in known:
            option = name.replace("_", "-")
            raise BlemishError(f"--{option} takes {', '.join(known)}, not '{getattr(config, name)}'.")
    if not 0 <= config.validation <= 0.5:
        raise BlemishError(f"The share held out to choose the score is {config.validation}; take 0 to 0.5.")
    if config.pretrained and config.model != "resnet":
        raise BlemishError(f"--pretrained is for --model resnet; {config.model} learns from scratch.")


def case_study(config: AttentionConfig) -> AttentionConfig:
    """The published study: a U-Net, attention alone, read from the difference to the average good image."""
    return replace(
        config,
        model="unet",
        loss="mse+ssim",
        layers=("encoder.21",),
        attention_loss="mean",
        attention_weight=1.0,
        alternate=True,
        corruption="none",
        input="difference",
        map="attention",
        standardise="whole",
        score="max",
        sigma=0.0,
        augmentations=(),
        epochs=50,
    )


def epochs_for(images: int) -> int:
    """As many as show the network SEEN images, at most MOST."""
    return min(MOST, max(1, round(SEEN / images)))
