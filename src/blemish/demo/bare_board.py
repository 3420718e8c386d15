"""The demo's bare circuit board: where components sit, which traces connect them, and the artwork drawn from that.

Millimetres from the board's upper left corner; angles in degrees clockwise as seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blemish.demo.drawing import Array, blur, box_distance, generator, grid, slopes, smoothstep

BOARD = 36.0  # the board's side
FILL = 0.87  # of the image's side that the board covers
ZOOM = 4  # times as large as its layer is a sheet drawn, for smooth edges
Point = tuple[float, float]
Pad = tuple[float, float, float, float]  # centre x, y in the component's frame, width, height


@dataclass(frozen=True, slots=True)
class Component:
    """One component: its kind, position, and what is printed on it."""

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


COMPONENTS: tuple[Component, ...] = (
    Component("U1", "chip", 15.0, 16.4, 0, "BLM32|F208C8", (7.0, 7.0), (8, 8), 0.8, 1.05),
    Component("U2", "chip", 28.6, 24.0, 0, "24C64", (3.9, 4.9), (4, 0), 1.27, 0.95),
    Component("U3", "chip", 30.4, 11.2, 0, "", (1.6, 2.9), (3, 0), 0.95, 0.55),
    Component("C9", "can", 7.0, 27.6, 90),
    Component("Y1", "crystal", 15.6, 26.6, 0, "16.000"),
    Component("R1", "resistor", 24.0, 6.6, 0, "103"),
    Component("R2", "resistor", 24.0, 9.0, 0, "103"),
    Component("R3", "resistor", 24.0, 11.4, 0, "472"),
    Component("R4", "resistor", 19.4, 31.4, 90, "331"),
    Component("R5", "resistor", 22.0, 31.4, 90, "220"),
    Component("R6", "resistor", 26.8, 29.0, 0, "102"),
    Component("C1", "capacitor", 6.0, 11.8, 90),
    Component("C2", "capacitor", 6.0, 16.4, 90),
    Component("C3", "capacitor", 6.0, 21.0, 90),
    Component("C4", "capacitor", 12.4, 8.4, 0),
    Component("C5", "capacitor", 17.6, 8.4, 0),
    Component("C6", "capacitor", 23.6, 16.6, 90),
    Component("C7", "capacitor", 28.6, 18.4, 0),
    Component("C8", "capacitor", 14.2, 31.2, 0),
    Component("D1", "led", 31.2, 29.0, 0),
)


def pads_of(component: Component) -> list[Pad]:
    """The component's solder pads in its own frame."""
    if component.kind in ("resistor", "capacitor", "led"):
        return [(side * 1.0, 0.0, 0.95, 1.36) for side in (-1.0, 1.0)]
    if component.kind == "can":
        return [(side * 3.05, 0.0, 2.6, 1.5) for side in (-1.0, 1.0)]
    if component.kind == "crystal":
        return [(side * 2.35, 0.0, 1.9, 2.2) for side in (-1.0, 1.0)]
    width, height = component.body
    sides, ends = component.pins
    wide = 0.56 * component.pitch + 0.02
    pads: list[Pad] = []
    for side in (-1.0, 1.0):
        pads += [(side * (width / 2 + 0.80), (n - (sides - 1) / 2) * component.pitch, 1.50, wide) for n in range(sides)]
        pads += [((n - (ends - 1) / 2) * component.pitch, side * (height / 2 + 0.80), wide, 1.50) for n in range(ends)]
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
    """Places (x, y, direction) on straight runs of traces that neither a component nor a pad hides."""
    spots = []
    for route in _ROUTES:
        for (x0, y0), (x1, y1) in pairwise(route):
            length = math.dist((x0, y0), (x1, y1))
            for n in range(1, int(length / 0.5)):
                t = n * 0.5 / length
                x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
                if 0.55 < t * length < length - 0.55 and all(_clear(component, x, y) for component in COMPONENTS):
                    spots.append((x, y, math.atan2(y1 - y0, x1 - x0)))
    return tuple(spots)


def _clear(component: Component, x: float, y: float) -> bool:
    half_w = max([component.body[0] / 2, *(abs(u) + w / 2 for u, _, w, _ in pads_of(component))]) + 0.75
    half_h = max([component.body[1] / 2, *(abs(v) + h / 2 for _, v, _, h in pads_of(component))]) + 0.75
    if component.kind == "can":
        half_w, half_h = 5.0, 4.2
    if component.angle:
        half_w, half_h = half_h, half_w
    return abs(x - component.x) > half_w or abs(y - component.y) > half_h


