from __future__ import annotations

import errno
import os
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import typer

from blemish import BlemishError
from blemish.cli.ending import EXTRAS, ended_by, explained
from tests.support import blemish


@pytest.mark.parametrize(
    ("cause", "sentence", "code"),
    [
        (BlemishError("a: is b; do c."), "a: is b; do c.", 2),
        (typer.BadParameter("--at is odd"), "--at is odd See: blemish --help", 2),
        (ModuleNotFoundError("no", name="torch.nn"), "needs torch.nn, which the base install leaves out; run: pip", 2),
        (ModuleNotFoundError("no", name="somebodys"), "this is a fault of blemish", 70),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device; make room there", 2),
        (OSError(errno.ENOSPC, "No space left on device"), "the output: No space left on device", 2),
        (PermissionError(errno.EACCES, "Permission denied", b"\xff"), "\udcff: Permission denied; check who may", 2),
        (MemoryError(), "not enough memory (MemoryError)", 2),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory", 2),
        (ImportError("a.so: failed to map segment from shared object"), "not enough memory", 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "not enough memory", 2),
        (RecursionError("maximum recursion depth"), "fault of blemish, not of yours (RecursionError: maximum", 70),
        (ZeroDivisionError("division by zero\nmore"), "(ZeroDivisionError: division by zero); run it again with", 70),
        (AssertionError(), "(AssertionError);", 70),
        (ExceptionGroup("several", [ValueError("a")]), "(ExceptionGroup: several", 70),
    ],
)
def test_every_exception_has_a_sentence_and_a_code(cause: Exception, sentence: str, code: int) -> None:
    said, number = explained(cause)
    assert sentence in said
    assert number == code != 1


@pytest.mark.parametrize(
    ("module", "web", "extra"),
    [
        ("fastapi.sse", False, "web"),
        ("uvicorn", True, "web"),
        ("sqlalchemy", False, "web"),
        ("alembic", True, "web"),
        ("argon2.exceptions", True, "web"),
        ("python_multipart", True, "web"),
        ("prometheus_client", True, "web"),
        ("psycopg", True, "postgres"),
        ("torch", True, "learn"),
        ("jinja2", False, "learn"),
        ("jinja2", True, "web"),
    ],
)
def test_of_a_missing_package_the_extra_is_named(
    module: str, web: bool, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`web`: the page was being loaded."""
    monkeypatch.delitem(sys.modules, "fastapi", raising=False)
    if web:
        monkeypatch.setitem(sys.modules, "fastapi", ModuleType("fastapi"))
    said, code = explained(ModuleNotFoundError("no", name=module))
    assert (
        said == f"this command needs {module}, which the base install leaves out; run: pip install 'blemish[{extra}]'"
    )
    assert code == 2


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_package_of_an_extra_is_known_to_be_of_it(extra: str) -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    modules = {"argon2_cffi": "argon2", "scikit_learn": "sklearn"}
    for requirement in project["project"]["optional-dependencies"][extra]:
        name = re.split(r"[^\w-]", requirement)[0].replace("-", "_")
        assert modules.get(name, name) in EXTRAS[extra], requirement


@pytest.mark.parametrize(
    ("cause", "code"), [(KeyboardInterrupt(), 130), (typer.Abort(), 130), (SystemExit(143), 143), (SystemExit(), 0)]
)
def test_what_somebody_asked_for_needs_no_sentence(
    cause: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(cause) == code
    assert capsys.readouterr().err == ""


def test_a_fault_has_no_stack_trace_but_on_request(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("blemish.data.layouts.read", broken)
    said = blemish("data", tmp_path, code=70).stderr
    assert len(said.splitlines()) == 1
    assert "BLEMISH_TRACE=1" in said
    monkeypatch.setenv("BLEMISH_TRACE", "1")
    said = blemish("data", tmp_path, code=70).stderr
    assert "in broken" in said
    assert said.splitlines()[-1].startswith("blemish: this is a fault of blemish")
