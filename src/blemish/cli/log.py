"""The commands that check the verdict log, registered by `cli/app.py` as `blemish log`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blemish.cli.verdicts import INCOMPLETE
from blemish.cli.words import say, say_json
from blemish.types import BlemishError

if TYPE_CHECKING:
    from blemish.station.chain import Entry, Head
    from blemish.station.lines import Log

_LONGEST = 1000  # bytes read of a file that should hold a head
Place = Annotated[Path, typer.Argument(help="The --out of a `blemish watch`, or its verdicts.jsonl.")]

log = typer.Typer(
    help="Show whether recorded verdicts were changed, dropped, moved or inserted afterwards.", no_args_is_help=True
)


@log.command()
def verify(
    path: Place,
    head: Annotated[
        str | None, typer.Option(help="A head kept elsewhere, which the log must hold: a file, or its text.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find every place where the log is not as it was written; exit with 3 if there is one."""
    from blemish.station.chain import problems

    kept = None if head is None else _kept(head)
    opened = _log(path)
    read = _Read(opened)
    found, listed = 0, list[str]()
    for sentence in problems(read, kept, before=opened.before):
        found += 1
        if as_json:
            listed.append(sentence)
        else:
            say(sentence)
    if as_json:
        older = opened.before.seq
        say_json({"entries": read.count, "older": older, "head": read.head.to_text(), "problems": listed}, indent=1)
    else:
        if kept is None:
            say("Without --head, a cut end and a chain that was built again are not found.")
        say(f"{read.said}, {_many(found, 'problem') if found else 'no problem'}; {read.head.to_text()}")
    if found:
        raise typer.Exit(INCOMPLETE)


@log.command()
def head(path: Place) -> None:
    """Print the log's head: kept elsewhere, it lets a later `verify --head` find every change before it."""
    from blemish.station.chain import problems

    opened = _log(path)
    read = _Read(opened)
    found = sum(1 for _ in problems(read, before=opened.before))
    say(read.head.to_text())
    if found:
        say(f"{path}: the log has {_many(found, 'problem')} already; see: blemish log verify {path}", err=True)
        raise typer.Exit(INCOMPLETE)


class _Read:
    """The entries of a log, counted as they are read, and the head that they have come to."""

    def __init__(self, opened: Log) -> None:
        self._opened, self.count, self.head = opened, 0, opened.before

    def __iter__(self) -> Iterator[Entry]:
        for entry in self._opened.entries:
            if entry.hash:
                self.count += 1
                self.head = self.head._replace(seq=entry.seq, hash=entry.hash)
            yield entry

    @property
    def said(self) -> str:
        older = self._opened.before.seq
        return _many(self.count, "entry") + (f" after {_many(older, 'older line')}" if older else "")


def _log(path: Path) -> Log:
    """The log at `path`, by what is there."""
    from blemish.station.lines import read

    return read(path)


def _kept(head: str) -> Head:
    """The head that `head` is, or that the file of that name holds. Raises `BlemishError` where there is none."""
    from blemish.atomic import open_regular
    from blemish.station.chain import Head

    if head.strip().startswith("blemish log "):
        return Head.from_text(head)
    try:
        with open_regular(Path(head)) as file:
            text = file.read(_LONGEST).decode("utf-8", "replace")
    except (OSError, ValueError):  # a NUL in its name
        raise BlemishError(
            f"--head {head}: is no head and no file that can be read; give what `blemish log head` printed."
        ) from None
    try:
        return Head.from_text(text)
    except BlemishError:
        raise BlemishError(f"--head {head}: holds no head of a log; give what `blemish log head` printed.") from None


def _many(count: int, what: str) -> str:
    if count == 1:
        return f"1 {what}"
    return f"{count:,} {what.removesuffix('y')}ies" if what.endswith("y") else f"{count:,} {what}s"
