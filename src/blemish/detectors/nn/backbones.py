"""Backbones: a pretrained network's feature maps at a few depths ("taps"), with normalisation, licence and source.

A name is `bundled` (ours, distilled on drawn images, see docs/model-card.md), `efficientnet-lite0` (trained on
ImageNet, from a Python package, see `imagenet`), any timm name (`resnet18`, also vision transformers, whose tokens
become a map: PatchCore is then the method of AnomalyDINO, Damm et al. 2025), or
`torchvision/NAME`. Options follow a question mark: of `mobilenetv2_100?pad_type=same&mean=0.498&std=0.5`, `mean` and
`std` (one number or three) are the normalisation, and everything else goes to the network's constructor. Without them,
a weights file's metadata say mean and std, and without these the network's own description.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from blemish.detectors.nn import imagenet
from blemish.detectors.nn.taps import Tap, blocks, default_stages, find_taps, outermost_last, survey
from blemish.detectors.nn.weights import WeightsFile, describe, lacking, put, unfit
from blemish.types import BlemishError

BUNDLED = Path(__file__).parent / "bundled.safetensors"
ARCHITECTURE = "mobilenetv2_100"  # of the bundled weights: its first five stages
BUNDLED_STAGES = {0: Tap("0", 16, 2), 1: Tap("1", 24, 4), 2: Tap("2", 32, 8), 3: Tap("3", 96, 16)}


class Backbone(nn.Module):
    """float32 images `(N, 3, H, W)` in 0..255, RGB -> one float32 feature map per tap, finest first."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        taps: Sequence[Tap],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        licence: str,
        source: str,
    ) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.taps = tuple(taps)
        self.licence = licence
        self.source = source
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] | dict[str, Tensor] = self.net((images - self.mean) / self.std)
        maps = list(features.values()) if isinstance(features, dict) else features
        return [_as_map(f, images.shape[-2:], tap) for f, tap in zip(maps, self.taps, strict=True)]


class _Request(NamedTuple):
    """The arguments of `load_backbone`, with the options from the name."""

    options: dict[str, Any]
    layers: Sequence[str]
    image_size: tuple[int, int]
    weights: WeightsFile | None
    random: bool

    def normalisation(self, what: str, default: Any) -> tuple[float, float, float]:
        """`mean` or `std`: as given in the name, else as the weights file says, else `default`."""
        if what in self.options:
            return _three(self.options.pop(what))
        return (self.weights.normalisation(what) if self.weights else None) or _three(default)


