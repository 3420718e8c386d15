"""The demo's bare circuit board: where parts sit, which traces join them, and the artwork drawn from that.

Millimetres from the board's upper left corner; angles in degrees clockwise as seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blemish.demo.drawing import Array, blur, box_distance, generator, grid, slopes, smoothstep

BOARD = 36.0  # the board's side
FILL = 0.87  # of the image's side that the board takes
Point = tuple[float, float]
Pad = tuple[float, float, float, float]  # centre x, y in the part's frame, width, height


@dataclass(frozen=True, slots=True)
class Part:
    """One component: its kind, place, and what is printed on it."""

    name: str
    kind: str
    x: float
    y: float
    angle: float = 0.0
    label: str = ""
    body: tuple[float, float] = (0.0, 0.0)
    pins: tuple[int, int] = (0, 0)  # per side: left and right, top and bottom
    pitch: float = 0.0
    lettering: float = 0.8
    lines: int = 1


PARTS: tuple[Part, ...] = (
    Part("U1", "chip", 15.0, 16.4, 0, "BLM32|F208C8", (7.0, 7.0), (8, 8), 0.8, 1.05, 2),
    Part("U2", "chip", 28.6, 24.0, 0, "24C64", (3.9, 4.9), (4, 0), 1.27, 0.95),
    Part("U3", "chip", 30.4, 11.2, 0, "", (1.6, 2.9), (3, 0), 0.95, 0.55),
    Part("C9", "can", 7.0, 27.6, 90),
    Part("Y1", "crystal", 15.6, 26.6, 0, "16.000"),
    Part("R1", "resistor", 24.0, 6.6, 0, "103"),
    Part("R2", "resistor", 24.0, 9.0, 0, "103"),
    Part("R3", "resistor", 24.0, 11.4, 0, "472"),
    Part("R4", "resistor", 19.4, 31.4, 90, "331"),
    Part("R5", "resistor", 22.0, 31.4, 90, "220"),
    Part("R6", "resistor", 26.8, 29.0, 0, "102"),
    Part("C1", "capacitor", 6.0, 11.8, 90),
    Part("C2", "capacitor", 6.0, 16.4, 90),
    Part("C3", "capacitor", 6.0, 21.0, 90),
    Part("C4", "capacitor", 12.4, 8.4, 0),
    Part("C5", "capacitor", 17.6, 8.4, 0),
    Part("C6", "capacitor", 23.6, 16.6, 90),
    Part("C7", "capacitor", 28.6, 18.4, 0),
    Part("C8", "capacitor", 14.2, 31.2, 0),
    Part("D1", "led", 31.2, 29.0, 0),
)


def pads_of(part: Part) -> list[Pad]:
    """The part's solder pads in its own frame."""
    if part.kind in ("resistor", "capacitor", "led"):
        return [(side * 1.0, 0.0, 0.95, 1.36) for side in (-1.0, 1.0)]
    if part.kind == "can":
        return [(side * 3.05, 0.0, 2.6, 1.5) for side in (-1.0, 1.0)]
    if part.kind == "crystal":
        return [(side * 2.35, 0.0, 1.9, 2.2) for side in (-1.0, 1.0)]
    width, height = part.body
    sides, ends = part.pins
    wide = 0.56 * part.pitch + 0.02
    pads: list[Pad] = []
    for side in (-1.0, 1.0):
        pads += [(side * (width / 2 + 0.80), (n - (sides - 1) / 2) * part.pitch, 1.50, wide) for n in range(sides)]
        pads += [((n - (ends - 1) / 2) * part.pitch, side * (height / 2 + 0.80), wide, 1.50) for n in range(ends)]
    return pads


