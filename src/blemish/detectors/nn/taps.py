"""Taps: where a network's feature maps are taken, and which ones by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blemish.types import BlemishError

# Strides tapped by default: PatchCore's "layer 2 + layer 3" of a ResNet (Roth et al. 2022, section 4.2).
TAPS = (8, 16)


@dataclass(frozen=True)
class Tap:
    """A feature map that the backbone returns: `(N, channels, height / stride, width / stride)`."""

    layer: str
    channels: int
    stride: int


def survey(net: nn.Module, image_size: tuple[int, int], name: str) -> tuple[dict[str, Tap], set[int]]:
    """Runs one empty image through: each module's output as a tap, and the strides at which a module has parameters."""
    taps: dict[str, Tap] = {}
    learned: set[int] = set()
    handles = []
    for path, module in net.named_modules():

        def record(module: nn.Module, _: object, out: object, path: str = path) -> None:
            if not isinstance(out, Tensor):
                return
            if out.ndim == 4:
                taps[path] = Tap(path, out.shape[1], round(image_size[1] / out.shape[3]))
            elif out.ndim == 3:  # tokens (N, 1 + T, C)
                area = image_size[0] * image_size[1] / max(1, out.shape[1] - 1)
                taps[path] = Tap(path, out.shape[2], round(area**0.5))
            if path in taps and any(True for _ in module.parameters(recurse=False)):
                learned.add(taps[path].stride)

        handles.append(module.register_forward_hook(record))
    device = next(net.parameters()).device
    with torch.no_grad():
        try:
            net(torch.zeros(1, 3, *image_size, device=device))
        except AssertionError as cause:  # torchvision's transformers take one size only
            raise BlemishError(f"{name} does not take {image_size[0]}x{image_size[1]} images: {cause}") from cause
        finally:
            for handle in handles:
                handle.remove()
    return taps, learned


def outermost_last(taps: dict[str, Tap]) -> list[str]:
    """The modules' paths, the outermost last, so that a dictionary by stride keeps a stage and not a layer in it."""
    return sorted(filter(None, taps), key=lambda path: -path.count("."))


def blocks(taps: dict[str, Tap]) -> list[str]:
    """The blocks of a torchvision transformer."""
    return [path for path in taps if path.startswith("encoder.layers.") and path.count(".") == 2]


def find_taps(net: nn.Module, layers: Sequence[str], image_size: tuple[int, int], name: str) -> list[Tap]:
    """The taps of `layers`, by default each default stride's last module."""
    taps, _ = survey(net, image_size, name)
    if not layers:
        ends = {taps[path].stride: path for path in outermost_last(taps) if taps[path].stride in TAPS}
        if len(ends) < len(TAPS):  # a transformer
            ends = {taps[path].stride: path for path in blocks(taps)[-1:]} or ends
        layers = [ends[stride] for stride in sorted(ends)]
    missing = [layer for layer in layers if layer not in taps]
    if missing or not layers:
        raise BlemishError(
            f"{name} has no feature map at '{', '.join(missing)}'; it has for example {', '.join(list(taps)[1:12])}."
        )
    order = list(taps)
    return sorted((taps[layer] for layer in layers), key=lambda tap: (tap.stride, order.index(tap.layer)))


def default_stages(strides: Sequence[int]) -> list[int]:
    """The deepest stages at strides 8 and 16; the last block where all have one stride (a transformer)."""
    if len(set(strides)) == 1:
        return [-1]
    wanted = [max(i for i, s in enumerate(strides) if s == stride) for stride in TAPS if stride in strides]
    return wanted or [len(strides) - 1]
