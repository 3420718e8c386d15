"""Images small enough for a page to hold hundreds: JPEG as data URLs, each within its share of the bytes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.images import load_mask

# Longest side in pixels and JPEG quality; the first that fits the bytes is taken.
STEPS = ((640, 80), (384, 80), (320, 76), (256, 74), (224, 70), (192, 68), (160, 64), (128, 58), (96, 50), (32, 30))
SIDE = 384
OUTLINE = (124, 255, 0)  # of the drawn defect; a colour of neither heatmaps nor boxes
CROP, SHEET = 96, 640  # longest side of a piece of evidence, and of a sheet with several


def jpeg(image: Image.Image, most: int, side: int = SIDE) -> str:
    """`image` as the data URL of a JPEG of at most `most` bytes (else of the smallest step), no side over `side`."""
    encoded, used = b"", 0
    for step, quality in STEPS:
        new = min(step, side, max(image.size))
        last = step == STEPS[-1][0]
        # Bytes are about proportional to pixels: skip steps that would be far too long.
        if encoded and not last and len(encoded) * (new / used) ** 2 > 1.2 * most:
            continue
        buffer = io.BytesIO()
        _reduced(image.convert("RGB"), new).save(buffer, "JPEG", quality=quality, optimize=True)
        encoded, used = buffer.getvalue(), new
        if len(encoded) <= most:
            break
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()


def outline_png(mask: Path, size: tuple[int, int], side: int = 256) -> str:
    """The `outline` of a mask file of an image of `size` (width, height), as the data URL of a PNG."""
    drawn = outline(load_mask(mask, (size[1], size[0])), _fitting(size, side))
    # Two colours, one of them transparent: a tenth of the bytes of RGBA.
    flat = Image.new("P", drawn.size, 0)
    flat.putpalette([0, 0, 0, *OUTLINE])
    flat.paste(1, mask=drawn.getchannel("A"))
    buffer = io.BytesIO()
    flat.save(buffer, "PNG", optimize=True, bits=1, transparency=0)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _reduced(image: Image.Image, side: int) -> Image.Image:
    size = _fitting(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def outline(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    """A line around the defects of `mask` (H, W), transparent elsewhere, RGBA of `size` (width, height). The line lies
    outside the defect, so that it hides nothing of it."""
    # Any defect pixel counts: a hairline crack must not vanish in the reduction.
    reduced = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)
    inside = np.asarray(reduced) > 0
    near, far = _grown(inside, 2), _grown(inside, 4)
    pixels = np.zeros((*inside.shape, 4), np.uint8)
    pixels[far & ~near] = (*OUTLINE, 255)
    return Image.fromarray(pixels)


def _grown(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """The mask dilated by `by` steps, to direct neighbours and in every second step to diagonal ones: nearly round."""
    for step in range(by):
        padded = np.pad(mask, 1)
        grown = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        if step % 2:
            grown = grown | padded[:-2, :-2] | padded[:-2, 2:] | padded[2:, :-2] | padded[2:, 2:]
        mask = grown
    return mask
