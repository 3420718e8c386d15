"""The bundle: a folder or one .zip with `model.onnx`, `card.json` and, but for confidential images, `evidence.zip`;
`roi.png` and `reference.png` where a region of interest or alignment was asked for. Nothing in it is executable,
nothing is pickled.

The card says what the detector is, what it learned from, how it decides, and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from blemish.files import replacing, write_text
from blemish.types import BlemishError

MODEL = "model.onnx"
CARD = "card.json"
EVIDENCE = "evidence.zip"  # images that normal patches come from, see evidence.py; not in every bundle
ROI = "roi.png"  # where an image counts, see frame.py; only where it was asked for
REFERENCE = "reference.png"  # what images are aligned to, see align.py; only where it was asked for


class BundleError(BlemishError):
    """The bundle is missing, damaged, or not one."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Frozen):
    sha256: str
    bytes: int


class Data(_Frozen):
    """What the detector learned from; `sha256` is over the training images' names and bytes, in order of name."""

    source: str
    layout: str
    train: int
    calibration: int
    test: int
    anomalies: int = 0  # among `train`, for a detector that learns from them
    test_share: float = 0.2  # asked for, of good images, where the folder has no test part
    calibration_share: float = 0.2  # asked for, of what is left
    seed: int
    sha256: str


class Decision(_Frozen):
    """How scores become verdicts. An image is an anomaly when its score lies *above* `threshold`; its regions are
    where the map reaches `pixel_threshold`. Both come from the held-out good images, whose scores are kept.

    With the rule "class" no rate is guaranteed: an anomaly is what the classifier finds likelier than good. The boxes
    are hills of the map or, as published for class activation maps, "one" around all above a share of its peak.
    """

    rule: Literal["guarantee", "class"] = "guarantee"
    boxes: Literal["regions", "one"] = "regions"
    false_alarms: float | None
    guarantee: str
    confidence: float | None = None  # of the guarantee over calibration sets; None = on average
    calibrated_by: Literal["split", "leave-one-out"] = "split"  # see calibration.guarantee
    threshold: float
    review: float | None = None  # rate at which a person looks; above its threshold and not above the other
    review_threshold: float | None = None
    pixel_threshold: float
    normal_median: float  # median of the good images' maps: where regions take their foot
    min_area: float  # of a region, as a share of the image
    scores: tuple[float, ...]
    map_maxima: tuple[float, ...]  # highest map value of each calibration image
    distances: tuple[float, ...] = ()  # largest distance of each to its nearest normal patches
    items: tuple[int, ...] = ()  # which item each shows; () = each another
    color_range: tuple[float, float]  # map values drawn transparent and brightest, the same on every image


class Frame(_Frozen):
    """How an image is brought before the detector, see frame.py: made as large as the frame, aligned, filled outside
    the region of interest, cut into tiles. All lengths are pixels of the frame."""

    size: tuple[int, int]  # width, height of the frame
    map_size: tuple[int, int]  # height, width of the whole image's map
    tile: tuple[int, int] | None = None  # width, height; None = the detector sees the image as a whole
    overlap: int = 0
    tiles: tuple[tuple[int, int], ...] = ()  # left, top of each; those wholly outside the region are not there
    roi: bool = False
    align: Literal["", "ecc"] = ""
    least_correlation: float = 0.0  # with the reference; below it an image cannot be judged


class Card(_Frozen):
    format: Literal["blemish bundle 2"] = "blemish bundle 2"
    created: str
    product: str
    detector: str
    settings: dict[str, Any]
    image_size: tuple[int, int]  # height, width at which the detector sees an image, or a tile of the frame
    frame: Frame | None = None  # None: the image goes to the graph as it is, and the maps are of `image_size`
    data: Data
    decision: Decision
    parity: dict[str, float]
    backbone: dict[str, str]
    classes: tuple[str, ...] = ()  # of a classifier, good first
    licences: dict[str, str]
    versions: dict[str, str]
    files: dict[str, File] = {}
    sha256: str = ""  # of the card itself with this field empty

    @property
    def balanced(self) -> bool:
        """Whether a classifier's probabilities are meant for equal odds of its classes."""
        return bool(self.settings.get("head_weights", "auto") == "auto")

    def digest(self) -> str:
        return _digest(self.model_dump(mode="json"))


def _digest(content: dict[str, Any]) -> str:
    """Of a card's content as it stands in the file: a field that came later does not make older cards damaged."""
    return hashlib.sha256(json.dumps({**content, "sha256": ""}, sort_keys=True).encode()).hexdigest()


