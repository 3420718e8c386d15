"""What a few labelled defects bring: recall and AUROC against their number, the hybrid detector beside PatchCore, the
classifier's head (CAM) and logistic regression, on the same draws.

    python bench/few_defects.py curve [--shared ../shared] [--demo demo/data] [--only magnetic-tile ...] [--draws 5]
    python bench/few_defects.py unseen          # each defect type left out of learning in turn
    python bench/few_defects.py wrong           # 5 % of the training labels flipped
    python bench/few_defects.py cost            # accuracy beside the time of one image, smaller settings too
    python bench/few_defects.py table           # tables and figure from what was measured

A draw divides the images anew, items apart: half of each defect type may be learned from, a fifth of the good images
is tested, a quarter of the others sets the threshold. Every result is kept in bench/results/few/, so that a killed run
goes on where it was. One thread for each process: two of them may run side by side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime import InferenceSession, SessionOptions
from sklearn.linear_model import LogisticRegression

from blemish.data.split import Split, items, split
from blemish.detectors.cam.config import CamConfig
from blemish.detectors.cam.detector import Cam
from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.hybrid.detector import Hybrid, HybridGraph
from blemish.detectors.nn.feature_cache import FeatureCache
from blemish.detectors.patchcore.detector import PatchCoreGraph
from blemish.evaluation.detection import auroc
from blemish.images import decode
from blemish.inference import calibration
from blemish.training.export import export
from blemish.training.splits import auto_size, read_data
from blemish.types import Sample

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results" / "few"
SETS = ("magnetic-tile", "board", "casting", "kolektorsdd", "cloth", "flange")
NUMBERS = (5, 10, 20, 40, 80)
TEST = {"kolektorsdd": 0.4}  # share of good images: whole items of some seven images
RATE = 0.05
FLIPPED = 0.05
FIGURES = ("auroc", "recall_observed", "recall", "false_alarms")

Floats = npt.NDArray[np.float32]


class Bench:
    """A data set with every image's features, computed once."""

    def __init__(self, folder: Path, config: HybridConfig | None = None) -> None:
        config = config or HybridConfig()
        area = config.image_size[0] * config.image_size[1]
        self.name, self.data = folder.name, read_data(folder)
        samples = self.data.samples
        item_of = items(samples, self.data.groups)
        self.samples = [replace(sample, group=item_of[sample.name]) for sample in samples]
        self.config = replace(config, image_size=auto_size(samples, area), cache=8.0)
        self.cache = Hybrid(self.config).cache(self.samples)
        self.cam: Cam | None = None

    def classifier(self) -> Cam:
        """The classifier's head on its default backbone, with cached features."""
        if self.cam is None:
            self.cam = Cam(CamConfig(image_size=auto_size(self.samples, 256 * 256), unfreeze=0, memory=8.0))
            self.cam.cache(self.samples)
        return self.cam


