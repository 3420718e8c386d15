"""Patterns: grey fields (size, size) in 0..1 from random numbers alone; `procedural.py` makes images from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Field = npt.NDArray[np.floating[Any]]  # (H, W), or (H, W, 3) where it is coloured; 0..1 unless stated otherwise
Random = np.random.Generator

LETTERS = "ABCDEFGHKLMNPRSTUVXYZabcdefghkmnpqrstuvz0123456789+-/.:#%&"


# ---- fields ---------------------------------------------------------------------------------------------------


def stretch(field: Field) -> Field:
    """Linearly to 0..1; a constant field becomes 0.5."""
    low, high = float(field.min()), float(field.max())
    if high - low < 1e-6:
        return np.full_like(field, 0.5)
    return ((field - low) / (high - low)).astype(np.float32)


def noise(rng: Random, size: int, slope: float, stretched: float = 1.0, angle: float = 0.0) -> Field:
    """Gaussian noise, amplitude ~ frequency ** -slope; `stretched` > 1 stretches it along `angle` (radians)."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :]
    along = (fx * np.cos(angle) + fy * np.sin(angle)) * stretched
    across = -fx * np.sin(angle) + fy * np.cos(angle)
    frequency = np.sqrt(along**2 + across**2)
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * frequency**-slope
    spectrum[0, 0] = 0.0
    return stretch(np.fft.irfft2(spectrum, (size, size)).astype(np.float32))


def plane(rng: Random, size: int) -> tuple[Field, Field]:
    """Coordinates (u, v), about -1..1 over the image, turned, sheared, foreshortened and often warped."""
    v, u = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32),) * 2, indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    if rng.random() < 0.3:
        u = u + v * np.float32(rng.uniform(-0.6, 0.6))
    if rng.random() < 0.3:  # perspective
        depth = 1 + np.float32(rng.uniform(0.1, 0.55)) * v
        u, v = u / depth, v / depth
    if rng.random() < 0.45:
        amount = np.float32(10 ** rng.uniform(-1.7, -0.3))
        u = u + amount * (noise(rng, size, rng.uniform(1.6, 2.8)) - 0.5)
        v = v + amount * (noise(rng, size, rng.uniform(1.6, 2.8)) - 0.5)
    return u.astype(np.float32), v.astype(np.float32)


def soft_step(field: Field, at: float, width: float) -> Field:
    step: Field = np.clip((field - at) / max(width, 1e-4) + 0.5, 0, 1).astype(np.float32)
    return step


def wave(phase: Field, rng: Random) -> Field:
    """A periodic profile of period 1: sine, square with soft edges, saw, or narrow lines."""
    kind = rng.integers(4)
    sine: Field = (0.5 + 0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)
    if kind == 0:
        return sine
    if kind == 1:
        return soft_step(sine, rng.uniform(0.2, 0.8), 10 ** rng.uniform(-1.5, -0.2))
    if kind == 2:
        saw: Field = np.mod(phase, 1).astype(np.float32)
        return saw
    lines: Field = sine ** np.float32(rng.uniform(3, 30))
    return lines


def ink(rng: Random, size: int, draw: Callable[[ImageDraw.ImageDraw, int], None]) -> Field:
    """What `draw` paints on a black canvas of twice the size, reduced so that edges are smooth."""
    canvas = Image.new("L", (2 * size, 2 * size), 0)
    draw(ImageDraw.Draw(canvas), 2 * size)
    if rng.random() < 0.3:
        canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 6))))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32) / 255


# ---- patterns: (rng, size) -> Field ---------------------------------------------------------------------------


def clouds(rng: Random, size: int) -> Field:
    return noise(rng, size, rng.uniform(0.3, 2.2))


def brushed(rng: Random, size: int) -> Field:
    return noise(rng, size, rng.uniform(0.3, 1.5), 10 ** rng.uniform(0.5, 2), rng.uniform(0, np.pi))


