"""Quickly trained detectors of every kind, and the runtimes that must agree on them: for tests/test_parity.py and
bench/parity.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from blemish.detectors.cam.detector import Cam
from blemish.detectors.interface import Graph
from blemish.detectors.registry import config_of
from blemish.images import load_image, read_size
from blemish.inference import bundle
from blemish.inference.inspector import Inspector
from blemish.options import as_json
from blemish.training import card as card_of
from blemish.training.config import DecisionRule
from blemish.training.export import Pixels, export, in_onnxruntime, predict
from blemish.types import Prediction, Runner, Sample, Verdict
from tests.support import write_image

SIZE = (64, 96)
BATCH = 32
ODD = ((1, 1), (17, 23), (131, 97), (640, 3), (3, 640), (20, 30), (301, 403))  # height, width


@dataclass(frozen=True)
class Case:
    """A detector and a map; cases that differ only in `map` share the trained detector."""

    detector: str
    settings: dict[str, Any] = field(default_factory=dict)
    map: str = ""


_SMALL = {"backbone": "test_resnet", "random_weights": True, "epochs": 1}
# There are ReLUs between this layer and the score, so the maps are made of gradients that jump. There is no max
# pooling, whose ties in an image of one colour are decided by rounding.
_INSIDE = _SMALL | {"map_layer": "2"}
_AUTO = {"epochs": 4, "width": 4, "latent": 4}
CASES = {
    "patchcore": Case("patchcore", {"max_bank": 200}),
    "patchcore, a transformer": Case(
        "patchcore", {"backbone": "test_vit", "random_weights": True, "max_bank": 200, "place": "no"}
    ),
    "hybrid": Case("hybrid", {"max_bank": 200, "use_defects": "yes", "epochs": 1, "head_folds": 2, "heads": 2}),
    "cam, defect types": Case("cam", _SMALL | {"classes": "types"}),
    "cam, gradcam": Case("cam", _INSIDE, "gradcam"),
    "cam, gradcam++": Case("cam", _INSIDE, "gradcam++"),
    "cam, layercam": Case("cam", _INSIDE, "layercam"),
    "cam, hirescam": Case("cam", _INSIDE, "hirescam"),
    "attention, unet": Case(
        "attention", _AUTO | {"map": "attention", "input": "difference", "standardise": "whole", "sigma": 0.0}
    ),
    "attention, autoencoder": Case("attention", _AUTO | {"model": "autoencoder", "map": "combined", "residual": "l1"}),
    "attention, vae": Case("attention", _AUTO | {"model": "vae", "map": "attention", "input": "image"}),
    "attention, resnet-vae": Case("attention", _AUTO | {"model": "resnet-vae", "map": "attention", "input": "image"}),
    "attention, study": Case("attention", _AUTO | {"model": "study", "map": "attention", "center": "image"}),
    "attention, resnet": Case("attention", _AUTO | {"model": "resnet", "map": "residual"}),
}


class Made(NamedTuple):
    """A case's graph in torch, its bundle, and images that are not training images."""

    graph: Graph
    bundle: Path
    tests: list[Sample]  # of all sizes
    batch: list[Sample]  # BATCH of one size

    @property
    def model(self) -> Path:
        return self.bundle / bundle.MODEL

    @property
    def gated(self) -> bool:
        return self.graph.gated

    def verdicts(self, prediction: Prediction) -> list[Verdict]:
        """Of `tests`, by the decision in the bundle's card."""
        inspector = Inspector(self.bundle, threads=1)
        return [
            inspector.judge(prediction[i], read_size(sample.path), sample.name) for i, sample in enumerate(self.tests)
        ]


