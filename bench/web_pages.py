"""How long the pages take that list verdicts, with 10,000 of them in SQLite: whole requests, from the middleware to the
last byte of HTML, in one process.

    python bench/web_pages.py [VERDICTS]

Goal: under 200 ms a page at p95 on two cores. Writes bench/results/web_pages.json. The rows share one image; each has
an entry in the log. The first history page after a start also loads the bundle and begins the drift test, and stands
apart.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.web.support import PRODUCT, client_of, grey, made_site  # noqa: E402

from blemish.web import ledger  # noqa: E402
from blemish.web.site import Site  # noqa: E402
from blemish.web.tables import Image, Verdict  # noqa: E402

GOAL = 0.2  # seconds
SOURCES = ("page", "webcam", "api", "folder line 3")


def fill(site: Site, count: int) -> None:
    """Verdicts over the last week, one in twenty an anomaly, as a version with 200 calibration images would give."""
    first = site.line.inspect(grey(60), "shared.png", PRODUCT, by="bench", source="page")
    draw, start = random.Random(0), datetime.now(UTC) - timedelta(days=7)
    for begin in range(0, count, 1000):
        with site.database.writing() as session:
            image = session.get_one(Image, first.image_id)
            for number in range(begin, min(begin + 1000, count)):
                p = draw.random()
                moment = start + timedelta(days=7) * number / count
                verdict = Verdict(
                    image_id=image.id,
                    detector_id=first.detector_id,
                    time=moment.isoformat(timespec="milliseconds"),
                    name=f"line 3/part-{number:05}.png",
                    source=draw.choice(SOURCES),
                    by="bench",
                    request=None,
                    decision="anomaly" if p < 0.05 else "review" if p < 0.1 else "good",
                    score=100 - 50 * p,
                    threshold=100.0,
                    p_value=round(p, 3),
                    defect="",
                    regions=[{"box": [1, 1, 9, 9], "area": 64.0, "peak": 3.0, "p_value": p}] if p < 0.1 else [],
                )
                session.add(verdict)
                session.flush()
                ledger.append(session, verdict, verdict.time)


def addresses(count: int) -> dict[str, Callable[[], Iterator[str]]]:
    """The kinds of pages that are timed, each with many addresses."""
    draw = random.Random(1)

    def paged() -> Iterator[str]:
        yield from (f"/history?before={draw.randrange(100, count)}" for _ in range(100))

    def searched() -> Iterator[str]:
        for _ in range(25):
            yield f"/history?name=part-{draw.randrange(100):02}&decision=anomaly"
            yield f"/history?p_from=0.01&p_to=0.05&source=folder&label=none&before={draw.randrange(100, count)}"
            yield "/history?name=no such part"
            yield f"/history?from={(datetime.now(UTC) - timedelta(days=draw.randrange(1, 7))).date()}"

    return {
        "the newest page": lambda: iter(["/history"] * 100),
        "older pages": paged,
        "searched": searched,
        "image page": lambda: (f"/verdicts/{draw.randrange(2, count)}" for _ in range(100)),
        "first page": lambda: iter(["/"] * 100),
        "API, 60 verdicts": lambda: (
            f"/api/v1/verdicts?limit=60&before={draw.randrange(100, count)}" for _ in range(100)
        ),
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        site = made_site(Path(folder))
        begun = time.perf_counter()
        fill(site, count)
        print(f"{count} verdicts written in {time.perf_counter() - begun:.0f} s")
        client, found = client_of(site), {}

        def seconds(address: str) -> float:
            begun = time.perf_counter()
            answer = client.get(address)
            assert answer.status_code == 200, answer.text
            return time.perf_counter() - begun

        after_start = seconds("/history")
        print(f"history, first after the start: {1000 * after_start:.0f} ms")
        while "still being counted" in client.get("/history").text:
            pass
        for name, made in addresses(count).items():
            times = sorted(map(seconds, made()))
            found[name] = {
                "median": statistics.median(times),
                "p95": float(np.quantile(times, 0.95)),
                "most": times[-1],
                "count": len(times),
            }
            print(f"{name}: " + ", ".join(f"{k} {1000 * v:.0f} ms" for k, v in found[name].items() if k != "count"))
    result = {"verdicts": count, "goal": GOAL, "cores": os.cpu_count(), "first history page": after_start, **found}
    (ROOT / "bench/results/web_pages.json").write_text(json.dumps(result, indent=2) + "\n")
    slow = [name for name, times in found.items() if times["p95"] > GOAL]
    print("over the goal: " + ", ".join(slow) if slow else f"All pages are under {1000 * GOAL:.0f} ms at p95.")


if __name__ == "__main__":
    main()
