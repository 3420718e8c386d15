"""Does a probability mean what it says? Temperature scaling, expected calibration error and the reliability diagram.

`probabilities` (N,) are those of "anomaly", `labels` (N,) bool are True for anomalies. `weights` (N,) exist since a
classifier learned with class weights speaks of equal odds beforehand, "what the image says before one knows how rare
defects are": judged with `balanced_weights`, each class counts the same.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from blemish.evaluation.bootstrap import CHUNK, Interval, intervals, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
AnyFloat = TypeVar("AnyFloat", bound=np.floating[Any])

COLDEST, HOTTEST = 0.05, 20.0  # the range of temperatures
HALVINGS = 60  # of that range: far below what a float64 can tell apart
INK, TEAL, GREY = "#15181b", "#0a6a60", "#59616a"  # as in the page; at least 6 : 1 on white


@dataclass(frozen=True, slots=True)
class Bin:
    """The images with a probability in (low, high]; the first bin holds 0 as well."""

    low: float
    high: float
    images: int
    share: float  # of all weight, 0..1
    probability: float | None  # mean; None where the bin is empty
    anomalies: Interval  # share of anomalies among them, by weight


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far predicted probabilities agree with what came true. JSON by `bootstrap.to_json`.

    `ece_if_calibrated` is what the ECE of a perfectly calibrated classifier with these very probabilities stays below
    in 95 of 100 draws of labels (Bröcker & Smith 2007): an ECE is never 0 on few images, and one below this figure
    is no sign of bad calibration. None where weights differ within a class.
    """

    images: int
    weighted: bool
    bins: tuple[Bin, ...]
    ece: Interval
    ece_if_calibrated: float | None
    brier: Interval
    log_loss: Interval


def class_weights(counts: npt.NDArray[np.integer]) -> Floats:
    """Weights (C,), with mean 1 over all images, by which classes of `counts` (C,) images, none 0, count alike."""
    return np.asarray(counts.sum() / (len(counts) * counts), np.float64)


def balanced_weights(labels: Bools) -> Floats:
    """Weights (N,) with mean 1 by which good and defective images count the same; all 1 with one class only."""
    counts = np.bincount(labels, minlength=2)
    return class_weights(counts)[labels.astype(int)] if counts.all() else np.ones(len(labels))


def temperature(logits: Floats, classes: npt.NDArray[np.integer], weights: Floats | None = None) -> float:
    """T such that softmax(logits / T) has the least mean negative log-likelihood (Guo et al. 2017, sec. 4.2).

    `logits` (N, C) finite, of images not learned from; `classes` (N,) in 0..C-1; `weights` (C,) count the images of
    each class so many times. The result lies in 0.05..20; 1 where no row of logits tells the classes apart.

    Targets are Platt's (1999): an image of a class with n counts as of that class by (n + 1) / (n + 2), the rest is
    spread over the others. Else perfectly separated logits would drive T to the lower end: no error among n images
    would be taken for no error ever. It is as if one typical image of each class had been labelled wrongly.

    The loss is convex in 1 / T, its derivative rises: bisection. Raises ValueError with fewer than two classes.
    """
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or classes.shape != z.shape[:1] or not np.isfinite(z).all():
        raise ValueError(f"expected finite logits (N, C) and classes (N,); got {z.shape} and {classes.shape}")
    if len(classes) and not (classes.min() >= 0 and classes.max() < z.shape[1]):
        raise ValueError(f"expected classes in 0..{z.shape[1] - 1}; got {classes.min()}..{classes.max()}")
    n = np.bincount(classes, minlength=z.shape[1])
    if (n > 0).sum() < 2:
        raise ValueError("a temperature takes images of at least two classes")
    each = np.ones(z.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if each.shape != n.shape or not np.isfinite(each).all() or (each < 0).any() or not each[n > 0].any():
        raise ValueError(f"expected weights ({len(n)},), none negative, not all 0; got {each}")
    if not np.ptp(z, axis=1).any():
        return 1.0

    weight, wrong = each[classes], 1 / (n[classes] + 2)
    own = z[np.arange(len(z)), classes]
    aimed_at = (1 - wrong) * own + wrong * (z.sum(1) - own) / (z.shape[1] - 1)

    def slope(inverse: float) -> float:  # d loss / d (1 / T)
        return float(weight @ ((softmax(inverse * z) * z).sum(1) - aimed_at))

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.clip(2 / (low + high), COLDEST, HOTTEST))


