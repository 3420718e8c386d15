"""The commands that check the verdict log, registered by `cli/app.py` as `blemish log`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
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
Place = Annotated[
    Path | None,
    typer.Argument(help="The --out of a `blemish watch`, its verdicts.jsonl, or the --data of a `blemish serve`."),
]
Base = Annotated[str, typer.Option(help="Instead: the database of a `blemish serve`.")]

log = typer.Typer(
    help="Show whether recorded verdicts were changed, dropped, moved or inserted afterwards.", no_args_is_help=True
)


@log.command()
def verify(
    path: Place = None,
    database: Base = "",
    head: Annotated[
        str | None, typer.Option(help="A head kept elsewhere, which the log must hold: a file, or its text.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find every place where the log is not as it was written; exit with 3 if there is one."""
    from blemish.station.chain import problems

    kept = None if head is None else _kept(head)
    found, listed = 0, list[str]()
    with _log(path, database) as (opened, differences):
        read = _Read(opened)
        for sentence in chain(problems(read, kept, before=opened.before), differences):
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
def head(path: Place = None, database: Base = "") -> None:
    """Print the log's head: kept elsewhere, it lets a later `verify --head` find every change before it."""
    from blemish.station.chain import problems

    with _log(path, database) as (opened, differences):
        read = _Read(opened)
        found = sum(1 for _ in chain(problems(read, before=opened.before), differences))
    say(read.head.to_text())
    if found:
        if database:
            from blemish.web.database import shown

            where = f"--database {shown(database)}"
        else:
            where = f"{path}"
        say(f"{where}: the log has {_many(found, 'problem')} already; see: blemish log verify {where}", err=True)
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


@contextmanager
def _log(path: Path | None, database: str) -> Iterator[tuple[Log, Iterable[str]]]:
    """The log at `path` or in `database`, and of a page a sentence for each row that is not what its log says."""
    from blemish.station.lines import read

    if path is None and not database:
        raise BlemishError("Which log? Give the folder of a `blemish watch` or `blemish serve`, or --database.")
    if path and not database and not (path / "blemish.sqlite").is_file():
        yield read(path), ()
        return
    from blemish.web.config import ServeConfig
    from blemish.web.opening import logged

    with logged(ServeConfig(data=path or Path(), database=database)) as both:
        yield both


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
