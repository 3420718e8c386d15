"""The bundle: a folder or one .zip with `model.onnx` and `card.json`; with `evidence.zip`, unless the images are
confidential; and with `roi.png` and `reference.png` where a region of interest or alignment was asked for. Nothing in
it is executable, nothing is pickled.

The card says what the detector is, what it was trained on, how it decides, and the SHA-256 of every file. Bundles of
format 1, which used other words, are read as well, see bundle_format_1.py. A bundle may come from strangers: every
number in a card has a range, which is wider than what training writes, and no file is larger than its card says.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from blemish.files import check_file, replacing, write_text
from blemish.images import MAX_PIXELS
from blemish.inference.bundle_files import BundleError as BundleError  # where everything else about bundles is
from blemish.inference.bundle_files import is_litter, opened, shown, without
from blemish.inference.bundle_format_1 import upgraded
from blemish.types import BlemishError, readable

MODEL = "model.onnx"
CARD = "card.json"
EVIDENCE = "evidence.zip"  # images that normal patches come from, see evidence_store.py
ROI = "roi.png"  # the region of interest, see framing.py
REFERENCE = "reference.png"  # what images are aligned to, see alignment.py

# What a bundle may be at most; what is more is refused before it is read.
MAX_CARD = 64 * 2**20  # bytes
MAX_FILE = 2**31 - 1  # bytes of any other file; no ONNX file may be larger
MAX_TOTAL = 2**32  # bytes of all of them
MAX_FILES = 16
MAX_SIDE = 100_000  # pixels of the frame
MAX_MAP = 2**26  # cells of a map, as 8192 x 8192
MAX_TILES = 500_000
MAX_TEXT = 100_000  # characters
MAX_CLASSES = 10_000
MAX_VALUE, LEAST_RANGE = 1e38, 1e-30  # of a map's values, which are float32

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Place = Annotated[int, Field(ge=0, le=MAX_SIDE)]


Part = TypeVar("Part", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class File(_Frozen):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=MAX_FILE)]


class Data(_Frozen):
    """The data set; `sha256` is over the training images' names and bytes, in order of name."""

    source: Text
    layout: Text
    train: Count
    calibration: Count
    test: Count
    anomalies: Count = 0  # among `train`, for a detector that learns from defects too
    test_share: Share = 0.2  # asked for, of good images, where the folder has no test split
    pooled: bool = False  # the folder's own train and test were forgotten
    calibration_share: Share = 0.2  # asked for, of the remaining ones
    seed: Annotated[int, Field(ge=-(2**64), le=2**64)]
    sha256: Text


class Decision(_Frozen):
    """How scores become verdicts. An image is an anomaly when its score is *above* `threshold`; its regions are where
    the map reaches `pixel_threshold`. Both come from the calibration images, whose scores are kept.

    With the rule "class" no rate is guaranteed: an anomaly is what the classifier finds likelier than good. The boxes
    are "regions" around the map's peaks, see regions.py, or "one" around all cells above a share of its peak, as
    published for class activation maps.
    """

    rule: Literal["guarantee", "class"] = "guarantee"
    boxes: Literal["regions", "one"] = "regions"
    false_alarms: Share | None
    guarantee: Text
    confidence: Share | None = None  # of the guarantee over calibration sets; None = on average
    calibrated_by: Literal["split", "leave-one-out"] = "split"  # see calibration.guarantee
    threshold: float
    review: Share | None = None  # rate of good parts above `review_threshold`: put aside for review, or anomalies
    review_threshold: float | None = None
    pixel_threshold: float
    normal_median: float  # of the good images' maps: the heights of regions are measured from it
    min_area: Share  # of a region, as a share of the image
    scores: tuple[float, ...]
    map_maxima: tuple[float, ...]  # highest map value of each calibration image
    distances: tuple[float, ...] = ()  # of each, the largest distance of a patch to the memory bank
    items: tuple[Count, ...] = ()  # which item each shows; () = every image shows another item
    color_range: tuple[float, float]  # map values drawn transparent and brightest, the same on every image

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.review_threshold is not None and self.review_threshold > self.threshold:
            raise ValueError("review_threshold is above threshold")
        each = {len(values) for values in (self.scores, self.map_maxima, self.distances) if values}
        if self.items and each != {len(self.items)}:
            raise ValueError("there are not as many items as scores")
        low, high = self.color_range
        if not (high - low >= LEAST_RANGE and max(abs(low), abs(high)) <= MAX_VALUE):
            raise ValueError("color_range is no range of a map's values")
        return self


