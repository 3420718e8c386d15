"""Synthetic defects: a good image with one foreign shape drawn into it, and the mask of that shape.

Three kinds: a rectangle of one colour (opaque or translucent), a crop from elsewhere in the same image, and a
foreign piece from another image. The shapes are upright or rotated, their edges hard or soft.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blemish.types import BlemishError

KINDS = ("rectangle", "crop", "foreign")
AREA = (0.002, 0.03)  # share of the image; log-uniform, so that small and large defects are equally likely
FEWEST = 9  # pixels of a defect, however small the image
LONGEST = 3.0  # largest ratio of length to width
VISIBLE, SEEN = 12, 0.5  # at least the share SEEN of the mask's pixels changes by VISIBLE grey levels in some channel
ATTEMPTS = 24  # draws of one kind before another kind is tried
ROTATED = TRANSLUCENT = SOFT = 0.5  # shares of defects
FAINTEST = 0.1  # opacity at which a soft edge ends

Pixels = npt.NDArray[np.uint8]


class Corrupted(NamedTuple):
    """`image` uint8 (H, W, 3); `mask` bool (H, W), True where pixels were replaced; `kind`, one of KINDS."""

    image: Pixels
    mask: npt.NDArray[np.bool_]
    kind: str


def corrupt(
    image: Pixels,
    rng: np.random.Generator,
    *,
    others: Sequence[Pixels] = (),
    kinds: Sequence[str] = KINDS,
    area: tuple[float, float] = AREA,
    first: str = "",
) -> Corrupted:
    """A copy of `image` (uint8 (H, W, 3)) with one defect: of the kind `first` where that is one of `kinds` and
    gives a visible defect, else of one of `kinds` at random.

    Foreign pieces come from `others` (uint8 (h, w, 3), of any size); without them that kind is left out. `area` is the
    smallest and the largest share of the image that a defect covers (approximately: it consists of whole pixels, and of
    at least FEWEST). A grey image gets grey defects, so that colour does not reveal them.

    A defect is visible where at least SEEN of the mask's pixels differ from the original by VISIBLE grey levels or
    more in some channel. It is drawn again until it is, and after ATTEMPTS draws another kind is tried.
    Raises BlemishError for unknown kinds, or where no kind gives a visible defect (a crop of a uniform image).
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image uint8 (H, W, 3); got {image.dtype} {image.shape}")
    check_kinds(kinds)
    if not 0 < area[0] <= area[1] <= 1:
        raise BlemishError(f"The area of defects is {area}; it must be two shares of the image, the smaller first.")
    usable = [kind for kind in kinds if kind != "foreign" or others]
    order = [usable[index] for index in rng.permutation(len(usable))]
    for kind in sorted(order, key=lambda kind: kind != first):
        for _ in range(ATTEMPTS):
            if drawn := _drawn(image, kind, others, area, rng):
                return drawn
    if not usable:
        raise BlemishError("Foreign pieces come from other images, but there are none; add images or other kinds.")
    raise BlemishError(
        f"No defect of kind {' or '.join(usable)} is visible in this image, because too much of it looks alike; "
        "allow the kind rectangle too."
    )


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises BlemishError for no kinds or unknown ones."""
    for kind in kinds or [""]:
        if kind not in KINDS:
            raise BlemishError(f"There is no kind of defect {kind!r}; choose from {', '.join(KINDS)}.")


def _drawn(
    image: Pixels, kind: str, others: Sequence[Pixels], area: tuple[float, float], rng: np.random.Generator
) -> Corrupted | None:
    """One defect, or None where it is not visible, or too small because a rotated shape misses pixel centres."""
    height, width = image.shape[:2]
    opacity = _shape(height, width, area, rng)
    rows, columns = opacity.shape
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    window = image[top : top + rows, left : left + columns]
    content: npt.NDArray[np.generic]
    if kind == "rectangle":
        content = rng.integers(256, size=1 if _is_grey(image) else 3)
        if rng.random() < TRANSLUCENT:
            opacity *= rng.uniform(0.3, 0.9)
    elif kind == "crop":
        content = _piece(image, rows, columns, rng)
    else:
        content = _piece(others[int(rng.integers(len(others)))], rows, columns, rng)
    before = window.astype(np.float32)
    after = np.rint(before + opacity[..., None] * (content - before))
    inside = opacity > 0
    change = np.abs(after - before)
    largest = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])  # .max(axis=2) is slow
    count = np.count_nonzero(inside)  # outside the shape nothing changes
    if count < min(FEWEST, height * width) or np.count_nonzero(largest >= VISIBLE) < SEEN * count:
        return None
    result = image.copy()
    result[top : top + rows, left : left + columns] = after.astype(np.uint8)
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + rows, left : left + columns] = inside
    return Corrupted(result, mask, kind)


def _shape(height: int, width: int, area: tuple[float, float], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """The opacity (h, w), 0..1, of a random rectangle inside its bounding box, which fits into the image."""
    pixels = height * width * math.exp(rng.uniform(math.log(area[0]), math.log(area[1])))
    pixels = min(max(pixels, FEWEST), height * width)
    aspect = math.exp(rng.uniform(-math.log(LONGEST), math.log(LONGEST)))
    rows = min(max(math.sqrt(pixels / aspect), pixels / width), height)
    columns = min(pixels / rows, width)
    shorter = min(rows, columns)
    soft = rng.uniform(1, min(shorter / 3, 6)) if shorter > 3 and rng.random() < SOFT else 0.0
    angle = rng.uniform(0, math.pi / 2) if rng.random() < ROTATED else 0.0
    sine, cosine = math.sin(angle), math.cos(angle)
    box = (math.ceil(rows * cosine + columns * sine), math.ceil(columns * cosine + rows * sine))
    if not angle or box[0] > height or box[1] > width:
        sine, cosine = 0.0, 1.0
        rows, columns = box = (max(1, round(rows)), max(1, round(columns)))  # whole pixels
    y = (np.arange(box[0], dtype=np.float32) - (box[0] - 1) / 2)[:, None]
    x = np.arange(box[1], dtype=np.float32) - (box[1] - 1) / 2
    # Distance to the nearest side, in pixels, positive inside.
    inside = np.minimum(rows / 2 - np.abs(cosine * y - sine * x), columns / 2 - np.abs(sine * y + cosine * x))
    if not soft:
        return (inside > 0).astype(np.float32)
    opacity = np.clip(inside / soft, 0, 1).astype(np.float32)
    opacity[opacity < FAINTEST] = 0
    return opacity


def _piece(source: Pixels, rows: int, columns: int, rng: np.random.Generator) -> Pixels:
    """`rows` x `columns` pixels from anywhere in `source`, rotated by 0 to 3 quarters; enlarged where too small."""
    quarters = int(rng.integers(4))
    wanted = (columns, rows) if quarters % 2 else (rows, columns)
    places = []
    for length, whole in zip(wanted, source.shape[:2], strict=True):
        taken = min(length, whole)
        places.append(int(rng.integers(whole - taken + 1)) + np.arange(length) * taken // length)
    return np.rot90(source[np.ix_(*places)], quarters)


def _is_grey(image: Pixels) -> bool:
    """Judged by some thousand pixels of a large image: checking all would take longer than drawing the defect."""
    step = max(1, min(image.shape[:2]) // 32)
    sampled = image[::step, ::step]
    return bool((sampled == sampled[..., :1]).all())
