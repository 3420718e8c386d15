"""Herringbone cloth under a raking lamp: ecru weft over an indigo warp with pinstripes.

The weave is computed thread by thread. `u` counts warp threads across the image, `v` weft threads down it. Each
thread is a cylinder that rises where it passes over another by the pattern; the higher of the two is visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from blemish.demo.drawing import (
    FAR,
    Array,
    Colour,
    Flaw,
    affine,
    bell,
    blot,
    bump,
    crop,
    generator,
    grid,
    line_cover,
    mix,
    noise,
    smoothstep,
    stroke,
    wander,
)

DEFECTS = ("hole", "missing_weft", "pulled_thread", "stain", "foreign_fibre", "slub", "wrong_draw")

THREADS = 54  # across the image
BAND = 9  # warp threads before the herringbone turns
STRIPE = 27  # warp threads between pinstripes
MARGIN = 8  # threads beyond the image's edge
WARP, WEFT, PINSTRIPE = (0.042, 0.075, 0.165), (0.60, 0.535, 0.42), (0.42, 0.105, 0.05)
LAMP = (-0.46, -0.52, 0.72)


@dataclass
class _Cloth:
    """The geometry of the threads before they are drawn; flaws change it."""

    u: Array  # thread coordinates of every pixel
    v: Array
    over: npt.NDArray[np.float32]  # (warps, wefts): +1 where the warp passes over, -1 where under
    warp_gone: Array  # above 0 where the warp thread is absent
    weft_gone: Array
    warp_width: Array  # half-widths in threads
    weft_width: Array
    x: Array
    y: Array
    pitch: float
    hairs: list[tuple[Array, Array, float, Colour, float]] = field(default_factory=list)  # arguments of `_lay`

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape[0], self.u.shape[1]


def scene(key: Sequence[int | str], size: int, flaws: Sequence[Flaw]) -> Array:
    """The scene `(3, size, size)` in linear light; the same key gives the same cloth with or without flaws."""
    rng = generator(*key, "part")
    pitch = size / THREADS
    x, y = grid(size, size)
    turn = math.radians(rng.normal(0, 0.7))
    c, s = math.cos(turn) / pitch, math.sin(turn) / pitch
    across, along = rng.uniform(-0.5, 0.5), rng.uniform(0, 8)
    count = THREADS + 2 * MARGIN + 16
    u = c * x + s * y + (MARGIN + across)
    v = c * y - s * x + (MARGIN + along)
    u = u + 0.10 * noise(rng, size, size, size / 4) + 0.045 * noise(rng, size, size, (pitch * 4, pitch * 1.2))
    v = v + 0.16 * noise(rng, size, size, size / 3) + 0.05 * noise(rng, size, size, (pitch * 1.2, pitch * 4))
    uneven = [0.02 * rng.standard_normal(count, dtype=np.float32) for _ in range(2)]
    shades = [1 + 0.055 * rng.standard_normal(count, dtype=np.float32) for _ in range(2)]
    widths = [
        0.475 + 0.02 * noise(rng, size, size, (pitch * 6, pitch * 1.1)),
        0.475 + 0.028 * noise(rng, size, size, (pitch * 1.1, pitch * 6)),
    ]
    wefts, warps = np.meshgrid(np.arange(count), np.arange(count))
    folded = BAND - np.abs(warps % (2 * BAND) - BAND)  # herringbone: the diagonal turns every BAND threads
    over = np.where((folded + wefts) % 4 < 2, 1.0, -1.0).astype(np.float32)
    absent = np.full((size, size), -1.0, np.float32)
    cloth = _Cloth(u, v, over, absent, absent.copy(), widths[0], widths[1], x, y, pitch)

    fibres = [crop(rng, _fibre_field(size, lean), size) for lean in (0.35, math.pi / 2 - 0.35)]
    patchy = [
        1 + 0.05 * noise(rng, size, size, (pitch * 9, pitch * 1.1)),
        1 + 0.06 * noise(rng, size, size, (pitch * 1.1, pitch * 9)),
    ]
    relief = noise(rng, size, size, size / 2.2, 2)
    fuzz = _fuzz(rng, size)
    tint = 1 + rng.normal(0, 0.015, 3)

    for flaw in flaws:
        if flaw.kind in _WEAVING:
            _WEAVING[flaw.kind](cloth, flaw)
    image = _weave(cloth, uneven, shades, fibres, patchy)
    shade = 1.06 + 0.045 * relief - 0.14 * (x + y) * (1 / size) + 0.05
    for k in range(3):
        image[k] *= shade * float(tint[k])
        image[k] += (0.55 - image[k]) * fuzz * 0.30
    for flaw in flaws:
        if flaw.kind == "stain":
            _stain(cloth, flaw, image)
    for hair in cloth.hairs:
        _lay(cloth, image, *hair)
    return image


@lru_cache(maxsize=8)
def _fibre_field(size: int, lean: float) -> Array:
    """Fine streaks of twisted fibres, at an angle to the vertical; larger than an image, which shows a window of it."""
    rng, pitch = generator("fibres", size, f"{lean:.3f}"), size / THREADS
    wide, field = int(size * 2.2), int(size * 1.5)
    streaks = noise(rng, wide, wide, (pitch * 0.8, 1.05)) + 0.5 * noise(rng, wide, wide, (pitch * 0.4, 1.0))
    c, s = math.cos(lean), math.sin(lean)
    half, middle = field / 2, wide / 2
    return affine(streaks, field, field, (c, s, middle - half * (c + s), -s, c, middle + half * (s - c)))


def _fuzz(rng: np.random.Generator, size: int) -> Array:
    """Loose surface hairs, coverage 0..1."""
    sheet = Image.new("L", (2 * size, 2 * size), 0)
    pen = ImageDraw.Draw(sheet)
    for _ in range(45):
        start = rng.uniform(0, 2 * size, 2).tolist()
        path = wander(rng, (start[0], start[1]), rng.uniform(0, 6.28), rng.uniform(14, 50) * size / 512, 2.0, 8)
        pen.line([(px, py) for px, py in path.tolist()], fill=int(rng.integers(60, 200)), width=1)
    return np.asarray(sheet.reduce(2), dtype=np.float32) / np.float32(255)


def _weave(cloth: _Cloth, uneven: list[Array], shades: list[Array], fibres: list[Array], patchy: list[Array]) -> Array:
    """Draws the threads: for each pixel the heights, slopes and colours of both threads, then the higher one."""
    count = cloth.over.shape[0]
    column, row = np.clip(np.floor(cloth.u), 1, count - 2), np.clip(np.floor(cloth.v), 1, count - 2)
    i, j = column.astype(np.intp), row.astype(np.intp)
    along_weft, along_warp = cloth.u - column - 0.5, cloth.v - row - 0.5  # from the middle of the crossing, -0.5..0.5
    a = (along_weft + uneven[0].take(i)) / cloth.warp_width  # -1..1 across the warp thread
    b = (along_warp + uneven[1].take(j)) / cloth.weft_width
    flat = cloth.over.ravel()
    here = i * count + j
    first = flat.take(here)

    def rise(t: Array, step: int) -> tuple[Array, Array]:
        """Height -1..1 along a thread between this crossing and the nearest next one, and its derivative."""
        side = np.where(t > 0, 1, -1)
        change = flat.take(here + step * side) - first
        t = np.abs(t)
        return first + change * (t * t * (3 - 2 * t)), change * (6 * t * (1 - t)) * side.astype(np.float32)

    def thread(rise: Array, across: Array, gone: Array) -> Array:
        """Height of a round thread, falling steeply beyond its edge, and absent where it is gone."""
        away = np.abs(across)
        top = 0.55 * rise + 0.75 * np.sqrt(np.maximum(1 - away * away, 0.0)) - 6.0 * np.maximum(away - 1, 0.0)
        return np.asarray(top - 12.0 * np.clip(gone * 6.0, 0.0, 1.0))

    warp_rise, warp_tilt = rise(along_warp, 1)
    weft_rise, weft_tilt = rise(along_weft, count)
    warp_height, weft_height = thread(warp_rise, a, cloth.warp_gone), thread(-weft_rise, b, cloth.weft_gone)
    # The higher thread covers the other; where they are almost level the pixel shows some of both.
    warp = np.clip((warp_height - weft_height) * 2.0 + 0.5, 0.0, 1.0)
    height = np.maximum(warp_height, weft_height)
    seen = smoothstep(-2.4, -1.2, height)

    lit = _lit(mix(0.42 * weft_tilt, 0.85 * a, warp), mix(0.85 * b, -0.42 * warp_tilt, warp))
    # Less light reaches the valleys between threads: a cheap ambient occlusion from height.
    lit *= 0.22 + 0.78 * smoothstep(-0.6, 1.15, height)
    lit *= 1.0 + 0.15 * np.clip(mix(fibres[1], fibres[0], warp), -2.2, 2.2)
    strength = mix(shades[1].take(j) * patchy[1], shades[0].take(i) * patchy[0], warp) * lit * seen
    stripe = np.where(np.arange(count) % STRIPE < 2, np.float32(1), np.float32(0)).take(i)
    sheen = 0.035 * lit * lit * seen  # the tops of fibres reflect a little white light
    image = np.empty((3, *cloth.shape), np.float32)
    for k in range(3):
        colour = mix(np.full_like(stripe, WARP[k]), PINSTRIPE[k], stripe)
        image[k] = mix(np.full_like(stripe, WEFT[k]), colour, warp) * strength
        image[k] += sheen + (0.010, 0.010, 0.012)[k] * (1 - seen)
    return image


def _lit(sx: Array, sy: Array) -> Array:
    """Lambert's light on a surface of slopes (-dh/dx, -dh/dy), softened as by fibres."""
    facing = (LAMP[2] + LAMP[0] * sx + LAMP[1] * sy) / np.sqrt(1 + sx * sx + sy * sy)
    return 0.30 + 0.95 * np.maximum(facing, 0.0)


