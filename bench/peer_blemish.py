"""The blemish half of bench/line.py, as bench/peer_anomalib.py is the anomalib half; runs in its own environment, which
has only the base install, without PyTorch.

    bench/venvs/line/bin/python bench/peer_blemish.py TASK WORK BUNDLE [--threads N]

Every task prints its figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from blemish.images import load_image
from blemish.inference.inspector import Inspector

MARKS = (100, 1_000, 2_500, 5_000, 10_000)


def images(work: Path) -> list[Path]:
    return sorted((work / "images" / "test").glob("*/*"))


def scores(work: Path, bundle: Path, threads: int) -> dict[str, Any]:
    """Raw scores and maps of every test image, for the AUROC that bench/line.py computes for both."""
    inspector, found, maps = Inspector(bundle, threads=threads), [], []
    for file in images(work):
        prediction = inspector.predict(load_image(file))
        found.append(prediction.scores[0])
        maps.append(prediction.maps[0].astype(np.float16))
    np.savez(work / f"{bundle.parent.name}.npz", scores=np.array(found, np.float32), maps=np.array(maps, np.float32))
    return {}


def one_image(work: Path, bundle: Path, threads: int) -> dict[str, Any]:
    """Warm: from decoded pixels to the verdict with its boxes."""
    inspector = Inspector(bundle, threads=threads)
    decoded = [load_image(file) for file in images(work)[::2]]
    times = []
    for image in [*decoded[:10], *decoded]:
        begun = time.perf_counter()
        inspector.judge(inspector.predict(image), (image.shape[1], image.shape[0]))
        times.append(time.perf_counter() - begun)
    ordered = sorted(times[10:])
    return {"p50": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))]}


def verdicts(work: Path, bundle: Path, threads: int) -> dict[str, Any]:
    """Files in, verdicts out."""
    inspector, files = Inspector(bundle, threads=threads), images(work)
    begun = time.perf_counter()
    count = sum(1 for _ in inspector.look_many(files))
    return {"images_per_second": count / (time.perf_counter() - begun)}


def overlays(work: Path, bundle: Path, threads: int, *, evidence: bool = False) -> dict[str, Any]:
    """Files in, verdicts and overlays out, as `blemish inspect --out` writes them."""
    from blemish.inference.results import ImageWriter, ResultsFolder

    inspector, files = Inspector(bundle, threads=threads), images(work)
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        writer = ImageWriter(Path(out), inspector, evidence=evidence)
        with ResultsFolder(Path(out)) as folder:
            for result in inspector.each(((file, folder.unique(file.name)) for file in files), writer.write):
                folder.add(result)
        seconds = time.perf_counter() - begun
        drawn = len(list(Path(out, "overlays").iterdir()))
    return {"images_per_second": len(files) / seconds, "drawn": drawn}


def with_evidence(work: Path, bundle: Path, threads: int) -> dict[str, Any]:
    """The same with the nearest normal patches, and each anomaly inpainted and judged again."""
    return overlays(work, bundle, threads, evidence=True)


def memory(work: Path, bundle: Path, threads: int) -> dict[str, Any]:
    """Peak memory after different numbers of images, each decoded, in one process."""
    inspector, files = Inspector(bundle, threads=threads), images(work)
    looks = inspector.look_many(files[i % len(files)] for i in range(max(MARKS)))
    return {"after": {count: peak() for count, _ in enumerate(looks, 1) if count in MARKS}}


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TASKS = {task.__name__: task for task in (scores, one_image, verdicts, overlays, with_evidence, memory)}


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("task", choices=TASKS)
    reader.add_argument("work", type=Path)
    reader.add_argument("bundle", type=Path)
    reader.add_argument("--threads", type=int, default=0)
    asked = reader.parse_args()
    found = TASKS[asked.task](asked.work, asked.bundle, asked.threads)
    print(json.dumps({**found, "peak_mb": peak()}))


if __name__ == "__main__":
    main()
