from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.layouts import read
from blemish.demo.line import DemoError
from blemish.demo.panel import DEFECTS, draw, write_panel
from blemish.inference.regions import components
from tests.support import blemish, refused

SMALL = (800, 600)


def test_a_plate_is_reproducible_and_its_mask_is_what_the_defects_changed() -> None:
    good, no_mask = draw(3, size=SMALL)
    assert good.shape == (600, 800, 3)
    assert not no_mask.any()
    np.testing.assert_array_equal(good, draw(3, size=SMALL)[0])
    assert (good != draw(4, size=SMALL)[0]).any()
    for kind in DEFECTS:
        bad, mask = draw(3, defects=(kind,), size=SMALL)
        changed = (bad != good).any(2)
        assert mask.any()
        assert not (mask & ~changed).sum() > 0.1 * mask.sum()  # gaps are filled
        rows, columns = np.nonzero(mask)
        assert 6 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 60
        around = np.zeros_like(mask)
        around[max(0, rows.min() - 12) : rows.max() + 12, max(0, columns.min() - 12) : columns.max() + 12] = True
        assert not (changed & ~around).any()
        assert components(mask)[1] <= 12


def test_plates_are_drawn_once_and_read_as_mvtec(tmp_path: Path) -> None:
    folder = write_panel(tmp_path, train=2, good=1, defective=1, size=SMALL)
    dataset = read(folder)
    assert dataset.layout == "mvtec"
    assert len(dataset.samples) == 3 + len(DEFECTS)
    for sample in dataset.samples:
        if sample.label == "anomaly":
            assert sample.mask
            assert np.asarray(Image.open(sample.mask)).max() == 255
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.jpg")}
    assert write_panel(tmp_path, train=3, good=1, defective=1, size=SMALL) == folder
    after = {file: file.stat().st_mtime_ns for file in folder.rglob("*.jpg")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    with pytest.raises(DemoError, match="drawn with"):
        write_panel(tmp_path, seed=1, size=SMALL)
    with pytest.raises(DemoError, match="no defect 'dent'"):
        draw(0, defects=("dent",), size=SMALL)


def test_the_command_draws_one_product(tmp_path: Path) -> None:
    printed = blemish("demo", "--draw", "panel", "--quick", "-o", tmp_path / "demo")
    assert len(list((tmp_path / "demo/data/panel/train/good").iterdir())) == 20
    assert "Next: blemish train" in printed.stdout
    assert sorted(file.name for file in (tmp_path / "demo").iterdir()) == [".blemish", "data"]
    assert "--draw takes flange, cloth, board or panel, not 'x'" in refused(
        "demo", "--draw", "x", "-o", tmp_path / "demo"
    )
