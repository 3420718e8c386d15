"""The file of `--roi`: a mask image, or polygons as JSON. What is wrong with it is said before any image is read where
the file alone shows it, otherwise before anything is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from blemish.images import load_mask, read_size
from blemish.inference.framing import Mask
from blemish.types import BlemishError

FORM = '{"polygons": [[[x, y], ...], ...]}'
LARGEST_FILE = 10_000_000  # bytes of polygons
FARTHEST = 1e6  # pixels: no image is as large
LEAST = 64  # pixels that the detector sees of the region, about one patch of 8 x 8
# Keys by which polygons of other programs are known.
OTHERS = {
    "shapes": "LabelMe",
    "annotations": "COCO or Label Studio",
    "categories": "COCO",
    "features": "GeoJSON",
    "coordinates": "GeoJSON",
    "regions": "VIA",
    "_via_img_metadata": "VIA",
    "objects": "Supervisely",
    "item": "Darwin",
    "instances": "SuperAnnotate",
}

Polygon = list[tuple[float, float]]


class Polygons(NamedTuple):
    """A region of interest in pixels of the images: inside one of `polygons`, and outside `holes`."""

    polygons: list[Polygon]
    holes: list[Polygon]


def check_file(file: Path) -> None:
    """Raises `BlemishError`, before any image is read, for what the file alone shows: no such file, no mask image, no
    polygons."""
    if not file.is_file():
        raise BlemishError(f"{file}: there is no such file; --roi takes a mask image or a .json of polygons.")
    if _is_json(file):
        read_polygons(file)
    else:
        read_size(file)


def read_roi(file: Path, size: tuple[int, int]) -> Mask:
    """The region of interest, bool (H, W), of a frame of `size` (width, height). `file` is a mask of that size, white
    inside the region, or JSON with coordinates in its pixels: `{"polygons": [[[x, y], ...], ...], "holes": [...]}`.

    Raises `BlemishError` for anything else, and if the region is empty or the whole image.
    """
    if _is_json(file):
        roi = _drawn(read_polygons(file), file, size)
    else:
        mask_size = read_size(file)
        if mask_size != size:
            raise BlemishError(
                f"{file}: has {mask_size[0]} x {mask_size[1]} pixels, the images {size[0]} x {size[1]}; make "
                "the mask as large as the images."
            )
        roi = load_mask(file, (size[1], size[0]))
    if not roi.any():
        raise BlemishError(f"{file}: nothing of the images is inside; mark where they count (white in a mask).")
    if roi.all():
        raise BlemishError(f"{file}: the whole image is inside, so it changes nothing; omit --roi.")
    return roi


def check_seen(file: Path, roi: Mask, scale: tuple[float, float]) -> None:
    """Raises `BlemishError` for a region of which the detector would see next to nothing. `scale` (x, y) is how large
    it sees a pixel of the images."""
    seen = roi.sum() * scale[0] * scale[1]
    if seen < LEAST:
        what = "1 pixel of the images is" if roi.sum() == 1 else f"{roi.sum()} pixels of the images are"
        raise BlemishError(
            f"{file}: {what} inside, {seen:.2g} of those that the detector sees, and it needs {LEAST}; mark a larger "
            "region, or give a larger --image-size."
        )


def read_polygons(file: Path) -> Polygons:
    """The polygons of a JSON file: UTF-8, UTF-16 or UTF-32, with a byte order mark or without. Raises `BlemishError`
    for anything else than `FORM`, with "holes" in the same form if there are any."""
    try:
        if (length := file.stat().st_size) > LARGEST_FILE:
            raise BlemishError(f"{file}: has {length} bytes, more than polygons take; is it the right file?")
        text = file.read_bytes()
        if not text.strip():
            raise BlemishError(f"{file}: is empty; write {FORM} into it.")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as cause:
        raise BlemishError(f"{file}: cannot be read as JSON ({cause}); correct it.") from None
    if not isinstance(content, dict) or not content.get("polygons") or set(content) - {"polygons", "holes"}:
        raise BlemishError(f'{file}: {_other(content)}must be {FORM}, and may have "holes" in the same form.')
    return Polygons(_polygons(content["polygons"], file), _polygons(content.get("holes") or [], file))


def _is_json(file: Path) -> bool:
    return file.suffix.lower() == ".json"


def _other(content: Any) -> str:
    """What the file is instead, where that can be told."""
    keys = content if isinstance(content, dict) else content[0] if isinstance(content, list) and content else {}
    known = next((name for key, name in OTHERS.items() if isinstance(keys, dict) and key in keys), "")
    return f"is a file of {known}; its polygons " if known else ""


def _polygons(content: Any, file: Path) -> list[Polygon]:
    if not isinstance(content, list) or not all(map(_is_polygon, content)):
        raise BlemishError(f"{file}: a polygon is a list of at least three points [x, y], in pixels of the images.")
    polygons = [[(float(x), float(y)) for x, y in polygon] for polygon in content]
    if any(all(0 <= number <= 1 for point in polygon for number in point) for polygon in polygons):
        raise BlemishError(
            f"{file}: coordinates from 0 to 1 are shares of the image, and --roi takes pixels; multiply each x by the "
            "images' width and each y by their height."
        )
    return polygons


def _is_polygon(content: Any) -> bool:
    return isinstance(content, list) and len(content) >= 3 and all(map(_is_point, content))


def _is_point(content: Any) -> bool:
    # Not NaN, not infinite: every comparison with NaN is false.
    return (
        isinstance(content, list)
        and len(content) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= FARTHEST for n in content)
    )


def _drawn(region: Polygons, file: Path, size: tuple[int, int]) -> Mask:
    """The region as a mask, bool (H, W). Raises `BlemishError` for a polygon that is wholly outside."""
    whole = np.zeros((size[1], size[0]), bool)
    for number, polygon in enumerate(region.polygons, start=1):
        inside = _filled(polygon, size)
        if not inside.any():
            which = f"polygon {number} is outside" if len(region.polygons) > 1 else "the polygon is outside"
            raise BlemishError(
                f"{file}: nothing of the images is inside: they have {size[0]} x {size[1]} pixels, and {which}; draw "
                "it on an image of that size."
            )
        whole |= inside
    for hole in region.holes:
        whole &= ~_filled(hole, size)
    return whole


def _filled(polygon: Polygon, size: tuple[int, int]) -> Mask:
    image = Image.new("L", size)
    ImageDraw.Draw(image).polygon(polygon, fill=255, outline=255)
    return np.asarray(image) > 0
