"""What people see of a verdict: the anomaly map as heat, boxes and their peaks over the image. Pillow and numpy only.

All images share one colour scale, from `low` to `high` in the units of the map. Nothing is ever stretched to an image's
own range, which would make a good part look as hot as a defective one.
"""

from __future__ import annotations

import io
import math
import secrets
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blemish.inference.resizing import resized
from blemish.types import BlemishError, Region

if TYPE_CHECKING:
    import numpy.typing as npt

Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MAX_SIDE = 1600
ENLARGED_SIDE = 400  # smaller images (such as 28 x 28) are enlarged, or no label would fit on them
PAPER, INK, QUIET = (250, 250, 248), (28, 30, 34), (226, 227, 225)
LINE, OUTLINE = (0, 226, 255), (10, 16, 28)  # cyan is the one bright colour that the heat never has

# Characters that Unicode's normalisation does not bring to ASCII.
SPELT = {ord(c): s for c, s in zip("–—·×ß≥≤", ("-", "-", "-", "x", "ss", ">=", "<="), strict=True)}

# Lightness rises evenly from one anchor to the next, so more is always brighter, in grey print as well.
ANCHORS = ((70, 18, 130), (158, 26, 124), (222, 58, 72), (250, 142, 34), (255, 232, 108))
OPACITY = 0.58  # the defect itself stays visible under its own heat
FULL_AT = 0.35  # share of the scale after which the heat is no more transparent than `OPACITY`


@lru_cache(maxsize=1)
def colours() -> npt.NDArray[np.uint8]:
    """The colour scale, uint8 (256, 3): `ANCHORS` in even steps of lightness in Oklab (Ottosson 2020)."""
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    srgb = np.array(ANCHORS) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    anchors = np.cbrt(linear @ to_lms.T) @ to_lab.T
    at, lightness = np.linspace(0, 1, 256), anchors[:, 0]
    position = (lightness - lightness[0]) / (lightness[-1] - lightness[0])
    lab = np.stack([np.interp(at, position, anchors[:, i]) for i in range(3)], axis=1)
    linear = (lab @ np.linalg.inv(to_lab).T) ** 3 @ np.linalg.inv(to_lms).T
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(srgb * 255).astype(np.uint8)


def heat_layer(anomaly_map: npt.NDArray[np.float32], size: tuple[int, int], *, low: float, high: float) -> Image.Image:
    """The map (h, w) as an RGBA image of `size` (width, height), to be laid over the original.

    It is resized bilinearly, transparent at and below `low`, and brightest from `high` on. Raises ValueError unless
    low < high and the map is finite.
    """
    if not low < high:
        raise ValueError(f"expected low < high; got {low} and {high}")
    if anomaly_map.ndim != 2 or not np.isfinite(anomaly_map).all():
        raise ValueError(f"expected a finite map (h, w); got shape {anomaly_map.shape}")
    values = resized(np.ascontiguousarray(anomaly_map, np.float32), size)
    with np.errstate(over="ignore"):  # of a range so narrow, all is above it or below
        step = (values - np.float32(low)) * np.float32(255 / (high - low)) + np.float32(0.5)  # 256 steps, rounded
    rgba = _palette()[np.clip(step, 0, 255, out=step).astype(np.uint8)].view(np.uint8)
    return Image.fromarray(rgba.reshape(*values.shape, 4))