# What format 1 called otherwise: keys of the decision and of the detector's settings, values, a graph's outputs.
_KEYS = {"usual": "normal_median", "peaks": "map_maxima", "heat": "color_range"}
_SETTINGS = {"neighbourhood": "patch_size", "departures": "deviations", "rate": "learning_rate"}
_SETTINGS |= {"may": "augmentations", "spoil": "corruption", "neighbours": "num_neighbours"}
_VALUES = {"promise": "guarantee", "hills": "regions"}
OUTPUTS = {"repaired": "reconstruction"}


def _upgraded(content: Any) -> Any:
    """A card's content in the words of today's format; what is no card of format 1 stays as it is."""
    if not isinstance(content, dict) or content.get("format") != "blemish bundle 1":
        return content
    decision, settings = content.get("decision"), content.get("settings")
    if isinstance(decision, dict):
        decision = {_KEYS.get(key, key): value for key, value in decision.items()}
        decision |= {key: _VALUES.get(decision[key], decision[key]) for key in ("rule", "boxes") if key in decision}
    if isinstance(settings, dict):
        settings = {_SETTINGS.get(key, key): value for key, value in settings.items()}
        if "types" in settings:  # a classifier's
            settings["classes"] = "types" if settings.pop("types") else "binary"
            pooled = "mean" if settings.pop("moments", 2) == 1 else "moments"
            settings["pool"] = "deviations" if settings.pop("deviations", False) else pooled
    return {**content, "format": "blemish bundle 2", "decision": decision, "settings": settings}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its card, the bytes of its graph, and those of its evidence where it has some."""

    path: Path
    card: Card
    model: bytes
    evidence: bytes | None = None
    roi: bytes | None = None
    reference: bytes | None = None


def write(folder: Path, card: Card) -> Card:
    """Completes a folder that holds the graph: hashes its files and writes the card. Returns the completed card."""
    files = {
        file.name: File(sha256=hashlib.sha256(file.read_bytes()).hexdigest(), bytes=file.stat().st_size)
        for file in sorted(folder.iterdir())
        if file.name != CARD
    }
    card = card.model_copy(update={"files": files})
    card = card.model_copy(update={"sha256": card.digest()})
    write_text(folder / CARD, card.model_dump_json(indent=1) + "\n")
    return card


def read(path: Path | str) -> Bundle:
    """Loads and verifies a bundle, folder or .zip. Raises `BundleError` where it is missing, damaged or foreign."""
    path = Path(path)
    if not path.exists():
        raise BundleError(f"{path}: no such bundle; give the folder or .zip that `blemish train` wrote.")
    if path.is_dir() and not (path / CARD).exists() and (path / "bundle" / CARD).exists():
        path = path / "bundle"  # the run's folder was given
    contents = _from_zip(path) if path.is_file() else _from_folder(path)
    if CARD not in contents:
        raise BundleError(f"{path}: not a blemish bundle, it has no {CARD}; give what `blemish train` wrote.")
    written = contents.pop(CARD)
    try:
        card = Card.model_validate_json(json.dumps(_upgraded(json.loads(written))))
    except ValueError as cause:  # pydantic's ValidationError is one
        first = cause.errors()[0] if isinstance(cause, ValidationError) else {"loc": (), "msg": str(cause)}
        where = ".".join(map(str, first["loc"])) or CARD
        raise BundleError(
            f"{path}: the card is not one that blemish can read ({where}: {first['msg']}); "
            "the bundle is damaged or from another version: train it again or update blemish."
        ) from None
    if _digest(json.loads(written)) != card.sha256:
        raise BundleError(f"{path}: {CARD} was changed after it was written; use an untouched copy of the bundle.")
    for name in sorted(set(contents) ^ set(card.files)):
        state = "is missing" if name in card.files else "does not belong to it"
        raise BundleError(f"{path}: {name} {state}; use an untouched copy of the bundle.")
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != card.files[name].sha256:
            raise BundleError(f"{path}: {name} is damaged (its SHA-256 is not the card's); copy the bundle again.")
    return Bundle(path, card, contents[MODEL], contents.get(EVIDENCE), contents.get(ROI), contents.get(REFERENCE))


def pack(folder: Path, file: Path) -> None:
    """One .zip of a bundle folder, uncompressed (weights do not compress), with the same bytes every time."""
    read(folder)
    with replacing(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for member in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(member.name), member.read_bytes())


def _from_folder(path: Path) -> dict[str, bytes]:
    try:
        return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    except OSError as cause:
        raise BundleError(f"{path}: cannot be read ({cause.strerror}); check its permissions.") from None


def _from_zip(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:  # into memory: no member's name ever becomes a path
            return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as cause:  # a cipher or method unknown: RuntimeError
        raise BundleError(f"{path}: not a readable .zip ({cause}); copy the bundle again.") from None
