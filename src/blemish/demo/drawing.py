"""Primitives of the drawn images: noise, strokes, blots, light, blur, compositing, a camera.

Pure functions of their arguments. Layers are float32 `(H, W)`; colour scenes are planar float32 `(3, H, W)` in linear
light, about 0..1 where a white sheet is 0.9 and highlights may exceed 1. Lengths are pixels. A surface is described by
its slopes `(-dh/dx, -dh/dy)`: a slope of 0.1 tilts the normal by about 6 degrees.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Array = npt.NDArray[np.floating[Any]]  # float32, which numpy's type stubs often cannot infer
Mask = npt.NDArray[np.bool_]
Colour = tuple[float, float, float]
_D = TypeVar("_D", bound=np.generic)

NOISE = 1.35  # standard deviation of the camera's noise, grey levels
FAR = 1e6  # the distance that `stroke` gives where the stroke is out of reach


@dataclass(frozen=True, slots=True)
class Flaw:
    """One defect to draw: its type, its severity (0.25 subtle .. 1 obvious), and the key of its random numbers."""

    kind: str
    severity: float
    key: tuple[int | str, ...]


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on the key alone, so that no image influences another."""
    digest = hashlib.sha256("/".join(str(k) for k in key).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def grid(height: int, width: int, top: int = 0, left: int = 0) -> tuple[Array, Array]:
    """Pixel-centre coordinates `x (1, W)` and `y (H, 1)`, ready to broadcast."""
    x = np.arange(left, left + width, dtype=np.float32)[None, :] + np.float32(0.5)
    y = np.arange(top, top + height, dtype=np.float32)[:, None] + np.float32(0.5)
    return x, y


def window(shape: tuple[int, ...], x: float, y: float, reach: float) -> tuple[slice, slice]:
    """Rows and columns of a layer of `shape` (H, W) within `reach` of a point."""
    rows = slice(max(0, int(y - reach)), max(0, min(shape[0], int(y + reach) + 1)))
    return rows, slice(max(0, int(x - reach)), max(0, min(shape[1], int(x + reach) + 1)))


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, a smooth cubic between; `low > high` falls instead of rising."""
    t = np.clip((x - low) * (1.0 / (high - low)), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def bell(x: Array) -> Array:
    """exp(-x²/2)."""
    return np.asarray(np.exp(-0.5 * x * x))


def bump(x: Array) -> Array:
    """A bell that is exactly 0 beyond -1 and 1, so that what it displaces stays in place outside."""
    return np.asarray(np.maximum(1.0 - x * x, 0.0) ** 2)


def mix(base: Array, top: Array | float, alpha: Array) -> Array:
    """`top` laid over `base` with coverage alpha 0..1."""
    return np.asarray(base + (top - base) * alpha)


def paint(scene: Array, colour: Colour, alpha: Array) -> None:
    """Lays one linear colour over a planar scene `(3, H, W)`, in place, with coverage alpha `(H, W)`."""
    for plane, value in zip(scene, colour, strict=True):
        plane += (value - plane) * alpha


def resize(layer: Array, height: int, width: int, box: tuple[float, float, float, float] | None = None) -> Array:
    """A layer `(h, w)` resampled bicubically to `(height, width)`; `box` is the source window, in source pixels."""
    image = Image.fromarray(np.ascontiguousarray(layer, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)


def noise(
    rng: np.random.Generator, height: int, width: int, scale: float | tuple[float, float], octaves: int = 1
) -> Array:
    """Smooth random layer, mean 0, deviation about 1; features about `scale` pixels wide (or `(down, across)`).

    Each further octave has half the scale and half the strength.
    """
    down, across = scale if isinstance(scale, tuple) else (scale, scale)
    total = np.zeros((height, width), np.float32)
    strength, power = 1.0, 0.0
    for _ in range(octaves):
        down, across = max(down, 1.0), max(across, 1.0)
        rows, columns = math.ceil(height / down) + 3, math.ceil(width / across) + 3
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        x, y = rng.uniform(0.5, 1.5, 2).tolist()
        total += strength * resize(coarse, height, width, (x, y, x + width / across, y + height / down))
        power += strength * strength
        strength, down, across = strength / 2, down / 2, across / 2
    total *= 1.25 / math.sqrt(power)  # bicubic interpolation reduces the deviation to about 0.8
    return total


def crop(rng: np.random.Generator, layer: Array, size: int) -> Array:
    """A random `(size, size)` window of a larger square layer: a cheap way to vary a texture."""
    top, left = rng.integers(0, layer.shape[0] - size + 1, 2).tolist()
    return layer[top : top + size, left : left + size]


def blur(layer: Array, sigma: float) -> Array:
    """Gaussian blur over the last two axes, edges repeated. Above 4 pixels it works on a shrunken copy."""
    if sigma <= 0.05:
        return layer
    if sigma > 4.0:
        height, width = layer.shape[-2:]
        factor = sigma / 2.0
        small = (max(2, round(height / factor)), max(2, round(width / factor)))
        planes = layer.reshape(-1, height, width)
        blurred = [resize(blur(resize(plane, *small), 2.0), height, width) for plane in planes]
        return np.stack(blurred).reshape(layer.shape)
    reach = max(1, math.ceil(2.7 * sigma))
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(reach + 1)]
    norm = taps[0] + 2 * sum(taps[1:])
    for axis in (-2, -1):
        shifted = _shifted(layer, axis, reach, "edge")
        layer = shifted[reach] * (taps[0] / norm)
        for k in range(1, reach + 1):
            pair = shifted[reach - k] + shifted[reach + k]
            pair *= taps[k] / norm
            layer += pair
    return layer


def _shifted(layer: npt.NDArray[_D], axis: int, reach: int, mode: Literal["edge", "constant"]) -> list[npt.NDArray[_D]]:
    """The layer shifted along `axis` by -reach .. reach pixels, padded with its edge or with zeros."""
    widths = [(0, 0)] * layer.ndim
    widths[axis] = (reach, reach)
    padded = np.moveaxis(np.pad(layer, widths, mode=mode), axis, 0)
    count = layer.shape[axis]
    return [np.moveaxis(padded[k : k + count], 0, axis) for k in range(2 * reach + 1)]


def slopes(height: Array) -> tuple[Array, Array]:
    """`(-dh/dx, -dh/dy)` of a height layer, central differences."""
    sx, sy = np.zeros_like(height), np.zeros_like(height)
    np.subtract(height[:, :-2], height[:, 2:], out=sx[:, 1:-1])
    np.subtract(height[:-2], height[2:], out=sy[1:-1])
    sx *= 0.5
    sy *= 0.5
    return sx, sy


def glint(sx: Array, sy: Array, towards: tuple[float, float], spread: float) -> Array:
    """Light that a rough mirror reflects into the camera from a lamp whose half-way slope is `towards`, 0..1."""
    dx, dy = sx - towards[0], sy - towards[1]
    return np.asarray(np.exp((dx * dx + dy * dy) * (-0.5 / (spread * spread))))


def wander(
    rng: np.random.Generator, start: tuple[float, float], angle: float, length: float, curl: float, steps: int = 24
) -> npt.NDArray[np.float64]:
    """A path `(steps + 1, 2)` of x, y that keeps turning slightly; `curl` is the standard deviation of its total turn,
    in radians."""
    turn = np.cumsum(rng.normal(0.0, curl / math.sqrt(steps), steps))
    turn = np.convolve(np.pad(turn, 2, mode="edge"), np.ones(5) / 5, mode="valid") + angle
    step = length / steps
    path = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], axis=1) * step, axis=0)
    return np.asarray(np.vstack([[0.0, 0.0], path]) + np.asarray(start))


def stroke(height: int, width: int, points: npt.ArrayLike, reach: float) -> tuple[Array, Array]:
    """Signed distance to a polyline, and the position along it (0 start .. 1 end), each `(H, W)`.

    Pixels farther than `reach` get the distance `FAR`. Positive distances lie to the right of the direction of travel
    as seen on screen (y down).
    """
    line = np.asarray(points, dtype=np.float64)
    across = np.full((height, width), FAR, np.float32)
    along = np.zeros((height, width), np.float32)
    spans = np.hypot(*np.diff(line, axis=0).T)
    ends = np.concatenate([[0.0], np.cumsum(spans)]) / max(float(spans.sum()), 1e-9)
    for n, span in enumerate(spans.tolist()):
        if span < 1e-6:
            continue
        (x0, y0), (x1, y1) = line[n].tolist(), line[n + 1].tolist()
        left, right = max(0, math.floor(min(x0, x1) - reach)), min(width, math.ceil(max(x0, x1) + reach))
        top, bottom = max(0, math.floor(min(y0, y1) - reach)), min(height, math.ceil(max(y0, y1) + reach))
        if left >= right or top >= bottom:
            continue
        x, y = grid(bottom - top, right - left, top, left)
        ux, uy = (x1 - x0) / span, (y1 - y0) / span
        dx, dy = x - x0, y - y0
        t = np.clip(dx * ux + dy * uy, 0.0, span)
        off_x, off_y = dx - t * ux, dy - t * uy
        distance = np.sqrt(off_x * off_x + off_y * off_y)
        distance = np.where(dx * uy - dy * ux > 0, -distance, distance)
        window = (slice(top, bottom), slice(left, right))
        nearer = (np.abs(distance) < np.abs(across[window])) & (np.abs(distance) <= reach)
        across[window][nearer] = distance[nearer]
        along[window][nearer] = (ends[n] + t * ((ends[n + 1] - ends[n]) / span))[nearer]
    return across, along


def line_cover(across: Array, radius: Array | float, soft: float = 0.6) -> Array:
    """Coverage 0..1 of a stroke of that half-width, its edge `2 * soft` pixels wide."""
    return np.clip((radius - np.abs(across)) * (0.5 / soft) + 0.5, 0.0, 1.0)


def blot(
    rng: np.random.Generator, height: int, width: int, centre: tuple[float, float], radius: float, ragged: float = 0.3
) -> Array:
    """An irregular blob: about 1 at its centre, 0 on its outline, negative outside; `ragged` 0 gives an ellipse."""
    x, y = grid(height, width)
    stretch, turn = rng.uniform(0.75, 1.33), rng.uniform(0.0, math.pi)
    c, s = math.cos(turn), math.sin(turn)
    dx, dy = x - centre[0], y - centre[1]
    u, v = (dx * c + dy * s) * stretch, (dy * c - dx * s) / stretch
    wave = noise(rng, height, width, max(2.0, radius * 0.6), 4)
    return 1.0 - np.sqrt(u * u + v * v) * (1.0 / radius) + ragged * wave


def box_distance(u: Array, v: Array, half_width: float, half_height: float, corner: float = 0.0) -> Array:
    """Signed distance (negative inside) to a box around the origin with rounded corners."""
    du = np.abs(u) - (half_width - corner)
    dv = np.abs(v) - (half_height - corner)
    inside = np.minimum(np.maximum(du, dv), 0.0) - corner
    du, dv = np.maximum(du, 0.0), np.maximum(dv, 0.0)
    return np.asarray(np.sqrt(du * du + dv * dv) + inside)


@lru_cache(maxsize=256)
def _lettering(text: str, pixels: int) -> Array:
    font = ImageFont.load_default(size=pixels)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    sheet = Image.new("L", (max(1, right - left) + 4, max(1, bottom - top) + 4), 0)
    ImageDraw.Draw(sheet).text((2 - left, 2 - top), text, fill=255, font=font)
    return np.asarray(sheet, dtype=np.float32) / np.float32(255)


def write(height: int, width: int, text: str, centre: tuple[float, float], size: float, angle: float = 0.0) -> Array:
    """Coverage `(H, W)` of one line of text around a centre; `size` is the font's height, `angle` turns clockwise."""
    pixels = 48  # drawn large once, then reduced by resampling
    sheet = _lettering(text, pixels)
    scale = pixels / size
    smooth = blur(sheet, 0.4 * scale) if scale > 1.2 else sheet
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    h, w = sheet.shape
    matrix = (c, s, w / 2 - c * centre[0] - s * centre[1], -s, c, h / 2 + s * centre[0] - c * centre[1])
    return np.clip(affine(smooth, height, width, matrix), 0.0, 1.0)


def affine(layer: Array, height: int, width: int, matrix: Sequence[float]) -> Array:
    """A layer resampled: output (x, y) reads `(a x + b y + c, d x + e y + f)`; 0 outside the source."""
    image = Image.fromarray(np.ascontiguousarray(layer, dtype=np.float32))
    turned = image.transform((width, height), Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BICUBIC)
    return np.asarray(turned, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Camera:
    """One exposure's settings. `gain` holds exposure and white balance; `noise` (H, W, 3) is in grey levels."""

    gain: Colour
    softness: float
    vignette: float
    noise: Array


def camera(rng: np.random.Generator, size: int) -> Camera:
    """A random exposure of an industrial camera: slight blur, vignetting, noise, drift of exposure and balance."""
    exposure = rng.normal(1.0, 0.025)
    red, blue = rng.normal(0.0, 0.008, 2).tolist()
    # The sum of three bytes is close enough to a normal distribution, and ten times as fast.
    dice = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    grain = dice[0].astype(np.float32)
    grain += dice[1]
    grain += dice[2]
    grain -= 382.5
    grain *= NOISE / 128.0
    return Camera(
        gain=(exposure * (1 + red), exposure, exposure * (1 + blue)),
        softness=size / 512 * rng.uniform(0.45, 0.62),
        vignette=rng.uniform(0.16, 0.24),
        noise=grain,
    )


@lru_cache(maxsize=1)
def _tone_curve() -> Array:
    """Display grey levels 0..255 for sqrt(linear light) in 4096 steps up to light 4: a soft shoulder, then sRGB."""
    light = np.linspace(0.0, 2.0, 4096) ** 2
    rolled = np.where(light < 0.6, light, 0.6 + 0.4 * (1 - np.exp(-(light - 0.6) / 0.4)))
    srgb = np.where(rolled <= 0.0031308, 12.92 * rolled, 1.055 * np.maximum(rolled, 1e-9) ** (1 / 2.4) - 0.055)
    return (255 * srgb).astype(np.float32)


def expose(scene: Array, settings: Camera) -> Array:
    """The camera's image `(H, W, 3)` of a planar scene, in grey levels 0..255, without its noise."""
    planes = blur(scene, settings.softness)
    size = planes.shape[-1]
    x, y = grid(planes.shape[-2], size)
    x, y = (x - size / 2) * (2 / size), (y - size / 2) * (2 / size)
    fall = np.maximum(1.0 - settings.vignette * 0.5 * (x * x + y * y), 0.0)
    image = np.empty((*planes.shape[1:], 3), np.float32)
    for k, plane in enumerate(planes):
        steps = np.sqrt(np.maximum(plane * (fall * settings.gain[k]), 0.0)) * (4095 / 2)
        image[..., k] = _tone_curve()[np.minimum(steps, 4095).astype(np.int32)]
    return image


def digitise(image: Array, settings: Camera) -> npt.NDArray[np.uint8]:
    """The image with this camera's noise, as uint8."""
    return np.asarray(np.clip(image + settings.noise + np.float32(0.5), 0, 255), dtype=np.uint8)


def grow(mask: Mask, radius: int) -> Mask:
    """The mask dilated by a square: every pixel within `radius` rows and columns of it."""
    for axis in (0, 1):
        mask = np.logical_or.reduce(_shifted(mask, axis, radius, "constant"))
    return mask


def changed(before: Array, after: Array, levels: float = 4.0, close: int = 2) -> Mask:
    """Pixels `(H, W)` where two images `(H, W, 3)` differ by more than `levels` grey levels in some channel.

    Gaps of up to `2 * close` pixels inside the changed area are filled: pixels there happen to look the same.
    """
    mask = np.asarray(np.abs(after - before).max(axis=2) > levels)
    if close and mask.any():
        mask |= ~grow(~grow(mask, close), close)
    return mask
