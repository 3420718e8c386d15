"""Peak memory of training on 20,000 images, which must not depend on their number.

    python bench/memory.py [--images 20000] [--drawn 400]

Draws a demo product at 256x256, links each image as often as needed (the detector decodes every file), trains PatchCore
in a separate process and prints its peak resident memory. Writes bench/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blemish.demo.line import write_line
from blemish.types import Sample

HERE = Path(__file__).resolve().parent


def learn(folder: Path, memory: float) -> None:
    """In the child process: trains on all images of a folder and prints the figures as JSON."""
    from blemish.cli.console import progress
    from blemish.detectors.patchcore.config import PatchCoreConfig
    from blemish.detectors.patchcore.detector import PatchCore

    samples = [Sample(p, p.name, "good") for p in sorted(folder.iterdir())]
    begun = time.perf_counter()
    PatchCore(PatchCoreConfig(memory=memory)).fit(samples, progress)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"images": len(samples), "peak_gib": peak, "seconds": time.perf_counter() - begun}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[200, 20_000])
    parser.add_argument("--drawn", type=int, default=200)
    parser.add_argument("--memory", type=float, default=0.1)
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.learn:
        learn(options.learn, options.memory)
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        line = write_line(Path(folder), products=["flange"], train=options.drawn, good=0, defective=0, size=256)
        drawn = sorted((line[0] / "train" / "good").iterdir())
        for count in options.images:
            linked = Path(folder) / str(count)
            linked.mkdir()
            for i in range(count):
                (linked / f"{i:06}.png").hardlink_to(drawn[i % len(drawn)])
            command = [sys.executable, __file__, "--learn", str(linked), "--memory", str(options.memory)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append({**json.loads(done.stdout), "memory_setting_gib": options.memory, "drawn": len(drawn)})
            print(results[-1])
    out = HERE / "results" / "memory.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
