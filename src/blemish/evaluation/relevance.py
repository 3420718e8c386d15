"""Faithfulness measures of one heatmap of one image, and the controls: maps made without the detector.

faithfulness.py takes them over many images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from blemish.evaluation.imputation import Floats, Imputer, Pixels, noisy
from blemish.evaluation.localisation import Map, Mask, resize_map

Detector = Callable[[Pixels], tuple[float, Map]]  # image uint8 (H, W, 3) -> score, map (h, w) float32
Ranks = npt.NDArray[np.int64]

AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)  # shares of the image that are taken out or put back
ROAD_AREAS = (0.1, 0.3, 0.5, 0.7, 0.9)
POINTING = 0.03  # of the longest side; Zhang et al. allow 15 pixels, in images of about 500
SMOOTH = 0.02  # of the longest side, standard deviation by which the random map and the edges are smoothed


def ranked(heat: Map, shape: tuple[int, int], random: np.random.Generator) -> Ranks:
    """Each pixel's rank (H, W), 0 = hottest, in the map (h, w) resized bilinearly to `shape`; equals in random order.

    >>> ranked(np.array([[0, 1]], np.float32), (1, 4), np.random.default_rng(0)).tolist()
    [[3, 2, 1, 0]]
    """
    values = resize_map(heat, (shape[1], shape[0])).ravel()
    order = np.lexsort((random.random(len(values)), -values))
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values))
    return ranks.reshape(shape)


def hottest(ranks: Ranks, area: float) -> Mask:
    """The hottest `area` (0..1) of the image as a mask (H, W), at least one pixel.

    >>> hottest(np.array([[3, 2, 1, 0]]), 0.5).tolist()
    [[False, False, True, True]]
    """
    return ranks < max(1, round(area * ranks.size))


def deletion(run: Detector, image: Pixels, ranks: Ranks, impute: Imputer, areas: Sequence[float] = AREAS) -> Floats:
    """Scores (K,) of the image with each of K hottest areas replaced (Petsiuk et al. 2018, "RISE", sec. 3.4). The
    earlier they fall, the better the map shows what the score rests on."""
    return np.array([run(impute(image, hottest(ranks, area)))[0] for area in areas])


def insertion(run: Detector, image: Pixels, ranks: Ranks, impute: Imputer, areas: Sequence[float] = AREAS) -> Floats:
    """Scores (K,) of the image with all but each of K hottest areas replaced (Petsiuk et al. 2018, sec. 3.4). The
    earlier they rise, the better."""
    return np.array([run(impute(image, ~hottest(ranks, area)))[0] for area in areas])


def area_under(areas: Sequence[float], curve: Floats) -> float:
    """Area under a curve (K,) over K rising `areas`, by trapezoids.

    >>> area_under((0, 0.5, 1), np.array([1.0, 0.5, 0.0]))
    0.5
    """
    return float((np.diff(areas) * (curve[1:] + curve[:-1]) / 2).sum())


def road(
    run: Detector,
    image: Pixels,
    ranks: Ranks,
    random: np.random.Generator,
    areas: Sequence[float] = ROAD_AREAS,
) -> Floats:
    """ROAD, remove and debias (Rong et al. 2022): scores (2, K) with the K least relevant areas removed, and with the K
    most relevant ones. Removed pixels are imputed linearly, with noise. The higher the mean of the first minus that of
    the second, the better."""
    orders = (ranks.size - 1 - ranks, ranks)
    return np.array([[run(noisy(image, hottest(ranks, area), random))[0] for area in areas] for ranks in orders])


def moved(mask: Mask, random: np.random.Generator) -> Mask:
    """The mask (H, W) shifted at random, wrapping around: the same shape and area elsewhere."""
    return np.roll(mask, [int(random.integers(side)) for side in mask.shape], axis=(0, 1))


def pointing(heat: Map, mask: Mask, tolerance: float = POINTING) -> bool:
    """Whether the centre of the highest cell of the map (h, w), the first of equals, lies in the mask (H, W) or at most
    `tolerance` of the longest side away (Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop",
    sec. 4.2).

    >>> heat = np.array([[0, 0], [0, 1]], np.float32)
    >>> diagonal = np.eye(40, dtype=bool)  # the highest cell's centre is at (30, 30)
    >>> pointing(heat, diagonal), pointing(heat, diagonal[::-1])
    (True, False)
    """
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    y = (2 * row + 1) * mask.shape[0] // (2 * heat.shape[0])
    x = (2 * column + 1) * mask.shape[1] // (2 * heat.shape[1])
    away = min((dy * dy + dx * dx for dy, dx in np.argwhere(mask) - (y, x)), default=np.inf)
    return bool(away <= (tolerance * max(mask.shape)) ** 2)


def energy_inside(heat: Map, mask: Mask) -> float:
    """Share (0..1) of the map's energy that lies in the mask (H, W) (Wang et al. 2020, "Score-CAM", sec. 4.3).

    Their maps are 0 where there is no evidence. Here 0 may be anywhere, so the energy is what exceeds the map's own
    median: half of the image counts as cold, and adding a constant to a map or scaling it changes nothing. The energy
    of a flat map is spread evenly.

    >>> energy_inside(np.array([[0, 0, 3, 1]], np.float32), np.array([[False, False, True, False]]))  # 2.5 of 2.5 + 0.5
    0.8333333333333334
    """
    values = resize_map(heat, (mask.shape[1], mask.shape[0])).astype(np.float64)
    energy = np.maximum(values - np.median(values), 0)
    total = energy.sum()
    return float(energy[mask].sum() / total) if total > 0 else float(mask.mean())


# Controls: maps made without the detector.


def random_map(shape: tuple[int, int], random: np.random.Generator) -> Map:
    """Smoothed Gaussian noise (H, W), stationary up to the border: it is cut out of a larger field."""
    sigma = SMOOTH * max(shape)
    edge = int(np.ceil(4 * sigma))
    field = _smooth(random.normal(size=(shape[0] + 2 * edge, shape[1] + 2 * edge)), sigma)
    return field[edge : edge + shape[0], edge : edge + shape[1]]


def centre_map(shape: tuple[int, int]) -> Map:
    """A Gaussian blob (H, W) in the middle, where people place what they photograph: exp(-2 (x^2 + y^2)), x and y in
    -1..1."""
    y, x = (np.linspace(-1, 1, side) for side in shape)
    return np.exp(-2 * (y[:, None] ** 2 + x**2)).astype(np.float32)


def edge_map(image: Pixels) -> Map:
    """Magnitude (H, W) of the Sobel gradient of the grey image, smoothed: an edge detector, which needs no training
    (a control of Adebayo et al. 2018)."""
    grey = np.pad(image.mean(2), 1, mode="edge")
    across, down = grey[:, 2:] - grey[:, :-2], grey[2:] - grey[:-2]
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return _smooth(np.hypot(dx, dy), SMOOTH * max(image.shape[:2]))


def _smooth(field: Floats, sigma: float) -> Map:
    """Gaussian smoothing of standard deviation `sigma` pixels, normalised over the pixels inside the image."""

    def kernel(side: int) -> Floats:
        away = np.arange(side)[:, None] - np.arange(side)
        weights = np.exp(-0.5 * (away / sigma) ** 2)
        return np.asarray(weights / weights.sum(1, keepdims=True), np.float64)

    return np.asarray(kernel(field.shape[0]) @ field @ kernel(field.shape[1]).T, np.float32)
