"""A turned steel flange on a conveyor belt, seen from above under three area lamps.

Turning leaves circular tool marks, so every microscopic facet tilts along the radius: light spreads along the radius
and stays narrow around it (the elliptical lobe of Ward 1992), which draws the bow-tie highlights of turned metal.
Radii are in units of the flange's outer radius.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from blemish.demo.drawing import (
    FAR,
    Array,
    Colour,
    Flaw,
    bell,
    blot,
    blur,
    crop,
    generator,
    glint,
    grid,
    line_cover,
    mix,
    noise,
    smoothstep,
    stroke,
    wander,
    window,
    write,
)

DEFECTS = ("scratch", "dent", "rust", "crack", "chipped_edge", "stain")

BORE, HUB, GROOVE, RIM = 0.20, 0.43, (0.505, 0.535), 0.945
BOLTS, BOLT_CIRCLE, BOLT_RADIUS, SINK_RADIUS = 6, 0.735, 0.068, 0.098
STEPS, REACH = 6000, 1.5  # the radial tables' resolution and the largest radius they hold
# The half-way slope, colour and strength, radial and angular spread of each lamp.
LAMPS: tuple[tuple[tuple[float, float], Colour, float, float], ...] = (
    ((-0.22, -0.30), (1.12, 1.10, 1.045), 0.50, 0.105),
    ((0.34, -0.10), (0.42, 0.46, 0.52), 0.42, 0.085),
    ((0.10, 0.36), (0.30, 0.28, 0.25), 0.45, 0.120),
)


@dataclass
class _Part:
    """The flange's surface before it is lit; flaws change it."""

    sx: Array  # slopes beyond the turned profile
    sy: Array
    cover: Array  # coverage by the part, 0..1
    matte: Array  # share of the light that is scattered evenly, 0..1
    bare: Array  # absence of tool marks, 0..1
    shade: Array  # light that cracks and holes let pass, 0..1
    x: Array
    y: Array
    r: Array  # radius in part units
    unit: float  # pixels per part unit
    centre: tuple[float, float]
    turn: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.r.shape[0], self.r.shape[1]

    def at(self, radius: float, angle: float) -> tuple[float, float]:
        """Pixel position of a point of the part, given in polar coordinates."""
        angle += self.turn
        return (
            self.centre[0] + radius * self.unit * math.cos(angle),
            self.centre[1] + radius * self.unit * math.sin(angle),
        )


@lru_cache(maxsize=8)
def _profile(unit: int) -> tuple[Array, Array]:
    """Radial slope and brightness of the lathe's profile, softened to one pixel."""
    r = np.linspace(0, REACH, STEPS, dtype=np.float32)
    slope, light = np.zeros_like(r), np.ones_like(r)

    def band(low: float, high: float) -> Array:
        return ((r >= low) & (r < high)).astype(np.float32)

    slope += -0.75 * band(BORE, BORE + 0.022)  # bore chamfer falls towards the centre
    slope += 0.85 * band(HUB - 0.004, HUB + 0.014)  # hub's shoulder
    light -= 0.45 * band(HUB + 0.010, HUB + 0.030) * np.linspace(1, 1, STEPS, dtype=np.float32)
    low, high = GROOVE
    slope += 0.7 * band(low, low + 0.010) - 0.7 * band(high - 0.010, high)
    light -= 0.55 * band(low + 0.006, high - 0.006)
    slope += 0.62 * band(RIM, 1.0) + 0.9 * band(0.992, 1.01)
    slope += 0.05 * bell((r - RIM + 0.01) / 0.012) + 0.04 * bell((r - 0.30) / 0.08)
    slope += 0.02 * np.sin(2 * math.pi * (r - HUB) / 0.55) * band(HUB, RIM)
    sigma = 0.6 / unit * STEPS / REACH
    return blur(slope[None], sigma)[0], blur(light[None], sigma)[0]


def _tool_marks(rng: np.random.Generator, unit: float) -> tuple[Array, Array]:
    """The part's own tool marks along the radius: variation of slope and of brightness."""
    per_pixel = STEPS / (REACH * unit)
    feed = rng.uniform(2.1, 2.6) * unit / 205 * per_pixel
    fine = noise(rng, 1, STEPS, (1.0, 1.1 * per_pixel))[0]
    coarse = noise(rng, 1, STEPS, (1.0, 6 * per_pixel))[0]
    broad = noise(rng, 1, STEPS, (1.0, 26 * per_pixel))[0]
    spiral = np.sin(np.arange(STEPS, dtype=np.float32) * (2 * math.pi / feed))
    return 0.13 * fine + 0.08 * coarse + 0.05 * broad + 0.07 * spiral, 0.07 * fine + 0.045 * coarse + 0.02 * broad


