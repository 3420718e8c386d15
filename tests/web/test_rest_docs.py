"""The examples of docs/page-rest.md do what the document says, against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests import tiny
from tests.web.kill import Server
from tests.web.support import grey

PAGE = Path(__file__).resolve().parents[2] / "docs/page-rest.md"
WRITTEN = "http://127.0.0.1:8477"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_examples_run(tmp_path: Path) -> None:
    for name, value in (("part.png", 130), ("one.png", 60), ("two.png", 95)):
        (tmp_path / name).write_bytes(grey(value))
    bundle = tiny.made(tmp_path / "bundle", product="flange")
    with Server(tmp_path / "data", bundle) as server:
        (program,) = blocks("python")
        told = [run([sys.executable, "-c", program.replace(WRITTEN, server.url)], tmp_path) for _ in range(2)]
        assert told[0] == told[1]  # the same key: the same verdict
        assert told[0].startswith("anomaly 0.25 [(" if "[(" in told[0] else "anomaly 0.25 [[")
        assert (tmp_path / "overlay.jpg").read_bytes().startswith(b"\xff\xd8")
        shell = blocks("sh")[0].replace(WRITTEN, server.url)
        answers = run(["sh", "-ec", shell.replace("curl ", "curl -sS ")], tmp_path)
        decoder, found, at = json.JSONDecoder(), list[str](), 0
        while at < len(answers.strip()):
            rows, at = decoder.raw_decode(answers, at)
            found += [row["decision"] for row in rows]
        assert found == ["anomaly", "good", "review"]
        server.stop()


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