def _place(rng: np.random.Generator, cloth: _Cloth) -> tuple[float, float]:
    size = cloth.shape[0]
    return rng.uniform(0.18, 0.82) * size, rng.uniform(0.18, 0.82) * size


def _thread_at(cloth: _Cloth, x: float, y: float) -> tuple[int, int]:
    row, column = min(int(y), cloth.shape[0] - 1), min(int(x), cloth.shape[1] - 1)
    return int(cloth.u[row, column]), int(cloth.v[row, column])


def _hole(cloth: _Cloth, flaw: Flaw) -> None:
    """Torn threads: each ends at another place, and a few ends hang into the hole."""
    rng = generator(*flaw.key)
    x, y = _place(rng, cloth)
    radius = (0.7 + 2.3 * flaw.severity) * cloth.pitch
    gap = blot(rng, *cloth.shape, (x, y), radius, 0.12)
    count = cloth.over.shape[0]
    ends = 0.28 * rng.standard_normal((2, count), dtype=np.float32)
    i, j = np.clip(cloth.u, 0, count - 1).astype(np.int32), np.clip(cloth.v, 0, count - 1).astype(np.int32)
    np.maximum(cloth.warp_gone, np.where(gap > -1, gap + ends[0][i], -1), out=cloth.warp_gone)
    np.maximum(cloth.weft_gone, np.where(gap > -1, gap + ends[1][j], -1), out=cloth.weft_gone)
    # The threads around are pushed aside slightly.
    dx, dy = cloth.x - x, cloth.y - y
    push = 0.5 * flaw.severity * bump(np.sqrt(dx * dx + dy * dy) / (1.9 * radius)) / radius
    cloth.u -= push * dx
    cloth.v -= push * dy
    for _ in range(int(3 + 7 * flaw.severity)):
        angle = rng.uniform(0, 2 * math.pi)
        start = (x + radius * 1.15 * math.cos(angle), y + radius * 1.15 * math.sin(angle))
        colour = WEFT if rng.random() < 0.6 else (0.09, 0.13, 0.24)
        _hair(
            cloth, rng, start, angle + math.pi + rng.normal(0, 0.7), radius * rng.uniform(0.5, 1.3), 1.3, 0.11, colour
        )


