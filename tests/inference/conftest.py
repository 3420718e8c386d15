"""The inspector of the tiny product, its evidence store, and the inspection of a defective tile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from blemish import Inspector
from blemish.inference.evidence import open_store
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection
from tests.conftest import tile
from tests.support import write_image


@pytest.fixture(scope="package")
def inspector(run: Path) -> Inspector:
    return Inspector(run, threads=1)


@pytest.fixture(scope="package")
def store(inspector: Inspector) -> EvidenceStore:
    store = open_store(inspector)
    assert store is not None
    return store


@pytest.fixture(scope="package")
def defective(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    """Of a tile with a spot at (20, 30) to (32, 42), top and left first."""
    return inspector.look(write_image(tmp_path_factory.mktemp("new") / "a.png", tile(999, (20, 30))[0]))


def with_outputs(inspection: Inspection, **changes: npt.NDArray[Any] | None) -> Inspection:
    """The same inspection with other outputs of the graph."""
    assert inspection.prediction is not None
    return replace(inspection, prediction=replace(inspection.prediction, **changes))  # type: ignore[arg-type]


def far_from(inspection: Inspection) -> npt.NDArray[np.bool_]:
    """Pixels three cells and more away from the box of the one region; a cell is 2.5 pixels wide."""
    (region,) = inspection.verdict.regions
    left, top, right, bottom = region.box
    assert inspection.image is not None
    far = np.ones(inspection.image.shape[:2], bool)
    far[max(0, top - 8) : bottom + 8, max(0, left - 8) : right + 8] = False
    assert far.mean() > 0.2
    return far
