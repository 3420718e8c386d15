"""The curves behind the figures, the histogram of scores and the reliability diagram, as SVG.

Curves and histogram are for inlining in a page, in the page's own colours and font. Points are pure functions of scores
and labels as in `detection.py`. Drawing needs matplotlib (of the extra `learn`), without pyplot and its global state;
equal figures give equal bytes.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from blemish.evaluation.localisation import FALSE_POSITIVE_LIMIT, PixelStatistics
from blemish.reporting.figures import defined, value_of, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

INK, TEAL, GREY = "#15181b", "#0a6a60", "#59616a"  # contrast of at least 6 : 1 on white
RED, AMBER, PALE = "#b3261e", "#8f5600", "#dedcd5"
# In a page each becomes the page's own colour, which differs in dark mode.
COLOURS = {
    INK: "currentColor",
    GREY: "var(--quiet)",
    TEAL: "var(--found)",
    RED: "var(--missed)",
    AMBER: "var(--false-alarm)",
    PALE: "var(--line)",
}
SIZE = (4.5, 3.3)  # inches, so that on a phone a point of font size is a pixel
FONT = 11  # points
NO_METADATA: dict[str, str | None] = {"Date": None, "Creator": None, "Format": None, "Type": None}


def roc_points(scores: npt.NDArray[np.floating], labels: Bools) -> tuple[Floats, Floats]:
    """ROC curve: false-alarm rate and recall (K + 1,) at each distinct score, from (0, 0) to (1, 1).

    >>> x, y = roc_points(np.array([2.0, 1.0, 0.0]), np.array([True, False, True]))
    >>> x.tolist(), y.tolist()
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0])
    """
    good, anomalies = _counts(scores, labels)
    return _cumulated(good), _cumulated(anomalies)


def pr_points(scores: npt.NDArray[np.floating], labels: Bools) -> tuple[Floats, Floats]:
    """Recall and precision (K,) at each distinct score, highest first. Drawn as steps that hold each precision from the
    previous recall to its own, their area is the average precision.

    >>> x, y = pr_points(np.array([2.0, 1.0, 0.0]), np.array([True, False, True]))
    >>> x.tolist(), y.round(3).tolist()
    ([0.5, 0.5, 1.0], [1.0, 0.5, 0.667])
    """
    good, anomalies = _counts(scores, labels)
    caught = np.cumsum(anomalies)
    return caught / caught[-1], caught / (caught + np.cumsum(good))


def pro_points(pixels: PixelStatistics, limit: float = FALSE_POSITIVE_LIMIT) -> tuple[Floats, Floats]:
    """Share of good pixels flagged, and mean share of each defect's area flagged (per-region overlap, Bergmann et al.
    2020), from (0, 0) to where the former is `limit`. The area below, divided by `limit`, is
    `localisation.area_under_pro`."""
    rate = _cumulated(pixels.good.sum(0))
    overlap = np.concatenate([[0.0], np.cumsum(pixels.overlap.sum(0)) / pixels.regions.sum()])
    inside = rate < limit
    at_limit = float(np.interp(limit, rate, overlap))
    return np.append(rate[inside], limit), np.append(overlap[inside], at_limit)


def _counts(scores: npt.NDArray[np.floating], labels: Bools) -> tuple[Floats, Floats]:
    """Numbers of good images and of anomalies per distinct score, highest first, each (K,)."""
    distinct, place = np.unique(-np.asarray(scores, np.float64), return_inverse=True)
    good = np.bincount(place[~labels], minlength=len(distinct))
    return good.astype(np.float64), np.bincount(place[labels], minlength=len(distinct)).astype(np.float64)


def _cumulated(counts: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])


def roc_svg(scores: Floats, labels: Bools, at: tuple[float, float] | None, label: str) -> str:
    """The ROC curve; `at` marks the threshold in use (false-alarm rate, recall); `label` is the text for screen
    readers."""
    x, y = roc_points(scores, labels)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        axes.plot(x, y, color=TEAL, linewidth=2, clip_on=False)
        _mark(axes, at)
        axes.set(xlabel="good images flagged", ylabel="defective images found", xlim=(0, 1), ylim=(0, 1))

    return _svg(draw, label)


def pr_svg(scores: Floats, labels: Bools, at: tuple[float, float] | None, label: str) -> str:
    """The precision-recall curve; `at` marks the threshold in use (recall, precision)."""
    x, y = pr_points(scores, labels)

    def draw(axes: Axes) -> None:
        axes.axhline(float(labels.mean()), color=GREY, linestyle=":", linewidth=1)
        # steps-pre: a precision holds from the previous recall on, as in the average precision.
        axes.plot([0, *x], [y[0], *y], color=TEAL, linewidth=2, drawstyle="steps-pre", clip_on=False)
        _mark(axes, at)
        axes.set(xlabel="defective images found (recall)", ylabel="flagged rightly (precision)")
        axes.set(xlim=(0, 1), ylim=(0, 1))

    return _svg(draw, label)


def pro_svg(pixels: PixelStatistics, label: str) -> str:
    """The per-region overlap over the share of good pixels flagged, up to the limit of AUPRO."""
    x, y = pro_points(pixels)

    def draw(axes: Axes) -> None:
        axes.fill_between(x, y, color=TEAL, alpha=0.12, linewidth=0)
        axes.plot(x, y, color=TEAL, linewidth=2, clip_on=False)
        axes.set(xlabel="good pixels flagged", ylabel="area of each defect flagged")
        axes.set(xlim=(0, FALSE_POSITIVE_LIMIT), ylim=(0, 1))

    return _svg(draw, label)


def histogram_svg(
    good: Floats, defective: Floats, held_out: Floats, thresholds: Mapping[str, float], label: str, bins: int = 30
) -> str:
    """Histogram of scores: defective test images above the axis, good ones below, the held-out good ones as strokes on
    it, and each of `thresholds` as a line with its name. Two thresholds enclose a shaded band."""
    from matplotlib.ticker import MaxNLocator

    together = np.concatenate([good, defective, held_out, list(thresholds.values())])
    low, high = float(together.min()), float(together.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    up, down = np.histogram(defective, edges)[0], np.histogram(good, edges)[0]
    top, bottom = max(1.0, float(up.max())) * 1.25, -max(1.0, float(down.max())) * 1.25

    def draw(axes: Axes) -> None:
        width = edges[1] - edges[0]
        axes.bar(edges[:-1], up, width, align="edge", color=RED, edgecolor="none")
        axes.bar(edges[:-1], -down, width, align="edge", color=TEAL, edgecolor="none")
        axes.axhline(0, color=INK, linewidth=0.8)
        if len(held_out):
            axes.plot(held_out, np.zeros(len(held_out)), color=INK, marker="|", markersize=11, linestyle="none")
        _draw_thresholds(axes, thresholds, (low + high) / 2, top)
        above: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom", "fontsize": FONT}
        axes.text(0, 1.02, "▲ defective", color=RED, **above)
        axes.text(0.3, 1.02, "▼ good", color=TEAL, **above)
        if len(held_out):
            axes.text(0.53, 1.02, "| good, calibration", color=INK, **above)
        axes.set(xlabel="score", ylabel="test images", ylim=(bottom, top))
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return _svg(draw, label, (5.2, 3.2))


def _draw_thresholds(axes: Axes, thresholds: Mapping[str, float], middle: float, top: float) -> None:
    """Dashed lines, their names at `top`, on the side towards the `middle` of the axis."""
    if len(thresholds) > 1:
        axes.axvspan(min(thresholds.values()), max(thresholds.values()), color=AMBER, alpha=0.18, linewidth=0)
    for place, (name, threshold) in enumerate(sorted(thresholds.items(), key=lambda item: item[1])):
        axes.axvline(threshold, color=AMBER, linestyle="--", linewidth=1.3)
        leftwards = threshold > middle
        axes.annotate(
            name,
            (threshold, top),
            xytext=(-4 if leftwards else 4, -3 - 12 * place),
            textcoords="offset points",
            va="top",
            ha="right" if leftwards else "left",
            color=AMBER,
            fontsize=FONT,
        )


def _mark(axes: Axes, at: tuple[float, float] | None) -> None:
    if at:
        axes.plot([at[0]], [at[1]], color=RED, marker="D", markersize=7, clip_on=False, zorder=3)


def draw_reliability(reliability: Mapping[str, Any], file: Path, title: str) -> None:
    """Writes the reliability diagram of a `Reliability` as JSON to `file`, an SVG: observed share of anomalies against
    predicted probability, with the histogram of probabilities below."""
    with _style("blemish"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font has no Chinese
        _diagram(reliability, title).savefig(file, format="svg", metadata=NO_METADATA)


def _diagram(reliability: Mapping[str, Any], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    curve, shares = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    curve.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    used = [b for b in reliability["bins"] if b["probability"] is not None and defined(b["anomalies"])]
    for b in used:
        if b["anomalies"]["low"] is not None:
            ends = [b["anomalies"]["low"], b["anomalies"]["high"]]
            curve.plot([b["probability"]] * 2, ends, color=TEAL, linewidth=1.6)
    x, y = [b["probability"] for b in used], [b["anomalies"]["value"] for b in used]
    curve.plot(x, y, color=TEAL, marker="o", markersize=6, linewidth=1, clip_on=False, zorder=3)
    text = f"ECE {with_interval(reliability['ece'])}"
    if reliability["ece_if_calibrated"] is not None:
        text += f"\nif calibrated: below {value_of({'value': reliability['ece_if_calibrated']})}"
    curve.text(0.03, 0.97, text, transform=curve.transAxes, va="top", color=INK, fontsize=10)
    by_weight = ", classes weighted" if reliability["weighted"] else ""
    curve.set_ylabel(f"share of anomalies{by_weight}")
    curve.set_title(textwrap.fill(title, 56), color=INK, fontsize=12, loc="left", parse_math=False)
    for b in reliability["bins"]:
        shares.bar(b["low"], b["share"], b["high"] - b["low"], align="edge", color=TEAL, edgecolor="white")
    shares.set_ylabel("share of all")
    shares.set_xlabel(f"predicted probability of an anomaly ({reliability['images']:,} images)")
    curve.set(xlim=(0, 1), ylim=(0, 1))
    for axes in (curve, shares):
        _plain(axes, 10)
    return figure


def _svg(draw: Callable[[Axes], None], label: str, size: tuple[float, float] = SIZE) -> str:
    """An `<svg>` element for inlining: no prolog, no namespaces, no size of its own, `label` as its label."""
    from matplotlib.figure import Figure

    # The salt makes the ids of two figures on one page differ; text stays text.
    with _style(label, {"svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        _plain(axes, FONT)
        for title in (axes.xaxis.label, axes.yaxis.label):
            title.set_fontsize(FONT)
        file = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the font has no Chinese
            figure.savefig(file, format="svg", metadata=NO_METADATA)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for ours, theirs in COLOURS.items():
        text = text.replace(ours, theirs)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box[0] if box else ""} role="img" aria-label="{html.escape(label)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def _style(salt: str, more: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
    """matplotlib's defaults instead of the caller's style; but their backend, which rc_context would not restore."""
    import matplotlib as mpl

    style: Any = {**mpl.rcParamsDefault, "svg.hashsalt": salt, **(more or {})}
    del style["backend"]
    return mpl.rc_context(style)


def _plain(axes: Axes, font: float) -> None:
    """Two axes, quiet colours."""
    axes.tick_params(colors=INK, labelsize=font)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
