"""`blemish sweep`: tries many settings of one detector and chooses the best ones without the test split.

A validation split is held out of the training images, and some of its good images get corrupted copies. Every cell of
the grid learns from the remaining training images and is measured on the validation split. Only the chosen settings are
then trained on all training images and tested.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from blemish.data.unusable import explained
from blemish.detectors.interface import DetectorConfig
from blemish.detectors.registry import settings_for
from blemish.files import kept, write_text
from blemish.inference import bundle
from blemish.training.cell import Cell, Measure, Row, json_of, key_of, one_by_one
from blemish.training.config import TrainConfig
from blemish.training.grid import cell_settings, parse_grid
from blemish.training.pipeline import train
from blemish.training.splits import auto_size, divide, read_data
from blemish.training.validation import FIGURES, digest, hold_out, read_validation, write_validation
from blemish.types import BlemishError, Progress, Sample, silent

ROWS, IDENTITY, VALIDATION, CHOSEN, CELLS = "sweep.csv", "sweep.json", "validation", "chosen", ".cells"
RULE = "highest mean of image AUROC and pixel AUROC on the validation split, averaged over seeds"


@dataclass(frozen=True)
class SweepConfig:
    """The arguments of `blemish sweep`. `seed` is that of the split, and of the detector where the grid names none."""

    data: Path
    out: Path
    grid: str
    detector: str = "attention"
    image_size: tuple[int, int] | None = None  # height, width, if the grid names none; None = from the images
    layout: str = "auto"
    false_alarms: float = 0.05
    validation: float = 0.2  # share of the training images that is held out
    seed: int = 0
    test: bool = True  # train and test the chosen settings
    overwrite: bool = False
    evidence: bool = True  # the bundle of the chosen run carries images, see TrainConfig


@dataclass(frozen=True)
class Candidate:
    """Cells that differ only in their seed: means of FIGURES and seconds, and the standard deviation `std` (n - 1) of
    "choice", None for a single seed. `figures` is empty if a seed failed."""

    options: dict[str, str]
    seeds: tuple[str, ...]
    figures: dict[str, float]
    std: float | None
    seconds: float
    error: str = ""


class Sweep(NamedTuple):
    """The result. `candidates` are sorted, the best first; `metrics` are those of the chosen run on the test split,
    None if no test was asked for."""

    folder: Path
    rows: tuple[Row, ...]
    candidates: tuple[Candidate, ...]
    metrics: dict[str, Any] | None
    warnings: tuple[str, ...]

    @property
    def chosen(self) -> Candidate:
        return self.candidates[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": RULE,
            "chosen": asdict(self.chosen),
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "metrics": self.metrics,
        }


def sweep(config: SweepConfig, progress: Progress = silent, measure: Measure = one_by_one) -> Sweep:
    """Measures every cell of the grid and trains the best one. Writes `config.out`: `sweep.csv` (a row for each cell,
    written as soon as it is measured), `validation/`, `sweep.json` (what the rows depend on), and the run `chosen/`.

    `measure` measures the cells: one after another, or as `cluster.sweep` does.

    If `config.out` already holds this sweep, cells that have figures are not computed again. Raises `BlemishError` if
    the images cannot support what was asked, if the folder holds another sweep, and if every cell fails.
    """
    cells = parse_grid(config.grid)
    defaults = settings_for(config.detector, {})
    _refuse(config, defaults, cells)
    names = (ROWS, IDENTITY, VALIDATION, CHOSEN, CELLS, f".{CHOSEN}.training", f".{CHOSEN}.json")
    with kept(config.out, "sweep", names, overwrite=config.overwrite, resume=True, reads=[config.data]):
        return _sweep(config, cells, defaults, progress, measure)


def _sweep(
    config: SweepConfig,
    cells: Sequence[dict[str, str]],
    defaults: DetectorConfig,
    progress: Progress,
    measure: Measure,
) -> Sweep:
    final = _final_training(config, defaults)
    data = read_data(final.data, final.layout, progress)
    divided = divide(data, final.split_rule, final.decision_rule, defaults.traits)
    train_split = divided.split.train
    near_duplicates = [[data.samples[i].name for i in group] for group in data.groups]
    with explained(data.unusable):
        learning, held_out = hold_out(train_split, config.validation, config.seed, near_duplicates)
    image_size = config.image_size or auto_size(train_split, defaults.image_size[0] * defaults.image_size[1])

    identity = _identity(config, data.samples, image_size, defaults)
    if not (config.out / IDENTITY).exists():
        _start(config, identity, learning, held_out, progress)
    validation = _resume(config.out, identity)
    rows = _measure_cells(config, cells, image_size, learning, validation, progress, measure)
    shutil.rmtree(config.out / CELLS, ignore_errors=True)

    def without_seed(row: Row) -> str:
        return key_of(cell_settings(config.detector, {**row.options, "seed": "0"}, image_size, 0))

    candidates = rank(rows, without_seed)
    best = candidates[0]
    if best.error:
        raise BlemishError(f"Every cell of the grid failed; the first error: {best.error}")
    metrics = None
    if config.test:
        settings = cell_settings(config.detector, {**best.options, "seed": best.seeds[0]}, image_size, config.seed)
        metrics = _train_chosen(replace(final, settings=settings, image_size=settings.image_size), progress)
    return Sweep(config.out, rows, candidates, metrics, (*divided.warnings, *data.warnings))


def _refuse(config: SweepConfig, defaults: DetectorConfig, cells: Sequence[dict[str, str]]) -> None:
    """Raises `BlemishError` before any work for a detector or an option that a sweep cannot use."""
    if defaults.traits.learns_from_defects:
        raise BlemishError(
            f"{config.detector} learns from defective images too, and a sweep makes its own; compare its settings "
            f"by blemish train --detector {config.detector}, a classifier's with --folds."
        )
    for cell in cells:
        cell_settings(config.detector, cell, defaults.image_size, config.seed)


def _final_training(config: SweepConfig, defaults: DetectorConfig) -> TrainConfig:
    """The training of the chosen settings, which are not known yet. The validation split chooses the settings, so it
    must not set the threshold as well: `calibrate="split"` takes the threshold from images that no cell learns from or
    is measured on."""
    return TrainConfig(
        config.data,
        config.out / CHOSEN,
        settings=defaults,
        layout=config.layout,
        seed=config.seed,
        false_alarms=config.false_alarms,
        overwrite=True,
        evidence=config.evidence,
        calibrate="split",
    )


def _identity(
    config: SweepConfig, samples: Sequence[Sample], image_size: tuple[int, int], defaults: DetectorConfig
) -> dict[str, Any]:
    """What the rows depend on besides their options: two sweeps with the same identity may share their rows."""
    return {
        "detector": config.detector,
        "images": digest(samples),
        "validation": config.validation,
        "seed": config.seed,
        "false alarms": config.false_alarms,
        "image size": list(image_size),
        "defaults": json_of(defaults),
    }


def _start(
    config: SweepConfig,
    identity: dict[str, Any],
    learning: Sequence[Sample],
    held_out: Sequence[Sample],
    progress: Progress,
) -> None:
    """Writes the validation split and, last, the identity."""
    out = config.out
    shutil.rmtree(out / VALIDATION, ignore_errors=True)  # a killed process may have begun it
    write_validation(out / VALIDATION, held_out, learning, config.seed, progress)
    written = {**identity, "corrupted": digest(read_validation(out / VALIDATION))}
    write_text(out / IDENTITY, json.dumps(written, indent=1) + "\n")


def _measure_cells(
    config: SweepConfig,
    cells: Sequence[dict[str, str]],
    image_size: tuple[int, int],
    learning: Sequence[Sample],
    validation: Sequence[Sample],
    progress: Progress,
    measure: Measure,
) -> tuple[Row, ...]:
    """Measures the cells that have no figures yet, and writes the table after each of them."""
    keyed: dict[str, Cell] = {}
    for number, varied in enumerate(cells, 1):
        options = {**varied, "seed": varied.get("seed", str(config.seed))}
        settings = cell_settings(config.detector, options, image_size, config.seed)
        name = hashlib.sha256(key_of(settings).encode()).hexdigest()[:16]
        cell = Cell(options, settings, config.out / CELLS / name, f"cell {number}/{len(cells)}")
        keyed.setdefault(cell.key, cell)
    rows = {}
    for row in _read(config.out / ROWS):
        rows[key_of(cell_settings(config.detector, row.options, image_size, config.seed))] = row
    # Cells may be done in any order; the table has them in the grid's, and the first of the seeds is trained at last.
    order = [*(key for key in rows if key not in keyed), *keyed]
    left = [cell for key, cell in keyed.items() if key not in rows or rows[key].error]
    with closing(measure(left, learning, validation, progress)) as measured:
        for cell, row in measured:
            rows[cell.key] = row
            _write(config.out / ROWS, [rows[key] for key in order if key in rows])
    return tuple(rows[key] for key in order)


def shown(candidate: Candidate) -> str:
    """The options as text, such as `coreset=0.1, num-neighbours=9`; "the defaults" if the grid varies only the seed."""
    return ", ".join(f"{name.replace('_', '-')}={value}" for name, value in candidate.options.items()) or "the defaults"


def rank(rows: Iterable[Row], key: Callable[[Row], str] | None = None) -> tuple[Candidate, ...]:
    """The candidates sorted by the mean of `choice` over seeds, rounded to four decimals, the best first. Among equals
    the faster comes first. Candidates with a failed seed come last. Rows with the same `key` are one candidate; by
    default, rows that differ only in their seed."""
    key = key or (lambda row: json.dumps({**row.options, "seed": ""}, sort_keys=True))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return tuple(sorted(map(_candidate, groups.values()), key=_sort_key))


def _candidate(rows: Sequence[Row]) -> Candidate:
    error = next((row.error for row in rows if row.error), "")
    return Candidate(
        options={name: value for name, value in rows[0].options.items() if name != "seed"},
        seeds=tuple(row.options.get("seed", "") for row in rows),
        figures={} if error else {name: fmean(row.figures[name] for row in rows) for name in FIGURES},
        std=stdev(row.figures["choice"] for row in rows) if len(rows) > 1 and not error else None,
        seconds=fmean(row.seconds for row in rows),
        error=error,
    )


def _sort_key(candidate: Candidate) -> tuple[bool, float, float]:
    return bool(candidate.error), -round(candidate.figures.get("choice", 0.0), 4), candidate.seconds


def _resume(out: Path, identity: dict[str, Any]) -> list[Sample]:
    """The validation split of the sweep in `out`. Raises `BlemishError` if that is another sweep or was changed."""
    remedy = "choose another folder with -o, or start again with --overwrite."
    try:
        written = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
        validation = read_validation(out / VALIDATION)
        unchanged = written.pop("corrupted") == digest(validation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BlemishError(f"{out / IDENTITY} or the images beside it are damaged; {remedy}") from None
    if different := [name for name in identity if written.get(name) != identity[name]]:
        raise BlemishError(f"{out} is a sweep with other {', '.join(different)}; {remedy}")
    if not unchanged:
        raise BlemishError(f"The images in {out / VALIDATION} were changed since the sweep started; {remedy}")
    return validation


def _train_chosen(final: TrainConfig, progress: Progress) -> dict[str, Any]:
    """Trains and tests the chosen settings and returns the metrics; a complete run with the same settings is reused."""
    metrics: dict[str, Any]
    try:
        settings = json_of(final.settings)
        card = bundle.read(final.out).card
        as_asked = (bundle.EVIDENCE in card.files) == final.evidence
        if as_asked and all(settings.get(name) == value for name, value in card.settings.items()):
            metrics = json.loads((final.out / "metrics.json").read_text(encoding="utf-8"))
            return metrics
    except (BlemishError, OSError, ValueError):
        pass
    started = final.out.with_name(f".{final.out.name}.json")  # a killed training is resumed only with these settings
    same = started.is_file() and started.read_text(encoding="utf-8") == key_of(final.settings)
    write_text(started, key_of(final.settings))
    metrics = train(replace(final, resume=same), progress).metrics
    started.unlink()
    return metrics


def _read(file: Path) -> list[Row]:
    if not file.exists():
        return []
    rows = []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for line in csv.DictReader(lines):
            try:
                figures = {name: float(text) for name in FIGURES if (text := line.pop(name))}
                seconds, error = float(line.pop("seconds")), line.pop("error")
            except (KeyError, ValueError, TypeError):
                raise BlemishError(
                    f"{file} is not a table of this sweep; correct it, or start again with --overwrite."
                ) from None
            rows.append(Row({name: text for name, text in line.items() if text}, figures, seconds, error))
    return rows


def _write(file: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    options = dict.fromkeys(name for row in rows for name in row.options if name != "seed")
    text = io.StringIO()
    text.write("\ufeff")  # for Excel
    columns = (*options, "seed", *FIGURES, "seconds", "error")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row.options, **row.figures, "seconds": row.seconds, "error": row.error})
    write_text(file, text.getvalue())