TRACE_SPOTS = _free_spots()  # where a broken trace is visible
_NAMES: dict[str, Point] = {  # offset of a designator from its component, unless it is above it
    "U1": (-6.6, -5.3), "U2": (0.0, -3.4), "U3": (0.0, -2.4), "C9": (-2.6, -4.5), "Y1": (0.0, -2.3),
    "R1": (-2.7, 0.0), "R2": (-2.7, 0.0), "R3": (-2.7, 0.0), "D1": (0.0, 1.6), "R6": (0.0, 1.6),
    "C1": (-1.8, 0.0), "C2": (-1.8, 0.0), "C3": (-1.8, 0.0), "C6": (1.8, 0.0), "R4": (-1.7, 0.0), "R5": (1.7, 0.0),
}  # fmt: skip
_PRINTS: tuple[tuple[str, float, float, float], ...] = (  # text, centre, height
    ("BLEMISH", 27.3, 2.9, 1.75),
    ("DEMO  REV C", 27.3, 4.5, 0.9),
    ("J1", 6.5, 6.0, 0.95),
    *(
        (component.name, component.x + dx, component.y + dy, 0.95)
        for component, (dx, dy) in ((component, _NAMES.get(component.name, (0.0, -1.5))) for component in COMPONENTS)
    ),
)


@dataclass(frozen=True, slots=True)
class Artwork:
    """The bare board's layers `(W, W)`, coverage 0..1, on a canvas slightly larger than the image."""

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


@dataclass(frozen=True, slots=True)
class _Sheet:
    """A layer that is drawn ZOOM times as large, in the board's millimetres."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    scale: float  # pixels of the layer per millimetre
    corner: float  # pixels from the layer's corner to the board's, both ways

    @classmethod
    def blank(cls, wide: int, scale: float) -> _Sheet:
        image = Image.new("L", (wide * ZOOM, wide * ZOOM), 0)
        return cls(image, ImageDraw.Draw(image), scale, (wide - BOARD * scale) / 2)

    def at(self, x: float, y: float) -> Point:
        return (self.corner + x * self.scale) * ZOOM, (self.corner + y * self.scale) * ZOOM

    def disc(self, centre: Point, radius: float, fill: int) -> None:
        x, y = self.at(*centre)
        r = radius * self.scale * ZOOM
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def pad(self, component: Component, pad: Pad, grow: float, fill: int) -> None:
        a = math.radians(component.angle)
        c, s = math.cos(a), math.sin(a)
        corners = []
        for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            u, v = pad[0] + i * (pad[2] / 2 + grow), pad[1] + j * (pad[3] / 2 + grow)
            corners.append(self.at(component.x + u * c - v * s, component.y + u * s + v * c))
        self.pen.polygon(corners, fill=fill)

    def trace(self, route: tuple[Point, ...], width: float, fill: int) -> None:
        points = [self.at(*point) for point in route]
        self.pen.line(points, fill=fill, width=round(width * self.scale * ZOOM), joint="curve")
        for point in route:
            self.disc(point, width / 2, fill)

    def layer(self) -> Array:
        return np.asarray(self.image.reduce(ZOOM), dtype=np.float32) / np.float32(255)


def scale_of(size: int) -> float:
    """Pixels per millimetre in an image of that size."""
    return size * FILL / BOARD


@lru_cache(maxsize=4)
def artwork(size: int) -> Artwork:
    """Draws the bare board for images of `size` pixels."""
    wide, scale = round(size * 1.08), scale_of(size)
    blank = partial(_Sheet.blank, wide, scale)
    vias = _vias()
    copper = _copper(blank(), vias)
    pads = _pads(blank())
    gold = _discs(blank(), (_HOLES, 1.95, 255), (_HEADER, 0.92, 255), (_FIDUCIALS, 0.5, 255))
    holes = _discs(blank(), (_HOLES, 1.25, 255), (_HEADER, 0.50, 255), (vias, 0.17, 170))
    rings = _discs(blank(), (vias, 0.34, 255))
    silk = _silkscreen(blank())
    inside = _outline(wide, scale)
    sx, sy = slopes(_relief(copper, gold, holes, inside, rings, scale))
    cast = np.roll(inside, (round(0.9 * scale), round(0.7 * scale)), (0, 1))
    shadow = np.maximum(blur(cast, 0.55 * scale), 0.9 * blur(inside, 0.35 * scale))
    corner = (wide - BOARD * scale) / 2
    return Artwork(inside, copper, pads, gold, holes, silk, shadow, sx, sy, scale, (corner, corner))


def _copper(sheet: _Sheet, vias: list[Point]) -> Array:
    """A copper plane, with traces and vias isolated from it and clear of pads and holes."""
    sheet.pen.rectangle((*sheet.at(0.6, 0.6), *sheet.at(BOARD - 0.6, BOARD - 0.6)), fill=255)
    for component in COMPONENTS:
        for pad in pads_of(component):
            sheet.pad(component, pad, 0.30, 0)
    for route in _ROUTES:
        sheet.trace(route, 0.36 + 0.5, 0)
    for route in _ROUTES:
        sheet.trace(route, 0.36, 255)
    for at in vias:
        sheet.disc(at, 0.42, 255)
    for at in (*_HOLES, *_HEADER):
        sheet.disc(at, 2.3 if at in _HOLES else 1.25, 0)
    for at in _FIDUCIALS:
        sheet.disc(at, 1.0, 0)
    return sheet.layer()


def _pads(sheet: _Sheet) -> Array:
    for component in COMPONENTS:
        for pad in pads_of(component):
            sheet.pad(component, pad, 0.04, 255)
    return sheet.layer()


def _discs(sheet: _Sheet, *kinds: tuple[Sequence[Point], float, int]) -> Array:
    """Discs of several kinds: their centres, radius and fill."""
    for centres, radius, fill in kinds:
        for centre in centres:
            sheet.disc(centre, radius, fill)
    return sheet.layer()


def _relief(copper: Array, gold: Array, holes: Array, inside: Array, rings: Array, scale: float) -> Array:
    """The board's height: raised where there is copper under the mask, sunk in holes."""
    height: Array
    height = 0.30 * blur(rings, 0.6 * scale / 12) + 0.42 * blur(copper, 0.7 * scale / 12) - 1.1 * blur(holes, 0.6)
    height += 0.35 * blur(gold, 0.6) + 1.5 * blur(inside, 0.8 * scale / 12)
    return height


