"""One cell of a sweep's grid: it learns, is measured on the validation split, and becomes a row of the table."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from blemish.detectors.interface import DetectorConfig
from blemish.options import as_json
from blemish.training.export import in_torch, predict
from blemish.training.validation import measure
from blemish.types import BlemishError, Progress, Sample

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What is measured: the detector's `settings`, and the grid's `options` that they were made from, as text. A
    detector that is trained by gradient keeps its checkpoint in `unfinished`. `title` is such as "cell 2/6"."""

    options: dict[str, str]
    settings: DetectorConfig
    unfinished: Path
    title: str

    @property
    def key(self) -> str:
        return key_of(self.settings)


@dataclass(frozen=True)
class Row:
    """One cell of the grid: its `options` as text, `validation.FIGURES` on the validation split (empty if it failed),
    seconds of training and prediction, and the error if it failed."""

    options: dict[str, str]
    figures: dict[str, float]
    seconds: float
    error: str = ""


# Measures cells, given the images to learn from and the validation split; each cell comes once, in any order.
Measure = Callable[
    [Sequence[Cell], Sequence[Sample], Sequence[Sample], Progress], Generator[tuple[Cell, Row], None, None]
]


def one_by_one(
    cells: Sequence[Cell], learning: Sequence[Sample], validation: Sequence[Sample], progress: Progress
) -> Generator[tuple[Cell, Row], None, None]:
    """The `Measure` of this process: one cell after another, in their order."""
    for cell in cells:
        yield cell, measure_cell(cell, learning, validation, _titled(progress, cell.title))


def measure_cell(cell: Cell, learning: Sequence[Sample], validation: Sequence[Sample], progress: Progress) -> Row:
    """The row of a cell. A refusal, or an error that torch raises, is the row's `error`."""
    settings = cell.settings
    if settings.traits.trained_by_gradient:
        cell.unfinished.mkdir(parents=True, exist_ok=True)
        settings = replace(settings, checkpoint=cell.unfinished, resume=True)  # type: ignore[type-var]
    start = time.perf_counter()
    figures, error = {}, ""
    try:
        detector = settings.build().fit(learning, progress)
        prediction = predict(in_torch(detector.graph()), validation, progress, "validation")
        figures = measure(validation, prediction)
    except BlemishError as refusal:
        error = str(refusal)
    except (RuntimeError, ValueError) as cause:  # raised by torch: out of memory, layers that do not fit together
        error = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
    if cell.unfinished.exists():
        shutil.rmtree(cell.unfinished)
    return Row(cell.options, figures, round(time.perf_counter() - start, 2), error)


def json_of(settings: DetectorConfig) -> dict[str, Any]:
    """The settings as read back from a card."""
    settings_json: dict[str, Any] = json.loads(json.dumps(as_json(settings)))
    return settings_json


def key_of(settings: DetectorConfig) -> str:
    """The same text for the same settings, however they were written."""
    return json.dumps(json_of(settings), sort_keys=True)


def _titled(progress: Progress, title: str) -> Progress:
    def titled(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        return progress(items, f"{title}, {what}", total)

    return titled