def _missing_weft(cloth: _Cloth, flaw: Flaw) -> None:
    rng = generator(*flaw.key)
    x, y = _place(rng, cloth)
    _, j = _thread_at(cloth, x, y)
    reach = (2.0 + 26.0 * flaw.severity**2) * cloth.pitch
    end = np.maximum(np.abs(cloth.x - x) - reach, 0.0) / cloth.pitch
    near = bell(end / 1.2)
    band = np.floor(cloth.v) == j
    # The neighbouring threads close up.
    off = cloth.v - (j + 0.5)
    cloth.v += 0.16 * np.sign(off) * bump(off / 2.6) * near * (np.abs(off) > 0.5)
    np.maximum(cloth.weft_gone, np.where(band & (end <= 0), 1.0, -1.0), out=cloth.weft_gone)


def _pulled_thread(cloth: _Cloth, flaw: Flaw) -> None:
    """A snag: one weft thread pulled out into a loop, the cloth puckered along it."""
    rng = generator(*flaw.key)
    x, y = _place(rng, cloth)
    dx, dy = (cloth.x - x) / cloth.pitch, (cloth.y - y) / cloth.pitch
    length = 3.0 + 8.0 * flaw.severity
    pull = (0.25 + 0.60 * flaw.severity) * bump(dx / (1.6 * length))
    cloth.v += pull * dy * bump(dy / 4.4) * 0.9
    cloth.u += 0.35 * pull * np.sin(dx * 1.9) * bump(dy / 3.4)
    span = (0.9 + 2.6 * flaw.severity) * cloth.pitch
    t = np.linspace(0, 1, 28)
    tilt = rng.uniform(-0.5, 0.5)
    rise = np.sin(t * math.pi) * span * rng.uniform(1.2, 1.9)
    bulge = 0.42 * span * np.sin(t * 2 * math.pi)
    loop = np.stack([x + (t - 0.5) * span * 0.5 + tilt * rise - bulge, y - rise], axis=1)
    across, along = stroke(*cloth.shape, loop, cloth.pitch * 2)
    cloth.hairs.append((across, along, (0.22 + 0.10 * flaw.severity) * cloth.pitch, WEFT, 0.55 * cloth.pitch))