class Draw:
    """One division of the images, and PatchCore fitted to its good training images."""

    def __init__(self, bench: Bench, number: int) -> None:
        self.bench, self.number = bench, number
        self.split = divided(bench, number)
        self.good = [sample for sample in self.split.train if sample.label != "anomaly"]
        pool = sorted((s for s in self.split.train if s.label == "anomaly"), key=lambda sample: sample.name)
        order = np.random.default_rng(number).permutation(len(pool))
        self.pool = [pool[index] for index in order]
        self.scored = [*self.split.calibration, *self.split.test]
        self.defective = np.array([sample.label == "anomaly" for sample in self.split.test])
        self.hybrid = Hybrid(bench.config)
        self.hybrid.fit_normal(self.good, cache=bench.cache)
        self.deviations = self._deviations()

    def _deviations(self) -> torch.Tensor:
        graph = self.hybrid.graph()
        assert isinstance(graph, PatchCoreGraph)
        rows = self.bench.cache.rows(self.scored)
        with torch.inference_mode():
            found = [graph.compare(self.bench.cache.tensors[0][part]).deviations for part in torch.split(rows, 4)]
        return torch.cat(found).flatten(1)

    def patchcore(self) -> Floats:
        return self.deviations.amax(1).numpy()

    def hybrid_scores(self, bad: Sequence[Sample], good: Sequence[Sample] = ()) -> tuple[Floats, dict[str, Any]]:
        """Scores of the images, and what the detector says of the defects."""
        started = time.perf_counter()
        self.hybrid.learn(self.bench.cache, list(good) or self.good, bad)
        seconds = time.perf_counter() - started
        graph, rows = self.hybrid.graph(), self.bench.cache.rows(self.scored)
        facts = {**self.hybrid.metrics["defects"], "seconds": round(seconds, 1)}
        if not isinstance(graph, HybridGraph):
            return self.patchcore(), facts
        with torch.inference_mode():
            parts = zip(torch.split(rows, 16), torch.split(self.deviations, 16), strict=True)
            scores = [graph.combine(self.bench.cache.tensors[0][part], dev)[0] for part, dev in parts]
        return torch.cat(scores).numpy(), facts

    def regression(self, bad: Sequence[Sample]) -> Floats:
        """Logistic regression on the means of the same features."""
        learned = [*self.good, *bad]
        features, new = (pooled(self.bench.cache, part) for part in (learned, self.scored))
        mean, std = features.mean(0), features.std(0) + 1e-6
        labels = [sample.label == "anomaly" for sample in learned]
        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit((features - mean) / std, labels)
        scores: Floats = model.decision_function((new - mean) / std).astype(np.float32)
        return scores

    def cam(self, bad: Sequence[Sample]) -> Floats:
        classifier = self.bench.classifier().fit([*self.good, *bad])
        logits, _ = classifier.cells(self.scored)
        return logits[:, 1] - logits[:, 0]

    def figures(self, scores: Floats, only: Iterable[bool] = ()) -> dict[str, float]:
        """AUROC, recall and false alarms at the guaranteed rate, and recall where 5 % of all new good images are
        flagged, which depends less on which good images set the threshold. `only`: the test images that count."""
        held_out, tested = scores[: len(self.split.calibration)], scores[len(self.split.calibration) :]
        counted = np.array(list(only)) if only else np.ones(len(tested), bool)
        tested, defective = tested[counted], self.defective[counted]
        new = np.concatenate([held_out, tested[~defective]])
        found = {
            "auroc": auroc(tested, defective),
            "recall_observed": float((tested[defective] > np.quantile(new, 1 - RATE)).mean()),
        }
        owners = [sample.group for sample in self.split.calibration]
        if len(set(owners)) >= calibration.parts_needed(RATE):
            threshold = calibration.threshold(held_out, RATE, owners)
            found["recall"] = float((tested[defective] > threshold).mean())
            found["false_alarms"] = float((tested[~defective] > threshold).mean())
        return {name: round(float(value), 4) for name, value in found.items()}


def divided(bench: Bench, number: int) -> Split:
    return split(
        [replace(sample, split="") for sample in bench.samples],
        seed=number,
        test=TEST.get(bench.name, 0.2),
        calibration=0.25,
        min_calibration=20,
        anomalies_in_train=0.5,
    )


