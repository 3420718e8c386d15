"""A large demo product: a drilled and engraved plate of brushed steel in images of 4000 x 3000 pixels, with defects
of about 12 to 40 pixels. It is not in the demo line: `blemish demo --draw panel` writes it.

An image is the plate's brightness, drawn in single precision. Defects change windows of it, and the mask is what they
changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.demo.drawing import (
    NOISE,
    Array,
    bell,
    blot,
    box_distance,
    changed,
    generator,
    grid,
    line_cover,
    noise,
    smoothstep,
    stroke,
    wander,
    window,
    write,
)
from blemish.demo.line import VISIBLE, DemoError, claim, mask_image, save
from blemish.types import Progress, silent

SIZE = (4000, 3000)  # width, height
ACROSS, DOWN = 10, 7  # holes
HOLE = 0.011  # radius of a hole, as a share of the width
QUALITY = 92  # of the JPEGs
LEAST, MOST = 12, 40  # length of a defect in pixels


def draw(
    number: int, *, seed: int = 0, defects: tuple[str, ...] = (), size: tuple[int, int] = SIZE, place: str = "train"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """One plate: the image uint8 (H, W, 3), and the mask bool (H, W) of its defects. The same seed, place and number
    give the same plate, good or with `defects` (names from DEFECTS). Raises DemoError for an unknown defect."""
    if unknown := set(defects) - set(DEFECTS):
        raise DemoError(f"'panel' has no defect {sorted(unknown)[0]!r}: choose from {', '.join(DEFECTS)}.")
    rng = generator(seed, "panel", place, number)
    light = _plate(rng, size)
    mask = np.zeros(light.shape, np.bool_)
    for n, kind in enumerate(defects):
        _damage(light, mask, kind, generator(seed, "panel", place, number, kind, n))
    # The sum of two bytes is close enough to a normal distribution, and fast.
    grain = rng.integers(0, 256, (2, *light.shape), dtype=np.uint8).astype(np.float32).sum(0) - 255
    light += grain * (NOISE / 104)
    warmth = 1 + rng.normal(0, 0.008)
    planes = [np.clip(light * tint + 0.5, 0, 255).astype(np.uint8) for tint in (warmth, 1.0, 2 - warmth)]
    return np.stack(planes, axis=2), mask


def write_panel(
    out: Path,
    *,
    train: int = 20,
    good: int = 10,
    defective: int = 3,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
    progress: Progress = silent,
) -> Path:
    """Writes `out/panel` in the MVTec AD layout, JPEG images and PNG masks, `defective` plates of each type; draws
    only what is missing, and returns the folder. Raises DemoError as `line.write_line` does."""
    folder = out / "panel"
    tasks: list[tuple[str, str, int]] = [("train", "good", n) for n in range(train)]
    tasks += [("test", "good", n) for n in range(good)]
    tasks += [("test", kind, n) for kind in DEFECTS for n in range(defective)]
    try:
        claim(folder, seed, list(size))
        for split, kind, number in progress(tasks, "drawing", len(tasks)):
            file = folder / split / kind / f"{number:03d}.jpg"
            if file.exists():
                continue
            defects = () if kind == "good" else (kind,)
            image, mask = draw(number, seed=seed, defects=defects, size=size, place=f"{split}/{kind}")
            if defects:
                save(mask_image(mask), folder / "ground_truth" / kind / f"{number:03d}_mask.png", format="PNG")
            save(Image.fromarray(image), file, format="JPEG", quality=QUALITY, subsampling=0)
    except OSError as error:
        raise DemoError(
            f"Cannot write the demo panel to {folder}: {error.strerror or error}. Choose another folder."
        ) from error
    return folder


def _plate(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """Grey levels (H, W) of a good plate: brushed along x, lit from one side, its holes slightly off their places."""
    width, height = size
    brushed = noise(rng, height, width, (1.2, 90.0)) * 6.0
    brushed += noise(rng, height, width, (3.0, 400.0)) * 5.0
    x, y = grid(height, width)
    tilt, slant = rng.normal(0, 10), rng.normal(0, 10)
    brushed += 128 + rng.normal(0, 3) + tilt * (x / width - 0.5) + slant * (y / height - 0.5)
    brushed += noise(rng, height, width, width / 3) * 4
    shift = rng.normal(0, 0.0012, 2) * width
    for hole_x, hole_y in holes(size):
        jitter = rng.normal(0, 1.0, 2)
        _drill(brushed, hole_x + shift[0] + jitter[0], hole_y + shift[1] + jitter[1], HOLE * width)
    text = f"PL-{rng.integers(0, 100000):05d}  A{rng.integers(0, 10)}"
    _engrave(brushed, text, (width * 0.5 + shift[0], height * 0.965 + shift[1]), width * 0.016)
    return brushed


def holes(size: tuple[int, int]) -> list[tuple[float, float]]:
    """Where the holes are, as (x, y)."""
    width, height = size
    return [
        (width * (column + 0.5) / ACROSS, height * (row + 0.45) / DOWN)
        for row in range(DOWN)
        for column in range(ACROSS)
    ]


def _shape(view: Array) -> tuple[int, int]:
    return view.shape[0], view.shape[1]


def _drill(light: Array, x: float, y: float, radius: float) -> None:
    """A countersunk hole: dark inside, with a ring that the lamp lights on one side."""
    near = rows, columns = window(light.shape, x, y, 1.8 * radius + 2)
    view = light[near]
    across, down = grid(*_shape(view), rows.start, columns.start)
    dx, dy = across - x, down - y
    distance = np.sqrt(dx * dx + dy * dy)
    sink = smoothstep(1.5 * radius + 1, 1.5 * radius - 1, distance)
    view += sink * (45 * (dx * 0.5 + dy * 0.8) / np.maximum(distance, 1) - 8)
    inside = smoothstep(radius + 1, radius - 1, distance)
    view += (22 + 10 * bell((distance - 0.85 * radius) / (0.1 * radius)) - view) * inside


def _engrave(light: Array, text: str, centre: tuple[float, float], height: float) -> None:
    _, columns = window(light.shape, *centre, 12 * height)
    rows = slice(max(0, int(centre[1] - height)), min(light.shape[0], int(centre[1] + height)))
    view = light[rows, columns]
    view *= 1 - 0.45 * write(*_shape(view), text, (centre[0] - columns.start, centre[1] - rows.start), height)


def _damage(light: Array, mask: npt.NDArray[np.bool_], kind: str, rng: np.random.Generator) -> None:
    """Draws one defect, and again elsewhere if it is not visible there."""
    height, width = light.shape
    reach = min(2 * MOST, width // 2 - 1, height // 2 - 1)
    for _ in range(8):
        x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        if kind == "burr":
            places = holes((width, height))
            turn, (at_x, at_y) = rng.uniform(0, 2 * math.pi), places[int(rng.integers(len(places)))]
            x, y = at_x + 1.5 * HOLE * width * math.cos(turn), at_y + 1.5 * HOLE * width * math.sin(turn)
        near = rows, columns = window(light.shape, x, y, reach)
        before = light[near].copy()
        after = before.copy()
        DEFECTS[kind](after, (x - columns.start, y - rows.start), rng.uniform(LEAST, MOST), rng)
        visible = changed(np.repeat(before[..., None], 3, 2), np.repeat(after[..., None], 3, 2), VISIBLE, 1)
        if visible.sum() >= LEAST:
            light[near] = after
            mask[near] |= visible
            return


def _scratch(view: Array, centre: tuple[float, float], length: float, rng: np.random.Generator) -> None:
    turn = rng.uniform(0.3, math.pi - 0.3)  # across the brushing, where it is visible
    start = centre[0] - length / 2 * math.cos(turn), centre[1] - length / 2 * math.sin(turn)
    across, along = stroke(*_shape(view), wander(rng, start, turn, length, 0.3), 6)
    taper = np.clip(np.minimum(along, 1 - along) * 6, 0, 1)
    view += 75 * line_cover(across, 1.3 * taper, 0.7) * taper - 40 * line_cover(across - 2.2, 0.9 * taper, 0.7) * taper


def _pit(view: Array, centre: tuple[float, float], length: float, rng: np.random.Generator) -> None:
    hole = smoothstep(0.0, 0.35, blot(rng, *_shape(view), centre, length / 2, 0.2))
    lip = smoothstep(0.0, 0.35, blot(rng, *_shape(view), (centre[0] + 2, centre[1] + 3), length / 2, 0.2))
    view += 30 * np.clip(lip - hole, 0, 1) - 70 * hole


def _stain(view: Array, centre: tuple[float, float], length: float, rng: np.random.Generator) -> None:
    drop = blot(rng, *_shape(view), centre, length / 2, 0.15)
    view *= 1 - 0.22 * smoothstep(-0.05, 0.15, drop) - 0.12 * bell((drop - 0.05) / 0.08)


def _burr(view: Array, centre: tuple[float, float], length: float, rng: np.random.Generator) -> None:
    u, v = (np.asarray(axis) - at for axis, at in zip(grid(*_shape(view)), centre, strict=True))
    turn = rng.uniform(0, math.pi)
    c, s = math.cos(turn), math.sin(turn)
    chip = box_distance(u * c + v * s, v * c - u * s, length / 2, length / 6, length / 8)
    view += (190 + 25 * noise(rng, *_shape(view), 3.0) - view) * smoothstep(1.0, -1.0, chip)


DEFECTS: dict[str, Callable[[Array, tuple[float, float], float, np.random.Generator], None]] = {
    "scratch": _scratch,
    "pit": _pit,
    "stain": _stain,
    "burr": _burr,
}