@lru_cache(maxsize=8)
def _belt(size: int) -> Array:
    """A piece of woven black belt, brightness about 1, larger than the image so that it can be shifted."""
    rng = generator("belt", size)
    wide = int(size * 1.25)
    x, y = grid(wide, wide)
    pitch = size / 64
    weave = np.sin((x + y) * (2 * math.pi / pitch)) * np.sin((x - y) * (2 * math.pi / pitch))
    texture = np.zeros((wide, wide), np.float32)
    for sigma, strength in ((0.5, 0.13), (1.2, 0.10), (3.0, 0.06), (14.0, 0.06)):
        layer = blur(rng.standard_normal((wide, wide), dtype=np.float32), sigma * size / 512)
        texture += strength / float(layer.std()) * layer
    return np.asarray(1.0 + 0.22 * weave + texture, dtype=np.float32)


def scene(
    key: Sequence[int | str], size: int, flaws: Sequence[Flaw], moved: tuple[float, float, float] = (0, 0, 0)
) -> Array:
    """The scene `(3, size, size)` in linear light; the same key gives the same part with or without flaws. `moved`
    shifts it to the right and down, in shares of the size, and turns it by degrees, under the same lamps."""
    rng = generator(*key, "part")
    unit = size * 0.405 * rng.normal(1.0, 0.0015)
    centre = (
        size / 2 + rng.normal(0, 0.006) * size + moved[0] * size,
        size / 2 + rng.normal(0, 0.006) * size + moved[1] * size,
    )
    turn = math.radians(rng.normal(0, 2.0) + moved[2])
    x, y = grid(size, size)
    dx, dy = (x - centre[0]) / unit, (y - centre[1]) / unit
    r = np.sqrt(dx * dx + dy * dy) + np.float32(1e-6)
    ux, uy = dx / r, dy / r
    zero = np.zeros_like(r)
    cover = np.clip((1.0 - r) * unit + 0.5, 0, 1) * np.clip((r - BORE) * unit + 0.5, 0, 1)
    part = _Part(zero, zero.copy(), cover, zero.copy(), zero.copy(), np.ones_like(r), x, y, r, unit, centre, turn)

    belt = _draw_belt(rng, size)
    _shadow(belt, part)
    _drill(part, rng)
    _engrave(part, rng)
    marks, flecks = _tool_marks(rng, unit)
    wobble = noise(rng, size, size, size / 5) * (0.35 / unit)
    grain = noise(rng, size, size, 1.3)
    film = noise(rng, size, size, size / 4, 3)  # the faint film that handling leaves
    warmth = rng.normal(0, 0.012)
    for flaw in flaws:
        if flaw.kind in _SHAPES:
            _SHAPES[flaw.kind](part, flaw)

    index = np.minimum((r + wobble) * (STEPS / REACH), STEPS - 1).astype(np.int32)
    slope, light = _profile(round(unit))
    radial = slope[index]
    keep = 1.0 - np.maximum(part.matte, part.bare)
    groove = marks[index] * keep
    sx, sy = part.sx + radial * ux, part.sy + radial * uy
    metal = _light(sx, sy, ux, uy, dx, dy, groove, part.matte)
    tone = light[index] * (1.0 + flecks[index] * keep + 0.02 * grain + 0.012 * film) * part.shade
    tint = (0.86 * (1 + warmth), 0.865, 0.88 * (1 - warmth))
    for k in range(3):
        metal[k] *= tone * tint[k]
    for flaw in flaws:
        if flaw.kind in _COATS:
            _COATS[flaw.kind](part, flaw, metal)
    image: Array = mix(belt, metal, part.cover)
    return image


def _light(sx: Array, sy: Array, ux: Array, uy: Array, dx: Array, dy: Array, groove: Array, matte: Array) -> Array:
    """Reflected light `(3, H, W)`: an elliptical lobe for each lamp, and the dim light of the room."""
    room = 0.115 + 0.05 * smoothstep(1.0, -1.0, dy) * np.ones_like(sx) + 0.12 * matte
    room *= 1.0 - np.clip(sx * 0.5 + sy * 0.8, -0.5, 0.75)
    metal = np.stack([room * 0.96, room, room * 1.05])
    wider = 1.0 + 1.4 * matte
    for (lx, ly), colour, along, around in LAMPS:
        # The lamps are near, so the half-way slope drifts across the part.
        ax, ay = lx - sx - 0.10 * dx, ly - sy - 0.10 * dy
        radial = (ax * ux + ay * uy + groove) * (1.0 / along)
        tangential = (ay * ux - ax * uy) * (1.0 / around) / wider
        lobe = np.exp(-0.5 * (radial * radial + tangential * tangential))
        lobe *= 1.0 - 0.35 * matte
        for k in range(3):
            metal[k] += colour[k] * lobe
    return metal