@lru_cache(maxsize=1)
def _palette() -> npt.NDArray[np.uint32]:
    """Colour and opacity of each step in one number, so that a pixel is looked up once."""
    alpha = np.minimum(np.arange(256) / 255 / FULL_AT, 1) * OPACITY
    steps = np.concatenate([colours(), np.round(alpha * 255).astype(np.uint8)[:, None]], 1)
    return np.ascontiguousarray(steps).view(np.uint32)[:, 0]


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def overlay(
    image: npt.NDArray[np.uint8],
    anomaly_map: npt.NDArray[np.float32] | None,
    regions: Sequence[Region],
    *,
    low: float,
    high: float,
    caption: str = "",
    legend: bool = False,
    max_side: int = MAX_SIDE,
) -> Image.Image:
    """The image uint8 (H, W, 3) with its anomaly map (h, w), boxes and their peaks; RGB.

    It is drawn at the original size, but with no side over `max_side`; an image with both sides under `ENLARGED_SIDE`
    is enlarged by a whole factor. `regions` are in original pixels, whatever the size drawn. A label for which there is
    no free place is left out. `caption` (in ASCII: ü becomes u, and what has no equivalent ?) stands below the image,
    over a colour scale if `legend`. Raises ValueError for an image of another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image uint8 (H, W, 3); got {image.dtype} {image.shape}")
    canvas = fit(Image.fromarray(np.ascontiguousarray(image)), max_side)
    if anomaly_map is not None:
        heat = heat_layer(anomaly_map, canvas.size, low=low, high=high)
        canvas.paste(heat, (0, 0), heat)
    scale = (canvas.width / image.shape[1], canvas.height / image.shape[0])
    _draw_regions(canvas, regions, scale)
    strips = [_text_strip(caption, canvas.width)] if caption else []
    if legend:
        strips.append(_legend_strip(canvas.width, low, high))
    return _stack([canvas, *strips]) if strips else canvas


def fit(canvas: Image.Image, max_side: int = MAX_SIDE) -> Image.Image:
    """The image at the size at which `overlay` draws it."""
    longest = max(canvas.size)
    if longest > max_side:
        factor = max_side / longest
        size = (max(1, round(canvas.width * factor)), max(1, round(canvas.height * factor)))
        return canvas.resize(size, Image.Resampling.LANCZOS)
    if longest < min(ENLARGED_SIDE, max_side):
        whole = min(-(-ENLARGED_SIDE // longest), max_side // longest)
        # By a whole factor and without smoothing, so that the image's pixels stay visible.
        return canvas.resize((canvas.width * whole, canvas.height * whole), Image.Resampling.NEAREST)
    return canvas


def side_by_side(images: Sequence[Image.Image | npt.NDArray[np.uint8]], captions: Sequence[str] = ()) -> Image.Image:
    """Images in a row, scaled to the height of the tallest (at most `MAX_SIDE`), each over its caption. Raises
    ValueError unless there is at least one image, and a caption for each or none."""
    if not images or (captions and len(captions) != len(images)):
        raise ValueError(f"expected images, and a caption for each; got {len(images)} and {len(captions)}")
    fitted = [fit(p if isinstance(p, Image.Image) else Image.fromarray(p)).convert("RGB") for p in images]
    height = max(image.height for image in fitted)
    columns = []
    for image, caption in zip(fitted, captions or [""] * len(fitted), strict=True):
        width = max(1, round(image.width * height / image.height))
        column = image.resize((width, height), Image.Resampling.LANCZOS) if image.height != height else image
        columns.append(_stack([column, _text_strip(caption, column.width)]) if caption else column)
    gap = max(4, height // 60)
    row = Image.new(
        "RGB",
        (sum(c.width for c in columns) + gap * (len(columns) - 1), max(c.height for c in columns)),
        PAPER,
    )
    left = 0
    for column in columns:
        row.paste(column, (left, 0))
        left += column.width + gap
    return row


def stacked(images: Sequence[Image.Image], caption: str = "") -> Image.Image:
    """Images one below the other, over one caption for all."""
    width = max(image.width for image in images)
    return _stack([*images, *([_text_strip(caption, width)] if caption else [])])


def reconstruction(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """A reconstruction, uint8 `(h, w, 3)`, at the image's own `size` (width, height)."""
    canvas = Image.fromarray(pixels)
    return canvas if canvas.size == size else canvas.resize(size, Image.Resampling.BICUBIC)


def save(canvas: Image.Image, path: Path) -> None:
    """Writes an image (JPEG or PNG, by the ending of `path`), whole or not at all, and makes its folder. Raises
    `BlemishError` for another ending, and where it cannot be written."""
    endings = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
    if path.suffix.lower() not in endings:
        raise BlemishError(f"{path}: the name does not say which kind of image it is; end it in .jpg or .png.")
    kind = endings[path.suffix.lower()]
    options = {"quality": 90, "subsampling": 0} if kind == "JPEG" else {}
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            (canvas.convert("RGB") if kind == "JPEG" else canvas).save(unfinished, kind, **options)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise BlemishError(
            f"{path}: the image could not be written ({why}); check that the folder is writable and has space left."
        ) from error


