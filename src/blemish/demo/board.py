"""A small populated circuit board under a ring lamp: copper, solder mask, silkscreen, chips, solder.

The bare board (`bare_board`) is always the same; components are placed on it with a placement machine's small errors.
Everything is drawn in the board's frame and rotated into its pose at the end. Positions are in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from blemish.demo.bare_board import BOARD, CODE, COMPONENTS, TRACE_SPOTS, artwork, pads_of
from blemish.demo.components import BUILDERS, GOLD, TIN, Canvas, Placed, solder
from blemish.demo.drawing import (
    FAR,
    Array,
    Flaw,
    affine,
    bell,
    blot,
    crop,
    generator,
    glint,
    grid,
    line_cover,
    mix,
    noise,
    paint,
    slopes,
    smoothstep,
    stroke,
    wander,
)

DEFECTS = ("solder_bridge", "missing_component", "misplaced_component", "broken_trace", "scratch", "flux_residue")

MASK_ON_COPPER, MASK_ON_LAMINATE = (0.007, 0.112, 0.036), (0.003, 0.034, 0.016)


def scene(key: Sequence[int | str], size: int, flaws: Sequence[Flaw]) -> Array:
    """The scene `(3, size, size)` in linear light; the same key gives the same board with or without flaws."""
    rng = generator(*key, "part")
    canvas = _bare(rng, size, flaws)
    wide = canvas.sx.shape[0]
    grain = crop(rng, _grain(size), wide)
    film = noise(rng, wide, wide, size / 5, 3)
    _serial(canvas, rng)
    lot = f"{rng.integers(2230, 2460)}{'ABCDEFGH'[int(rng.integers(8))]}"
    _populate(canvas, key, flaws, grain, lot)
    for flaw in flaws:
        if flaw.kind == "solder_bridge":
            _solder_bridge(canvas, flaw)
        elif flaw.kind == "scratch":
            _scratch(canvas, flaw)
    light = _light(canvas, film)
    for flaw in flaws:
        if flaw.kind == "flux_residue":
            _flux(canvas, flaw, light)
    turn = math.radians(rng.normal(0, 0.5))
    shift = rng.normal(0, 0.004, 2) * size
    c, s = math.cos(turn), math.sin(turn)
    middle, half = wide / 2, size / 2
    matrix = (c, s, middle - c * half - s * half + shift[0], -s, c, middle + s * half - c * half + shift[1])
    return np.stack([affine(plane, size, size, matrix) for plane in light])


def _populate(canvas: Canvas, key: Sequence[int | str], flaws: Sequence[Flaw], grain: Array, lot: str) -> None:
    """Solders every component with the placement machine's small errors, but for those that flaws take or displace."""
    missing, moved = _displaced(flaws)
    for component in COMPONENTS:
        own = generator(*key, component.name)
        x, y = component.x + own.normal(0, 0.035), component.y + own.normal(0, 0.035)
        angle = math.radians(component.angle + own.normal(0, 0.7))
        if component.name in moved:
            dx, dy, turn = moved[component.name]
            x, y, angle = x + dx, y + dy, angle + turn
        solder(canvas, component, own)
        if component.name not in missing:
            BUILDERS[component.kind](canvas, Placed(component, (x, y, angle), own, grain, lot))


@lru_cache(maxsize=4)
def _grain(size: int) -> Array:
    """The roughness of moulded bodies."""
    rng, wide = generator("grain", size), int(size * 1.6)
    return np.asarray(0.10 * noise(rng, wide, wide, 1.2) + 0.06 * noise(rng, wide, wide, 3.0))


@lru_cache(maxsize=4)
def _weave(size: int) -> Array:
    """The glass cloth that shows through the laminate."""
    rng, wide = generator("weave", size), int(size * 1.6)
    return np.asarray(0.05 * noise(rng, wide, wide, 2.0))


@lru_cache(maxsize=4)
def _metal_paint(size: int) -> tuple[Array, Array]:
    """Coverage by mask and print, 0 on pads and holes and off the board, and the colour of pads and holes."""
    art = artwork(size)
    metal = np.zeros((3, *art.pads.shape), np.float32)
    for colour, cover in ((TIN, art.pads), (GOLD, art.gold), ((0.016, 0.018, 0.018), art.holes)):
        paint(metal, colour, cover)
    return (1 - art.pads) * (1 - art.gold) * (1 - art.holes) * art.inside, metal * art.inside


