"""The steps of `blemish train`: read, split, frame, fit, export, prove parity, calibrate, evaluate, write."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from onnxruntime import InferenceSession

from blemish.data.unusable import explained
from blemish.detectors.interface import Detector, DetectorConfig, Graph, LeavesOneOut, Resumable
from blemish.detectors.nn.provenance import write_evidence
from blemish.detectors.registry import config_of, names
from blemish.files import staged
from blemish.inference import bundle
from blemish.inference.inspector import Inspector, open_session
from blemish.options import either
from blemish.ownership import MARK, mark_of
from blemish.training import card as cards
from blemish.training import image_size
from blemish.training.config import Run, TrainConfig
from blemish.training.crossval import CrossValidated, CrossValidation, cross_validate
from blemish.training.export import Parity, export, in_session, in_torch, predict, prove_parity
from blemish.training.framing import Seen, how_seen
from blemish.training.framing import check as check_frame
from blemish.training.leave_one_out import leave_one_out
from blemish.training.results import evaluate_test, write_run
from blemish.training.splits import Data, Divided, divide, read_data
from blemish.types import BlemishError, Prediction, Progress, Runner, Sample, silent

PARITY_IMAGES = 100  # at most, on which PyTorch and onnxruntime are compared: they run the same graph
RANGE_IMAGES = 100  # that set the color range if nothing is guaranteed


def train(config: TrainConfig, progress: Progress = silent) -> Run:
    """Trains a detector on a folder of images and writes `config.out`: `bundle/`, `metrics.json`, `verdicts.jsonl`
    (test images), `overlays/`, `report.html`. The folder appears when it is complete, or not at all. Until then, the
    state from which a training by gradient is resumed is in `.NAME.training` beside it.

    Raises `BlemishError` if the images cannot support what was asked.
    """
    refuse(config)
    with staged(config.out, "run", overwrite=config.overwrite, reads=config.reads) as folder:
        metrics, warnings = write(config, folder, progress)
    return Run(config.out, metrics, warnings)


def write(config: TrainConfig, folder: Path, progress: Progress) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Trains, and writes the run into the empty `folder`. Returns its metrics and warnings."""
    clock = Clock()
    data = read_data(config.data, config.layout, progress, pooled=config.pooled)
    config, divided = divided_for(config, data)
    traits = config.settings.traits
    clock.lap("read")
    choice = chosen_size(config, divided, progress) if config.budget else None
    clock.lap("choose the image size", shown=choice is not None)
    asked = choice.image_size if choice else config.image_size
    seen = how_seen(config.frame_rule, divided.split, config.settings, asked, progress)
    divided = divided.without_tests(seen.unaligned)
    warnings = (*divided.warnings, *data.warnings, *seen.warnings)
    with workplace(config, folder, seen.image_size) as work:
        learned = (*divided.split.train, *(divided.split.calibration if traits.classifies else ()))
        samples = seen.training_samples(learned, work.frames, divided.items, progress)
        clock.lap("read")
        detector = work.settings.build()
        crossed = cross_validated(detector, data, config, progress) if config.folds else None
        clock.lap("cross-validate", shown=config.folds > 0)
        graph = fit(detector, divided, samples, progress)
        clock.lap("fit")
        runners = export_graph(graph, seen, folder / "bundle")
        clock.lap("export")
        # From here on everything is measured on the exported graph, which is the one that will run; but leaving one out
        # takes the fitted detector's own distances, which it measures exactly as the graph does.
        results = inspect_images(runners, divided, progress)
        clock.lap("inspect")
        parity = prove(graph, runners, results, progress)
        clock.lap("parity")
        good = results.good or left_out(detector, divided, seen, samples, progress)
        clock.lap("leave one out", shown=divided.left_out)
        items = [divided.items[sample.name] for sample in results.good_samples]
        decision = cards.decision(config.decision_rule, good, items, divided.kind, seen.framing)
        learned_from = cards.data(config.data, data.layout, divided.split, config.split_rule, pooled=config.pooled)
        complete_bundle(folder / "bundle", detector, work.settings, seen, config)
        card = cards.card(detector, work.settings, seen.frame, learned_from, decision, parity)
        written = bundle.write(folder / "bundle", card)
        card, inspector = written.card, Inspector(written, session=runners.session)
        clock.lap("calibrate")
        tested = divided.split.test
        evaluated = evaluate_test(folder, inspector, tested, results.test, seen.framing, config.overlays, progress)
        clock.lap("evaluate")
        metrics = cards.metrics(card, divided.split, parity, warnings) | evaluated.metrics | detector.metrics
        metrics["files"] = data.files
        if config.why:
            metrics["detector_choice"] = config.why
        if choice:
            metrics["image_size"] = choice.to_json()
        write_run(folder, metrics, evaluated, crossed, card, clock.laps, progress)
        work.keep_log(folder)
    return metrics, warnings


