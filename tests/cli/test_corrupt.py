"""`blemish corrupt` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blemish.data.layouts import read
from tests.data.test_synthetic import digits
from tests.support import blemish
from tests.test_imports import loaded_by


def test_it_prints_what_was_written_and_the_next_command(product: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = blemish("corrupt", product, "-o", out, "--kinds", "crop, rectangle", "--train", 10, "--test", 4).stdout
    assert [line.split() for line in printed.splitlines()[:-1]] == [
        ["test/crop", "1"],
        ["test/good", "2"],
        ["test/rectangle", "1"],
        ["train/good", "10"],
    ]
    assert printed.splitlines()[-1] == f"Written to {out}. Next: blemish train {out} -o RUN"
    refusal = blemish("corrupt", product, "-o", out, code=2).stderr
    assert "--overwrite" in refusal
    card = json.loads(blemish("corrupt", product, "-o", out, "--overwrite", "--json").stdout)
    assert card["counts"]["train/good"] == 40
    assert len(read(out).samples) == sum(card["counts"].values()) == 46


def test_one_class_of_idx_files_and_refusals(product: Path, tmp_path: Path) -> None:
    data = digits(tmp_path / "digits")
    assert "classes 0, 3, 7" in blemish("corrupt", data, "-o", tmp_path / "out", code=2).stderr
    assert "train/good            6" in blemish("corrupt", data, "-o", tmp_path / "out", "--one-class", 7).stdout
    assert "'dent'" in blemish("corrupt", product, "-o", tmp_path / "b", "--kinds", "dent", code=2).stderr
    assert "no idx files" in blemish("corrupt", product, "-o", tmp_path / "b", "--one-class", 7, code=2).stderr


def test_fashion_mnist_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are in the cache; if there is a folder of that name, it is used instead."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    from blemish.data.fashion_mnist import cache_folder

    digits(cache_folder() / "fashion-mnist")
    monkeypatch.chdir(tmp_path)
    blemish("corrupt", "fashion-mnist", "-o", "out", "--one-class", 3)
    assert len(read(tmp_path / "out").samples) == 11
    digits(tmp_path / "fashion-mnist", counts=(4, 2))
    blemish("corrupt", "fashion-mnist", "-o", "own", "--one-class", 3)
    assert len(read(tmp_path / "own").samples) == 6


def test_neither_torch_nor_onnxruntime_is_loaded(product: Path, tmp_path: Path) -> None:
    arguments = ["corrupt", str(product), "-o", str(tmp_path / "out")]
    call = f"try:\n    blemish.cli.app.app({arguments!r})\nexcept SystemExit as done:\n    assert not done.code"
    loaded = loaded_by(f"import blemish.cli.app\n{call}")
    assert not loaded & {"torch", "torchvision", "onnxruntime", "timm", "scipy", "sklearn"}
    assert (tmp_path / "out").is_dir()
