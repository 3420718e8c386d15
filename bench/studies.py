"""Both published studies beside ours, class by class, on any folder in the layout of MVTec AD.

    OMP_NUM_THREADS=2 python bench/studies.py --mvtec FOLDER --weights vgg16.safetensors [--untrained]
    python bench/studies.py --mvtec FOLDER --study study --only bottle screw --cycles 10 --device cuda
    python bench/studies.py --table

FOLDER/CLASS/train/good, FOLDER/CLASS/test/TYPE and FOLDER/CLASS/ground_truth/TYPE; a product of your own has no
published figure and is measured all the same. Each class and study is one run of what the command line does:

    classifier  blemish train FOLDER/CLASS -o RUN --recipe case-study --weights FILE   (the classes of its source only)
    expvae      blemish train FOLDER/CLASS -o RUN --recipe expvae
    study       blemish train FOLDER/CLASS -o RUN --recipe study --cycles N
    paper       blemish train FOLDER/CLASS -o RUN --recipe paper

Runs are kept in --work, whole: a finished one is not repeated, a killed one is resumed after its last epoch. The tables
are printed and written to bench/results/studies.json and studies.md after each run. `--untrained` adds the control
of the attention: the network as it is drawn. As in `blemish train`, a fifth of the good images,
and at least as many as the guarantee takes, are held out for the threshold; the studies learned from all. With few
images, `--false-alarms` takes fewer of them; no figure depends on it. (The classifier's images are split 80 to 20, as
in its source.)

Where the published figures are from:
- classifier: the README of github.com/OlgaChernytska/Visual-Inspection, read at commit 0419943: accuracy, balanced
  accuracy and confusion matrix, from which the first two follow. Its positive class is *good*; here it is the defect.
- expvae: Liu et al. 2020 (arXiv 1911.07389), as the maintainers gave them. The paper's table could not be opened where
  this was written, so they are not checked against it, and its best IoU is not here.
- study, paper: Jiang, Xue & Zou 2023 (doi 10.1109/ACCESS.2023.3286548). Its figures per class could not be found in
  anything that could be opened (abstract, the public code and its logs), so their column is empty.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from blemish import __version__
from blemish.cli.console import progress
from blemish.evaluation.bootstrap import to_json, wilson
from blemish.files import replacing
from blemish.ownership import mark_of
from blemish.reporting.figures import DASH, NAMED, with_interval
from blemish.training.config import configure
from blemish.training.pipeline import train
from blemish.types import BlemishError

HERE = Path(__file__).resolve().parent
OBJECTS = ("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper")
MVTEC = (*OBJECTS, "carpet", "grid", "leather", "tile", "wood")
OWNER = "studies.json"  # in --work: whose runs they are
BY = "by the maintainers, commit f1ca21b"
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What `configure` is asked, and its figures. `published` has a class's figures by name, and for a classifier its
    test images as (found, missed, false alarms, passed); `measured` are rows of other machines."""

    title: str
    detector: str
    recipe: str
    figures: tuple[str, ...]
    shown: tuple[str, ...] = ()  # of the published ones
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measured: tuple[Row, ...] = ()

    def classes(self, found: Sequence[str], only: Sequence[str] | None) -> list[str]:
        """Those to measure: what was asked for; else all, but of MVTec AD's only what the source has, if it has any."""
        if only is not None:
            return [name for name in found if name in only]
        return [name for name in found if name not in MVTEC or not self.published or name in self.published]

    def missing(self, found: Sequence[str], only: Sequence[str] | None) -> list[str]:
        wanted = self.published or MVTEC
        return [name for name in (wanted if only is None else only) if name not in found]


def by_counts(found: int, missed: int, false_alarms: int, passed: int, accuracy: float, balanced: float) -> Row:
    return {
        "accuracy": accuracy,
        "balanced_accuracy": balanced,
        "confusion": {"caught": found, "missed": missed, "false_alarms": false_alarms, "passed": passed},
    }


def pixels(**auroc: float) -> dict[str, Row]:
    return {name: {"pixel_auroc": value} for name, value in auroc.items()}


def elsewhere(name: str, what: str, images: tuple[int, int, int], epochs: int, **more: Any) -> Row:
    """A row of ../shared/measured. Figures are (value, low, high)."""
    figures = {key: dict(zip(("value", "low", "high"), of, strict=True)) for key, of in more.pop("figures").items()}
    counts = dict(zip(("train", "test_good", "test_anomaly"), images, strict=True))
    return {"class": name, "run": f"{BY}: {what}", **counts, "epochs": epochs, "seconds": None, **more} | {
        "figures": figures
    }


