"""Guaranteed and observed false-alarm rates, on every real data set beside the repository and on the demo.

    OMP_NUM_THREADS=1 python bench/false_alarms.py [--only cookies ...] [--halves 5] [--splits 1000] [--tables]

PatchCore (defaults, image size as in `blemish train`) is trained on half of a set's good items. The fitted graph scores
the other half once, and the defective images except those of training items. Then the held-out items are split at
random many times: one half sets the threshold, and the other shows the false-alarm rate. Items come from the file names
or the layout; near duplicates (as in `blemish data`) are one item. There are three guarantees: each image counted as an
item; by item; by item with 95 % confidence. They are compared with the common rule, the threshold with the best F1 on a
test set (good images of one half, all defective ones), with its rate there and on the other half; and with the
leave-one-out threshold (`left_out`), measured on all held-out good images.

All of this is repeated for several training halves. Scores are kept under bench/results/work/false_alarms, a file for
each set and half; remove them to measure again. Writes bench/results/false_alarms.json and false_alarms.md; `--tables`
writes these from existing scores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from blemish import __version__
from blemish.cli.console import progress
from blemish.data import layouts
from blemish.data.audit import audit
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore
from blemish.evaluation.bootstrap import to_json, wilson
from blemish.inference import calibration
from blemish.training.export import in_torch, predict
from blemish.training.leave_one_out import leave_one_out
from blemish.training.splits import auto_size, usable
from blemish.types import Sample

HERE = Path(__file__).resolve().parent
DEMO = ("flange", "cloth", "board")
NAMES = (*DEMO, "cookies", "kolektorsdd", "casting", "magnetic-tile")
RATES = (0.01, 0.02, 0.05, 0.1)
CONFIDENCE = 0.95

Scores = npt.NDArray[np.float64]  # (n,)


def scored(folder: Path, half: int) -> dict[str, Any]:
    """The expensive step: trains PatchCore on half of the good items and scores all other images."""
    begun = time.perf_counter()
    dataset = layouts.read(folder)
    samples, copies = usable(dataset, audit(dataset, progress))
    items = items_of(samples, copies)
    good = sorted({item for sample, item in zip(samples, items, strict=True) if sample.label == "good"})
    order = np.random.default_rng(half).permutation(len(good))
    train_items = {good[i] for i in order[: len(good) // 2]}
    train = [i for i, sample in enumerate(samples) if sample.label == "good" and items[i] in train_items]
    held = [i for i, sample in enumerate(samples) if sample.label == "good" and items[i] not in train_items]
    bad = [i for i, sample in enumerate(samples) if sample.label == "anomaly" and items[i] not in train_items]
    train_samples = [replace(samples[i], group=items[i]) for i in train]
    config = PatchCoreConfig(image_size=auto_size(train_samples, 384 * 384))
    detector = PatchCore(config).fit(train_samples, progress)
    run = in_torch(detector.graph())
    return {
        "set": folder.name,
        "half": half,
        "image_size": config.image_size,
        "bank": len(detector.sources().table),
        "taught_items": len(train_items),
        "held": of(samples, items, held, predict(run, [samples[i] for i in held], progress, "held out").scores),
        "defective": of(samples, items, bad, predict(run, [samples[i] for i in bad], progress, "defective").scores),
        "left_out": of(samples, items, train, leave_one_out(detector, train_samples, progress).scores),
        "date": str(date.today()),
        "seconds": round(time.perf_counter() - begun),
    }


def of(samples: Sequence[Sample], items: Sequence[str], which: Sequence[int], scores: npt.ArrayLike) -> dict[str, Any]:
    names = [samples[i].name for i in which]
    return {"names": names, "items": [items[i] for i in which], "scores": np.asarray(scores, float).tolist()}


def items_of(samples: Sequence[Sample], copies: Sequence[Sequence[int]]) -> list[str]:
    """The item of each image: that of its group; images that `copies` connect are one item."""
    items = [sample.group or sample.name for sample in samples]
    for alike in copies:
        joined = {items[i] for i in alike}
        items = [min(joined) if item in joined else item for item in items]
    return items


@dataclass(frozen=True)
class Held:
    """The good images that are not in one training half, and their splits: `calibrates` are masks."""

    scores: Scores
    items: list[str]
    number: npt.NDArray[np.intp]  # of each image's item
    weights: Scores  # each image's share of its item
    calibrates: list[npt.NDArray[np.bool_]]

    @classmethod
    def of(cls, found: dict[str, Any], splits: int) -> Held:
        items = found["held"]["items"]
        names, number = np.unique(items, return_inverse=True)
        random = np.random.default_rng(found["half"])
        masks = []
        for _ in range(splits):
            chosen = np.zeros(len(names), bool)
            chosen[random.permutation(len(names))[: len(names) // 2]] = True
            masks.append(chosen[number])
        weights = calibration.item_weights(items)
        return cls(np.array(found["held"]["scores"]), items, number, weights, masks)

    def named(self, which: npt.NDArray[np.bool_]) -> list[str]:
        return [item for item, chosen in zip(self.items, which, strict=True) if chosen]


def measure(halves: Sequence[dict[str, Any]], splits: int) -> dict[str, Any]:
    """All figures of one set, from the scores of its halves."""
    first = halves[0]
    every = [Held.of(found, splits) for found in halves]
    n = len(set(every[0].items)) // 2
    tested = len(set(every[0].items)) - n
    n_images = min(int(mask.sum()) for held in every for mask in held.calibrates)
    rates = {}
    for rate in RATES:
        row = {
            "as_images": guaranteed(every, rate, n_images, by_item=False),
            "by_item": guaranteed(every, rate, n),
            "with_confidence": guaranteed(every, rate, n, confidence=CONFIDENCE),
            "left_out": without_holding_out(halves, rate),
        }
        for name, confidence in (("by_item", None), ("with_confidence", CONFIDENCE)):
            if "needed" not in row[name]:
                row[name]["due"] = due(n, tested, rate, confidence)
        rates[f"{rate:g}"] = row
    return {
        "set": first["set"],
        "halves": len(halves),
        "image_size": first["image_size"],
        "bank": [found["bank"] for found in halves],
        "taught": {"items": first["taught_items"], "images": [len(found["left_out"]["names"]) for found in halves]},
        "held_out": {"items": n + tested, "images": [len(held.items) for held in every]},
        "calibrating_items": n,
        "defective": [len(found["defective"]["names"]) for found in halves],
        "seconds": [found["seconds"] for found in halves],
        "rates": rates,
        "usual_rule": usual_rule(every, [np.array(found["defective"]["scores"]) for found in halves]),
        **({"film_order": film_order(halves)} if first["set"] == "magnetic-tile" else {}),
    }


def guaranteed(
    every: Sequence[Held], rate: float, n: int, *, by_item: bool = True, confidence: float | None = None
) -> dict[str, Any]:
    """Rates above the threshold on the items that did not calibrate: of images, of images with each item weighted
    equally, and of items with any image above it. If n cannot guarantee the rate, only the number `needed`."""
    if n < (needed := calibration.parts_needed(rate, confidence)):
        return {"needed": needed}
    seen: dict[str, list[Scores]] = {"images": [], "images_of_an_item": [], "items_with_any": []}
    for held in every:
        rows = []
        for mask in held.calibrates:
            groups = held.named(mask) if by_item else None
            threshold = calibration.threshold(held.scores[mask], rate, groups, confidence=confidence)
            above = ~mask & (held.scores > threshold)
            items = held.weights[~mask].sum()
            alarms = (above.sum() / (~mask).sum(), held.weights[above].sum() / items)
            rows.append((*alarms, np.unique(held.number[above]).size / items))
        for name, values in zip(seen, np.array(rows).T, strict=True):
            seen[name].append(values)
    return {name: spread(values, rate) for name, values in seen.items()}


def spread(halves: Sequence[Scores], rate: float | None = None) -> dict[str, Any]:
    """Mean over all splits of all halves, its Monte-Carlo interval (for these images), the 5 % and 95 % quantiles of
    the splits, and the mean of each half."""
    means = [values.mean() for values in halves]
    mean = float(np.mean(means))
    error = math.sqrt(sum(values.var(ddof=1) / len(values) for values in halves)) / len(halves)
    low, high = np.quantile(np.concatenate(halves), [0.05, 0.95])
    row = {"mean": mean, "mean_low": mean - 1.96 * error, "mean_high": mean + 1.96 * error, "q05": low, "q95": high}
    if rate is not None:
        row["splits_above_guaranteed"] = float((np.concatenate(halves) > rate + 1e-9).mean())
    return {key: round(float(value), 5) for key, value in row.items()} | {"by_half": [round(m, 5) for m in means]}


def due(n: int, tested: int, rate: float, confidence: float | None) -> dict[str, float]:
    """Expected values for one image per item, without ties: the mean, and the share of splits in which more than the
    guaranteed share of `tested` items lie above the k-th highest of n (beta-binomial with k and n + 1 - k)."""
    k = calibration.allowance(n, rate, confidence)
    within = 0.0
    for above in range(math.floor(rate * tested + 1e-9) + 1):
        within += math.comb(above + k - 1, above) * math.comb(tested - above + n - k, n - k) / math.comb(tested + n, n)
    return {"mean": round(k / (n + 1), 5), "splits_above_guaranteed": round(1 - within, 5)}


def usual_rule(every: Sequence[Held], defective: Sequence[Scores]) -> dict[str, Any]:
    """The threshold with the best F1 on the test half: its false-alarm rates there and on the good images of the other
    half."""
    seen: dict[str, list[Scores]] = {"claimed": [], "given": [], "recall": []}
    for held, bad in zip(every, defective, strict=True):
        rows = []
        for mask in held.calibrates:
            at = best_f1(held.scores[~mask], bad)
            rows.append([(held.scores[~mask] >= at).mean(), (held.scores[mask] >= at).mean(), (bad >= at).mean()])
        for name, values in zip(seen, np.array(rows).T, strict=True):
            seen[name].append(values)
    more = float(np.mean(np.concatenate(seen["given"]) > np.concatenate(seen["claimed"])))
    return {**{name: spread(values) for name, values in seen.items()}, "splits_above_claimed": round(more, 5)}


def best_f1(good: Scores, defective: Scores) -> float:
    """The score from which on images are called anomalies, with the best F1; the highest of equals."""
    candidates = np.unique(np.concatenate([good, defective]))[::-1]
    caught = len(defective) - np.searchsorted(np.sort(defective), candidates)
    false = len(good) - np.searchsorted(np.sort(good), candidates)
    return float(candidates[np.argmax(2 * caught / (len(defective) + caught + false))])


def without_holding_out(halves: Sequence[dict[str, Any]], rate: float) -> dict[str, Any]:
    """The leave-one-out threshold by item, and the share of held-out good images above it, for each half. The interval
    of the first half treats images as independent, so it is too narrow if an item has several."""
    n, needed = halves[0]["taught_items"], calibration.parts_needed(rate)
    if n < needed:
        return {"needed": needed}
    shares, intervals = [], []
    for found in halves:
        threshold = calibration.threshold(np.array(found["left_out"]["scores"]), rate, found["left_out"]["items"])
        above = np.array(found["held"]["scores"]) > threshold
        shares.append(float(above.mean()))
        intervals.append(to_json(wilson(int(above.sum()), len(above))))
    due_mean = round(calibration.allowance(n, rate) / (n + 1), 5)
    return {"first": intervals[0], "mean": float(np.mean(shares)), "by_half": shares, "due": due_mean}


def film_order(halves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Without shuffling: the earlier half of the film's tiles sets the threshold and the later half is measured, and
    vice versa; the share of images above it, for each training half."""
    rows: dict[str, Any] = {}
    for rate in RATES:
        for found in halves:
            scores, items = np.array(found["held"]["scores"]), found["held"]["items"]
            begins: dict[str, int] = {}
            for name, item in zip(found["held"]["names"], items, strict=True):
                begins[item] = min(int(re.findall("[0-9]+", name)[-1]), begins.get(item, 2**62))
            order = sorted(begins, key=lambda item: begins[item])
            early = np.isin(items, order[: len(order) // 2])
            for what, sets, sees in (("early_to_late", early, ~early), ("late_to_early", ~early, early)):
                groups = [item for item, chosen in zip(items, sets, strict=True) if chosen]
                if len(set(groups)) >= calibration.parts_needed(rate):
                    above = scores[sees] > calibration.threshold(scores[sets], rate, groups)
                    rows.setdefault(f"{rate:g}", {}).setdefault(what, []).append(round(float(above.mean()), 5))
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown: the mean, then the 5 % and 95 % quantiles of the splits."""
    percents = [f"{100 * rate:g} %" for rate in RATES]
    lines = [*_head("data", "held out, of items", "items that calibrate", "counted", *percents)]
    for row in rows:
        images, items = row["held_out"]["images"], row["held_out"]["items"]
        size = f"{_range(images)} of {items}"
        several = [("items", "by_item", "images_of_an_item")]
        if max(images) > 1.1 * items:
            several = [("images", "as_images", "images"), *several]
        for counted, kind, what in several:
            cells = [_cell(row["rates"][f"{rate:g}"][kind], what) for rate in RATES]
            lines.append(_row(row["set"], size, str(row["calibrating_items"]), counted, *cells))
    lines += [
        "",
        *_head(
            "data", "items that calibrate", "at most, with 95 % confidence", "items above", "splits with more", "due"
        ),
    ]
    for row in rows:
        for rate in RATES:
            found = row["rates"][f"{rate:g}"]["with_confidence"]
            if "needed" not in found:
                any_image = found["items_with_any"]
                above = [_percent(one["splits_above_guaranteed"]) for one in (any_image, found["due"])]
                cells = [str(row["calibrating_items"]), f"{100 * rate:g} %", _cell(found, "items_with_any"), *above]
                lines.append(_row(row["set"], *cells))
    lines += ["", *_head("data", "defective", "defects found", "false alarms there", "on others", "splits with more")]
    for row in rows:
        rule = row["usual_rule"]
        cells = [_cell(rule, name) for name in ("recall", "claimed", "given")]
        lines.append(_row(row["set"], _range(row["defective"]), *cells, _percent(rule["splits_above_claimed"])))
    lines += ["", *_head("data", "training images, of items", "halves", *percents)]
    for row in rows:
        training = f"{_range(row['taught']['images'])} of {row['taught']['items']}"
        found = [row["rates"][f"{rate:g}"]["left_out"] for rate in RATES]
        lines.append(_row(row["set"], training, "first", *map(_first, found)))
        if row["halves"] > 1:
            lines.append(_row("", "", f"all {row['halves']}", *map(_over_halves, found)))
    for row in rows:
        if "film_order" in row:
            lines += ["", *_head(f"{row['set']}, in the film's order", *percents)]
            for what in ("early_to_late", "late_to_early"):
                given = [row["film_order"].get(f"{rate:g}", {}).get(what, []) for rate in RATES]
                cells = [f"{_percent(np.mean(g))} ({_span(g)})" if g else "–" for g in given]
                lines.append(_row(what.replace("_", " "), *cells))
    return "\n".join(lines) + "\n"


def _head(*names: str) -> list[str]:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"


def _span(shares: Sequence[float]) -> str:
    return f"{100 * min(shares):.1f}–{100 * max(shares):.1f}"


def _cell(found: dict[str, Any], what: str) -> str:
    """Mean, and 5 % and 95 % quantiles of the splits, or the number of items needed."""
    if "needed" in found:
        return f"– (takes {found['needed']})"
    return f"{_percent(found[what]['mean'])} ({100 * found[what]['q05']:.1f}–{100 * found[what]['q95']:.1f})"


def _first(found: dict[str, Any]) -> str:
    first = found.get("first")
    shown = first and f"{_percent(first['value'])} [{100 * first['low']:.1f}, {100 * first['high']:.1f}]"
    return shown or f"– (takes {found['needed']})"


def _over_halves(found: dict[str, Any]) -> str:
    return "–" if "needed" in found else f"{_percent(found['mean'])} ({_span(found['by_half'])})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, metavar="SET")
    parser.add_argument("--halves", type=int, default=5, help="number of training halves")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--tables", action="store_true", help="write the tables from existing scores")
    options = parser.parse_args()
    work = HERE / "results" / "work" / "false_alarms"
    work.mkdir(parents=True, exist_ok=True)
    for half in range(options.halves):
        for name in () if options.tables else options.only:
            folder = (options.demo if name in DEMO else options.shared / "data") / name
            file = work / f"{name}-{half}.json"
            if not folder.is_dir():
                print(f"{folder} is missing; skipped")
            elif not file.exists():
                print(f"{name}, half {half}", flush=True)
                content = json.dumps(scored(folder, half))
                file.write_text(content, encoding="utf-8")
    rows = []
    for name in NAMES:
        files = [work / f"{name}-{half}.json" for half in range(options.halves)]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        if found:
            rows.append(measure(found, options.splits))
    facts = {
        "date": str(date.today()),
        "blemish": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "splits": options.splits,
    }
    saved = HERE / "results" / "false_alarms.json"
    saved.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n", encoding="utf-8")
    text = tables(rows)
    saved.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
