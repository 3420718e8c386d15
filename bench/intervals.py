"""How often the intervals of the figures cover the truth: coverage and both tails, over simulated detectors.

    python bench/intervals.py [--draws 2000]

Each setting draws scores of good and of defective images from known distributions, so the true figure is known, and
counts how often it lies below the interval (low) or above it (high): 2.5 % each for a perfect one of 95 %. Prints the
tables of docs/metrics.md and writes bench/results/intervals.md and intervals.json with every setting. Takes ten minutes
on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from blemish.evaluation.auroc_interval import auroc_difference, auroc_interval
from blemish.evaluation.bootstrap import Interval, intervals, paired_shares
from blemish.evaluation.detection import Ranking, area_under_roc, detection_metrics
from blemish.evaluation.localisation import collect, localisation_metrics, pixel_figures, thresholds_for

RESULTS = Path(__file__).resolve().parent / "results"
COUNTS = ((10, 10), (20, 20), (20, 42), (42, 20), (100, 10), (10, 100), (50, 50), (100, 100), (300, 100))
AREAS = (0.5, 0.6, 0.8, 0.9, 0.97, 0.99, 0.995)
RESAMPLES = 200  # of the bootstraps: as many more hardly change the coverage

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]


def normal(random: np.random.Generator, count: int) -> Floats:
    return random.normal(0, 1, count)


def kinds(area: float) -> dict[str, tuple[Draw, Draw]]:
    """By name, how scores of good and of defective images are drawn so that the AUROC is `area`."""
    step, odds = float(stats.norm.ppf(area)), area / (1 - area)
    outside = 2 * (1 - area)  # a share of one class that looks like the other, of which half is ordered right

    def shifted(spread: float) -> Draw:
        return lambda random, count: random.normal(step * np.hypot(1, spread), spread, count)

    def mostly(place: float, other: float) -> Draw:
        return lambda random, count: random.normal(np.where(random.random(count) < outside, other, place), 1)

    def rounded(draw: Draw) -> Draw:
        return lambda random, count: np.round(draw(random, count) / 2)

    return {
        "normal": (normal, shifted(1)),
        "defects three times as spread": (normal, shifted(3)),
        "defects a third as spread": (normal, shifted(1 / 3)),
        "exponential": (lambda r, n: r.exponential(1, n), lambda r, n: r.exponential(odds, n)),
        "some defects look good": (normal, mostly(20, 0)),
        "some good ones look defective": (mostly(0, 20), lambda r, n: r.normal(20, 1, n)),
        "few distinct scores": (rounded(normal), rounded(shifted(1))),
    }


def truth(good: Draw, defective: Draw) -> float:
    """The AUROC of very many images."""
    random = np.random.default_rng(99)
    found = auroc_interval(
        np.concatenate([good(random, 10**6), defective(random, 10**6)]), np.arange(2 * 10**6) >= 10**6
    )
    assert found.value is not None
    return found.value


def bootstrapped(scores: Floats, labels: npt.NDArray[np.bool_], less: Floats | None = None) -> Interval:
    """What blemish used before: percentiles of a bootstrap, of an AUROC or of a difference."""
    rankings = [Ranking.of(of_run, labels) for of_run in (scores, less) if of_run is not None]

    def figure(weights: Floats) -> dict[str, Floats]:
        areas = [area_under_roc(*ranking.counts(weights)) for ranking in rankings]
        return {"": areas[0] - areas[1] if len(areas) > 1 else areas[0]}

    return intervals(figure, labels, resamples=RESAMPLES)[""]


class Tally:
    """Counts how often a truth lies below and above intervals, and their mean width. Without an interval there is one
    point, the value."""

    def __init__(self) -> None:
        self.draws, self.below, self.above, self.width, self.none = 0, 0, 0, 0.0, 0

    def add(self, found: Interval, true: float) -> None:
        low, high = (found.value if end is None else end for end in (found.low, found.high))
        assert low is not None
        assert high is not None
        self.draws += 1
        self.none += found.low is None
        self.below += true < low - 1e-9
        self.above += true > high + 1e-9
        self.width += high - low

    def row(self) -> dict[str, float]:
        share = 100 / self.draws
        return {
            "covered": round(100 - share * (self.below + self.above), 2),
            "below": round(share * self.below, 2),
            "above": round(share * self.above, 2),
            "width": round(self.width / self.draws, 4),
            "without": round(share * self.none, 2),
        }


def single(draws: int) -> Iterator[dict[str, Any]]:
    """Of one AUROC."""
    for area in AREAS:
        for kind, (good, defective) in kinds(area).items():
            true = truth(good, defective) if kind == "few distinct scores" else area
            for counts in COUNTS:
                random = np.random.default_rng((int(1000 * area), *counts))
                labels = np.arange(sum(counts)) >= counts[0]
                tallies = {"auroc_interval": Tally(), "bootstrap": Tally()}
                for number in range(draws):
                    scores = np.concatenate([good(random, counts[0]), defective(random, counts[1])])
                    tallies["auroc_interval"].add(auroc_interval(scores, labels), true)
                    if number % 4 == 0 and counts in ((20, 42), (50, 50), (100, 100)):
                        tallies["bootstrap"].add(bootstrapped(scores, labels), true)
                for method, tally in tallies.items():
                    if tally.draws:
                        yield {
                            "figure": "auroc",
                            "method": method,
                            "kind": kind,
                            "truth": round(true, 4),
                            "counts": counts,
                            **tally.row(),
                        }


def paired(draws: int) -> Iterator[dict[str, Any]]:
    """Of the difference of two AUROCs, and of two shares of flagged images, on the same images."""
    for first, second in ((0.97, 0.97), (0.97, 0.99), (0.9, 0.97), (0.99, 0.99), (0.8, 0.8), (0.8, 0.9), (0.99, 0.8)):
        for alike in (0.0, 0.8, 0.95):
            for spread in (1, 2):
                for counts in ((20, 42), (20, 20), (50, 50), (100, 20), (10, 10), (100, 100)):
                    random = np.random.default_rng((int(1000 * first), int(100 * alike), *counts))
                    labels = np.arange(sum(counts)) >= counts[0]
                    shift = np.hypot(1, spread) * stats.norm.ppf([first, second])
                    tallies = {"auroc_difference": Tally(), "bootstrap": Tally()}
                    shares = Tally()
                    for number in range(draws):
                        both = random.normal(0, 1, len(labels)) * alike + random.normal(
                            0, 1, (2, len(labels))
                        ) * np.sqrt(1 - alike**2)
                        scores = both * np.where(labels, spread, 1) + shift[:, None] * labels
                        tallies["auroc_difference"].add(auroc_difference(scores[1], scores[0], labels), second - first)
                        if number % 4 == 0 and spread == 1 and counts in ((20, 42), (50, 50)):
                            tallies["bootstrap"].add(bootstrapped(scores[1], labels, scores[0]), second - first)
                        flagged = stats.norm.cdf(both[:, labels]) < np.array([first, second])[:, None]
                        shares.add(paired_shares(flagged[1], flagged[0]), second - first)
                    what = {"kind": f"alike {alike}, spread {spread}", "truth": [first, second], "counts": counts}
                    for method, tally in tallies.items():
                        if tally.draws:
                            yield {"figure": "auroc difference", "method": method, **what, **tally.row()}
                    yield {"figure": "difference of shares", "method": "paired_shares", **what, **shares.row()}


def others(draws: int) -> Iterator[dict[str, Any]]:
    """Of the other image-level figures, all by percentiles of a bootstrap."""
    for area in (0.8, 0.9, 0.97, 0.99):
        for kind in ("normal", "some defects look good"):
            good, defective = kinds(area)[kind]
            for counts in ((20, 42), (50, 50), (100, 100)):
                random = np.random.default_rng((int(1000 * area), *counts))
                many = 10**6 * np.array(counts) // sum(counts)
                scores = np.concatenate([good(random, many[0]), defective(random, many[1])])
                threshold = float(np.quantile(scores[: many[0]], 0.95))
                true = detection_metrics(scores, np.arange(len(scores)) >= many[0], scores > threshold, resamples=1)
                labels = np.arange(sum(counts)) >= counts[0]
                names = ("average_precision", "best_f1", "f1", "balanced_accuracy")
                tallies = {name: Tally() for name in names}
                for _ in range(draws):
                    scores = np.concatenate([good(random, counts[0]), defective(random, counts[1])])
                    found = detection_metrics(scores, labels, scores > threshold, resamples=RESAMPLES)
                    for name in names:
                        of, whole = found[name], true[name]
                        assert isinstance(of, Interval)
                        assert isinstance(whole, Interval)
                        assert whole.value is not None
                        tallies[name].add(of, whole.value)
                for name, tally in tallies.items():
                    whole = true[name]
                    assert isinstance(whole, Interval)
                    yield {
                        "figure": name,
                        "method": "bootstrap",
                        "kind": kind,
                        "truth": round(whole.value or 0, 4),
                        "counts": counts,
                        **tally.row(),
                    }


def places(draws: int) -> Iterator[dict[str, Any]]:
    """Of pixel figures: maps of 16 x 16 with a defect of 4 x 4, whose height differs from image to image."""
    side, size = 16, 4

    def maps_of(random: np.random.Generator, counts: tuple[int, int], height: float) -> tuple[Any, list[Any]]:
        maps = random.normal(0, 1, (sum(counts), side, side)) + random.normal(0, 0.5, (sum(counts), 1, 1))
        masks: list[Any] = [None] * counts[0]
        for i in range(counts[0], sum(counts)):
            y, x = random.integers(0, side - size, 2)
            mask = np.zeros((side, side), bool)
            mask[y : y + size, x : x + size] = True
            maps[i][mask] += height + random.normal(0, 1)
            masks.append(mask)
        return maps.astype(np.float32), masks

    names = ("pixel_auroc", "aupro", "pixel_average_precision", "best_iou")
    for height in (1.5, 3.0, 4.5):
        for counts in ((20, 42), (50, 50)):
            random = np.random.default_rng((int(10 * height), *counts))
            whole = tuple(2000 * count // sum(counts) for count in counts)
            maps, masks = maps_of(random, (whole[0], whole[1]), height)
            sizes = [(side, side)] * len(maps)
            pixels = collect(zip(maps, masks, sizes, strict=True), thresholds_for(list(maps), masks, sizes))
            true = {name: float(of[0]) for name, of in pixel_figures(pixels, np.ones((1, len(maps)))).items()}
            tallies = {name: Tally() for name in names}
            for _ in range(draws):
                maps, masks = maps_of(random, counts, height)
                labels = np.arange(len(maps)) >= counts[0]
                found = localisation_metrics(
                    maps, masks, labels, [()] * len(maps), [(side, side)] * len(maps), resamples=RESAMPLES
                )
                for name in names:
                    of = found[name]
                    assert isinstance(of, Interval)
                    tallies[name].add(of, true[name])
            for name, tally in tallies.items():
                yield {
                    "figure": name,
                    "method": "bootstrap",
                    "kind": f"height {height}",
                    "truth": round(true[name], 4),
                    "counts": counts,
                    **tally.row(),
                }


def summary(rows: list[dict[str, Any]]) -> str:
    """A row for each figure and method: the coverage over its settings, and the largest tails."""
    lines = [
        "| figure | interval | settings | covered, least | mean | truth below, most | truth above, most |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for key in dict.fromkeys((row["figure"], row["method"]) for row in rows):
        own = [row for row in rows if (row["figure"], row["method"]) == key]
        covered = [row["covered"] for row in own]
        tails = [max(row[tail] for row in own) for tail in ("below", "above")]
        lines.append(
            f"| {key[0]} | {key[1]} | {len(own)} | {min(covered):.1f} | {np.mean(covered):.1f} | {tails[0]:.1f} "
            f"| {tails[1]:.1f} |"
        )
    return "\n".join(lines)


def near_one(rows: list[dict[str, Any]]) -> str:
    """The AUROC of 20 good and 42 defective images, before and now."""
    lines = [
        "| AUROC | scores | bootstrap: covered (below, above) | width | now | width |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    chosen = [row for row in rows if row["figure"] == "auroc" and row["counts"] == (20, 42)]
    before = {(row["kind"], row["truth"]): row for row in chosen if row["method"] == "bootstrap"}
    for row in chosen:
        if row["method"] == "auroc_interval" and row["truth"] >= 0.9:
            was = before[row["kind"], row["truth"]]
            shown = [f"{r['covered']:.1f} ({r['below']:.1f}, {r['above']:.1f}) | {r['width']:.3f}" for r in (was, row)]
            lines.append(f"| {row['truth']:.3f} | {row['kind']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="of each setting; a tenth where each is a bootstrap")
    draws = parser.parse_args().draws
    rows = [*single(draws), *paired(draws // 4), *others(draws // 5), *places(draws // 20)]
    head = f"Shares in %, of {draws} draws of each setting (AUROC), fewer elsewhere."
    text = f"{head}\n\n{summary(rows)}\n\n{near_one(rows)}\n"
    print(text)
    (RESULTS / "intervals.md").write_text(text, encoding="utf-8")
    (RESULTS / "intervals.json").write_text(
        json.dumps(rows, indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