ATTENTION = ("pixel_auroc", "best_iou", "auroc")
DEFAULT = elsewhere(
    "bottle",
    "our default, `blemish train bottle -o R --detector attention`, whose map is the residual",
    (167, 20, 63),
    56,
    figures={
        "pixel_auroc": (0.891, 0.861, 0.919),
        "best_iou": (0.444, 0.414, 0.479),
        "auroc": (0.988, 0.965, 1.0),
    },
)
STUDIES = {
    "classifier": Study(
        "Classifier with class activation maps (case study after Zhou et al. 2016)",
        "cam",
        "case-study",
        ("accuracy", "balanced_accuracy", "auroc"),
        ("accuracy", "balanced_accuracy"),
        {
            "hazelnut": by_counts(13, 1, 2, 85, 0.970, 0.953),
            "leather": by_counts(16, 3, 0, 55, 0.960, 0.921),
            "cable": by_counts(14, 4, 0, 57, 0.947, 0.889),
            "toothbrush": by_counts(4, 2, 0, 15, 0.905, 0.833),
            "pill": by_counts(22, 6, 9, 50, 0.828, 0.817),
        },
        (
            elsewhere(
                "pill",
                "`blemish train pill -o R --recipe case-study`, VGG16's ImageNet convolutions",
                (347, 59, 28),
                10,
                figures={
                    "accuracy": (0.828, 0.735, 0.893),
                    "balanced_accuracy": (0.863, 0.794, 0.924),
                    "auroc": (0.967, 0.909, 1.0),
                },
                confusion={"caught": 27, "missed": 1, "false_alarms": 14, "passed": 45},
            ),
        ),
    ),
    "expvae": Study(
        "Variational autoencoder, attention of the latent mean (Liu et al. 2020, ExpVAE)",
        "attention",
        "expvae",
        ATTENTION,
        ("pixel_auroc",),
        pixels(
            **{"bottle": 0.87, "cable": 0.90, "capsule": 0.74, "hazelnut": 0.98, "metal_nut": 0.94, "pill": 0.83},
            **{"screw": 0.97, "toothbrush": 0.94, "transistor": 0.93, "zipper": 0.78, "carpet": 0.78, "grid": 0.73},
            **{"leather": 0.95, "tile": 0.80, "wood": 0.77},
        ),
        (DEFAULT,),
    ),
    "study": Study(
        "Autoencoder with gradient attention, as the study's public code runs it (Jiang, Xue & Zou 2023)",
        "attention",
        "study",
        ATTENTION,
        ("pixel_auroc",),
        measured=(DEFAULT,),
    ),
    "paper": Study(
        "Autoencoder with gradient attention, as the study's paper describes it (Jiang, Xue & Zou 2023)",
        "attention",
        "paper",
        ATTENTION,
        ("pixel_auroc",),
        measured=(
            elsewhere(
                "bottle",
                "the recipe of then, `--detector attention --recipe case-study`: like `paper`, but at about 128 x 128, "
                "and with steps of its own for the term",
                (167, 20, 63),
                50,
                figures={
                    "pixel_auroc": (0.721, 0.672, 0.770),
                    "best_iou": (0.128, 0.108, 0.159),
                    "auroc": (0.653, 0.508, 0.780),
                },
            ),
        ),
    ),
}
UNTRAINED = {"untrained": True}


def classes_in(folder: Path) -> list[str]:
    """The classes of a folder in MVTec AD's layout, MVTec AD's own first. Raises `BlemishError` where there is none."""
    if (folder / "train" / "good").is_dir():
        raise BlemishError(
            f"{folder}: is one class; name the folder that it is in, and --only {folder.resolve().name}."
        )
    found = sorted(path.parent.parent.name for path in folder.glob("*/train/good") if path.is_dir())
    if not found:
        raise BlemishError(f"{folder}: holds no class; there must be CLASS/train/good in it, as in MVTec AD.")
    return sorted(found, key=lambda name: (name not in MVTEC, MVTEC.index(name) if name in MVTEC else 0))