def divided_for(config: TrainConfig, data: Data) -> tuple[TrainConfig, Divided]:
    """The images by their use. Where a detector that was chosen, not asked for, cannot have its split, PatchCore takes
    its place: items may hold good and defective images, and near duplicates are known only now."""
    try:
        return config, divide(data, config.split_rule, config.decision_rule, config.settings.traits)
    except BlemishError as cause:
        if not config.why or not config.settings.traits.learns_from_defects:
            raise
        because = f"The detector is patchcore, as hybrid cannot learn from these defects: {cause}"
        config = config.without_defects(because)
        return config, divide(data, config.split_rule, config.decision_rule, config.settings.traits)


def refuse(config: TrainConfig) -> None:
    """Raises `BlemishError`, before any work, for options that exclude each other or the detector."""
    traits, name = config.settings.traits, config.detector
    if config.decide == "class" and not traits.classifies:
        raise BlemishError(f"{name} is not a classifier; --decide class needs one, such as --detector cam.")
    if config.decide == "class" and (config.review or config.confidence):
        raise BlemishError("--review and --confidence belong to a guarantee, and --decide class gives none; omit them.")
    if config.calibrate == "leave-one-out" and not traits.leaves_one_out:
        able = [detector for detector in names() if config_of(detector).traits.leaves_one_out]
        raise BlemishError(
            f"--calibrate leave-one-out is for --detector {either(able)}: {name} would have to be trained again for "
            "each image; use --calibrate split."
        )
    if config.calibrate == "leave-one-out" and config.confidence:
        raise BlemishError(
            "The guarantee of leave-one-out holds on average; omit --confidence, or use --calibrate split."
        )
    if config.folds and not traits.cross_validates:
        raise BlemishError(f"{name} is not a classifier; --folds is for --detector cam.")
    if config.folds and config.frame_rule.asked:
        raise BlemishError("--folds cannot be combined with --tile, --roi or --align; omit one or the other.")
    check_frame(config.frame_rule, traits)
    image_size.check(config.budget, config.image_size, config.frame_rule, traits)


def chosen_size(config: TrainConfig, divided: Divided, progress: Progress) -> image_size.Choice:
    """The image size within the budget, chosen by training images alone."""
    assert config.budget is not None
    return image_size.choose_size(divided.split.train, divided.items, config.settings, config.budget, progress)


@dataclass(frozen=True)
class Workplace:
    """The detector's `settings`, the folder `frames` for framed images, and the folder `unfinished` for the state from
    which a training by gradient is resumed."""

    settings: DetectorConfig
    frames: Path
    unfinished: Path

    def keep_log(self, folder: Path) -> None:
        """Copies the log of the losses, if one was asked for, into the run."""
        asked = self.settings.traits.trained_by_gradient and cast("Resumable", self.settings).log
        if asked and (self.unfinished / "log").is_dir():
            shutil.copytree(self.unfinished / "log", folder / "log", symlinks=True)


@contextmanager
def workplace(config: TrainConfig, folder: Path, size: tuple[int, int]) -> Iterator[Workplace]:
    """Temporary folders: the frames in the run's `folder`, deleted at the end in any case; the unfinished training
    beside `config.out`, deleted only when the run is complete."""
    frames, unfinished = folder / "frames", config.out.with_name(f".{config.out.name}.training")
    settings = replace(config.settings, image_size=size)  # type: ignore[type-var]
    if settings.traits.trained_by_gradient:
        if unfinished.exists() and mark_of(unfinished) is None:
            raise BlemishError(f"{unfinished}: is in the way of {config.out}; move it away, or name another folder.")
        if unfinished.exists() and not config.resume:
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True, exist_ok=True)
        (unfinished / MARK).touch()
        settings = replace(settings, checkpoint=unfinished, resume=config.resume)  # type: ignore[type-var]
    try:
        yield Workplace(settings, frames, unfinished)
    finally:
        shutil.rmtree(frames, ignore_errors=True)
    if settings.traits.trained_by_gradient:
        shutil.rmtree(unfinished)


