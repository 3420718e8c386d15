"""`blemish serve` as a process of its own, which can be killed at any moment and started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

BLEMISH = (sys.executable, "-m", "blemish", "serve")
PATIENCE = 60.0  # seconds: two trainings may have the processors
MARK = "BLEMISH_TESTS_SERVER"  # a variable of the environment, by which a server's processes are known


class Server:
    """A server on the loopback interface, from the `with` to its end, where it and all its processes are killed.

    `blemish serve --data DATA ARGUMENTS --port 0`. Inside the `with` it is ready: `/readyz` has answered 200. `url` has
    no slash at its end. What it prints goes to a file, as where it runs as a service: nothing may wait in a buffer.
    """

    def __init__(self, data: Path, *arguments: object, program: Sequence[str | Path] = BLEMISH) -> None:
        self.command = [*map(str, program), "--data", str(data), *map(str, arguments)]
        self.url, self._port = "", 0
        self._mark = uuid.uuid4().hex
        self._log = data.with_name(f"{data.name}-{self._mark[:8]}.log")

    def __enter__(self) -> Server:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        """The first time on any free port; after `kill` or `stop` again on the same one, so that open pages find it."""
        with self._log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [*self.command, "--port", str(self._port)],
                env={**os.environ, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Where the tests run in a shell's background, Ctrl-C is ignored, and children would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        deadline = time.monotonic() + PATIENCE
        while not self._ready(begin):
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.said()}"
            assert time.monotonic() < deadline, f"not ready within {PATIENCE:g} s: {self.said()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, of the server's own process only: what it started lives on, as when the kernel ends a process that
        takes too much memory."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM. Fails where it does not end within 20 seconds, or not as the program ends on a signal."""
        self.process.terminate()
        code = self.process.wait(20)
        assert code in (0, 128 + signal.SIGTERM), f"it ended with {code}: {self.said()}"

    def said(self) -> str:
        """All that it has printed, on standard output and standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def children(self) -> list[int]:
        """The ids of the living processes that it, or an earlier one of this `with`, has started."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended, or is another user's
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return [process for process in found if process != self.process.pid]

    def _ready(self, begin: int) -> bool:
        with self._log.open("rb") as log:
            log.seek(begin)
            said = log.read().decode(errors="replace")
        address = re.search(r"^blemish: (http://[^\s/]+:(\d+))/?\s", said, re.MULTILINE)
        if not address:
            return False
        self.url, self._port = address[1], int(address[2])
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with directly.open(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as not_yet:
            not_yet.close()
        except OSError:
            pass
        return False

    def _end(self) -> None:
        if hasattr(self, "process"):
            if self.process.poll() is None:
                self.kill()
            for process in self.children():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
