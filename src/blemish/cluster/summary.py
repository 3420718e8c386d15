"""The end of a run: every part is read again, each id counted, and the figures that people ask for first."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blemish.cluster.ahead import ahead
from blemish.cluster.places import Place, reason_of
from blemish.cluster.plan import OTHERS, SUMMARY, VERDICTS, Plan
from blemish.cluster.schema import part
from blemish.inference.bundle import Card
from blemish.inference.drift import Drift, drift_of
from blemish.types import BlemishError, Progress

RANKED = 10_000  # scores of a source that the drift test ranks at most; of more, every second, third ...
_READ = ("id", "source", "decision", "score", "seconds", "node", "error", "bundle")
SHOWN = 5  # errors


@dataclass(frozen=True)
class Summary:
    """What a run found. `drift` has a sentence and an alarm for each source, None where the bundle supports no drift
    test; `nodes` images and mean seconds of an image by node; `errors` the first error texts."""

    images: int
    counts: dict[str, int]
    sources: dict[str, dict[str, Any]]
    nodes: dict[str, dict[str, float]]
    errors: list[str]
    left_out: dict[str, int]
    files: int
    resumed: int  # parts that an earlier run had written
    seconds: float  # of this run, without planning
    first: float | None  # seconds to the first image
    rate: float | None  # images a second of this run, from the first one
    memory: int  # bytes of the largest worker

    @property
    def slowest(self) -> str | None:
        """The node with the highest mean time of an image; None where there is only one."""
        if len(self.nodes) < 2:
            return None
        return max(self.nodes, key=lambda node: self.nodes[node]["seconds"])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "slowest": self.slowest}


def summed(plan: Plan, out: Place, card: Card, facts: dict[str, Any], progress: Progress) -> Summary:
    """Reads the parts, and writes `summary.json`. Raises `BlemishError` where an id is missing or twice, and where a
    part is damaged."""
    counts, by_source = Counter[str](), dict[str, Counter[str]]()
    nodes, errors = dict[str, list[float]](), list[str]()
    tests: dict[str, tuple[Drift, int]] = {}
    expected = 0
    for number, rows in progress(_parts(range(plan.files), out), "summing up", plan.files):
        size = plan.images_in(number)
        if rows["id"] != list(range(expected, expected + size)) or set(rows["bundle"]) != {plan.bundle}:
            raise BlemishError(
                f"{out.at(VERDICTS)}/{part(number)} does not hold the images of its plan; delete it and run it again."
            )
        expected += size
        counts.update(rows["decision"])
        for named, decision, score in zip(rows["source"], rows["decision"], rows["score"], strict=True):
            source = named if named in plan.sources else OTHERS
            seen = by_source.setdefault(source, Counter())
            seen[decision] += 1
            _rank(source, score, seen.total(), plan, card, tests)
        for node, spent in zip(rows["node"], rows["seconds"], strict=True):
            total = nodes.setdefault(node, [0, 0.0])
            total[0] += 1
            total[1] += spent
        errors += [error for error in rows["error"] if error][: SHOWN - len(errors)]
    summary = Summary(
        images=expected,
        counts=dict(counts),
        sources={name: {**of, **_drift(tests.get(name))} for name, of in sorted(by_source.items())},
        nodes={node: {"images": images, "seconds": spent / images} for node, (images, spent) in nodes.items()},
        errors=errors,
        left_out=plan.left_out,
        files=plan.files,
        resumed=facts["resumed"],
        seconds=facts["seconds"],
        first=facts["first"],
        rate=facts.get("rate"),
        memory=facts["memory"],
    )
    out.write(SUMMARY, (json.dumps(summary.to_json(), indent=1) + "\n").encode())
    return summary


def earlier(out: Place) -> Summary | None:
    """The summary of a run that came to its end; None where there is none."""
    try:
        content = json.loads(out.read(SUMMARY))
        return Summary(**{field.name: content[field.name] for field in fields(Summary)})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def with_errors(plan: Plan, out: Place, done: Collection[int], progress: Progress) -> set[int]:
    """Those of the parts that hold an error."""
    read = progress(_parts(sorted(done), out), f"looking for errors in {plan.files} files", len(done))
    return {number for number, rows in read if "error" in rows["decision"]}


def _parts(numbers: Iterable[int], out: Place) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """The parts in their order, of which some are read ahead."""
    system, path = out.system()

    def read(number: int) -> tuple[int, dict[str, list[Any]]]:
        name = f"{VERDICTS}/{part(number)}"
        try:
            with system.open_input_file(f"{path}/{name}") as file:
                return number, pq.read_table(file, columns=list(_READ)).to_pydict()
        except (OSError, pa.ArrowException) as cause:
            raise BlemishError(f"{out.at(name)} is damaged ({reason_of(cause)}); delete it and run it again.") from None

    return ahead(numbers, read)


def _rank(
    source: str, score: float | None, number: int, plan: Plan, card: Card, tests: dict[str, tuple[Drift, int]]
) -> None:
    """Gives a source's score to its drift test, where it is its turn: which ones are ranked does not depend on them,
    so the test stays what it is."""
    if score is None:
        return
    every = math.ceil(plan.sources.get(source, 1) / RANKED)
    if (number - 1) % every:
        return
    if source not in tests:
        if (test := drift_of(card.decision)) is None:
            return
        tests[source] = (test, every)
    tests[source][0].see(score)


def _drift(test: tuple[Drift, int] | None) -> dict[str, Any]:
    if test is None:
        return {"drift": None, "drift_alarm": False}
    drift, every = test
    ranked = f" Every {every}. image was ranked." if every > 1 else ""
    return {"drift": drift.sentence() + ranked, "drift_alarm": drift.state.alarm}
