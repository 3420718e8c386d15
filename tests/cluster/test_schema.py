"""The columns of verdicts: by hand for each kind, as the documents say, and read by other programs."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blemish.cluster.schema import (
    SCHEMA,
    VERSION,
    map_columns,
    map_values,
    number_of,
    parquet,
    part,
    verdict_columns,
)
from blemish.types import Region, Verdict

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/cluster.md"
NOTHING = dict.fromkeys(("score", "threshold", "p_value", "width", "height", "probability", "defect", "error"))
REGIONS = (Region((1, 2, 30, 40), 500.5, 0.75, 0.01), Region((0, 0, 1, 1), 1.0, 0.5))


def verdicts() -> list[Verdict]:
    """One of each kind."""
    numbers: dict[str, Any] = {"threshold": 2.0, "size": (80, 60)}
    return [
        Verdict("a/1.png", "good", score=1.5, p_value=0.4, **numbers),
        Verdict("a/2.png", "anomaly", score=3.5, p_value=0.01, regions=REGIONS, **numbers),
        Verdict("b/3.png", "review", score=2.5, **numbers),
        Verdict("b/4.png", "error", error="b/4.png is empty (0 bytes); write or copy it again."),
        Verdict("b/5.png", "anomaly", score=9.0, probability=0.875, defect="crack", regions=REGIONS[:1], **numbers),
    ]


def rows() -> list[dict[str, Any]]:
    return [
        {"id": number, "uri": verdict.path, "source": verdict.path[0], **verdict_columns(verdict)}
        for number, verdict in enumerate(verdicts())
    ]


def test_the_names_of_parts() -> None:
    for number, name in {
        0: "part-000000.parquet",
        999_999: "part-999999.parquet",
        10**6: "part-1000000.parquet",
    }.items():
        assert part(number) == name
        assert number_of(name) == number
    wrong = (
        "part-1.parquet",
        "part-0000001.parquet",
        "part-.parquet",
        "part-00000a.parquet",
        "000001",
        ".part-000001.x",
    )
    assert [number_of(name) for name in (*wrong, "part-\u0661\u0661\u0661\u0661\u0661\u0661.parquet")] == [None] * 7


def test_the_columns_of_each_kind_of_verdict() -> None:
    good, anomaly, review, error, classified = map(verdict_columns, verdicts())
    measured = {**NOTHING, "threshold": 2.0, "width": 80, "height": 60}
    first = {"left": 1, "top": 2, "right": 30, "bottom": 40, "area": 500.5, "peak": 0.75, "p_value": 0.01}
    second = {"left": 0, "top": 0, "right": 1, "bottom": 1, "area": 1.0, "peak": 0.5, "p_value": None}
    assert good == {**measured, "decision": "good", "score": 1.5, "p_value": 0.4, "regions": []}
    assert anomaly == {**measured, "decision": "anomaly", "score": 3.5, "p_value": 0.01, "regions": [first, second]}
    assert review == {**measured, "decision": "review", "score": 2.5, "regions": []}
    sentence = "b/4.png is empty (0 bytes); write or copy it again."
    assert error == {**NOTHING, "decision": "error", "regions": [], "error": sentence}
    more = {"score": 9.0, "probability": 0.875, "defect": "crack", "regions": [first]}
    assert classified == {**measured, **more, "decision": "anomaly"}


def test_a_part_is_read_as_it_was_written() -> None:
    table = pq.read_table(io.BytesIO(parquet(rows())))
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table.schema.metadata == {b"blemish verdicts": str(VERSION).encode()}
    absent = dict.fromkeys(SCHEMA.names)
    assert table.to_pylist() == [{**absent, **row} for row in rows()]
    assert pq.read_table(io.BytesIO(parquet([]))).schema.equals(SCHEMA)
    with pytest.raises(pa.ArrowException):
        parquet([{"id": "text"}])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.25, 1e-3), (1e-8, 2e-8), (0.0, 5e4), (2.0, 2.0), (-1e30, 1e30)]
)
def test_a_map_is_right_to_half_a_step(low: float, high: float) -> None:
    values = np.random.default_rng(0).uniform(low, high, (37, 53)).astype(np.float32)
    values[0, 0], values[-1, -1] = low, high
    columns = map_columns(values)
    assert (columns["map_low"], columns["map_high"]) == (values.min(), values.max())
    with Image.open(io.BytesIO(columns["map"])) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "I;16", (53, 37))
    (row,) = pq.read_table(io.BytesIO(parquet([{"id": 0, **columns}]))).to_pylist()
    back = map_values(row["map"], row["map_low"], row["map_high"])
    assert back.dtype == np.float32
    assert back.shape == values.shape
    bound = (float(values.max()) - float(values.min())) / 131070
    rounding = float(np.spacing(np.abs(values).max()))  # of a float32
    assert np.abs(back.astype(np.float64) - values).max() <= bound + rounding
    assert (back[0, 0], back[-1, -1]) == (values[0, 0], values[-1, -1])


def test_the_document_has_every_column_with_its_type() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.partition("\n## Columns\n")[2].partition("\n## ")[0]
    stated = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE))
    types = {field.name: "list of struct" if field.name == "regions" else str(field.type) for field in SCHEMA}
    assert stated == types
    assert list(stated) == SCHEMA.names
    assert f"The version of these columns is {VERSION};" in text
    said = re.search(r"^\| `regions` .*", table, re.MULTILINE)
    assert said
    assert all(f"`{field.name}`" in said[0] for field in SCHEMA.field("regions").type.value_type)


def test_the_document_says_what_is_never_null() -> None:
    table = DOCUMENT.read_text(encoding="utf-8").partition("\n## Columns\n")[2].partition("\n## ")[0]
    never = set(re.findall(r"^\| `(\w+)` .*\| never[^|]*\|$", table, re.MULTILINE))
    assert never == {"id", "uri", "source", "decision", "regions", "bundle", "seconds", "node"}
    written = [{name for name, value in row.items() if value is not None} for row in rows()]
    assert set.intersection(*written) == never - {"bundle", "seconds", "node"}  # which the worker adds


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`results/verdicts` with the rows in two parts, and the second part ten times as much."""
    (tmp_path / "results/verdicts").mkdir(parents=True)
    first, rest = rows()[:2], rows()[2:]
    (tmp_path / "results/verdicts" / part(0)).write_bytes(parquet(first))
    (tmp_path / "results/verdicts" / part(1)).write_bytes(parquet(rest * 10))
    monkeypatch.chdir(tmp_path)


