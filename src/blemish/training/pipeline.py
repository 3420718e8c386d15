"""The whole story of `blemish train`: read, split, fit, export, prove parity, calibrate, evaluate, write."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

from torch import nn

from blemish.detectors.attention.config import AttentionConfig
from blemish.detectors.attention.detector import Attention
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.cam.detector import Cam
from blemish.detectors.nn.provenance import Sources, write_evidence
from blemish.detectors.patchcore.detector import PatchCore, PatchCoreConfig
from blemish.evaluation.evaluate import evaluate
from blemish.evaluation.reliability import draw_reliability, from_json
from blemish.files import replacing
from blemish.images import load_image, read_size
from blemish.inference import bundle, evidence, results
from blemish.inference.inspector import Inspection, Inspector
from blemish.reporting.report import report
from blemish.training import card as card_of
from blemish.training.crossval import cross_validate
from blemish.training.export import export, in_onnxruntime, in_torch, predict, prove_parity
from blemish.training.framing import check as check_frame
from blemish.training.framing import prepare
from blemish.training.leave_one_out import left_out
from blemish.training.splits import FROM_BOTH, auto_size, divide
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


@dataclass(frozen=True)
class TrainConfig:
    """What `blemish train` was asked. `settings` is the detector's own config; `image_size` (height, width) goes into
    it, and is chosen from the images where it is None."""

    data: Path
    out: Path
    settings: Any = field(default_factory=PatchCoreConfig)
    detector: str = "patchcore"
    image_size: tuple[int, int] | None = None
    tile: int = 0  # side in pixels of the images; 0 = they are seen as a whole
    overlap: int = 64  # of tiles
    roi: Path | None = None  # a mask or polygons: what lies outside never counts
    align: bool = False  # shifted and turned parts are brought to lie alike
    layout: str = "auto"
    false_alarms: float = 0.05
    review: float | None = None  # a larger rate, above which a person looks
    confidence: float | None = None  # with which the guarantee holds for this calibration set; None = on average
    # "leave-one-out", of PatchCore: every good image teaches, and is scored by a memory without its own item.
    # "auto": that, where one of the few highest held-out scores would set the threshold.
    calibrate: Literal["auto", "split", "leave-one-out"] = "auto"
    # "guarantee": the threshold keeps `false_alarms`. "class", of a classifier: the likelier class, and nothing is
    # guaranteed.
    decide: Literal["guarantee", "class"] = "guarantee"
    boxes: Literal["regions", "one"] = "regions"  # "one": the published single box of class activation maps
    pooled: bool = False  # forget which part the folder puts an image in, and split anew
    folds: int = 0  # a classifier is also cross-validated, in so many folds
    repeats: int = 1  # so many times
    resume: bool = False  # go on where a killed training stopped
    test: float = 0.2  # share of good images kept for the test, where the folder does not say
    calibration: float = 0.2  # share of the remaining good images held out for the threshold
    min_area: float = 0.0002  # of a region, as a share of the image
    seed: int = 0
    overlays: int = 300  # at most so many are drawn: the misjudged and the others in turn
    evidence: bool = True  # the bundle carries images that normal patches come from
    evidence_size: float = 8.0  # MB that they may take
    overwrite: bool = False


class Run(NamedTuple):
    """What came of it, for people and programs; `metrics` is what `metrics.json` holds."""

    folder: Path
    metrics: dict[str, Any]
    warnings: tuple[str, ...]


def train(config: TrainConfig, progress: Progress = silent) -> Run:
    """Learns a detector from a folder of images and writes `config.out`: `bundle/`, `metrics.json`,
    `verdicts.jsonl` (test part), `overlays/`. The folder appears whole at the end, or not at all; what a training
    needs to go on with is meanwhile in `.NAME.training` beside it.

    Raises `BlemishError` where the images cannot support what was asked.
    """
    frames = config.out.with_name(f".{config.out.name}.frames")  # what a frame makes of the images
    try:
        return _train(config, frames, progress)
    finally:
        shutil.rmtree(frames, ignore_errors=True)


def _train(config: TrainConfig, frames: Path, progress: Progress) -> Run:
    if config.out.exists() and not config.overwrite:
        raise BlemishError(f"{config.out} exists; choose another folder with -o, or replace it with --overwrite.")
    if config.out.exists() and not (config.out / "bundle" / bundle.CARD).is_file():
        raise BlemishError(
            f"{config.out} is no run of blemish's, so it is not replaced; choose another folder with -o."
        )
    build = DETECTORS[config.detector][1]
    both = config.detector in FROM_BOTH
    guarantee = config.decide == "guarantee"
    if not both and not guarantee:
        raise BlemishError(f"{config.detector} knows no classes; --decide class is for --detector cam.")
    if not guarantee and (config.review or config.confidence):
        raise BlemishError(
            "--review and --confidence are of a guarantee, and --decide class guarantees nothing; omit them."
        )
    if config.calibrate == "leave-one-out" and (config.detector != "patchcore" or config.confidence):
        raise BlemishError(
            "Leaving one out is for --detector patchcore, without --confidence: others would have to be learned once "
            "more for each image, and what it can guarantee holds on average; take --calibrate split."
        )
    if not both and config.folds:
        raise BlemishError(f"{config.detector} learns from good images alone; --folds is for --detector cam.")
    check_frame(config)
    clock = _Clock()
    divided = divide(config, progress)
    parts = divided.parts
    good = [sample for sample in parts.calibration if sample.label != "anomaly"]
    height, width = config.settings.image_size
    framed = prepare(config, divided, height * width, progress)
    image_size = framed.image_size if framed else config.image_size or auto_size(parts.train, height * width)
    settings = replace(config.settings, image_size=image_size)
    unfinished = config.out.with_name(f".{config.out.name}.training")
    trains = hasattr(settings, "checkpoint")  # by gradient, so that it can be gone on with
    if trains:
        if unfinished.exists() and not config.resume:
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True, exist_ok=True)
        settings = replace(settings, checkpoint=unfinished, resume=config.resume)
    framing, training_samples = None, {sample.name: [sample] for sample in (*parts.train, *parts.calibration)}
    if framed:
        framing = framed.framing
        parts = replace(parts, test=tuple(s for s in parts.test if s.name not in framed.unaligned))
        taught = (*parts.train, *(parts.calibration if both else ()))
        shutil.rmtree(frames, ignore_errors=True)
        training_samples = framed.training_samples(taught, frames, divided.items, progress)

    def training_samples_of(samples: Sequence[Sample]) -> list[Sample]:
        """What the detector is shown of them."""
        return [training_sample for sample in samples for training_sample in training_samples[sample.name]]

    warnings = (*divided.warnings, *(framed.warnings if framed else ()))
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
            detector.keep(training_samples_of([*parts.train, *parts.calibration]), progress)
    detector.fit(training_samples_of(parts.train), progress)
    if isinstance(detector, Cam) and parts.calibration:
        detector.calibrate(training_samples_of(parts.calibration), progress)
    graph = detector.graph()
    clock.lap("fit")

    config.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(config.out) as folder:
        (folder / "bundle").mkdir(parents=True)
        export(graph, folder / "bundle" / bundle.MODEL)
        clock.lap("export")
        # Everything from here on is measured on what the line will run, not on what was trained.
        line, ours_of = in_onnxruntime(folder / "bundle" / bundle.MODEL), in_torch(graph)
        if framing:
            line, ours_of = framing.wrap(line), framing.wrap(ours_of)
        # Without a guarantee nothing is held out; good images that were learned from then only set the heat's scale.
        good = good or _some_good(parts.train)
        held_out = None if divided.left_out else predict(line, good, progress, "calibration")
        tested = predict(line, parts.test, progress, "test") if parts.test else held_out
        clock.lap("inspect")
        proof = parts.test or good
        ours = predict(ours_of, proof, progress, "parity")
        said_there = tested or predict(line, proof, progress, "parity")
        parity = prove_parity(ours, said_there, [s.name for s in proof], gated=getattr(graph, "gated", False))
        clock.lap("parity")
        if isinstance(detector, PatchCore) and divided.left_out:
            good = list(parts.train)
            groups = [divided.items[s.name] for s in good]
            held_out = left_out(detector, good, groups, progress, framing=framing, training_samples=training_samples)
            clock.lap("leave one out")
        assert held_out is not None
        if config.evidence:
            file = folder / "bundle" / bundle.EVIDENCE
            write_evidence(detector.sources(), settings.image_size, file, config.evidence_size)
        if framed:
            framed.write(folder / "bundle")
        card = bundle.write(
            folder / "bundle",
            bundle.Card(
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                product=config.data.resolve().name,
                detector=config.detector,
                settings=card_of.settings_of(settings),
                image_size=settings.image_size,
                frame=framing.frame if framing else None,
                data=card_of.data(config, divided.layout, parts),
                decision=card_of.decision(
                    config,
                    held_out,
                    [divided.items[sample.name] for sample in good],
                    "leave-one-out" if divided.left_out else "split",
                    framing,
                ),
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
            "decision": card.decision.model_dump(mode="json", exclude={"scores", "map_maxima", "distances", "items"}),
            "parity": parity.to_json(),
            "data_problems": list(warnings),
        }
        verdicts: list[Verdict] = []
        shown: dict[str, dict[str, Any]] = {}
        if parts.test and tested:
            inspector = Inspector(folder / "bundle")
            verdicts = [
                inspector.judge(tested[i], read_size(sample.path), sample.name) for i, sample in enumerate(parts.test)
            ]
            balanced = getattr(settings, "head_weights", "auto") == "auto"
            metrics |= evaluate(parts.test, tested, verdicts, card.classes, balanced=balanced, framing=framing)
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
            {**verdict.to_json(), "said": verdict.defect, "label": sample.label, "defect": sample.defect}
            | shown.get(sample.name, {"evidence": [], "counterfactual": None})
            for sample, verdict in zip(parts.test, verdicts, strict=True)
        ]
        _write_lines(folder / "verdicts.jsonl", said)
        if getattr(settings, "log", "") and (unfinished / "log").is_dir():
            shutil.copytree(unfinished / "log", folder / "log", symlinks=True)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        if verdicts:
            report(folder, folder / "report.html", samples=parts.test, progress=progress)
    if trains:
        shutil.rmtree(unfinished)
    return Run(config.out, metrics, warnings)


def draw(
    samples: Sequence[Sample],
    found: Prediction,
    verdicts: Sequence[Verdict],
    inspector: Inspector,
    folder: Path,
    most: int,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """What `results.write_images` writes, in `folder`, of at most so many test images, under the images' own names;
    gives the figures of each image's evidence by its name."""
    order = _in_turn(samples, verdicts)[:most]
    store = evidence.open_store(inspector)
    shown: dict[str, dict[str, Any]] = {}
    for i in progress(order, "overlays", len(order)):
        look = Inspection(verdicts[i], load_image(samples[i].path), found[i])
        said = evidence.gather(inspector, store, look)
        drawn = results.write_images(folder, samples[i].name, look, inspector.card.decision.color_range, said)
        shown[samples[i].name] = {kind: drawn[kind] for kind in ("evidence", "counterfactual")}
    return shown


def _in_turn(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> list[int]:
    """The first by name of each label and verdict, the misjudged before the others, then the second of each, ..."""
    before: Counter[tuple[str | None, str]] = Counter()
    turns = []
    for i in sorted(range(len(samples)), key=lambda i: samples[i].name):
        label, decision = samples[i].label, verdicts[i].decision
        turns.append((before[label, decision], decision == (label or decision), i))
        before[label, decision] += 1
    return [i for _, _, i in sorted(turns)]


def _some_good(samples: Sequence[Sample], most: int = 100) -> list[Sample]:
    good = [sample for sample in samples if sample.label != "anomaly"]
    return good[:: max(1, len(good) // most)]


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
