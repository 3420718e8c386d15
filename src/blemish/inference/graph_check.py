"""What the graph of a bundle may be. It comes from strangers, so it is checked before it runs.

The graph must hold all its weights: `external data` would be read from files below the current folder, or from memory.
Its input and outputs must be those that the card speaks of; what a graph leaves open is checked on every image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from blemish.inference.bundle import Card
from blemish.inference.bundle_files import BundleError, shown
from blemish.inference.bundle_format_1 import OUTPUTS
from blemish.types import BlemishError

if TYPE_CHECKING:
    from pathlib import Path

    import onnxruntime

INPUTS = ("images", "pictures")  # of format 2 and 1
MAX_FIELDS = 20_000_000  # of a graph's file, in all its messages: a bundle's has some ten thousand

# onnx.proto: for each message the fields that hold messages in which there may be a tensor. All others are skipped.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL = (13, 14)  # a tensor's external_data, and its data_location where that is not 0
_FLOATS = ("scores", "maps", "probabilities", "class_maps", "distances")  # outputs that must be finite
# The element type and the rank of each output; those that are not here are not asked for.
_TYPES = {
    "scores": ("float", 1),
    "maps": ("float", 3),
    "probabilities": ("float", 2),
    "class_maps": ("float", 4),
    "reconstruction": ("uint8", 4),
    "neighbours": ("int32", 3),
    "distances": ("float", 3),
}
_DTYPES = {"float": "float32", "uint8": "uint8", "int32": "int32"}


class GraphError(BlemishError):
    """The graph failed on an image, or gave what is no result. The sentence does not name the image."""


def check_file(model: bytes, path: Path) -> None:
    """Raises `BundleError` for a file that is no ONNX graph, and for one whose weights are partly in other files."""
    try:
        outside = _has_external_data(model)
    except (ValueError, IndexError):
        raise BundleError(f"{path}: onnxruntime cannot load the graph (it is no ONNX file); train it again.") from None
    if outside:
        raise BundleError(
            f"{path}: the graph takes weights from other files, which could be any on this computer, so it is refused; "
            "a bundle's graph holds all of its weights."
        )


def _has_external_data(model: bytes) -> bool:
    """Reads the wire format of protocol buffers, in which a message is a sequence of (number and wire type, value)."""
    waiting, left = [("model", 0, len(model))], MAX_FIELDS
    while waiting:
        message, start, end = waiting.pop()
        inside, is_tensor = _INSIDE[message], message == "tensor"
        while start < end:
            left -= 1
            key, start = _varint(model, start)
            number, wire = key >> 3, key & 7
            value = 0
            if wire == 0:
                value, start = _varint(model, start)
            elif wire == 2:
                length, start = _varint(model, start)
                if number in inside:
                    waiting.append((inside[number], start, start + length))
                start, value = start + length, 1
            elif wire in (1, 5):
                start, value = start + (8 if wire == 1 else 4), 1
            else:
                raise ValueError("groups, which ONNX does not use")
            if start > end or not left:
                raise ValueError("longer than the message around it, or endless")
            if is_tensor and number in _EXTERNAL and value:
                return True
    return False


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """An unsigned number in groups of seven bits, and where it ends."""
    value = data[start]
    if value < 128:
        return value, start + 1
    value &= 127
    for shift in range(7, 70, 7):
        start += 1
        byte = data[start]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start + 1
    raise ValueError("a number of more than ten bytes")


def check_session(session: onnxruntime.InferenceSession, card: Card, path: Path) -> None:
    """Raises `BundleError` where the graph's input or outputs are not as `docs/bundle.md` and the card say."""
    try:
        problem = next(_problems(session, card), None)
    except UnicodeDecodeError:
        problem = "a name in it is no text"
    if problem:
        raise BundleError(f"{path}: the graph is not one of this bundle's card ({problem}); train the bundle again.")


