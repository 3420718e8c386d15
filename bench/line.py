"""blemish and anomalib 2.7 side by side: the same images, backbone weights, bank size and processor, in one run.

    python bench/line.py [--shared ../shared] [--work bench/results/work/line] [--again]

Makes an environment for each in bench/venvs (anomalib's takes 6.5 GB and some minutes), and a data set of magnetic
tiles (300 good training images, 200 good and 200 defective test images). Then bench/peer_anomalib.py and
bench/peer_blemish.py measure alternately; times are the median of three rounds. anomalib's fit takes half an hour and
is kept in the work folder; --again measures it again. Writes bench/results/latest.json and latest.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import limits  # type: ignore[import-not-found]  # beside this file
import startup  # type: ignore[import-not-found]
from blemish.data.layouts import read
from blemish.data.split import split
from blemish.evaluation.detection import auroc
from blemish.images import load_mask, read_size

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BACKBONE = "mobilenetv2_100?pad_type=same&mean=0.498&std=0.5"
WEIGHTS = "weights/mobilenetv2_100_tf.safetensors"
BANK = 8000
TRAIN, TEST = 300, 200
ROUNDS = 3


def lay_out(data: Path, work: Path) -> None:
    """train/good, test/good, test/defect and masks: tiles of one item are never on both sides."""
    folder = work / "images"
    if folder.is_dir():
        return
    splits = split(read(data, "auto").samples, seed=0, test=0.5, calibration=0.0)
    good = [s for s in splits.test if s.label == "good"]
    bad = [s for s in splits.test if s.label == "anomaly"]
    for samples in (good, bad):
        random.Random(0).shuffle(samples)
    train = [s for s in splits.train if s.label == "good"][:TRAIN]
    for name, chosen in (("train/good", train), ("test/good", good[:TEST]), ("test/defect", bad[:TEST])):
        (folder / name).mkdir(parents=True)
        for sample in chosen:
            place = sample.name.replace("/", "-")
            shutil.copy(sample.path, folder / name / place)
            if sample.mask:
                mask = load_mask(sample.mask, read_size(sample.path)[::-1])
                (work / "masks").mkdir(exist_ok=True)
                Image.fromarray(mask).save(work / "masks" / f"{Path(place).stem}.png")


def environment(name: str, packages: list[str]) -> tuple[Path, dict[str, float]]:
    """Python of bench/venvs/NAME, which is made if it is missing, and the cost of its installation."""
    home = HERE / "venvs" / name
    facts = home / "install.json"
    if not facts.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        begun = time.perf_counter()
        pip: list[str | Path] = [
            home / "bin/python",
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            *packages,
        ]
        subprocess.run(pip, check=True)
        inside = next((home / "lib").glob("python*/site-packages"))
        every = [p for p in inside.glob("*.dist-info") if not p.name.startswith(("pip", "setuptools"))]
        found = {"seconds": time.perf_counter() - begun, "mb": startup.size(inside), "packages": len(every)}
        facts.write_text(json.dumps(found), encoding="utf-8")
    return home / "bin/python", json.loads(facts.read_text("utf-8"))


def ask(command: list[str | Path]) -> dict[str, Any]:
    """The JSON in the last line that a task printed."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def learned(work: Path, shared: Path, name: str, backbone: list[str]) -> dict[str, Any]:
    """Trains blemish on all 300 images; returns the run's metrics."""
    out = work / name
    command: list[str | Path] = [Path(sys.executable).parent / "blemish", "train", work / "images", "-o", out]
    command += ["--overwrite", "--image-size", "256", "--max-bank", str(BANK), "--memory", "0.5", "--no-evidence"]
    command += ["--calibrate", "leave-one-out", "--overlays", "0", *backbone]
    if BACKBONE in backbone:
        command += ["--weights", shared / WEIGHTS]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return {**found["seconds"], "whole": time.perf_counter() - begun}


def places(work: Path, file: Path) -> dict[str, float]:
    """Image and pixel AUROC of scores and maps (256 x 256) of the test images, by one function for both systems."""
    names = sorted((work / "images/test").glob("*/*"))
    found = np.load(file)
    labels = np.array([name.parent.name == "defect" for name in names])
    masks = np.zeros((len(names), 256, 256), bool)
    for i, name in enumerate(names):
        mask = work / "masks" / f"{name.stem}.png"
        if mask.is_file():
            with Image.open(mask) as image:
                masks[i] = np.asarray(image.convert("L").resize((256, 256), Image.Resampling.NEAREST)) > 127
    return {
        "image_auroc": auroc(found["scores"], labels),
        "pixel_auroc": auroc(found["maps"].reshape(-1), masks.reshape(-1)),
    }