def pooled(cache: FeatureCache, samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    rows = torch.split(cache.rows(samples), 32)
    return torch.cat([cache.tensors[0][part].mean(1) for part in rows]).double().numpy()


def without_masks(samples: Sequence[Sample]) -> list[Sample]:
    return [replace(sample, mask=None) for sample in samples]


def curve(draw: Draw, options: argparse.Namespace) -> None:
    keep(draw, "patchcore", 0, lambda: draw.figures(draw.patchcore()))
    for number in options.numbers:
        if number > len(draw.pool):
            continue
        bad = draw.pool[:number]

        def hybrid(learned: Sequence[Sample]) -> dict[str, Any]:
            scores, facts = draw.hybrid_scores(learned)
            return draw.figures(scores) | {"defects": facts}

        keep(draw, "words", number, lambda bad=bad: hybrid(without_masks(bad)))
        if any(sample.mask for sample in bad) and number in options.masks:
            keep(draw, "masks", number, lambda bad=bad: hybrid(bad))
        keep(draw, "regression", number, lambda bad=bad: draw.figures(draw.regression(bad)))
        keep(draw, "cam", number, lambda bad=bad: draw.figures(draw.cam(bad)))


def unseen(draw: Draw, options: argparse.Namespace) -> None:
    """Recall on a type that was left out of learning, beside PatchCore's."""
    number = max(n for n in options.numbers if n <= len(draw.pool))
    for kind in sorted({sample.defect for sample in draw.pool}):
        bad = without_masks([sample for sample in draw.pool[:number] if sample.defect != kind])
        counted = [sample.label != "anomaly" or sample.defect == kind for sample in draw.split.test]
        if not any(sample.defect == kind for sample in draw.split.test):
            continue

        def both(bad: Sequence[Sample] = bad, counted: Sequence[bool] = counted) -> dict[str, Any]:
            scores, facts = draw.hybrid_scores(bad)
            count = sum(c and d for c, d in zip(counted, draw.defective, strict=True))
            return {
                "count": int(count),
                "defects": facts,
                "hybrid": draw.figures(scores, counted),
                "patchcore": draw.figures(draw.patchcore(), counted),
            }

        keep(draw, f"unseen-{kind}", number, both)


def wrong(draw: Draw, options: argparse.Namespace) -> None:
    """With `FLIPPED` of the training labels wrong: PatchCore, too, then learns from the defects called good."""
    number = max(n for n in options.numbers if n <= len(draw.pool))
    bad, random = without_masks(draw.pool[:number]), np.random.default_rng(1000 + draw.number)

    def measured() -> dict[str, Any]:
        samples = [*draw.good, *bad]
        flipped = set(random.permutation(len(samples))[: round(FLIPPED * len(samples))].tolist())
        given = [
            replace(s, label="good" if s.label == "anomaly" else "anomaly", defect="") if i in flipped else s
            for i, s in enumerate(samples)
        ]
        good, called_bad = ([s for s in given if (s.label == "anomaly") == bad] for bad in (False, True))
        draw.hybrid.fit_normal(good, cache=draw.bench.cache)
        draw.deviations = draw._deviations()
        before = draw.figures(draw.patchcore())
        scores, facts = draw.hybrid_scores(called_bad, good)
        suspects = [entry["name"] for entry in draw.hybrid.metrics["suspects"]]
        names = {samples[i].name for i in flipped}
        return {
            "flipped": len(names),
            "suspects": len(suspects),
            "found": len(names & set(suspects)),
            "patchcore": before,
            "hybrid": draw.figures(scores),
            "defects": facts,
        }

    keep(draw, "wrong", number, measured)


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "bundled, 256x256": {"backbone": "bundled", "image_size": (256, 256)},
    "bundled, 256x256, bank of 1,024": {"backbone": "bundled", "image_size": (256, 256), "max_bank": 1024},
}
ROUNDS = 15


def cost(folder: Path, number: int) -> None:
    """Of one draw and `number` word-only defects: figures, and milliseconds of one image of the set on one thread,
    medians of rounds in which all graphs take turns."""
    runs: dict[str, Callable[[], Any]] = {}
    lines = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, settings in SETTINGS.items():
            draw = Draw(Bench(folder, HybridConfig(**settings)), 0)
            image = decode(draw.split.test[0])[None]
            for what in ("PatchCore", "hybrid"):
                title = f"{what}, {name}"
                bad = without_masks(draw.pool[:number])
                lines[title] = draw.figures(draw.patchcore() if what == "PatchCore" else draw.hybrid_scores(bad)[0])
                export(draw.hybrid.graph(), file := Path(temporary) / f"{len(runs)}.onnx")
                options = SessionOptions()
                options.intra_op_num_threads = 1
                session = InferenceSession(file.read_bytes(), options)
                runs[title] = partial(session.run, ["scores"], {"images": image})
        seconds: dict[str, list[float]] = {title: [] for title in runs}
        for _ in range(ROUNDS + 2):
            for title, run in runs.items():
                started = time.perf_counter()
                run()
                seconds[title].append(time.perf_counter() - started)
    for title, values in seconds.items():
        median = float(np.median(values[2:]))
        print(title, f"{1000 * median:.1f} ms", lines[title], flush=True)


def keep(draw: Draw, what: str, number: int, measure: Any) -> None:
    file = KEPT / draw.bench.name / f"{draw.number}-{what}-{number}.json"
    if file.is_file():
        return
    found = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(draw.bench.name, draw.number, what, number, {k: v for k, v in found.items() if k != "defects"}, flush=True)