def _draw_belt(rng: np.random.Generator, size: int) -> Array:
    x, y = grid(size, size)
    fall = 1.25 - 0.5 * (x + 1.4 * y) / (2.4 * size)
    light = crop(rng, _belt(size), size) * fall * rng.normal(1.0, 0.03)
    return np.stack([light * 0.040, light * 0.042, light * 0.047]).astype(np.float32)


def _shadow(belt: Array, part: _Part) -> None:
    """The part's soft shadow away from the main lamp, its contact shadow, and the dark inside of the bore."""
    dx, dy = (part.x - part.centre[0]) / part.unit, (part.y - part.centre[1]) / part.unit
    cast = np.sqrt((dx - 0.055) ** 2 + (dy - 0.075) ** 2)
    dark = 0.62 * smoothstep(1.13, 0.93, cast)
    dark = 1.0 - (1.0 - dark) * (1.0 - 0.6 * smoothstep(1.06, 0.99, part.r))
    belt *= 1.0 - dark
    inside = smoothstep(BORE + 0.01, BORE - 0.01, part.r)
    wall = bell((part.r - BORE + 0.012) / 0.012) * smoothstep(0.1, 1.0, (dx * 0.55 + dy * 0.8) / BORE)
    for k, value in enumerate((0.20, 0.20, 0.21)):
        belt[k] *= 1.0 - 0.55 * inside
        belt[k] += inside * wall * value


def _drill(part: _Part, rng: np.random.Generator) -> None:
    """Six countersunk bolt holes, each slightly off its nominal position."""
    for n in range(BOLTS):
        jitter = rng.normal(0, 0.0012, 2).tolist()
        cx, cy = part.at(BOLT_CIRCLE + jitter[0], n * 2 * math.pi / BOLTS + jitter[1])
        near = rows, columns = window(part.shape, cx, cy, 0.13 * part.unit)
        dx, dy = (part.x[:, columns] - cx) / part.unit, (part.y[rows] - cy) / part.unit
        d = np.sqrt(dx * dx + dy * dy) + np.float32(1e-6)
        pixel = 1.0 / part.unit
        sink = smoothstep(SINK_RADIUS + pixel, SINK_RADIUS - pixel, d)
        part.sx[near] -= 0.55 * sink * dx / d
        part.sy[near] -= 0.55 * sink * dy / d
        part.matte[near] = np.maximum(part.matte[near], 0.25 * sink)
        part.bare[near] = np.maximum(part.bare[near], 0.92 * sink)
        hole = smoothstep(BOLT_RADIUS + pixel, BOLT_RADIUS - pixel, d)
        wall = bell((d - BOLT_RADIUS + 0.012) / 0.010) * np.clip((dx * 0.55 + dy * 0.8) / BOLT_RADIUS, 0, 1)
        part.shade[near] *= 1.0 - hole * (0.955 - 0.35 * wall)
        part.matte[near] *= 1.0 - 0.6 * hole


def _engrave(part: _Part, rng: np.random.Generator) -> None:
    """Laser engraving: a constant type designation and a serial number that differs between parts."""
    serial = f"{rng.integers(0, 10000):04d}"
    for text, radius, size in (("BL-208", 0.685, 0.105), (f"316L  {serial}", 0.80, 0.075)):
        cx, cy = part.at(radius, math.pi / 2)
        near = rows, columns = window(part.shape, cx, cy, 0.30 * part.unit)
        height, width = part.shade[near].shape
        ink = write(height, width, text, (cx - columns.start, cy - rows.start), size * part.unit, part.turn)
        part.matte[near] = np.maximum(part.matte[near], 0.04 * ink)
        part.shade[near] *= 1.0 - 0.60 * ink


