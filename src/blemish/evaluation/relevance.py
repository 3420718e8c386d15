"""One heatmap of one image put to the test: the measures, each readable against its paper, and the controls, maps
that know nothing of the detector. faithfulness.py takes them over many images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from blemish.evaluation.imputation import Floats, Imputer, Pixels, noisy
from blemish.evaluation.localisation import Map, Mask, resize_map

Detector = Callable[[Pixels], tuple[float, Map]]  # `Inspector.predict`; an anomaly scores above a threshold
Ranks = npt.NDArray[np.int64]

AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)  # of the image, taken out or put back; finest where it counts
ROAD_AREAS = (0.1, 0.3, 0.5, 0.7, 0.9)
POINTING = 0.03  # of the longest side: Zhang et al. allow 15 pixels, in images of about 500
SMOOTH = 0.02  # of the longest side: standard deviation by which the random map and the edges are smoothed


def ranked(heat: Map, shape: tuple[int, int], random: np.random.Generator) -> Ranks:
    """Each pixel's rank (H, W), 0 = hottest, of a map enlarged bilinearly to `shape`; equals in random order."""
    values = resize_map(heat, (shape[1], shape[0])).ravel()
    order = np.lexsort((random.random(len(values)), -values))
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values))
    return ranks.reshape(shape)


def hottest(ranks: Ranks, area: float) -> Mask:
    """The hottest `area` (0..1) of the image, at least a pixel."""
    return ranks < max(1, round(area * ranks.size))


def deletion(run: Detector, image: Pixels, ranks: Ranks, impute: Imputer, areas: Sequence[float] = AREAS) -> Floats:
    """Scores (K,) with the hottest areas replaced (Petsiuk et al. 2018, "RISE", sec. 3.4): the sooner they fall, the
    better the map knew what they stood on."""
    return np.array([run(impute(image, hottest(ranks, area)))[0] for area in areas])


def insertion(run: Detector, image: Pixels, ranks: Ranks, impute: Imputer, areas: Sequence[float] = AREAS) -> Floats:
    """Scores (K,) with all but the hottest areas replaced: the sooner they rise, the better."""
    return np.array([run(impute(image, ~hottest(ranks, area)))[0] for area in areas])


def area_under(areas: Sequence[float], curve: Floats) -> float:
    """Area under a curve (K,) over rising `areas`, by trapezoids."""
    return float((np.diff(areas) * (curve[1:] + curve[:-1]) / 2).sum())


def road(
    run: Detector,
    image: Pixels,
    ranks: Ranks,
    random: np.random.Generator,
    areas: Sequence[float] = ROAD_AREAS,
) -> Floats:
    """Scores (2, K): with the least relevant areas removed, and with the most relevant ones (Rong et al. 2022); removed
    pixels are imputed linearly, with noise. The more the first are above the second, the better."""
    orders = (ranks.size - 1 - ranks, ranks)
    return np.array([[run(noisy(image, hottest(ranks, area), random))[0] for area in areas] for ranks in orders])


def moved(mask: Mask, random: np.random.Generator) -> Mask:
    """The mask shifted at random, wrapping around: the same shape and area anywhere."""
    return np.roll(mask, [int(random.integers(side)) for side in mask.shape], axis=(0, 1))


def pointing(heat: Map, mask: Mask, tolerance: float = POINTING) -> bool:
    """Whether the centre of the map's highest cell, the first of equals, is in the mask (H, W) or at most `tolerance`
    of the longest side away (Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop", sec. 4.2)."""
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    y = (2 * row + 1) * mask.shape[0] // (2 * heat.shape[0])
    x = (2 * column + 1) * mask.shape[1] // (2 * heat.shape[1])
    away = min((dy * dy + dx * dx for dy, dx in np.argwhere(mask) - (y, x)), default=np.inf)
    return bool(away <= (tolerance * max(mask.shape)) ** 2)


def energy_inside(heat: Map, mask: Mask) -> float:
    """Share of the map's energy that lies in the mask (H, W) (Wang et al. 2020, "Score-CAM", sec. 4.3).

    Theirs are maps whose zero means nothing. Here zero may be anywhere, so the energy is what exceeds the map's own
    median: half of the image is taken for cold, and adding to or scaling a map changes nothing. A flat map has its
    energy everywhere alike.
    """
    values = resize_map(heat, (mask.shape[1], mask.shape[0])).astype(np.float64)
    energy = np.maximum(values - np.median(values), 0)
    total = energy.sum()
    return float(energy[mask].sum() / total) if total > 0 else float(mask.mean())


# Controls: maps that know nothing of the detector.


def random_map(shape: tuple[int, int], random: np.random.Generator) -> Map:
    """Smoothed noise, alike everywhere: it is cut out of a larger field."""
    sigma = SMOOTH * max(shape)
    edge = int(np.ceil(4 * sigma))
    field = _smooth(random.normal(size=(shape[0] + 2 * edge, shape[1] + 2 * edge)), sigma)
    return field[edge : edge + shape[0], edge : edge + shape[1]]


def centre_map(shape: tuple[int, int]) -> Map:
    """A round blob in the middle, where people put what they photograph."""
    y, x = (np.linspace(-1, 1, side) for side in shape)
    return np.exp(-2 * (y[:, None] ** 2 + x**2)).astype(np.float32)


def edge_map(image: Pixels) -> Map:
    """Sobel's magnitude of the grey image, smoothed: to find edges takes no detector (Adebayo et al. 2018)."""
    grey = np.pad(image.mean(2), 1, mode="edge")
    across, down = grey[:, 2:] - grey[:, :-2], grey[2:] - grey[:-2]
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return _smooth(np.hypot(dx, dy), SMOOTH * max(image.shape[:2]))


def _smooth(field: Floats, sigma: float) -> Map:
    """Gaussian of deviation `sigma` pixels; outside is not counted."""

    def kernel(side: int) -> Floats:
        away = np.arange(side)[:, None] - np.arange(side)
        weights = np.exp(-0.5 * (away / sigma) ** 2)
        return np.asarray(weights / weights.sum(1, keepdims=True), np.float64)

    return np.asarray(kernel(field.shape[0]) @ field @ kernel(field.shape[1]).T, np.float32)