def measured(name: str, what: str, number: int) -> list[dict[str, Any]]:
    """The results of all draws."""
    files = sorted((KEPT / name).glob(f"[0-9]-{what}-{number}.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def spread(found: Sequence[dict[str, Any]], figure: str, *, percent: bool = False) -> str:
    """Mean over draws, and their lowest and highest."""
    values = [one[figure] for one in found if figure in one]
    if not values:
        return "–"
    shown = (float(np.mean(values)), min(values), max(values))
    return "{} ({} to {})".format(*(f"{v:.0%}" if percent else f"{v:.3f}" for v in shown))


METHODS = {"words": "hybrid", "masks": "hybrid, with masks", "regression": "regression", "cam": "CAM's head"}


def table() -> str:
    """A table of all sets, numbers and methods."""
    lines = [
        "| data | defects | method | draws | image AUROC | recall where 5 % of new good images are flagged "
        "| recall at 5 % guaranteed | false alarms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SETS:
        rows = [(0, "patchcore", "PatchCore")] + [(n, *method) for n in NUMBERS for method in METHODS.items()]
        for number, what, title in rows:
            if found := measured(name, what, number):
                cells = [spread(found, figure, percent=figure != "auroc") for figure in FIGURES]
                lines.append(f"| {name} | {number} | {title} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


STYLES = {"words": "C0-o", "masks": "C2-s", "cam": "C1-^", "regression": "C7-v"}


def figure(file: Path) -> None:
    """Recall against the number of defects: a panel for each set, means over draws, bars from lowest to highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "blemish"
    names = [name for name in SETS if measured(name, "patchcore", 0)]
    sheet, panels = pyplot.subplots(1, len(names), figsize=(2.6 * len(names), 3.2), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        start = [one["recall_observed"] for one in measured(name, "patchcore", 0)]
        panel.axhline(float(np.mean(start)), color="k", linestyle=":", label="PatchCore")
        for what, style in STYLES.items():
            points = {n: [one["recall_observed"] for one in measured(name, what, n)] for n in NUMBERS}
            points = {n: values for n, values in points.items() if values}
            if not points:
                continue
            means = [float(np.mean(values)) for values in points.values()]
            ends = [
                [mean - min(values) for mean, values in zip(means, points.values(), strict=True)],
                [max(values) - mean for mean, values in zip(means, points.values(), strict=True)],
            ]
            panel.errorbar(list(points), means, ends, fmt=style, capsize=2, markersize=4, label=METHODS[what])
        panel.set(title=name, xscale="log", xlabel="labelled defects", ylim=(0, 1.03))
        panel.set_xticks(NUMBERS, [str(number) for number in NUMBERS], minor=False)
        panel.minorticks_off()
    panels[0][0].set_ylabel("recall, 5 % of new good images flagged")
    handles = dict(zip(*reversed(panels[0][0].get_legend_handles_labels()), strict=True))
    sheet.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False)
    sheet.tight_layout(rect=(0, 0.08, 1, 1))
    sheet.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("curve", "unseen", "wrong", "cost", "table"))
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--demo", type=Path, default=HERE.parent / "demo" / "data")
    parser.add_argument("--only", nargs="*", default=SETS)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--numbers", type=int, nargs="*", default=NUMBERS)
    parser.add_argument("--masks", type=int, nargs="*", default=NUMBERS, help="numbers to measure with masks too")
    options = parser.parse_args()
    if options.mode == "table":
        print(table())
        figure(HERE.parent / "docs" / "few-defects.svg")
        return
    torch.set_num_threads(1)
    for name in options.only:
        folder = next((f / name for f in (options.demo, options.shared / "data") if (f / name).is_dir()), None)
        if folder is None:
            print(f"{name} is missing; skipped")
            continue
        if options.mode == "cost":
            cost(folder, min(options.numbers))
            continue
        bench = Bench(folder)
        for number in range(options.draws):
            {"curve": curve, "unseen": unseen, "wrong": wrong}[options.mode](Draw(bench, number), options)


if __name__ == "__main__":
    main()
