"""Which labels may be wrong? Confident learning (Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating
Uncertainty in Dataset Labels"), with a limit on false suspects where classes merely overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FALSE_SHARE = 0.5  # expected share of false suspects among the suspects, at most
ROUNDS = 100  # of matching probabilities to counts, far more than are needed


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label may be wrong: labelled `given`, it looks like those labelled `likely` (class indices).

    `confidence` is the probability of the given class (0..1); `margin` is that minus the highest of the others
    (-1..1, of two classes -1..0): the lower, the more suspicious.
    """

    index: int
    given: int
    likely: int
    confidence: float
    margin: float


def suspects(
    probabilities: Floats, given: npt.NDArray[np.integer], *, false_share: float = FALSE_SHARE
) -> tuple[Suspect, ...]:
    """The images to look at again, most suspicious first: advice for a person, never a reason to relabel unseen.

    `probabilities` (N, C), whose rows sum to 1, come from a classifier that was not trained on the image in question
    (out of fold), and are calibrated (`reliability.temperature`). `given` (N,) are ints in 0..C-1. A class without
    images is never the likely one.

    An image labelled a is a candidate for b (sec. 3.1) when p_b is at least the mean p_b of the images labelled b, b is
    the likeliest class of which this holds, and p_b > p_a. Where classes overlap, many correctly labelled images are
    candidates too, and the classifier itself says how many: by its probabilities, the sum of all p_ij <= s is the
    expected number of images whose correct label is as unlikely as s. So candidates are taken from the unlikeliest
    label on as long as that number is at most `false_share` of those taken (Benjamini & Hochberg 1995 with posterior
    probabilities); infinity keeps all candidates. For this, the probabilities, which may be meant for equal odds, are
    first matched to the labels' counts (Saerens et al. 2002).

    docs/metrics.md says what to expect. Labels that are always wrong in the same way are learned, not suspected.
    Raises ValueError where shapes, types or ranges are not as above.

    >>> p = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3 + [[0.02, 0.98]])
    >>> suspects(p, np.array([0, 0, 0, 1, 1, 1, 0]))
    (Suspect(index=6, given=0, likely=1, confidence=0.02, margin=-0.96),)
    """
    p, given = np.asarray(probabilities, np.float64), np.asarray(given)
    if p.ndim != 2 or given.shape != p.shape[:1] or given.dtype.kind not in "iu":
        raise ValueError(f"expected probabilities (N, C) and int labels (N,); got {p.shape} and {given.shape}")
    if not len(p):
        return ()
    if not ((p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-4)):
        raise ValueError("expected rows of probabilities, which sum to 1")
    if given.min() < 0 or given.max() >= p.shape[1]:
        raise ValueError(f"expected labels in 0..{p.shape[1] - 1}; got {given.min()}..{given.max()}")
    if not false_share > 0:
        raise ValueError(f"expected a share of false suspects above 0; got {false_share}")

    each, count = np.arange(len(p)), np.bincount(given, minlength=p.shape[1])
    mean_own = np.array([p[given == c, c].mean() if count[c] else np.inf for c in range(p.shape[1])])
    confident = np.where(p >= mean_own, p, -1.0)
    likely, own = confident.argmax(1), p[each, given]
    others = p.copy()
    others[each, given] = -1
    margin = own - others.max(1)

    candidates = np.flatnonzero(confident.max(1) > own)
    matched = _matched(p, count)
    unlikely = matched[each, given]
    candidates = candidates[np.argsort(unlikely[candidates], kind="stable")]
    every = np.sort(matched, axis=None)
    expected = np.concatenate([[0], np.cumsum(every)])[np.searchsorted(every, unlikely[candidates], side="right")]
    enough = np.flatnonzero(expected <= false_share * np.arange(1, len(candidates) + 1))
    kept = candidates[: enough[-1] + 1] if len(enough) else candidates[:0]
    return tuple(
        Suspect(int(i), int(given[i]), int(likely[i]), float(own[i]), float(margin[i]))
        for i in sorted(kept, key=lambda i: (margin[i], i))
    )


def named(found: Sequence[Suspect], names: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """As entries of metrics.json, with the images' names and those of the classes."""
    return [
        {"name": names[s.index], "given": classes[s.given], "likely": classes[s.likely], "sure": s.confidence}
        for s in found
    ]


def _matched(p: Floats, count: npt.NDArray[np.integer]) -> Floats:
    """Probabilities (N, C) with the prior odds by which their sums are the counts (C,) (Saerens et al. 2002)."""
    tiny, odds = np.finfo(np.float64).tiny, np.ones(len(count))
    matched = p
    for _ in range(ROUNDS):
        odds = odds * count / np.maximum(matched.sum(0), tiny)
        odds = odds / odds.sum()
        matched = p * odds
        matched = matched / np.maximum(matched.sum(1, keepdims=True), tiny)
    return matched