def _foreign_fibre(cloth: _Cloth, flaw: Flaw) -> None:
    rng = generator(*flaw.key)
    x, y = _place(rng, cloth)
    colours: list[Colour] = [(0.62, 0.03, 0.04), (0.75, 0.74, 0.72), (0.012, 0.012, 0.013), (0.02, 0.28, 0.14)]
    colour = colours[int(rng.integers(len(colours)))]
    length = (5 + 13 * flaw.severity) * cloth.pitch
    angle = rng.uniform(0, 2 * math.pi)
    start = (x - 0.4 * length * math.cos(angle), y - 0.4 * length * math.sin(angle))
    _hair(cloth, rng, start, angle, length, 3.0, 0.045 + 0.085 * flaw.severity, colour)


def _hair(
    cloth: _Cloth,
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    length: float,
    curl: float,
    width: float,
    colour: Colour,
) -> None:
    path = wander(rng, start, angle, length, curl, max(8, int(length / 5)))
    across, along = stroke(*cloth.shape, path, cloth.pitch)
    cloth.hairs.append((across, along, width * cloth.pitch, colour, 0.25 * cloth.pitch))


def _lay(cloth: _Cloth, image: Array, across: Array, along: Array, radius: float, colour: Colour, lift: float) -> None:
    """Draws a loose thread on the cloth: its shadow first, then a lit cylinder."""
    near = np.abs(across) < FAR
    drop = max(1, round(lift))
    shadow = np.roll(line_cover(across, radius, 1.2 + 0.5 * lift) * near, (drop, drop), (0, 1))
    image *= 1.0 - 0.55 * shadow
    cover = line_cover(across, radius * (1.0 - 0.4 * np.abs(2 * along - 1) ** 6), 0.55) * near
    bulge = np.clip(across / max(radius, 0.6), -1, 1)
    twist = np.sin(along * (cloth.shape[0] / cloth.pitch * 2.2) + bulge * 1.2)
    light = (0.55 + 0.45 * np.sqrt(np.maximum(1 - bulge * bulge, 0))) * (1 + 0.08 * twist) + 0.20 * bell(
        (bulge + 0.3) / 0.3
    )
    for k in range(3):
        image[k] = mix(image[k], colour[k] * light, cover)