class Frame(_Frozen):
    """How an image is brought before the detector, see framing.py: made as large as the frame, aligned, filled outside
    the region of interest, cut into tiles. All lengths are in pixels of the frame."""

    size: tuple[Side, Side]  # width, height of the frame
    map_size: tuple[Side, Side]  # height, width of the whole image's map
    tile: tuple[Side, Side] | None = None  # width, height; None = the detector sees the image as a whole
    overlap: Place = 0
    # left, top of each, without those wholly outside the region of interest
    tiles: Annotated[tuple[tuple[Place, Place], ...], Field(max_length=MAX_TILES)] = ()
    roi: bool = False
    align: Literal["", "ecc"] = ""
    least_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.0  # with the reference; below it: "error"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_area(self.size, MAX_PIXELS, "size")
        _check_area(self.map_size, MAX_MAP, "map_size")
        # Of a strip that is one tile high, the overlap may be more than that.
        if self.tile and not (
            self.overlap < max(self.tile) and all(t <= s for t, s in zip(self.tile, self.size, strict=True))
        ):
            raise ValueError("the tiles are larger than the frame, or overlap by more than a tile")
        if len(set(self.tiles)) < len(self.tiles):
            raise ValueError("a tile is there twice")
        return self

    @property
    def tile_share(self) -> float:
        """The area of a tile as a share of the frame; 1 without tiles."""
        return self.tile[0] * self.tile[1] / (self.size[0] * self.size[1]) if self.tile else 1.0


class Card(_Frozen):
    format: Literal["blemish bundle 2"] = "blemish bundle 2"
    created: Text
    product: Text
    detector: Text
    settings: dict[str, Any]
    image_size: tuple[Side, Side]  # height, width at which the detector sees an image, or a tile of the frame
    frame: Frame | None = None  # None: images go to the graph as they are, and the maps are of `image_size`
    data: Data
    decision: Decision
    parity: dict[str, float]
    backbone: dict[str, Text]  # with its name and licence
    classes: Annotated[tuple[Text, ...], Field(max_length=MAX_CLASSES)] = ()  # of a classifier, good first
    licences: dict[str, Text]
    versions: dict[str, Text]
    files: Annotated[dict[str, File], Field(max_length=MAX_FILES)] = {}
    sha256: Text = ""  # of the card itself with this field empty

    @field_validator("settings")
    @classmethod
    def _is_json(cls, settings: dict[str, Any]) -> dict[str, Any]:
        json.dumps(settings, allow_nan=False)  # raises ValueError
        return settings

    @field_validator("backbone")
    @classmethod
    def _is_named(cls, backbone: dict[str, str]) -> dict[str, str]:
        if not {"name", "licence"} <= set(backbone):
            raise ValueError("it has no name or no licence")
        return backbone

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        _check_area(self.image_size, MAX_MAP, "image_size")
        if len(self.classes) == 1:
            raise ValueError("there is one class only")
        if any(not name or name in (".", "..") or set(name) & set("/\\\0") for name in self.files):
            raise ValueError("a file has a name with a folder in it")
        if sum(file.bytes for file in self.files.values()) > MAX_TOTAL:
            raise ValueError(f"its files have more than {MAX_TOTAL} bytes")
        frame = self.frame
        # What blends a tile's map holds so many numbers for each axis.
        if frame and frame.tile and max(a * b for a, b in zip(frame.map_size, self.image_size, strict=True)) > MAX_MAP:
            raise ValueError("the frame's map is too large for tiles of this image_size")
        return self

    @property
    def balanced(self) -> bool:
        """Whether a classifier's probabilities are meant for equal odds of its classes."""
        return bool(self.settings.get("head_weights", "auto") == "auto")

    def digest(self) -> str:
        return _digest(self.model_dump(mode="json"))


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of a card's content as it is in the file, so that fields of later versions do not matter to it."""
    return hashlib.sha256(json.dumps({**content, "sha256": ""}, sort_keys=True).encode()).hexdigest()


def _check_area(size: tuple[int, int], most: int, what: str) -> None:
    if size[0] * size[1] > most:
        raise ValueError(f"{what} of {size[0]} x {size[1]}, more than {most:,} altogether")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its card and the bytes of its files, None for those that it does not have."""

    path: Path
    card: Card
    model: bytes
    evidence: bytes | None = None
    roi: bytes | None = None
    reference: bytes | None = None


def made(kind: type[Part], **fields: Any) -> Part:
    """A card or a part of one. Raises `BundleError` for what `read` would refuse, such as a threshold that is NaN."""
    try:
        return kind(**fields)
    except ValidationError as cause:
        raise BundleError(
            f"the {kind.__name__.lower()} of this bundle cannot be written ({_first(cause)}); change the options or "
            "the images, and train again."
        ) from None


def _readable(value: Any) -> Any:
    """The same with names of files that JSON can hold."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_readable, value))
    return readable(value) if isinstance(value, str) else value