def _scratch(part: _Part, flaw: Flaw, metal: Array) -> None:
    rng = generator(*flaw.key)
    radius, angle = rng.uniform(0.42, 0.82), rng.uniform(0, 2 * math.pi)
    heading = rng.uniform(0, 2 * math.pi)
    length = (0.14 + 0.60 * flaw.severity) * rng.uniform(0.8, 1.2) * part.unit
    x, y = part.at(radius, angle)
    start = (x - 0.5 * length * math.cos(heading), y - 0.5 * length * math.sin(heading))
    scale = part.unit / 205
    for n in range(1 + int(rng.random() < 0.45) + int(rng.random() < 0.2)):
        offset = rng.normal(0, 5 * scale, 2) * min(n, 1)
        path = wander(rng, (start[0] + offset[0], start[1] + offset[1]), heading + 0.03 * n, length, 0.22)
        strength = flaw.severity * (1.0 if n == 0 else 0.55)
        pressure = 0.8 + 0.3 * noise(rng, *part.shape, 12.0 * scale, 2)
        _furrow(part, metal, path, (0.35 + 0.65 * strength) * scale, 0.25 + 0.75 * strength, pressure)
        length *= rng.uniform(0.4, 0.8)


def _furrow(
    part: _Part, metal: Array, path: npt.NDArray[np.float64], width: float, opacity: float, pressure: Array
) -> None:
    """A groove with two burnished flanks that face different ways, so that only one reflects the lamps."""
    across, along = stroke(*part.shape, path, 3 * width + 3)
    near = (np.abs(across) < FAR) * smoothstep(0.0, 0.12, part.r - BORE) * part.shade
    taper = np.clip(np.minimum(along, 1.0 - along) * 6.0, 0.0, 1.0)
    direction = path[-1] - path[0]
    length = float(np.hypot(*direction))
    nx, ny = -float(direction[1]) / length, float(direction[0]) / length
    dx, dy = (part.x - part.centre[0]) / part.unit, (part.y - part.centre[1]) / part.unit
    for side in (-1.0, 1.0):
        cover = line_cover(across - side * 0.75 * width, 0.8 * width * taper, 0.6) * near
        cover *= np.clip(opacity * pressure * (0.3 + 0.7 * taper), 0, 1)
        sx, sy = 0.34 * side * nx + 0.10 * dx, 0.34 * side * ny + 0.10 * dy
        lobes = [0.95 * glint(sx, sy, towards, 0.27) for towards, *_ in LAMPS]
        for k in range(3):
            light = sum((colour[k] * lobe for (_, colour, *_), lobe in zip(LAMPS, lobes, strict=True)), 0.10 + 0 * sx)
            metal[k] += (light - metal[k]) * cover


def _dent(part: _Part, flaw: Flaw) -> None:
    rng = generator(*flaw.key)
    x, y = part.at(rng.choice([0.33, 0.6, 0.64, 0.86]) + rng.normal(0, 0.01), rng.uniform(0, 2 * math.pi))
    size = (0.030 + 0.042 * flaw.severity) * rng.uniform(0.85, 1.2) * part.unit
    stretch, turn = rng.uniform(0.7, 1.4), rng.uniform(0, math.pi)
    c, s = math.cos(turn), math.sin(turn)
    dx, dy = part.x - x, part.y - y
    u, v = (dx * c + dy * s) / (size * stretch), (dy * c - dx * s) / (size / stretch)
    bowl = np.exp(-0.5 * (u * u + v * v) ** 1.5)
    depth = 0.10 + 0.22 * flaw.severity
    lean = depth * 1.3 * bowl
    part.sx -= lean * (u * c / stretch - v * s * stretch)
    part.sy -= lean * (u * s / stretch + v * c * stretch)
    part.matte[:] = np.maximum(part.matte, bowl * (0.08 + 0.22 * flaw.severity))


def _crack(part: _Part, flaw: Flaw) -> None:
    """A crack that starts at a bolt hole, thins out, and forks."""
    rng = generator(*flaw.key)
    n = int(rng.integers(BOLTS))
    outward = rng.uniform(0, 2 * math.pi)
    cx, cy = part.at(BOLT_CIRCLE, n * 2 * math.pi / BOLTS)
    start = (
        cx + SINK_RADIUS * 0.8 * part.unit * math.cos(outward),
        cy + SINK_RADIUS * 0.8 * part.unit * math.sin(outward),
    )
    scale = part.unit / 205
    length = (0.12 + 0.30 * flaw.severity) * part.unit
    width = (0.45 + 0.75 * flaw.severity) * scale
    branches = [(start, outward, length, width)]
    for level in range(3):
        if level >= len(branches):
            break
        origin, heading, span, thick = branches[level]
        path = wander(rng, origin, heading, span, 0.7, 30) + rng.normal(0, 0.55 * scale, (31, 2))
        across, along = stroke(*part.shape, path, 6)
        slit = line_cover(across, thick * (1.0 - 0.85 * along), 0.7) * (np.abs(across) < FAR)
        lip = line_cover(across - 1.1 * scale, thick * (1.0 - along), 0.7) * (np.abs(across) < FAR)
        part.shade *= 1.0 - (0.55 + 0.4 * flaw.severity) * slit
        part.shade *= 1.0 + 0.22 * flaw.severity * lip * (1.0 - slit)
        fork = int(rng.integers(8, 20))
        turned = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 0.9)
        branches.append(((path[fork][0], path[fork][1]), turned, span * 0.45, thick * 0.7))