def _problems(session: onnxruntime.InferenceSession, card: Card) -> Iterator[str]:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        yield f"it has {len(inputs)} inputs instead of 1"
        return
    if inputs[0].name not in INPUTS:
        yield f"its input is called {shown(inputs[0].name)} instead of {INPUTS[0]}"
    yield from _input_problems(inputs[0].type, list(inputs[0].shape), card)
    outputs = {OUTPUTS.get(output.name, output.name): output for output in session.get_outputs()}
    for name in ("scores", "maps", *(["probabilities"] if card.classes else [])):
        if name not in outputs:
            yield f"it has no output {name}"
    for name, expected in _shapes(card).items():
        if name not in outputs:
            continue
        kind, shape = _TYPES[name][0], list(outputs[name].shape)
        if outputs[name].type != f"tensor({kind})":
            yield f"its output {name} is a {shown(outputs[name].type)} instead of a tensor({kind})"
        if shape and not _fits([size if isinstance(size, int) else None for size in shape], expected):
            yield f"its output {name} has the shape {_shape(shape)} instead of {_shape(expected)}"


def _input_problems(kind: str, shape: list[Any], card: Card) -> Iterator[str]:
    if kind != "tensor(uint8)":
        yield f"its input is a {shown(kind)} instead of a tensor(uint8)"
    frame = card.frame
    width, height = (frame.tile or frame.size) if frame else (None, None)
    # Only what never varies may be fixed: the size with a frame, and the number without tiles.
    allowed = ((1,) if not (frame and frame.tile) else (), (height,), (width,), (3,))
    fixed = [size if isinstance(size, int) else None for size in shape]
    if len(shape) != 4 or any(
        size is not None and size not in allow for size, allow in zip(fixed, allowed, strict=True)
    ):
        yield f"its input has the shape {_shape(shape)} instead of (N, H, W, 3)"


def _shapes(card: Card) -> dict[str, tuple[int | None, ...]]:
    """The shape of each output for a card; None is any number."""
    height, width = card.image_size
    return {
        "scores": (None,),
        "maps": (None, height, width),
        "probabilities": (None, len(card.classes) or None),
        "class_maps": (None, len(card.classes) - 1 if card.classes else None, height, width),
        "reconstruction": (None, height, width, 3),
        "neighbours": (None, None, None),
        "distances": (None, None, None),
    }


def _fits(shape: list[int | None], expected: tuple[int | None, ...]) -> bool:
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(a is None or b is None or a == b for a, b in pairs)


def _shape(sizes: list[Any] | tuple[Any, ...]) -> str:
    return f"({', '.join('?' if size is None else shown(str(size)) for size in sizes)})"


def names_asked(session: onnxruntime.InferenceSession) -> dict[str, str]:
    """The outputs that mean something to blemish: the graph's name of each -> its name in format 2."""
    names = {output.name: OUTPUTS.get(output.name, output.name) for output in session.get_outputs()}
    return {own: name for own, name in names.items() if name in _TYPES}


def check_outputs(outputs: Mapping[str, npt.NDArray[Any]], count: int, card: Card) -> None:
    """Raises `GraphError` for outputs of `count` images that are of another type or shape than the card says, and for
    numbers that are none: a NaN is neither above a threshold nor below it."""
    for name, expected in _shapes(card).items():
        values = outputs.get(name)
        if values is None:
            continue
        fits = isinstance(values, np.ndarray) and _fits(list(values.shape), (count, *expected[1:]))
        if not fits or values.dtype != _DTYPES[_TYPES[name][0]] or not values.size:
            what = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise GraphError(f"the detector gave {name} of another form ({what}) than its card says; train it again.")
    grids = [outputs[name].shape for name in ("neighbours", "distances") if name in outputs]
    if len(set(grids)) > 1:
        raise GraphError("the detector gave neighbours and distances of different shapes; train it again.")
    check_finite(outputs)


def check_finite(outputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raises `GraphError` where a score, a map, a probability or a distance is NaN or infinite."""
    for name in _FLOATS:
        values = outputs.get(name)
        if values is not None and not np.isfinite(values).all():
            raise GraphError(
                f"the detector gave no number (NaN or infinite) among its {name}, so nothing can be said of the image; "
                "look at the image, or train the detector again."
            )
