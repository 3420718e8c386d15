"""The curves behind the figures, and how scores lie, as SVG for a page: inline, in the page's own colours and type.

Points are pure functions of scores and labels as in `detection.py`. Drawing takes matplotlib (of the extra `learn`),
without pyplot and its global state; equal figures give equal bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from blemish.evaluation.localisation import FALSE_POSITIVE_LIMIT, PixelStatistics
from blemish.evaluation.reliability import GREY, INK, TEAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RED, AMBER, PALE = "#b3261e", "#8f5600", "#dedcd5"
# In the page each colour is the page's own, which is another one in the dark.
COLOURS = {
    INK: "currentColor",
    GREY: "var(--quiet)",
    TEAL: "var(--found)",
    RED: "var(--missed)",
    AMBER: "var(--false-alarm)",
    PALE: "var(--line)",
}
SIZE = (4.5, 3.3)  # inches, so that its letters are as many pixels high on a telephone as they have points
LETTERS = 11


def roc_points(scores: npt.NDArray[np.floating], labels: Bools) -> tuple[Floats, Floats]:
    """Share of good images flagged and of anomalies found (K + 1,) at each distinct score, from (0, 0) to (1, 1)."""
    good, anomalies = _counts(scores, labels)
    return _cumulated(good), _cumulated(anomalies)


def pr_points(scores: npt.NDArray[np.floating], labels: Bools) -> tuple[Floats, Floats]:
    """Recall and precision (K,) at each distinct score, highest first. The average precision is the area under the
    steps that hold each precision from the recall before it to its own."""
    good, anomalies = _counts(scores, labels)
    found = np.cumsum(anomalies)
    return found / found[-1], found / (found + np.cumsum(good))


def pro_points(pixels: PixelStatistics, limit: float = FALSE_POSITIVE_LIMIT) -> tuple[Floats, Floats]:
    """Share of good pixels flagged, and mean share of each defect's area found (Bergmann et al. 2020), from (0, 0) to
    where the former is `limit`. Their area, over `limit`, is `localisation.area_under_pro`."""
    rate = _cumulated(pixels.good.sum(0))
    overlap = np.concatenate([[0.0], np.cumsum(pixels.overlap.sum(0)) / pixels.regions.sum()])
    inside = rate < limit
    at_limit = float(np.interp(limit, rate, overlap))
    return np.append(rate[inside], limit), np.append(overlap[inside], at_limit)


def _counts(scores: npt.NDArray[np.floating], labels: Bools) -> tuple[Floats, Floats]:
    """Good ones and anomalies per distinct score, highest first, each (K,)."""
    distinct, place = np.unique(-np.asarray(scores, np.float64), return_inverse=True)
    good = np.bincount(place[~labels], minlength=len(distinct))
    return good.astype(np.float64), np.bincount(place[labels], minlength=len(distinct)).astype(np.float64)


def _cumulated(counts: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])


def roc_svg(scores: Floats, labels: Bools, at: tuple[float, float] | None, says: str) -> str:
    """The ROC curve; `at` is where the verdicts are: share of good images flagged, and of anomalies found."""
    x, y = roc_points(scores, labels)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        axes.plot(x, y, color=TEAL, linewidth=2, clip_on=False)
        _mark(axes, at)
        axes.set(xlabel="good images flagged", ylabel="defective images found", xlim=(0, 1), ylim=(0, 1))

    return _svg(draw, says)


def pr_svg(scores: Floats, labels: Bools, at: tuple[float, float] | None, says: str) -> str:
    """The precision-recall curve; `at` is where the verdicts are: recall and precision."""
    x, y = pr_points(scores, labels)

    def draw(axes: Axes) -> None:
        axes.axhline(float(labels.mean()), color=GREY, linestyle=":", linewidth=1)
        # steps-pre: a precision holds from the recall before it, as the average precision counts it.
        axes.plot([0, *x], [y[0], *y], color=TEAL, linewidth=2, drawstyle="steps-pre", clip_on=False)
        _mark(axes, at)
        axes.set(xlabel="defective images found (recall)", ylabel="finds that are right (precision)")
        axes.set(xlim=(0, 1), ylim=(0, 1))

    return _svg(draw, says)


def pro_svg(pixels: PixelStatistics, says: str) -> str:
    """The per-region overlap over the share of good pixels flagged, as far as AUPRO counts it."""
    x, y = pro_points(pixels)

    def draw(axes: Axes) -> None:
        axes.fill_between(x, y, color=TEAL, alpha=0.12, linewidth=0)
        axes.plot(x, y, color=TEAL, linewidth=2, clip_on=False)
        axes.set(xlabel="good pixels flagged", ylabel="of each defect's area, found")
        axes.set(xlim=(0, FALSE_POSITIVE_LIMIT), ylim=(0, 1))

    return _svg(draw, says)


def histogram_svg(
    good: Floats, defective: Floats, held_out: Floats, limits: dict[str, float], says: str, bins: int = 30
) -> str:
    """How many good and defective test images have which score, above and below the axis; the held-out good ones as
    strokes on it, each of `limits` as a line with its name. Two limits enclose a shaded band."""
    from matplotlib.ticker import MaxNLocator

    together = np.concatenate([good, defective, held_out, list(limits.values())])
    low, high = float(together.min()), float(together.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    up, down = np.histogram(defective, edges)[0], np.histogram(good, edges)[0]

    def draw(axes: Axes) -> None:
        wide = edges[1] - edges[0]
        axes.bar(edges[:-1], up, wide, align="edge", color=RED, edgecolor="none")
        axes.bar(edges[:-1], -down, wide, align="edge", color=TEAL, edgecolor="none")
        axes.axhline(0, color=INK, linewidth=0.8)
        if len(held_out):
            axes.plot(held_out, np.zeros(len(held_out)), color=INK, marker="|", markersize=11, linestyle="none")
        if len(limits) > 1:
            axes.axvspan(min(limits.values()), max(limits.values()), color=AMBER, alpha=0.18, linewidth=0)
        top, bottom = max(1.0, float(up.max())) * 1.25, -max(1.0, float(down.max())) * 1.25
        for place, (name, limit) in enumerate(sorted(limits.items(), key=lambda item: item[1])):
            axes.axvline(limit, color=AMBER, linestyle="--", linewidth=1.3)
            leftwards = limit > (low + high) / 2
            axes.annotate(
                name,
                (limit, top),
                xytext=(-4 if leftwards else 4, -3 - 12 * place),
                textcoords="offset points",
                va="top",
                ha="right" if leftwards else "left",
                color=AMBER,
                fontsize=LETTERS,
            )
        above: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom", "fontsize": LETTERS}
        axes.text(0, 1.02, "▲ defective", color=RED, **above)
        axes.text(0.3, 1.02, "▼ good", color=TEAL, **above)
        if len(held_out):
            axes.text(0.53, 1.02, "| good, set the limit", color=INK, **above)
        axes.set(xlabel="score", ylabel="test images", ylim=(bottom, top))
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return _svg(draw, says, (5.2, 3.2))


def _mark(axes: Axes, at: tuple[float, float] | None) -> None:
    if at:
        axes.plot([at[0]], [at[1]], color=RED, marker="D", markersize=7, clip_on=False, zorder=3)


def _svg(draw: Callable[[Axes], None], says: str, size: tuple[float, float] = SIZE) -> str:
    """An `<svg>` element that a page can hold: no prolog, no namespaces, no size of its own, one name for readers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    nothing: dict[str, str | None] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # Not the caller's style; but their backend, which rc_context would not give back.
    style: Any = {name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"}
    # The salt makes the ids of two figures on one page differ; text stays text.
    with mpl.rc_context({**style, "svg.hashsalt": says, "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        axes.tick_params(colors=INK, labelsize=LETTERS)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(INK)
            label.set_fontsize(LETTERS)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for ours, theirs in COLOURS.items():
        text = text.replace(ours, theirs)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box[0] if box else ""} role="img" aria-label="{html.escape(says)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