def _chip(part: _Part, flaw: Flaw) -> None:
    """A piece broken out of the outer edge: coarse facets where the chamfer was."""
    rng = generator(*flaw.key)
    size = (0.050 + 0.085 * flaw.severity) * part.unit
    centre = part.at(1.0 + 0.018 * (1 - flaw.severity), rng.uniform(0, 2 * math.pi))
    bite = blot(rng, *part.shape, centre, size, 0.22)
    broken = smoothstep(-0.02, 0.06, bite)
    gone = smoothstep(0.50, 0.58, bite + 0.25 * smoothstep(0.97, 1.02, part.r)) * smoothstep(0.93, 0.96, part.r)
    facets = noise(rng, *part.shape, 5.0 * part.unit / 205, 3), noise(rng, *part.shape, 5.0 * part.unit / 205, 3)
    part.sx[:] = mix(part.sx, 0.24 * facets[0] - 0.1, broken)
    part.sy[:] = mix(part.sy, 0.24 * facets[1], broken)
    part.matte[:] = np.maximum(part.matte, broken)
    part.shade *= 1.0 - broken * (0.42 + 0.2 * np.clip(facets[0], -1, 1))
    part.cover *= 1.0 - gone


def _rust(part: _Part, flaw: Flaw, metal: Array) -> None:
    rng = generator(*flaw.key)
    for n in range(int(rng.integers(1, 4))):
        x, y = part.at(rng.choice([0.33, 0.47, 0.62, 0.86]), rng.uniform(0, 2 * math.pi))
        radius = (0.035 + 0.085 * flaw.severity) * part.unit * (1.0 if n == 0 else rng.uniform(0.25, 0.6))
        heart = blot(rng, *part.shape, (x, y), radius, 0.42)
        speck = noise(rng, *part.shape, 2.2 * part.unit / 205, 2)
        halo = smoothstep(-0.7, 0.5, heart) * (0.16 + 0.24 * flaw.severity)
        scale = smoothstep(-0.05, 0.55, heart + 0.16 * speck) * (0.35 + 0.6 * flaw.severity)
        glow = 0.5 + 0.5 * np.clip(metal[1] * 1.4, 0, 1.2)
        for layer, (red, green, blue) in ((halo, (0.36, 0.20, 0.09)), (scale, (0.22, 0.075, 0.022))):
            alpha = np.clip(layer, 0, 1) * smoothstep(0.12, 0.6, part.shade)
            grit = glow * (1.0 + 0.30 * np.clip(speck, -2, 2))
            for k, value in enumerate((red, green, blue)):
                metal[k] += (value * grit - metal[k]) * alpha


def _stain(part: _Part, flaw: Flaw, metal: Array) -> None:
    """A dried drop of coolant: a faint brown film with a darker tide line."""
    rng = generator(*flaw.key)
    x, y = part.at(rng.choice([0.32, 0.62, 0.64, 0.84]), rng.uniform(0, 2 * math.pi))
    drop = blot(rng, *part.shape, (x, y), (0.07 + 0.09 * flaw.severity) * part.unit, 0.13)
    film = smoothstep(-0.03, 0.06, drop) * (0.10 + 0.20 * flaw.severity)
    tide = bell((drop - 0.05) / 0.05) * (0.12 + 0.28 * flaw.severity)
    for k, take in enumerate((0.75, 0.95, 1.25)):
        metal[k] *= np.maximum(1.0 - take * film, 0.1) * np.maximum(1.0 - take * tide, 0.1)


_SHAPES = {"dent": _dent, "crack": _crack, "chipped_edge": _chip}
_COATS = {"scratch": _scratch, "rust": _rust, "stain": _stain}
