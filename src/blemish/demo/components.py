"""The components of the demo's circuit board, and the canvas on which they are laid layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from blemish.demo.bare_board import BOARD, Component, pads_of
from blemish.demo.drawing import Array, Colour, bell, box_distance, grid, mix, smoothstep, window, write

TIN: Colour = (0.78, 0.79, 0.80)
GOLD: Colour = (0.95, 0.66, 0.26)
EPOXY: Colour = (0.013, 0.013, 0.0145)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The layers of the board's surface, in the board's frame; the properties are views of one array."""

    layers: Array  # (9, H, W)
    scale: float  # pixels per millimetre
    origin: tuple[float, float]  # pixel position of the board's corner

    @property
    def rgb(self) -> Array:
        """Base colour, (3, H, W)."""
        return np.asarray(self.layers[:3])

    @property
    def sx(self) -> Array:
        """Slope to the right; with `sy`, the slope down the image."""
        return np.asarray(self.layers[3])

    @property
    def sy(self) -> Array:
        return np.asarray(self.layers[4])

    @property
    def metal(self) -> Array:
        """0 paint .. 1 mirror."""
        return np.asarray(self.layers[5])

    @property
    def gloss(self) -> Array:
        """Strength of the clear reflection over paint."""
        return np.asarray(self.layers[6])

    @property
    def shadow(self) -> Array:
        """1 lit .. 0 dark."""
        return np.asarray(self.layers[7])

    @property
    def bare(self) -> Array:
        """1 where the board itself is visible, 0 under components."""
        return np.asarray(self.layers[8])

    def place(
        self,
        pose: tuple[float, float, float],
        piece: tuple[float, float, float, float],
        colour: Colour,
        *,
        metal: float = 0.0,
        gloss: float = 0.03,
        corner: float = 0.05,
        bevel: float = 0.12,
        tilt: float = 0.5,
        dome: float = 0.0,
        lift: float = 0.0,
        grain: Array | None = None,
    ) -> None:
        """Lays one box `(u, v, width, height)`, mm in the frame of `pose` (x, y mm, angle), with bevelled edges.

        `dome` curves the whole face like molten solder; `lift` (mm) casts a shadow of that length.
        """
        u0, v0, width, height = piece
        c, s = math.cos(pose[2]), math.sin(pose[2])
        cx = self.origin[0] + (pose[0] + c * u0 - s * v0) * self.scale
        cy = self.origin[1] + (pose[1] + s * u0 + c * v0) * self.scale
        half_w, half_h = width * self.scale / 2, height * self.scale / 2
        wide, high = abs(c) * half_w + abs(s) * half_h + 2, abs(s) * half_w + abs(c) * half_h + 2
        drop = lift * self.scale
        columns = slice(max(0, int(cx - wide - 0.3 * drop)), max(0, int(cx + wide + 1.4 * drop) + 1))
        rows = slice(max(0, int(cy - high - 0.1 * drop)), max(0, int(cy + high + 1.6 * drop) + 1))
        under = self.layers[:, rows, columns]
        if under.size == 0:
            return
        x, y = grid(under.shape[1], under.shape[2], rows.start, columns.start)
        dx, dy = x - np.float32(cx), y - np.float32(cy)
        u, v = dx * c + dy * s, dy * c - dx * s
        rounding = min(corner * self.scale, half_w, half_h)
        if lift > 0:
            soft = 0.8 * drop + 1.0
            cast = box_distance(
                u - drop * (0.55 * c + 0.75 * s), v - drop * (0.75 * c - 0.55 * s), half_w, half_h, rounding
            )
            under[7] *= 1.0 - 0.62 * smoothstep(soft, -soft, cast)
        distance = box_distance(u, v, half_w, half_h, rounding)
        cover = np.clip(0.5 - distance, 0.0, 1.0)
        edge = tilt * smoothstep(-max(bevel * self.scale, 1.0), 0.0, distance)
        sideways = np.abs(u) - half_w > np.abs(v) - half_h
        nu = np.copysign(edge * sideways, u) + (dome / half_w) * u
        nv = np.copysign(edge * ~sideways, v) + (dome / half_h) * v
        over = np.empty_like(under)
        for k, value in enumerate((*colour, 0.0, 0.0, metal, gloss, 1.0)):
            over[k] = value
        over[3] = nu * c - nv * s
        over[4] = nu * s + nv * c
        over[8] = 0.0 if lift > 0 else under[8]
        if grain is not None:
            over[:3] *= 1.0 + grain[rows, columns]
        over -= under
        over *= cover
        under += over

    def letter(self, pose: tuple[float, float, float], text: str, size: float, colour: Colour, ink: float) -> None:
        """Prints one line of text about the pose, `size` mm high, with the ink's opacity."""
        cx, cy = self.origin[0] + pose[0] * self.scale, self.origin[1] + pose[1] * self.scale
        reach = size * self.scale * (0.4 * len(text) + 1)
        rows, columns = window(self.sx.shape, cx, cy, reach)
        height, width = self.sx[rows, columns].shape
        cover = ink * write(height, width, text, (cx - columns.start, cy - rows.start), size * self.scale, pose[2])
        for k in range(3):
            self.rgb[k][rows, columns] = mix(self.rgb[k][rows, columns], colour[k], cover)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel position of a point in millimetres."""
        return self.origin[0] + x * self.scale, self.origin[1] + y * self.scale


@dataclass(frozen=True, slots=True)
class Placed:
    """A placed component: its pose (x, y mm, angle), its random numbers, the grain of its body, its lot."""

    component: Component
    pose: tuple[float, float, float]
    rng: np.random.Generator
    grain: Array
    lot: str


def solder(canvas: Canvas, component: Component, rng: np.random.Generator) -> None:
    """Solder on each of the component's pads, in slightly different amounts."""
    for px, py, width, height in pads_of(component):
        amount = rng.normal(1.0, 0.10)
        pose = (component.x, component.y, math.radians(component.angle))
        piece = (px, py, width * 0.97, height * 0.97)
        canvas.place(pose, piece, TIN, metal=0.97, corner=0.16, bevel=0.22, tilt=0.34 * amount, dome=0.20 * amount)


