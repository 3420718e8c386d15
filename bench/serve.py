"""The page under load: how fast it judges, how long people wait meanwhile, and whether its memory stays flat.

    python bench/serve.py load --run demo/board --data demo/data/board [--seconds 60] [--learn]
    python bench/serve.py first --run demo/board --data demo/data/board
    python bench/serve.py memory --run RUN --data FOLDER [--images 20000]

`load`: programs send images to POST /api/v1/inspect of a server on loopback, as fast as they are answered, while one
person opens pages (first page, review, one verdict, history), one every half second; with `--learn` a training runs.
In turn with it, `blemish inspect` judges the same images four times over, its start included and nothing drawn, so that
both meet the same machine. `first`: a browser drops 20 images on the page; the time until the first verdict and the
last one stand there. `memory`: the server's resident memory after each thousand of uploads. Figures go to
bench/results/serve-<what>.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blemish.images import find_images

HERE = Path(__file__).resolve().parent
PAGES = ("/", "/review", "/history", "/detectors", "/verdicts/1")
ROUNDS = 3


@contextmanager
def server(data: Path, *arguments: object) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and process number."""
    command = [sys.executable, "-m", "blemish", "serve", *map(str, arguments), "--data", str(data), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        for line in process.stdout:
            if line.startswith("blemish: http"):
                yield line.split()[1].rstrip("/"), process.pid
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(30)


def asked(address: str, content: bytes | None = None) -> tuple[bytes, float]:
    """The answer, and the seconds that it took."""
    headers = {"Content-Type": "application/octet-stream"} if content is not None else {"Accept": "text/html"}
    begun = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(address, content, headers), timeout=120) as answer:
        return answer.read(), time.perf_counter() - begun


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: median, 95th and 99th percentile, and how many."""
    ranked = sorted(seconds)
    at = {f"p{q}": round(1000 * ranked[min(len(ranked) - 1, len(ranked) * q // 100)], 1) for q in (50, 95, 99)}
    return {**at, "requests": len(ranked)}


def loaded(address: str, images: list[bytes], seconds: float, clients: int) -> dict[str, Any]:
    """Programs and a person at once, for so many seconds."""
    api: list[float] = []
    pages: dict[str, list[float]] = {page: [] for page in PAGES}
    end = time.monotonic() + seconds
    numbers = itertools.count()

    def program() -> None:
        while time.monotonic() < end:
            number = next(numbers)
            api.append(asked(f"{address}/api/v1/inspect?name={number}.png", images[number % len(images)])[1])

    def person() -> None:
        for page in itertools.cycle(PAGES):
            if time.monotonic() > end:
                return
            pages[page].append(asked(address + page)[1])
            time.sleep(0.5)

    threads = [threading.Thread(target=program) for _ in range(clients)] + [threading.Thread(target=person)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [one for times in pages.values() for one in times]
    return {
        "verdicts_per_second": round(len(api) / seconds, 2),
        "api_ms": quantiles(api),
        "pages_ms": quantiles(every),
        "each_page_ms": {page: quantiles(times) for page, times in pages.items() if times},
    }


def load(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    files = find_images(options.data / "test", recursive=True)[:60]
    images = [file.read_bytes() for file in files]
    rounds = []
    with server(folder / "page", options.run, "--images", options.data) as (address, _):
        asked(f"{address}/api/v1/inspect?name=first.png", images[0])
        if options.learn:
            asked(f"{address}/api/v1/jobs?product={options.data.name}", b"")
        for _ in range(1 if options.learn else ROUNDS):
            served = loaded(address, images, options.seconds, options.clients)
            begun = time.perf_counter()
            command = [sys.executable, "-m", "blemish", "inspect", str(options.run), *map(str, files * 4)]
            subprocess.run(command, check=True, capture_output=True)
            alone = 4 * len(files) / (time.perf_counter() - begun)
            rounds.append(served | {"inspect_images_per_second": round(alone, 2)})
            print(json.dumps(rounds[-1]), flush=True)
    ratio = [one["verdicts_per_second"] / one["inspect_images_per_second"] for one in rounds]
    return {"clients": options.clients, "learning": options.learn, "rounds": rounds, "ratio": statistics.median(ratio)}


def first(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    files = find_images(options.data / "test", recursive=True)[:20]
    times = []
    with server(folder / "page", options.run) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(5):
            page = browser.new_page()
            page.goto(address)
            before = page.locator("#verdicts > li").count()
            begun = time.perf_counter()
            page.set_input_files("#files", files)
            page.wait_for_function("(n) => document.querySelectorAll('#verdicts > li').length > n", arg=before)
            one = time.perf_counter() - begun
            page.wait_for_function(
                "(n) => document.querySelectorAll('#verdicts > li').length >= n", arg=before + len(files)
            )
            times.append((one, time.perf_counter() - begun))
            page.close()
        browser.close()
    firsts, lasts = zip(*times, strict=True)
    return {"images": len(files), "first_s": sorted(firsts), "all_s": sorted(lasts)}


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    images = [file.read_bytes() for file in find_images(options.data / "test", recursive=True)[:60]]
    after = {}
    with server(folder / "page", options.run) as (address, process):
        numbers = itertools.count()
        step = max(1, options.images // 20)

        def program(until: int) -> None:
            while (number := next(numbers)) < until:
                asked(f"{address}/api/v1/inspect?name={number}.png", images[number % len(images)])

        for until in range(step, options.images + 1, step):
            threads = [threading.Thread(target=program, args=(until,)) for _ in range(options.clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            numbers = itertools.count(until)
            status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
            after[until] = round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)
            print(until, after[until], "MB", flush=True)
    return {"resident_mb_after": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "first", "memory"])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--learn", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measured = {"load": load, "first": first, "memory": memory}[options.what](options, Path(temporary))
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    name = f"serve-{options.what}{'-learning' if options.learn else ''}.json"
    (results / name).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