def asked(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """The options of `blemish train` beside the recipe's."""
    own = {"weights": options.weights} if study.detector == "cam" else {"cycles": options.cycles}
    if study.detector != "cam":  # which decides by class, without a guarantee
        own["false_alarms"] = options.false_alarms
    every = {"epochs": options.epochs, "device": options.device, **own}
    return {name: value for name, value in every.items() if value is not None}


def run_of(work: Path, study: str, name: str, changes: Mapping[str, Any], *, untrained: bool = False) -> Path:
    """The run's folder: a training of other length is another run."""
    said = [f"{key}-{changes[key]}" for key in ("epochs", "cycles") if key in changes]
    return work / study / name / ("untrained" if untrained else "-".join(said) or "run")


def measure(folder: Path, run: Path, study: Study, **changes: Any) -> bool:
    """Trains and tests one class into `run`, from where it was killed; False if that was done before.

    Raises `BlemishError` where the images do not support it, or `run` is somebody else's.
    """
    if finished(run):
        return False
    run.parent.mkdir(parents=True, exist_ok=True)
    train(configure(folder, run, detector=study.detector, recipe=study.recipe, resume=True, **changes), progress)
    return True


def finished(run: Path) -> bool:
    mark = mark_of(run)
    return bool(mark and mark.complete and (run / "metrics.json").is_file())


def own(work: Path, folder: Path) -> None:
    """Raises `BlemishError` if --work holds runs of other images."""
    work.mkdir(parents=True, exist_ok=True)
    file, images = work / OWNER, str(folder.resolve())
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != {"mvtec": images}:
            raise BlemishError(f"{work}: holds runs of another folder than {folder}; name another one with --work.")
        return
    if any(work.iterdir()):
        raise BlemishError(f"{work}: is not empty and not of this script; name another folder with --work.")
    with replacing(file) as partial:
        partial.write_text(json.dumps({"mvtec": images}) + "\n", encoding="utf-8")


def row_of(run: Path, study: Study) -> Row:
    """A finished run as a row of the table."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    measured = {name: metrics.get(NAMED[name].group, {}).get(name) for name in study.figures}
    counts = {name: metrics["counts"][name] for name in ("train", "test_good", "test_anomaly")}
    row = {
        "class": run.parent.name,
        "run": run.name.replace("run", "").replace("-", " "),
        **counts,
        "epochs": len(metrics["training"]),
        "seconds": round(metrics["seconds"]["fit"], 1),
        "figures": measured,
    }
    return {**row, "confusion": metrics["detection"]["confusion"]} if "accuracy" in study.figures else row


def rows_of(work: Path, name: str, only: Sequence[str] | None = None) -> list[Row]:
    """The rows of a study: published classes first, with the maintainers' below ours. What is not measured has none of
    ours."""
    study = STUDIES[name]
    runs = [run for run in sorted(work.glob(f"{name}/*/*")) if finished(run)]
    here = [row_of(run, study) for run in runs]
    every = list(dict.fromkeys([*study.published, *MVTEC, *(row["class"] for row in here)]))
    rows = []
    for each in every if only is None else [each for each in every if each in only]:
        of_class = [row for row in (*here, *study.measured) if row["class"] == each]
        if not of_class and each in study.published:
            of_class = [{"class": each, "run": "not measured", "figures": {}}]
        rows += [{**row, "published": study.published.get(each, {})} for row in of_class]
    return rows


def table(name: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """A study's rows in Markdown."""
    study = STUDIES[name]
    counted = "accuracy" in study.figures
    head = ["class", *(f"{NAMED[figure].title}, published" for figure in study.shown)]
    head += ["defects found, false alarms, published"] if counted else []
    head += [NAMED[figure].title for figure in study.figures]
    head += ["defects found, false alarms"] if counted else []
    head += ["learned from", "tested on good / defective", "epochs", "seconds"]
    lines = [f"### {study.title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [", ".join(filter(None, (row["class"], row["run"])))]
        cells += [published(row["published"], figure) for figure in study.shown]
        cells += [counts_of(row["published"].get("confusion"))] if counted else []
        cells += [with_interval(row["figures"].get(figure)) for figure in study.figures]
        cells += [counts_of(row.get("confusion"))] if counted else []
        tested = f"{row['test_good']} / {row['test_anomaly']}" if "test_good" in row else DASH
        cells += [str(row.get("train", DASH)), tested, str(row.get("epochs", DASH))]
        cells += [DASH if row.get("seconds") is None else f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes)])