def softmax(z: npt.NDArray[AnyFloat]) -> npt.NDArray[AnyFloat]:
    """Probabilities (N, C) of logits (N, C), in their own precision."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), z.dtype)


def expected_calibration_error(
    probabilities: Floats, labels: Bools, *, bins: int = 10, weights: Floats | None = None
) -> float:
    """Sum over equal-width bins of share * |mean label - mean probability| (Guo et al. 2017, eq. 3): 0..1, 0 = perfect.

    NaN without images.
    """
    p, each = _checked(probabilities, labels, bins, weights)
    return float(_ece(_bin(p, bins), p, labels[None], each[None])[0])


def _bin(p: Floats, bins: int) -> npt.NDArray[np.intp]:
    return np.asarray(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p, side="left"))


def _ece(number: npt.NDArray[np.intp], p: Floats, labels: Bools | Floats, weights: Floats) -> Floats:
    """ECE (R,) of bin numbers (N,), labels (R or 1, N) and weights (R, N)."""
    member = number[:, None] == np.unique(number)
    gap = np.abs((weights * (labels - p)) @ member).sum(1)
    total = weights.sum(1)
    return np.asarray(np.divide(gap, total, out=np.full(len(total), np.nan), where=total > 0))


def _checked(p: Floats, labels: Bools, bins: int, weights: Floats | None) -> tuple[Floats, Floats]:
    p = np.asarray(p, np.float64)
    if labels.ndim != 1 or labels.dtype != bool or p.shape != labels.shape:
        raise ValueError(f"expected probabilities and bool labels (N,); got {p.shape}, {labels.dtype} {labels.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("expected probabilities in 0..1")
    if bins < 1:
        raise ValueError(f"expected at least one bin; got {bins}")
    each = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    if each.shape != p.shape or not np.isfinite(each).all() or (each <= 0).any():
        raise ValueError(f"expected weights {p.shape} above 0; got {each.shape}")
    return p, each


def reliability(
    probabilities: Floats,
    labels: Bools,
    *,
    bins: int = 10,
    weights: Floats | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Reliability:
    """Bins of equal width, ECE, Brier score and log loss (nats) with bootstrap intervals over images, by label.

    The share of anomalies of a bin carries Wilson's interval; where each class has one weight, as by
    `balanced_weights`, its ends are carried over to the weighted share, which rises with the plain one. Other weights
    leave it without. For the log loss, probabilities are kept 2e-16 off 0 and 1, as scikit-learn does: to be wrong for
    certain costs 36.
    """
    p, each = _checked(probabilities, labels, bins, weights)
    number, odds = _bin(p, bins), _odds(each, labels)
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(p, tiny, 1 - tiny)
    loss = np.stack([(p - labels) ** 2, -np.where(labels, np.log(clipped), np.log1p(-clipped))], axis=1)

    def figures(drawn: Floats) -> dict[str, Floats]:
        drawn = drawn * each
        total = drawn.sum(1, keepdims=True)
        mean = np.divide(drawn @ loss, total, out=np.full((len(drawn), 2), np.nan), where=total > 0)
        return {"ece": _ece(number, p, labels[None], drawn), "brier": mean[:, 0], "log_loss": mean[:, 1]}

    found = intervals(figures, labels, resamples=resamples, seed=seed, level=level)
    by_chance = None if odds is None else _ece_if_calibrated(number, p, odds, resamples, seed)
    edges = np.linspace(0, 1, bins + 1)
    return Reliability(
        images=len(p),
        weighted=weights is not None,
        bins=tuple(_summary(edges[k : k + 2], number == k, p, labels, each, odds, level) for k in range(bins)),
        ece=_unbiased(found["ece"], by_chance),
        ece_if_calibrated=by_chance,
        brier=found["brier"],
        log_loss=found["log_loss"],
    )


def from_json(figures: Mapping[str, Any]) -> Reliability:
    """What `bootstrap.to_json` made JSON of."""
    bins = (Bin(**{**each, "anomalies": Interval(**each["anomalies"])}) for each in figures["bins"])
    several = {name: Interval(**figures[name]) for name in ("ece", "brier", "log_loss")}
    return Reliability(**{**figures, **several, "bins": tuple(bins)})


def _unbiased(ece: Interval, by_chance: float | None) -> Interval:
    """The interval with the lower end that the true ECE may have.

    An ECE is an overestimate, and one of resamples twice so: percentiles never held the true one of calibrated
    probabilities. So the lower end is the basic bootstrap's, 2 value - high, and 0 where chance explains it all.
    """
    if ece.value is None or ece.high is None:
        return ece
    low = 0.0 if by_chance is not None and ece.value <= by_chance else max(0.0, 2 * ece.value - ece.high)
    return Interval(ece.value, min(low, ece.value), max(ece.high, ece.value))


def _odds(weights: Floats, labels: Bools) -> float | None:
    """Weight of an anomaly over that of a good image; None where weights differ within a class."""
    good, bad = weights[~labels], weights[labels]
    if any(len(w) and np.ptp(w) > 1e-9 * w[0] for w in (good, bad)):
        return None
    return float(bad[0] / good[0]) if len(good) and len(bad) else 1.0


def _reweighted(share: float, odds: float) -> float:
    return odds * share / (odds * share + 1 - share)


def _summary(
    edges: Floats, inside: Bools, p: Floats, labels: Bools, weights: Floats, odds: float | None, level: float
) -> Bin:
    """One bin: of all images, those `inside` (N,) bool."""
    count, weight = int(inside.sum()), weights * inside
    anomalies = wilson(int(labels[inside].sum()), count, level)
    if odds is None:
        anomalies = Interval(float(weight @ labels / weight.sum()) if count else None)
    elif anomalies.value is not None and anomalies.low is not None and anomalies.high is not None:
        anomalies = Interval(*(_reweighted(s, odds) for s in (anomalies.value, anomalies.low, anomalies.high)))
    return Bin(
        low=float(edges[0]),
        high=float(edges[1]),
        images=count,
        share=float(weight.sum() / weights.sum()) if count else 0.0,
        probability=float(weight @ p / weight.sum()) if count else None,
        anomalies=anomalies,
    )


def _ece_if_calibrated(number: npt.NDArray[np.intp], p: Floats, odds: float, draws: int, seed: int) -> float | None:
    """95 % quantile of the ECE where labels are drawn by the probabilities themselves, undone of the weights' odds."""
    if not len(p):
        return None
    true = p / (p + odds * (1 - p))  # weighted by odds : 1, these images then show p again
    random, found = np.random.default_rng(seed), list[Floats]()
    for start in range(0, draws, CHUNK):
        labels = random.random((min(CHUNK, draws - start), len(p))) < true
        found.append(_ece(number, p, labels, np.where(labels, odds, 1.0)))
    return float(np.quantile(np.concatenate(found), 0.95))


