"""The whole story of `blemish train`: read, split, fit, export, prove parity, calibrate, evaluate, write."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from blemish import bundle, calibration, evidence, images, output
from blemish.data import layouts
from blemish.data.audit import Audit, audit
from blemish.data.split import Split, split
from blemish.evaluate.part import evaluate
from blemish.evaluate.reliability import draw_reliability, from_json
from blemish.inspector import Inspector, Look
from blemish.learn import card as card_of
from blemish.learn.attention import Attention
from blemish.learn.attention_config import AttentionConfig
from blemish.learn.cam import Cam
from blemish.learn.cam_config import CamConfig
from blemish.learn.crossval import cross_validate
from blemish.learn.export import export, in_torch, on_the_line, predict, prove_parity
from blemish.learn.patchcore import PatchCore, PatchCoreConfig
from blemish.learn.sources import Sources, write_evidence
from blemish.types import BlemishError, Prediction, Progress, Sample, Verdict, silent


class Origin(Protocol):
    """Where a network's weights come from."""

    @property
    def source(self) -> str: ...
    @property
    def licence(self) -> str: ...


class Detector(Protocol):
    """What every detector is: see design.md, "The interfaces"."""

    @property
    def backbone(self) -> Origin: ...
    def fit(self, samples: Sequence[Sample], progress: Progress = silent) -> Self: ...
    def graph(self) -> nn.Module: ...
    def sources(self) -> Sources: ...


DETECTORS: dict[str, tuple[type[Any], Callable[[Any], Detector]]] = {
    "patchcore": (PatchCoreConfig, PatchCore),
    "cam": (CamConfig, Cam),
    "attention": (AttentionConfig, Attention),
}

FROM_BOTH = ("cam",)  # learn from defective pictures too
_UNUSABLE = ("unreadable", "mask-unusable")


@dataclass(frozen=True)
class TrainConfig:
    """What `blemish train` was asked. `settings` is the detector's own config; `image_size` (height, width) goes into
    it, and is chosen from the pictures where it is None."""

    data: Path
    out: Path
    settings: Any = field(default_factory=PatchCoreConfig)
    detector: str = "patchcore"
    image_size: tuple[int, int] | None = None
    layout: str = "auto"
    false_alarms: float = 0.05
    # "promise": the limit keeps `false_alarms`. "class", of a classifier: the likelier class, and nothing is promised.
    decide: Literal["promise", "class"] = "promise"
    boxes: Literal["hills", "one"] = "hills"  # "one": the published single box of class activation maps
    pooled: bool = False  # forget which part the folder puts a picture in, and split anew
    folds: int = 0  # a classifier is also cross-validated, in so many folds
    repeats: int = 1  # so many times
    resume: bool = False  # go on where a killed training stopped
    test: float = 0.2  # share of good pictures kept for the test, where the folder does not say
    calibration: float = 0.2  # share of the remaining good pictures held out for the threshold
    min_area: float = 0.0002  # of a region, as a share of the picture
    seed: int = 0
    overlays: int = 300  # at most so many are drawn, the misjudged first
    evidence: bool = True  # the bundle carries pictures that normal patches come from
    evidence_size: float = 8.0  # MB that they may take
    overwrite: bool = False


class Run(NamedTuple):
    """What came of it, for people and programs; `metrics` is what `metrics.json` holds."""

    folder: Path
    metrics: dict[str, Any]
    warnings: tuple[str, ...]


