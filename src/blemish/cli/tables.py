"""Tables on every terminal: where one is too narrow for a table's columns, each row becomes lines of `name: value`; and
nothing in a cell, a title or a sentence reaches the terminal as a control."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from blemish.cli.words import escaped

FOLDED = 12  # cells that a column needs at least whose words may be folded
BESIDE = 3  # cells that a column takes beside its words


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is, without markup: names may hold brackets and colons."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    made.push_render_hook(_Border())
    return made


class _Border(RenderHook):
    """What is printed, as it may reach the terminal."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_safe(renderable) for renderable in renderables]


def _safe(renderable: ConsoleRenderable) -> ConsoleRenderable:
    if isinstance(renderable, Text):
        clean = escaped(renderable.plain)
        if clean == renderable.plain:
            return renderable
        return Text(clean, no_wrap=renderable.no_wrap, overflow=renderable.overflow, end=renderable.end)
    return _SafeTable(renderable) if isinstance(renderable, Table) else renderable


class _SafeTable:
    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if fits(self.table, options.max_width):
            for segment in console.render(self.table, options):
                lines = segment.text.split("\n")
                yield segment if segment.control else Segment("\n".join(map(escaped, lines)), segment.style)
        else:
            for line in listed(self.table):
                yield Segment(line)
                yield Segment.line()


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