def published(figures: Mapping[str, Any], name: str) -> str:
    """As published; an accuracy with Wilson's interval for its number of test images."""
    if name not in figures:
        return DASH
    if name != "accuracy":
        return f"{figures[name]:.3f}" if "confusion" in figures else f"{figures[name]:.2f}"
    of = figures["confusion"]
    return with_interval(to_json(wilson(of["caught"] + of["passed"], sum(of.values()))) | {"value": figures[name]})


def counts_of(of: Mapping[str, int] | None) -> str:
    if of is None:
        return DASH
    good = of["false_alarms"] + of["passed"]
    return f"{of['caught']} of {of['caught'] + of['missed']}, {of['false_alarms']} of {good}"


def write(work: Path, out: Path, studies: Sequence[str], only: Sequence[str] | None, notes: Mapping[str, Any]) -> str:
    """Collects the finished runs in out/studies.json and studies.md; returns the tables."""
    results = {name: rows_of(work, name, only) for name in studies}
    text = "\n".join(table(name, rows, notes.get(name, ())) for name, rows in results.items())
    text += (
        "\nIntervals are of 95 %; that of a published accuracy is Wilson's, for its number of test images. Seconds are "
    )
    text += "of the training alone; of one that was resumed, since it was resumed.\n"
    facts = {"date": str(date.today()), "blemish": __version__, "machine": platform.machine(), "cores": os.cpu_count()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "studies.json").write_text(json.dumps({**facts, "studies": results}, indent=1) + "\n", encoding="utf-8")
    (out / "studies.md").write_text(text, encoding="utf-8")
    return text


def run_all(options: argparse.Namespace, out: Path = HERE / "results", **more: Mapping[str, Any]) -> str:
    """Everything that was asked for; returns the tables. `more` are options of a study's trainings by its name, such as
    a small image size for a trial. A class that cannot be measured is named below the table, and the others go on."""
    notes: dict[str, list[str]] = {name: [] for name in options.study}
    if options.table:
        return write(options.work, out, options.study, options.only, notes)
    found = classes_in(options.mvtec)
    own(options.work, options.mvtec)
    for name in options.study:
        study = STUDIES[name]
        if missing := study.missing(found, options.only):
            notes[name].append(f"Not in {options.mvtec}: {', '.join(missing)}.")
            print(f"{name}: {notes[name][-1]}", flush=True)
        changes = {**asked(study, options), **more.get(name, {})}
        kinds = (True, False) if options.untrained and study.detector == "attention" else (False,)
        for each in study.classes(found, options.only):
            for untrained in kinds:
                run = run_of(options.work, name, each, changes, untrained=untrained)
                try:
                    own_changes = {**changes, **UNTRAINED} if untrained else changes
                    done = measure(options.mvtec / each, run, study, **own_changes)
                    said = f"measured, in {run}" if done else f"done before, in {run}"
                except BlemishError as error:
                    said = str(error)
                    if (note := f"{each}: not measured. {said}") not in notes[name]:
                        notes[name].append(note)
                print(f"{name}, {each}: {said}", flush=True)
                write(options.work, out, options.study, options.only, notes)
    return write(options.work, out, options.study, options.only, notes)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mvtec", type=Path, metavar="FOLDER", help="with a folder for each class")
    parser.add_argument("--study", nargs="+", choices=list(STUDIES), default=list(STUDIES), metavar="STUDY")
    parser.add_argument("--only", nargs="+", metavar="CLASS")
    parser.add_argument("--weights", type=Path, help="VGG16's ImageNet convolutions; without, torchvision loads them")
    parser.add_argument("--cycles", type=int, help="of the autoencoders, each of --epochs")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--untrained", action="store_true", help="also the untrained network, as a control")
    parser.add_argument("--false-alarms", metavar="RATE", help="of the guarantee, for small sets: 10%%")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work" / "studies")
    parser.add_argument("--table", action="store_true", help="only collect the runs in --work")
    options = parser.parse_args(arguments)
    if options.mvtec is None and not options.table:
        parser.error("name the folder with the classes: --mvtec FOLDER")
    return options


def main() -> None:
    if threads := os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    try:
        print(run_all(parse()))
    except BlemishError as error:
        raise SystemExit(f"studies: {error}") from None


if __name__ == "__main__":
    main()
