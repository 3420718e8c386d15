"""Tables on every terminal: where one is too narrow for a table's columns, each row becomes lines of `name: value`; and
nothing in a cell, a title or a sentence reaches the terminal as a control."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from blemish.cli.words import escaped

NARROW = 40  # columns in which text is not broken between words: the terminal does that
FOLDED = 12  # cells that a column needs at least whose words may be folded
BESIDE = 3  # cells that a column takes beside its words


class _Page(Console):
    """A console that prints text as it is, without markup: names may hold brackets and colons."""

    def print(self, *objects: Any, **options: Any) -> None:
        soft = {**options, "soft_wrap": options.get("soft_wrap", self.width < NARROW)}
        for one in objects or ("",):
            if isinstance(one, Table) and fits(one, self.width):
                super().print(_SafeTable(one), **options)
            elif isinstance(one, Table):
                for line in listed(one):
                    super().print(Text(line), soft_wrap=True)
            elif isinstance(one, str | Text):
                super().print(_safe(one), **soft)
            else:
                super().print(one, **options)


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error, for tables and for lines with colours."""
    return _Page(stderr=stderr, highlight=False, markup=False, emoji=False)


def _safe(text: str | Text) -> Text:
    """One line without controls; without its colours where it had any of those."""
    clean = escaped(_plain(text))
    return text if isinstance(text, Text) and clean == text.plain else Text(clean)


class _SafeTable:
    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.table, options):
            lines = segment.text.split("\n")
            yield segment if segment.control else Segment("\n".join(map(escaped, lines)), segment.style)


def fits(table: Table, width: int) -> bool:
    """Whether every figure of a table, every word and enough of every name can be read in so many columns."""
    return sum(_needed(column) + BESIDE for column in table.columns) + 1 <= width


def _needed(column: Column) -> int:
    def longest(parts: Iterable[str]) -> int:
        return max(map(cell_len, parts), default=0)

    cells = [_plain(cell) for cell in column.cells]
    header = longest(_plain(column.header).split())
    if column.no_wrap:
        return max(header, longest(line for cell in cells for line in cell.splitlines()))
    words = longest(word for cell in cells for word in cell.split())
    return max(header, min(words, FOLDED) if column.overflow == "fold" else words)


def listed(table: Table) -> list[str]:
    """A table as lines: its title, a line for each cell that is not empty, an empty one after each row, its caption."""
    names = [_in_one_line(column.header) for column in table.columns]
    lines = [_in_one_line(table.title)] if table.title else []
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = zip(names, map(_in_one_line, row), strict=True)
        lines += [f"{name}: {cell}" for name, cell in cells if cell]
        lines.append("")
    return lines + ([_in_one_line(table.caption)] if table.caption else [])


def _in_one_line(part: object) -> str:
    return " ".join(map(escaped, _plain(part).split()))


def _plain(part: object) -> str:
    return part.plain if isinstance(part, Text) else str(part)
