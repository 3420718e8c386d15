"""Replacing parts of an image: from the surrounding pixels (linear imputation), or from a normal image.

An imputer is a function `(image uint8 (H, W, 3), mask bool (H, W)) -> image` that replaces what the mask marks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Imputer = Callable[[Pixels, Mask], Pixels]

TOLERANCE = 0.05  # grey levels, root mean square of the equations' residual
FEATHER = 0.01  # of the longest side, standard deviation of the soft edge around a blended region
THUMBNAIL = 32  # pixels, side at which images are compared to find the nearest


def impute(values: Floats | Pixels, missing: Mask, *, tolerance: float = TOLERANCE) -> npt.NDArray[np.float32]:
    """Values (H, W, C) in which each of the `missing` (H, W) pixels is the weighted mean of its eight neighbours.

    Direct neighbours weigh 1/6, diagonal ones 1/12, those outside the image 0 (Rong et al. 2022, "A Consistent and
    Efficient Evaluation Strategy for Attribution Methods", sec. 4.2). This is one linear equation for each missing
    pixel; they are solved by conjugate gradients, starting from the solution at half the size, until the root mean
    square of the residual is below `tolerance`, in the unit of `values`. With no known pixel, all become the mean of
    `values`.

    >>> row = np.array([[[10.0], [0.0], [40.0]]])
    >>> round(float(impute(row, np.array([[False, True, False]]))[0, 1, 0]), 3)  # the mean of 10 and 40
    25.0
    """
    known = values.astype(np.float32)
    if missing.all():
        return np.broadcast_to(known.mean((0, 1)), known.shape).copy()
    rows, columns = np.flatnonzero(missing.any(1)), np.flatnonzero(missing.any(0))
    if len(rows):
        window = np.s_[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2]
        # The window has one more pixel on each side, so that all neighbours of the missing pixels are in it.
        known[window] = _solve(known[window], missing[window], tolerance)
    return known


def _solve(values: npt.NDArray[np.float32], missing: Mask, tolerance: float) -> npt.NDArray[np.float32]:
    wanted = missing[..., None].astype(np.float32)
    known = values * (1 - wanted)
    near = _neighbours(np.ones_like(wanted))  # sum of the weights inside the image
    if not missing.any():
        return values
    x = wanted * _first_guess(known, missing, tolerance)
    residual = wanted * (_neighbours(known + x) - near * x)
    # Hestenes & Stiefel 1952, each channel by itself; the matrix is symmetric and positive definite.
    direction, square = residual.copy(), (residual**2).sum((0, 1))
    enough = max(tolerance**2, 1e-12) * missing.sum()
    for _ in range(10 * sum(missing.shape)):
        if square.max() <= enough:
            break
        moved = wanted * (near * direction - _neighbours(direction))
        step = square / np.maximum((direction * moved).sum((0, 1)), np.finfo(np.float32).tiny)
        x += step * direction
        residual -= step * moved
        before, square = square, (residual**2).sum((0, 1))
        direction = residual + square / np.maximum(before, np.finfo(np.float32).tiny) * direction
    return known + x


def _neighbours(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each pixel's weighted sum of its neighbours, 0 outside: [1 2 1] down times [1 2 1] across, less the centre."""
    down = 2 * values
    down[1:] += values[:-1]
    down[:-1] += values[1:]
    both = 2 * down
    both[:, 1:] += down[:, :-1]
    both[:, :-1] += down[:, 1:]
    both -= 4 * values
    both /= 12
    return both


def _first_guess(
    known: npt.NDArray[np.float32], missing: Mask, tolerance: float, smallest: int = 8
) -> npt.NDArray[np.float32]:
    """The solution at half the size, enlarged; a pixel of it is missing where all four of its own are."""
    (height, width), channels = missing.shape, known.shape[2]
    if min(height, width) <= smallest:
        mean: npt.NDArray[np.float32] = known.sum((0, 1)) / max(1, (~missing).sum())
        return np.broadcast_to(mean, known.shape)
    h, w = -(-height // 2), -(-width // 2)
    odd = ((0, 2 * h - height), (0, 2 * w - width))
    count = np.pad(~missing, odd).reshape(h, 2, w, 2).sum((1, 3))[..., None]
    total = np.pad(known, (*odd, (0, 0))).reshape(h, 2, w, 2, channels).sum((1, 3))
    half = _solve((total / np.maximum(count, 1)).astype(np.float32), count[..., 0] == 0, tolerance)
    return resized(half, (2 * w, 2 * h))[:height, :width]


def resized(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Values (h, w, C) at `size` (width, height), bilinear."""
    fields = [Image.fromarray(np.ascontiguousarray(channel, np.float32)) for channel in np.moveaxis(values, 2, 0)]
    return np.stack([np.asarray(field.resize(size, Image.Resampling.BILINEAR)) for field in fields], axis=2)


def inpaint(image: Pixels, mask: Mask) -> Pixels:
    """The image with the masked pixels imputed linearly, without noise. It needs no other image, but leaves a smooth
    region, which is itself an anomaly on a textured part."""
    return rounded(impute(image, mask))


def noisy(image: Pixels, mask: Mask, random: np.random.Generator, noise: float = 0.01) -> Pixels:
    """`inpaint` with ROAD's Gaussian noise of standard deviation `noise` (1 = full scale, 255), so that a too smooth
    region does not give away the shape of the mask."""
    filled = impute(image, mask)
    filled[mask] += random.normal(0, 255 * noise, (int(mask.sum()), image.shape[2])).astype(np.float32)
    return rounded(filled)


def rounded(values: Floats) -> Pixels:
    """Values as uint8, rounded and clipped to 0..255."""
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def blend(image: Pixels, mask: Mask, normal: Pixels) -> Pixels:
    """The image with `normal`, of any size, inside the mask. Masked pixels are replaced entirely; the transition lies
    outside the mask and is soft, so that it is no new edge."""
    height, width = mask.shape
    if normal.shape != image.shape:
        normal = np.asarray(Image.fromarray(normal).resize((width, height), Image.Resampling.BILINEAR))
    soft = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(FEATHER * max(mask.shape)))
    share = np.maximum(mask, np.minimum(1, 2 * np.asarray(soft, np.float32) / 255))[..., None]
    return rounded(image + share * (normal.astype(np.float32) - image))


def from_normal(normal: Callable[[Pixels], Pixels]) -> Imputer:
    """An imputer that blends in `normal(image)`, a normal image of the same part: an autoencoder's reconstruction or
    the `nearest` good image. For consecutive calls with one image, `normal` is called once."""
    last: list[tuple[Pixels, Pixels]] = []

    def impute(image: Pixels, mask: Mask) -> Pixels:
        if not last or last[0][0] is not image:
            last[:] = [(image, normal(image))]
        return blend(image, mask, last[0][1])

    return impute


def nearest(goods: Sequence[Pixels]) -> Callable[[Pixels], Pixels]:
    """A function that gives, of these good images, the one with the least squared difference at 32 x 32 pixels. Useful
    only where all parts have the same position. Raises ValueError without images."""
    if not goods:
        raise ValueError("expected at least one good image")
    known = np.stack([_thumbnail(good) for good in goods])

    def find(image: Pixels) -> Pixels:
        distance = ((known - _thumbnail(image)) ** 2).sum((1, 2, 3))
        return goods[int(distance.argmin())]

    return find


def _thumbnail(image: Pixels) -> npt.NDArray[np.float32]:
    small = Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float32)