@lru_cache(maxsize=4)
def _table(size: int) -> Array:
    """Brushed aluminium under the board."""
    rng, wide = generator("table", size), int(size * 1.6)
    streaks = noise(rng, wide, wide, (size / 200, size / 6), 2)
    return np.asarray(0.30 + 0.006 * noise(rng, wide, wide, 1.0) + 0.006 * streaks)


def _bare(rng: np.random.Generator, size: int, flaws: Sequence[Flaw]) -> Canvas:
    """The board without components: table, laminate, copper, mask, print; colours drift from batch to batch."""
    art = artwork(size)
    wide = art.copper.shape[0]
    copper = art.copper
    for flaw in flaws:
        if flaw.kind == "broken_trace":
            copper = _broken_trace(copper, art.origin, art.scale, flaw)
    inside = art.inside
    hue = rng.normal(0, 0.03, 2).tolist()
    weave = 1.0 + crop(rng, _weave(size), wide) + 0.025 * noise(rng, wide, wide, size / 12, 2)
    table = crop(rng, _table(size), wide) * ((1 - 0.5 * art.table_shadow) * (1 - inside))
    print_x, print_y = (round(n) for n in (rng.normal(0, 0.06, 2) * art.scale).tolist())
    silk = np.roll(art.silk, (print_y, print_x), (0, 1)) * np.clip(0.43 + 0.5 * weave, 0.7, 1)
    open_mask, metal_rgb = _metal_paint(size)
    rgb = np.empty((3, wide, wide), np.float32)
    for k, (tint, table_tint) in enumerate(zip((1 + hue[0], 1 + hue[1], 1 - hue[0]), (0.96, 1.0, 1.06), strict=True)):
        base = copper * ((MASK_ON_COPPER[k] - MASK_ON_LAMINATE[k]) * tint)
        base += MASK_ON_LAMINATE[k] * tint
        base *= weave
        base += ((0.72, 0.74, 0.70)[k] - base) * silk
        base *= open_mask
        base += metal_rgb[k]
        base += table * table_tint
        rgb[k] = base
    step = copper - art.copper
    sx, sy = art.sx.copy(), art.sy.copy()
    if copper is not art.copper:  # a break adds edges
        ex, ey = slopes(step)
        sx += 0.5 * ex
        sy += 0.5 * ey
    ripple = noise(rng, wide, wide, size / 60, 2)
    sx += 0.012 * ripple * inside
    bare_metal = np.maximum(art.pads, 0.75 * art.gold) * (1 - art.holes)
    gloss = 0.085 * inside * (1 - silk) * (1 - art.holes)
    return Canvas(np.stack([*rgb, sx, sy, bare_metal, gloss, np.ones_like(sx), inside]), art.scale, art.origin)


def _serial(canvas: Canvas, rng: np.random.Generator) -> None:
    """A printed square code that differs between boards: a solid border on two sides, and cells."""
    cells = rng.random((12, 12)) < 0.5
    cells[:, 0], cells[-1, :] = True, True
    cells[0, :], cells[:, -1] = np.arange(12) % 2 == 0, np.arange(12) % 2 == 1
    x, y = canvas.at(*CODE)
    reach = 2 * canvas.scale
    top, left, side = int(y - reach), int(x - reach), int(2 * reach)
    step = 4 * 12 / (3.0 * canvas.scale)  # source pixels per pixel: 12 cells of 4 over 3 mm
    sheet: Array = np.pad(np.kron(cells.astype(np.float32), np.ones((4, 4), np.float32)), 4)
    ink = affine(sheet, side, side, (step, 0, 28 - step * (x - left), 0, step, 28 - step * (y - top)))
    window = canvas.rgb[:, top : top + side, left : left + side]
    paint(window, (0.72, 0.74, 0.70), 0.85 * np.clip(ink, 0, 1))


