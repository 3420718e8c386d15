"""Soak test of `blemish watch`: it meets every kind of trouble while images come in, and must not lose or repeat any.

    python bench/soak.py [--images 20000] [--bundle demo/flange/bundle] [--data demo/data/flange]

Small images of the demo are written into a folder while the command runs: most at once, some under a hidden name and
then renamed, some in two halves, some broken, some with a name as long as the file system takes, some as links to a
folder elsewhere. Between them lie what is no image of its own: pipes, links to a device, links to images that are there
already, and to the folder itself. Early on, the journal is deleted, and later moved away and put back: each time the
process must end with 2, and is started again. Twice, at random times, it is killed with SIGKILL and started again.

A local web server receives the verdicts. Then the test checks that every file has exactly one line and nothing else
has, that broken files are errors, that the order is kept within each run, that every verdict was delivered, that the
verdict log has no problem, and how the memory of the process grew. Writes bench/results/soak.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.images import find_images
from blemish.station.chain import problems
from blemish.station.lines import read

HERE = Path(__file__).resolve().parent
AHEAD = 300  # images that wait to be inspected, at most
HALF = (0.2, 2.5)  # seconds between the halves of an image that is written slowly
GIVE_UP = 5.0
KINDS = {
    **{"at once": 0.68, "renamed": 0.1, "bmp": 0.05, "halves": 0.05, "cut": 0.01, "text": 0.005, "empty": 0.005},
    **{"long name": 0.05, "link": 0.05},
}
TRAPS = ("pipe", "device", "second name", "circle")  # none of them is an image of its own
TRAP = 0.02  # of the images are followed by one
BROKEN = {"cut", "text", "empty"}
NANO = 1e9
COUNTED = ("lost", "no_image_and_judged", "twice", "broken_and_not_error", "whole_and_error", "log_problems")


@dataclass
class Line:
    """The journal, read as it grows: the position in bytes and the number of complete lines."""

    file: Path
    place: int = 0
    count: int = 0

    def read(self) -> int:
        if self.file.exists():
            with self.file.open("rb") as lines:
                lines.seek(self.place)
                new = lines.read()
            whole = new[: new.rfind(b"\n") + 1]
            self.place, self.count = self.place + len(whole), self.count + whole.count(b"\n")
        return self.count


def receiver() -> tuple[ThreadingHTTPServer, Counter[str]]:
    """A web server that counts the ids that it receives."""
    ids: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ids[json.loads(self.rfile.read(int(self.headers["Content-Length"])))["id"]] += 1
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, ids


def encoded(data: Path, size: int = 256) -> list[dict[str, bytes]]:
    """Images of the demo, resized and encoded in each format: nine good ones for each defective one."""
    good, defective = find_images(data / "train/good")[:36], find_images(data / "test/scratch")[:4]
    pool = []
    for path in [*good, *defective]:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        kinds = {}
        for kind, options in (("png", {}), ("jpg", {"quality": 95}), ("bmp", {})):
            file = io.BytesIO()
            small.save(file, {"jpg": "JPEG"}.get(kind, kind.upper()), **options)
            kinds[kind] = file.getvalue()
        pool.append(kinds)
    return pool


def write(
    folder: Path, number: int, kind: str, pool: list[dict[str, bytes]], chance: random.Random
) -> tuple[str, bytes]:
    """Writes an image as its kind says; returns its name and the bytes that are still to be written."""
    ending = "bmp" if kind == "bmp" else "png" if kind in BROKEN or chance.random() < 0.7 else "jpg"
    content, name = chance.choice(pool)[ending], f"part{number}.{ending}"
    path = folder / name
    if kind == "long name":
        name = f"part{number}.{'é' * 119}.{ending}"[:255]
        path = folder / name
    if kind == "link":
        elsewhere = folder.with_name("elsewhere") / name
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)
    elif kind == "renamed":
        hidden = folder / f".{name}"
        hidden.write_bytes(content)
        hidden.rename(path)
    elif kind == "halves":
        half = chance.randrange(1, len(content) - 1)
        path.write_bytes(content[:half])
        return name, content[half:]
    else:
        broken = {"cut": content[: chance.randrange(1, len(content) - 20)], "text": b"no image\n", "empty": b""}
        path.write_bytes(broken.get(kind, content))
    return name, b""


def trap(folder: Path, number: int, kind: str, name: str) -> Path:
    """Puts something into the folder that has an image's name and is none of its own; `name` is an image there."""
    path = folder / f"trap{number}.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "second name": name, "circle": "."}[kind])
    return path


