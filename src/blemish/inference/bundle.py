"""The bundle: a folder or one .zip with `model.onnx` and `card.json`; with `evidence.zip`, unless the images are
confidential; and with `roi.png` and `reference.png` where a region of interest or alignment was asked for. Nothing in
it is executable, nothing is pickled.

The card says what the detector is, what it was trained on, how it decides, and the SHA-256 of every file. Bundles of
format 1, which used other words, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from blemish.files import MARK, check_file, replacing, write_text
from blemish.types import BlemishError

MODEL = "model.onnx"
CARD = "card.json"
EVIDENCE = "evidence.zip"  # images that normal patches come from, see evidence_store.py
ROI = "roi.png"  # the region of interest, see framing.py
REFERENCE = "reference.png"  # what images are aligned to, see alignment.py


class BundleError(BlemishError):
    """The bundle is missing, damaged, or not one."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Frozen):
    sha256: str
    bytes: int


class Data(_Frozen):
    """The data set; `sha256` is over the training images' names and bytes, in order of name."""

    source: str
    layout: str
    train: int
    calibration: int
    test: int
    anomalies: int = 0  # among `train`, for a detector that learns from defects too
    test_share: float = 0.2  # asked for, of good images, where the folder has no test split
    pooled: bool = False  # the folder's own train and test were forgotten
    calibration_share: float = 0.2  # asked for, of the remaining ones
    seed: int
    sha256: str


class Decision(_Frozen):
    """How scores become verdicts. An image is an anomaly when its score is *above* `threshold`; its regions are where
    the map reaches `pixel_threshold`. Both come from the calibration images, whose scores are kept.

    With the rule "class" no rate is guaranteed: an anomaly is what the classifier finds likelier than good. The boxes
    are "regions" around the map's peaks, see regions.py, or "one" around all cells above a share of its peak, as
    published for class activation maps.
    """

    rule: Literal["guarantee", "class"] = "guarantee"
    boxes: Literal["regions", "one"] = "regions"
    false_alarms: float | None
    guarantee: str
    confidence: float | None = None  # of the guarantee over calibration sets; None = on average
    calibrated_by: Literal["split", "leave-one-out"] = "split"  # see calibration.guarantee
    threshold: float
    review: float | None = None  # rate of good parts above `review_threshold`: put aside for review, or anomalies
    review_threshold: float | None = None
    pixel_threshold: float
    normal_median: float  # of the good images' maps: the heights of regions are measured from it
    min_area: float  # of a region, as a share of the image
    scores: tuple[float, ...]
    map_maxima: tuple[float, ...]  # highest map value of each calibration image
    distances: tuple[float, ...] = ()  # of each, the largest distance of a patch to the memory bank
    items: tuple[int, ...] = ()  # which item each shows; () = every image shows another item
    color_range: tuple[float, float]  # map values drawn transparent and brightest, the same on every image


class Frame(_Frozen):
    """How an image is brought before the detector, see framing.py: made as large as the frame, aligned, filled outside
    the region of interest, cut into tiles. All lengths are in pixels of the frame."""

    size: tuple[int, int]  # width, height of the frame
    map_size: tuple[int, int]  # height, width of the whole image's map
    tile: tuple[int, int] | None = None  # width, height; None = the detector sees the image as a whole
    overlap: int = 0
    tiles: tuple[tuple[int, int], ...] = ()  # left, top of each, without those wholly outside the region of interest
    roi: bool = False
    align: Literal["", "ecc"] = ""
    least_correlation: float = 0.0  # with the reference; below it the verdict is "error"

    @property
    def tile_share(self) -> float:
        """The area of a tile as a share of the frame; 1 without tiles."""
        return self.tile[0] * self.tile[1] / (self.size[0] * self.size[1]) if self.tile else 1.0


class Card(_Frozen):
    format: Literal["blemish bundle 2"] = "blemish bundle 2"
    created: str
    product: str
    detector: str
    settings: dict[str, Any]
    image_size: tuple[int, int]  # height, width at which the detector sees an image, or a tile of the frame
    frame: Frame | None = None  # None: images go to the graph as they are, and the maps are of `image_size`
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
    """SHA-256 of a card's content as it is in the file, so that fields of later versions do not matter to it."""
    return hashlib.sha256(json.dumps({**content, "sha256": ""}, sort_keys=True).encode()).hexdigest()


# What had another name in format 1: keys of a card's parts, values of some of these keys, and outputs of the graph.
_KEYS = {
    "decision": {"usual": "normal_median", "peaks": "map_maxima", "heat": "color_range"},
    "settings": {
        "neighbourhood": "patch_size",
        "neighbours": "num_neighbours",
        "departures": "deviations",
        "rate": "learning_rate",
        "may": "augmentations",
        "spoil": "corruption",
    },
    "parity": {"pictures": "images"},
}
_VALUES = {"rule": {"promise": "guarantee"}, "boxes": {"hills": "regions"}, "input": {"picture": "image"}}
OUTPUTS = {"repaired": "reconstruction"}