def _passive(canvas: Canvas, here: Placed) -> None:
    """A resistor or capacitor: a small block between two metal caps."""
    length, width = 2.0, 1.25
    for side in (-1, 1):
        canvas.place(
            here.pose,
            (side * (length / 2 - 0.18), 0, 0.40, width),
            TIN,
            metal=0.9,
            lift=0.30,
            corner=0.08,
            bevel=0.16,
            tilt=0.45,
        )
    if here.component.kind == "resistor":
        canvas.place(
            here.pose,
            (0, 0, length - 0.62, width * 0.97),
            (0.030, 0.030, 0.033),
            gloss=0.10,
            corner=0.04,
            grain=here.grain,
        )
        canvas.letter(here.pose, here.component.label, 0.78, (0.80, 0.80, 0.78), 0.9)
    else:
        tone = 1.0 + here.rng.normal(0, 0.05)
        body = (0.30 * tone, 0.195 * tone, 0.105 * tone)
        canvas.place(
            here.pose,
            (0, 0, length - 0.58, width * 1.0),
            body,
            gloss=0.09,
            corner=0.08,
            bevel=0.2,
            tilt=0.4,
            grain=here.grain,
        )


def _led(canvas: Canvas, here: Placed) -> None:
    canvas.place(here.pose, (0, 0, 2.0, 1.3), (0.70, 0.69, 0.64), lift=0.3, corner=0.1, grain=0.2 * here.grain)
    for side in (-1, 1):
        canvas.place(here.pose, (side * 0.88, 0, 0.28, 1.1), GOLD, metal=0.8, corner=0.05)
    canvas.place(
        here.pose, (0, 0, 1.15, 1.1), (0.62, 0.42, 0.05), gloss=0.30, corner=0.45, bevel=0.4, tilt=0.5, dome=0.12
    )
    canvas.place(here.pose, (0.12, 0.02, 0.26, 0.26), (0.16, 0.10, 0.03), gloss=0.2, corner=0.05)


