from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from blemish.cluster import summary
from blemish.cluster.places import place
from blemish.cluster.plan import Plan
from blemish.cluster.schema import parquet, part
from blemish.cluster.summary import Summary, earlier, summed, with_errors
from blemish.inference.drift import Drift
from blemish.types import BlemishError, silent
from tests import tiny

SCORES = tuple(float(score) for score in range(100))  # of the calibration images
FACTS: dict[str, Any] = {"seconds": 5.0, "resumed": 1, "first": 2.0, "memory": 3, "rate": 4.0}
PER_FILE = 50


def card_of() -> Any:
    known = {"scores": SCORES, "threshold": 98.5, "review": None, "review_threshold": None}
    return tiny.card(decision=tiny.card().decision.model_copy(update=known))


def written(out: Path, scores: list[float | None], source: str = "a", node: str = "n/1") -> Plan:
    """A run's folder whose images have these scores; None is an error."""
    rows = [
        {
            "id": number,
            "uri": f"{number}.png",
            "source": source,
            "decision": "error" if score is None else "anomaly" if score > 98.5 else "good",
            "score": score,
            "error": f"{number}.png is broken" if score is None else None,
            "seconds": 0.5,
            "node": node if number % 2 else "n/2",
            "bundle": "b",
        }
        for number, score in enumerate(scores)
    ]
    files = -(-len(rows) // PER_FILE)
    for number in range(files):
        content = parquet(rows[number * PER_FILE : (number + 1) * PER_FILE])
        place(str(out)).write(f"verdicts/{part(number)}", content)
    asked = Plan(bundle="b", source="s", column="", maps=False, overlays=False, max_pixels=1, timeout=1.0)
    return replace(asked, rows=len(rows), per_file=PER_FILE, files=files, sources={source: len(rows)})


def of(plan: Plan, out: Path) -> Summary:
    return summed(plan, place(str(out)), card_of(), FACTS, silent)


def test_counts_nodes_and_errors(tmp_path: Path) -> None:
    found = of(written(tmp_path, [1.0] * 60 + [99.0] * 30 + [None] * 11), tmp_path)
    assert found.counts == {"good": 60, "anomaly": 30, "error": 11}
    assert found.images == 101
    assert {name: found.sources["a"][name] for name in found.counts} == found.counts
    assert found.errors == [f"{number}.png is broken" for number in range(90, 95)]
    assert found.nodes == {"n/2": {"images": 51, "seconds": 0.5}, "n/1": {"images": 50, "seconds": 0.5}}
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert replace(found, nodes={"x": {"seconds": 1.0}, "y": {"seconds": 2.0}}).slowest == "y"
    assert replace(found, nodes={"x": {"seconds": 1.0}}).slowest is None


@pytest.mark.parametrize("ranked", [10_000, 70])
def test_drift_is_that_of_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranked: int) -> None:
    """As `Drift` says it of the same scores; of more than RANKED images, every second, third ... is ranked."""
    monkeypatch.setattr(summary, "RANKED", ranked)
    random = np.random.default_rng(5)
    for name, scores in {
        "same": random.uniform(0, 98, 200).tolist(),
        "worse": random.uniform(70, 98, 200).tolist(),
    }.items():
        found = of(written(tmp_path / name, scores), tmp_path / name)
        test = Drift(SCORES, threshold=98.5)
        every = 1 if ranked > 200 else 3
        for score in scores[::every]:
            test.see(score)
        more = f" Every {every}. image was ranked." if every > 1 else ""
        assert found.sources["a"]["drift"] == test.sentence() + more
        assert found.sources["a"]["drift_alarm"] == (name == "worse")


def test_the_summary_of_before_is_read_again(tmp_path: Path) -> None:
    assert earlier(place(str(tmp_path))) is None
    found = of(written(tmp_path, [1.0]), tmp_path)
    assert earlier(place(str(tmp_path))) == found


def test_parts_that_hold_an_error(tmp_path: Path) -> None:
    plan = written(tmp_path, [1.0] * 60 + [None] + [1.0] * 60)
    assert with_errors(plan, place(str(tmp_path)), {0, 1, 2}, silent) == {1}
    assert with_errors(plan, place(str(tmp_path)), {0, 2}, silent) == set()


def test_sources_that_are_not_told_apart_are_one(tmp_path: Path) -> None:
    plan = replace(written(tmp_path, [1.0] * 3, source="x"), sources={"a": 1, "others": 3})
    assert of(plan, tmp_path).sources["others"]["good"] == 3


def test_a_part_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    plan = written(tmp_path, [1.0] * 120)
    first, second = tmp_path / "verdicts" / part(0), tmp_path / "verdicts" / part(1)
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(BlemishError, match=r"part-000001.parquet does not hold the images of its plan; delete it"):
        of(plan, tmp_path)
    second.write_bytes(content[:-9])
    with pytest.raises(BlemishError, match=r"part-000001.parquet is damaged \(.*\); delete it and run it again\."):
        of(plan, tmp_path)
    foreign = replace(plan, bundle="c")
    second.write_bytes(content)
    with pytest.raises(BlemishError, match=r"part-000000.parquet does not hold the images of its plan"):
        of(foreign, tmp_path)
    second.unlink()
    with pytest.raises(BlemishError, match=r"part-000001.parquet"):
        of(plan, tmp_path)
    second.write_bytes(content)
    assert of(plan, tmp_path).images == 120
