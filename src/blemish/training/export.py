"""From a fitted detector's graph to one ONNX file, and the proof that both say the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime import InferenceSession
from torch import nn

from blemish.detectors.interface import Graph, WithoutItem
from blemish.detectors.nn.nearest import candidates_in_onnx
from blemish.images import decode
from blemish.inference.inspector import open_session
from blemish.types import BlemishError, Prediction, Progress, Runner, Sample, silent

Pixels = npt.NDArray[np.uint8]
TOLERANCE = 1e-3  # of the range of the scores (and of the maps)
GATED = 0.05  # the same for single cells of a gradient's map, whose mean difference then has to keep TOLERANCE


class ParityError(BlemishError):
    """The exported graph does not say what the detector said; the text carries the figures."""


@dataclass(frozen=True)
class Parity:
    """Largest disagreement of torch and onnxruntime, as a share of the range of the scores / of the maps / of the
    distances. Neighbours are not compared: among equals either is right."""

    images: int
    scores: float
    maps: float
    probabilities: float = 0.0
    distances: float = 0.0
    tolerance: float = TOLERANCE

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def export(graph: Graph | WithoutItem, file: Path, more: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes `graph` (uint8 `(N, H, W, 3)` -> scores, maps, and what else its `outputs` name) as ONNX; N, H and W stay
    free. `more` are examples of further inputs, whose shapes are fixed."""
    from torch.export import Dim

    names = graph.outputs
    for part in graph.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]  # the exporter takes twice as long to undo it; same values
    example = torch.zeros(2, 131, 100, 3, dtype=torch.uint8)  # sizes that no layer has, so none is taken for fixed
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    for talkative in ("torch.onnx", "onnxscript"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own future
        program = torch.onnx.export(
            cast("nn.Module", graph),
            (example, *(more or {}).values()),
            dynamo=True,
            verbose=False,
            input_names=["images", *(more or {})],
            output_names=list(names),
            dynamic_shapes=(free, *[None] * len(more or {})),
            opset_version=18,
            custom_translation_table={torch.ops.blemish.candidates.default: candidates_in_onnx},
        )
    if program is None:
        raise RuntimeError("the ONNX exporter returned nothing")
    model = program.model
    model.graph.name = "blemish"
    for value, axes in zip([model.graph.inputs[0], *model.graph.outputs], ["NHW", *"N" * len(names)], strict=True):
        assert value.shape is not None
        for index, axis in enumerate(axes):  # names for people, instead of s77
            value.shape[index] = axis
    for node in model.graph:  # where in this machine's files each came from: nobody else's business, and not small
        node.metadata_props.clear()
    program.save(str(file), external_data=False)


def in_torch(graph: Graph) -> Runner:
    """Runs a detector's graph where it was learned."""

    def run(images: Pixels) -> Prediction:
        with torch.inference_mode():
            found = graph(torch.tensor(images))
        return Prediction.named({name: output.numpy() for name, output in zip(graph.outputs, found, strict=True)})

    return run


def in_onnxruntime(file: Path) -> Runner:
    """Runs an exported graph as `blemish inspect` will."""
    return in_session(open_session(file.read_bytes()))


def in_session(session: InferenceSession) -> Runner:
    """Runs an exported graph that is open already."""
    names = [output.name for output in session.get_outputs()]
    return lambda images: Prediction.named(dict(zip(names, session.run(names, {"images": images}), strict=True)))


def predict(run: Runner, samples: Sequence[Sample], progress: Progress = silent, what: str = "images") -> Prediction:
    """What the graph says of all samples, in order and one image at a time, as they may differ in size.

    What is kept goes where room was made for all of it: small arrays between the large ones that come and go would
    keep the heap from shrinking, by up to one large one an image.
    """
    rooms: dict[str, np.ndarray] = {}
    for i, sample in enumerate(progress(samples, what, len(samples))):
        outputs = run(decode(sample)[None]).outputs()
        outputs.pop("class_maps", None)  # nothing is measured on them
        if not rooms:
            rooms = {name: np.empty((len(samples), *one.shape[1:]), one.dtype) for name, one in outputs.items()}
        for name, room in rooms.items():
            room[i] = outputs[name][0]
    return Prediction(**rooms)


def prove_parity(ours: Prediction, line: Prediction, names: Sequence[str], *, gated: bool = False) -> Parity:
    """Compares torch (`ours`) with onnxruntime (`line`) image by image.

    Raises `ParityError`, with the worst images and their figures, where a score or map departs by more than
    `TOLERANCE` of the range over all images. `gated` says that maps are made of a gradient: that jumps where a ReLU
    opens, and an activation within rounding of it may open in one runtime and not in the other, in PyTorch's own
    float32 and float64 too; so single cells may then be off by `GATED`, but not the map as a whole.
    """
    score_range = _range(ours.scores)
    map_range = _range(ours.maps)
    by_score = np.abs(ours.scores - line.scores) / score_range
    differences = np.abs(ours.maps - line.maps).reshape(len(names), -1) / map_range
    by_map = differences.max(1)
    by_class = np.zeros_like(by_score)  # of probabilities, whose range is 1
    if ours.probabilities is not None and line.probabilities is not None:
        by_class = np.abs(ours.probabilities - line.probabilities).max(1)
    maps = np.maximum(differences.mean(1), by_map * (TOLERANCE / GATED)) if gated else by_map
    by_distance = np.zeros_like(by_score)
    if ours.distances is not None and line.distances is not None:
        apart = np.abs(ours.distances - line.distances).reshape(len(names), -1)
        by_distance = apart.max(1) / _range(ours.distances)
    worst = np.maximum.reduce([by_score, maps, by_class, by_distance])
    parity = Parity(
        len(names), float(by_score.max()), float(by_map.max()), float(by_class.max()), float(by_distance.max())
    )
    if not worst.max() <= TOLERANCE:  # also catches NaN
        rows = "; ".join(
            f"{names[i]}: score {ours.scores[i]:.6g} in torch, {line.scores[i]:.6g} in onnxruntime, "
            f"map off by {by_map[i]:.2g} of its range"
            for i in np.argsort(-worst)[:5]
        )
        many = int((~(worst <= TOLERANCE)).sum())
        raise ParityError(
            f"the exported graph disagrees with torch by {worst.max():.2g} of the range on {many} "
            f"of {len(names)} images, more than {TOLERANCE}; no bundle was written. Worst: {rows}."
        )
    return parity


def _range(values: np.ndarray) -> float:
    """Of one image or identical ones the range is nothing; their magnitude stands in."""
    spread = float(values.max() - values.min())
    return spread or float(np.abs(values).max()) or 1.0
