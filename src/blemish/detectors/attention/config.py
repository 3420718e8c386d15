"""The settings of the autoencoder with gradient attention: ours, and those of the published study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from blemish.detectors.interface import Recipe, Traits
from blemish.options import setting
from blemish.types import BlemishError

if TYPE_CHECKING:
    from blemish.detectors.attention.detector import Attention

# Of a layer that instance norm follows the gradient's mean is zero: the code does not see a shift of a whole channel.
LAYERS = {
    "unet": "encoder.21",
    "autoencoder": "encoder.11",
    "vae": "encoder.11",
    "resnet": "encoder.7",
    "resnet-vae": "encoder.11",
    "study": "encoder.21",
}
WHOLE = {"image_size": (256, 256)}  # of published settings, whatever the images' shape is
SEEN, MOST = 8000, 80  # training images seen where nobody says how many epochs, and epochs at most


def published(config: AttentionConfig) -> AttentionConfig:
    """What the published settings have in common: the attention alone is the map, as it is, of whole images."""
    return replace(
        config,
        image_size=WHOLE["image_size"],
        corruption="none",
        map="attention",
        standardise="whole",
        score="max",
        sigma=0.0,
        epochs=50,
        validation=0.0,
    )


def study(config: AttentionConfig) -> AttentionConfig:
    """What the public code of Jiang, Xue & Zou does when it is called once: 50 epochs, of which each takes one step
    on the attention, with its last batch. (Its shell script calls it 100 times: --cycles 100.)

    The code's one-cycle schedule is laid out for epochs times batch size steps and takes one a batch, so in 50 epochs
    of up to 255 images its learning rate goes from 0.001 to 0.0012, and Adam's beta1 stays at 0.95.
    """
    return replace(
        published(config),
        model="study",
        center="image",
        loss="ssim",
        layers=("encoder.21",),
        attention_loss="mean",
        attention_weight=1.0,
        fixed_weights=True,
        alternate="last",
        input="residual",
        augmentations=("flip", "tilt"),
        batch=128,
        learning_rate=1e-3,
        schedule="constant",
        momentum=0.95,
        decay=0.0,
    )


def paper(config: AttentionConfig) -> AttentionConfig:
    """The study as its paper describes it: a U-Net, the attention as a term of the loss, read from a cubed difference
    to the average good image."""
    return replace(
        published(config),
        model="unet",
        loss="mse+ssim",
        layers=("encoder.21",),
        attention_loss="mean",
        attention_weight=1.0,
        alternate="no",
        input="difference",
        augmentations=(),
    )


def expvae(config: AttentionConfig) -> AttentionConfig:
    """Liu et al. 2020 on MVTec AD: a variational autoencoder on a ResNet-18 with a code of 32 numbers, whose mean's
    attention is the map. The paper does not say for how long it was trained, nor at which rate."""
    pixels = 3 * 256 * 256
    return replace(
        published(config),
        model="resnet-vae",
        latent=32,
        loss="bce",
        beta=32 / pixels,  # the paper's sums over pixels and code, as means
        attention_loss="none",
        input="image",
        augmentations=("rotate", "flip"),
        batch=16,
        learning_rate=1e-3,
        decay=0.0,
    )


@dataclass(frozen=True)
class AttentionConfig:
    """Ours; `study`, `paper` and `expvae` make the published settings of it."""

    traits: ClassVar[Traits] = Traits(
        name="attention",
        title="Autoencoder (attention)",
        summary="An autoencoder with gradient attention, from good images alone (Jiang, Xue & Zou 2023).",
        trained_by_gradient=True,
        recipes={"study": Recipe(study, WHOLE), "paper": Recipe(paper, WHOLE), "expvae": Recipe(expvae, WHOLE)},
    )

    model: Literal["unet", "autoencoder", "vae", "resnet", "resnet-vae", "study"] = setting(
        "unet", "unet, autoencoder, vae, resnet, resnet-vae, or study: the network of the published code."
    )
    pretrained: bool = setting(False, "The resnet's encoder starts from ImageNet's weights.")
    weights: Path | None = setting(None, "A local .safetensors file with these weights.")
    image_size: tuple[int, int] = (128, 128)  # height, width
    width: int = setting(8, "Channels of the first layers, doubled at every halving.", low=1)
    latent: int = setting(64, "Numbers in the code; the U-Net's is its flattened bottleneck.", low=1)
    center: Literal["channel", "image"] = setting(
        "channel", "The input is standardised by its channels (channel), or the mean good image is subtracted (image)."
    )
    beta: float = setting(1e-3, "Weight of the KL divergence (vae).", low=0)
    loss: str = setting("mse+ssim", "mse, l1, bce, ssim, or a sum: 0.8*mse+0.2*ssim.")
    layers: tuple[str, ...] = setting((), "Encoder layers whose attention is used, averaged: encoder.21.")
    attention_loss: Literal["mean", "mean-std", "none"] = setting(
        "none", "What of the attention is pushed down on good images: mean, mean-std or none."
    )
    attention_weight: float = setting(
        0.01, "Weight of the attention in the loss; of steps of its own, a factor of their learning rate.", low=0
    )
    fixed_weights: bool = setting(
        False, "The attention's loss takes the channels' weights as constants, normalised over the batch, as published."
    )
    alternate: Literal["no", "every", "last"] = setting(
        "no",
        "The attention loss takes steps of its own, with an optimiser of its own: no, on every batch, or on the last, "
        "smaller batch of an epoch instead of the reconstruction's.",
    )
    corruption: Literal["patches", "mask", "noise", "blur", "none"] = setting(
        "patches", "What is done to training images, which are to be reconstructed: patches, mask, noise, blur, none."
    )
    input: Literal["image", "difference", "residual"] = setting(
        "residual",
        "What the attention is computed on: the image, its difference to the mean good image, or the residual.",
    )
    # On synthetic defects the residual is at least as good as the others, see docs/attention.md.
    map: Literal["residual", "attention", "combined"] = setting("residual", "Map: residual, attention, or combined.")
    residual: Literal["ssim", "l1"] = setting("ssim", "How the residual is measured: ssim or l1.")
    standardise: Literal["place", "whole"] = setting(
        "place", "Maps are standardised by good images' mean and deviation, at each place or over the whole."
    )
    score: Literal["auto", "max", "top"] = setting(
        "auto", "Score of an image: max, top (mean of the highest 1 %), or auto: the best on synthetic defects."
    )
    sigma: float = setting(2.0, "Gaussian smoothing of the map, in pixels of the image size; 0 = none.", low=0)
    augmentations: tuple[str, ...] = setting((), "Changes that a good part may show: rotate,flip,shift,brighten,tilt.")
    untrained: bool = setting(False, "The network stays as it is drawn, as a control.")
    epochs: int = setting(0, f"Epochs of a cycle; 0 = as many as show {SEEN} images, at most {MOST}.", low=0)
    cycles: int = setting(1, "Cycles of the learning rate, each of so many epochs.", low=1)
    batch: int = setting(4, "Images in a step.", low=1)
    learning_rate: float = setting(4e-3, "Highest learning rate.", low=0)
    schedule: Literal["one-cycle", "constant"] = setting("one-cycle", "Of the learning rate: one-cycle or constant.")
    momentum: float = setting(0.9, "beta1 of AdamW.", low=0, high=0.999)
    decay: float = setting(1e-4, "Weight decay of AdamW.", low=0)
    validation: float = setting(0.15, "Share of the good images held out to choose the score.", low=0, high=0.5)
    memory: float = setting(2.0, "GiB for images while learning; more go to a file.", low=0, machine=True)
    device: str = setting("cpu", "cpu or cuda.", machine=True)
    processes: int = setting(1, "Number of training processes.", low=1, machine=True)
    log: str = setting("", "tensorboard or wandb: keep the losses of every epoch.", machine=True)
    checkpoint: Path | None = None  # a folder, where a file is written after every epoch
    resume: bool = False
    seed: int = 0

    def build(self) -> Attention:
        from blemish.detectors.attention.detector import Attention

        return Attention(self)


def check(config: AttentionConfig) -> None:
    """Raises `BlemishError` where two settings do not go together."""
    if config.pretrained and config.model != "resnet":
        raise BlemishError(f"--pretrained is for --model resnet; {config.model} learns from scratch.")
    if config.alternate == "last" and config.processes > 1:  # which may be more than the last batch has images
        raise BlemishError("--alternate last, as of --recipe study, takes one process; omit --processes.")


def batch_for(config: AttentionConfig, images: int) -> int:
    """The batch's size. Where the last, smaller batch is the attention's, a set no larger than a batch would never be
    reconstructed; then a batch is three fifths of it (of MVTec AD's 209 bottles 128 are)."""
    if config.alternate == "last" and images <= config.batch:
        return max(1, images * 3 // 5)
    return config.batch


def epochs_for(images: int) -> int:
    """As many as show the network SEEN images, at most MOST."""
    return min(MOST, max(1, round(SEEN / images)))
