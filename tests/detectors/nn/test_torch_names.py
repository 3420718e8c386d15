"""The names of torch that cut and differentiated graphs rest on, some of them private, are there in this release."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import blemish

NN = Path(blemish.__file__).parent / "detectors/nn"
# Reached through objects, so that reading the source does not show their modules.
INDIRECT = {
    "gradient_graph.py": ["torch.fx.experimental.sym_node.SymNode.maybe_as_int"],
    "graph_cut.py": [
        "torch.export.ExportedProgram.run_decompositions",
        "torch.fx.GraphModule.delete_all_unused_submodules",
    ],
}


def names_of_torch(file: Path) -> Iterator[str]:
    """Each dotted name of torch that a source file imports or uses, `aten` being short for `torch.ops.aten`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torch"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if re.fullmatch(r"(torch|aten)(\.\w+)+", name):
                yield name.replace("aten.", "torch.ops.aten.", 1) if name.startswith("aten.") else name


def resolve(name: str) -> Any:
    """What a dotted name stands for. Raises `ImportError` or `AttributeError` where there is no such thing."""
    found: Any = torch
    path = "torch"
    for part in name.split(".")[1:]:
        path += f".{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(path)
    return found


@pytest.mark.parametrize("file", ["graph_cut.py", "gradient_graph.py"])
def test_every_name_of_torch_is_there(file: str) -> None:
    names = {*names_of_torch(NN / file), *INDIRECT[file]}
    assert any("._" in name for name in names)  # private ones are among them
    missing = []
    for name in sorted(names):
        try:
            resolve(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing, (
        f"torch {version('torch')} has no {', '.join(missing)}, which detectors/nn/{file} rests on: "
        "rewrite that file for this release, or lower the cap on torch in pyproject.toml"
    )


def test_a_missing_name_is_noticed() -> None:
    for name in (
        "torch.ops.aten._no_such_operation.default",
        "torch.fx._no_such_module.x",
        "torch.fx.no_such_name",
    ):
        with pytest.raises((ImportError, AttributeError)):
            resolve(name)
