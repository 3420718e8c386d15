"""`blemish sweep`: many settings of one detector, the best of them chosen without a look at the test part.

From the images that a training would learn from, a validation part is held out; of some of its good images,
corrupted copies are made. Every cell of the grid learns from the rest and is measured on that part. Only what was
chosen there is trained anew, from all images, and tested.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeVar

from blemish.detectors.interface import DetectorConfig
from blemish.detectors.registry import settings_for
from blemish.files import replacing, write_text
from blemish.inference import bundle
from blemish.options import as_json
from blemish.training.config import TrainConfig
from blemish.training.export import in_torch, predict
from blemish.training.grid import cell_settings, parse_grid
from blemish.training.pipeline import train
from blemish.training.splits import auto_size, divide, read_data
from blemish.training.validation import FIGURES, digest, hold_out, measure, read_validation, write_validation
from blemish.types import BlemishError, Progress, Sample, silent

T = TypeVar("T")
ROWS, IDENTITY, VALIDATION, CHOSEN, CELLS = "sweep.csv", "sweep.json", "validation", "chosen", ".cells"
RULE = "highest mean of image AUROC and pixel AUROC on the validation part, averaged over seeds"


@dataclass(frozen=True)
class SweepConfig:
    """What `blemish sweep` was asked. `seed` is the split's, and the detector's where the grid names none."""

    data: Path
    out: Path
    grid: str
    detector: str = "attention"
    image_size: tuple[int, int] | None = None  # height, width, where the grid names none; None = by the images
    layout: str = "auto"
    false_alarms: float = 0.05
    validation: float = 0.2  # share of the training images that are held out for choosing
    seed: int = 0
    test: bool = True  # train and test what was chosen
    overwrite: bool = False
    evidence: bool = True  # the chosen one's bundle carries images, see TrainConfig


@dataclass(frozen=True)
class Row:
    """One cell: `options` as the grid has them, FIGURES on the validation part (none where it failed), seconds of
    learning and inspecting, and why it failed."""

    options: dict[str, str]
    figures: dict[str, float]
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Candidate:
    """Cells that differ by their seed alone: means of FIGURES and seconds, and `std` (n - 1) of the figure that
    chooses, None of a single seed. No figures where a seed failed."""

    options: dict[str, str]
    seeds: tuple[str, ...]
    figures: dict[str, float]
    std: float | None
    seconds: float
    error: str = ""


class Sweep(NamedTuple):
    """What came of it. `candidates` best first; `metrics` are the chosen one's on the test part (None: not asked)."""

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


