"""The configuration and the result of a training. Light: torch is not loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from blemish.detectors.interface import DetectorConfig
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.registry import config_of, loadable, settings_for
from blemish.options import check, options, read, setting
from blemish.types import BlemishError

SMALLEST_SIDE = 32
DATA, GUARANTEE, IMAGES, OUTPUT = "Data", "Guarantee", "Image size and framing", "Output"
CROSSED = "Cross-validation of a classifier"


def share(text: str) -> float:
    """`5%` or `0.05` -> 0.05."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise BlemishError(f"'{text}' is not a rate; write it as 5% or 0.05.") from None


def size(text: str) -> tuple[int, int] | None:
    """`auto` -> None, `256` -> (256, 256), `192x320` -> (192, 320): height, width."""
    if text == "auto":
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else (sides[0], sides[0])
    except ValueError:
        raise BlemishError(f"'{text}' is not an image size; write auto, 256, or HEIGHTxWIDTH.") from None
    if min(height, width) < SMALLEST_SIDE or len(sides) > 2:
        raise BlemishError(f"'{text}' is not an image size: both sides must be at least {SMALLEST_SIDE} pixels.")
    return height, width


@dataclass(frozen=True)
class DecisionRule:
    """How scores become verdicts. With `decide` "class" (classifiers only), an image is an anomaly if that class is
    likelier than good, and no false-alarm rate is guaranteed."""

    false_alarms: float = 0.05
    review: float | None = None  # share of good parts that are flagged or put aside for review; above `false_alarms`
    confidence: float | None = None  # that the guarantee holds for this calibration set; None = it holds on average
    decide: Literal["guarantee", "class"] = "guarantee"
    boxes: Literal["regions", "one"] = "regions"
    min_area: float = 0.0002  # of a region, as a share of the image

    @property
    def guaranteed(self) -> bool:
        return self.decide == "guarantee"


