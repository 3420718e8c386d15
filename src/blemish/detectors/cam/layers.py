"""The stages of the backbone that a configuration names or implies."""

from __future__ import annotations

from typing import NamedTuple

from blemish.detectors.cam.config import CamConfig, pooled_by_default
from blemish.detectors.cam.maps import METHODS
from blemish.detectors.nn.backbones import stages
from blemish.types import BlemishError


class Layers(NamedTuple):
    """Stages of the backbone, by name."""

    order: tuple[str, ...]  # all stages, first to last
    pooled: tuple[str, ...]
    map: str
    frozen: str  # the last stage that is not trained; "" = all are

    def loaded(self) -> tuple[str, ...]:
        """Those whose outputs the backbone has to give."""
        return tuple(dict.fromkeys(filter(None, (self.frozen, self.map, *self.pooled))))


def chosen_layers(config: CamConfig) -> Layers:
    """The backbone's stages that the config names or implies. Raises `BlemishError` for a map or stages that there are
    not, or that do not fit together."""
    if config.map not in METHODS:
        raise BlemishError(f"there is no map called '{config.map}'; take one of {', '.join(METHODS)}.")
    taps = stages(config.backbone, config.image_size)
    order = tuple(tap.layer for tap in taps)
    pooled = config.layers or pooled_by_default(taps)
    if unknown := [layer for layer in (*pooled, config.map_layer) if layer and layer not in order]:
        raise BlemishError(f"{config.backbone} has no stage {unknown[0]}; its stages are {', '.join(order)}.")
    pooled = tuple(sorted(pooled, key=order.index))
    last = order.index(pooled[-1])
    map_layer = pooled[0] if config.map == "cam" else config.map_layer or pooled[-1]
    if order.index(map_layer) > last:
        raise BlemishError(f"--map-layer {map_layer} comes after the last pooled layer, {pooled[-1]}; see --layers.")
    if config.map_layer and config.map == "cam":
        raise BlemishError("a plain CAM shows the pooled layers, see --layers; for --map-layer take --map layercam.")
    frozen = order[last - config.unfreeze] if config.unfreeze <= last else ""
    return Layers(order, pooled, map_layer, frozen)