def _light(canvas: Canvas, film: Array) -> Array:
    """Diffuse light, the ring lamp's reflection in metal, and its faint reflection in the clear mask."""
    sx, sy = canvas.sx, canvas.sy
    x, y = grid(*sx.shape)
    px, py = (x / sx.shape[1] - 0.5), (y / sx.shape[0] - 0.5)
    facing = (0.80 - 0.36 * sx - 0.44 * sy) / np.sqrt(1 + sx * sx + sy * sy)
    diffuse = (0.42 + 0.92 * np.maximum(facing, 0)) * (0.30 + 0.70 * canvas.shadow)
    diffuse *= 1.0 - 0.16 * (px + py) + 0.01 * film
    # The lamp is near, so its reflection drifts over the board.
    tx, ty = sx + 0.16 * px, sy + 0.16 * py
    ring = np.sqrt(tx * tx + ty * ty)
    mirror = 0.10 + 0.22 * glint(tx, ty, (0.05, 0.08), 0.10)
    mirror += 0.95 * bell((ring - 0.40) / 0.11) * (0.60 - 0.6 * (tx + ty)) + 1.6 * glint(tx, ty, (-0.18, -0.23), 0.095)
    mirror += 0.20 * smoothstep(0.45, 0.8, ring)
    mirror *= 0.45 + 0.55 * canvas.shadow
    sheen = glint(tx, ty, (-0.045, -0.055), 0.085)
    clear = canvas.gloss * (sheen * (0.8 + 0.06 * film) + 0.4 * mirror) * (0.4 + 0.6 * canvas.shadow)
    lit = diffuse * (1 - canvas.metal) + mirror * canvas.metal
    return np.stack([plane * lit + clear for plane in canvas.rgb])


def _displaced(flaws: Sequence[Flaw]) -> tuple[set[str], dict[str, tuple[float, float, float]]]:
    """The components that are missing, and by how much others are displaced (mm, mm, radians)."""
    missing: set[str] = set()
    moved: dict[str, tuple[float, float, float]] = {}
    small = [component for component in COMPONENTS if component.kind in ("resistor", "capacitor", "led")]
    for flaw in flaws:
        rng = generator(*flaw.key)
        if flaw.kind == "missing_component":
            large = [component for component in COMPONENTS if component.kind in ("crystal", "chip")]
            choice = large if flaw.severity > 0.9 else small
            missing.add(choice[int(rng.integers(len(choice)))].name)
        elif flaw.kind == "misplaced_component":
            component = small[int(rng.integers(len(small)))]
            reach, heading = 0.04 + 0.72 * flaw.severity**2, rng.uniform(0, 2 * math.pi)
            turn = math.radians(1.5 + 36 * flaw.severity**2) * float(rng.choice([-1.0, 1.0]))
            moved[component.name] = (reach * math.cos(heading), reach * math.sin(heading), turn)
    return missing, moved


def _solder_bridge(canvas: Canvas, flaw: Flaw) -> None:
    """Solder that joins two neighbouring leads."""
    rng = generator(*flaw.key)
    chips = [component for component in COMPONENTS if component.kind == "chip" and len(pads_of(component)) >= 8]
    component = chips[int(rng.integers(len(chips)))]
    pads = pads_of(component)
    pairs = [
        (a, b)
        for n, a in enumerate(pads)
        for b in pads[n + 1 :]
        if a[2:] == b[2:] and math.dist(a[:2], b[:2]) < 1.4 and (a[0] == b[0] or a[1] == b[1])
    ]
    a, b = pairs[int(rng.integers(len(pairs)))]
    along = 0.62 * (rng.uniform(-0.2, 0.6)) * max(a[2:]) * 0.5
    sideways = a[2] > a[3]
    x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
    gap = math.dist(a[:2], b[:2])
    thick = (0.24 + 0.62 * flaw.severity) * rng.uniform(0.85, 1.15)
    if sideways:
        piece = (x + math.copysign(along, x), y, thick, gap + 0.15 + 0.3 * flaw.severity)
    else:
        piece = (x, y + math.copysign(along, y), gap + 0.15 + 0.3 * flaw.severity, thick)
    pose = (component.x, component.y, math.radians(component.angle + rng.normal(0, 5)))
    canvas.place(pose, piece, TIN, metal=1.0, corner=thick / 2, bevel=0.25, tilt=0.10, dome=0.36, lift=0.03)


