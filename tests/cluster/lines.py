"""Small images of two lines, with a detector that takes its time, for runs that are killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from tests.support import write_image
from tests.tiny import counting, tensor

BRIGHT = 230  # the grey level on which `patient` takes `LONG`


def pixels(level: float, seed: int = 0) -> npt.NDArray[np.uint8]:
    """An image (6, 8, 3) with that mean, about."""
    noise = np.random.default_rng(seed).normal(level, 3, (6, 8, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def write(folder: Path, count: int, lines: int = 2) -> list[Path]:
    """Writes images with means from 40 to 119: good, to be reviewed and anomalies of the tiny bundle."""
    files = []
    for number in range(count):
        file = folder / f"line{number % lines}" / f"{number:04}.png"
        write_image(file, pixels(40 + 37 * number % 80, number))
        files.append(file)
    return files


def patient(rounds: int, bright: int = 10**12) -> Callable[[onnx.GraphProto], None]:
    """A change of the tiny bundle's graph, which goes round in a loop so many times, and on a bright image longer."""

    def change(graph: onnx.GraphProto) -> None:
        nodes = [
            helper.make_node("ReduceMean", ["pixels"], ["grey"], keepdims=0),
            helper.make_node("Greater", ["grey", "limit"], ["is bright"]),
            helper.make_node("Where", ["is bright", "bright rounds", "rounds"], ["all rounds"]),
            helper.make_node("Loop", ["all rounds", "", "one"], ["count"], body=counting()),
            helper.make_node("Mul", ["count", "zero"], ["nothing"]),
        ]
        for place, node in enumerate(nodes, 1):
            graph.node.insert(place, node)
        graph.node[-1].input[0] = "sum"
        graph.node.insert(len(graph.node) - 1, helper.make_node("Add", ["column", "nothing"], ["sum"]))
        graph.initializer.extend(
            [
                tensor("limit", BRIGHT, np.float32),
                tensor("zero", 0.0, np.float32),
                tensor("rounds", rounds),
                tensor("bright rounds", bright),
            ]
        )

    return change
