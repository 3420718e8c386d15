"""`blemish cluster inspect`: its speed beside `blemish inspect`, a node that dies, and a model of what millions cost.

    python bench/cluster.py speed --run demo/board --data demo/data/board [--images 400] [--rounds 3]
    python bench/cluster.py nodes --run RUN --data FOLDER
    python bench/cluster.py model [--images 200000]

`speed`: in turn on the same images, `blemish inspect` with one thread and one actor, with two threads and two actors.
The rate is that of the images after the first one, so Ray's start does not count; it is told beside it. `nodes`: three
Ray nodes on this machine, of which one is killed; every verdict must be that of `Inspector` bit by bit. `model`: runs
of a few thousand small images give the figures of an image, which predict the run of `--images`; then that is run and
compared. Images are hard links to a few hundred drawn ones. Figures go to bench/results/cluster-<what>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.images import find_images

HERE = Path(__file__).resolve().parent
PROGRAM = [sys.executable, "-m", "blemish"]
SMALL = 64  # pixels a side of the images of `model`
TRIED = (
    (4_000, 62),
    (16_000, 250),
    (16_000, 62),
)  # images, and images in a file, of the runs that `model` is made from
SIZES = ((1_000_000, 1000), (10_000_000, 1000), (100_000_000, 10_000))  # images, and images in a file


def linked(images: list[Path], folder: Path, number: int) -> None:
    """`number` hard links to the images, a thousand in a folder."""
    for i in range(number):
        inner = folder / f"{i // 1000:05}"
        if i % 1000 == 0:
            inner.mkdir(parents=True)
        image = images[i % len(images)]
        os.link(image, inner / f"{i:08}{image.suffix}")


def peak(pid: int) -> int:
    """The most memory that a process had, in bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def inspected(run: Path, folder: Path, threads: int) -> dict[str, float]:
    """`blemish inspect`: images a second after the first one, seconds to that, and memory."""
    begun, times = time.perf_counter(), []
    command = [*PROGRAM, "inspect", str(run), str(folder), "--json", "--threads", str(threads)]
    most = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in process.stdout:
            times.append(time.perf_counter() - begun)
            if len(times) % 50 == 0:
                most = max(most, peak(process.pid))
    whole = time.perf_counter() - begun
    return {"rate": (len(times) - 1) / (times[-1] - times[0]), "first": times[0], "whole": whole, "memory": most}


def clustered(run: Path, source: Path, out: Path, actors: int, per_file: int = 0) -> dict[str, Any]:
    """`blemish cluster inspect`: its own summary, the whole time, and the driver's memory."""
    begun, most = time.perf_counter(), 0
    command = [*PROGRAM, "cluster", "inspect", str(run), str(source), "--out", str(out), "--actors", str(actors)]
    with subprocess.Popen(
        [*command, "--per-file", str(per_file), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.poll() is None:
            most = max(most, peak(process.pid))
            time.sleep(0.25)
        assert process.stdout
        found = json.loads(process.stdout.read())
    assert process.returncode == 0
    written = sum(file.stat().st_size for file in out.rglob("*.parquet"))
    manifest = (out / "manifest.parquet").stat().st_size
    plan = json.loads((out / "plan.json").read_text())
    return {
        "images": found["images"],
        "files": found["files"],
        "per_file": plan["per_file"],
        "rate": found["rate"],
        "first": found["first"],
        "whole": time.perf_counter() - begun,
        "ray": found["seconds"],
        "memory": found["memory"],
        "driver": most,
        "read": plan["bytes"],
        "written": written - manifest,
        "manifest": manifest,
    }


def speed(run: Path, data: Path, images: int, rounds: int) -> dict[str, Any]:
    """Rounds of the four commands in turn."""
    seen: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(dir=HERE / "results") as work:
        linked(find_images(data, recursive=True), Path(work, "images"), images)
        for number in range(rounds):
            for count in (1, 2):
                seen.setdefault(f"inspect {count}", []).append(inspected(run, Path(work, "images"), count))
                out = Path(work, f"out-{number}-{count}")
                seen.setdefault(f"cluster {count}", []).append(clustered(run, Path(work, "images"), out, count))
                print(json.dumps({name: round(rows[-1]["rate"], 2) for name, rows in seen.items()}), flush=True)
    result: dict[str, Any] = {"run": run.name, "images": images, "rounds": seen}
    for count in (1, 2):
        pairs = zip(seen[f"cluster {count}"], seen[f"inspect {count}"], strict=True)
        result[f"ratio {count}"] = [round(ours["rate"] / alone["rate"], 3) for ours, alone in pairs]
    return result


def nodes(run: Path, data: Path, images: int) -> dict[str, Any]:
    """A cluster of three nodes with one processor each, one of which is killed when a third is done."""
    import pyarrow.parquet as pq
    from ray.cluster_utils import Cluster

    from blemish.cluster.run import Config, inspect
    from blemish.inference.inspector import Inspector

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [cluster.add_node(num_cpus=1) for _ in range(3)]
    with tempfile.TemporaryDirectory(dir=HERE / "results") as work:
        linked(find_images(data, recursive=True), Path(work, "images"), images)
        out = Path(work, "out")

        def kill() -> None:
            while len(list(out.glob("verdicts/*.parquet"))) < 20:
                time.sleep(0.2)
            cluster.remove_node(workers[0], allow_graceful=False)
            print("a node was killed", flush=True)

        threading.Thread(target=kill, daemon=True).start()
        config = Config(run, str(Path(work, "images")), str(out), address=cluster.address, actors=3)
        found = inspect(config)
        rows = pq.read_table(out / "verdicts").to_pylist()
        inspector = Inspector(run)
        different = 0
        for row, alone in zip(rows, inspector.look_many(row["uri"] for row in rows), strict=True):
            verdict = alone.verdict
            boxes = [tuple(r[side] for side in ("left", "top", "right", "bottom")) for r in row["regions"]]
            ours = (row["decision"], row["score"], row["p_value"], boxes, [r["peak"] for r in row["regions"]])
            theirs = (verdict.decision, verdict.score, verdict.p_value, [r.box for r in verdict.regions])
            different += ours != (*theirs, [r.peak for r in verdict.regions])
    cluster.shutdown()
    ids = [row["id"] for row in rows]
    lost, twice = len(set(range(images)) - set(ids)), len(ids) - len(set(ids))
    return {"images": images, "lost": lost, "twice": twice, "different": different, "summary": found.to_json()}


def small_product(work: Path) -> tuple[Path, list[Path]]:
    """A detector at 64 x 64 pixels on striped tiles, and 200 of them."""
    tiles = []
    for i in range(200):
        random = np.random.default_rng(i)
        stripes = 110 + 40 * np.sin(np.arange(SMALL) / 3 + random.uniform(0, 6)) + random.normal(0, 8, (SMALL, SMALL))
        tiles.append(work / f"tiles/good/{i:03}.png")
        tiles[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(stripes, 0, 255).astype(np.uint8)).convert("RGB").save(tiles[-1])
    options = ["--detector", "patchcore", "--image-size", str(SMALL), "--max-bank", "200", "--no-evidence"]
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*PROGRAM, "train", str(work / "tiles"), "-o", str(work / "run"), *options], **quiet)
    return work / "run", tiles


