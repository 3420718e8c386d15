"""A bundle of an earlier day and what it said then (tests/golden, see make.py there): every version has to read it and
say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.inference.inspector import Inspector

GOLDEN = Path(__file__).resolve().parent / "golden"
EXPECTED: list[dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
RANGE = float(np.ptp([row["score"] for row in EXPECTED]))


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector(GOLDEN / "bundle", threads=1)


def test_it_is_small_and_says_all_there_is_to_say() -> None:
    assert sum(file.stat().st_size for file in (GOLDEN / "bundle").iterdir()) < 100_000
    assert {row["decision"] for row in EXPECTED} >= {"good", "anomaly"}
    assert any(row["boxes"] for row in EXPECTED)


@pytest.mark.parametrize("row", EXPECTED, ids=lambda row: row["image"])
def test_it_says_what_it_said(row: dict[str, Any], inspector: Inspector) -> None:
    look = inspector.look(GOLDEN / "images" / row["image"])
    assert look.map is not None
    assert look.verdict.score == pytest.approx(row["score"], abs=1e-3 * RANGE)
    assert look.verdict.decision == row["decision"]
    assert [list(region.box) for region in look.verdict.regions] == row["boxes"]
    np.testing.assert_allclose(look.map[::8, ::8], row["map"], atol=1e-3 * float(np.ptp(row["map"])) + 5e-5)
