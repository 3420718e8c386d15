from __future__ import annotations

import errno
import os

import pytest
import typer

from blemish import BlemishError
from blemish.cli.ending import ended_by, explained
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