_HOLES: tuple[Point, ...] = ((2.7, 2.7), (33.3, 2.7), (2.7, 33.3), (33.3, 33.3))
_HEADER: tuple[Point, ...] = tuple((7.4 + 2.54 * n, 3.6) for n in range(6))
CODE: Point = (28.6, 33.0)  # centre of the printed serial code, 3 mm wide
_FIDUCIALS: tuple[Point, ...] = ((33.2, 8.0), (2.8, 8.0), (23.8, 34.2))
_ROUTES: tuple[tuple[Point, ...], ...] = (
    ((9.9, 13.6), (8.6, 13.6), (6.0, 12.9)),
    ((9.9, 15.2), (8.0, 15.2), (6.0, 15.3)),
    ((9.9, 18.4), (8.4, 18.4), (6.9, 18.4), (6.0, 17.5)),
    ((9.9, 19.2), (8.2, 19.2), (7.0, 20.0), (6.0, 20.0)),
    ((12.2, 11.3), (12.2, 10.2), (11.4, 9.4), (11.4, 8.4)),
    ((13.0, 11.3), (13.0, 10.0), (13.4, 9.6), (13.4, 8.4)),
    ((16.2, 11.3), (16.2, 9.9), (16.6, 9.5), (16.6, 8.4)),
    ((17.8, 11.3), (17.8, 10.3), (18.6, 9.5), (18.6, 8.4)),
    ((14.6, 11.3), (14.6, 6.6), (12.5, 4.5), (12.48, 3.6)),
    ((15.4, 11.3), (15.4, 6.4), (15.02, 6.0), (15.02, 3.6)),
    ((20.1, 13.6), (21.2, 13.6), (21.9, 12.9), (21.9, 6.6), (23.0, 6.6)),
    ((20.1, 14.4), (21.6, 14.4), (22.5, 13.5), (22.5, 9.9), (23.0, 9.0)),
    ((20.1, 15.2), (22.2, 15.2), (23.0, 14.4), (23.0, 11.4)),
    ((20.1, 16.8), (21.4, 16.8), (22.2, 17.6), (23.6, 17.6)),
    ((20.1, 18.4), (21.2, 18.4), (22.2, 19.4), (24.6, 19.4), (25.3, 20.1), (25.3, 22.1), (26.0, 22.1)),
    ((20.1, 19.2), (21.0, 19.2), (22.0, 20.2), (23.8, 20.2), (24.5, 20.9), (24.5, 23.4), (26.0, 23.4)),
    ((17.8, 21.6), (17.8, 23.4), (18.6, 24.2), (18.6, 26.6), (17.9, 26.6)),
    ((12.2, 21.6), (12.2, 25.8), (13.0, 26.6)),
    ((25.0, 6.6), (28.6, 6.6), (29.0, 7.0), (29.0, 10.2)),
    ((25.0, 9.0), (27.2, 9.0), (28.0, 9.8), (28.0, 11.2), (28.8, 11.2)),
    ((25.0, 11.4), (26.4, 11.4), (26.8, 11.8), (26.8, 17.4), (27.6, 18.4)),
    ((31.2, 22.1), (32.8, 22.1), (33.4, 21.5), (33.4, 13.0), (32.4, 12.1)),
    ((31.2, 25.9), (32.6, 25.9), (33.2, 26.5), (33.2, 28.2), (32.2, 29.0)),
    ((26.0, 25.9), (24.4, 25.9), (23.6, 26.7), (23.6, 29.0), (22.2, 30.4), (22.0, 30.4)),
    ((27.8, 29.0), (30.2, 29.0)),
    ((16.2, 21.6), (16.2, 23.0), (20.8, 27.6), (20.8, 29.6), (20.0, 30.4), (19.4, 30.4)),
    ((19.4, 32.4), (19.4, 33.6), (18.6, 34.3), (14.2, 34.3), (13.2, 33.3), (13.2, 31.2)),
    ((20.1, 3.6), (20.1, 4.4), (21.0, 5.3), (21.0, 12.0), (20.6, 12.4), (20.1, 12.8)),
)


def _free_spots() -> tuple[tuple[float, float, float], ...]:
    """Places (x, y, direction) in the middle of straight trace runs where neither part nor pad hides the trace."""
    spots = []
    for route in _ROUTES:
        for (x0, y0), (x1, y1) in pairwise(route):
            length = math.dist((x0, y0), (x1, y1))
            for n in range(1, int(length / 0.5)):
                t = n * 0.5 / length
                x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
                if 0.55 < t * length < length - 0.55 and all(_clear(part, x, y) for part in PARTS):
                    spots.append((x, y, math.atan2(y1 - y0, x1 - x0)))
    return tuple(spots)


def _clear(part: Part, x: float, y: float) -> bool:
    half_w = max([part.body[0] / 2, *(abs(u) + w / 2 for u, _, w, _ in pads_of(part))]) + 0.75
    half_h = max([part.body[1] / 2, *(abs(v) + h / 2 for _, v, _, h in pads_of(part))]) + 0.75
    if part.kind == "can":
        half_w, half_h = 5.0, 4.2
    if part.angle:
        half_w, half_h = half_h, half_w
    return abs(x - part.x) > half_w or abs(y - part.y) > half_h