def draw_reliability(reliability: Reliability, file: Path, title: str) -> None:
    """The reliability diagram as SVG: observed share of anomalies against predicted probability, histogram below.

    Equal figures give equal bytes. Takes matplotlib (of the extra `learn`), without pyplot and its global state.
    """
    import matplotlib as mpl

    nothing: dict[str, str | None] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # Not the caller's style; but their backend, which rc_context would not give back.
    style: Any = {name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"}
    with mpl.rc_context({**style, "svg.hashsalt": "blemish"}):
        _figure(reliability, title).savefig(file, format="svg", metadata=nothing)


def _figure(reliability: Reliability, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    curve, shares = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    curve.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    used = [b for b in reliability.bins if b.probability is not None and b.anomalies.value is not None]
    x, y = [b.probability or 0.0 for b in used], [b.anomalies.value or 0.0 for b in used]
    for bin_, at in zip(used, x, strict=True):
        if bin_.anomalies.low is not None and bin_.anomalies.high is not None:
            curve.plot([at, at], [bin_.anomalies.low, bin_.anomalies.high], color=TEAL, linewidth=1.6)
    curve.plot(x, y, color=TEAL, marker="o", markersize=6, linewidth=1, clip_on=False, zorder=3)
    ece = reliability.ece
    said = f"ECE {ece}"
    if reliability.ece_if_calibrated is not None:
        said += f"\ncalibrated: below {reliability.ece_if_calibrated:.3f}"
    curve.text(0.03, 0.97, said, transform=curve.transAxes, va="top", color=INK, fontsize=10)
    by_weight = ", classes weighted" if reliability.weighted else ""
    curve.set_ylabel(f"share of anomalies{by_weight}")
    curve.set_title(textwrap.fill(title, 56), color=INK, fontsize=12, loc="left", parse_math=False)
    for bin_ in reliability.bins:
        shares.bar(bin_.low, bin_.share, bin_.high - bin_.low, align="edge", color=TEAL, edgecolor="white")
    shares.set_ylabel("share of all")
    shares.set_xlabel(f"predicted probability of an anomaly ({reliability.images:,} images)")
    curve.set(xlim=(0, 1), ylim=(0, 1))
    for axes in (curve, shares):
        axes.tick_params(colors=INK, labelsize=10)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
    return figure