def _slub(cloth: _Cloth, flaw: Flaw) -> None:
    """A thick place in one weft thread that pushes its neighbours aside."""
    rng = generator(*flaw.key)
    x, y = _place(rng, cloth)
    _, j = _thread_at(cloth, x, y)
    reach = (2.2 + 3.6 * flaw.severity) * cloth.pitch
    swell = (0.25 + 0.75 * flaw.severity) * np.exp(-((np.abs(cloth.x - x) / reach) ** 2.6))
    off = cloth.v - (j + 0.5)
    cloth.v -= off * (1 - 1 / (1 + swell)) * bump(off / 4.5)
    band = np.floor(cloth.v) == j
    cloth.weft_width += np.where(band, 0.05 * swell, 0)


def _wrong_draw(cloth: _Cloth, flaw: Flaw) -> None:
    """One warp thread in the wrong heddle: along a stretch it crosses where its neighbours do not."""
    rng = generator(*flaw.key)
    x, y = _place(rng, cloth)
    i, j = _thread_at(cloth, x, y)
    reach = round(5 + 40 * flaw.severity**1.5)
    low, high = max(0, j - reach), min(cloth.over.shape[1], j + reach)
    for n in range(1 if flaw.severity < 0.75 else 2):
        cloth.over[i + n, low:high] *= -1


def _stain(cloth: _Cloth, flaw: Flaw, image: Array) -> None:
    """A spill that soaked in: darker towards its edge, and blotchy because threads wick."""
    rng = generator(*flaw.key)
    x, y = _place(rng, cloth)
    radius = (2.0 + 4.5 * flaw.severity) * cloth.pitch
    spill = blot(rng, *cloth.shape, (x, y), radius, 0.20)
    wick = noise(rng, *cloth.shape, cloth.pitch * 0.8, 2)
    soaked = smoothstep(-0.08, 0.22, spill + 0.05 * wick) * (0.16 + 0.40 * flaw.severity)
    tide = bell((spill - 0.08 + 0.03 * wick) / 0.07) * (0.06 + 0.22 * flaw.severity)
    take = ((0.55, 0.85, 1.25), (0.9, 0.9, 0.85), (1.2, 0.95, 0.5))[int(rng.integers(3))]
    for k in range(3):
        image[k] *= np.clip(1 - take[k] * soaked, 0.05, 1) * np.clip(1 - take[k] * tide, 0.05, 1)


_WEAVING = {
    "hole": _hole,
    "missing_weft": _missing_weft,
    "pulled_thread": _pulled_thread,
    "foreign_fibre": _foreign_fibre,
    "slub": _slub,
    "wrong_draw": _wrong_draw,
}