TRACE_SPOTS = _free_spots()  # where a break can be seen
_NAMES: dict[str, Point] = {  # where the print sits beside the part, where not above it
    "U1": (-6.6, -5.3), "U2": (0.0, -3.4), "U3": (0.0, -2.4), "C9": (-2.6, -4.5), "Y1": (0.0, -2.3),
    "R1": (-2.7, 0.0), "R2": (-2.7, 0.0), "R3": (-2.7, 0.0), "D1": (0.0, 1.6), "R6": (0.0, 1.6),
    "C1": (-1.8, 0.0), "C2": (-1.8, 0.0), "C3": (-1.8, 0.0), "C6": (1.8, 0.0), "R4": (-1.7, 0.0), "R5": (1.7, 0.0),
}  # fmt: skip
_PRINTS: tuple[tuple[str, float, float, float], ...] = (  # text, centre, height
    ("BLEMISH", 27.3, 2.9, 1.75),
    ("DEMO  REV C", 27.3, 4.5, 0.9),
    ("J1", 6.5, 6.0, 0.95),
    *(
        (part.name, part.x + dx, part.y + dy, 0.95)
        for part, (dx, dy) in ((part, _NAMES.get(part.name, (0.0, -1.5))) for part in PARTS)
    ),
)


@dataclass(frozen=True, slots=True)
class Artwork:
    """The bare board's layers `(W, W)`, coverage 0..1, on a canvas a little wider than the image."""

    inside: Array
    copper: Array
    pads: Array
    gold: Array
    holes: Array
    silk: Array
    table_shadow: Array
    sx: Array
    sy: Array
    scale: float
    origin: tuple[float, float]


def scale_of(size: int) -> float:
    """Pixels per millimetre in an image of that size."""
    return size * FILL / BOARD


@lru_cache(maxsize=4)
def artwork(size: int) -> Artwork:
    """Draws the bare board for images of `size` pixels."""
    zoom = 4
    wide = round(size * 1.08)
    scale = scale_of(size)
    corner = (wide - BOARD * scale) / 2

    def sheet() -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (wide * zoom, wide * zoom), 0)
        return image, ImageDraw.Draw(image)

    def px(x: float, y: float) -> Point:
        return (corner + x * scale) * zoom, (corner + y * scale) * zoom

    def disc(pen: ImageDraw.ImageDraw, at: Point, radius: float, fill: int) -> None:
        x, y = px(*at)
        r = radius * scale * zoom
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def box(pen: ImageDraw.ImageDraw, part: Part, pad: Pad, grow: float, fill: int) -> None:
        a = math.radians(part.angle)
        c, s = math.cos(a), math.sin(a)
        corners = []
        for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            u, v = pad[0] + i * (pad[2] / 2 + grow), pad[1] + j * (pad[3] / 2 + grow)
            corners.append(px(part.x + u * c - v * s, part.y + u * s + v * c))
        pen.polygon(corners, fill=fill)

    def path(pen: ImageDraw.ImageDraw, route: tuple[Point, ...], width: float, fill: int) -> None:
        pen.line([px(*p) for p in route], fill=fill, width=round(width * scale * zoom), joint="curve")
        for p in route:
            disc(pen, p, width / 2, fill)

    def layer(image: Image.Image) -> Array:
        return np.asarray(image.reduce(zoom), dtype=np.float32) / np.float32(255)

    vias = _vias()
    copper, pen = sheet()
    pen.rectangle((*px(0.6, 0.6), *px(BOARD - 0.6, BOARD - 0.6)), fill=255)
    for part in PARTS:
        for pad in pads_of(part):
            box(pen, part, pad, 0.30, 0)
    for route in _ROUTES:
        path(pen, route, 0.36 + 0.5, 0)
    for route in _ROUTES:
        path(pen, route, 0.36, 255)
    for at in vias:
        disc(pen, at, 0.42, 255)
    for at in (*_HOLES, *_HEADER):
        disc(pen, at, 2.3 if at in _HOLES else 1.25, 0)
    for at in _FIDUCIALS:
        disc(pen, at, 1.0, 0)

    pads, pads_pen = sheet()
    for part in PARTS:
        for pad in pads_of(part):
            box(pads_pen, part, pad, 0.04, 255)
    gold, gold_pen = sheet()
    holes, holes_pen = sheet()
    for at in _HOLES:
        disc(gold_pen, at, 1.95, 255)
        disc(holes_pen, at, 1.25, 255)
    for at in _HEADER:
        disc(gold_pen, at, 0.92, 255)
        disc(holes_pen, at, 0.50, 255)
    for at in vias:
        disc(holes_pen, at, 0.17, 170)
    for at in _FIDUCIALS:
        disc(gold_pen, at, 0.5, 255)

    inside = _outline(wide, scale)
    copper_layer, gold_layer, holes_layer = layer(copper), layer(gold), layer(holes)
    silk = _silkscreen(wide, zoom, scale, corner)
    rings, rings_pen = sheet()
    for at in vias:
        disc(rings_pen, at, 0.34, 255)
    height = (
        0.30 * blur(layer(rings), 0.6 * scale / 12)
        + 0.42 * blur(copper_layer, 0.7 * scale / 12)
        - 1.1 * blur(holes_layer, 0.6)
    )
    height += 0.35 * blur(gold_layer, 0.6) + 1.5 * blur(inside, 0.8 * scale / 12)
    sx, sy = slopes(height)
    cast = np.roll(inside, (round(0.9 * scale), round(0.7 * scale)), (0, 1))
    shadow = np.maximum(blur(cast, 0.55 * scale), 0.9 * blur(inside, 0.35 * scale))
    return Artwork(
        inside, copper_layer, layer(pads), gold_layer, holes_layer, silk, shadow, sx, sy, scale, (corner, corner)
    )


