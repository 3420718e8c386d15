"""Scores of good parts -> thresholds and p-values (split conformal prediction, Vovk et al. 2005; Lei et al. 2018).

The guarantee: if the next good part is exchangeable with the calibration parts (made and photographed alike, none of
them used in training), the chance that it is called an anomaly is at most `false_alarms`, on average over calibration
sets. Nothing is assumed about the scores themselves.

Several images of one item are not exchangeable with images of other items, but items are exchangeable (hierarchical
conformal prediction: Dunn, Wasserman & Ramdas 2022; Lee, Barber & Willett 2023). Each item then counts once, each of
its images for a share of it, and the guarantee is about an image of a new item.

A guarantee *with confidence* is about this one calibration set: for at least this share of the calibration sets that
could have been drawn, the rate is at most `false_alarms`. It needs independent parts, and more of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from blemish.types import BlemishError, TooFewError

Kind = Literal["split", "leave-one-out"]
Level = Literal["good", "review", "anomaly"]

NO_GUARANTEE = (
    "No share of false alarms is guaranteed: an image is an anomaly where the classifier finds that likelier."
)
_SLACK = 1e-9  # 0.05 * 20 must count as 1
_DIGITS = 9  # three thirds of an item must count as 1


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Above `review` a part is put aside for a person, above `anomaly` it is an anomaly."""

    review: float
    anomaly: float

    def level(self, score: float) -> Level:
        """The decision on a raw score."""
        if score > self.anomaly:
            return "anomaly"
        return "review" if score > self.review else "good"


