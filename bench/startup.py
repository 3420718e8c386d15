"""Start-up time and installed size of inference: whole processes in a separate environment.

    python bench/startup.py [RUN IMAGE]

RUN is a run of `blemish train`; by default one of bench/accuracy.py or `make demo`. Makes .venv-line with only the base
install; writes bench/results/startup.json. The lower limit beside the figures is the time of Python itself.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GOALS = {"import blemish": 0.1, "blemish --help": 0.4, "blemish inspect, one image": 1.5}


def seconds(command: Sequence[str | Path], runs: int = 11) -> list[float]:
    """Wall time of whole processes, after one that fills the disk cache."""
    times = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    return times[1:]


def size(folder: Path) -> float:
    """Megabytes (10^6 bytes) on disk, without pip, setuptools and compiled caches."""
    files = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    kept = [f for f in files if f.suffix != ".pyc" and f.relative_to(folder).parts[0] not in ("pip", "setuptools")]
    return sum(f.stat().st_size for f in kept) / 1e6


def found() -> tuple[Path, Path]:
    """An existing run of another command, and an image."""
    demo = ROOT / "demo"
    image = demo / "data" / "flange" / "test" / "good" / "000.png"
    for run in (HERE / "results" / "work" / "flange", demo / "flange"):
        if run.is_dir() and image.is_file():
            return run, image
    sys.exit("run `make demo` first, or give a run and an image: python bench/startup.py RUN IMAGE")


def main() -> None:
    run, image = map(Path, sys.argv[1:]) if len(sys.argv) > 1 else found()
    home = ROOT / ".venv-line"
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    python = home / "bin" / "python"
    begun = time.perf_counter()
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        ROOT / "constraints.txt",
        ROOT,
    ]
    subprocess.run(pip, check=True)
    installed = time.perf_counter() - begun
    program = home / "bin" / "blemish"
    bare = seconds([python, "-c", "pass"])
    measured = {
        "import blemish": [t - statistics.median(bare) for t in seconds([python, "-c", "import blemish"])],
        "blemish --help": seconds([program, "--help"]),
        "blemish inspect, one image": seconds([program, "inspect", run / "bundle", image]),
    }
    packages = next((home / "lib").glob("python*/site-packages"))
    results = {
        name: {"median": statistics.median(times), "min": min(times), "max": max(times), "goal": GOALS[name]}
        for name, times in measured.items()
    }
    count = len([p for p in packages.glob("*.dist-info") if not p.name.startswith(("pip", "setuptools"))])
    facts = {
        "python alone": statistics.median(bare),
        "install_seconds": installed,
        "install_megabytes": size(packages),
        "packages": count,
        "load_average": os.getloadavg()[0],
    }
    out = HERE / "results" / "startup.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"seconds": results, **facts}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"seconds": results, **facts}, indent=1))


if __name__ == "__main__":
    main()