def resident(process: int) -> int:
    """VmRSS in kB; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text("ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


class Feed:
    """Writes images into the watched folder, never more than AHEAD of the journal."""

    def __init__(self, folder: Path, pool: list[dict[str, bytes]], chance: random.Random) -> None:
        self.folder, self.pool, self.chance = folder, pool, chance
        self.written: dict[str, str] = {}  # kind by name
        self.traps: Counter[str] = Counter()
        self.later: list[tuple[float, Path, bytes]] = []  # second halves: when, where, what

    def step(self, now: float, most: int) -> None:
        """Writes the second halves that are due, and new images until there are `most`."""
        for due, path, rest in [entry for entry in self.later if entry[0] <= now]:
            with path.open("ab") as file:
                file.write(rest)
            self.later.remove((due, path, rest))
        while len(self.written) < most:
            kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
            name, rest = write(self.folder, len(self.written), kind, self.pool, self.chance)
            self.written[name] = kind
            if self.chance.random() < TRAP and kind != "link":
                other = self.chance.choice(TRAPS)
                trap(self.folder, len(self.written), other, name)
                self.traps[other] += 1
            if rest:
                self.later.append((now + self.chance.uniform(*HALF), self.folder / name, rest))


def watch_command(folder: Path, out: Path, bundle: Path, port: int) -> list[str]:
    command = [sys.executable, "-m", "blemish", "watch", str(folder), "--bundle", str(bundle), "--out", str(out)]
    return [*command, "--give-up", str(GIVE_UP), "--threads", "1", "--webhook", f"http://127.0.0.1:{port}/"]


class Watched:
    """The process that watches, its memory and the ends of its runs."""

    def __init__(self, command: list[str], journal: Line) -> None:
        self.command, self.journal = command, journal
        self.runs: list[list[tuple[int, int]]] = []  # (lines, kB), once a second
        self.ends: list[int] = []  # lines at the end of each run
        self.begun = time.monotonic()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.sampled = time.monotonic()
        self.runs.append([])

    def sample(self, now: float) -> None:
        if self.process.poll() is not None:
            raise SystemExit(f"blemish watch ended by itself with {self.process.returncode}")
        if now - self.sampled > 1:
            self.sampled = now
            self.runs[-1].append((self.journal.count, resident(self.process.pid)))
            if len(self.runs[-1]) % 60 == 0:
                print(f"{self.journal.count} after {now - self.begun:.0f} s, {self.runs[-1][-1][1]} kB", flush=True)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        self.ends.append(self.journal.read())  # an incomplete line is cut off at the next start
        self.start()

    def deprive(self, put_back: bool) -> int:
        """Takes the journal away; returns the exit code that this ends the process with."""
        file, aside = self.journal.file, self.journal.file.with_name("aside")
        file.rename(aside)
        code = self.process.wait(60)
        assert self.process.stderr
        assert "was deleted or moved away" in self.process.stderr.read()
        assert not file.exists()
        self.process.communicate()
        if put_back:
            aside.rename(file)
            self.ends.append(self.journal.read())
        else:
            aside.unlink()
            self.journal.place = self.journal.count = 0
            self.ends, self.runs = [], []
        self.start()
        return code


def soak(folder: Path, out: Path, options: argparse.Namespace, pool: list[dict[str, bytes]]) -> dict[str, Any]:
    """Runs `blemish watch` while images come in, troubles it, and checks the journal."""
    chance = random.Random(options.seed)
    count = options.images
    kills = [chance.randint(count // 10, count * 3 // 10), chance.randint(count * 3 // 10, count // 2)]
    deleted, moved = count // 20, count * 3 // 5
    codes = list[int]()
    server, ids = receiver()
    feed = Feed(folder, pool, chance)
    journal = Line(out / "verdicts.jsonl")
    watched = Watched(watch_command(folder, out, options.bundle, server.server_port), journal)
    begun = watched.begun
    while journal.read() < count:
        now = time.monotonic()
        watched.sample(now)
        feed.step(now, min(count, journal.count + AHEAD))
        if not codes and journal.count >= deleted:
            codes.append(watched.deprive(put_back=False))
            ids.clear()  # a new journal: everything is inspected and delivered again
        elif len(codes) == 1 and journal.count >= moved:
            codes.append(watched.deprive(put_back=True))
        if kills and codes and journal.count >= kills[0]:
            kills.pop(0)
            watched.kill()
        time.sleep(0.02)
    took = time.monotonic() - begun
    time.sleep(GIVE_UP + 2)  # time for lines that should not come
    watched.process.send_signal(signal.SIGTERM)
    said = watched.process.communicate(timeout=60)[1]
    stopped = watched.process.returncode
    server.shutdown()
    rows = [json.loads(line) for line in journal.file.read_text("utf-8").splitlines()]
    log = read(journal.file)
    return {
        "images": count,
        "kinds": dict(Counter(feed.written.values())),
        "traps": dict(feed.traps),
        "runs_ended_at_line": watched.ends,
        "exit_codes_when_the_journal_was_deleted_and_moved": codes,
        "exit_code_at_sigterm": stopped,
        "seconds": round(took),
        **judged(rows, feed.written, watched.ends),
        "log_problems": sum(1 for _ in problems(log.entries, before=log.before)),
        "pipes_and_devices_not_named": feed.traps["pipe"] + feed.traps["device"] - said.count("no image file; it is"),
        "webhook": {"missing": len({row["id"] for row in rows} - set(ids)), "repeated": sum(ids.values()) - len(ids)},
        "memory_by_run": [grown(samples) for samples in watched.runs],
    }


def judged(rows: list[dict[str, Any]], written: dict[str, str], ends: list[int]) -> dict[str, Any]:
    """Counts the errors in the journal."""
    lines = Counter(row["name"] for row in rows)
    errors = {row["name"] for row in rows if row["decision"] == "error"}
    late, furthest = 0, 0.0
    for begin, end in zip([0, *ends], [*ends, len(rows)], strict=True):
        newest = (0, "")
        for row in rows[begin:end]:  # the order is known only of images that appeared complete
            if written.get(row["name"]) in ("at once", "renamed"):
                if (row["modified"], int(row["name"][4:].partition(".")[0])) < (newest[0], newest_number(newest[1])):
                    late, furthest = late + 1, max(furthest, (newest[0] - row["modified"]) / NANO)
                else:
                    newest = (row["modified"], row["name"])
    return {
        "lost": len(set(written) - set(lines)),
        "no_image_and_judged": len(set(lines) - set(written)),
        "twice": sum(many > 1 for many in lines.values()),
        "broken_and_not_error": len({name for name, kind in written.items() if kind in BROKEN} - errors),
        "whole_and_error": len({name for name in errors if written.get(name) not in BROKEN}),
        "decisions": dict(Counter(row["decision"] for row in rows)),
        "out_of_order": {"images": late, "furthest_seconds": round(furthest, 3)},
    }


def newest_number(name: str) -> int:
    return int(name[4:].partition(".")[0]) if name else -1


def grown(samples: list[tuple[int, int]]) -> dict[str, float]:
    """Growth of the resident memory in a run, without its first ten seconds."""
    lines, kilobytes = np.array(samples[10:] or samples).T
    quarter = max(1, len(kilobytes) // 4)
    slope = np.polyfit(lines, kilobytes, 1)[0] if len(set(lines)) > 1 else 0.0
    return {
        "images": int(lines[-1] - lines[0]),
        "first_quarter_mb": round(statistics.median(kilobytes[:quarter]) / 1024, 1),
        "last_quarter_mb": round(statistics.median(kilobytes[-quarter:]) / 1024, 1),
        "bytes_a_image": round(float(slope) * 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--bundle", type=Path, default=HERE.parent / "demo/flange/bundle")
    parser.add_argument("--data", type=Path, default=HERE.parent / "demo/data/flange")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="Seed of the images and of the times of the kills."
    )
    parser.add_argument("--results", type=Path, default=HERE / "results/soak.json")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"}
    pool = encoded(options.data)
    with tempfile.TemporaryDirectory() as home:
        folder, out = Path(home) / "in", Path(home) / "out"
        folder.mkdir()
        (folder.with_name("elsewhere")).mkdir()
        result = {"seed": options.seed, **soak(folder, out, options, pool)}
    wrong = [name for name in (*COUNTED, "pipes_and_devices_not_named") if result[name]]
    wrong += ["order"] if result["out_of_order"]["furthest_seconds"] > 2 else []
    wrong += ["webhook"] if result["webhook"]["missing"] or result["webhook"]["repeated"] > 3 else []
    wrong += ["exit code"] if result["exit_code_at_sigterm"] else []
    wrong += ["journal"] if result["exit_codes_when_the_journal_was_deleted_and_moved"] != [2, 2] else []
    result["wrong"] = wrong
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