def _broken_trace(copper: Array, origin: tuple[float, float], scale: float, flaw: Flaw) -> Array:
    """A gap in one trace under the mask."""
    rng = generator(*flaw.key)
    x, y, angle = TRACE_SPOTS[int(rng.integers(len(TRACE_SPOTS)))]
    x, y = origin[0] + x * scale, origin[1] + y * scale
    px, py = grid(*copper.shape)
    c, s = math.cos(angle), math.sin(angle)
    u, v = (px - x) * c + (py - y) * s, (py - y) * c - (px - x) * s
    ragged = 0.05 * scale * np.sin(v * (2.1 / scale * 8) + rng.uniform(0, 6))
    half = (0.10 + 0.34 * flaw.severity) * scale
    gap = np.clip(half + ragged - np.abs(u) + 0.5, 0, 1) * smoothstep(0.36 * scale, 0.26 * scale, np.abs(v))
    return copper * (1 - gap)


def _scratch(canvas: Canvas, flaw: Flaw) -> None:
    """The mask scraped to a pale line, and down to bright copper where the tool went deeper."""
    rng = generator(*flaw.key)
    x, y = canvas.at(rng.uniform(6, BOARD - 6), rng.uniform(6, BOARD - 6))
    length = (3.5 + 9.5 * flaw.severity) * canvas.scale
    heading = rng.uniform(0, 2 * math.pi)
    start = (x - 0.5 * length * math.cos(heading), y - 0.5 * length * math.sin(heading))
    shape = canvas.sx.shape[0], canvas.sx.shape[1]
    scale = canvas.scale / 12.2
    for n in range(1 + int(flaw.severity > 0.5)):
        shift = n * rng.normal(0, 4, 2) * scale
        path = wander(rng, (start[0] + shift[0], start[1] + shift[1]), heading + 0.04 * n, length, 0.25)
        across, along = stroke(*shape, path, 8)
        taper = np.clip(np.minimum(along, 1 - along) * 6, 0, 1) * (np.abs(across) < FAR)
        press = 0.75 + 0.3 * noise(rng, *shape, 10.0 * scale)
        cover = line_cover(across, (0.35 + 0.75 * flaw.severity) * scale * taper, 0.6) * np.minimum(1, 2 * taper)
        cover = np.clip(cover * press * (0.45 + 0.55 * flaw.severity), 0, 1)
        cover *= 0.35 + 0.65 * canvas.bare  # components are harder than the mask
        for k, value in enumerate((0.42, 0.50, 0.40)):
            canvas.rgb[k] = mix(canvas.rgb[k], value, cover * 0.7)
        deep = smoothstep(0.62, 0.85, cover) * canvas.bare
        for k, value in enumerate((0.85, 0.48, 0.26)):
            canvas.rgb[k] = mix(canvas.rgb[k], value, deep)
        np.maximum(canvas.metal, 0.6 * deep, out=canvas.metal)
        canvas.gloss[:] *= 1 - 0.8 * cover


def _flux(canvas: Canvas, flaw: Flaw, light: Array) -> None:
    """Flux that came out of a joint and dried: a yellowish film with a pale crust at its edge."""
    rng = generator(*flaw.key)
    component = COMPONENTS[int(rng.integers(len(COMPONENTS)))]
    pads = pads_of(component)
    px, py, *_ = pads[int(rng.integers(len(pads)))]
    a = math.radians(component.angle)
    c, s = math.cos(a), math.sin(a)
    centre = canvas.at(component.x + px * c - py * s, component.y + px * s + py * c)
    shape = canvas.sx.shape[0], canvas.sx.shape[1]
    radius = (1.0 + 1.5 * flaw.severity) * canvas.scale
    pool = blot(rng, *shape, centre, radius, 0.20)
    film = smoothstep(-0.04, 0.25, pool) * (0.10 + 0.26 * flaw.severity)
    crust = bell((pool - 0.06) / 0.06) * (0.10 + 0.30 * flaw.severity)
    crust *= np.clip(0.8 + 0.3 * noise(rng, *shape, 4.0), 0, 1.5)
    for k, (amber, pale) in enumerate(zip((0.34, 0.25, 0.09), (0.62, 0.58, 0.46), strict=True)):
        light[k] = mix(mix(light[k], amber, film), pale, np.clip(crust, 0, 1))