def _outline(wide: int, scale: float) -> Array:
    x, y = grid(wide, wide)
    half = BOARD * scale / 2
    return smoothstep(0.6, -0.6, box_distance(x - wide / 2, y - wide / 2, half, half, 1.6 * scale))


def _vias() -> list[Point]:
    """Stitching vias scattered over the copper, clear of components, pads and traces; always the same."""
    rng = generator("vias")
    taken: list[Point] = [*_HOLES, *_HEADER, *_FIDUCIALS, *((x, y) for _, x, y, *_ in _PRINTS), CODE]
    for route in _ROUTES:
        for (x0, y0), (x1, y1) in pairwise(route):
            steps = max(1, round(math.dist((x0, y0), (x1, y1)) / 0.4))
            taken += [(x0 + (x1 - x0) * t / steps, y0 + (y1 - y0) * t / steps) for t in range(steps + 1)]
    reach = {"chip": 0.0, "can": 4.6, "crystal": 3.4}
    vias: list[Point] = []
    for _ in range(900):
        x, y = rng.uniform(1.8, BOARD - 1.8, 2).round(1).tolist()
        near = any(
            math.dist((x, y), (c.x, c.y)) < (reach.get(c.kind, 2.3) or max(c.body) / 2 + 2.6) for c in COMPONENTS
        )
        if near or any(math.dist((x, y), t) < 1.1 for t in taken):
            continue
        if all(math.dist((x, y), v) > 1.7 for v in vias):
            vias.append((x, y))
    return vias


def _silkscreen(sheet: _Sheet) -> Array:
    """White print: designators, outlines, name."""
    pen, scale = sheet.pen, sheet.scale
    thin = max(1, round(0.13 * scale * ZOOM))
    for text, x, y, size in _PRINTS:
        font = ImageFont.load_default(size=size * scale * ZOOM)
        pen.text(sheet.at(x, y), text, fill=255, font=font, anchor="mm")

    def frame(left: float, top: float, right: float, bottom: float) -> None:
        pen.rectangle((*sheet.at(left, top), *sheet.at(right, bottom)), outline=235, width=thin)

    for component in COMPONENTS:
        x, y = component.x, component.y
        if component.kind == "chip" and min(component.body) > 2:  # a dot at pin 1
            half_w, half_h = component.body[0] / 2 + 1.75, component.body[1] / 2 + (1.75 if component.pins[1] else 0.25)
            sheet.disc((x - half_w, y - half_h), 0.22, 255)
        if component.kind in ("resistor", "capacitor", "led"):
            half_w, half_h = (1.9, 0.95) if component.angle == 0 else (0.95, 1.9)
            frame(x - half_w, y - half_h, x + half_w, y + half_h)
        if component.kind == "can":
            frame(x - 3.7, y - 3.7, x + 3.7, y + 3.7)
    frame(6.0, 2.2, 21.5, 5.0)
    return sheet.layer()