def drawn(number: int, size: tuple[int, int] = (60, 80), *, kind: str = "good") -> npt.NDArray[np.uint8]:
    """A striped tile `(*size, 3)`; every second one is coloured. `kind` "bright" or "dark" adds a spot."""
    random = np.random.default_rng(number)
    width = size[1]
    stripes = 110 + 40 * np.sin(np.arange(width) * 80 / width / 3 + random.uniform(0, 6))
    pixels = np.repeat((stripes + random.normal(0, 8, size))[..., None], 3, axis=2)
    if number % 2:
        pixels = pixels * (1.1, 1.0, 0.8) + random.normal(0, 4, pixels.shape)
    if kind != "good":
        side = max(1, min(size) // 5)
        top, left = (int(random.integers(length - side + 1)) for length in size)
        pixels[top : top + side, left : left + side] = 245 if kind == "bright" else 5
    return np.clip(pixels, 0, 255).astype(np.uint8)


def written(folder: Path, start: int, count: int, kind: str = "good", size: tuple[int, int] = (60, 80)) -> list[Sample]:
    """`count` such tiles as files, with numbers from `start`."""
    samples = []
    for number in range(start, start + count):
        name = f"{kind}-{size[0]}x{size[1]}-{number}.png"
        path = write_image(folder / name, drawn(number, size, kind=kind))
        label = "good" if kind == "good" else "anomaly"
        samples.append(Sample(path, name, label, "" if kind == "good" else kind))  # type: ignore[arg-type]
    return samples


_LEARNED: dict[str, Any] = {}


def make(name: str, folder: Path) -> Made:
    """Trains a case of CASES and writes its bundle, with a decision as `train` makes it."""
    case = CASES[name]
    images = folder / "images"
    good = written(images, 0, 16)
    bad = [*written(images, 20, 5, "bright"), *written(images, 30, 5, "dark")]
    key = f"{case.detector} {case.settings}"
    if key not in _LEARNED:
        map_setting = {"map": case.map} if case.map else {}
        config: Any = config_of(case.detector)
        detector = config(image_size=SIZE, **case.settings, **map_setting).build()
        _LEARNED[key] = detector.fit([*good, *bad] if config.traits.learns_from_defects else good)
    detector = _LEARNED[key]
    if isinstance(detector, Cam) and case.map:
        detector = detector.with_map(case.map, detector.config.map_layer)
    graph = detector.graph()
    where = folder / "bundle"
    where.mkdir(parents=True)
    export(graph, where / bundle.MODEL)
    held_out = written(images, 100, 24)
    calibration = predict(in_onnxruntime(where / bundle.MODEL), held_out)
    rule = DecisionRule(false_alarms=0.1, review=0.3)
    bundle.write(
        where,
        bundle.Card(
            created="",
            product="tiles",
            detector=case.detector,
            settings=as_json(detector.config),
            image_size=SIZE,
            data=bundle.Data(source="", layout="", train=16, calibration=24, test=0, seed=0, sha256=""),
            decision=card_of.decision(rule, calibration, [sample.name for sample in held_out], "split"),
            parity={},
            backbone={"name": "random", "licence": "none"},
            classes=detector.classes,
            licences={},
            versions={},
        ),
    )
    batch = written(images, 200, BATCH)
    tests = [*batch[:8], *written(images, 300, 4, "bright"), *written(images, 310, 4, "dark")]
    for size in ODD:  # a grey and a coloured one of each
        tests += [*written(images, 400, 1, "good", size), *written(images, 401, 1, "bright", size)]
    return Made(graph, where, tests, batch)


def through(inspector: Inspector) -> Runner:
    """Runs a bundle as `blemish inspect` does."""
    return lambda images: inspector.predict(images[0])


def in_openvino(file: Path, threads: int = 1) -> Runner:
    """Runs a graph in OpenVINO in float32; its default is bfloat16 on processors that support it."""
    # Without this, OpenVINO sends telemetry at every import.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(file), "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(images: Pixels) -> Prediction:
        outputs = compiled({"images": images})
        # Copied, because the next run overwrites the outputs.
        return Prediction.named({name: np.array(outputs[name]) for name in names})

    return run


def predict_together(run: Runner, samples: Sequence[Sample]) -> Prediction:
    """Like `predict`, with all images (of one size) in one batch."""
    return run(np.stack([load_image(sample.path) for sample in samples]))