# What each figure grows with. A worker holds the rows of one file, and the driver a record of each file.
GROWS = {
    "whole": ("images", "files"),
    "driver": ("files",),
    "memory": ("per_file",),
    "read": ("images",),
    "written": ("images", "files"),
    "manifest": ("images", "files"),
}


def model_of(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Least squares for each figure: what every run takes, and what each image, file, or image in a file adds."""
    fitted = {}
    for name, causes in GROWS.items():
        rows = np.array([[1.0, *(run[cause] for cause in causes)] for run in runs])
        fitted[name] = np.linalg.lstsq(rows, np.array([run[name] for run in runs], float), rcond=None)[0].tolist()
    return fitted


def predicted(fitted: dict[str, list[float]], images: int, per_file: int) -> dict[str, float]:
    """What a run of so many images takes: seconds, and bytes; and the hours of its two processors."""
    sizes = {"images": images, "files": -(-images // per_file), "per_file": per_file}
    said = {
        name: float(np.dot(fitted[name], [1.0, *(sizes[cause] for cause in causes)])) for name, causes in GROWS.items()
    }
    return {**said, "cpu_hours": 2 * said["whole"] / 3600}


def model(images: int) -> dict[str, Any]:
    """Fits the model, checks it on a run of `images`, and extrapolates."""
    with tempfile.TemporaryDirectory(dir=HERE / "results") as folder:
        work = Path(folder)
        run, tiles = small_product(work)
        runs: list[dict[str, Any]] = []
        for number, (size, per_file) in enumerate((*TRIED, (images, 0))):
            linked(tiles, work / f"images-{number}", size)
            runs.append(clustered(run, work / f"images-{number}", work / f"out-{number}", 2, per_file))
            print(json.dumps(runs[-1]), flush=True)
            shutil.rmtree(work / f"images-{number}")
    fitted, was = model_of(runs[:-1]), runs[-1]
    said = predicted(fitted, images, was["per_file"])
    return {
        "runs": runs,
        "model": {name: dict(zip(("start", *GROWS[name]), fitted[name], strict=True)) for name in fitted},
        "predicted": said,
        "error": {name: round(said[name] / was[name] - 1, 3) for name in GROWS},
        "extrapolated": {str(size): predicted(fitted, size, per_file) for size, per_file in SIZES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "nodes", "model"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.what == "speed":
        result = speed(asked.run, asked.data, asked.images or 400, asked.rounds)
    elif asked.what == "nodes":
        result = nodes(asked.run, asked.data, asked.images or 1000)
    else:
        result = model(asked.images or 200_000)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / f"results/cluster-{asked.what}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in result if name not in ("rounds", "runs", "summary")}, indent=1))


if __name__ == "__main__":
    main()