@dataclass(frozen=True)
class SplitRule:
    """How the images are split; shares are of good images."""

    test: float = 0.2
    calibration: float = 0.2  # of the images that are not in the test split
    calibrate: Literal["auto", "split", "leave-one-out"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class FrameRule:
    """The frame in which the detector sees images, see `inference.framing`."""

    tile: int = 0
    overlap: int = 64
    roi: Path | None = None
    align: bool = False

    @property
    def asked(self) -> bool:
        """Whether there is a frame."""
        return bool(self.tile or self.roi or self.align)


@dataclass(frozen=True)
class TrainConfig:
    """The arguments of `blemish train`. `settings` is the detector's config; its `image_size` is replaced by
    `image_size` (height, width), which is chosen from the images if it is None."""

    data: Path
    out: Path
    settings: DetectorConfig = field(default_factory=PatchCoreConfig)
    why: str = ""  # this detector was chosen, in a sentence; "" = it was asked for
    layout: str = setting("auto", "Read the folder as this layout.", panel=DATA)
    test: float = setting(
        0.2, "Share of good images for the test, if the folder has no test.", low=0, high=1, panel=DATA
    )
    calibration: float = setting(0.2, "Share of good images held out for the threshold.", low=0, high=1, panel=DATA)
    # The published case study pools all images and splits them again.
    pooled: bool = setting(False, "Ignore the folder's own train and test, and split all images.", panel=DATA)
    seed: int = setting(0, "Same seed, same split, same detector.", panel=DATA)
    false_alarms: float = setting(
        0.05, "Share of good parts that may be flagged: 5% or 0.05.", parse=share, panel=GUARANTEE
    )
    review: float | None = setting(
        None, "Share of good parts flagged or put aside for review: 10%.", parse=share, panel=GUARANTEE
    )
    confidence: float | None = setting(
        None, "Confidence of the guarantee over calibration sets: 95%.", parse=share, panel=GUARANTEE
    )
    # Leave-one-out: every good image is a training image, and is scored without its own item. Auto: leave-one-out if
    # one of the few highest held-out scores would set the threshold.
    calibrate: Literal["auto", "split", "leave-one-out"] = setting(
        "auto", "Where the threshold comes from: auto, split, or leave-one-out.", panel=GUARANTEE
    )
    decide: Literal["guarantee", "class"] = setting(
        "guarantee", "guarantee: keep the false-alarm rate; class: the likelier class.", panel=GUARANTEE
    )
    image_size: tuple[int, int] | None = setting(None, "auto, 256, or HEIGHTxWIDTH.", parse=size, panel=IMAGES)
    budget: float | None = setting(
        None,
        "Milliseconds that one image may take here: the image size is then chosen from the data.",
        panel=IMAGES,
    )
    tile: int = setting(
        0, "Side of square tiles that images are cut into, such as 512 pixels; 0 = no tiles.", low=0, panel=IMAGES
    )
    overlap: int = setting(64, "Pixels by which tiles overlap.", low=0, panel=IMAGES)
    roi: Path | None = setting(None, "Region of interest: a mask image, or .json with polygons.", panel=IMAGES)
    align: bool = setting(False, "Align shifted and rotated parts.", panel=IMAGES)
    boxes: Literal["regions", "one"] = setting(
        "regions", "regions: boxes around the map's peaks; one: the published single box.", panel=OUTPUT
    )
    min_area: float = setting(0.0002, "Smallest region, as a share of the image.", low=0, high=1, panel=OUTPUT)
    overlays: int = setting(300, "Number of test images that are drawn at most.", low=0, panel=OUTPUT)
    evidence: bool = setting(True, "Store the images that normal patches come from in the bundle.", panel=OUTPUT)
    evidence_size: float = setting(8.0, "Size limit, in MB, of the good images in the bundle.", low=0, panel=OUTPUT)
    overwrite: bool = setting(False, "Replace the folder if it exists.", panel=OUTPUT)
    resume: bool = setting(False, "Resume a killed training.", panel=OUTPUT)
    folds: int = setting(0, "Number of folds to cross-validate the classifier; 0 = none.", low=0, panel=CROSSED)
    repeats: int = setting(1, "Number of repetitions of the cross-validation.", low=1, panel=CROSSED)

    @property
    def detector(self) -> str:
        """Its name in the registry."""
        return self.settings.traits.name

    def without_defects(self, because: str) -> TrainConfig:
        """The same with PatchCore, which a chosen detector's other settings belong to as well."""
        known = {name.name: getattr(self.settings, name.name) for name in fields(PatchCoreConfig)}
        return replace(self, settings=PatchCoreConfig(**known), why=because)

    @property
    def reads(self) -> list[Path]:
        """The files and folders that the training reads."""
        files = (self.roi, getattr(self.settings, "weights", None))
        return [self.data, *(file for file in files if isinstance(file, Path))]

    @property
    def decision_rule(self) -> DecisionRule:
        return DecisionRule(self.false_alarms, self.review, self.confidence, self.decide, self.boxes, self.min_area)

    @property
    def split_rule(self) -> SplitRule:
        return SplitRule(self.test, self.calibration, self.calibrate, self.seed)

    @property
    def frame_rule(self) -> FrameRule:
        return FrameRule(self.tile, self.overlap, self.roi, self.align)


# What a detector's options must not be called: the training's own, and the command's.
RESERVED = {
    *(option.field for option in options(TrainConfig)),
    "data",
    "out",
    "detector",
    "recipe",
    "json_",
    "settings",
}


def configure(data: Path | str, out: Path | str, *, detector: str = "", recipe: str = "", **asked: Any) -> TrainConfig:
    """A `TrainConfig` from its options and those of the detector, by field name: values, or text as on the command
    line; None = not given. `detector` is a name in the registry; if neither it nor a recipe is given, it is chosen by
    what the folder holds.

    Raises `BlemishError` for an unknown detector, recipe or option, and for an invalid value.
    """
    if not detector and recipe:
        detector = next((name for name in loadable() if recipe in config_of(name).traits.recipes), "")
    detector, why = (detector, "") if detector else _chosen(Path(data), asked)
    training_options = {option.field: option for option in options(TrainConfig)}
    if clash := RESERVED & {option.field for option in options(config_of(detector))}:
        raise BlemishError(
            f"the detector '{detector}' has the option --{min(clash).replace('_', '-')}, which blemish train has "
            "itself; rename it in its package."
        )
    settings = settings_for(
        detector, {name: value for name, value in asked.items() if name not in training_options}, recipe
    )
    given = {
        name: read(training_options[name], value)
        for name, value in asked.items()
        if name in training_options and value is not None
    }
    changed = dict(settings.traits.recipes[recipe].training) if recipe else {}
    config = TrainConfig(Path(data), Path(out), settings=settings, why=why, **{**changed, **given})
    check(config)
    return replace(config, settings=replace(settings, seed=config.seed))  # type: ignore[type-var]


# Options that only a detector without defects can follow, or only one that is asked for by name.
_DECIDED = ("calibrate", "budget", "decide", "folds")


def _chosen(data: Path, asked: Mapping[str, Any]) -> tuple[str, str]:
    """The detector for a folder, and why. A folder that cannot be read is refused later, in words."""
    from blemish.data import layouts  # they load numpy, and --help need not
    from blemish.training.choice import NORMAL, choose

    given = {
        option.field: read(option, asked[option.field])
        for option in options(TrainConfig)
        if asked.get(option.field) is not None
    }
    if any(given.get(name) not in (None, 0, "auto", "split", "guarantee") for name in _DECIDED):
        return NORMAL, ""
    try:
        samples = layouts.read(data, str(given.get("layout", "auto"))).samples
    except BlemishError:
        return NORMAL, ""
    if given.get("pooled"):
        samples = tuple(replace(sample, split="") for sample in samples)
    rules = {name: given[name] for name in ("test", "calibration", "false_alarms", "confidence") if name in given}
    if given.get("tile"):  # which tiles of a defective image are defective is known with a mask alone
        samples = tuple(sample for sample in samples if sample.label != "anomaly" or sample.mask)
    return choose(samples, **rules)


@dataclass(frozen=True)
class Run:
    """The result of a training; `metrics` is the content of `metrics.json`."""

    folder: Path
    metrics: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def bundle(self) -> Path:
        """The folder of the bundle, for `Inspector`."""
        return self.folder / "bundle"

    def __repr__(self) -> str:
        auroc = self.metrics.get("detection", {}).get("auroc", {}).get("value")
        measured = "not tested" if auroc is None else f"image AUROC {auroc:.3f}"
        return f"Run({str(self.folder)!r}, {self.metrics['product']}, {self.metrics['detector']}, {measured})"