def _outline(wide: int, scale: float) -> Array:
    x, y = grid(wide, wide)
    half = BOARD * scale / 2
    return smoothstep(0.6, -0.6, box_distance(x - wide / 2, y - wide / 2, half, half, 1.6 * scale))


def _vias() -> list[Point]:
    """Stitching vias scattered over the copper, clear of parts, pads and traces; always the same."""
    rng = generator("vias")
    taken: list[Point] = [*_HOLES, *_HEADER, *_FIDUCIALS, *((x, y) for _, x, y, *_ in _PRINTS), CODE]
    for route in _ROUTES:
        for (x0, y0), (x1, y1) in pairwise(route):
            steps = max(1, round(math.dist((x0, y0), (x1, y1)) / 0.4))
            taken += [(x0 + (x1 - x0) * t / steps, y0 + (y1 - y0) * t / steps) for t in range(steps + 1)]
    found: list[Point] = []
    for _ in range(900):
        x, y = rng.uniform(1.8, BOARD - 1.8, 2).round(1).tolist()
        reach = {"chip": 0.0, "can": 4.6, "crystal": 3.4}
        near = any(math.dist((x, y), (p.x, p.y)) < (reach.get(p.kind, 2.3) or max(p.body) / 2 + 2.6) for p in PARTS)
        if near or any(math.dist((x, y), t) < 1.1 for t in taken):
            continue
        if all(math.dist((x, y), v) > 1.7 for v in found):
            found.append((x, y))
    return found


def _silkscreen(wide: int, zoom: int, scale: float, corner: float) -> Array:
    """White print: designators, outlines, name."""
    image = Image.new("L", (wide * zoom, wide * zoom), 0)
    pen = ImageDraw.Draw(image)
    thin = max(1, round(0.13 * scale * zoom))

    def px(x: float, y: float) -> Point:
        return (corner + x * scale) * zoom, (corner + y * scale) * zoom

    for text, x, y, size in _PRINTS:
        font = ImageFont.load_default(size=size * scale * zoom)
        pen.text(px(x, y), text, fill=255, font=font, anchor="mm")
    for part in PARTS:
        if part.kind == "chip" and min(part.body) > 2:
            half_w, half_h = part.body[0] / 2 + 1.75, part.body[1] / 2 + (1.75 if part.pins[1] else 0.25)
            x, y = px(part.x - half_w, part.y - half_h)
            r = 0.22 * scale * zoom
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if part.kind in ("resistor", "capacitor", "led"):
            long, short = (1.9, 0.95) if part.angle == 0 else (0.95, 1.9)
            pen.rectangle(
                (*px(part.x - long, part.y - short), *px(part.x + long, part.y + short)), outline=235, width=thin
            )
        if part.kind == "can":
            x, y = px(part.x, part.y)
            pen.rectangle((*px(part.x - 3.7, part.y - 3.7), *px(part.x + 3.7, part.y + 3.7)), outline=235, width=thin)
    pen.rectangle((*px(6.0, 2.2), *px(21.5, 5.0)), outline=235, width=thin)
    return np.asarray(image.reduce(zoom), dtype=np.float32) / np.float32(255)