def load_backbone(
    name: str = imagenet.NAME,
    *,
    layers: Sequence[str] = (),
    image_size: tuple[int, int] = (256, 256),
    weights: Path | None = None,
    random: bool = False,
    seed: int = 0,
) -> Backbone:
    """Builds a backbone for images of `image_size` (height, width) with pretrained weights.

    `layers`: timm's indices of feature stages ("2", "3"; for a transformer the block's number, "-1" = last) or
    torchvision's module names; by default strides 8 and 16, of a transformer the last block.
    `weights`: a local .safetensors file, instead of a download. It may lack what the taps do not need (the classifier).
    `random`: untrained weights from `seed`, for controls and tests.
    Raises `BlemishError` for an unknown name or layer, and where weights are missing or do not fit.
    """
    base, _, query = name.partition("?")
    options: dict[str, Any] = {key: _literal(value) for key, value in parse_qsl(query)}
    request = _Request(options, layers, image_size, describe(weights) if weights else None, random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if base == "bundled":
            return _bundled(request)
        if base == imagenet.NAME:
            return _lite0(request)
        if base.startswith("torchvision/"):
            return _torchvision(base.removeprefix("torchvision/"), request)
        return _timm(base.removeprefix("timm/"), request)


def stages(name: str, image_size: tuple[int, int]) -> list[Tap]:
    """A backbone's feature stages, first to last, by the `layer` that `load_backbone(layers=...)` takes: one for each
    stride at which a module has parameters; of a transformer one for each block."""
    base = name.partition("?")[0]
    if base == "bundled":
        return list(BUNDLED_STAGES.values())
    if base.startswith("torchvision/"):
        from torchvision import models

        base = base.removeprefix("torchvision/")
        _torchvision_weights(base)  # raises for an unknown name
        with torch.device("meta"):  # shapes alone
            net = models.get_model(base, weights=None).eval()
        taps, learned = survey(net, image_size, base)
        ends = {taps[path].stride: path for path in outermost_last(taps)}
        return [taps[path] for path in blocks(taps) or [ends[stride] for stride in sorted(ends) if stride in learned]]
    base = imagenet.NETWORK if base == imagenet.NAME else base
    info = _probe(base.removeprefix("timm/"), image_size, {})[0].feature_info.info
    return [Tap(str(index), stage["num_chs"], stage["reduction"]) for index, stage in enumerate(info)]


def _bundled(request: _Request) -> Backbone:
    """Ours: the first five stages of a MobileNetV2 (Sandler et al. 2018) with our own weights, or those of a file."""
    import timm

    layers, file = request.layers, request.weights
    indices = [int(layer) for layer in layers if layer.isdecimal()] or [2, 3]
    net = timm.create_model(ARCHITECTURE, features_only=True, feature_cls="getter", out_indices=(2, 3), pad_type="same")
    if not request.random:
        try:
            put(net.model, (file or describe(BUNDLED)).state(), net.model.state_dict())
        except RuntimeError as cause:
            raise unfit("the bundled backbone", file.file if file else BUNDLED, cause) from cause
    if not {*map(str, indices)} >= set(layers) or not set(indices) <= set(BUNDLED_STAGES):
        raise BlemishError(f"the bundled backbone has the layers 0 to 3, not {', '.join(layers)}; see --layers.")
    net.out_indices = sorted(set(indices))
    ours = "blemish, distilled on drawn images (docs/model-card.md)"
    return Backbone(
        net,
        [BUNDLED_STAGES[i] for i in net.out_indices],
        mean=request.normalisation("mean", 0.498),
        std=request.normalisation("std", 0.5),
        licence=file.licence if file else "Apache-2.0",
        source="random weights" if request.random else file.source if file else ours,
    )


def _lite0(request: _Request) -> Backbone:
    """EfficientNet-Lite0 (Google 2020), trained on ImageNet: with the weights beside this file or, for layers that are
    deeper, of the package; or as asked for with those of a file, or random."""
    for what in ("mean", "std"):
        if request.weights is None:
            request.options.setdefault(what, imagenet.NORMALISATION)
    if request.weights or request.random:
        return _timm(imagenet.NETWORK, request)
    backbone = _timm(imagenet.NETWORK, request._replace(random=True))
    net: nn.Module = backbone.net.model  # type: ignore[assignment]
    state = describe(imagenet.FIRST_STAGES).state()
    if any(key not in state for key in net.state_dict() if not key.endswith("num_batches_tracked")):
        state = imagenet.weights()
    try:
        put(net, state, state)
    except RuntimeError as cause:  # timm gave its layers other names
        raise unfit(imagenet.NAME, imagenet.FIRST_STAGES, cause) from cause
    backbone.licence, backbone.source = imagenet.LICENCE, imagenet.SOURCE
    return backbone


def _timm(name: str, request: _Request) -> Backbone:
    import timm

    options, layers, image_size, weights, random = request
    default = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    mean, std = (request.normalisation(what, getattr(default, what, 0)) for what in ("mean", "std"))
    probe, build = _probe(name, image_size, options)
    if unknown := [layer for layer in layers if not layer.removeprefix("-").isdecimal()]:
        raise BlemishError(f"{name} counts its layers; give numbers with --layers, not {', '.join(unknown)}.")
    chosen = [int(layer) for layer in layers] or default_stages(probe.feature_info.reduction())
    overlay = {"pretrained_cfg_overlay": _local(weights)} if weights else {}
    try:
        with _logged("timm.models") as messages:
            net = timm.create_model(name, pretrained=not random, out_indices=tuple(sorted(chosen)), **build, **overlay)
        # timm leaves layers random that a file lacks, and only logs it.
        warnings = [message for message in messages if message.startswith("Missing keys")]
        missing = {key for warning in warnings for key in re.findall(r"[\w.]+", warning)}
        lacking(key for key in net.model.state_dict() if key in missing)
    except (AssertionError, IndexError):
        stages = len(probe.feature_info.info)
        raise BlemishError(
            f"{name} has no layers {', '.join(layers)}; take some of 0 to {stages - 1} (or a transformer's blocks)."
        ) from None
    except (OSError, RuntimeError) as cause:
        raise unfit(name, weights.file if weights else None, cause) from cause
    taps = [
        Tap(str(d), c, r)
        for d, c, r in zip(sorted(chosen), net.feature_info.channels(), net.feature_info.reduction(), strict=True)
    ]
    licence = weights.licence if weights else str(getattr(default, "license", None) or "not stated by timm")
    hub = getattr(default, "hf_hub_id", None) or getattr(default, "url", "")
    source = "random weights" if random else weights.source if weights else f"timm {hub}"
    return Backbone(net, taps, mean=mean, std=std, licence=licence, source=source)


def _probe(name: str, image_size: tuple[int, int], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The network without weights, and the options that it was built with. Raises `BlemishError` for an unknown
    name."""
    import timm

    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models(), 5))
        raise BlemishError(
            f"timm has no network called '{name}'{f' (near: {close})' if close else ''}; "
            "use a name from timm.list_models(), or torchvision/NAME."
        )
    build: dict[str, Any] = {"features_only": True, "feature_cls": "getter", **options}
    try:  # transformers are built for one input size, to which they resample their position embedding
        return timm.create_model(name, img_size=image_size, **build), {**build, "img_size": image_size}
    except TypeError:
        return timm.create_model(name, **build), build


def _torchvision(name: str, request: _Request) -> Backbone:
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    options, layers, image_size, weights, random = request
    known = _torchvision_weights(name)
    preset = known.transforms()
    mean, std = (request.normalisation(what, getattr(preset, what)) for what in ("mean", "std"))
    local = weights if not random else None
    try:
        # A file fills the cut network only: VGG16's dense layers alone would take half a gigabyte.
        with torch.device("meta") if local else nullcontext():
            net = models.get_model(name, weights=None if random or local else known, **options)
    except (OSError, RuntimeError) as cause:
        raise unfit(name, None, cause) from cause
    net.eval()
    taps = find_taps(net, layers, image_size, name)
    features = create_feature_extractor(net, {tap.layer: tap.layer for tap in taps})
    if local:
        try:
            put(features, local.state(), net.state_dict())
        except RuntimeError as cause:
            raise unfit(name, local.file, cause) from cause
    terms = "BSD-3-Clause (torchvision); the weights' training data has its own terms"
    return Backbone(
        features,
        taps,
        mean=mean,
        std=std,
        licence=local.licence if local else terms,
        source="random weights" if random else local.source if local else f"torchvision {known}",
    )


def _torchvision_weights(name: str) -> Any:
    from torchvision import models

    try:
        return models.get_model_weights(name).DEFAULT
    except ValueError:
        raise BlemishError(
            f"torchvision has no network called '{name}'; see torchvision.models.list_models()."
        ) from None


def _as_map(features: Tensor, size: torch.Size, tap: Tap) -> Tensor:
    """Tokens `(N, 1 + T, C)` of a torchvision transformer become a map; a map stays as it is."""
    if features.ndim == 4:
        return features
    height = size[0] // tap.stride
    tokens = features[:, 1:].transpose(1, 2)  # without the class token
    return tokens.reshape(tokens.shape[0], tokens.shape[1], height, -1)


@contextmanager
def _logged(logger: str) -> Iterator[list[str]]:
    """Collects the messages that a library logs meanwhile, instead of printing them."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(logger)
    propagate, log.propagate = log.propagate, False
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
        log.setLevel(level)


def _local(weights: WeightsFile) -> dict[str, Any]:
    """timm's description of weights in a local file."""
    heads = (
        shape[0] for key, shape in weights.shapes.items() if shape and key.startswith(("classifier", "fc", "head"))
    )
    # Any other number than that of the cut network, which is 0: then timm drops the classifier, and lets layers lack.
    return {"file": str(weights.file), "num_classes": next(heads, 1)}


def _three(value: Any) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),) * 3
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3:
        raise BlemishError(f"mean and std are one number or three, not {value!r}.")
    return numbers


def _literal(text: str) -> Any:
    """`"0.5"` -> 0.5, `"1,2,3"` -> (1, 2, 3), `"same"` -> "same"."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
