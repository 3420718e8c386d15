"""The rules of the house, checked on the source: small files, two folder levels, imports that point down, no cycles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "src/blemish"
SOURCES = sorted(HOUSE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# What only the learning half may load: none of it is in the base install.
LEARNING = {"torch", "torchvision", "timm", "safetensors", "sklearn", "scipy", "onnx", "onnxscript", "lightning_fabric"}
LEARN = {"cli", "demo", "training", "detectors"}  # rooms that may
# What only the page may load: `pip install 'blemish[web]'`.
WEB = {"fastapi", "starlette", "uvicorn", "anyio", "sqlalchemy", "alembic", "argon2", "prometheus_client", "psycopg"}


def imported(file: Path, *, top: bool = False) -> Iterator[str]:
    """Every module that a file imports anywhere, in functions too (but with `top`), not for type checkers alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hidden = node.body
        else:
            hidden = node.body if top and isinstance(node, ast.FunctionDef) else []
        skipped |= {id(inner) for statement in hidden for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            # `from blemish import images` may import a module, `from blemish.types import Sample` a name of one.
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    names = {".".join(("blemish", *file.relative_to(HOUSE).with_suffix("").parts)): file for file in SOURCES}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def rooms() -> dict[str, int]:
    """The rooms as docs/architecture.md lists them, from the top of the house to its ground."""
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("| room |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)(?:\.py|/)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    return {room: number for number, row in enumerate(rows) for room in row}


def room_of(file: Path) -> str:
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", [*SOURCES, *sorted((ROOT / "tools").rglob("*.py"))], ids=lambda f: f.name)
def test_files_stay_under_400_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_two_folder_levels_at_most() -> None:
    deep = [f for f in HOUSE.rglob("*") if len(f.relative_to(HOUSE).parts) > 3 and "__pycache__" not in f.parts]
    assert not deep


def test_imports_point_down_the_list_of_rooms() -> None:
    place = rooms()
    assert set(place) == {room_of(file) for file in SOURCES} - {"__init__"}, "docs/architecture.md lists the rooms"
    for file in SOURCES:
        for module in imported(file):
            package, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if package == "blemish" and target in place and room_of(file) != "__init__":
                assert place[target] >= place[room_of(file)], f"{file}: imports {target}, which stands above it"


def test_no_circle_among_modules() -> None:
    """At import time. Imports inside functions are only checked against the order of the rooms."""
    known = modules()
    arrows = {name: {m for m in imported(file, top=True) if m in known and m != name} for name, file in known.items()}
    for name in list(arrows):
        arrows[name] -= {".".join(name.split(".")[:-1])}  # a package that holds the module
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as circle:
        raise AssertionError(" -> ".join(circle.args[1])) from None


def test_only_the_learning_half_imports_what_only_learning_needs() -> None:
    for file in SOURCES:
        if room_of(file) not in LEARN:
            assert not {module.partition(".")[0] for module in imported(file, top=True)} & LEARNING, file


def test_only_the_page_imports_what_only_the_page_needs() -> None:
    """And the page is loaded by its command alone, when that is called."""
    for file in SOURCES:
        if room_of(file) == "web":
            continue
        assert not {module.partition(".")[0] for module in imported(file)} & WEB, file
        page = {module for module in imported(file, top=room_of(file) == "cli") if module.startswith("blemish.web")}
        assert not page, f"{file}: imports {page}"


def test_tests_mirror_the_source() -> None:
    """tests/inference/test_bundle.py tests inference/bundle.py; what stands at the top of tests/ is about the whole."""
    for file in TESTS:
        folder, name = file.relative_to(ROOT / "tests").parent, file.name
        if not name.startswith("test_") or folder == Path() or folder.parts[0] in ("golden", "tools", "bench"):
            continue
        assert (HOUSE / folder).is_dir(), f"{file}: there is no room {folder}"