def cross_validated(detector: Detector, data: Data, config: TrainConfig, progress: Progress) -> CrossValidation:
    """Predictions of each image by a classifier that did not learn from it."""
    with explained(data.unusable):
        return cross_validate(
            cast("CrossValidated", detector),
            data.samples,
            folds=config.folds,
            repeats=config.repeats,
            seed=config.seed,
            groups=data.groups,
            false_alarms=config.false_alarms,
            progress=progress,
        )


def fit(detector: Detector, divided: Divided, samples: Mapping[str, Sequence[Sample]], progress: Progress) -> Graph:
    """Fits the detector and returns its graph. `samples` are the training samples of each image, by the image's
    name."""

    def samples_of(images: Sequence[Sample]) -> list[Sample]:
        return [sample for image in images for sample in samples.get(image.name, ())]

    detector.fit(samples_of(divided.split.train), progress, held_out=samples_of(divided.split.calibration))
    return detector.graph()


@dataclass(frozen=True)
class Runners:
    """Run the exported graph, as inference will, and the fitted graph, both on whole images."""

    onnx: Runner
    torch: Runner
    session: InferenceSession


def export_graph(graph: Graph, seen: Seen, folder: Path) -> Runners:
    """Writes the graph into the bundle's `folder`."""
    folder.mkdir(parents=True)
    export(graph, folder / bundle.MODEL)
    session = open_session((folder / bundle.MODEL).read_bytes())
    return Runners(seen.over(in_session(session)), seen.over(in_torch(graph)), session)


@dataclass(frozen=True)
class Results:
    """Predictions of the exported graph. `good` are those that set the threshold, None with leave-one-out, which
    predicts them later; `test` is None if there are no test images."""

    good_samples: list[Sample]
    test_samples: list[Sample]
    good: Prediction | None
    test: Prediction | None


def inspect_images(runners: Runners, divided: Divided, progress: Progress) -> Results:
    """Runs the exported graph on the calibration and test images."""
    good, tested = divided.calibrating or _some_good(divided.split.train), list(divided.split.test)
    return Results(
        good,
        tested,
        None if divided.left_out else predict(runners.onnx, good, progress, "calibration"),
        predict(runners.onnx, tested, progress, "test") if tested else None,
    )


def _some_good(samples: Sequence[Sample]) -> list[Sample]:
    """Training images that set the color range; without a guarantee no image is held out."""
    good = [sample for sample in samples if sample.label != "anomaly"]
    return good[:: max(1, len(good) // RANGE_IMAGES)]


def prove(graph: Graph, runners: Runners, results: Results, progress: Progress) -> Parity:
    """Compares PyTorch and onnxruntime on at most `PARITY_IMAGES` of the test images, or of the good ones if there are
    no test images. Raises `ParityError` if they disagree."""
    samples = results.test_samples or results.good_samples
    step = -(-len(samples) // PARITY_IMAGES)
    samples, known = samples[::step], results.test or results.good
    onnx = known[::step] if known else predict(runners.onnx, samples, progress, "parity")
    torch = predict(runners.torch, samples, progress, "parity")
    return prove_parity(torch, onnx, [sample.name for sample in samples], gated=graph.gated)


def left_out(
    detector: Detector,
    divided: Divided,
    seen: Seen,
    samples: Mapping[str, Sequence[Sample]],
    progress: Progress,
) -> Prediction:
    """Leave-one-out predictions of the good training images."""
    return leave_one_out(cast("LeavesOneOut", detector), divided.calibrating, progress, seen=seen, samples=samples)


def complete_bundle(
    folder: Path, detector: Detector, settings: DetectorConfig, seen: Seen, config: TrainConfig
) -> None:
    """Writes the rest of the bundle besides the graph and the card: evidence, region of interest, reference."""
    sources = detector.sources() if config.evidence else None
    if sources is not None:
        write_evidence(sources, settings.image_size, folder / bundle.EVIDENCE, config.evidence_size)
    seen.write(folder)


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, *, shown: bool = True) -> None:
        """Ends a stage, or a part of it; the time of one that is not `shown` is added to the next."""
        if shown:
            now = time.perf_counter()
            self.laps[name] = round(self.laps.get(name, 0) + now - self._last, 2)
            self._last = now
