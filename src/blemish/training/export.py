"""Exports the graph of a fitted detector to one ONNX file, and proves that both give the same predictions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime import InferenceSession
from torch import nn

from blemish.detectors.interface import Graph
from blemish.detectors.nn.nearest import candidates_in_onnx
from blemish.images import decode
from blemish.inference.graph_check import GraphError, check_finite
from blemish.inference.inspector import open_session
from blemish.types import BlemishError, Prediction, Progress, Runner, Sample, silent

Pixels = npt.NDArray[np.uint8]
TOLERANCE = 1e-3  # as a share of the range of the scores (and of the maps)
GATED = 0.05  # the same for single pixels of a map made of gradients; its mean difference must keep TOLERANCE


class ParityError(BlemishError):
    """The predictions of the exported graph differ from those of the detector; the text has the figures."""


@dataclass(frozen=True)
class Parity:
    """Largest differences between torch and onnxruntime, each as a share of the range of its values. Neighbours are not
    compared, because patches at the same distance may come in any order."""

    images: int
    scores: float
    maps: float
    probabilities: float = 0.0
    distances: float = 0.0
    tolerance: float = TOLERANCE

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def export(graph: Graph, file: Path) -> None:
    """Writes `graph` (uint8 `(N, H, W, 3)` -> scores, maps, and the rest of its `outputs`) as ONNX; N, H and W stay
    dynamic."""
    from torch.export import Dim

    names = graph.outputs
    for module in graph.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # the exporter takes twice as long to undo it; same values
    example = torch.zeros(
        2, 131, 100, 3, dtype=torch.uint8
    )  # sizes that no layer has, so that none is treated as fixed
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    for logger in ("torch.onnx", "onnxscript"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about future versions of the exporter
        program = torch.onnx.export(
            cast("nn.Module", graph),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=list(names),
            dynamic_shapes=(free,),
            opset_version=18,
            custom_translation_table={torch.ops.blemish.candidates.default: candidates_in_onnx},
        )
    if program is None:
        raise RuntimeError("the ONNX exporter returned nothing")
    model = program.model
    model.graph.name = "blemish"
    for value, axes in zip([model.graph.inputs[0], *model.graph.outputs], ["NHW", *"N" * len(names)], strict=True):
        assert value.shape is not None
        for index, axis in enumerate(axes):  # readable names instead of s77
            value.shape[index] = axis
    for node in model.graph:  # source paths of this machine, which are private and large
        node.metadata_props.clear()
    program.save(str(file), external_data=False)


def in_torch(graph: Graph) -> Runner:
    """Runs a detector's graph in PyTorch."""

    def run(images: Pixels) -> Prediction:
        with torch.inference_mode():
            outputs = graph(torch.tensor(images))
        return Prediction.named({name: output.numpy() for name, output in zip(graph.outputs, outputs, strict=True)})

    return run


def in_onnxruntime(file: Path) -> Runner:
    """Runs an exported graph as `blemish inspect` does."""
    return in_session(open_session(file.read_bytes()))


def in_session(session: InferenceSession) -> Runner:
    """Runs an exported graph that is already loaded."""
    names = [output.name for output in session.get_outputs()]
    return lambda images: Prediction.named(dict(zip(names, session.run(names, {"images": images}), strict=True)))


def predict(run: Runner, samples: Sequence[Sample], progress: Progress = silent, what: str = "images") -> Prediction:
    """Predictions of all samples, in order and one image at a time, because images may differ in size.

    The outputs are copied into arrays that are allocated once. Keeping small arrays allocated between large temporary
    ones would fragment the heap, by up to one large array for each image.

    Raises `GraphError` for an image of which a score, a map, a probability or a distance is NaN or infinite: no
    threshold means anything for that.
    """
    arrays: dict[str, np.ndarray] = {}
    for i, sample in enumerate(progress(samples, what, len(samples))):
        outputs = run(decode(sample)[None]).outputs()
        outputs.pop("class_maps", None)  # no metric needs them
        try:
            check_finite(outputs)
        except GraphError as cause:
            raise GraphError(f"{samples[i].name}: {cause}") from None
        if not arrays:
            arrays = {name: np.empty((len(samples), *out.shape[1:]), out.dtype) for name, out in outputs.items()}
        for name, array in arrays.items():
            array[i] = outputs[name][0]
    return Prediction(**arrays)


def prove_parity(ours: Prediction, exported: Prediction, names: Sequence[str], *, gated: bool = False) -> Parity:
    """Compares the predictions of torch (`ours`) and onnxruntime (`exported`) image by image.

    Raises `ParityError`, with the worst images and their figures, if a score or map differs by more than `TOLERANCE` of
    the range over all images. `gated` says that maps are made of gradients. These jump where a ReLU opens, and an
    activation close to zero may be rounded to different sides of it in two runtimes (in PyTorch's float32 and float64
    too). So single pixels may then differ by `GATED`, but the mean over a map by `TOLERANCE` only.
    """
    score_range = _range(ours.scores)
    map_range = _range(ours.maps)
    by_score = np.abs(ours.scores - exported.scores) / score_range
    differences = np.abs(ours.maps - exported.maps).reshape(len(names), -1) / map_range
    by_map = differences.max(1)
    by_class = np.zeros_like(by_score)  # differences of probabilities, whose range is 1
    if ours.probabilities is not None and exported.probabilities is not None:
        by_class = np.abs(ours.probabilities - exported.probabilities).max(1)
    maps = np.maximum(differences.mean(1), by_map * (TOLERANCE / GATED)) if gated else by_map
    by_distance = np.zeros_like(by_score)
    if ours.distances is not None and exported.distances is not None:
        distance_differences = np.abs(ours.distances - exported.distances).reshape(len(names), -1)
        by_distance = distance_differences.max(1) / _range(ours.distances)
    worst = np.maximum.reduce([by_score, maps, by_class, by_distance])
    parity = Parity(
        len(names), float(by_score.max()), float(by_map.max()), float(by_class.max()), float(by_distance.max())
    )
    if not worst.max() <= TOLERANCE:  # also catches NaN
        rows = "; ".join(
            f"{names[i]}: score {ours.scores[i]:.6g} in torch, {exported.scores[i]:.6g} in onnxruntime, "
            f"map off by {by_map[i]:.2g} of its range"
            for i in np.argsort(-worst)[:5]
        )
        count = int((~(worst <= TOLERANCE)).sum())
        raise ParityError(
            f"the exported graph disagrees with torch by {worst.max():.2g} of the range on {count} "
            f"of {len(names)} images, more than {TOLERANCE}; no bundle was written. Worst: {rows}."
        )
    return parity


def _range(values: np.ndarray) -> float:
    """The range, or the largest magnitude if the range is zero (one image, or identical ones)."""
    spread = float(values.max() - values.min())
    return spread or float(np.abs(values).max()) or 1.0