def write(folder: Path, card: Card) -> Bundle:
    """Completes a bundle's folder: hashes the files in it and writes the card. Returns the bundle, as `read` would.
    Raises `BundleError` for a card that `read` would refuse."""
    contents = {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.name != CARD and file.is_file() and not is_litter(file.name)
    }
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
    try:
        card = Card.model_validate({**_readable(card.model_dump()), "files": files})
    except ValidationError as cause:
        raise BundleError(f"{folder}: this bundle cannot be written ({_first(cause)}); train it again.") from None
    card = card.model_copy(update={"sha256": card.digest()})
    bundle = _bundle(folder, card, contents)
    write_text(folder / CARD, card.model_dump_json(indent=1) + "\n")
    return bundle


def _bundle(path: Path, card: Card, contents: dict[str, bytes]) -> Bundle:
    if MODEL not in contents:
        raise BundleError(f"{path}: this bundle has no {MODEL}; give what `blemish train` wrote.")
    return Bundle(path, card, contents[MODEL], contents.get(EVIDENCE), contents.get(ROI), contents.get(REFERENCE))


def read(path: Path | str) -> Bundle:
    """Loads and verifies a bundle, a folder or .zip. Raises `BundleError` where it is missing, damaged or not one. Only
    what the card lists is read, and only where it is as large as the card says."""
    path = Path(path)
    with opened(path) as files:
        if CARD not in files.sizes and (path / "bundle" / CARD).exists():
            return read(path / "bundle")  # the run's folder is given
        if CARD not in files.sizes:
            raise without(CARD, files, path)
        if files.sizes[CARD] > MAX_CARD:
            raise BundleError(f"{path}: {CARD} has more than {MAX_CARD:,} bytes; use an untouched copy of the bundle.")
        card = _verified_card(files.read(CARD), path)
        for name in sorted((set(files.sizes) - {CARD}) ^ set(card.files)):
            state = "is missing or no file" if name in card.files else "does not belong to it"
            raise BundleError(f"{path}: {shown(name)} {state}; use an untouched copy of the bundle.")
        for name, file in card.files.items():
            if files.sizes[name] != file.bytes:
                raise BundleError(
                    f"{path}: {shown(name)} is damaged ({files.sizes[name]:,} bytes, the card says {file.bytes:,}); "
                    "copy the bundle again."
                )
        contents = {name: files.read(name) for name in card.files}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != card.files[name].sha256:
            raise BundleError(
                f"{path}: {shown(name)} is damaged (its SHA-256 is not the card's); copy the bundle again."
            )
    return _bundle(path, card, contents)


def _verified_card(written: bytes, path: Path) -> Card:
    try:
        content = json.loads(written, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
        card = Card.model_validate_json(json.dumps(upgraded(content)))
        digest = _digest(content)
    except (ValueError, RecursionError) as cause:  # pydantic's ValidationError is a ValueError
        problem = "too many brackets" if isinstance(cause, RecursionError) else _first(cause)
        raise BundleError(
            f"{path}: the card is not one that blemish can read ({problem}); "
            "the bundle is damaged or from another version: train it again or update blemish."
        ) from None
    if digest != card.sha256:
        raise BundleError(f"{path}: {CARD} was changed after it was written; use an untouched copy of the bundle.")
    return card


def _first(cause: ValueError) -> str:
    """The first problem of a card, with its field."""
    if not isinstance(cause, ValidationError):
        return f"{CARD}: {shown(str(cause))}"
    first = cause.errors()[0]
    return f"{shown('.'.join(map(str, first['loc']))) or CARD}: {shown(first['msg'])}"


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is there twice")  # readers differ in which of the two they take
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def pack(folder: Path, file: Path, *, overwrite: bool = False) -> None:
    """Writes a bundle's folder as one .zip, uncompressed (weights do not compress), with the same bytes every time.
    Raises `BlemishError` where `file` cannot be written, is another's, or exists and `overwrite` is not given."""
    bundle = read(folder)
    check_file(file, f"{CARD}{{\n", [folder])
    if file.exists() and not overwrite:
        raise BlemishError(f"{file} exists; choose another file, or replace it with --overwrite.")
    with replacing(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in [CARD, *sorted(bundle.card.files)]:
            archive.writestr(zipfile.ZipInfo(name), (bundle.path / name).read_bytes())