def item_weights(groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Each image's share of its item, 1 / (images of the item), from the items' names: `(n,)`, with the number of
    items as their sum. "" is an item of its own."""
    counts = Counter(groups)
    return np.array([1 / counts[group] if group else 1.0 for group in groups], np.float64)


def p_values(
    calibration: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
    weights: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float64]:
    """p = (1 + sum over items of the share of images with a score >= s) / (items + 1): `(n,)`, `(m,)` -> `(m,)` in
    (0, 1]. A small p means unlike good parts. `weights` `(n,)` are `item_weights`; without them each image is an item.

    With the good images' map maxima for `calibration` and regions' peaks for `scores`, p is family-wise: the chance
    that a good image has even one region with p <= a is at most a.
    """
    ranked, above = _ranked(calibration, weights)
    at_least = above[np.searchsorted(ranked, scores, side="left")]
    p: npt.NDArray[np.float64] = (1 + at_least) / (above[0] + 1)
    return p


def best_rate(n: int, confidence: float | None = None) -> float:
    """The lowest rate that n good images (items) can guarantee: 1 / (n + 1), or 1 - (1 - confidence)^(1 / n)."""
    if confidence is None:
        return 1 / (n + 1)
    return -math.expm1(math.log1p(-_share(confidence, "a confidence")) / n) if n else 1.0


def parts_needed(false_alarms: float, confidence: float | None = None) -> int:
    """The fewest calibration images (items) that can guarantee this rate: 1 / (n + 1) <= false_alarms, or with
    confidence (1 - false_alarms)^n <= 1 - confidence.

    Raises `BlemishError` for what is no rate.
    """
    _share(false_alarms, "a false-alarm rate")
    if confidence is None:
        return math.ceil(1 / false_alarms - 1 - _SLACK)
    return math.ceil(math.log1p(-_share(confidence, "a confidence")) / math.log1p(-false_alarms) - _SLACK)


def allowance(
    n: int,
    false_alarms: float,
    confidence: float | None = None,
    *,
    unit: Literal["image", "item"] = "image",
    held_out: bool = True,
) -> int:
    """The rank, from the top and at least 1, of the calibration score that is to be the threshold.

    On average: of n + 1 exchangeable good parts floor(false_alarms * (n + 1)) may be called anomalies. With
    confidence: the rate at the k-th largest of n independent scores is at most Beta(k, n + 1 - k) (Vovk 2012), so the
    largest k with P(Binomial(n, false_alarms) >= k) >= confidence. `unit` is what n counts, and `held_out` whether they
    were held out of training; both matter to the error message alone.
    Raises `BlemishError`, with what can be guaranteed, where n is too small.
    """
    needed = parts_needed(false_alarms, confidence)
    if n < needed:
        raise TooFewError(_too_few(n, false_alarms, confidence, unit, held_out))
    if confidence is None:
        return math.floor(false_alarms * (n + 1) + _SLACK)
    low, high = 1, n + 1  # the tail falls with k: low is allowed, high is not
    while high - low > 1:
        middle = (low + high) // 2
        allowed = binomial_tail(n, middle, false_alarms) >= confidence - _SLACK
        low, high = (middle, high) if allowed else (low, middle)
    return low


def threshold(
    calibration: npt.NDArray[np.floating],
    false_alarms: float,
    groups: Sequence[str] | None = None,
    *,
    confidence: float | None = None,
) -> float:
    """The score above which (not at which) a part is an anomaly; raises as `allowance` does.

    `groups` names each image's item, as for `item_weights`. On average, score > threshold if and only if
    p <= false_alarms. With confidence the items' highest scores are ranked, since these are independent of each other:
    of all good items at most this share has any image that is called an anomaly, and so of all images. Other weights of
    dependent images have no such exact law.
    """
    weights = None if groups is None else item_weights(groups)
    ranked, above = _ranked(calibration, weights)
    items = round(above[0])
    rank = allowance(items, false_alarms, confidence, unit="image" if items == len(ranked) else "item")
    if confidence is not None:
        highest = calibration if groups is None else _highest(calibration, groups)
        return float(np.sort(highest)[items - rank])
    higher = above[np.searchsorted(ranked, ranked, side="right")]  # the weight above each score
    return float(ranked[np.argmax(1 + higher <= false_alarms * (items + 1) + _SLACK)])


def thresholds(
    calibration: npt.NDArray[np.floating],
    false_alarms: float,
    review: float,
    groups: Sequence[str] | None = None,
    *,
    confidence: float | None = None,
) -> Thresholds:
    """The thresholds of three verdicts. At most `false_alarms` of good parts are called anomalies, and at most `review`
    are called anomalies *or* put aside for review; with confidence each of the two holds, but not both at once.

    Raises as `threshold` does, and where `review` is not the larger rate.
    """
    _larger(review, false_alarms)
    return Thresholds(
        review=threshold(calibration, review, groups, confidence=confidence),
        anomaly=threshold(calibration, false_alarms, groups, confidence=confidence),
    )


def guarantee(
    n: int,
    false_alarms: float,
    *,
    confidence: float | None = None,
    items: int | None = None,
    review: float | None = None,
    kind: Kind = "split",
) -> str:
    """The guarantee in words, with its assumption. `n` calibration images, of `items` items if these are fewer.

    `kind`: "split" = the calibration images were held out of training; "leave-one-out" = each was scored by a memory
    bank without its own item, and new parts are scored by the whole bank. Let s_i be good image i's distance to the
    bank without its item. Full conformal prediction would add the new image to that bank, which can only lower s_i; so
    p from s_i is never below its p, and the guarantee is exact where a larger bank never raises a score, as with a
    plain nearest-neighbour distance. PatchCore's coreset and its deviations by place make that approximate.
    Raises `BlemishError` where n is too small, and for a confidence without held-out images.
    """
    several = items is not None and items != n
    count = n if items is None else items
    allowance(count, false_alarms, confidence, unit="item" if several else "image", held_out=kind == "split")
    if confidence is not None and kind != "split":
        raise BlemishError(
            "A guarantee with confidence needs calibration images that were held out of training; hold some out, "
            "or ask for the guarantee on average."
        )
    sets = f"{n} images of {count} items" if several else f"{n}"
    what = "images of good items" if several else "good parts"
    alike = "as long as new good parts are made and photographed like those"
    also = ""
    if review is not None:
        _larger(review, false_alarms)
        surely = " as surely" if confidence else ""
        also = f", and{surely} at most {review:.2%} are called anomalies or put aside for review"
    if confidence is not None:
        what = "good items have any image that is called an anomaly" if several else f"{what} are called anomalies"
        also = also.replace("are called anomalies", "have any that is called an anomaly") if several else also
        sentence = (
            f"With {100 * confidence:g}% confidence (so often over calibration sets of {sets}), "
            f"at most {false_alarms:.2%} of {what}{also}, {alike}, independently of each other"
            f"{' and as often each' if several else ''}."
        )
    else:
        sentence = (
            f"At most {false_alarms:.2%} of {what} are called anomalies{also}, on average over calibration sets of "
            f"{sets}, {alike} (exchangeability)."
        )
    if kind == "leave-one-out":
        sentence += f" {_LEFT_OUT}"
    return f"{sentence} It says nothing of the share of defects found."


def binomial_tail(n: int, k: int, share: float) -> float:
    """P(Binomial(n, share) >= k), for 0 < share < 1, from the sum over the side with the smaller terms."""
    if k <= 0 or k > n:
        return float(k <= 0)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    lower = k <= n * share
    i = np.arange(k) if lower else np.arange(k, n + 1)
    choices = log_factorial[n] - log_factorial[i] - log_factorial[n - i]
    total = float(np.exp(choices + i * math.log(share) + (n - i) * math.log1p(-share)).sum())
    return 1 - total if lower else total


_LEFT_OUT = (
    "The calibration images are in the memory bank too, each scored without its own item: exact for a plain "
    "nearest-neighbour distance, but only approximate here, where the bank is a coreset, in which other patches take "
    "the place of the item's."
)


def _ranked(
    calibration: npt.NDArray[np.floating], weights: npt.NDArray[np.floating] | None
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.float64]]:
    """The scores in rising order, and the weight of the i-th and all above it, with a last 0: `(n,)`, `(n + 1,)`."""
    order = np.argsort(calibration, kind="stable")
    ranked = np.asarray(calibration)[order]
    if not np.isfinite(ranked).all():
        raise BlemishError("A calibration score is not a finite number; train again, and look for damaged images.")
    if weights is None:
        return ranked, np.arange(len(ranked), -1, -1, dtype=np.float64)
    if weights.shape != ranked.shape or (weights <= 0).any() or abs(weights.sum() - round(weights.sum())) > 1e-6:
        raise ValueError("expected a positive weight for each calibration score, and a whole number of items")
    above = np.concatenate([np.cumsum(weights[order][::-1], dtype=np.float64)[::-1], [0.0]])
    return ranked, np.round(above, _DIGITS)


def _highest(calibration: npt.NDArray[np.floating], groups: Sequence[str]) -> list[float]:
    """Each item's highest score."""
    highest: dict[str | int, float] = {}
    for i, (score, group) in enumerate(zip(calibration, groups, strict=True)):
        highest[group or i] = max(float(score), highest.get(group or i, -math.inf))
    return list(highest.values())


def _share(value: float, what: str) -> float:
    if not 0 < value < 1:
        raise BlemishError(f"{what} lies between 0 % and 100 %, not {value:.3%}.")
    return value


def _larger(review: float, false_alarms: float) -> None:
    if _share(review, "a review rate") <= _share(false_alarms, "a false-alarm rate"):
        raise BlemishError(
            f"The review rate, {review:.2%}, must be larger than the rate of false alarms, {false_alarms:.2%}: it is "
            "the share of good parts that are put aside for review or called anomalies."
        )


def _too_few(n: int, false_alarms: float, confidence: float | None, unit: str, held_out: bool) -> str:
    needed = parts_needed(false_alarms, confidence)
    sure = "" if confidence is None else f" with {100 * confidence:g}% confidence"
    several = f"{n} good items (with all their images)" if unit == "item" else f"{n} good images"
    ways = [f"add {needed - n} more"]
    if held_out:
        several = several.replace(" good images", " held-out good images")
        ways = [f"hold out {needed - n} more (add good {unit}s, or give a larger --calibration)"]
    lowest = 100 * best_rate(n, confidence)
    step = 0.1 if lowest >= 1 else 0.001
    if (had := math.ceil(lowest / step - _SLACK) * step) < 100:
        ways.append(f"ask for --false-alarms {had:.6g}%")
    if confidence is not None and n >= parts_needed(false_alarms):
        ways.append("ask for the guarantee on average, without a confidence, which these can give")
    return (
        f"{several} cannot guarantee {false_alarms:.2%} false alarms{sure}: that takes {needed}; {', or '.join(ways)}."
    )
