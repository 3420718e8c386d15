"""How long the pages take that list verdicts and images, with 10,000 of them in SQLite: whole requests, from the
middleware to the last byte of HTML, in one process.

    python bench/web_pages.py [VERDICTS]

Goal: under 200 ms a page at p95 on two cores. Writes bench/results/web_pages.json, for another number of verdicts
web_pages_NUMBER.json. Each verdict is of an image of its own and has an entry in the log; a fifth of the images is
labelled, by three people, who agree on six of seven; a tenth waits. The first history pages after a start also begin
the drift test, and stand apart, as does the first page of agreement after a correction.
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
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.web.rows import image_row, verdict_row  # noqa: E402
from tests.web.support import PRODUCT, client_of, grey, made_site  # noqa: E402

from blemish.web import ledger  # noqa: E402
from blemish.web.site import Site  # noqa: E402
from blemish.web.tables import Correction, Image, now  # noqa: E402

GOAL = 0.2  # seconds
USUAL = 10_000  # verdicts
SOURCES = ("page", "webcam", "api", "folder line 3")


def fill(site: Site, count: int) -> None:
    """Verdicts over the last week, one in twenty an anomaly, as a version with 200 calibration images would give."""
    detector = site.line.inspect(grey(60), "first.png", PRODUCT, by="bench", source="page").detector_id
    draw, start = random.Random(0), datetime.now(UTC) - timedelta(days=7)
    for begin in range(0, count, 1000):
        with site.database.writing() as session:
            for number in range(begin, min(begin + 1000, count)):
                p, labelled = draw.random(), number % 5 == 0
                image = image_row(session, PRODUCT, number, label="good" if labelled else None)
                image.queue = None if labelled else 1.5 if number % 10 == 1 else 3 + p / 2
                image.split = "" if not labelled else "test" if number % 25 == 0 else "train"
                image.labelled_by = "ada" if labelled else ""
                verdict_row(
                    session,
                    image,
                    detector,
                    time=(start + timedelta(days=7) * number / count).isoformat(timespec="milliseconds"),
                    name=f"line 3/part-{number:05}.png",
                    source=draw.choice(SOURCES),
                    by="bench",
                    decision="anomaly" if p < 0.05 else "review" if p < 0.1 else "good",
                    score=100 - 50 * p,
                    p_value=round(p, 3),
                    regions=[{"box": [1, 1, 9, 9], "area": 64.0, "peak": 3.0, "p_value": p}] if p < 0.1 else [],
                )
                for by in ("carl", "ben", "ada") if labelled else ():
                    label(session, image, by, "anomaly" if by == "ben" and number % 7 == 0 else "good")
            session.expunge_all()


def label(session: Session, image: Image, by: str, said: str) -> None:
    before: dict[str, Any] = {"label": None, "defect": "", "shapes": [], "mask": "", "labelled_by": "", "queue": 1.5}
    row = Correction(image_id=image.id, time=now(), by=by, action="label", label=said, shapes=[], before=before)
    session.add(row)
    session.flush()
    ledger.append(session, row, row.time)


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
        "review": lambda: iter(["/review", "/review?show=rest", "/review?show=second"] * 33),
        "an image of the review": lambda: (f"/review/{draw.randrange(2, count)}" for _ in range(100)),
        "agreement": lambda: iter(["/review/agreement"] * 100),
        "detectors": lambda: iter(["/detectors"] * 50),
        "a version and its slider": lambda: iter(["/detectors/1"] * 50),
        "metrics": lambda: iter(["/metrics"] * 50),
        "API, 60 verdicts": lambda: (
            f"/api/v1/verdicts?limit=60&before={draw.randrange(100, count)}" for _ in range(100)
        ),
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else USUAL
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
        drawn = [seconds("/history")]
        while "still being counted" in client.get("/history").text:
            drawn.append(seconds("/history"))
        print(f"history while the drift test is behind: at most {1000 * max(drawn):.0f} ms")
        corrected = seconds("/review/agreement")
        print(f"agreement, first after a correction: {1000 * corrected:.0f} ms")
        for name, made in addresses(count).items():
            times = sorted(map(seconds, made()))
            found[name] = {
                "median": statistics.median(times),
                "p95": float(np.quantile(times, 0.95)),
                "most": times[-1],
                "count": len(times),
            }
            print(f"{name}: " + ", ".join(f"{k} {1000 * v:.0f} ms" for k, v in found[name].items() if k != "count"))
    result: dict[str, Any] = {
        "verdicts": count,
        "goal": GOAL,
        "cores": os.cpu_count(),
        "first history page": after_start,
    }
    result |= {"history while drift is behind": max(drawn), "agreement after a correction": corrected, **found}
    name = "web_pages" if count == USUAL else f"web_pages_{count}"
    (ROOT / f"bench/results/{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    slow = [name for name, times in found.items() if times["p95"] > GOAL]
    print("over the goal: " + ", ".join(slow) if slow else f"All pages are under {1000 * GOAL:.0f} ms at p95.")


if __name__ == "__main__":
    main()