def labyrinth(rng: Random, size: int) -> Field:
    """Noise of one band of frequencies: blobs, worms, orange peel; hard or soft."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    centre = 10 ** rng.uniform(-1.9, -0.55)
    band = np.exp(-(((frequency - centre) / (centre * rng.uniform(0.1, 0.6))) ** 2))
    field: Field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * band, (size, size))
    field = stretch(field.astype(np.float32))
    return soft_step(field, rng.uniform(0.35, 0.65), 10 ** rng.uniform(-1.5, 0)) if rng.random() < 0.6 else field


def grating(rng: Random, size: int) -> Field:
    u, v = plane(rng, size)
    field = wave(u * np.float32(10 ** rng.uniform(0.2, 1.75)), rng)
    if rng.random() < 0.35:  # a second one: moiré, plaid
        field = field * wave(v * np.float32(10 ** rng.uniform(0.2, 1.75)), rng)
    return stretch(field)


def rings(rng: Random, size: int) -> Field:
    """Turning marks, tree rings, spokes, spirals."""
    u, v = plane(rng, size)
    u, v = u - rng.uniform(-1.2, 1.2), v - rng.uniform(-1.2, 1.2)
    turns = np.arctan2(v, u) / np.float32(2 * np.pi)
    kind = rng.integers(3)
    if kind == 0:
        return wave(np.hypot(u, v) * np.float32(10 ** rng.uniform(0.3, 1.6)), rng)
    if kind == 1:
        return wave(turns * np.float32(rng.integers(3, 40)), rng)
    return wave(np.hypot(u, v) * np.float32(10 ** rng.uniform(0.3, 1.3)) + turns * int(rng.integers(1, 6)), rng)


def cells(rng: Random, size: int) -> Field:
    """Voronoi: distance to the nearest seed, to the border, or a value per cell (grains, stones, foam)."""
    count = int(10 ** rng.uniform(0.8, 2.1))
    u, v = plane(rng, size)
    seeds = rng.uniform(-1.5, 1.5, (count, 2)).astype(np.float32)
    nearest = np.full((size, size), np.inf, np.float32)
    second = nearest.copy()
    which = np.zeros((size, size), np.int64)
    for index, (x, y) in enumerate(seeds):
        distance = (u - x) ** 2 + (v - y) ** 2
        closer = distance < nearest
        second = np.where(closer, nearest, np.minimum(second, distance))
        which[closer] = index
        nearest = np.minimum(nearest, distance)
    border = np.sqrt(second) - np.sqrt(nearest)
    kind = rng.integers(4)
    if kind == 0:
        return stretch(np.sqrt(nearest))
    if kind == 1:
        return soft_step(border, 10 ** rng.uniform(-2, -0.8), 10 ** rng.uniform(-2, -0.7))
    values = rng.random(count).astype(np.float32)[which]
    if kind == 2:
        return values
    return values * soft_step(border, 10 ** rng.uniform(-2, -1), 10 ** rng.uniform(-2, -1))


def julia(rng: Random, size: int) -> Field:
    u, v = plane(rng, size)
    z = ((u + 1j * v) * rng.uniform(0.2, 1.6) + complex(*rng.uniform(-0.5, 0.5, 2))).astype(np.complex64)
    c = np.complex64(0.7885 * np.exp(2j * np.pi * rng.random()) * rng.uniform(0.85, 1.05))
    escaped = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(12, 40))):
        z = z * z + c
        inside = np.abs(z) < 4
        escaped += inside
        z = np.where(inside, z, np.complex64(4))
    return stretch(escaped ** np.float32(rng.uniform(0.4, 1)))


def tiles(rng: Random, size: int) -> Field:
    """Bricks, checks and tiles with joints, each of its own shade."""
    u, v = plane(rng, size)
    u, v = u * np.float32(10 ** rng.uniform(0.2, 1.2)), v * np.float32(10 ** rng.uniform(0.2, 1.2))
    row = np.floor(v)
    u = u + row * rng.choice([0.0, 0.5, 0.33])
    column = np.floor(u)
    shade = np.mod(np.sin(row * 12.9898 + column * 78.233) * 43758.5453, 1).astype(np.float32)
    if rng.random() < 0.3:
        shade = np.mod(row + column, 2).astype(np.float32)
    joint = np.minimum(np.minimum(u - column, 1 - u + column), np.minimum(v - row, 1 - v + row))
    gap = soft_step(joint.astype(np.float32), rng.uniform(0, 0.15), 10 ** rng.uniform(-1.6, -0.5))
    return stretch((0.3 + 0.7 * shade * np.float32(rng.random())) * gap)


def weave(rng: Random, size: int) -> Field:
    """Threads over and under each other."""
    u, v = plane(rng, size)
    count = np.float32(10 ** rng.uniform(0.5, 1.5))
    u, v = u * count, v * count * np.float32(rng.uniform(0.6, 1.6))
    over = np.mod(np.floor(u) + np.floor(v / int(rng.integers(1, 3))), 2) < 1
    warp = np.sin(np.pi * np.mod(u, 1)) * (0.6 + 0.4 * np.sin(np.pi * np.mod(v, 1)))
    weft = np.sin(np.pi * np.mod(v, 1)) * (0.6 + 0.4 * np.sin(np.pi * np.mod(u, 1)))
    return stretch(np.where(over, warp, weft * np.float32(rng.uniform(0.4, 1))).astype(np.float32))


def leaves(rng: Random, size: int) -> Field:
    """Dead leaves: shapes of power-law size that cover each other, like objects in the world."""

    def draw(canvas: ImageDraw.ImageDraw, side: int) -> None:
        kind = rng.integers(4)
        smallest = rng.uniform(0.01, 0.06)
        for _ in range(int(10 ** rng.uniform(1.3, 2.6))):
            radius = side * min(smallest / (1 - rng.random()) ** 0.5, 0.6)
            corners = {0: 32, 1: 4, 2: 3}.get(int(kind), int(rng.integers(3, 9)))
            canvas.polygon(
                polygon(rng, rng.uniform(0, side), rng.uniform(0, side), radius, corners), int(rng.integers(256))
            )

    return ink(rng, size, draw)


def polygon(rng: Random, x: float, y: float, radius: float, corners: int) -> list[tuple[float, float]]:
    """Corners around (x, y): an ellipse where there are many, else slightly irregular."""
    turn = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    reach = radius * (1 if corners > 12 else rng.uniform(0.7, 1.2, corners))
    squeeze, tilt = rng.uniform(0.35, 1), rng.uniform(0, np.pi)
    a, b = reach * np.cos(turn), reach * squeeze * np.sin(turn)
    xs, ys = x + a * np.cos(tilt) - b * np.sin(tilt), y + a * np.sin(tilt) + b * np.cos(tilt)
    return [(float(p), float(q)) for p, q in zip(xs, ys, strict=True)]


def strokes(rng: Random, size: int) -> Field:
    """Scratches, hairs, cracks: lines that wander, thin or thick."""

    def draw(canvas: ImageDraw.ImageDraw, side: int) -> None:
        heading, wander = rng.uniform(0, 2 * np.pi), 10 ** rng.uniform(-2, 0)
        spread, thick = rng.choice([0.1, 0.5, 3.0]), 10 ** rng.uniform(0, 1.2)
        for _ in range(int(10 ** rng.uniform(0.3, 2))):
            steps = int(rng.integers(2, 30))
            angles = heading + spread * rng.standard_normal() + np.cumsum(wander * rng.standard_normal(steps))
            length = side * 10 ** rng.uniform(-2.2, -0.9)
            xs = rng.uniform(0, side) + np.cumsum(length * np.cos(angles))
            ys = rng.uniform(0, side) + np.cumsum(length * np.sin(angles))
            width = max(1, round(thick * rng.uniform(0.3, 1.5)))
            path = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
            canvas.line(path, int(rng.integers(80, 256)), width, joint="curve")

    return ink(rng, size, draw)


def text(rng: Random, size: int) -> Field:
    def draw(canvas: ImageDraw.ImageDraw, side: int) -> None:
        height = int(side * 10 ** rng.uniform(-1.4, -0.3))
        font = ImageFont.load_default(height)
        top = rng.uniform(-height, 0)
        while top < side:
            line = "".join(rng.choice(list(LETTERS + "    "), int(2.5 * side / height) + 1))
            canvas.text((rng.uniform(-height, height), top), line, int(rng.integers(90, 256)), font=font)
            top += height * rng.uniform(1, 1.8)

    return ink(rng, size, draw)


def speckle(rng: Random, size: int) -> Field:
    """Grain: independent pixels or clumps, thin or dense, like sand, terrazzo, dust."""
    coarse = max(4, int(size / rng.choice([1, 1, 2, 3, 5])))
    grain = (rng.random((coarse, coarse)) < 10 ** rng.uniform(-2.3, -0.3)) * rng.uniform(0.3, 1, (coarse, coarse))
    image = Image.fromarray((255 * grain).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.5)))), np.float32) / 255


def bars(rng: Random, size: int) -> Field:
    """Stripes of uneven widths: barcodes, strata, planks."""
    u, _ = plane(rng, size)
    edges = np.sort(rng.uniform(-2, 2, int(10 ** rng.uniform(0.6, 2))))
    return rng.random(len(edges) + 1).astype(np.float32)[np.searchsorted(edges, u)]


def gradient(rng: Random, size: int) -> Field:
    u, v = plane(rng, size)
    if rng.random() < 0.4:
        u = np.hypot(u - rng.uniform(-1, 1), v - rng.uniform(-1, 1)).astype(np.float32)
    return stretch(u) ** np.float32(10 ** rng.uniform(-0.4, 0.4))


def domes(rng: Random, size: int) -> Field:
    """Heights of balls, pills, cones and pits on a floor; `lit` makes them look solid."""
    v, u = np.meshgrid(*(np.arange(size, dtype=np.float32),) * 2, indexing="ij")
    height = np.zeros((size, size), np.float32)
    radius = size * 10 ** rng.uniform(-1.5, -0.4)
    roundness, power = rng.choice([2.0, 2.0, 4.0, 8.0]), rng.uniform(0.4, 1.2)
    for _ in range(int(min(60, rng.uniform(0.2, 1.5) * (size / radius) ** 2 / 3)) + 1):
        r, tilt, squeeze = radius * rng.uniform(0.6, 1.4), rng.uniform(0, np.pi), rng.uniform(0.4, 1)
        x, y = u - rng.uniform(0, size), v - rng.uniform(0, size)
        a, b = x * np.cos(tilt) + y * np.sin(tilt), (y * np.cos(tilt) - x * np.sin(tilt)) / squeeze
        inside = np.clip(1 - (np.abs(a / r) ** roundness + np.abs(b / r) ** roundness), 0, 1)
        height = np.maximum(height, inside**power * (r / radius))
    return stretch(height.astype(np.float32))


PATTERNS: tuple[Callable[[Random, int], Field], ...] = (
    clouds, brushed, labyrinth, grating, rings, cells, julia, tiles, weave, leaves, strokes, text, speckle, bars,
    gradient, domes,
)  # fmt: skip