def sweep(config: SweepConfig, progress: Progress = silent) -> Sweep:
    """Measures every cell of the grid and trains the best one; writes `config.out`: `sweep.csv`, a row a cell as soon
    as it is known, `validation/`, `sweep.json` (what the rows rest on), and the run `chosen/`.

    Where `config.out` is such a sweep already, cells that have figures are not computed again. Raises `BlemishError`
    where the images cannot support what was asked, where the folder holds another sweep, and where no cell works.
    """
    cells = parse_grid(config.grid)
    base = settings_for(config.detector, {})
    if base.traits.learns_from_defects:
        raise BlemishError(
            f"{config.detector} learns from defective images too, and a sweep makes its own; compare its settings "
            f"with blemish train --detector {config.detector} --folds."
        )
    for cell in cells:  # refuses before the work, not after
        cell_settings(config.detector, cell, base.image_size, config.seed)
    _refuse_foreign(config.out, overwrite=config.overwrite)

    final = TrainConfig(config.data, config.out / CHOSEN, layout=config.layout, seed=config.seed)
    final = replace(final, settings=base, false_alarms=config.false_alarms, overwrite=True)
    # What chose the settings must not choose the threshold as well, so none of the images that teach does.
    final = replace(final, evidence=config.evidence, calibrate="split")
    data = read_data(final.data, final.layout, progress)
    divided = divide(data, final.split_rule, final.decision_rule, base.traits)
    samples, parts = data.samples, divided.split
    alike = [[samples[i].name for i in group] for group in data.groups]
    learning, held_out = hold_out(parts.train, config.validation, config.seed, alike)
    image_size = config.image_size or auto_size(parts.train, base.image_size[0] * base.image_size[1])

    def settings_of(options: dict[str, str]) -> DetectorConfig:
        return cell_settings(config.detector, options, image_size, config.seed)

    identity = {
        "detector": config.detector,
        "images": digest(samples),
        "validation": config.validation,
        "seed": config.seed,
        "false alarms": config.false_alarms,
        "image size": list(image_size),
        "defaults": _json(base),
    }
    if config.overwrite or not config.out.exists():
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(config.out) as out:
            write_validation(out / VALIDATION, held_out, learning, config.seed, progress)
            written = {**identity, "corrupted": digest(read_validation(out / VALIDATION))}
            (out / IDENTITY).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    validation = _resume(config.out, identity)

    known = {_key(settings_of(row.options)): row for row in _read(config.out / ROWS)}
    for number, cell in enumerate(cells, 1):
        options = {**cell, "seed": cell.get("seed", str(config.seed))}
        settings = settings_of(options)
        if (key := _key(settings)) in known and not known[key].error:
            continue
        within = _numbered(progress, f"cell {number}/{len(cells)}")
        known[key] = _cell(config, options, settings, learning, validation, within)
        _write(config.out / ROWS, known.values())
    shutil.rmtree(config.out / CELLS, ignore_errors=True)

    candidates = rank(
        known.values(), lambda row: _key(cell_settings(config.detector, {**row.options, "seed": "0"}, image_size, 0))
    )
    if candidates[0].error:
        raise BlemishError(f"No cell of the grid worked; the first said: {candidates[0].error}")
    metrics = None
    if config.test:
        settings = settings_of({**candidates[0].options, "seed": candidates[0].seeds[0]})
        metrics = _finish(replace(final, settings=settings, image_size=settings.image_size), progress)
    return Sweep(config.out, tuple(known.values()), candidates, metrics, (*divided.warnings, *data.warnings))


def shown(candidate: Candidate) -> str:
    """`coreset=0.1, num-neighbours=9`, as people read it; of a grid of seeds alone, the defaults."""
    return ", ".join(f"{name.replace('_', '-')}={value}" for name, value in candidate.options.items()) or "the defaults"


def rank(rows: Iterable[Row], alike: Callable[[Row], str] | None = None) -> tuple[Candidate, ...]:
    """Candidates best first, by the mean of `choice` over seeds, to four decimals; of equals the cheaper comes first.
    Those of which any seed failed come last. `alike` says which rows are one candidate."""
    alike = alike or (lambda row: json.dumps({**row.options, "seed": ""}, sort_keys=True))
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(alike(row), []).append(row)
    return tuple(sorted(map(_candidate, together.values()), key=_place))


def _candidate(rows: Sequence[Row]) -> Candidate:
    failed = next((row.error for row in rows if row.error), "")
    return Candidate(
        options={name: value for name, value in rows[0].options.items() if name != "seed"},
        seeds=tuple(row.options.get("seed", "") for row in rows),
        figures={} if failed else {name: fmean(row.figures[name] for row in rows) for name in FIGURES},
        std=stdev(row.figures["choice"] for row in rows) if len(rows) > 1 and not failed else None,
        seconds=fmean(row.seconds for row in rows),
        error=failed,
    )


def _place(candidate: Candidate) -> tuple[bool, float, float]:
    return bool(candidate.error), -round(candidate.figures.get("choice", 0.0), 4), candidate.seconds