def _draw_regions(canvas: Image.Image, regions: Sequence[Region], scale: tuple[float, float]) -> None:
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(max(canvas.size) / 400))
    edge = max(1, line // 2)
    thick = line + 2 * edge
    font = _font(_text_size(canvas.width, canvas.height))
    boxes = []
    for region in reversed(regions):  # the first, which has the highest peak, is drawn last: on top
        left, top, right, bottom = (round(v * s) for v, s in zip(region.box, (*scale, *scale), strict=True))
        # The line is drawn around the box, not over what is in it, and inside the image.
        outer = (left - thick, top - thick, right + thick - 1, bottom + thick - 1)
        box = _inside(outer, canvas.size)
        draw.rectangle(box, outline=OUTLINE, width=thick)
        draw.rectangle(_shrunk(box, edge), outline=LINE, width=line)
        boxes.append(box)
    taken: list[Box] = []
    for region, box in zip(regions, reversed(boxes), strict=True):
        _draw_label(draw, _number(region.peak), box, font, canvas.size, taken)


def _draw_label(
    draw: ImageDraw.ImageDraw, text: str, box: Box, font: Font, size: tuple[int, int], taken: list[Box]
) -> None:
    """Light text on a dark plate, at the first free place around the box; none where there is none."""
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    pad = max(2, round((y1 - y0) * 0.3))
    width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    left, top, right, bottom = box
    corners = [
        (left, top - height),
        (left, bottom + 1),
        (right - width, top - height),
        (right - width, bottom + 1),
        (right + 1, top),
        (left - width, top),
        (left, top),
    ]
    for x, y in corners:
        plate = (x, y, x + width, y + height)
        if plate != _inside(plate, size) or any(_meet(plate, other) for other in taken):
            continue
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=OUTLINE)
        draw.text((x + pad - x0, y + pad - y0), text, font=font, fill=(255, 255, 255))
        taken.append(plate)
        return


def _inside(box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, size[0] - 1), min(bottom, size[1] - 1)


def _shrunk(box: Box, by: int) -> Box:
    left, top, right, bottom = box
    return left + by, top + by, max(right - by, left + by), max(bottom - by, top + by)


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_size(width: int, height: int) -> int:
    return max(11, round(min(width, height) / 36))


def _number(value: float) -> str:
    """Three significant digits, as in 4.00, 0.0312 or 125; with an exponent only where there would be many zeros."""
    size = abs(float(f"{value:.2e}"))
    if not 0.001 <= size < 100_000:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"


def _legible(text: str) -> str:
    """`text` in ASCII, since Pillow's own font, the only one that is always there, has no other characters."""
    spelt = text.translate(SPELT)
    plain = (c for c in unicodedata.normalize("NFKD", spelt) if not unicodedata.combining(c))
    return "".join(plain).encode("ascii", "replace").decode()


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _text_strip(text: str, width: int) -> Image.Image:
    """`text` in as many lines as it takes, in a strip `width` wide."""
    size = max(12, min(28, round(width / 32)))
    font, pad = _font(size), round(size * 0.6)
    lines: list[str] = []
    for paragraph in _legible(text).split("\n"):
        lines += _wrapped(paragraph, font, width - 2 * pad)
    step = round(size * 1.35)
    strip = Image.new("RGB", (width, step * len(lines) + 2 * pad - (step - size)), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((pad, pad + number * step), line, font=font, fill=INK)
    return strip


def _wrapped(paragraph: str, font: Font, width: float) -> list[str]:
    lines = [""]
    for word in paragraph.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word longer than a line, such as a path, is broken where the line ends
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _legend_strip(width: int, low: float, high: float) -> Image.Image:
    """The colour scale between its two ends, on a grey from which it can be told apart."""
    size = max(11, min(24, round(width / 36)))
    font, pad = _font(size), round(size * 0.6)
    strip = Image.new("RGB", (width, size + 2 * pad), PAPER)
    draw = ImageDraw.Draw(strip)
    ends = (_number(low), _number(high))
    left = pad * 2 + round(font.getlength(ends[0]))
    right = max(left + 1, width - pad * 2 - round(font.getlength(ends[1])))
    bar = (left, pad, right, pad + size)
    strip.paste(QUIET, bar)
    ramp = heat_layer(np.linspace(0, 1, right - left, dtype=np.float32)[None], (right - left, size), low=0, high=1)
    strip.paste(ramp, bar, ramp)
    draw.text((pad, pad), ends[0], font=font, fill=INK)
    draw.text((right + pad, pad), ends[1], font=font, fill=INK)
    return strip


def _stack(images: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), PAPER)
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return whole
