"""How the program ends: for every exception a sentence and an exit code. 1 is never one of them: it means that an
anomaly was found."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

import typer

from blemish.cli import streams
from blemish.cli.words import say
from blemish.types import BlemishError

REFUSED, FAULT, INTERRUPTED, READER_GONE = 2, 70, 130, 141
TRACE = "BLEMISH_TRACE"  # a variable of the environment: show where an error came from
# Packages that only learning needs, only the page, only the page on PostgreSQL, and only a cluster.
LEARN = {
    "lightning_fabric",
    "matplotlib",
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "sklearn",
    "onnx",
    "onnxscript",
    "jinja2",
}
WEB = {
    "alembic",
    "anyio",
    "argon2",
    "fastapi",
    "jinja2",
    "prometheus_client",
    "python_multipart",
    "sqlalchemy",
    "starlette",
    "uvicorn",
}
POSTGRES = {"psycopg"}
CLUSTER = {"pyarrow", "ray"}
EXTRAS = {"learn": LEARN, "web": WEB, "postgres": POSTGRES, "cluster": CLUSTER}
REMEDY = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EROFS: "choose a place that can be written to",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
NO_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate memory"),
    *("failed to map segment", "bad_alloc", "bad allocation"),
)


def ended_by(cause: BaseException) -> int:
    """Says on standard error why the program ends; returns its exit code."""
    if isinstance(cause, SystemExit):  # a signal's, see `signals`
        return cause.code if isinstance(cause.code, int) else REFUSED if cause.code else 0
    if isinstance(cause, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if os.environ.get(TRACE):
        traceback.print_exception(cause)
    sentence, code = explained(cause)
    if sentence:
        say(f"blemish: {sentence}", err=True)
    return code


def explained(cause: BaseException) -> tuple[str, int]:
    """The sentence for an exception, and the exit code."""
    if isinstance(cause, BlemishError):
        return str(cause), REFUSED
    if hasattr(cause, "format_message"):  # a usage error of typer's, which does not export the class
        return _usage(cause), REFUSED
    if isinstance(cause, ModuleNotFoundError) and (extra := _extra(cause)):
        sentence = f"this command needs {cause.name}, which the base install leaves out"
        return f"{sentence}; run: pip install 'blemish[{extra}]'", REFUSED
    if isinstance(cause, MemoryError) or any(words in str(cause).lower() for words in NO_MEMORY):
        return (
            f"there is not enough memory ({_short(cause)}); give smaller images, a smaller --image-size or fewer "
            "--threads, or end other programs.",
            REFUSED,
        )
    if isinstance(cause, OSError):  # a full disk, a folder without permission
        what = f"{os.fsdecode(cause.filename)}:" if isinstance(cause.filename, str | bytes) else "the output:"
        return (
            f"{what} {cause.strerror or cause}; {REMEDY.get(cause.errno or 0, 'correct that')} and run it again.",
            REFUSED,
        )
    more = "" if os.environ.get(TRACE) else f"; run it again with {TRACE}=1 in the environment to see where, and"
    return f"this is a fault of blemish, not of yours ({_short(cause)}){more or ';'} please report it.", FAULT


def _extra(cause: ModuleNotFoundError) -> str:
    """The extra of ours that has the missing package; empty if none has it."""
    package = (cause.name or "").partition(".")[0]
    extras = [name for name, packages in EXTRAS.items() if package in packages]
    # jinja2 is in two: the page loads fastapi before its templates, and nothing else does.
    return "web" if "web" in extras and "fastapi" in sys.modules else "".join(extras[:1])


def _usage(cause: Any) -> str:
    message = cause.format_message()
    if not message:  # no command at all: the help is on the screen already
        return ""
    command = cause.ctx.command_path if getattr(cause, "ctx", None) else "blemish"
    return f"{message} See: {command} --help"


def _short(cause: BaseException) -> str:
    first = str(cause).strip().partition("\n")[0]
    return f"{type(cause).__name__}: {first}" if first else type(cause).__name__


def finished(code: int) -> int:
    """The exit code, given that of the command: where standard output failed for another reason than that its reader
    stopped, the command did not do all that it was asked."""
    cause = streams.trouble()
    if cause is None or streams.reader_gone():
        return code
    say(f"blemish: standard output: {cause.strerror or cause}; not everything could be printed.", err=True)
    return code if code not in (0, 3) else REFUSED


def stop_unread() -> None:
    """Ends a command that only prints, where what it prints goes nowhere."""
    if streams.trouble():
        raise SystemExit(READER_GONE if streams.reader_gone() else 0)  # `finished` makes 2 of the 0