def _cell(
    config: SweepConfig,
    options: dict[str, str],
    settings: DetectorConfig,
    learning: Sequence[Sample],
    validation: Sequence[Sample],
    progress: Progress,
) -> Row:
    unfinished = config.out / CELLS / hashlib.sha256(_key(settings).encode()).hexdigest()[:16]
    if settings.traits.trained_by_gradient:
        unfinished.mkdir(parents=True, exist_ok=True)
        settings = replace(settings, checkpoint=unfinished, resume=True)  # type: ignore[type-var]
    begun = time.perf_counter()
    figures, error = {}, ""
    try:
        detector = settings.build().fit(learning, progress)
        found = predict(in_torch(detector.graph()), validation, progress, "validation")
        figures = measure(validation, found)
    except BlemishError as refusal:
        error = str(refusal)
    except (RuntimeError, ValueError) as cause:  # torch's own: out of memory, layers that do not fit each other
        error = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    return Row(options, figures, round(time.perf_counter() - begun, 2), error)


def _refuse_foreign(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not (out / IDENTITY).is_file():
        kept = "is not replaced" if overwrite else "cannot be gone on with"
        raise BlemishError(f"{out} is no sweep of blemish's, so it {kept}; choose another folder with -o.")


def _resume(out: Path, identity: dict[str, Any]) -> list[Sample]:
    """The validation part of the sweep in `out`, after a look whether it is the same sweep."""
    remedy = "choose another folder with -o, or begin anew with --overwrite."
    try:
        written = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
        validation = read_validation(out / VALIDATION)
        whole = written.pop("corrupted") == digest(validation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BlemishError(f"{out / IDENTITY} or the images beside it are damaged; {remedy}") from None
    if other := [name for name in identity if written.get(name) != identity[name]]:
        raise BlemishError(f"{out} is a sweep with other {', '.join(other)}; {remedy}")
    if not whole:
        raise BlemishError(f"The images in {out / VALIDATION} were changed since the sweep began; {remedy}")
    return validation


def _finish(final: TrainConfig, progress: Progress) -> dict[str, Any]:
    """The test figures of what was chosen, from the run that is there already where it is the same."""
    try:
        settings = _json(final.settings)
        card = bundle.read(final.out).card
        as_asked = (bundle.EVIDENCE in card.files) == final.evidence
        if as_asked and all(settings.get(name) == value for name, value in card.settings.items()):
            found: dict[str, Any] = json.loads((final.out / "metrics.json").read_text(encoding="utf-8"))
            return found
    except (BlemishError, OSError, ValueError):
        pass
    begun = final.out.with_name(f".{final.out.name}.json")  # a killed training of another choice is not gone on with
    same = begun.is_file() and begun.read_text(encoding="utf-8") == _key(final.settings)
    write_text(begun, _key(final.settings))
    metrics = train(replace(final, resume=same), progress).metrics
    begun.unlink()
    return metrics


def _read(file: Path) -> list[Row]:
    if not file.exists():
        return []
    rows = []
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            try:
                figures = {name: float(text) for name in FIGURES if (text := line.pop(name))}
                seconds, error = float(line.pop("seconds")), line.pop("error")
            except (KeyError, ValueError, TypeError):
                raise BlemishError(f"{file} was changed; mend it, or begin anew with --overwrite.") from None
            rows.append(Row({name: text for name, text in line.items() if text}, figures, seconds, error))
    return rows


def _write(file: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    options = dict.fromkeys(name for row in rows for name in row.options if name != "seed")
    text = io.StringIO()
    columns = (*options, "seed", *FIGURES, "seconds", "error")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row.options, **row.figures, "seconds": row.seconds, "error": row.error})
    write_text(file, text.getvalue())


def _numbered(progress: Progress, cell: str) -> Progress:
    def numbered(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        return progress(items, f"{cell}, {what}", total)

    return numbered


def _json(settings: DetectorConfig) -> dict[str, Any]:
    """Settings as a card holds them."""
    found: dict[str, Any] = json.loads(json.dumps(as_json(settings)))
    return found


def _key(settings: DetectorConfig) -> str:
    return json.dumps(_json(settings), sort_keys=True)