def _upgraded(content: Any) -> Any:
    """A card's content as of format 2; anything but a card of format 1 stays as it is."""
    if not isinstance(content, dict) or content.get("format") != "blemish bundle 1":
        return content
    parts = {part: _renamed(content[part], keys) for part, keys in _KEYS.items() if part in content}
    settings = parts.get("settings")
    if isinstance(settings, dict) and "types" in settings:  # a classifier's
        settings["classes"] = "types" if settings.pop("types") else "binary"
        pooled = "mean" if settings.pop("moments", 2) == 1 else "moments"
        settings["pool"] = "deviations" if settings.pop("deviations", False) else pooled
    return {**content, "format": "blemish bundle 2", **parts}


def _renamed(part: Any, keys: dict[str, str]) -> Any:
    if not isinstance(part, dict):
        return part
    part = {keys.get(key, key): value for key, value in part.items()}
    return {key: _VALUES.get(key, {}).get(str(value), value) for key, value in part.items()}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its card and the bytes of its files, None for those that it does not have."""

    path: Path
    card: Card
    model: bytes
    evidence: bytes | None = None
    roi: bytes | None = None
    reference: bytes | None = None


def write(folder: Path, card: Card) -> Bundle:
    """Completes a bundle's folder: hashes the files in it and writes the card. Returns the bundle, as `read` would."""
    contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name not in {CARD, MARK}}
    files = {
        name: File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)) for name, content in contents.items()
    }
    card = card.model_copy(update={"files": files})
    card = card.model_copy(update={"sha256": card.digest()})
    write_text(folder / CARD, card.model_dump_json(indent=1) + "\n")
    return _bundle(folder, card, contents)


def _bundle(path: Path, card: Card, contents: dict[str, bytes]) -> Bundle:
    return Bundle(path, card, contents[MODEL], contents.get(EVIDENCE), contents.get(ROI), contents.get(REFERENCE))


def read(path: Path | str) -> Bundle:
    """Loads and verifies a bundle, a folder or .zip. Raises `BundleError` where it is missing, damaged or not one."""
    path = Path(path)
    if not path.exists():
        raise BundleError(f"{path}: no such bundle; give the folder or .zip that `blemish train` wrote.")
    if path.is_dir() and not (path / CARD).exists() and (path / "bundle" / CARD).exists():
        path = path / "bundle"  # the run's folder is given
    contents = _from_zip(path) if path.is_file() else _from_folder(path)
    if CARD not in contents:
        raise BundleError(f"{path}: not a blemish bundle, it has no {CARD}; give what `blemish train` wrote.")
    card = _verified_card(contents.pop(CARD), path)
    for name in sorted(set(contents) ^ set(card.files)):
        state = "is missing" if name in card.files else "does not belong to it"
        raise BundleError(f"{path}: {name} {state}; use an untouched copy of the bundle.")
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != card.files[name].sha256:
            raise BundleError(f"{path}: {name} is damaged (its SHA-256 is not the card's); copy the bundle again.")
    return Bundle(path, card, contents[MODEL], contents.get(EVIDENCE), contents.get(ROI), contents.get(REFERENCE))


def _verified_card(written: bytes, path: Path) -> Card:
    try:
        content = json.loads(written)
        card = Card.model_validate_json(json.dumps(_upgraded(content)))
    except ValueError as cause:  # pydantic's ValidationError is one
        first = cause.errors()[0] if isinstance(cause, ValidationError) else {"loc": (), "msg": str(cause)}
        where = ".".join(map(str, first["loc"])) or CARD
        raise BundleError(
            f"{path}: the card is not one that blemish can read ({where}: {first['msg']}); "
            "the bundle is damaged or from another version: train it again or update blemish."
        ) from None
    if _digest(content) != card.sha256:
        raise BundleError(f"{path}: {CARD} was changed after it was written; use an untouched copy of the bundle.")
    return card


def pack(folder: Path, file: Path, *, overwrite: bool = False) -> None:
    """Writes a bundle's folder as one .zip, uncompressed (weights do not compress), with the same bytes every time.
    Raises `BlemishError` where `file` cannot be written, is another's, or exists and `overwrite` is not given."""
    members = [CARD, *sorted(read(folder).card.files)]
    check_file(file, f"{CARD}{{\n", [folder])
    if file.exists() and not overwrite:
        raise BlemishError(f"{file} exists; choose another file, or replace it with --overwrite.")
    with replacing(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in members:
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())


def _from_folder(path: Path) -> dict[str, bytes]:
    try:
        return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and file.name != MARK}
    except OSError as cause:
        raise BundleError(f"{path}: cannot be read ({cause.strerror}); check its permissions.") from None


def _from_zip(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:  # read only: no member's name ever becomes a path
            return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as cause:  # RuntimeError: encrypted
        raise BundleError(f"{path}: not a readable .zip ({cause}); copy the bundle again.") from None