def example(library: str) -> dict[str, Any]:
    """Runs the document's example that imports a library; its names."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if block.startswith(f"import {library}")]
    names: dict[str, Any] = {}
    exec(compile(code, f"docs/cluster.md, {library}", "exec"), names)
    return names


@pytest.mark.usefixtures("results")
def test_pandas_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    verdicts = example("pandas")["verdicts"]
    assert Counter(verdicts["decision"]) == {"good": 1, "anomaly": 11, "review": 10, "error": 10}
    printed = capsys.readouterr().out
    assert re.search(r"^b +anomaly +10$", printed, re.MULTILINE)
    assert printed.count("b/5.png") == 10


@pytest.mark.usefixtures("results")
def test_duckdb_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb")
    names = example("duckdb")
    assert sorted(names["anomalies"].fetchall()) == [("a", 2, 1), ("b", 30, 10)]
    regions = names["regions"]
    assert regions.columns == ["id", "uri", "left", "top", "right", "bottom", "area", "peak", "p_value"]
    expected: list[tuple[Any, ...]] = [(4, "b/5.png", 1, 2, 30, 40, 500.5, 0.75, 0.01)] * 10
    expected += [(1, "a/2.png", 1, 2, 30, 40, 500.5, 0.75, 0.01), (1, "a/2.png", 0, 0, 1, 1, 1.0, 0.5, None)]
    assert Counter(regions.fetchall()) == Counter(expected)
    assert "anomalies" in capsys.readouterr().out


@pytest.mark.usefixtures("results")
def test_polars_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("polars")
    names = example("polars")
    sentence = "b/4.png is empty (0 bytes); write or copy it again."
    assert names["errors"].rows() == [("b/4.png", sentence)] * 10
    assert names["regions"].columns == ["uri", "left", "top", "right", "bottom", "area", "peak", "p_value"]
    assert Counter(names["regions"]["uri"]) == {"a/2.png": 2, "b/5.png": 10}
    assert "b/4.png" in capsys.readouterr().out