def cold(command: list[str | Path]) -> float:
    """Seconds of the whole process, median of five."""
    times: list[float] = startup.seconds(command, 5)
    return statistics.median(times)


def measure(shared: Path, work: Path, again: bool) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    lay_out(shared / "data/magnetic-tile", work)
    python, their_install = environment("anomalib", ["anomalib[openvino]==2.7.*"])
    line, our_install = environment("line", ["-c", str(ROOT / "constraints.txt"), str(ROOT)])
    subprocess.run([line, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", ROOT], check=True)
    kept = work / "anomalib.json"
    theirs: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.is_file() and not again else {}
    them: list[str | Path] = [python, HERE / "peer_anomalib.py"]
    weights: list[str | Path] = ["--weights", shared / WEIGHTS, "--bank", str(BANK)]

    def they(task: str) -> dict[str, Any]:
        print(f"anomalib: {task}", flush=True)
        return ask([*them, task, work, *weights])

    for task in ("fit", "export"):  # results of long tasks are kept
        if task not in theirs:
            theirs[task] = they(task)
            kept.write_text(json.dumps(theirs, indent=1), encoding="utf-8")
    print("blemish: learning", flush=True)
    fit = learned(work, shared, "same", ["--backbone", BACKBONE])
    fit_bundled = learned(work, shared, "bundled", ["--backbone", "bundled"])

    def we(task: str, run: str) -> dict[str, Any]:
        print(f"blemish: {task}, {run}", flush=True)
        return ask([line, HERE / "peer_blemish.py", task, work, work / run / "bundle"])

    # Timed alternately, so that changes of the machine's load affect both.
    rounds = [
        (
            {task: we(task, "same") for task in ("overlays", "one_image", "with_evidence", "verdicts")},
            {task: they(task) for task in ("predict", "inferencer", "model_alone")},
            {f"{task} bundled": we(task, "bundled") for task in ("verdicts", "overlays", "one_image")},
        )
        for _ in range(ROUNDS)
    ]
    ours: dict[str, Any] = {"fit": fit, "fit_bundled": fit_bundled}
    ours |= middle([same for same, _, _ in rounds]) | middle([bundled for _, _, bundled in rounds])
    theirs |= middle([other for _, other, _ in rounds]) | {"scores": they("scores")}
    ours |= {"scores": we("scores", "same"), "scores bundled": we("scores", "bundled"), "memory": we("memory", "same")}
    theirs["accuracy"] = places(work, work / "anomalib.npz")
    ours["accuracy"] = places(work, work / "same.npz")
    ours["accuracy bundled"] = places(work, work / "bundled.npz")
    one = sorted((work / "images/test").glob("*/*"))[0]
    ours["cold"] = cold([line.parent / "blemish", "inspect", work / "same/bundle", one])
    theirs["cold"] = cold([*them, "first_verdict", work, *weights])
    ours["import"] = cold([line, "-c", "import blemish.inference.inspector"])
    theirs["import"] = cold([python, "-c", "import anomalib.models, anomalib.engine"])
    ours["install"], theirs["install"] = our_install, their_install
    profile = {run: limits.measure(work / run / "bundle", one) for run in ("same", "bundled")}
    return {
        "ours": ours,
        "theirs": theirs,
        "rounds": [{"ours": {**same, **bundled}, "theirs": other} for same, other, bundled in rounds],
        "limits": profile,
        "machine": machine(line, python),
    }


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median over the rounds of each task's figures."""
    return {
        task: {name: statistics.median(found[task][name] for found in rounds) for name in figures}
        for task, figures in rounds[0].items()
    }


def machine(line: Path, python: Path) -> dict[str, Any]:
    versions: dict[str, str] = {}
    for who, names in ((line, ("onnxruntime", "numpy", "pillow")), (python, ("anomalib", "torch", "openvino"))):
        code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
        versions |= ask([who, "-c", code])
    text = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").is_file() else ""
    model = next((row.partition(":")[2].strip() for row in text.splitlines() if row.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
        "load": os.getloadavg()[1],
    }


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table. `ratio` above 1: blemish is better by that factor; None if a ratio has no meaning."""
    ours, theirs = found["ours"], found["theirs"]
    floor = sum(row.get("limit_ms", 0) for row in found["limits"]["same"]["stages"].values())
    rows: list[dict[str, Any]] = []

    def row(name: str, our: float, their: float, unit: str, *, more: bool = False, limit: float | None = None) -> None:
        ratio = our / their if more else their / our
        rows.append({"name": name, "ours": our, "theirs": their, "unit": unit, "ratio": ratio, "limit": limit})

    def rate(name: str, our: str, their: str) -> None:
        pace = "images_per_second"
        row(name, ours[our][pace], theirs[their][pace], "images/s", more=True, limit=1e3 / floor)

    row("fit PatchCore on 300 images", ours["fit"]["fit"], theirs["fit"]["fit"], "s")
    whole = theirs["fit"]["fit"] + theirs["export"]["export"]
    row("the same with export, thresholds and test figures", ours["fit"]["whole"], whole, "s")
    rate("files to verdicts, against Engine.predict, which draws", "verdicts", "predict")
    rate("files to verdicts and overlays, against Engine.predict", "overlays", "predict")
    rate("files to verdicts and overlays, against OpenVINOInferencer", "overlays", "inferencer")
    rate("the same with evidence for each anomaly, against Engine.predict", "with_evidence", "predict")
    for name, which in (("p50", "model_alone"), ("p50", "inferencer"), ("p99", "inferencer")):
        label = "torch model" if which == "model_alone" else "OpenVINOInferencer"
        millis = 1e3 * ours["one_image"][name], 1e3 * theirs[which][name]
        row(f"one warm image, {name}, against its {label}", *millis, "ms", limit=floor)
    row("cold start: process to first verdict", ours["cold"], theirs["cold"], "s")
    row("import", ours["import"], theirs["import"], "s")
    row(
        "peak memory, inspecting (OpenVINOInferencer)",
        ours["overlays"]["peak_mb"],
        theirs["inferencer"]["peak_mb"],
        "MB",
    )
    row("peak memory, inspecting (Engine.predict)", ours["overlays"]["peak_mb"], theirs["predict"]["peak_mb"], "MB")
    for what, unit in (("seconds", "s"), ("mb", "MB"), ("packages", "packages")):
        row(f"install, {what}", ours["install"][what], theirs["install"][what], unit)
    for what in ("image_auroc", "pixel_auroc"):
        our, their = ours["accuracy"][what], theirs["accuracy"][what]
        rows.append({"name": what, "ours": our, "theirs": their, "unit": "", "ratio": None, "limit": 1.0})
    return rows


def number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if not unit:
        return f"{value:.4f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(found: dict[str, Any]) -> str:
    """The table in Markdown."""
    where, ours = found["machine"], found["ours"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        f"{where['processor']}, {where['cores']} cores; {versions}; {where['date']}; load average at the end "
        f"{where['load']:.1f}.",
        "",
        "| figure | blemish | anomalib | unit | times better | limit |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for row in found["figures"]:
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.1f}"
        values = " | ".join(number(row[who], row["unit"]) for who in ("ours", "theirs"))
        lines.append(f"| {row['name']} | {values} | {row['unit']} | {ratio} | {number(row['limit'], row['unit'])} |")
    bundled, accuracy = ours["one_image bundled"], ours["accuracy bundled"]
    lines += [
        "",
        f"With blemish's own backbone (`bundled`): one warm image p50 {1e3 * bundled['p50']:.1f} ms, p99 "
        f"{1e3 * bundled['p99']:.1f} ms; {ours['verdicts bundled']['images_per_second']:.0f} images/s to verdicts, "
        f"{ours['overlays bundled']['images_per_second']:.0f} with overlays; "
        f"image AUROC {accuracy['image_auroc']:.4f}, pixel AUROC {accuracy['pixel_auroc']:.4f}.",
        "Peak memory of one process: "
        + ", ".join(f"{mb:.0f} MB after {int(count):,} images" for count, mb in ours["memory"]["after"].items())
        + ".",
    ]
    for name, title in (("same", "MobileNetV2, bank of 8,000"), ("bundled", "`bundled`, bank of 8,000")):
        lines += ["", f"{title}, one image, all cores. {limits.table(found['limits'][name])}".rstrip()]
    return "\n".join(lines) + "\n"


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    reader.add_argument("--work", type=Path, default=HERE / "results/work/line")
    reader.add_argument("--again", action="store_true", help="measure anomalib's fit again")
    asked = reader.parse_args()
    if not (asked.shared / WEIGHTS).is_file():
        sys.exit(f"bench/line.py is skipped: {asked.shared / WEIGHTS} is missing")
    found = measure(asked.shared.resolve(), asked.work.resolve(), asked.again)
    found["figures"] = figures(found)
    out = HERE / "results"
    (out / "latest.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "latest.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