def train(config: TrainConfig, progress: Progress = silent) -> Run:
    """Learns a detector from a folder of pictures and writes `config.out`: `bundle/`, `metrics.json`,
    `verdicts.jsonl` (test part), `overlays/`. The folder appears whole at the end, or not at all; what a training
    needs to go on with is meanwhile in `.NAME.training` beside it.

    Raises `BlemishError` where the pictures cannot support what was asked.
    """
    if config.out.exists() and not config.overwrite:
        raise BlemishError(f"{config.out} exists; choose another folder with -o, or replace it with --overwrite.")
    if config.out.exists() and not (config.out / "bundle" / bundle.CARD).is_file():
        raise BlemishError(
            f"{config.out} is no run of blemish's, so it is not replaced; choose another folder with -o."
        )
    build = DETECTORS[config.detector][1]
    both = config.detector in FROM_BOTH
    promise = config.decide == "promise"
    if not both and not promise:
        raise BlemishError(f"{config.detector} knows no classes; --decide class is for --detector cam.")
    if not both and config.folds:
        raise BlemishError(f"{config.detector} learns from good pictures alone; --folds is for --detector cam.")
    clock = _Clock()
    divided = divide(config, progress)
    parts = divided.parts
    good = [sample for sample in parts.calibration if sample.label != "anomaly"]
    height, width = config.settings.image_size
    settings = replace(config.settings, image_size=config.image_size or auto_size(parts.train, height * width))
    unfinished = config.out.with_name(f".{config.out.name}.training")
    trains = hasattr(settings, "checkpoint")  # by gradient, so that it can be gone on with
    if trains:
        if unfinished.exists() and not config.resume:
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True, exist_ok=True)
        settings = replace(settings, checkpoint=unfinished, resume=config.resume)
    clock.lap("read")

    detector = build(settings)
    crossed = None
    if isinstance(detector, Cam):
        if config.folds:
            crossed = cross_validate(
                detector,
                divided.samples,
                folds=config.folds,
                repeats=config.repeats,
                seed=config.seed,
                groups=divided.groups,
                false_alarms=config.false_alarms,
                progress=progress,
            )
            clock.lap("cross-validate")
        else:
            detector.keep([*parts.train, *parts.calibration], progress)
    detector.fit(parts.train, progress)
    if isinstance(detector, Cam) and parts.calibration:
        detector.calibrate(parts.calibration, progress)
    graph = detector.graph()
    clock.lap("fit")

    config.out.parent.mkdir(parents=True, exist_ok=True)
    with bundle.replacing(config.out) as folder:
        (folder / "bundle").mkdir(parents=True)
        export(graph, folder / "bundle" / bundle.MODEL)
        clock.lap("export")
        # Everything from here on is measured on what the line will run, not on what was trained.
        line = on_the_line(folder / "bundle" / bundle.MODEL)
        # Without a promise nothing is held out; good pictures that were learned from then only set the heat's scale.
        held_out = predict(line, good or _some_good(parts.train), progress, "calibration")
        tested = predict(line, parts.test, progress, "test") if parts.test else None
        clock.lap("inspect")
        proof = parts.test or good
        ours = predict(in_torch(graph), proof, progress, "parity")
        parity = prove_parity(ours, tested or held_out, [s.name for s in proof], gated=getattr(graph, "gated", False))
        clock.lap("parity")
        if config.evidence:
            file = folder / "bundle" / bundle.EVIDENCE
            write_evidence(detector.sources(), settings.image_size, file, config.evidence_size)
        card = bundle.write(
            folder / "bundle",
            bundle.Card(
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                product=config.data.resolve().name,
                detector=config.detector,
                settings=card_of.settings_of(settings),
                image_size=settings.image_size,
                data=card_of.data(config, divided.layout, parts),
                decision=card_of.decision(config, held_out),
                parity=parity.to_json(),
                backbone={
                    "name": settings.backbone,
                    "source": detector.backbone.source,
                    "licence": detector.backbone.licence,
                },
                classes=detector.classes if isinstance(detector, Cam) else (),
                licences={"blemish": "Apache-2.0", "backbone weights": detector.backbone.licence},
                versions=card_of.versions(),
            ),
        )
        metrics: dict[str, Any] = {
            "product": card.product,
            "detector": config.detector,
            "counts": card_of.counts(parts),
            "decision": card.decision.model_dump(mode="json", exclude={"scores", "peaks", "distances"}),
            "parity": parity.to_json(),
        }
        verdicts: list[Verdict] = []
        shown: dict[str, dict[str, Any]] = {}
        if tested:
            inspector = Inspector(folder / "bundle")
            verdicts = [
                inspector.judge(sample.name, images.size(sample.path), float(score), anomaly_map, likely)
                for sample, score, anomaly_map, likely in zip(
                    parts.test, tested.scores, tested.maps, _rows(tested), strict=True
                )
            ]
            balanced = getattr(settings, "head_weights", "auto") == "auto"
            metrics |= evaluate(parts.test, tested, verdicts, card.classes, balanced=balanced)
            clock.lap("evaluate")
            shown = draw(parts.test, tested, verdicts, inspector, folder, config.overlays, progress)
            clock.lap("overlays")
        if isinstance(detector, Cam | Attention):
            metrics["training"] = detector.records
        if isinstance(detector, Attention):
            metrics["score"] = {"share": detector.graph().share, "validation": detector.validation}
        if "reliability" in metrics:
            draw_reliability(from_json(metrics["reliability"]), folder / "reliability.svg", card.product)
        if crossed:
            metrics["cross_validation"] = crossed.metrics
            _write_lines(folder / "out_of_fold.jsonl", crossed.rows)
        metrics["seconds"] = clock.laps
        said = [
            {**asdict(verdict), "said": verdict.defect, "label": sample.label, "defect": sample.defect}
            | shown.get(sample.name, {})
            for sample, verdict in zip(parts.test, verdicts, strict=True)
        ]
        _write_lines(folder / "verdicts.jsonl", said)
        if getattr(settings, "log", "") and (unfinished / "log").is_dir():
            shutil.copytree(unfinished / "log", folder / "log", symlinks=True)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    if trains:
        shutil.rmtree(unfinished)
    return Run(config.out, metrics, divided.warnings)


