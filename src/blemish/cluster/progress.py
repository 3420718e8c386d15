"""How far a run is: what its workers have reported, and the parts that are done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blemish.cluster.plan import Plan
from blemish.cluster.schema import part
from blemish.types import DECISIONS

LEAST = 2.0  # seconds after which a rate says something


@dataclass(frozen=True)
class Standing:
    """How far a run is. `rate` is images a second, 0 where that is not known yet; `left` is seconds; `workers` is how
    many have reported."""

    done: int
    total: int
    errors: int
    anomalies: int
    rate: float
    left: float | None
    workers: int
    waiting: str = ""  # why no worker can start yet


class Count:
    """What this run has done of the parts `todo`; `begun` is when it began, by `time.monotonic`.

    `running` are the last reports of the workers, see `worker.Board`; `first` is how many seconds passed until the
    first image was reported, and `memory` the bytes of the largest worker.
    """

    def __init__(self, plan: Plan, todo: Sequence[int], begun: float) -> None:
        self.plan, self.todo, self.begun = plan, todo, begun
        self.parts, self.memory = 0, 0
        self.running: dict[str, dict[str, Any]] = {}
        self.first: float | None = None
        self._known = Counter[str]()  # verdicts of parts that are done
        self._finished = set[int]()
        self._before = plan.rows - sum(map(plan.images_in, todo))
        self._last = self._at_first = 0

    def see(self, row: dict[str, Any]) -> bool:
        """Counts a part that was done, if there is one. Whether anything was done since the last call."""
        if row:
            self._finished.add(row["part"])
            self._known.update({kind: row[kind] for kind in DECISIONS})
            self.parts += 1
            self.memory = max(self.memory, row["memory"])
        now = self._counts().total()
        moved, self._last = now != self._last, now
        if self.first is None and now:
            self.first, self._at_first = time.monotonic() - self.begun, now
        return moved

    def _counts(self) -> Counter[str]:
        counts = Counter(self._known)
        # Of a part that was begun twice, one report is enough.
        at_work = {told["part"]: told for told in self.running.values() if told["part"] not in self._finished}
        for told in at_work.values():
            counts.update({kind: told.get(kind, 0) for kind in DECISIONS})
        return counts

    def at_work(self) -> str:
        """The parts that were reported and are not done, in words."""
        parts = sorted({told["part"] for told in self.running.values()} - self._finished)
        return f"at work: {', '.join(map(part, parts[:5]))}" if parts else ""

    def _rate(self, done: int) -> float:
        """Images a second since the first report, without its own images; 0 as long as that is `LEAST` seconds ago."""
        since = time.monotonic() - self.begun - (self.first or 0.0)
        return (done - self._at_first) / since if self.first is not None and since > LEAST else 0.0

    def standing(self, waiting: str = "") -> Standing:
        counts = self._counts()
        done = counts.total()
        rate, rest = self._rate(done), self.plan.rows - self._before - done
        return Standing(
            done=self._before + done,
            total=self.plan.rows,
            errors=counts["error"],
            anomalies=counts["anomaly"],
            rate=rate,
            left=rest / rate if rate else None,
            workers=len(self.running),
            waiting=waiting,
        )

    def facts(self) -> dict[str, Any]:
        """What the summary says of this run."""
        return {"first": self.first, "memory": self.memory, "rate": self._rate(self._counts().total()) or None}
