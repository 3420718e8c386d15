"""AUPIMO: how much of a defect is found where hardly a pixel of the good images is flagged?

Per-image overlap (PIMO; Bertoldo, Ameln, Vaidya & Akcay, "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with
High Speed and Low Tolerance", BMVC 2024, arXiv 2401.01984). For every threshold on the map, each defective image has a
recall: the share of its defective pixels, all defects together, that is flagged. The rate beside it is shared by all
images and comes from good images alone: the share of pixels flagged, averaged over the good images. AUPIMO is the mean
recall over this rate, on a logarithmic scale, from 1 in 100,000 to 1 in 10,000: one figure for each defective image.

It is the guarantee's question, put to pixels: the threshold follows from good images, and then recall is counted.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RATES = (1e-5, 1e-4)  # lowest and highest share of good images' pixels flagged (the paper's)
PERCENTILE = 33  # two thirds of the images have at least this AUPIMO
TAIL = 1 - np.geomspace(RATES[0] / 10, RATES[1] * 10, 300)  # quantiles of good images' pixels to place thresholds at


def aupimo_figures(good: Floats, defect: Floats, normal: Bools, weights: Floats) -> dict[str, Floats]:
    """`aupimo`, the mean of the defective images' AUPIMO, and `aupimo_p33`, their 33rd percentile (the lowest value
    that at least 33 % of the images do not exceed): each (R,) in 0..1, for weights (R, n) of images.

    `good` and `defect` (n, K) count pixels in K bins of map values, highest first; `normal` (n,) marks the good images.
    An image that has no pixels of its kind does not count. NaN where no good or no defective image is drawn, and where
    the good images have too few pixels for the lowest rate (`resolved`).
    """
    rates, recalls = _shares(good[normal]), _shares(defect[~normal])
    has_rate, has_recall = ~np.isnan(rates[:, -1]), ~np.isnan(recalls[:, -1])
    undefined = {name: np.full(len(weights), np.nan) for name in ("aupimo", "aupimo_p33")}
    if not has_recall.any() or not resolved(good[normal].sum(1)):
        return undefined
    drawn_normal, drawn = weights[:, normal][:, has_rate], weights[:, ~normal][:, has_recall]
    shared = drawn_normal @ rates[has_rate] / _or_nan(drawn_normal.sum(1))[:, None]
    areas = aupimo(shared, recalls[has_recall])
    total = _or_nan(drawn.sum(1))
    return {"aupimo": (drawn * areas).sum(1) / total, "aupimo_p33": _percentile(areas, drawn)}


def resolved(pixels: Floats) -> bool:
    """Whether good images of so many pixels (n,) can tell the lowest rate: one pixel of any of them must not be more.

    Of n images of P pixels each, a single pixel is a rate of 1 / (n P). Below that there is nothing to set a threshold
    by, and the recall there would be made up.

    >>> resolved(np.array([40_000.0, 40_000.0])), resolved(np.array([40_000.0, 40_000.0, 40_000.0]))
    (False, True)
    """
    counted = pixels[pixels > 0]
    return bool(len(counted)) and len(counted) * float(counted.min()) >= 1 / RATES[0] * (1 - 1e-9)


def aupimo(rates: Floats, recalls: Floats) -> Floats:
    """AUPIMO (R, m) in 0..1 of m images with the recalls (m, K), for shared rates (R, K); both rise with falling
    threshold. A recall at a rate is that of the lowest threshold at which no larger share is flagged: a step function,
    so that nothing lies between two thresholds that none gives.

    1 = the whole defect is flagged before 1 in 100,000 pixels of a good image is. A map without information gets 0 or,
    if its values spread, the mean rate, about 0.00004.

    >>> third = 10 ** (-5 + 1 / 3)  # a third of the way from 1e-5 to 1e-4
    >>> aupimo(np.array([[0, third, 1]]), np.array([[0.5, 0.8, 1.0]])).round(3).tolist()  # 0.5 / 3 + 0.8 * 2 / 3
    [[0.7]]
    """
    low, high = (math.log10(rate) for rate in RATES)
    with np.errstate(divide="ignore"):
        edges = np.clip(np.log10(rates), low, high)  # where each threshold's recall begins to count
    widths = np.diff(edges, axis=1, append=high) / (high - low)
    used = (widths > 0).any(0)
    return np.where(np.isnan(rates[:, -1:]), np.nan, np.nan_to_num(widths[:, used]) @ recalls[:, used].T)


def _shares(counts: Floats) -> Floats:
    """Of counts per bin (n, K), the share of all up to each; NaN for images without any."""
    return np.cumsum(counts, axis=1) / _or_nan(counts.sum(1))[:, None]


def _percentile(values: Floats, weights: Floats) -> Floats:
    """The PERCENTILE of values (R, m) that occur `weights` times: (R,), NaN where all weights are 0."""
    order = np.argsort(values, axis=1)
    reached = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    at = (reached >= PERCENTILE / 100 * reached[:, -1:] - 1e-9) & (reached > 0)
    found = np.take_along_axis(np.take_along_axis(values, order, axis=1), at.argmax(1)[:, None], axis=1)[:, 0]
    return np.where(at.any(1), found, np.nan)


def _or_nan(values: Floats) -> Floats:
    return np.where(values > 0, values, np.nan)
