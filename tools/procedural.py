"""Draws images from random numbers alone: `distill.py` trains on them instead of photographs.

An image is a background and a few shapes, each filled with a pattern of `patterns.py`, coloured through a palette,
lit as if it had relief, and then degraded as by a camera. Everything follows from one seed: `image(seed, size)` is
the same array on every run with the same numpy and Pillow.

    python -m tools.procedural sheet.png        # a contact sheet to look at
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from tools.patterns import PATTERNS, Field, Random, domes, gradient, ink, noise, polygon, soft_step, stretch

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB


def pattern(rng: Random, size: int) -> Field:
    """One pattern, or two put together."""
    first = PATTERNS[rng.integers(len(PATTERNS))](rng, size)
    if rng.random() < 0.45:
        second = PATTERNS[rng.integers(len(PATTERNS))](rng, size)
        kind, weight = rng.integers(4), np.float32(rng.uniform(0.1, 0.6))
        if kind == 0:
            first = first * (1 - weight + weight * second)
        elif kind == 1:
            first = (1 - weight) * first + weight * second
        elif kind == 2:
            first = np.maximum(first, second * np.float32(rng.uniform(0.5, 1)))
        else:
            chosen = soft_step(noise(rng, size, 2), rng.uniform(0.3, 0.7), 10 ** rng.uniform(-1.7, -0.3))
            first = first * chosen + second * (1 - chosen)
    return stretch(first.astype(np.float32))


def coloured(rng: Random, field: Field) -> Field:
    """(H, W) -> (H, W, 3) through a palette of 2 to 5 colours: random ones, shades of one, or greys."""
    stops = int(rng.integers(2, 6))
    kind = rng.random()
    if kind < 0.35:
        colours = np.repeat(rng.random((stops, 1)), 3, axis=1)
    elif kind < 0.7:  # shades of one hue, as of one material
        colours = np.clip(
            rng.random((stops, 1)) * rng.uniform(0.3, 1.3, 3) + 0.08 * rng.standard_normal((stops, 3)), 0, 1
        )
    else:
        colours = rng.random((stops, 3))
    if rng.random() < 0.4:  # low contrast, as of most industrial surfaces
        colours = colours.mean(axis=0) + (colours - colours.mean(axis=0)) * rng.uniform(0.1, 0.5)
    positions = np.linspace(0, 1, stops)
    return np.stack([np.interp(field, positions, colours[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def lit(rng: Random, image: Field, height: Field) -> Field:
    """Lambert and Phong: the field as a relief under one lamp."""
    size = height.shape[0]
    smooth = Image.fromarray((255 * height).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2)))
    )
    relief = np.asarray(smooth, np.float32) / 255 * size * np.float32(10 ** rng.uniform(-1.7, -0.5))
    dy, dx = np.gradient(relief)
    length = np.sqrt(dx**2 + dy**2 + 1)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 1.3)
    lamp = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    facing = np.clip((-dx * lamp[0] - dy * lamp[1] + lamp[2]) / length, 0, 1)
    half = lamp + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    gloss = np.clip((-dx * half[0] - dy * half[1] + half[2]) / length, 0, 1) ** rng.uniform(8, 80)
    ambient, shine = rng.uniform(0.1, 0.5), rng.choice([0.0, 0.3, 0.8])
    shaded = image * (ambient + (1 - ambient) * facing)[..., None] + shine * gloss[..., None]
    result: Field = np.clip(shaded, 0, 1).astype(np.float32)
    return result


def surface(rng: Random, size: int) -> Field:
    """A coloured pattern, sometimes lit by the relief of itself or of another one."""
    field = pattern(rng, size)
    image = coloured(rng, field)
    if rng.random() < 0.4:
        height = field if rng.random() < 0.4 else domes(rng, size) if rng.random() < 0.5 else pattern(rng, size)
        image = lit(rng, image, height)
    return image


def outline(rng: Random, size: int) -> Field:
    """The mask of an object: an ellipse, a polygon, a plate with holes, a ring, or a blob; 1 inside."""
    kind = rng.integers(5)
    if kind == 4:
        return soft_step(noise(rng, size, rng.uniform(1.8, 3)), rng.uniform(0.4, 0.7), 10 ** rng.uniform(-1.7, -1))

    def draw(canvas: ImageDraw.ImageDraw, side: int) -> None:
        x, y = rng.uniform(0.1, 0.9, 2) * side
        radius = side * rng.uniform(0.08, 0.6)
        corners = 48 if kind in (0, 3) else int(rng.integers(3, 9))
        canvas.polygon(polygon(rng, x, y, radius, corners), 255)
        if kind == 3:
            canvas.polygon(polygon(rng, x, y, radius * rng.uniform(0.2, 0.8), 48), 0)
        if kind == 2:
            for _ in range(int(rng.integers(1, 6))):
                hole = radius * rng.uniform(0.05, 0.25)
                away = rng.uniform(-0.6, 0.6, 2) * radius
                canvas.polygon(polygon(rng, x + away[0], y + away[1], hole, 32), 0)

    return ink(rng, size, draw)


def photographed(rng: Random, image: Field) -> Field:
    """What a camera does to an image: uneven light, gamma, blur or sharpening, coarse resolution, noise."""
    size = image.shape[0]
    if rng.random() < 0.35:
        image = image * (1 - np.float32(rng.uniform(0.1, 0.7)) * gradient(rng, size)[..., None])
    if rng.random() < 0.4:
        image = np.clip(image, 0, 1) ** np.float32(10 ** rng.uniform(-0.35, 0.35))
    rendered = Image.fromarray((255 * np.clip(image, 0, 1)).astype(np.uint8))
    kind = rng.random()
    if kind < 0.3:
        rendered = rendered.filter(ImageFilter.GaussianBlur(float(10 ** rng.uniform(-0.5, 0.5))))
    elif kind < 0.4:
        rendered = rendered.filter(ImageFilter.UnsharpMask(2, int(rng.integers(50, 250)), 0))
    elif kind < 0.5:
        coarse = int(size * rng.uniform(0.3, 0.8))
        rendered = rendered.resize((coarse, coarse)).resize((size, size), Image.Resampling.BILINEAR)
    image = np.asarray(rendered, np.float32) / 255
    if rng.random() < 0.5:
        grey = rng.random() < 0.6
        grain = rng.standard_normal((size, size, 1 if grey else 3)).astype(np.float32)
        image = image + grain * np.float32(10 ** rng.uniform(-2.3, -0.9))
    if rng.random() < 0.3:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    return image


def image(seed: int, size: int = 192) -> Pixels:
    """The image of this seed: uint8 (size, size, 3) RGB."""
    rng = np.random.default_rng([seed, 2018])
    result = surface(rng, size)
    for _ in range(int(rng.choice([0, 0, 1, 1, 2, 3, 5]))):
        inside = outline(rng, size)[..., None]
        if rng.random() < 0.3:  # its shadow first
            shift = tuple(int(s) for s in rng.integers(-size // 16, size // 16 + 1, 2))
            result = result * (1 - np.float32(rng.uniform(0.2, 0.7)) * np.roll(inside, shift, (0, 1)))
        result = result * (1 - inside) + surface(rng, size) * inside
    return np.rint(255 * np.clip(photographed(rng, result), 0, 1)).astype(np.uint8)


def main() -> None:
    side, across = 192, 8
    sheet = np.concatenate(
        [np.concatenate([image(row * across + i, side) for i in range(across)], axis=1) for row in range(6)]
    )
    Image.fromarray(sheet).save(sys.argv[1] if len(sys.argv) > 1 else "sheet.png")


if __name__ == "__main__":
    main()