class Divided(NamedTuple):
    """A folder's usable pictures and their parts; `groups` are indices of near duplicates among `samples`."""

    layout: str
    samples: list[Sample]
    groups: list[list[int]]
    parts: Split
    warnings: tuple[str, ...]  # what the audit has to say


def divide(config: TrainConfig, progress: Progress = silent) -> Divided:
    """Reads, audits and splits the folder as `train` does. Raises `BlemishError` where its pictures cannot support the
    promise."""
    both, promise = config.detector in FROM_BOTH, config.decide == "promise"
    dataset = layouts.read(config.data, config.layout)
    checked = audit(dataset, progress)
    samples, groups = usable(dataset, checked)
    if config.pooled:
        samples = [replace(sample, part="") for sample in samples]
    parts = split(
        samples,
        seed=config.seed,
        test=config.test,
        calibration=config.calibration,
        min_calibration=calibration.parts_needed(config.false_alarms) if promise else 0,
        groups=groups,
        anomalies_in_train=1 - config.test if both else 0.0,
        anomalies_in_calibration=config.calibration if both else 0.0,
    )
    if promise:  # refuses before the work, not after
        calibration.allowance(sum(sample.label != "anomaly" for sample in parts.calibration), config.false_alarms)
    warnings = tuple(problem.sentence for problem in checked.problems if problem.severity != "note")
    return Divided(dataset.layout, samples, groups, parts, warnings)


def usable(dataset: layouts.Dataset, checked: Audit) -> tuple[list[Sample], list[list[int]]]:
    """The samples that can be read, without masks that cannot, and the near-duplicate groups by their new indices."""
    of_kind = {kind: {n for p in checked.problems if p.kind == kind for n in p.names} for kind in _UNUSABLE}
    kept = [i for i, sample in enumerate(dataset.samples) if sample.name not in of_kind["unreadable"]]
    new = {old: index for index, old in enumerate(kept)}
    samples = [dataset.samples[i] for i in kept]
    samples = [replace(s, mask=None) if s.name in of_kind["mask-unusable"] else s for s in samples]
    return samples, [[new[i] for i in group if i in new] for group in checked.groups]


def auto_size(samples: Sequence[Sample], area: int = 256 * 256, multiple: int = 32) -> tuple[int, int]:
    """Height and width with about `area` pixels and the pictures' usual aspect, so that parts keep their shape.

    The median aspect of (at most 200) pictures, kept within 1:4 and 4:1; sides are multiples of `multiple`.
    """
    sizes = [images.size(sample.path) for sample in samples[:: max(1, len(samples) // 200)]]
    aspect = float(np.clip(np.median([width / height for width, height in sizes]), 0.25, 4))
    height = max(1, round((area / aspect) ** 0.5 / multiple)) * multiple
    return height, max(1, round(area / height / multiple)) * multiple


def draw(
    samples: Sequence[Sample],
    found: Prediction,
    verdicts: Sequence[Verdict],
    inspector: Inspector,
    folder: Path,
    most: int,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """What `output.draw` draws, in `folder`, of the test part under the pictures' own names, the misjudged first; gives
    the figures of each picture's evidence by its name."""
    wrong = [v.decision != (s.label or v.decision) for s, v in zip(samples, verdicts, strict=True)]
    order = sorted(range(len(samples)), key=lambda i: (not wrong[i], samples[i].name))[:most]
    memory = evidence.open_memory(inspector)
    shown: dict[str, dict[str, Any]] = {}
    for i in progress(order, "overlays", len(order)):
        parts = (found.maps, found.repaired, found.neighbours, found.distances)
        look = Look(verdicts[i], images.load(samples[i].path), *(part if part is None else part[i] for part in parts))
        said = evidence.gather(inspector, memory, look)
        drawn = output.draw(folder, samples[i].name, look, inspector.card.decision.heat, said)
        shown[samples[i].name] = {kind: drawn[kind] for kind in ("evidence", "counterfactual")}
    return shown


def _some_good(samples: Sequence[Sample], most: int = 100) -> list[Sample]:
    good = [sample for sample in samples if sample.label != "anomaly"]
    return good[:: max(1, len(good) // most)]


def _rows(found: Prediction) -> Sequence[npt.NDArray[np.float32] | None]:
    return [None] * len(found.scores) if found.probabilities is None else list(found.probabilities)


def _write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class _Clock:
    """Seconds spent, by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 2)
        self._last = now