def _package(canvas: Canvas, here: Placed) -> None:
    """A moulded chip: gull-wing leads, epoxy body with chamfered edges, laser marking, a dimple at pin 1."""
    width, height = here.component.body
    for px, py, wide, high in pads_of(here.component):
        if wide > high:
            lead = (px - math.copysign(0.30, px), py, wide * 0.95, high * 0.68)
            foot = (px + math.copysign(0.22, px), py, wide * 0.35, high * 0.70)
        else:
            lead = (px, py - math.copysign(0.30, py), wide * 0.68, high * 0.95)
            foot = (px, py + math.copysign(0.22, py), wide * 0.70, high * 0.35)
        canvas.place(here.pose, lead, (0.74, 0.74, 0.74), metal=0.92, lift=0.14, corner=0.04, bevel=0.12, tilt=0.3)
        canvas.place(here.pose, foot, (0.80, 0.80, 0.80), metal=0.95, corner=0.06, bevel=0.14, tilt=0.28)
    canvas.place(
        here.pose,
        (0, 0, width, height),
        EPOXY,
        gloss=0.055,
        corner=0.12,
        bevel=0.26,
        tilt=0.75,
        lift=0.55,
        grain=1.3 * here.grain,
    )
    x, y, angle = here.pose
    c, s = math.cos(angle), math.sin(angle)
    if min(width, height) > 2:
        du, dv = -width / 2 + 0.75, -height / 2 + 0.75
        canvas.place(
            here.pose, (du, dv, 0.62, 0.62), (0.014, 0.014, 0.015), gloss=0.06, corner=0.31, bevel=0.2, tilt=-0.4
        )
    lines = [*here.component.label.split("|"), here.lot]
    size = here.component.lettering
    turned = angle + (math.pi / 2 if height > width * 1.2 else 0.0)
    c, s = math.cos(turned), math.sin(turned)
    for n, text in enumerate(lines):
        down = (n - (len(lines) - 1) / 2) * size * 1.25
        canvas.letter(
            (x - s * down, y + c * down, turned), text, size, (0.33, 0.33, 0.32), 0.72 + here.rng.normal(0, 0.04)
        )


def _can(canvas: Canvas, here: Placed) -> None:
    """An electrolytic capacitor: an aluminium can on a black base, with its black polarity mark and value."""
    canvas.place(
        here.pose, (0, 0, 6.6, 6.6), (0.028, 0.028, 0.030), lift=0.25, corner=0.7, gloss=0.05, grain=here.grain
    )
    # The can is tall, so the camera sees its top farther from the centre than its foot, and its side between them.
    lean_x, lean_y = 0.04 * (here.pose[0] - BOARD / 2), 0.04 * (here.pose[1] - BOARD / 2)
    for n in range(7):
        x, y = here.pose[0] + lean_x * n / 6, here.pose[1] + lean_y * n / 6
        side = 0.34 + 0.05 * n if n < 6 else 0.80
        canvas.place(
            (x, y, here.pose[2]),
            (0, 0, 6.2, 6.2),
            (side, side, 1.01 * side),
            metal=0.85,
            lift=0.9 if n == 0 else 0.0,
            corner=3.1,
            bevel=0.01,
            tilt=0.0,
        )
    angle = here.pose[2]
    cx, cy = canvas.at(x, y)
    radius = 3.1 * canvas.scale
    rows, columns = window(canvas.sx.shape, cx, cy, radius + 2)
    px, py = grid(rows.stop - rows.start, columns.stop - columns.start, rows.start, columns.start)
    dx, dy = px - cx, py - cy
    d = np.sqrt(dx * dx + dy * dy) + np.float32(1e-3)
    crown = 0.75 * bell((d - radius * 0.95) / (radius * 0.06)) - 0.55 * bell((d - radius * 0.80) / (radius * 0.035))
    crown *= np.clip(radius + 0.5 - d, 0, 1) / d
    canvas.sx[rows, columns] += crown * dx
    canvas.sy[rows, columns] += crown * dy
    c, s = math.cos(angle), math.sin(angle)
    edge = -0.38 * radius
    band = smoothstep(edge + 0.7, edge - 0.7, dx * c + dy * s) * smoothstep(0.80 * radius, 0.80 * radius - 1.5, d)
    for k in range(3):
        canvas.rgb[k][rows, columns] = mix(canvas.rgb[k][rows, columns], 0.02, band)
    canvas.metal[rows, columns] *= 1 - 0.9 * band
    step = 0.55
    for n, text in enumerate(("100", "16V", here.lot[:3])):
        down = (n - 1) * 1.35
        canvas.letter((x + c * step - s * down, y + s * step + c * down, angle), text, 1.2, (0.03, 0.03, 0.03), 0.9)


def _crystal(canvas: Canvas, here: Placed) -> None:
    canvas.place(here.pose, (0, 0, 5.0, 3.2), (0.17, 0.15, 0.12), lift=0.3, corner=0.25, grain=here.grain)
    canvas.place(
        here.pose,
        (0, 0, 4.5, 2.7),
        (0.72, 0.70, 0.66),
        metal=0.9,
        corner=0.35,
        bevel=0.35,
        tilt=0.32,
        grain=0.5 * here.grain,
    )
    canvas.letter(here.pose, here.component.label, 0.95, (0.16, 0.15, 0.14), 0.8)


BUILDERS = {
    "resistor": _passive,
    "capacitor": _passive,
    "led": _led,
    "chip": _package,
    "can": _can,
    "crystal": _crystal,
}
